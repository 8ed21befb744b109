"""Wakes whoever waits for news of a run: at once when this process wrote it, by looking when another may have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Literal, Self, TypeAlias

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


class Ear:
    """What one follower hears of one run, or of all, while it is entered."""

    __slots__ = ("_bells", "_has_rung", "_run", "_until", "_waiter")

    def __init__(self, bells: Bells, run: str, *, until: Until) -> None:
        self._bells = bells
        self._run = run
        self._until = until
        self._has_rung = False
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        """Begin to hear."""
        self._bells.add(self._run, self)
        return self

    def __exit__(self, *_: object) -> None:
        """Hear no more."""
        self._bells.remove(self._run, self)

    def listen(self) -> None:
        """Begin to listen: call this before looking, so that no ring between looking and waiting is missed."""
        self._has_rung = False

    async def wait(self) -> None:
        """Wait until it rang since `listen`."""
        self._bells.begin_looking(self._run, self)
        try:
            while not self._has_rung:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        finally:
            self._bells.end_looking(self)

    def ring(self, *, has_ended: bool) -> None:
        """Wake who waits, if it is for this."""
        if self._until == "end" and not has_ended:
            return
        self._has_rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Bells:
    """A bell for each run that somebody follows. Belongs to one event loop."""

    def __init__(
        self, *, is_here: Callable[[str], bool], news: Callable[[int | None], Awaitable[tuple[int, Iterable[str]]]]
    ) -> None:
        """Take how to tell a run that is executed here, and what looks for runs with events past a number."""
        self._is_here = is_here
        self._news = news
        self._ears: dict[str, list[Ear]] = {}
        self._elsewhere: set[Ear] = set()
        self._hurry = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def ear(self, run: str, *, until: Until = "news") -> Ear:
        """Give an ear for a run, or for `EVERYTHING`."""
        return Ear(self, run, until=until)

    def add(self, run: str, ear: Ear) -> None:
        """Have an ear hear what rings for a run."""
        self._ears.setdefault(run, []).append(ear)

    def remove(self, run: str, ear: Ear) -> None:
        """Let an ear hear no more."""
        self._ears[run].remove(ear)
        if not self._ears[run]:
            del self._ears[run]

    def ring(self, *runs: str, ended: Collection[str] | None = None) -> None:
        """Wake those who follow these runs, and those who follow all.

        Who waits for an end is woken for those that have `ended`; None: any of them may have.
        """
        for run in (*runs, EVERYTHING):
            for ear in self._ears.get(run, ()):
                ear.ring(has_ended=ended is None or run in ended)

    def begin_looking(self, run: str, ear: Ear) -> None:
        """Look what other processes have written, as long as this ear waits for a ring."""
        if not self._is_here(run):
            self._elsewhere.add(ear)
            self._hurry.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_forever())

    def end_looking(self, ear: Ear) -> None:
        """Look for it no more."""
        self._elsewhere.discard(ear)

    async def close(self) -> None:
        """Stop looking, and wake everybody."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        self.ring(*self._ears)

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
                    async with asyncio.timeout(_LOOK_HERE_S if self._ears else _LINGER_S):
                        await self._hurry.wait()
            if self._ears:
                heard_s = loop.time()

    async def _look(self, last: int | None, late: set[str]) -> int | None:
        """Ring for the runs that have news; those that are executed here are put with the late, as they ring."""
        try:
            newest, runs = await self._news(last)
        except JournalError:
            self.ring(*self._ears)  # they look themselves, and say what is wrong
            return last
        if last is None:
            self.ring(*self._ears)  # what came before the first look is not known to all of them
        elif newest > last:
            followed = [run for run in runs if run in self._ears]
            late.update(run for run in followed if self._is_here(run))
            self.ring(*(run for run in followed if run not in late))
        return newest
