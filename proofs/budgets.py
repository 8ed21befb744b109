"""Budgets against runs that lie, crash, race, replay and live over midnight, on both databases at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests._postgres import fresh_database, running_postgres

from proofs._proof import Promise, Result, Scale
from quell.config import Secret
from quell.domain import (
    Balance,
    BoundExceededError,
    BudgetKind,
    BudgetScope,
    Cap,
    Charge,
    Reservation,
    Spender,
)
from quell.governance import Budgets
from quell.runs import Database
from quell.runs._database import open_database

RUNS: dict[Scale, int] = {"ci": 60, "full": 1000}
KILLS: dict[Scale, int] = {"ci": 2, "full": 40}
"""Processes that are killed for good in the middle of what they do, per database."""
MOVES = 16
PROCESSES = 2
THREADS = 2
LIFETIME_S = 90.0
EVENING = datetime(2026, 11, 20, 23, 50, tzinfo=UTC)
SPAN_S = 1500
CHARGE_MAX = 100
LIES = ("silent", "negative", "absurd", "zero", "below", "bool", "text", "inflated")
FATES = ("honest", "honest", *LIES, "crash", "rollback", "replay", "zombie", "twice", "parallel")


def caps(runs: int) -> list[Cap]:
    """Caps in every kind that bind long before the runs are through."""
    per_run = MOVES * CHARGE_MAX // 6
    shared = per_run * runs // 12
    places: dict[tuple[BudgetScope, ...], tuple[BudgetKind, ...]] = {
        (BudgetScope.RUN,): tuple(BudgetKind),
        (BudgetScope.AGENT,): (BudgetKind.TOKENS, BudgetKind.CALLS),
        (BudgetScope.TENANT,): (BudgetKind.MONEY, BudgetKind.BYTES),
        (BudgetScope.FEATURE, BudgetScope.DAY): (BudgetKind.MONEY, BudgetKind.STEPS),
        (BudgetScope.DAY,): (BudgetKind.WALL, BudgetKind.BLAST, BudgetKind.CALLS),
    }
    return [
        Cap(kind=kind, limit=per_run if per == (BudgetScope.RUN,) else shared, per=per)
        for per, kinds in places.items()
        for kind in kinds
    ]


class IgnoresInFlight(Budgets):
    """A mutant: what others have reserved does not count."""

    def _balance(self, cap: Cap, account: str, columns: Mapping[str, int]) -> Balance:
        return replace(super()._balance(cap, account, columns), in_flight=0)


class TrustsReports(Budgets):
    """A mutant: what is reported is charged, whatever it says."""

    def _believed(
        self,
        reserved: Charge,  # noqa: ARG002 - the flaw
        actual: Charge,
        *,
        seen: Charge,  # noqa: ARG002 - the flaw
    ) -> tuple[dict[BudgetKind, int], tuple[str, ...]]:
        told = {kind: getattr(actual, kind) for kind in BudgetKind}
        return {kind: int(n) if isinstance(n, int) and abs(n) < 10**12 else 0 for kind, n in told.items()}, ()


class FreesAbandoned(Budgets):
    """A mutant: what a dead owner held is given back."""

    def _expired(self, charge: Charge) -> Mapping[BudgetKind, int]:  # noqa: ARG002 - the flaw
        return dict.fromkeys(BudgetKind, 0)


MUTANTS: Mapping[str, type[Budgets]] = {
    "": Budgets,
    "ignores in flight": IgnoresInFlight,
    "trusts reports": TrustsReports,
    "frees abandoned": FreesAbandoned,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where one database's runs are tried."""

    state_dir: str
    url: str
    log: str
    """What really happened, a line each, written before the account may know it; survives a kill."""
    seed: int
    runs: int
    mutant: str


class Clock:
    def __init__(self) -> None:
        self.at = EVENING

    def __call__(self) -> datetime:
        return self.at


@contextmanager
def opened(field: Field) -> Iterator[Database]:
    database = open_database(Secret(field.url), state_dir=Path(field.state_dir))
    try:
        yield database
    finally:
        database.close()


def spender_of(run: int) -> Spender:
    return Spender(run=f"run_{run}", agent=f"agent_{run % 5}", feature=f"feature_{run % 3}", tenant=f"tenant_{run % 4}")


