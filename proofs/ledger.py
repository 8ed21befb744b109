"""No effect happens twice and none is lost without a word, wherever a worker dies, freezes or is replaced."""

from __future__ import annotations

import asyncio
import copy
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

from proofs._ledger_kills import kills
from proofs._proof import Promise, Result, Scale
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
    Unclear,
)
from quell.runs import Connection, Ledger
from quell.runs._database import SqliteDatabase, _Raw, _sqlite_row
from quell.runs._schema import _TABLES

Manner: TypeAlias = Literal["answers", "refuses", "mute", "drops", "late", "closing", "view down"]
"""How the other side behaves: it answers; refuses; takes the first request and is silent; loses it; takes it 40 s later;
takes it, is silent and then accepts no connection; takes it, is silent, and the first look tells nothing."""

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEYS_REMEMBERED_S = 86_400.0
LATE_S = 40.0
RUN = "run_proof"
CALL = FrozenCall(
    run=RUN,
    id="call-1",
    tool="scale",
    pin="sha256:1",
    arguments='{"replicas":6}',
    resource=Resource(kind="Service", name="a", environment="prod", units=1, host=""),
    digest="d",
)


class CrashError(BaseException):
    """The power is cut: nothing of this life happens after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One kind of tool at one kind of other side, and the time between two lives."""

    recovery: Recovery
    can_look: bool
    manner: Manner
    gap_s: float

    def __str__(self) -> str:
        look = "+look" if self.can_look and self.recovery is Recovery.KEYED else ""
        return f"{self.recovery}{look}, {self.manner}, {self.gap_s:g} s between lives"


def worlds() -> list[World]:
    """Return every world; gaps stand for: at once, after the quiet time, after the keys are forgotten."""
    manners: tuple[Manner, ...] = ("answers", "refuses", "mute", "drops", "late", "closing")
    found = []
    for (recovery, can_look), manner, gap_s in product(
        (
            (Recovery.KEYED, False),
            (Recovery.KEYED, True),
            (Recovery.NATURAL, False),
            (Recovery.PROBEABLE, True),
            (Recovery.BLIND, False),
        ),
        manners,
        (1.0, 300.0, 90_000.0),
    ):
        found.append(World(recovery=recovery, can_look=can_look, manner=manner, gap_s=gap_s))
    found += [
        World(recovery=recovery, can_look=True, manner="view down", gap_s=1.0)
        for recovery in (Recovery.KEYED, Recovery.PROBEABLE)
    ]
    return found


@dataclass(slots=True)
class Downstream:
    """The other side, with its own record of what it did: the oracle. It knows nothing of the ledger."""

    world: World
    now: datetime = NOON
    requests: int = 0
    looks: int = 0
    applied: int = 0
    remembered: dict[str, datetime] = field(default_factory=dict)
    on_its_way: list[tuple[datetime, str]] = field(default_factory=list)

    def forward(self, seconds: float) -> None:
        """Let time pass; what was on its way arrives in it."""
        until = self.now + timedelta(seconds=seconds)
        for at, key in sorted(one for one in self.on_its_way if one[0] <= until):
            self.now = max(self.now, at)
            self.take(key)
        self.on_its_way = [one for one in self.on_its_way if one[0] > until]
        self.now = until

    def take(self, key: str) -> None:
        match self.world.recovery:
            case Recovery.KEYED:
                since = self.remembered.get(key)
                if since is not None and (self.now - since).total_seconds() < KEYS_REMEMBERED_S:
                    return
                self.remembered[key] = self.now
                self.applied += 1
            case Recovery.NATURAL:
                self.applied = 1  # it sets a value: again is the same
            case Recovery.PROBEABLE | Recovery.BLIND:
                self.applied += 1

    def request(self, key: str) -> Ending | None:
        """Take a request; None is silence."""
        self.requests += 1
        manner = self.world.manner
        if manner == "refuses":
            return NotHappened(detail="refused")
        if self.requests > 1 and manner == "closing":
            return NotHappened(detail="connection refused")
        if self.requests > 1 or manner == "answers":
            self.take(key)
            return Happened(result='"done"')
        if manner == "late":
            self.on_its_way.append((self.now + timedelta(seconds=LATE_S), key))
        elif manner != "drops":
            self.take(key)
        return None

    def look(self) -> Ending:
        self.looks += 1
        if self.world.manner == "view down" and self.looks == 1:
            return Unclear(detail="the view is down")
        return Happened(result='"seen"') if self.applied else NotHappened(detail="nothing there")


