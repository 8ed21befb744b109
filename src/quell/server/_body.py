"""Read a request's body within a bound, before anything is made of it."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from quell.server._errors import RETRY_AFTER_S, WireError

_MIB = 1024 * 1024


async def read_body(request: Request, *, body_max_mb: float, timeout_s: float) -> bytes:
    """Return the body as it was sent. Raises WireError 413 as soon as it is longer than allowed, 503 when it is late."""
    longest = int(body_max_mb * _MIB)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > longest:
        raise _too_long(body_max_mb)
    pieces: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                length += len(piece)
                if length > longest:
                    raise _too_long(body_max_mb)
                pieces.append(piece)
    except TimeoutError as error:
        # Not 408: an exporter drops what is answered so, and sends again what is answered 503.
        raise WireError(
            503,
            "OverloadError",
            f"the body did not arrive within {timeout_s:g} s",
            hint="send it again; server.request_timeout_s is the limit",
            retry_after_s=RETRY_AFTER_S,
            ends_connection=True,
        ) from error
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
