"""Errors as clients of OpenAI's protocol read them: one object, in a body or in a frame of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from starlette.responses import Response

from quell.domain import ConfigError, ModelFault, QuellError, RefusedError, UsageError
from quell.server._errors import WireError, json_response, refused, wire_error_of, with_headers

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "internal_error",
    502: "server_error",
    503: "server_error",
    504: "timeout_error",
}
_CODES: Mapping[int, str] = {
    401: "invalid_api_key",
    403: "forbidden",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    502: "model_failed",
    503: "unavailable",
    504: "timeout",
}
_FAULTS: Mapping[str, tuple[int, str]] = {
    ModelFault.TIMEOUT: (504, "timeout"),
    ModelFault.RATE_LIMITED: (429, "rate_limit_exceeded"),
    ModelFault.QUOTA: (429, "insufficient_quota"),
    ModelFault.OVERLOADED: (503, "model_overloaded"),
    "overload": (503, "model_overloaded"),
    ModelFault.OVERFLOW: (400, "context_length_exceeded"),
    ModelFault.FILTERED: (400, "content_filter"),
    ModelFault.INVALID: (502, "model_refused_request"),
    ModelFault.AUTH: (502, "model_auth"),
    ModelFault.NOT_FOUND: (502, "model_unknown_to_provider"),
}
"""How a model failed -> status and code; every other fault is 502."""


class ChatError(WireError):
    """A request of OpenAI's protocol that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str | None = None,
        param: str | None = None,
        hint: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Say what is wrong; `reason` is what programs read as `code`, and `param` names the part of the request."""
        super().__init__(status, "UsageError", message, hint=hint, retry_after_s=retry_after_s)
        self.reason = reason
        self.param = param
        self.headers: Mapping[str, str] = {}
        """What the answer says beside the error, such as the run that goes on."""


def openai_object(error: WireError, *, clean: Callable[[str], str] = str) -> dict[str, object]:
    """Return the error object; `clean` takes secrets out of it."""
    said = clean(str(error))
    if error.hint:
        said = f"{said.rstrip('.')}. {clean(error.hint)[:1].upper()}{clean(error.hint)[1:]}."
    # Who could not be identified is told so in the word that clients of this protocol know.
    own = None if error.status == 401 else error.code
    reason = error.reason if isinstance(error, ChatError) else (own or _CODES.get(error.status))
    param = error.param if isinstance(error, ChatError) else None
    kind = _TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": said, "type": kind, "param": param, "code": reason}}


def openai_frame(error: WireError, *, clean: Callable[[str], str] = str) -> bytes:
    """Write an error as a frame of a stream."""
    return b"data: " + msgspec.json.encode(openai_object(error, clean=clean)) + b"\n\n"


def openai_response(error: WireError, *, clean: Callable[[str], str] = str) -> Response:
    """Answer with an error."""
    response = with_headers(json_response(openai_object(error, clean=clean), status=error.status), error)
    if isinstance(error, ChatError):
        response.headers.update(error.headers)
    return response


def chat_error_of(error: QuellError) -> WireError:
    """Say what an error of ours means to a client of this protocol."""
    if isinstance(error, RefusedError):
        return refused(error)
    if isinstance(error, UsageError):
        return ChatError(400, str(error), hint=error.hint)
    if isinstance(error, ConfigError):
        # Who asks cannot help it: the agent cannot be opened as it is configured.
        return ChatError(500, str(error), reason="internal_error", hint=error.hint)
    return wire_error_of(error)


def fault_error(fault: str) -> ChatError:
    """Say why a model did not answer; `fault` is a ModelFault and what was told of it, with a colon between."""
    kind, _, detail = fault.partition(": ")
    status, reason = _FAULTS.get(kind, (502, "model_failed"))
    said = f"the model did not answer ({kind.replace('_', ' ') or 'unknown'})"
    return ChatError(status, f"{said}: {detail}" if detail else said, reason=reason)
