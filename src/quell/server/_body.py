"""Read a request's body within a bound, before anything is made of it."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from quell.server._errors import WireError

_MIB = 1024 * 1024


async def read_body(request: Request, *, body_max_mb: float) -> bytes:
    """Return the body as it was sent. Raises WireError 413 as soon as it is longer than allowed."""
    longest = int(body_max_mb * _MIB)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > longest:
        raise _too_long(body_max_mb)
    pieces: list[bytes] = []
    length = 0
    try:
        async for piece in request.stream():
            length += len(piece)
            if length > longest:
                raise _too_long(body_max_mb)
            pieces.append(piece)
    except ClientDisconnect as error:
        raise WireError(400, "UsageError", "the request ended before its body did") from error
    return b"".join(pieces)


def _too_long(body_max_mb: float) -> WireError:
    return WireError(
        413,
        "BoundExceededError",
        f"the body is longer than {body_max_mb:g} MiB",
        hint="send smaller batches, or raise server.body_max_mb",
    )
