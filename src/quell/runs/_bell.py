"""Wakes whoever waits for news of a run: at once when this process wrote it, by looking when another may have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from quell.domain import JournalError

EVERYTHING = ""
"""The name under which those listen who follow every run."""
_LOOK_S = 0.2
_HERE_S = 5.0
"""How long a follower of a run that is executed here waits without a ring: all that the run does rings."""
_LINGER = 10
"""So many looks in vain before nobody looks any more."""


class _Bell:
    """The bell of one run, as long as somebody listens to it."""

    __slots__ = ("listeners", "rung")

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.listeners = 0


class Ear:
    """What one follower hears of one run, or of all."""

    __slots__ = ("_bell", "_bells", "_run", "_rung")

    def __init__(self, bells: Bells, run: str, bell: _Bell) -> None:
        self._bells = bells
        self._run = run
        self._bell = bell
        self._rung = bell.rung

    def listen(self) -> None:
        """Begin to listen: call this before looking, so that no ring between looking and waiting is missed."""
        self._rung = self._bell.rung

    async def wait(self, *, timeout_s: float) -> None:
        """Wait until it rang since `listen`, or the time is over."""
        await self._bells.wait(self._run, self._rung, timeout_s=timeout_s)


class Bells:
    """A bell for each run that somebody follows. Belongs to one event loop."""

    def __init__(
        self, *, is_here: Callable[[str], bool], news: Callable[[int | None], Awaitable[tuple[int, Iterable[str]]]]
    ) -> None:
        """Take how to tell a run that is executed here, and what looks for runs with events past a number."""
        self._is_here = is_here
        self._news = news
        self._bells: dict[str, _Bell] = {}
        self._elsewhere = 0
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def ear(self, run: str) -> Iterator[Ear]:
        """Give an ear for a run, or for `EVERYTHING`."""
        bell = self._bells.setdefault(run, _Bell())
        bell.listeners += 1
        try:
            yield Ear(self, run, bell)
        finally:
            bell.listeners -= 1
            if not bell.listeners:
                del self._bells[run]

    def ring(self, *runs: str) -> None:
        """Wake those who follow these runs, and those who follow all."""
        for run in (*runs, EVERYTHING):
            bell = self._bells.get(run)
            if bell is not None:
                bell.rung.set()
                bell.rung = asyncio.Event()

    async def wait(self, run: str, rung: asyncio.Event, *, timeout_s: float) -> None:
        """Wait for a ring; where another process may have news, have somebody look for all that wait."""
        is_elsewhere = not self._is_here(run)
        if is_elsewhere:
            self._elsewhere += 1
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(timeout_s, _HERE_S)):
                    await rung.wait()
        finally:
            if is_elsewhere:
                self._elsewhere -= 1

    async def close(self) -> None:
        """Stop looking, and wake everybody."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        self.ring(*self._bells)

    async def _look(self) -> None:
        """Look for all who wait for what other processes write, as long as there are any."""
        last: int | None = None
        vain = 0
        while vain < _LINGER:
            try:
                newest, runs = await self._news(last)
            except JournalError:
                self.ring(*self._bells)  # they look themselves, and say what is wrong
            else:
                # What came before the first look is not known to all of them.
                if last is None:
                    self.ring(*self._bells)
                elif newest > last:
                    self.ring(*runs)
                last = newest
            await asyncio.sleep(_LOOK_S)
            vain = 0 if self._elsewhere else vain + 1
