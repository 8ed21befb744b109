"""Signatures: of votes, by a key outside the database; and of webhooks, on AURA's wire.

The wire: `X-Aura-Timestamp` holds Unix seconds and `X-Aura-Signature-256` holds `sha256=` and the hex HMAC-SHA256 over
`{timestamp}.{context}.{body}`; the context binds the direction and the decision. Nothing is sent from here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from quell.config import Secret
from quell.domain import Approval, Asker, ConfigError, Problem, RefusedError, Signer
from quell.governance._question import shown

SIGNATURE_HEADER = "X-Aura-Signature-256"
TIMESTAMP_HEADER = "X-Aura-Timestamp"
_KEY_MIN_BYTES = 32
_TOLERANCE_MAX_S = 86_400
_BODY_MAX_BYTES = 1_000_000
_REASON_MAX_CHARS = 2_000
_SLACK_MAX_CHARS = 3_900
_SIGNATURE = re.compile(r"sha256=([0-9a-fA-F]{64})")
_BOLD = re.compile(r"^\*\*(.+)\*\*$", re.MULTILINE)
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
Context = Literal["approval-request", "approval-decision"]


class HmacSigner:
    """Signs with a shared key: whoever can verify can also sign."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.key_id = "hmac-" + hashlib.sha256(b"quell key id\n" + key).hexdigest()[:12]

    def sign(self, message: bytes) -> str:
        """Return the signature under the name of the key."""
        return f"{self.key_id}:{hmac.new(self._key, message, hashlib.sha256).hexdigest()}"

    def verify(self, message: bytes, *, signature: str) -> bool:
        """Tell whether this key made that signature."""
        return hmac.compare_digest(self.sign(message).encode(), signature.encode())


class Ed25519Signer:
    """Signs with a private key: whoever has the public one can verify and cannot sign (RFC 8032)."""

    def __init__(self, seed: bytes) -> None:
        # Loaded here: who signs with a shared key does not pay for it.
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._private.public_key()
        self._invalid = InvalidSignature
        self.public_key = self._public.public_bytes_raw().hex()
        self.key_id = "ed25519-" + hashlib.sha256(self._public.public_bytes_raw()).hexdigest()[:12]

    def sign(self, message: bytes) -> str:
        """Return the signature under the name of the key."""
        return f"{self.key_id}:{self._private.sign(message).hex()}"

    def verify(self, message: bytes, *, signature: str) -> bool:
        """Tell whether this key made that signature."""
        key_id, _, told = signature.partition(":")
        try:
            self._public.verify(bytes.fromhex(told), message)
        except (self._invalid, ValueError):
            return False
        return key_id == self.key_id


def signer(key: bytes, *, kind: Literal["hmac", "ed25519"] = "hmac") -> Signer:
    """Build a signer from a key. Raises ConfigError when the key has the wrong length."""
    if kind == "ed25519" and len(key) == _KEY_MIN_BYTES:
        return Ed25519Signer(key)
    if kind == "hmac" and len(key) >= _KEY_MIN_BYTES:
        return HmacSigner(key)
    raise ConfigError(
        f"a signing key of kind {kind} has {len(key)} bytes",
        hint=f"{'exactly' if kind == 'ed25519' else 'at least'} {_KEY_MIN_BYTES} random bytes",
    )


def sign(body: bytes, *, context: str, at: datetime, secret: Secret) -> dict[str, str]:
    """Return the two headers that sign a body for one context."""
    timestamp = str(int(at.timestamp()))
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: f"sha256={_mac(body, context, timestamp, secret)}"}


