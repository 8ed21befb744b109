"""Wakes whoever waits for news of a run: at once when this process wrote it, by looking when another may have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeAlias

from quell.domain import JournalError

Until: TypeAlias = Literal["news", "end"]
"""What somebody waits for: anything that a run tells, or only its end."""
ENDINGS = frozenset({"run.finished", "run.failed", "run.cancelled"})
"""Events after which a run does nothing more."""

EVERYTHING = ""
"""The name under which those listen who follow every run."""
_LOOK_S = 0.2
"""How often one looks for all who follow what other processes may write."""
_LOOK_HERE_S = 5.0
"""How often for those who follow runs that are executed here: all that such a run does rings."""
_LINGER_S = 2.0
"""How long one goes on to look when nobody listens any more: who reads a page, comes back."""


class _Bell:
    """The bell of one run, as long as somebody listens to it."""

    __slots__ = ("listeners", "over", "rung")

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.over: asyncio.Event | None = None
        """For those who wait for the end; None: nobody does."""
        self.listeners = 0


class Ear:
    """What one follower hears of one run, or of all."""

    __slots__ = ("_bell", "_bells", "_run", "_rung", "_until")

    def __init__(self, bells: Bells, run: str, bell: _Bell, *, until: Until) -> None:
        self._bells = bells
        self._run = run
        self._bell = bell
        self._rung = bell.rung
        self._until = until

    def listen(self) -> None:
        """Begin to listen: call this before looking, so that no ring between looking and waiting is missed."""
        if self._until == "news":
            self._rung = self._bell.rung
        else:
            self._rung = self._bell.over = self._bell.over or asyncio.Event()

    async def wait(self) -> None:
        """Wait until it rang since `listen`."""
        await self._bells.wait(self._run, self._rung)


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
        self._hurry = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def ear(self, run: str, *, until: Until = "news") -> Iterator[Ear]:
        """Give an ear for a run, or for `EVERYTHING`."""
        bell = self._bells.setdefault(run, _Bell())
        bell.listeners += 1
        try:
            yield Ear(self, run, bell, until=until)
        finally:
            bell.listeners -= 1
            if not bell.listeners:
                del self._bells[run]

    def ring(self, *runs: str, ended: Collection[str] | None = None) -> None:
        """Wake those who follow these runs, and those who follow all.

        Who waits for an end is woken for those that have `ended`; None: any of them may have.
        """
        for run in (*runs, EVERYTHING):
            bell = self._bells.get(run)
            if bell is None:
                continue
            bell.rung.set()
            bell.rung = asyncio.Event()
            if bell.over is not None and (ended is None or run in ended):
                bell.over.set()
                bell.over = None

    async def wait(self, run: str, rung: asyncio.Event) -> None:
        """Wait for a ring; one looks for all who wait what other processes have written."""
        is_elsewhere = not self._is_here(run)
        if is_elsewhere:
            self._elsewhere += 1
            self._hurry.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_forever())
        try:
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

    async def _look_forever(self) -> None:
        """Look as long as somebody listens."""
        loop = asyncio.get_running_loop()
        last: int | None = None
        late: set[str] = set()
        heard_s = looked_s = loop.time()
        while heard_s > loop.time() - _LINGER_S:
            last = await self._look(last, late)
            if loop.time() >= looked_s + _LOOK_HERE_S:
                self.ring(*late)
                late.clear()
                looked_s = loop.time()
            if self._elsewhere:
                await asyncio.sleep(_LOOK_S)
            else:
                self._hurry.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_HERE_S if self._bells else _LINGER_S):
                        await self._hurry.wait()
            if self._bells:
                heard_s = loop.time()

    async def _look(self, last: int | None, late: set[str]) -> int | None:
        """Ring for the runs that have news; those that are executed here are put with the late, as they ring."""
        try:
            newest, runs = await self._news(last)
        except JournalError:
            self.ring(*self._bells)  # they look themselves, and say what is wrong
            return last
        if last is None:
            self.ring(*self._bells)  # what came before the first look is not known to all of them
        elif newest > last:
            followed = [run for run in runs if run in self._bells]
            late.update(run for run in followed if self._is_here(run))
            self.ring(*(run for run in followed if run not in late))
        return newest