class Memory(SqliteDatabase):
    """The journal in memory, so that a hundred thousand crashes fit into a minute; it can be put back as it was."""

    def __init__(self) -> None:
        super().__init__(Path(":memory:"))
        self.raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.raw.row_factory = _sqlite_row
        with self.writing() as connection:
            connection.make_tables([one for one in _TABLES if "quell_runs" in one or "quell_events" in one])
            connection.make_tables(Ledger.TABLES)
            connection.run(
                "INSERT INTO quell_runs (id, kind, subject, arguments, status, version, created_at, updated_at)"
                " VALUES (:run, 'k', 's', '{}', 'running', '1', '', '')",
                run=RUN,
            )
        self.empty = self.raw.serialize()

    def connect(self, durability: object) -> _Raw:  # noqa: ARG002 - there is one
        return self.raw  # type: ignore[return-value]

    def kept(self) -> str:
        """Return what the ledger holds; empty when it holds nothing."""
        with self.reading() as connection:
            row = connection.first("SELECT state FROM quell_effects")
        return "" if row is None else str(row.state)

    def take_over(self) -> Fence:
        with self.writing() as connection:
            connection.run("UPDATE quell_runs SET dispatch = dispatch + 1, token = 't' || (dispatch + 1)")
            row = connection.one("SELECT dispatch, token FROM quell_runs")
        return Fence(run=RUN, dispatch=row.dispatch, token=row.token)


Protocol: TypeAlias = Callable[["Life"], Awaitable[EffectState | None]]
"""What a worker does to bring the effect about; returns what it then believes."""