def verify(
    body: bytes,
    *,
    headers: Iterable[tuple[str, str]],
    context: str,
    at: datetime,
    secrets: Iterable[Secret],
    tolerance_s: int,
) -> str:
    """Return the signature of a body when one of the secrets made it, for this context, just now.

    Raises RefusedError, the same for whatever is wrong: who forges learns nothing from it.
    """
    told = [(name.lower(), value.strip()) for name, value in headers]
    timestamps = [value for name, value in told if name == TIMESTAMP_HEADER.lower()]
    signatures = [value for name, value in told if name == SIGNATURE_HEADER.lower()]
    timestamp = timestamps[0] if len(timestamps) == 1 and _TIMESTAMP.fullmatch(timestamps[0]) else ""
    match = _SIGNATURE.fullmatch(signatures[0]) if len(signatures) == 1 else None
    given = match[1].lower() if match else "0" * 64
    # Every secret is tried, so that the time taken tells nothing about which one fits.
    fits = [hmac.compare_digest(_mac(body, context, timestamp, secret), given) for secret in secrets if secret]
    is_now = bool(timestamp) and abs(at.timestamp() - int(timestamp)) <= tolerance_s
    if match is None or not is_now or not any(fits):
        raise unsigned()
    return given


def unsigned() -> RefusedError:
    """Return the one refusal of every signature that is missing, wrong, stale or used before."""
    return RefusedError("the signature is missing or not valid", hint="sign the request anew", code="unauthenticated")


def decision_id_of(approval: str) -> str:
    """Write an approval's id as the UUID (version 7) that AURA's wire wants; ids of approvals are made to be one."""
    number = 0
    for letter in approval.partition("_")[2]:
        number = number << 5 | _ALPHABET.index(letter)
    return str(UUID(int=number))


