"""One connection: how long and how slow the head of a request may be, before anything of ours sees it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quell.server._streaming import AT_ONCE

_HEAD_BYTES_MAX = 64 * 1024
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Ends a connection whose request head has no end in size or time; uvicorn would wait and gather for ever."""

    # Beyond thirty attributes, and uvicorn has nearly as many, each connection would keep a table of their names.
    __slots__ = ("_deadline", "_head_bytes", "_is_in_head")
    head_s = 30.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request, but not for ever."""
        self._is_in_head, self._head_bytes = True, 0
        super().connection_made(cast("asyncio.Transport", transport))
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.head_s, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._lift_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, counting those of a head that is not complete."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        if self._head_bytes > _HEAD_BYTES_MAX:
            self.transport.write(_TOO_LONG)
            self.transport.close()
        elif self._deadline is None and self._head_bytes:
            self._deadline = self.loop.call_later(self.head_s, self.transport.close)

    def on_headers_complete(self) -> None:
        """Begin the request: its head is known."""
        self._is_in_head = False
        self._lift_deadline()
        super().on_headers_complete()
        # The application begins after this, and finds here what leads to the connection past everything in between.
        self.scope[AT_ONCE] = partial(_at_once, self.cycle)  # type: ignore[literal-required] # a key of ours

    def on_message_complete(self) -> None:
        """Expect the head of another request."""
        super().on_message_complete()
        self._is_in_head = True
        self._head_bytes = 0

    def _lift_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _at_once(cycle: RequestResponseCycle, piece: bytes) -> bool:
    """Write a piece of a body as `cycle.send` does, where it needs to wait for nothing."""
    if cycle.disconnected:
        return True  # nobody is there to miss it
    if cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True


def connection_class(*, head_timeout_s: float) -> type[Connection]:
    """Return the class of connections that wait this long for the head of a request."""

    class Bounded(Connection):
        __slots__ = ()
        head_s = head_timeout_s

    return Bounded
