"""Lives of a process that investigates; each life but the last is ended by SIGKILL right after one step was kept.

One parent imports everything once and forks each life from a process that has neither threads nor connections. It
prints one line of JSON per life: what the journal holds when that life is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

import sqlalchemy as sa

from quell.config import InvestigationSettings, JournalSettings, Secret
from quell.domain import Answer, Gap, Question
from quell.incidents import Curve, CurveAsk, Desk
from quell.runs import Next, RunContext, Runs, Work, system_clock
from tests._story import NOON, RecordedReader, alert

T = TypeVar("T")


class Mortal(Runs):
    """Runs whose process dies right after the step that is named has been kept, before anything else can happen."""

    kill_after = ""

    def register(
        self, kind: str, work: Work, *, way: Literal["queue", "direct"] = "queue", at_once_max: int = 2000
    ) -> None:
        """Register work that is given a context which kills."""

        async def mortal(context: RunContext) -> Next:
            keep = context.step

            async def step(
                name: str, work: Callable[[], Awaitable[T]], *, returns: type[T], timeout_s: float, attempts: int = 1
            ) -> T:
                value = await keep(name, work, returns=returns, timeout_s=timeout_s, attempts=attempts)
                if name == self.kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return value

            context.step = step  # type: ignore[method-assign]  # the one place where a test may cut the power
            return await work(context)

        super().register(kind, mortal, way=way, at_once_max=at_once_max)


class Counted(RecordedReader):
    """A reader that writes down on disk what it was asked."""

    log: Path

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        with self.log.open("a") as log:
            log.write(f"{question.kind.value}\n")
        return await super().ask(question, timeout_s=timeout_s)


async def no_curves(ask: CurveAsk) -> tuple[Curve, ...]:
    points = ((ask.window.start, 0.0), (ask.window.end, 1.0))
    return (Curve(subject="payment", measure="error share", unit="share", points=points),)


def journal_of(url: str) -> JournalSettings:
    return JournalSettings(url=Secret(url), executor="the-one", lease_s=2.0, attempts_max=100)


async def life(directory: Path, *, url: str, kill_after: str) -> None:
    """Take in the same alerts as every life before, and see the investigation through, or die on the way."""
    since = datetime.fromisoformat((directory / "born").read_text())

    def clock() -> datetime:
        return NOON + timedelta(seconds=60) + (system_clock() - since)

    reader = Counted()
    reader.log = directory / "asked"
    runs = await Mortal.open(journal_of(url), state_dir=directory, clock=clock, entropy=os.urandom, version="v1")
    assert isinstance(runs, Mortal)
    runs.kill_after = kill_after
    bounds = InvestigationSettings(settle_s=0.1)
    desk = Desk(runs=runs, readers=[reader], settings=bounds, clock=clock, entropy=os.urandom, curves=no_curves)
    await runs.launch()
    (incident,) = await desk.handle([alert(), alert("checkout")])
    await runs.wait(incident.run or "", timeout_s=30)
    await desk.tend()
    await runs.close()


async def seen(directory: Path, *, url: str) -> dict[str, object]:
    """Look at the journal from outside."""
    runs = await Runs.open(journal_of(url), state_dir=directory, clock=system_clock, entropy=os.urandom, version="v1")
    with runs.engine.connect() as connection:
        query = sa.text("SELECT name, result FROM quell_steps WHERE kind = 'step' ORDER BY number")
        steps = {str(row.name): str(row.result) for row in connection.execute(query)}
    asked = (directory / "asked").read_text().split() if (directory / "asked").exists() else []
    found = await runs.list(limit=10)
    events = [[event.run, event.key, event.name] for event in await runs.events(limit=500)]
    body: dict[str, object] = {
        "steps": steps,
        "asked": asked,
        "runs": [[run.id, run.status.value, run.result, run.attempts] for run in found],
        "events": events,
    }
    await runs.close()
    return body


def forked(work: Callable[[], Awaitable[object]]) -> int:
    """Do async work in a child process; return how it ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(work())  # type: ignore[arg-type]  # every work here is a coroutine function
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def tell(directory: Path, url: str, code: int, kill_after: str) -> None:
    async def work() -> None:
        body = {"code": code, "kill_after": kill_after, **await seen(directory, url=url)}
        sys.stdout.write(json.dumps(body) + "\n")
        sys.stdout.flush()

    assert forked(work) == 0


def main() -> None:
    """Live once per step named on standard input, one per line, and once more to the end."""
    import dbos  # noqa: F401, PLC0415 - imported once for every life
    import psycopg  # noqa: F401, PLC0415

    directory, url = Path(sys.argv[1]), sys.argv[2]
    (directory / "born").write_text(system_clock().isoformat())
    for kill_after in [*sys.stdin.read().split(), ""]:

        async def one(kill_after: str = kill_after) -> None:
            await life(directory, url=url, kill_after=kill_after)

        tell(directory, url, forked(one), kill_after)


if __name__ == "__main__":
    main()