def approval_id_of(decision: str) -> str:
    """Return the approval's id of a decision id. Raises RefusedError when it is no UUID."""
    try:
        number = UUID(decision).int
    except ValueError:
        raise RefusedError("there is no such decision", hint="GET /api/v1/approvals", code="unknown") from None
    return "apr_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def uuid_entropy(entropy: bytes) -> bytes:
    """Set version and variant in ten random bytes, so that the id made of them is a UUID of version 7 (RFC 9562)."""
    return bytes((0x70 | entropy[0] & 0x0F, entropy[1], 0x80 | entropy[2] & 0x3F, *entropy[3:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookMessage:
    """A POST for somebody else to send."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookAnswer:
    """What an approver's service said."""

    approved: bool
    reason: str
    signature: str
    """Of the answer, to refuse it when it comes again; empty when it was not signed."""


class Webhook:
    """One approver's service: what it is sent, and what its answers are worth."""

    def __init__(
        self,
        url: str,
        *,
        secret: Secret,
        secondary: Secret | None = None,
        tolerance_s: int = 300,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Check the settings. Raises ConfigError with every mistake."""
        self._url = url
        self._secret = secret
        self._secondary = secondary or Secret("")
        self._secrets = tuple(one for one in (self._secret, self._secondary) if one)
        self._tolerance_s = tolerance_s
        self._headers = dict(headers or {})
        problems = (*self._url_problems(), *self._key_problems(), *self._header_problems())
        if problems:
            raise ConfigError("the webhook of approvals cannot be used", problems=tuple(problems))

    @property
    def is_signed(self) -> bool:
        """Whether requests are signed and answers must be."""
        return bool(self._secrets)

    def request(
        self,
        approval: Approval,
        *,
        request_id: str,
        at: datetime,
        asker: Asker | None = None,
        forwarded: Mapping[str, str] | None = None,
    ) -> WebhookMessage:
        """Write the request for a decision.

        `asker` tells where in the run it comes from, where somebody knows; `forwarded` are headers of the caller that
        the operator lets through.
        """
        decision = decision_id_of(approval.id)
        intent = {"tool_call_intent": approval.terms.explanation} if approval.terms.explanation else {}
        told = {
            "version": 1,
            "decision_id": decision,
            "request_id": request_id,
            "scope": (asker or Asker(run=approval.terms.run)).scope(),
            "origin": approval.terms.origin(),
            "items": [
                {"tool_name": asked.call.tool, "arguments": json.loads(asked.call.arguments), **intent}
                for asked in approval.terms.calls
            ],
        }
        return self._message(told, context=f"approval-request:{decision}", at=at, forwarded=forwarded or {})

    def slack(self, approval: Approval, *, link: str, at: datetime) -> WebhookMessage:
        """Write the question for an incoming webhook of a chat: whole, or as a link with the digest."""
        text = shown(approval, form="markdown", chars_max=_SLACK_MAX_CHARS, link=link)
        # Slack's own marks: one star is bold there, and two are stars.
        marked = _BOLD.sub(r"*\1*", text)
        safe = marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return self._message({"text": safe}, context=f"approval-request:{decision_id_of(approval.id)}", at=at)

    def answer(self, body: bytes, *, headers: Iterable[tuple[str, str]], approval: str, at: datetime) -> WebhookAnswer:
        """Read a reply or a posted decision: `{"approved": bool, "reason"?: str}` and nothing else.

        Raises RefusedError when its signature does not hold, or when it says something else.
        """
        signature = ""
        if self.is_signed:
            context = f"approval-decision:{decision_id_of(approval)}"
            signature = verify(
                body,
                headers=headers,
                context=context,
                at=at,
                secrets=self._secrets,
                tolerance_s=self._tolerance_s,
            )
        told = _object(body)
        approved, reason = told.get("approved"), told.get("reason")
        is_plain = isinstance(approved, bool) and (reason is None or isinstance(reason, str))
        if not is_plain or not set(told) <= {"approved", "reason"}:
            raise _unread("it must be an object of `approved` (true or false) and, if you like, `reason` (text)")
        return WebhookAnswer(
            approved=approved is True, reason=str(reason or "")[:_REASON_MAX_CHARS], signature=signature
        )

    def _message(
        self, told: Mapping[str, object], *, context: str, at: datetime, forwarded: Mapping[str, str] | None = None
    ) -> WebhookMessage:
        body = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
        own = {"content-type", TIMESTAMP_HEADER.lower(), SIGNATURE_HEADER.lower()}
        extra = {**self._headers, **(forwarded or {})}
        headers = {name: value for name, value in extra.items() if name.lower() not in own and _is_header(name, value)}
        headers["Content-Type"] = "application/json"
        if self._secret:
            headers |= sign(body, context=context, at=at, secret=self._secret)
        return WebhookMessage(url=self._url, headers=tuple(headers.items()), body=body)

    def _url_problems(self) -> Iterable[Problem]:
        scheme, _, rest = self._url.partition("://")
        if scheme.lower() not in {"http", "https"} or not rest.strip("/"):
            yield _problem("url", "no http or https URL", "write https://host/path")
        elif scheme.lower() == "http" and self.is_signed:
            yield _problem("url", "plain http with a signing secret", "write https:// or remove the secret")

    def _key_problems(self) -> Iterable[Problem]:
        for name, one in (("secret", self._secret), ("secondary", self._secondary)):
            if one and len(one.reveal().encode()) < _KEY_MIN_BYTES:
                yield _problem(name, f"shorter than {_KEY_MIN_BYTES} bytes", "use 32 random bytes or more")
        if self._secondary and not self._secret:
            yield _problem("secondary", "a second secret without a first", "set the secret itself")
        if not 1 <= self._tolerance_s <= _TOLERANCE_MAX_S:
            yield _problem("tolerance_s", "out of range", f"1 to {_TOLERANCE_MAX_S} seconds; 300 is usual")

    def _header_problems(self) -> Iterable[Problem]:
        for name, value in self._headers.items():
            if not _is_header(name, value):
                yield _problem(f"headers.{name!r}", "no HTTP header", "use a plain name and a value of one line")


def _mac(body: bytes, context: str, timestamp: str, secret: Secret) -> str:
    return hmac.new(secret.reveal().encode(), f"{timestamp}.{context}.".encode() + body, hashlib.sha256).hexdigest()


def _is_header(name: str, value: str) -> bool:
    return bool(_TOKEN.fullmatch(name)) and value.isascii() and value.isprintable()


def _object(body: bytes) -> dict[str, object]:
    if len(body) > _BODY_MAX_BYTES:
        raise _unread("it is too large")
    try:
        told = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _unread("it is no JSON") from None
    if not isinstance(told, dict):
        raise _unread("it is no object")
    return told


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a key twice")
    return told


def _unread(why: str) -> RefusedError:
    return RefusedError(f"the answer cannot be read: {why}", hint="nothing was approved; answer again")


def _problem(path: str, reason: str, hint: str) -> Problem:
    key = path if path == "tolerance_s" else f"webhook_{path}"
    return Problem(path=f"approvals.{key}", reason=reason, hint=hint, source="settings")
