"""Pattern rules: the second net, for secrets that nobody told us of. Bounded and linear, each behind a literal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

Span: TypeAlias = tuple[int, int, str, int]
"""Start, end, name of what it is, and where the words begin that tell so."""

RULE_MAX_BYTES = 16_384
"""No rule looks further than this."""
_PLACEHOLDERS = re.compile(
    rb"(?:null|none|true|false|undefined|required|optional|\$\{.*|\{\{.*|<.*|\*+|\.+|x+)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What is found by a literal and told by a pattern; group 1, or the whole match, is the secret."""

    name: str
    literal: bytes
    """Lower case when the pattern is for lower case."""
    pattern: re.Pattern[bytes]
    is_lowered: bool = False
    is_secret: Callable[[bytes], bool] = lambda _: True


def looks_random(value: bytes) -> bool:
    """Tell whether a value looks made by a machine: long, letters and digits, many different ones."""
    if len(value) < 12 or not re.search(rb"[0-9]", value) or not re.search(rb"[A-Za-z]", value):
        return False
    counts = Counter(value[:256])
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) >= 3.0


def _is_password(value: bytes) -> bool:
    return _PLACEHOLDERS.fullmatch(value) is None


def _is_bearer(value: bytes) -> bool:
    return len(value) >= 20 or looks_random(value)


def _tokens() -> Iterator[_Rule]:
    """Give the rules for credentials that show by their first letters what they are."""
    shapes: tuple[tuple[str, tuple[str, ...], bytes], ...] = (
        ("aws-key", ("AKIA", "ASIA", "ABIA", "ACCA"), rb"[A-Z2-7]{16}(?![A-Za-z0-9])"),
        ("google-key", ("AIza",), rb"[0-9A-Za-z_-]{35}"),
        ("google-token", ("ya29.",), rb"[0-9A-Za-z_-]{20,2048}+"),
        ("github-token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), rb"[A-Za-z0-9]{20,255}+"),
        ("github-token", ("github_pat_",), rb"[A-Za-z0-9_]{20,255}+"),
        ("gitlab-token", ("glpat-",), rb"[A-Za-z0-9_-]{20,255}+"),
        (
            "slack-token",
            ("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"),
            rb"[A-Za-z0-9-]{10,255}+",
        ),
        ("payment-key", ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_"), rb"[A-Za-z0-9]{10,255}+"),
        ("model-key", ("sk-",), rb"[A-Za-z0-9_-]{20,255}+"),
        ("jwt", ("eyJ",), rb"[A-Za-z0-9_-]{8,4096}+\.[A-Za-z0-9_-]{8,8192}+(?:\.[A-Za-z0-9_-]{0,2048}+)?"),
    )
    for name, literals, rest in shapes:
        for literal in literals:
            head = re.escape(literal.encode())
            # The start of a token is asked for last: a pattern that begins with a literal is found fastest.
            yield _Rule(
                name=name,
                literal=literal.encode(),
                pattern=re.compile(head + rb"(?<![A-Za-z0-9_-]" + head + rb")" + rest),
            )


def _others() -> Iterator[_Rule]:
    yield _Rule(
        name="private-key",
        literal=b"-----BEGIN",
        pattern=re.compile(
            rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            rb"(?:[^-]|-(?!----)){0,16000}+(?:-----END [A-Z0-9 ]{0,60}+-----)?"
        ),
    )
    yield _Rule(
        name="url-password",
        literal=b"://",
        pattern=re.compile(rb"://[^\s/:@\"'<>]{0,128}+:([^\s/@\"'<>]{1,256}+)@"),
    )
    yield _Rule(
        name="bearer",
        literal=b"bearer",
        pattern=re.compile(rb"bearer(?:\s|%20|\\u0020){1,8}+([a-z0-9._~+/=-]{8,4096}+)"),
        is_lowered=True,
        is_secret=_is_bearer,
    )
    yield _Rule(
        name="basic-auth",
        literal=b"authorization",
        pattern=re.compile(
            rb"authorization\\{0,4}[\"']?\s{0,4}[:=,]\s{0,4}\\{0,4}[\"']?basic\s{1,8}([a-z0-9+/=_-]{6,4096}+)"
        ),
        is_lowered=True,
    )
    quoted_or_bare = (
        rb"[a-z0-9_-]{0,24}+(?:\\{0,4}[\"'])?\s{0,4}+(?:=>|[:=])\s{0,4}+"
        rb"(?:\\{0,4}[\"']([^\s\"'\\]{6,512}+)|([^\s\"'\\&,;<>(){}\[\]]{6,512}+))"
    )
    for name, words, is_secret in (("password", STRONG, _is_password), ("credential", WEAK, looks_random)):
        for word in words:
            yield _Rule(
                name=name,
                literal=word,
                pattern=re.compile(re.escape(word) + quoted_or_bare),
                is_lowered=True,
                is_secret=is_secret,
            )


STRONG = (b"password", b"passwd", b"passphrase", b"pwd")
"""Whatever is assigned to such a name is a secret."""
WEAK = (
    b"secret",
    b"token",
    b"apikey",
    b"api_key",
    b"api-key",
    b"access_key",
    b"accesskey",
    b"private_key",
    b"credential",
)
"""What is assigned to such a name is a secret if it looks like one."""
_RULES = (*_tokens(), *_others())
RULE_NAMES = frozenset(rule.name for rule in _RULES)


def spans_by_rule(data: bytes) -> list[Span]:
    """Return what looks like a credential."""
    lowered = data.lower()
    found: list[Span] = []
    for rule in _RULES:
        text = lowered if rule.is_lowered else data
        if rule.literal not in text:
            continue
        for match in rule.pattern.finditer(text):
            group = match.lastindex or 0
            start, end = match.span(group)
            if rule.is_secret(data[start:end]):
                found.append((start, end, rule.name, match.start()))
    return found


def rule_of_key(key: str, value: str) -> str:
    """Name the rule by which a value is a secret because of the key that it stands under; empty when none does."""
    strength = _strength(key)
    if not strength:
        return ""
    raw = value.encode("utf-8", "surrogatepass")
    if strength == "password":
        return strength if raw and _is_password(raw) else ""
    return strength if looks_random(raw) else ""


@lru_cache(maxsize=4_096)
def _strength(key: str) -> str:
    low = key.lower().encode("utf-8", "surrogatepass")
    if any(word in low for word in STRONG):
        return "password"
    return "credential" if any(word in low for word in WEAK) else ""
