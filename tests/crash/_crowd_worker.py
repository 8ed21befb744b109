"""A real process that executes many direct runs at once beside others; the tests kill it where it stands.

Each run keeps its own account in files: who is inside of it, which steps were kept. What must never happen is written
to `wrong`: a step that is done again although its result was kept, or a run that two living processes execute.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from quell.config import JournalSettings, Secret
from quell.runs import Continue, Done, Next, RunContext, Runs, system_clock

STEPS = 4


class Crowd:
    """Runs of two segments with four steps; every step takes a moment in which its process may be killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def __call__(self, context: RunContext) -> Next:
        name = context.run.subject
        first = 0 if not context.state else STEPS // 2
        for number in range(first, first + STEPS // 2):
            await self._step(context, name, number)
        if first == 0:
            return Continue(state={"half": True})
        return Done(result={"outcome": name})

    async def _step(self, context: RunContext, name: str, number: int) -> None:
        kept = self._directory / f"{name}.{number}.kept"
        inside = self._directory / f"{name}.inside"

        async def work() -> int:
            if kept.exists():
                self._wrong(f"{name}.{number} again, though it was kept")
            other = _read(inside)
            if other not in (0, os.getpid()) and _is_alive(other):
                self._wrong(f"{name} in {os.getpid()} and {other}")
            inside.write_text(str(os.getpid()))
            await asyncio.sleep(0.03)
            if _read(inside) == os.getpid():
                inside.write_text("0")
            return number

        await context.step(f"s{number}", work, returns=int, timeout_s=20)
        kept.touch()
        await context.emit("sample.told", key=f"told.{number}")

    def _wrong(self, what: str) -> None:
        with (self._directory / "wrong").open("a") as log:
            log.write(f"{what}\n")


def _read(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


async def main() -> None:
    """Execute what there is, start what is asked for (under keys, so that it is started once), and wait for its ends."""
    plan = json.loads(sys.argv[1])
    directory = Path(plan["directory"])
    runs = await Runs.open(
        JournalSettings(url=Secret(plan["url"]), lease_s=1.0, attempts_max=1000),
        state_dir=directory / "state",
        clock=system_clock,
        entropy=os.urandom,
        version="test",
    )
    runs.register("crowd", Crowd(directory), way="direct", at_once_max=plan["at_once_max"])
    await runs.launch()
    print("ready", flush=True)
    started = await asyncio.gather(
        *(runs.start("crowd", subject=f"r{n}", arguments={}, key=f"r{n}") for n in range(plan["runs"]))
    )
    print("started", flush=True)
    ended = await asyncio.gather(*(runs.wait(run.id, timeout_s=60) for run in started))
    told = [[event.name async for event in runs.follow(run=run.id)] for run in ended]
    print(json.dumps({"status": sorted({run.status for run in ended}), "told": told}), flush=True)
    await runs.close()


if __name__ == "__main__":
    asyncio.run(main())
