"""Places at a dependency: so many at once, so many waiting, and the important ones first."""

from __future__ import annotations

import asyncio
from bisect import insort
from dataclasses import dataclass, field
from typing import Literal

from quell.domain import OverloadError, Priority

_RANKS: dict[Priority, int] = {"critical": 0, "normal": 1, "background": 2}
_BUSY_RETRY_S = 1.0


@dataclass(slots=True, order=True)
class _Waiter:
    rank: int
    number: int
    turn: asyncio.Future[Literal["granted", "evicted"]] = field(compare=False)


class Bulkhead:
    """The bounded places and the bounded queue of one dependency."""

    def __init__(self, *, dependency: str, concurrent_max: int, queue_max: int) -> None:
        self._dependency = dependency
        self._concurrent_max = concurrent_max
        self._queue_max = queue_max
        self._waiters: list[_Waiter] = []
        self._numbers = 0
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._waiters)

    async def enter(self, *, priority: Priority, wait_s: float) -> None:
        """Take a place, waiting for one at most that long. Raises OverloadError; then no place is held."""
        if self.in_flight < self._concurrent_max and not self._waiters:
            self.in_flight += 1
            return
        waiter = self._queue(_RANKS[priority])
        try:
            async with asyncio.timeout(wait_s):
                turn = await waiter.turn
        except TimeoutError:
            self._withdraw(waiter)
            raise self._busy(f"no place came free within {wait_s:.3g} s") from None
        except BaseException:
            self._withdraw(waiter)
            raise
        if turn == "evicted":
            raise self._busy("the queue is full and more important calls came")

    def leave(self) -> None:
        """Give the place back: to the first in the queue, if there is one."""
        assert self.in_flight > 0, "a place is given back once"
        while self._waiters:
            waiter = self._waiters.pop(0)
            if not waiter.turn.done():
                waiter.turn.set_result("granted")  # the place changes hands and stays taken
                return
        self.in_flight -= 1

    def _queue(self, rank: int) -> _Waiter:
        if len(self._waiters) >= self._queue_max:
            last = self._waiters[-1] if self._waiters else None
            if last is None or last.rank <= rank:
                raise self._busy("all places are taken and the queue is full")
            self._waiters.pop()
            if not last.turn.done():
                last.turn.set_result("evicted")
        self._numbers += 1
        waiter = _Waiter(rank, self._numbers, asyncio.get_running_loop().create_future())
        insort(self._waiters, waiter)
        return waiter

    def _withdraw(self, waiter: _Waiter) -> None:
        """Undo the wait of a call that was cancelled: also when its turn had come and nobody was left to take it."""
        if waiter.turn.done() and not waiter.turn.cancelled():
            if waiter.turn.result() == "granted":
                self.leave()
        elif waiter in self._waiters:
            self._waiters.remove(waiter)

    def _busy(self, reason: str) -> OverloadError:
        return OverloadError(
            f"`{self._dependency}` was not called: {reason}",
            retry_after_s=_BUSY_RETRY_S,
            hint="nothing was sent; ask again later, or raise concurrent_max of this dependency",
        )
