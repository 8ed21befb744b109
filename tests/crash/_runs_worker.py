"""A real process that executes a small run; the tests kill it where they like.

It prints one line per thing that happens, and obeys a plan in the environment: `QUELL_KILL` is `STEP:PLACE`, where PLACE
is `body` (inside the work of a step, after its effect), `before` (the work is done, nothing is kept yet),
`after` (the result is kept) or `end` (the run has ended). It kills itself there with SIGKILL, once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from quell.config import JournalSettings, Secret
from quell.domain import Event, RunStatus, StateHeldError
from quell.runs import Continue, Done, Next, RunContext, Runs, WaitUntil, system_clock

STEPS = ("plan", "read-a", "read-b", "survey", "diagnose", "report")


class Sample:
    """A run like an investigation: a plan, two reads at once, three analyses, over three segments and a wait."""

    def __init__(self, directory: Path, *, kill: str, pause_s: float) -> None:
        self._directory = directory
        self._kill = kill
        self._pause_s = pause_s

    async def __call__(self, context: RunContext) -> Next:
        state = dict(context.state)
        at = state.pop("at", "first")
        if at == "first":
            plan = await self._step(context, "plan", 1)
            await context.emit("sample.planned", key="planned", plan=plan)
            began = await context.now()
            reads = (
                [await self._step(context, "read-a", plan), await self._step(context, "read-b", plan)]
                if self._kill
                else list(
                    await asyncio.gather(self._step(context, "read-a", plan), self._step(context, "read-b", plan))
                )
            )
            return Continue(state={"at": "second", "reads": reads, "began": began.isoformat()})
        if at == "second":
            found = state["reads"]
            assert isinstance(found, list)
            survey = await self._step(context, "survey", sum(found))
            wake = await context.now() + timedelta(milliseconds=50)
            return WaitUntil(at=wake, state={"at": "third", "survey": survey})
        given = state["survey"]
        assert isinstance(given, int)
        diagnosis = await self._step(context, "diagnose", given)
        told = await self._step(context, "report", diagnosis)
        return Done(result={"told": told})

    async def _step(self, context: RunContext, name: str, given: int) -> int:
        async def work() -> int:
            with (self._directory / f"{name}.began").open("a") as log:
                log.write("x")
            if self._kill == f"{name}:body":
                self._die()
            await asyncio.sleep(self._pause_s)
            with (self._directory / f"{name}.done").open("a") as log:
                log.write("x")
            if self._kill == f"{name}:before":
                self._die()
            return given * 3 + len(name)

        value = await context.step(name, work, returns=int, timeout_s=20)
        if self._kill == f"{name}:after":
            self._die()
        return value

    def _die(self) -> None:
        mark = self._directory / "killed"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _line(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _told(event: Event) -> Mapping[str, object]:
    return {"seq": event.seq, "name": event.name, "key": event.key, "run": event.run}


async def main() -> int:
    """Open, launch, start the run of the key unless told not to, and follow it to its end."""
    plan = json.loads(sys.argv[1])
    directory = Path(plan["directory"])
    settings = JournalSettings(
        url=Secret(plan.get("url", "")),
        executor=plan.get("executor", ""),
        lease_s=plan.get("lease_s", 2.0),
        attempts_max=50,
    )
    runs = await Runs.open(
        settings, state_dir=directory / "state", clock=system_clock, entropy=os.urandom, version="test"
    )
    sample = Sample(directory, kill=os.environ.get("QUELL_KILL", ""), pause_s=plan.get("pause_s", 0.0))
    runs.register("sample", sample, way=plan.get("way", "queue"))
    try:
        await runs.launch()
    except StateHeldError as error:
        _line(refused=str(error))
        return error.exit_code
    _line(ready=os.getpid())
    try:
        if plan.get("role") == "idle":
            await asyncio.sleep(60)
        run = await runs.start("sample", subject="a test", arguments={"n": 1}, key=plan.get("key", "the-run"))
        _line(run=run.id)
        async for event in runs.follow(run=run.id):
            _line(event=_told(event))
        run = await runs.wait(run.id, timeout_s=10)
        _line(status=run.status, result=run.result, attempts=run.attempts)
        return 0 if run.status is RunStatus.SUCCEEDED else 1
    finally:
        await runs.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
