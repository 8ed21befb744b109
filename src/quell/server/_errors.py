"""Errors on the wire: one JSON form for our API, the Status message of OTLP for telemetry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import msgspec
from starlette.responses import Response

from quell.domain import (
    BoundExceededError,
    ConfigError,
    OverloadError,
    QuellError,
    RefusalCode,
    RefusedError,
    StateHeldError,
    UsageError,
    WorldError,
)

Form: TypeAlias = Literal["json", "protobuf"]

_STATUS: tuple[tuple[type[QuellError], int], ...] = (
    (BoundExceededError, 413),
    (OverloadError, 429),
    (UsageError, 400),
    (RefusedError, 409),
    (ConfigError, 400),
    (WorldError, 503),
    (StateHeldError, 503),
)
_REFUSALS: Mapping[RefusalCode, int] = {
    "unauthenticated": 401,
    "forbidden": 403,
    "unknown": 404,
    "mismatch": 409,
    "gone": 410,
}
_CHALLENGES = {401: 'Bearer realm="quell"', 403: 'Bearer realm="quell", error="insufficient_scope"'}
"""What RFC 6750 wants in WWW-Authenticate."""
_GRPC_CODE = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 413: 8, 415: 3, 429: 8, 500: 13, 503: 14}
"""HTTP status -> google.rpc.Code, as OTLP/HTTP wants in the body of an error."""
RETRY_AFTER_S = 5


class WireError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        ends_connection: bool = False,
        code: RefusalCode | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.ends_connection = ends_connection
        self.code = code
        """Why authority said no; None for every other error."""


def wire_error_of(error: QuellError) -> WireError:
    """Say what an error of ours means on the wire."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    retry_after_s = error.retry_after_s if isinstance(error, OverloadError) else None
    if status == 503:
        retry_after_s = RETRY_AFTER_S
    return WireError(status, type(error).__name__, str(error), hint=error.hint, retry_after_s=retry_after_s)


def refused(error: RefusedError) -> WireError:
    """Say what a refusal of authority means on the wire; elsewhere a refusal is a conflict of life cycles."""
    return WireError(_REFUSALS[error.code], type(error).__name__, str(error), hint=error.hint, code=error.code)


def json_response(body: object, *, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


def error_response(error: WireError, *, clean: Callable[[str], str] = str) -> Response:
    """Answer with an error of our API; `clean` takes secrets out of it, which a library may have quoted."""
    said = {"kind": error.kind, "message": clean(str(error)), "hint": clean(error.hint)}
    if error.code is not None:
        said["code"] = error.code
    return with_headers(json_response({"ok": False, "error": said}, status=error.status), error)


def otlp_error_response(error: WireError, *, form: Form) -> Response:
    """Answer with an error in the way of OTLP/HTTP: a Status in the content type of the request."""
    code = _GRPC_CODE.get(error.status, 2)
    said = f"{error}; {error.hint}" if error.hint else str(error)
    if form == "json":
        return with_headers(json_response({"code": code, "message": said}, status=error.status), error)
    message = said.encode()
    body = b"\x08" + _varint(code) + b"\x12" + _varint(len(message)) + message
    response = Response(body, status_code=error.status, media_type="application/x-protobuf")
    return with_headers(response, error)


def with_headers(response: Response, error: WireError) -> Response:
    """Put into an answer what its error wants in headers."""
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.ends_connection:
        response.headers["Connection"] = "close"
    if error.code is not None and error.status in _CHALLENGES:
        response.headers["WWW-Authenticate"] = _CHALLENGES[error.status]
    return response


def _varint(number: int) -> bytes:
    """Write a number as protobuf does: seven bits at a time, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