class Adversary:
    """One run that spends what it can get, and tells what it likes about it."""

    def __init__(self, field: Field, database: Database, *, run: int, log: int, kills: bool) -> None:
        self.random = random.Random(f"{field.seed}:{run}")
        self.clock = Clock()
        self.budgets = MUTANTS[field.mutant](caps(field.runs), clock=self.clock)
        self.database = database
        self.spender = spender_of(run)
        self.log = log
        self.kill_at = self.random.randrange(MOVES) if kills else -1

    def play(self) -> None:
        for move in range(MOVES):
            self.clock.at = EVENING + timedelta(seconds=self.random.uniform(0, SPAN_S))
            fate = self.random.choice(FATES)
            charge = self.any_charge()
            if self.random.random() < 0.1:
                with self.database.writing(durability="written") as connection:
                    self.budgets.expire(connection, rows_max=20)
            try:
                self.move(f"call {move}", charge, fate=fate, is_last=move == self.kill_at)
            except BoundExceededError:
                self.tell("refused")

    def move(self, key: str, charge: Charge, *, fate: str, is_last: bool) -> None:
        if fate == "rollback":
            self.roll_back(key, charge)
            return
        taken = self.reserve(key, charge)
        if fate == "parallel":
            # A second call while the first is in flight; both consume all that they hold.
            other = self.reserve(f"{key} beside", charge)
            self.consume(charge, charge)
            self.settle(other, charge, seen=charge)
        if fate == "replay":
            assert not self.reserve(key, charge).is_new
        truth = self.consume(charge)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "crash":
            self.tell("crashed")
            return
        if fate == "zombie":
            heir = self.reserve(key, charge, fence=1)
            self.settle(taken, Charge(), seen=None)
            self.settle(heir, truth, seen=truth)
            return
        self.settle(taken, self.report(truth, charge, lie=fate), seen=truth)
        if fate == "twice":
            self.settle(taken, Charge(), seen=None)

    def roll_back(self, key: str, charge: Charge) -> None:
        """Crash inside the transaction: nothing was taken, and nothing is done."""
        try:
            with self.database.writing(durability="written") as connection:
                self.budgets.reserve(connection, charge, spender=self.spender, key=key, lifetime_s=LIFETIME_S)
                raise ConnectionAbortedError  # noqa: TRY301 - the crash that this is about
        except ConnectionAbortedError:
            self.tell("rolled back")

    def reserve(self, key: str, charge: Charge, *, fence: int = 0) -> Reservation:
        with self.database.writing(durability="written") as connection:
            return self.budgets.reserve(
                connection, charge, spender=self.spender, key=key, fence=fence, lifetime_s=LIFETIME_S
            )

    def settle(self, taken: Reservation, actual: Charge | None, *, seen: Charge | None) -> None:
        with self.database.writing(durability="written") as connection:
            self.budgets.settle(connection, taken, actual, spender=self.spender, seen=seen)

    def any_charge(self) -> Charge:
        return Charge(
            **{kind.value: self.random.choice((0, 1, self.random.randint(0, CHARGE_MAX))) for kind in BudgetKind}
        )

    def consume(self, charge: Charge, truth: Charge | None = None) -> Charge:
        """Use at most what is reserved, as the other side enforces it, and write it where a kill cannot take it back."""
        if truth is None:
            least = self.random.choice((0.0, 0.5, 1.0))
            truth = Charge(**{k: self.random.randint(int(held * least), held) for k, held in asdict(charge).items()})
        self.tell("consumed", **asdict(truth))
        return truth

    def tell(self, what: str, **amounts: int) -> None:
        line = {"what": what, "run": self.spender.run, "at": self.clock.at.isoformat(), **amounts}
        os.write(self.log, f"{json.dumps(line)}\n".encode())

    def report(self, truth: Charge, charge: Charge, *, lie: str) -> Charge | None:
        if lie == "silent":
            return None
        lies: dict[str, Callable[[int, int], Any]] = {
            "negative": lambda n, _: -n - 1,
            "absurd": lambda n, _: 10**18 + n,
            "zero": lambda _n, _: 0,
            "below": lambda n, _: n // 2,
            "bool": lambda n, _: bool(n),
            "text": lambda n, _: str(n),
            "inflated": lambda _, held: held + 1,
        }
        told = lies.get(lie, _true)
        held = asdict(charge)
        return Charge(**{kind: told(amount, held[kind]) for kind, amount in asdict(truth).items()})


def _true(amount: int, _held: int) -> int:
    return amount


