"""The kill switch: flipped at every step of calls in flight, nothing starts after its commit, and nothing goes untold."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from proofs._kill_steps import stopped_at_every_step
from proofs._proof import Promise, Result, Scale
from proofs.approvals import a_postgres
from quell.config import Secret
from quell.domain import FrozenCall, Killed, Principal, Resource, Switch
from quell.governance import Switches
from quell.runs import Connection, Database
from quell.runs._database import open_database

TABLES = (
    *Switches.TABLES,
    "CREATE TABLE IF NOT EXISTS proof_effects (key TEXT PRIMARY KEY, state TEXT NOT NULL)",
)
ADMIN = Principal(user="ada", tenant="acme", roles=("admin",))
RUN = Principal(user="ana", tenant="acme", agent="bot")
SCOPES: tuple[tuple[dict[str, str], bool], ...] = (
    ({}, True),
    ({"tenant": "*"}, True),
    ({"tenant": "ac*"}, True),
    ({"agent": "bot"}, True),
    ({"environment": "pr?d"}, True),
    ({"tool": "sc*", "environment": "prod"}, True),
    ({"tenant": "other"}, False),
    ({"agent": "human"}, False),
    ({"environment": "stage"}, False),
    ({"tool": "scale.*"}, False),
)
"""What a kill is set for, and whether it covers the calls of the model."""


def call(number: int) -> FrozenCall:
    resource = Resource(kind="Service", name="payments", environment="prod", units=1, host="")
    return FrozenCall(
        run="run_1", id=str(number), tool="scale", pin="p", arguments="{}", resource=resource, digest=str(number)
    )


def started(connection: Connection, switch: Switch) -> Iterable[str]:
    """Return what has started and not ended: the query that the ledger will answer."""
    if not switch.covers(call(0), principal=RUN):
        return ()
    return [row.key for row in connection.all("SELECT key FROM proof_effects WHERE state = 'started' ORDER BY key")]


class Model:
    """The start protocol in small: intent, start, effect, end; each of them a real transaction."""

    def __init__(self, database: Database, *, kind: type[Switches], is_checked_at_start: bool = True) -> None:
        self.database = database
        self.switches = kind(
            database,
            clock=lambda: datetime(2026, 11, 20, 12, tzinfo=UTC),
            monotonic=lambda: 0.0,
            entropy=random.Random(0).randbytes,
            in_flight=started,
        )
        self.is_checked_at_start = is_checked_at_start
        self.world: list[str] = []
        """Keys of the effects that happened, written by the world itself."""
        self.killed: Killed | None = None
        self.slowest_ms = 0.0
        """Longest time that a kill took until it had committed."""

    def is_stopped(self, connection: Connection, number: int) -> bool:
        state = self.switches.state(connection, lock="share")
        return bool(state.stops(call(number), principal=RUN))

    def intent(self, number: int) -> bool:
        with self.database.writing(durability="written") as connection:
            if self.is_stopped(connection, number):
                return False
            connection.run("INSERT INTO proof_effects (key, state) VALUES (:key, 'intent')", key=str(number))
        return True

    def start(self, number: int, *, pause_s: float = 0.0) -> bool:
        with self.database.writing(durability="written") as connection:
            if self.is_checked_at_start and self.is_stopped(connection, number):
                return False
            if pause_s:
                time.sleep(pause_s)
            connection.run("UPDATE proof_effects SET state = 'started' WHERE key = :key", key=str(number))
        return True

    def end(self, number: int) -> None:
        with self.database.writing(durability="written") as connection:
            connection.run("UPDATE proof_effects SET state = 'done' WHERE key = :key", key=str(number))

    def kill(self, scope: dict[str, str]) -> Killed:
        began_s = time.monotonic()
        with self.database.writing(durability="written") as connection:
            self.killed = self.switches.kill(connection, by=ADMIN, reason="stop", **scope)
        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began_s) * 1000)
        return self.killed

    def clear(self) -> None:
        """Begin anew: no effects, no stops."""
        with self.database.writing(durability="written") as connection:
            if self.killed is not None:
                self.switches.lift(connection, self.killed.switch.id, by=ADMIN, reason="on with it")
            connection.run("DELETE FROM proof_effects")
        self.killed, self.world = None, []


def steps(model: Model, number: int) -> Iterator[None]:
    """Take one call through the protocol, a step at a time; it ends where it is stopped."""
    is_let = model.intent(number)
    yield
    is_let = is_let and model.start(number)
    yield
    if is_let:
        model.world.append(str(number))
    yield
    if is_let:
        model.end(number)
    yield


STEPS = 4


def schedules(calls: int) -> Iterator[tuple[int, ...]]:
    """Return every order in which the steps of the calls and one kill (-1) can come."""

    def orders(left: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if not any(left):
            yield ()
        for number, more in enumerate(left):
            if more:
                for rest in orders((*left[:number], more - 1, *left[number + 1 :])):
                    yield (number, *rest)

    for order in orders((STEPS,) * calls):
        for (place,) in combinations(range(len(order) + 1), 1):
            yield (*order[:place], -1, *order[place:])


def play(model: Model, schedule: tuple[int, ...], *, scope: dict[str, str], is_covering: bool) -> str:
    """Play one order of steps; say what broke, or nothing. What happened is judged by the world, not by the switch."""
    calls = {number: steps(model, number) for number in set(schedule) - {-1}}
    taken = dict.fromkeys(calls, 0)
    begun_before: set[str] = set()
    ended_before: set[str] = set()
    told: set[str] = set()
    for actor in schedule:
        if actor == -1:
            begun_before = {str(number) for number, count in taken.items() if count >= 2}
            ended_before = {str(number) for number, count in taken.items() if count >= STEPS}
            told = set(model.kill(scope).in_flight)
        else:
            next(calls[actor])
            taken[actor] += 1
    effects = set(model.world)
    model.clear()
    where = f"schedule {schedule} with {scope or 'everything'}"
    if not is_covering:
        return "" if effects == {str(number) for number in calls} and not told else f"{where}: a stop of something else"
    if effects - begun_before:
        return f"{where}: started after the kill: {sorted(effects - begun_before)}"
    if told != begun_before - ended_before:
        return f"{where}: told {sorted(told)} in flight instead of {sorted(begun_before - ended_before)}"
    return ""


def race(model: Model, rng: random.Random, *, workers: int = 8) -> str:
    """Let threads start calls as fast as they can while one kills; say what broke, or nothing."""
    gate = threading.Barrier(workers + 1)
    lock = threading.Lock()
    effects: list[tuple[str, int]] = []
    late: list[str] = []
    killed_ns: list[int] = []

    def work(first: int, pauses_s: list[float]) -> None:
        gate.wait()
        for number, pause_s in enumerate(pauses_s, start=first):
            began_ns = time.monotonic_ns()
            if not model.intent(number):
                continue
            is_let = model.start(number, pause_s=pause_s)
            if is_let:
                with lock:
                    effects.append((str(number), began_ns))
                    if killed_ns and began_ns > killed_ns[0]:
                        late.append(str(number))

    threads = [
        threading.Thread(target=work, args=(worker * 100, [rng.random() * 0.004 for _ in range(6)]))
        for worker in range(workers)
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    time.sleep(rng.random() * 0.02)
    killed = model.kill({})
    killed_ns.append(time.monotonic_ns())
    for thread in threads:
        thread.join()
    untold = {key for key, _ in effects} - set(killed.in_flight)
    model.clear()
    if late or untold:
        return f"on {model.database.dialect}: begun after the kill {late}, started and untold {sorted(untold)}"
    return ""


@contextmanager
def model(*, kind: type[Switches], url: str = "", is_checked_at_start: bool = True) -> Iterator[Model]:
    with tempfile.TemporaryDirectory(prefix="quell-proof-") as directory:
        database = open_database(Secret(url), state_dir=Path(directory))
        try:
            with database.writing(durability="written") as connection:
                connection.make_tables(TABLES)
            yield Model(database, kind=kind, is_checked_at_start=is_checked_at_start)
        finally:
            database.close()


def interleaved(
    scale: Scale, seed: int, *, kind: type[Switches] = Switches, is_checked_at_start: bool = True
) -> tuple[int, list[str]]:
    """Play every order of two calls and a kill, and some of three."""
    rng = random.Random(seed)
    orders = list(schedules(2))
    for _ in range(1_000 if scale == "full" else 40):
        order = [number for number in range(3) for _ in range(STEPS)] + [-1]
        rng.shuffle(order)
        orders.append(tuple(order))
    with model(kind=kind, is_checked_at_start=is_checked_at_start) as one:
        scopes = SCOPES if scale == "full" else (SCOPES[0], SCOPES[5], SCOPES[9])
        failures = [
            play(one, order, scope=scope, is_covering=is_covering) for order in orders for scope, is_covering in scopes
        ]
    return len(failures), [failure for failure in failures if failure]


def raced(url: str, *, rounds: int, seed: int, kind: type[Switches] = Switches) -> tuple[float, list[str]]:
    """Race threads against kills; return how long the slowest kill took, in milliseconds, and what broke."""
    rng = random.Random(seed)
    with model(kind=kind, url=url) as one:
        found = [race(one, rng) for _ in range(rounds)]
        slowest_ms = one.slowest_ms
    return slowest_ms, [failure for failure in found if failure]


def kill_switch(scale: Scale, seed: int, *, kind: type[Switches] = Switches) -> Result:
    """Flip the switch at every step; count what started after its commit, and what started and was not told."""
    cases, failures = interleaved(scale, seed, kind=kind)
    steps, broken_steps = stopped_at_every_step(scale, seed)
    cases, failures = cases + steps, failures + broken_steps
    rounds = 60 if scale == "full" else 3
    slowest_ms = 0.0
    with a_postgres() as url:
        for where in ("", url) if url else ("",):
            took_ms, broken = raced(where, rounds=rounds, seed=seed, kind=kind)
            failures += broken
            cases += rounds
            slowest_ms = max(slowest_ms, took_ms)
    places = "SQLite and PostgreSQL" if url else "SQLite; no PostgreSQL here"
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=True,
        note=f"every order of two calls and a kill, a sample of three; a stop at each of {steps} steps of the whole path; {rounds} races of 8 threads on {places}, slowest kill {slowest_ms:.0f} ms",
        failures=tuple(failures[:5]),
    )


PROMISES = (
    Promise(
        name="kill-switch",
        promise="Once a kill has committed nothing that it covers starts, and it tells what had started before.",
        try_it=kill_switch,
    ),
)
