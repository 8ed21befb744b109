"""The stream of events of an old HTTP server, with events that are too long taken out while it is read.

The SDK ends the whole connection at such an event, with every call on it (mcp 2.3: 1 MiB, whatever one sets).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable

import httpx2

from quell.tools._exchange import EDGE_BYTES

EVENT_MAX_BYTES = 1 << 20
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_SEAM = b" "
"""Between the two edges, so that they do not make an end where they meet."""


class Events(httpx2.AsyncByteStream):
    """A body of events, each bounded; `dropped` is told the edges and the size of one that was not passed on."""

    def __init__(
        self, inner: httpx2.AsyncByteStream, *, event_max_bytes: int, dropped: Callable[[bytes, int], None]
    ) -> None:
        self._inner = inner
        self._max = event_max_bytes
        self._dropped = dropped

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held, missing, searched = bytearray(), 0, 0
        async for chunk in self._inner:
            held += chunk
            while end := _EVENT_END.search(held, max(0, searched - len(b"\r\n\r"))):
                event = bytes(held[: end.end()])
                del held[: end.end()]
                size, missing, searched = missing + len(event), 0, 0
                if size <= self._max:
                    yield event
                else:
                    self._dropped(_without_fields(event), size)
            searched = len(held)
            if missing + len(held) > self._max:
                kept = held[:EDGE_BYTES] + _SEAM + held[-EDGE_BYTES:]
                missing += len(held) - len(kept)
                held, searched = kept, len(kept)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _without_fields(event: bytes) -> bytes:
    """Return what an event holds, without the names of its lines."""
    return event.partition(b"data:")[2].strip()
