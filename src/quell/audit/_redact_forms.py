"""The forms in which a secret may appear in a text: every encoding that a tool, a log or a browser applies."""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator

FORM_MIN_BYTES = 6
"""Shorter ones would be found everywhere."""
_LINE_MIN = 16
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


_URL_PASSWORDS = (
    re.compile(r"://[^\s/:@]{0,256}:([^\s@]{1,1024})@"),
    # One that holds @ or / itself ends at the last @.
    re.compile(r"://[^\s/:@]{0,256}:(\S{1,1024})@"),
)
_PERCENTS = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_URL_TOKEN = re.compile(r"://([^\s/:@]{16,1024})@")
_QUERIED = re.compile(
    r"[?&](?:[^\s=&#]{0,64}[_.-])?(?:api)?(?:key|token|secret|sig|signature)=([^\s&#]{1,1024})", re.IGNORECASE
)
_ASSIGNED = re.compile(r"(?:password|passwd|pwd)\s{0,4}=\s{0,4}(?:'([^']{1,1024})'|([^\s'&;,]{1,1024}))", re.IGNORECASE)
_SCHEME = re.compile(r"(basic|bearer|token|apikey|api-key|key|digest|negotiate|splunk)\s+(\S{1,16384})", re.IGNORECASE)


def secrets_inside(value: str) -> tuple[str, ...]:
    """Return what is secret within a secret: passwords of URLs and connection strings, credentials after a scheme."""
    found: dict[str, None] = {}
    for pattern in (*_URL_PASSWORDS, _ASSIGNED, _QUERIED):
        for match in pattern.finditer(value):
            told = match[match.lastindex or 0]
            found |= {told: None, unquoted(told): None}
    found |= {match[1]: None for match in _URL_TOKEN.finditer(value) if any(map(str.isdigit, match[1]))}
    if shown := _SCHEME.fullmatch(value.strip()):
        found |= {shown[2]: None} | ({password: None} if (password := _basic_password(shown)) else {})
    found.pop(value, None)
    return tuple(found)


def credentials_of(header: str) -> tuple[str, ...]:
    """Return what is secret in the value of a header: of an API key not its id, of a JWT not what it says."""
    shown = _SCHEME.fullmatch(header.strip())
    if shown is None:
        # A token by itself, or cookies.
        return tuple(_core(pair.strip().partition("=")[2] or pair.strip()) for pair in header.split(";"))
    return tuple(filter(None, (_core(shown[2]), _basic_password(shown))))


def _core(token: str) -> str:
    if token.startswith("qk_"):
        return token.rpartition("_")[2]
    return token.rpartition(".")[2] if token.startswith("eyJ") and token.count(".") == 2 else token


def unquoted(text: str) -> str:
    """Decode what is percent-encoded in a text."""
    return _PERCENTS.sub(lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "replace"), text)


def _basic_password(shown: re.Match[str]) -> str:
    """Return the password of `Basic`, empty when there is none (RFC 7617)."""
    if shown[1].lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(shown[2], validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
    return pair.partition(":")[2]


def forms_of(secret: str) -> frozenset[bytes]:
    """Return every form of a secret that is long enough to be told from chance."""
    found: set[bytes] = set()
    for text in _parts(secret):
        raw = _bytes(text)
        base64_forms = set(_base64(raw))
        found |= {raw, raw.hex().encode(), raw.hex().upper().encode()}
        found |= set(_percent(raw)) | set(_json(text)) | set(_html(text)) | base64_forms
        for form in base64_forms:
            # Padding and the letters + and / are themselves escaped in URLs and in some JSON.
            found |= {*_percent(form), form.replace(b"/", b"\\/")}
    return frozenset(form for form in found if len(form) >= FORM_MIN_BYTES)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _parts(secret: str) -> Iterator[str]:
    """Give the secret, and the long lines of one that has many: logs tear those apart."""
    yield secret
    lines = secret.splitlines()
    if len(lines) > 1:
        yield "\n".join(lines)
        yield "\r\n".join(lines)
        yield from (line for line in lines if len(line) >= _LINE_MIN and not line.startswith("-----"))


def _base64(raw: bytes) -> Iterator[bytes]:
    """Encode at the three alignments; of each only the letters that the neighbours cannot change."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        core = encoded[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        yield core
        yield core.replace(b"+", b"-").replace(b"/", b"_")


def _percent(raw: bytes) -> Iterator[bytes]:
    for kept in (_UNRESERVED, _UNRESERVED | {0x2F}, _UNRESERVED | frozenset(b"!*'()"), frozenset[int]()):
        for digits in ("%%%02X", "%%%02x"):
            form = b"".join(bytes([byte]) if byte in kept else (digits % byte).encode() for byte in raw)
            yield form
            yield form.replace(b"%20", b"+")


def _json(text: str) -> Iterator[bytes]:
    units = text.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    for digits in ("\\u%04x", "\\u%04X"):
        yield "".join(digits % code for code in codes).encode()
        yield "".join(
            chr(code) if 0x20 <= code < 0x7F and code not in _QUOTED else digits % code for code in codes
        ).encode()
    for ensure_ascii in (True, False):
        once = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
        upper = "".join(_upper_escapes(once))
        for form in (once, upper):
            # Twice: JSON as a string inside of JSON.
            yield from (_bytes(form), _bytes(form.replace("/", "\\/")), _bytes(json.dumps(form)[1:-1]))


_QUOTED = frozenset(map(ord, "\"\\&<>'"))


def _upper_escapes(escaped: str) -> Iterator[str]:
    head, *rest = escaped.split("\\u")
    yield head
    for part in rest:
        yield f"\\u{part[:4].upper()}{part[4:]}"


def _html(text: str) -> Iterator[bytes]:
    yield _bytes(html.escape(text, quote=False))
    for apostrophe in ("&#x27;", "&#39;", "&apos;"):
        for quote in ("&quot;", "&#34;"):
            yield _bytes(html.escape(text, quote=False).replace("'", apostrophe).replace('"', quote))
    for digits in ("&#%d;", "&#x%x;", "&#x%X;", "&#X%X;"):
        yield "".join(digits % ord(letter) for letter in text).encode()
        yield "".join(
            letter if letter.isascii() and letter not in "&<>\"'" else digits % ord(letter) for letter in text
        ).encode()
