"""A small real ledger for tests: a run that is held, a world that takes effects and remembers them, joints that note."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quell.domain import (
    Effect,
    EffectState,
    Ending,
    Fence,
    FrozenCall,
    Happened,
    Intent,
    NotHappened,
    Recovery,
    RefusedError,
    Resource,
)
from quell.runs import Connection, Database, Done, Ledger, Next, RunContext, Runs
from tests.conftest import FakeClock
from tests.doors._runs_bench import journal


def frozen(
    run: str, *, call: str = "call-1", name: str = "checkout", units: int = 1, arguments: str = '{"replicas":6}'
) -> FrozenCall:
    return FrozenCall(
        run=run,
        id=call,
        tool="scale",
        pin="sha256:1",
        arguments=arguments,
        resource=Resource(kind="Service", name=name, environment="prod", units=units, host=""),
        digest=f"{arguments}{name}{units}",
    )


class World:
    """What is changed, with its own record of what it took."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.keys: list[tuple[str, int]] = []
        self.ends: list[Ending | BaseException] = []
        """How the next attempts end, in order; then all is well."""
        self.seen: list[Ending] = []
        """What the next looks tell; then the truth."""
        self.looks = 0
        self.hang: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def send(self, key: str, attempt: int) -> Ending:
        self.keys.append((key, attempt))
        end = self.ends.pop(0) if self.ends else Happened(result='"fine"')
        if not isinstance(end, NotHappened):
            self.taken.append(key)
        self.reached.set()
        if self.hang is not None:
            await self.hang.wait()
        if isinstance(end, BaseException):
            raise end
        return end

    async def look(self) -> Ending:
        self.looks += 1
        if self.seen:
            return self.seen.pop(0)
        return Happened(result='"seen"') if self.taken else NotHappened(detail="nothing there")


@dataclass(slots=True)
class Joints:
    """What joins the transactions: it notes what it saw, in the database itself, and refuses when told to."""

    refuse_at: str = ""
    noted: list[tuple[str, str, int]] = field(default_factory=list)

    def at(self, moment: str) -> Callable[[Connection, Effect], None]:
        def join(connection: Connection, effect: Effect) -> None:
            connection.run("INSERT INTO notes (note) VALUES (:note)", note=f"{moment} {effect.state} {effect.attempts}")
            if self.refuse_at == moment:
                raise RefusedError("the kill switch is on", hint="wait")

        return join


class Bench:
    """One run, one ledger, one world."""

    def __init__(self, runs: Runs, run: str, clock: FakeClock) -> None:
        self.runs, self.run, self.clock = runs, run, clock
        self.database: Database = runs.database
        self.world, self.joints = World(), Joints()
        self.paused: list[float] = []
        self.ledger = self.new_ledger()

    def new_ledger(self) -> Ledger:
        async def pause(seconds: float) -> None:
            self.paused.append(seconds)
            self.clock.forward(seconds=seconds)

        return Ledger(self.database, clock=self.clock, pause=pause)

    def hold(self, token: str = "slot-0.a") -> Fence:
        """Take the run over as the executor does: a new dispatch under another token."""
        with self.database.writing() as connection:
            connection.run(
                "UPDATE quell_runs SET status = 'running', token = :token, dispatch = dispatch + 1 WHERE id = :run",
                run=self.run,
                token=token,
            )
            row = connection.one("SELECT dispatch FROM quell_runs WHERE id = :run", run=self.run)
        return Fence(run=self.run, dispatch=row.dispatch, token=token)

    def intent(self, recovery: Recovery = Recovery.KEYED, *, call: str = "call-1", **changes: object) -> Intent:
        return Intent(
            call=frozen(self.run, call=call),
            recovery=recovery,
            user="ann",
            workflow_digest="w1",
            revert='[{"tool":"scale"}]',
            **changes,  # type: ignore[arg-type]  # fields of an Intent
        )

    def perform(
        self, intent: Intent, *, fence: Fence, ledger: Ledger | None = None, can_look: bool = True
    ) -> Awaitable[Effect]:
        return (ledger or self.ledger).perform(
            intent,
            send=self.world.send,
            probe=self.world.look if can_look else None,
            fence=fence,
            on_intent=self.joints.at("intent"),
            on_start=self.joints.at("start"),
            on_end=self.joints.at("end"),
        )

    def notes(self) -> list[str]:
        with self.database.reading() as connection:
            return [row.note for row in connection.all("SELECT note FROM notes ORDER BY number")]

    def ledger_entries(self, state: EffectState) -> list[Effect]:
        with self.database.reading() as connection:
            return self.ledger.entries(connection, state=state)

    def entry(self, intent: Intent) -> Effect | None:
        with self.database.reading() as connection:
            found = self.ledger.entries(connection, run=self.run)
        return next((effect for effect in found if effect.call.id == intent.call.id), None)


async def nothing(_: RunContext) -> Next:
    return Done(result={})


@asynccontextmanager
async def bench(tmp_path: Path, clock: FakeClock, *, url: str = "") -> AsyncIterator[Bench]:
    async with journal(tmp_path, clock=clock, url=url, works={"w": nothing}, launched=False) as runs:
        with runs.database.writing() as connection:
            connection.make_tables(Ledger.TABLES)
            connection.make_tables(("CREATE TABLE notes (number {number}, note TEXT NOT NULL)",))
        run = await runs.start("w", subject="a test", arguments={})
        yield Bench(runs, run.id, clock)
