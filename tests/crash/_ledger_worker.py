"""A process whose run has one effect of each class, and which kills itself at the place that it is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from quell.config import JournalSettings, Secret
from quell.domain import (
    Effect,
    EffectState,
    Ending,
    FrozenCall,
    Happened,
    Intent,
    NotHappened,
    Recovery,
    Resource,
)
from quell.runs import Connection, Done, Ledger, Next, RunContext, Runs, system_clock


class Act:
    """Work that changes four things in the world, which is a file per class."""

    def __init__(self, directory: Path, *, kill: str) -> None:
        self.directory, self.kill = directory, kill
        self.ledger: Ledger

    def place(self, recovery: Recovery, where: str) -> None:
        """Die here if this is the place, for the first time."""
        mark = self.directory / f"killed-{recovery}-{where}"
        if self.kill == f"{recovery}:{where}" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    async def __call__(self, context: RunContext) -> Next:
        ended = {}
        for recovery in Recovery:

            async def act(recovery: Recovery = recovery) -> str:
                return (await self.perform(context, recovery)).state.value

            ended[recovery.value] = await context.step(f"act:{recovery}", act, returns=str, timeout_s=30)
        return Done(result=dict(ended))

    async def perform(self, context: RunContext, recovery: Recovery) -> Effect:
        """Do one effect through the ledger, under the fence of this very segment."""
        record = self.directory / recovery.value

        async def send(key: str, attempt: int) -> Ending:
            self.place(recovery, "sending")
            with record.open("a") as out:
                out.write(f"{key}\n")
            self.place(recovery, "taken")
            return Happened(result=f"attempt {attempt}")

        async def look() -> Ending:
            return Happened(result="seen") if record.exists() else NotHappened(detail="no file")

        def join(connection: Connection, effect: Effect) -> None:
            moment = {EffectState.INTENT: "intent", EffectState.STARTED: "start"}.get(effect.state, "end")
            self.place(recovery, moment)

        call = FrozenCall(
            run=context.run.id,
            id=f"call-{recovery}",
            tool="write",
            pin="sha256:1",
            arguments="{}",
            resource=Resource(kind="File", name=recovery.value, environment="test", units=1, host=""),
            digest=recovery.value,
        )
        return await self.ledger.perform(
            Intent(call=call, recovery=recovery, user="ann", timeout_s=1.0, quiet_s=4.0),
            send=send,
            probe=look if recovery is Recovery.PROBEABLE else None,
            fence=context.fence,
            on_intent=join,
            on_start=join,
            on_end=join,
        )


async def main() -> None:
    """Start the one run, or go on with it, and print what the ledger then holds."""
    directory, url = Path(sys.argv[1]), sys.argv[2]
    settings = JournalSettings(url=Secret(url), executor="the-one", lease_s=2.0, attempts_max=50)
    act = Act(directory, kill=sys.argv[3])
    runs = await Runs.open(
        settings, state_dir=directory / "state", clock=system_clock, entropy=os.urandom, version="test"
    )
    with runs.database.writing() as connection:
        connection.make_tables(Ledger.TABLES)
    act.ledger = Ledger(runs.database, clock=system_clock)
    runs.register("act", act)
    try:
        await runs.launch()
        run = await runs.start("act", subject="a test", arguments={}, key="the-run")
        run = await runs.wait(run.id, timeout_s=60)
        with runs.database.reading() as connection:
            entries = {effect.recovery.value: effect.state.value for effect in act.ledger.entries(connection)}
        sys.stdout.write(json.dumps({"status": run.status, "result": json.loads(run.result), "entries": entries}))
    finally:
        await runs.close()


if __name__ == "__main__":
    asyncio.run(main())