def work(field: Field, runs: Sequence[int], kill_in: int) -> None:
    """Play runs in a process of its own, several threads at once; kill the process in the middle of one of them."""
    log = os.open(field.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    todo = list(runs)
    lock = threading.Lock()
    broken: list[BaseException] = []

    def play() -> None:
        while True:
            with lock:
                if not todo or broken:
                    return
                run = todo.pop()
            os.write(log, f"{json.dumps({'what': 'began', 'run': f'run_{run}'})}\n".encode())
            try:
                Adversary(field, database, run=run, log=log, kills=run == kill_in).play()
            except BaseException as error:
                broken.append(error)
                raise

    with opened(field) as database:
        threads = [threading.Thread(target=play) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    os.close(log)
    if broken:
        raise broken[0]


def play_all(field: Field, *, kills: int) -> None:
    """Play every run, in processes that are replaced when they are killed."""
    dice = random.Random(field.seed)
    doomed = set(dice.sample(range(field.runs), min(kills, field.runs)))
    spawn = multiprocessing.get_context("spawn")
    left = list(range(field.runs))
    while left:
        shares = [left[number::PROCESSES] for number in range(PROCESSES)]
        children = [
            spawn.Process(target=work, args=(field, share, next((run for run in share if run in doomed), -1)))
            for share in shares
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode in {0, -signal.SIGKILL}, f"a worker failed with {child.exitcode}"
        began = {str(line["run"]) for line in lines(field) if line["what"] == "began"}
        doomed -= {int(run.removeprefix("run_")) for run in began}
        left = [run for run in left if f"run_{run}" not in began]


def lines(field: Field) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(field.log).read_text().splitlines()]


def judge(field: Field, database: Database) -> tuple[list[str], Counter[str]]:
    """Add up what really happened, by our own arithmetic, and compare it with the caps and with the books."""
    counts: Counter[str] = Counter()
    truth: Counter[tuple[object, ...]] = Counter()
    all_caps = caps(field.runs)
    seen: dict[tuple[object, ...], tuple[Spender, datetime]] = {}
    for line in lines(field):
        counts[str(line["what"])] += 1
        if line["what"] != "consumed":
            continue
        spender = spender_of(int(str(line["run"]).removeprefix("run_")))
        at = datetime.fromisoformat(str(line["at"]))
        for cap in all_caps:
            names = {**asdict(spender), "day": at.date()}
            place = (cap.kind, *(f"{scope}={names[scope]}" for scope in cap.per))
            truth[place] += int(str(line[cap.kind.value]))
            seen[place] = (spender, at)
    failures = []
    clock = Clock()
    clock.at = EVENING + timedelta(days=9)
    budgets = MUTANTS[field.mutant](all_caps, clock=clock)
    while True:
        with database.writing(durability="written") as connection:
            if not budgets.expire(connection):
                break
    for where, spent in sorted(truth.items(), key=str):
        place = tuple(map(str, where))
        spender, clock.at = seen[where]
        with database.reading() as connection:
            books = next(
                balance
                for balance in budgets.balances(connection, spender)
                if (balance.cap.kind, *(scope.value for scope in balance.cap.per))
                == (place[0], *(part.partition("=")[0] for part in place[1:]))
            )
        limit = books.cap.limit or 0
        if spent > limit:
            failures.append(f"{place}: {spent} consumed of {limit}")
        if books.spent < spent or books.in_flight:
            failures.append(f"{place}: {spent} consumed, {books.spent} in the books, {books.in_flight} in flight")
    return failures, counts


def try_caps(scale: Scale, seed: int, *, mutant: str = "", databases: Sequence[str] = ("sqlite", "postgres")) -> Result:
    """Let the runs spend what they can on each database, then judge."""
    failures: list[str] = []
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quell-caps-")))
        for name in databases:
            url = (
                "" if name == "sqlite" else stack.enter_context(fresh_database(stack.enter_context(running_postgres())))
            )
            field = Field(
                state_dir=str(scratch / name),
                url=url,
                log=str(scratch / f"{name}.log"),
                seed=seed,
                runs=RUNS[scale],
                mutant=mutant,
            )
            with opened(field) as database:
                with database.writing(durability="written") as connection:
                    connection.make_tables(Budgets.tables)
                play_all(field, kills=0 if mutant else KILLS[scale])
                found, told = judge(field, database)
            failures += [f"{name}, seed {seed}: {failure}" for failure in found]
            counts += told
    note = (
        f"runs of {MOVES} calls on {' and '.join(databases)}, {PROCESSES} processes x {THREADS} threads:"
        f" {counts['consumed']:,} calls done, {counts['refused']:,} refused, {counts['crashed']:,} abandoned,"
        f" {counts['rolled back']:,} rolled back, {0 if mutant else KILLS[scale] * len(databases)} processes killed"
    )
    return Result(
        cases=RUNS[scale] * len(databases),
        violations=len(failures),
        is_exhaustive=False,
        note=note,
        failures=tuple(failures[:5]),
    )


PROMISES: tuple[Promise, ...] = (
    Promise(
        name="caps-hold",
        promise="No cap is passed in any kind: not by runs in parallel, by lying usage, by crashes, nor over midnight.",
        try_it=try_caps,
    ),
)
