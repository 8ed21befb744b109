"""Wakes whoever waits for news of this process, so that polling is only for the news of others."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Bell:
    """Rings for everybody who listens at that moment. Belongs to one event loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake all who listen."""
        self._rung.set()
        self._rung = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Begin to listen: take this before looking, so that no ring between looking and waiting is missed."""
        return self._rung

    @staticmethod
    async def wait(rung: asyncio.Event, *, timeout_s: float) -> None:
        """Wait until it rang since `listen`, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await rung.wait()
