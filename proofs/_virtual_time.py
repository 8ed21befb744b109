"""An event loop whose clock jumps to the next timer when nothing else is to do: minutes pass in milliseconds."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in their order and without waiting; threads and sockets still take the time they take."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 1_000.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # of BaseEventLoop
        while timers and timers[0].cancelled():
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]  # of BaseEventLoop
            heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001 - as BaseEventLoop does
        if timers and not self._ready:  # type: ignore[attr-defined]  # of BaseEventLoop
            self._now_s = max(self._now_s, timers[0].when())
        super()._run_once()  # type: ignore[misc]  # of BaseEventLoop


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
