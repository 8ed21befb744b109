"""Run a coroutine so that the first signal lets it clean up and the third one does not ask."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, TypeVar

from quell.cli._exit import ExitCode
from quell.cli._signals import TerminatedError, listen_to_signals

T = TypeVar("T")

_SIGNALS_MAX = 3
_BEGIN_S = 5.0


def run_until_done(work: Callable[[], Awaitable[int]], *, loop: Literal["standard", "quick"] = "standard") -> int:
    """Return what `work` returns. Raises KeyboardInterrupt or TerminatedError when a signal cancelled it.

    `loop`: the quick one takes longer to load, and half the time for each piece of many streams.
    """
    came: list[int] = []

    async def guarded() -> int:
        running = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            came.append(number)
            if len(came) >= _SIGNALS_MAX:
                os._exit(ExitCode.INTERRUPTED)
            if len(came) == _SIGNALS_MAX - 1:
                sys.stderr.write("still cleaning up; once more ends at once\n")
            else:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            running.add_signal_handler(number, stop, number)
        return await work()

    try:
        with asyncio.Runner(loop_factory=_quick_loop if loop == "quick" else None) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        if not came:
            raise
        raise (TerminatedError if came[0] == signal.SIGTERM else KeyboardInterrupt) from None
    finally:
        # asyncio leaves the defaults behind, and the default of SIGTERM kills without a word.
        listen_to_signals(is_over=bool(came))


def _quick_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def begun(beginning: Awaitable[T], *, undo: Callable[[T], Awaitable[object]]) -> T:
    """Return what was begun. Told to stop in its middle, let it come to its end and undo it: it may be on record already."""
    task = asyncio.ensure_future(beginning)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):  # what failed to begin is not there to be undone
            await undo(await asyncio.wait_for(task, timeout=_BEGIN_S))
        raise