class Life:
    """One life of a worker: it counts the places at which it can end, and ends, or freezes, at one of them."""

    def __init__(
        self,
        database: Memory,
        downstream: Downstream,
        *,
        crash_at: int = -1,
        freeze_at: int = -1,
        before_pause: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.database, self.downstream = database, downstream
        self.crash_at, self.freeze_at = crash_at, freeze_at
        self.before_pause = before_pause
        self.places = 0
        self.frozen, self.thawed = asyncio.Event(), asyncio.Event()
        self.fence = database.take_over()
        self.ledger = Ledger(database, clock=lambda: downstream.now, call=self.call, pause=self.pause)

    def place(self, connection: Connection | None = None, effect: Effect | None = None) -> None:  # noqa: ARG002
        """One place at which the power may go, inside a transaction too."""
        self.places += 1
        if self.places - 1 == self.crash_at:
            raise CrashError

    async def wide_place(self) -> None:
        """One place at which the worker may freeze as well."""
        self.place()
        if self.places - 1 == self.freeze_at:
            self.frozen.set()
            await self.thawed.wait()

    async def call(self, work: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:
        await self.wide_place()
        done = work(*args, **kwargs)
        await self.wide_place()
        return done

    async def send(self, key: str, attempt: int) -> Ending:  # noqa: ARG002
        await self.wide_place()
        told = self.downstream.request(key)
        await self.wide_place()
        if told is None:
            raise TimeoutError
        return told

    async def look(self) -> Ending:
        await self.wide_place()
        seen = self.downstream.look()
        await self.wide_place()
        return seen

    async def pause(self, seconds: float) -> None:
        await self.wide_place()
        if self.before_pause is not None:
            await self.before_pause()
        self.downstream.forward(seconds)

    def intent(self) -> Intent:
        return Intent(call=CALL, recovery=self.downstream.world.recovery, user="ann", attempts_max=4)


async def by_ledger(life: Life) -> EffectState | None:
    """The protocol under proof."""
    effect = await life.ledger.perform(
        life.intent(),
        send=life.send,
        probe=life.look if life.downstream.world.can_look else None,
        fence=life.fence,
        on_intent=life.place,
        on_start=life.place,
        on_end=life.place,
    )
    return effect.state


async def record_after(life: Life) -> EffectState | None:
    """What a typical agent does: call, and write down that it was done; comparison, not ours."""
    database = life.database
    if _mark(database) == "done":
        return EffectState.DONE
    try:
        told = await life.send("none", 1)
    except TimeoutError:
        told = await life.send("none-again", 2)
    life.place()
    _set_mark(database, "done")
    life.place()
    return EffectState.DONE if isinstance(told, Happened) else EffectState.FAILED


async def mark_before(life: Life) -> EffectState | None:
    """Mark it as done, then do it, and never again; comparison, not ours."""
    database = life.database
    if _mark(database) == "done":
        return EffectState.DONE
    life.place()
    _set_mark(database, "done")
    life.place()
    told = await life.send("none", 1)
    return EffectState.DONE if isinstance(told, Happened) else EffectState.FAILED


def _mark(database: Memory) -> str:
    with database.reading() as connection:
        return str(connection.one("SELECT result FROM quell_runs").result)


def _set_mark(database: Memory, mark: str) -> None:
    with database.writing() as connection:
        connection.run("UPDATE quell_runs SET result = :mark", mark=mark)


@dataclass(slots=True)
class Tally:
    """What was counted."""

    cases: int = 0
    duplicates: int = 0
    lost: int = 0
    escalated: Counter[Recovery] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def judge(self, believed: EffectState | None, kept: str, downstream: Downstream, *, told: str) -> None:
        """Compare what we believe with the other side's own record, once nothing is on its way any more."""
        downstream.forward(2 * KEYS_REMEMBERED_S)
        self.cases += 1
        is_duplicate = downstream.applied > 1
        is_lost = (
            (believed is EffectState.DONE and downstream.applied == 0)
            or (believed is EffectState.FAILED and downstream.applied > 0)
            or (kept not in ("", believed))
            or believed not in (EffectState.DONE, EffectState.FAILED, EffectState.UNKNOWN)
        )
        self.duplicates += is_duplicate
        self.lost += is_lost
        self.escalated[downstream.world.recovery] += believed is EffectState.UNKNOWN
        if (is_duplicate or is_lost) and len(self.failures) < 5:
            self.failures.append(f"{told}: believed {believed}, applied {downstream.applied} times")

    @property
    def violations(self) -> int:
        return self.duplicates + self.lost


class Prover:
    """Enumerates the schedules of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.database = Memory()
        self.loop = asyncio.new_event_loop()
        self.tally = Tally()

    def close(self) -> None:
        self.loop.close()
        self.database.close()
        self.database.raw.close()

    def crashes(self, world: World, *, crashes_max: int) -> None:
        """Try every schedule of one to `crashes_max` crashes, those in a recovery included."""
        self._crashes(self.database.empty, Downstream(world), (), crashes_max=crashes_max)

    def _crashes(self, journal: bytes, before: Downstream, crashes: tuple[int, ...], *, crashes_max: int) -> None:
        places, believed, downstream = self._live(journal, before, crash_at=-1)
        if crashes:
            self.tally.judge(believed, self.database.kept(), downstream, told=f"{before.world}, crashes at {crashes}")
        if len(crashes) == crashes_max:
            return
        for crash_at in range(places):
            _, _, downstream = self._live(journal, before, crash_at=crash_at)
            left = self.database.raw.serialize()
            downstream.forward(before.world.gap_s)
            self._crashes(left, downstream, (*crashes, crash_at), crashes_max=crashes_max)

    def _live(self, journal: bytes, before: Downstream, *, crash_at: int) -> tuple[int, EffectState | None, Downstream]:
        self.database.raw.deserialize(journal)
        downstream = copy.deepcopy(before)
        life = Life(self.database, downstream, crash_at=crash_at)
        try:
            believed = self.loop.run_until_complete(self._believing(life))
        except CrashError:
            believed = None
        assert (life.places - 1 == crash_at) if believed is None and crash_at >= 0 else True, "a dead life does nothing"
        return life.places, believed, downstream

    async def _believing(self, life: Life) -> EffectState | None:
        try:
            return await self.protocol(life)
        except TimeoutError:
            return None  # a comparison protocol that gives up

    def freezes(self, world: World, *, frozen_max: int) -> None:
        """Freeze workers at every place, one or two in a row; a successor takes over, then the frozen ones thaw.

        A worker is frozen for less than the deadline of an attempt: it thaws before a successor's wait is over.
        """
        places = self._live(self.database.empty, Downstream(world), crash_at=-1)[0]
        for count in range(1, frozen_max + 1):
            for freezes in product(range(places), repeat=count):
                self.loop.run_until_complete(self._frozen(world, freezes))

    async def _frozen(self, world: World, freezes: tuple[int, ...]) -> None:
        self.database.raw.deserialize(self.database.empty)
        downstream = Downstream(world)
        sleeping: list[tuple[Life, asyncio.Task[EffectState | None]]] = []

        async def thaw() -> None:
            for life, task in sleeping:
                if not life.thawed.is_set():
                    life.thawed.set()
                    await asyncio.wait({task})

        for freeze_at in freezes:
            life = Life(self.database, downstream, freeze_at=freeze_at, before_pause=thaw)
            task = asyncio.ensure_future(self._refusable(life))
            frozen = asyncio.ensure_future(life.frozen.wait())
            await asyncio.wait({task, frozen}, return_when=asyncio.FIRST_COMPLETED)
            frozen.cancel()
            if not task.done():
                sleeping.append((life, task))
        if len(sleeping) == len(freezes):  # others are schedules of fewer frozen workers
            last = Life(self.database, downstream, before_pause=thaw)
            await self._refusable(last)
            await thaw()
            believed = await self._refusable(Life(self.database, downstream))
            self.tally.judge(believed, self.database.kept(), downstream, told=f"{world}, frozen at {freezes}")
        for life, task in sleeping:
            life.thawed.set()
            await asyncio.wait({task})

    async def _refusable(self, life: Life) -> EffectState | None:
        try:
            return await self._believing(life)
        except RefusedError:
            return None  # another worker holds the run


def proved(
    protocol: Protocol, *, crashes_max: Callable[[World], int], frozen_max: Callable[[World], int] = lambda _: 0
) -> Tally:
    """Try every schedule of a protocol, in each world up to so many crashes or frozen workers."""
    prover = Prover(protocol)
    try:
        for world in worlds():
            prover.crashes(world, crashes_max=crashes_max(world))
            prover.freezes(world, frozen_max=frozen_max(world))
    finally:
        prover.close()
    return prover.tally


def compared() -> Iterator[str]:
    """Count with the same oracle what the usual protocols do: it can count."""
    for name, protocol in (("record after the call", record_after), ("mark before, never retry", mark_before)):
        tally = proved(protocol, crashes_max=lambda world: 2 if world.manner in ("answers", "mute", "drops") else 0)
        yield f"{name}: {tally.duplicates} duplicates and {tally.lost} lost of {tally.cases}"


def no_duplicate_no_loss(scale: Scale, seed: int) -> Result:  # noqa: ARG001 - nothing is drawn
    """Enumerate: at full three crashes and two frozen workers in every world; at ci fewer where lives are far apart."""
    if scale == "full":
        tally = proved(by_ledger, crashes_max=lambda _: 3, frozen_max=lambda _: 2)
    else:
        tally = proved(by_ledger, crashes_max=lambda world: 2 if world.gap_s == 1.0 else 1, frozen_max=lambda _: 1)
    people = ", ".join(f"{count} {recovery}" for recovery, count in sorted(tally.escalated.items()) if count)
    return Result(
        cases=tally.cases,
        violations=tally.violations,
        is_exhaustive=True,
        note=f"schedules of crashes and frozen workers in {len(worlds())} worlds; left to people: {people};"
        f" {'; '.join(compared())}",
        failures=tuple(tally.failures),
    )


PROMISES = (
    Promise(
        name="no-duplicate-no-loss",
        promise="Wherever a worker dies or freezes, its effect happens at most once, and is known or before a person.",
        try_it=no_duplicate_no_loss,
    ),
    Promise(
        name="real-kills",
        promise="kill -9 at any moment, on SQLite and Postgres, two workers on one run: no effect twice, none lost.",
        try_it=kills,
    ),
)
