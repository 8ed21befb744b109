"""Work that blocks, off the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Call(Protocol):
    """Runs a blocking function of the journal off the loop."""

    def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Return what the function returns."""


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what may block for long in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type] # without an error there is a value

    def body() -> None:
        value, failed = None, None
        try:
            value = work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the loop
            failed = error
        with suppress(RuntimeError):  # the loop is gone, and so is whoever waited
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=body, name="quell-runs", daemon=True).start()
    return await future


async def whole(work: Coroutine[None, None, T]) -> T:
    """Await work to its end, also when cancelled meanwhile: nobody comes in between before it is over."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
