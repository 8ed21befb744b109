"""What a provider's refusal means: HTTP status, error object and words become one of our kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

import msgspec

from quell.domain import ModelError, ModelFault

_TOLD_MAX_CHARS = 500
_RETRY_AFTER_MAX_S = 3600.0
_OVERFLOW = re.compile(
    r"context[ _-]?(length|window|size)|maximum context|too many (input )?tokens|prompt is too long|"
    r"input is too long|exceeds? the (maximum|model'?s?)[^.]{0,40}tokens|reduce the length|available context",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient[_ ]quota|billing|out of credits?|payment|insufficient credits", re.IGNORECASE)
_FILTERED = re.compile(r"content[_ ](filter|policy)|safety system|moderation", re.IGNORECASE)
_OVERLOADED = re.compile(r"overloaded|capacity|temporarily unavailable|try again later|server_error", re.IGNORECASE)
_RATE = re.compile(r"rate[_ ]limit|too many requests|requests per", re.IGNORECASE)
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")
HINTS: Mapping[ModelFault, str] = {
    ModelFault.AUTH: "check `api_key` and that the account may use this model",
    ModelFault.NOT_FOUND: "check `model`; `quell init` lists what the provider offers",
    ModelFault.QUOTA: "the account has no credit left",
    ModelFault.OVERFLOW: "ask for less at a time, or use a model with a larger window",
    ModelFault.RATE_LIMITED: "lower the load or raise the account's limits",
}
"""What to do about a fault."""
_BY_STATUS: Mapping[int, ModelFault] = {
    401: ModelFault.AUTH,
    402: ModelFault.QUOTA,
    403: ModelFault.AUTH,
    404: ModelFault.NOT_FOUND,
    408: ModelFault.TIMEOUT,
    409: ModelFault.OVERLOADED,
    413: ModelFault.OVERFLOW,
    429: ModelFault.RATE_LIMITED,
}


class _Error(msgspec.Struct):
    message: object = ""
    type: object = ""
    code: object = ""


class _Envelope(msgspec.Struct):
    error: object = None
    message: object = ""
    detail: object = ""


def fault_of_answer(status: int, *, headers: Mapping[str, str], body: bytes, now: datetime) -> ModelError:
    """Say what an answer other than success means."""
    words = _words_of(body)
    fault = by_words(words, status=status) or _BY_STATUS.get(status)
    if fault is None:
        fault = ModelFault.OVERLOADED if status >= 500 else ModelFault.INVALID
    return ModelError(
        f"the provider answered {status}" + (f": {shown(words)}" if words else ""),
        fault=fault,
        status=status,
        retry_after_s=_retry_after_s(headers, now=now),
        hint=HINTS.get(fault, ""),
    )


def fault_in_stream(error: object, *, said: bool) -> ModelError:
    """Say what an error object in the middle of a stream means."""
    words = _words_of(msgspec.json.encode({"error": error}))
    fault = by_words(words, status=0) or (ModelFault.BROKEN_STREAM if said else ModelFault.OVERLOADED)
    return ModelError(f"the provider broke off: {shown(words)}", fault=fault, said=said, hint=HINTS.get(fault, ""))


def shown(words: str) -> str:
    """Return somebody else's words fit for a message: one line, bounded, nothing that moves a cursor."""
    clean = _UNSEEN.sub(" ", words).strip()
    return clean if len(clean) <= _TOLD_MAX_CHARS else clean[:_TOLD_MAX_CHARS] + " …"


def by_words(words: str, *, status: int) -> ModelFault | None:
    """Read the words where the status alone does not say it."""
    if status in {401, 403, 404}:
        return None
    ways = ((_OVERFLOW, ModelFault.OVERFLOW), (_QUOTA, ModelFault.QUOTA), (_FILTERED, ModelFault.FILTERED))
    for pattern, fault in ways:
        if pattern.search(words):
            return fault
    if status in {0, 400} and _RATE.search(words):
        return ModelFault.RATE_LIMITED
    if status == 0 and _OVERLOADED.search(words):
        return ModelFault.OVERLOADED
    return None


def _words_of(body: bytes) -> str:
    """Return message, type and code of an error object in any of the forms that providers use, else the text."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
        if envelope.error is None:
            return " ".join(each for each in (str(envelope.message), str(envelope.detail)) if each)
        if isinstance(envelope.error, str):
            return envelope.error
        error = msgspec.convert(envelope.error, type=_Error)
        return " ".join(str(each) for each in (error.message, error.type, error.code) if each)
    except (msgspec.DecodeError, msgspec.ValidationError):
        text = body.decode("utf-8", "replace")
        return re.sub(r"<[^>]*>", " ", text) if text.lstrip().startswith("<") else text


def _retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds or a date; and the finer header that some providers send."""
    if "retry-after-ms" in headers:
        found = _number(headers["retry-after-ms"])
        if found is not None:
            return min(found / 1000, _RETRY_AFTER_MAX_S)
    said = headers.get("retry-after", "")
    if not said:
        return None
    found = _number(said)
    if found is None:
        try:
            found = (parsedate_to_datetime(said) - now).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(found, 0.0), _RETRY_AFTER_MAX_S)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 <= found < float("inf") else None
