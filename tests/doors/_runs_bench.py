"""A small real journal for tests of runs, and work whose behaviour a test decides."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Literal

from quell.config import JournalSettings, Secret
from quell.domain import Clock, Run
from quell.runs import Continue, Done, Next, RunContext, Runs, WaitUntil, Work, system_clock

Way = Literal["queue", "direct"]
WAY: ContextVar[Way] = ContextVar("way", default="queue")
"""How the works of a test are executed."""


@asynccontextmanager
async def journal(
    state_dir: Path,
    *,
    clock: Clock = system_clock,
    url: str = "",
    works: dict[str, Work] | None = None,
    launched: bool = True,
    executor: str = "",
    lease_s: float = 2.0,
    attempts_max: int = 10,
    way: Way | None = None,
    at_once_max: int = 2000,
) -> AsyncIterator[Runs]:
    """Open runs, launch them if there are works, and close them; works go the way of the test unless one is named."""
    settings = JournalSettings(url=Secret(url), executor=executor, lease_s=lease_s, attempts_max=attempts_max)
    runs = await Runs.open(settings, state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    try:
        for kind, work in (works or {}).items():
            runs.register(kind, work, way=way or WAY.get(), at_once_max=at_once_max)
        if works and launched:
            await runs.launch()
        yield runs
    finally:
        await runs.close()


class Story:
    """Work of three steps over two segments, with a wait between, which counts what is done and does as it is told."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.began: Counter[str] = Counter()
        self.interrupted: Counter[str] = Counter()
        self.hang_in = ""
        self.fail_in = ""
        self.wait_s = 0.0
        self.reached = asyncio.Event()

    def step(self, name: str) -> Callable[[], Awaitable[str]]:
        """Return the work of one step."""

        async def work() -> str:
            self.began[name] += 1
            if self.fail_in == name:
                raise ConnectionError("no route")
            if self.hang_in == name:
                self.reached.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.interrupted[name] += 1
                    raise
            self.done[name] += 1
            return name.upper()

        return work

    async def __call__(self, context: RunContext) -> Next:
        if not context.state:
            one = await context.step("one", self.step("one"), returns=str, timeout_s=30)
            wake = await context.now() + timedelta(seconds=self.wait_s)
            return WaitUntil(at=wake, state={"one": one})
        if "again" not in context.state:
            return Continue(state={**context.state, "again": True})
        two = await context.step("two", self.step("two"), returns=str, timeout_s=30)
        three = await context.step("three", self.step("three"), returns=str, timeout_s=30)
        return Done(result={"told": f"{context.state['one']}-{two}-{three}", "outcome": "fine"})


async def story(runs: Runs, *, key: str | None = None) -> Run:
    """Start a run of kind `story`."""
    return await runs.start("story", subject="a test", arguments={}, key=key)


def ended(run: Run, status: str) -> Run:
    """Assert how a run ended, showing why if it did otherwise."""
    assert run.status == status, f"{run.status}: {run.error}"
    return run
