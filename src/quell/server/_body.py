"""Read a request's body within a bound, before anything is made of it."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from quell.server._errors import RETRY_AFTER_S, WireError

_MIB = 1024 * 1024
_LAST_MOMENT_S = 1.0


class Bodies:
    """Reads the bodies of requests, each within a bound of size and of time, which is short once the server stops."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadlines: set[asyncio.Timeout] = set()

    async def read(self, request: Request, *, body_max_mb: float) -> bytes:
        """Return the body as it was sent. Raises WireError: 413 as soon as it is too long, 503 when it is late."""
        longest = int(body_max_mb * _MIB)
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > longest:
            raise _too_long(body_max_mb)
        pieces: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                self._deadlines.add(deadline)
                try:
                    async for piece in request.stream():
                        length += len(piece)
                        if length > longest:
                            raise _too_long(body_max_mb)
                        pieces.append(piece)
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError as error:
            raise _too_late() from error
        except ClientDisconnect as error:
            raise WireError(400, "UsageError", "the request ended before its body did") from error
        return b"".join(pieces)

    async def taken(self, request: Request, *, body_max_mb: float) -> Receive:
        """Read a body, and return what hands it to somebody else's endpoint. Raises as `read` does."""
        left = [await self.read(request, body_max_mb=body_max_mb)]

        async def receive() -> Message:
            return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await request.receive()

        return receive

    def hurry(self) -> None:
        """Give what is being read a last moment: the server stops, and whoever sends shall learn to send it again."""
        self._timeout_s = min(self._timeout_s, _LAST_MOMENT_S)
        last_s = asyncio.get_running_loop().time() + _LAST_MOMENT_S
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(min(last_s, deadline.when() or last_s))


def _too_late() -> WireError:
    # Not 408: an exporter drops what is answered so, and sends again what is answered 503.
    return WireError(
        503,
        "OverloadError",
        "the body did not arrive in time",
        hint="send it again; server.request_timeout_s is the limit, and a server that stops does not wait for it",
        retry_after_s=RETRY_AFTER_S,
        ends_connection=True,
    )


def _too_long(body_max_mb: float) -> WireError:
    return WireError(
        413,
        "BoundExceededError",
        f"the body is longer than {body_max_mb:g} MiB",
        hint="send smaller batches, or raise server.body_max_mb",
    )
