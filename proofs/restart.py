"""Approvals and the effects that they allow, over real kills of whoever asks, whoever approves and whoever acts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

from tests._postgres import fresh_database, running_postgres

from proofs._proof import Promise, Result, Scale
from proofs._restart_worker import ENDED, LIFE_MAX_S, MOMENTS, SENDING, TOOLS, TORN, Place
from quell.config import Secret
from quell.domain import EffectState, ToolClass
from quell.runs import Connection, Database, Ledger, system_clock
from quell.runs._database import open_database

CASES: dict[Scale, int] = {"ci": 6, "full": 60}
LANES = 2
ANY_TIME = "at any time"
PARKED = "parked"
_ASKING = ("asking", "asked, not yet kept", "asked", PARKED, ANY_TIME)
_VOTING = ("voting", "voted, not yet kept", "voted", ANY_TIME)
_ACTING = (*SENDING, ANY_TIME, *(name for name in MOMENTS if name not in {*_ASKING, *_VOTING}))
_ANY_MAX_S = 1.5
_LOOK_S = 0.02
_WAIT_MAX_S = 40.0
_LIVES_MAX = 8
_SETTLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who is killed when, in one case."""

    seed: int
    tool: str
    is_postgres: bool
    asking: str
    is_up: bool
    """Whether a worker lives while people decide; otherwise all are dead until they have."""
    voting: str
    acting: str
    mutant: str = ""
    life_s: float = LIFE_MAX_S

    @property
    def people(self) -> Sequence[str]:
        """Who has to approve."""
        return ("bob", "cal") if TOOLS[self.tool][0] is ToolClass.IRREVERSIBLE else ("bob",)


def plans(scale: Scale, seed: int) -> list[Plan]:
    """Draw the cases: every moment of acting comes in turn, the rest by chance."""
    chance = random.Random(seed)
    acting = cycle(chance.sample(_ACTING, len(_ACTING)))
    return [
        Plan(
            seed=chance.randrange(2**32),
            tool=list(TOOLS)[number // 2 % len(TOOLS)],
            is_postgres=number % 2 == 1,
            asking=chance.choice(_ASKING),
            is_up=chance.random() < 0.5,
            voting=chance.choice(_VOTING),
            acting=next(acting),
        )
        for number in range(CASES[scale])
    ]


class Server(ThreadingHTTPServer):
    """The other side: it remembers what was done to it, and knows keys only for the tool that says so."""

    daemon_threads = True

    def __init__(self, *, may_act: Callable[[], bool]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.keys: set[str] = set()
        self.done: Counter[str] = Counter()
        """Effects by run: the oracle."""
        self.unasked = 0
        """Effects that came before enough people had been asked for their yes."""
        self.may_act = may_act

    def take(self, run: str, recovery: str, key: str) -> None:
        with self.lock:
            if recovery == "keyed" and key in self.keys:
                return
            self.keys.add(key)
            self.done[run] += 1
            self.unasked += not self.may_act()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        _, run, recovery, key = self.path.split("/")
        time.sleep(0.01)
        self.server.take(run, recovery, key)
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200 if self.server.done[self.path.rpartition("/")[2]] else 404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        """Keep quiet."""


class Nursery:
    """The process that gives birth to workers and people."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proofs._restart_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        self._said: list[str] = []
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self._said += self._process.stderr

    def ask(self, asked: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def last_words(self) -> str:
        """Return the end of what its children wrote to standard error."""
        return " | ".join(line.strip() for line in self._said[-3:])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._ear.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


@dataclass(slots=True, kw_only=True)
class Case:
    """One run that wants one thing, and those who are killed around it."""

    plan: Plan
    nursery: Nursery
    database: Database
    place: Place
    chance: random.Random
    people_asked: set[str] = field(default_factory=set)
    worker: int = 0
    killed: int = 0
    found: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Ask, decide and act, with a kill in each; then let a last worker bring it to its end."""
        plan = self.plan
        self._ask()
        if plan.is_up:
            self._raise_worker(plan.acting)
            self._await(_is_asked, "the question to stand again")
        for user in plan.people:
            self._decide(user)
        if not plan.is_up:
            self._raise_worker(plan.acting)
        if plan.acting == ANY_TIME:
            self._kill_worker(after_s=self.chance.uniform(0, _ANY_MAX_S))
        else:
            self._bury_worker()
        self._raise_worker("")
        code = self._bury_worker()
        if code != ENDED:
            told = "the audit log is torn" if code == TORN else "the run did not end well"
            self.found.append(f"{told} (code {code}): {self.nursery.last_words()}"[:600])

    def _ask(self) -> None:
        """Let a worker ask, and die while or after it does."""
        moment = self.plan.asking
        self._raise_worker(moment)
        if moment == ANY_TIME:
            self._kill_worker(after_s=self.chance.uniform(0, _ANY_MAX_S))
        elif moment == PARKED:
            self._await(_is_asked, "a question")
            self._kill_worker(after_s=0)
        else:
            self._bury_worker()
        if not self.plan.is_up and not self._sees(_is_asked):
            # It died before it could ask: one more life, and death, for the question to stand.
            self._raise_worker("")
            self._await(_is_asked, "a question")
            self._kill_worker(after_s=0)

    def _decide(self, user: str) -> None:
        """Let a person approve from another process; who is killed on the way tries again."""
        self.people_asked.add(user)
        moment = self.plan.voting
        for _ in range(_LIVES_MAX):
            life = self.nursery.ask(
                {"place": asdict(self.place), "plan": {"role": "person", "moment": moment, "user": user}}
            )
            if moment == ANY_TIME:
                time.sleep(self.chance.uniform(0, _ANY_MAX_S / 3))
                os.kill(life, signal.SIGKILL)  # not yet waited for, so the number is still its own
            self.killed += self.nursery.ask(life) == -signal.SIGKILL
            moment = ""
            if self._sees(lambda connection: _has_voted(connection, user)):
                return
        raise AssertionError(f"{user} could not approve: {self.nursery.last_words()}")

    def _raise_worker(self, moment: str) -> None:
        plan = {"role": "worker", "moment": moment, "life_s": str(self.plan.life_s)}
        self.worker = self.nursery.ask({"place": asdict(self.place), "plan": plan})

    def _kill_worker(self, *, after_s: float) -> None:
        time.sleep(after_s)
        os.kill(self.worker, signal.SIGKILL)  # as above
        self._bury_worker()

    def _bury_worker(self) -> int:
        code = self.nursery.ask(self.worker)
        self.killed += code == -signal.SIGKILL
        return code

    def _sees(self, sight: Callable[[Connection], bool]) -> bool:
        with self.database.reading() as connection:
            return sight(connection)

    def _await(self, sight: Callable[[Connection], bool], what: str) -> None:
        until_s = time.monotonic() + _WAIT_MAX_S
        while not self._sees(sight):
            if time.monotonic() > until_s:
                raise AssertionError(f"waited for {what}: {self.nursery.last_words()}")
            time.sleep(_LOOK_S)

    def judge(self, server: Server) -> None:
        """Compare what the journal says with what the other side has seen, once nothing is on its way any more."""
        time.sleep(_SETTLE_S)
        with self.database.reading() as connection:
            run = connection.one("SELECT id, result FROM quell_runs").id
            effects = Ledger(self.database, clock=system_clock).entries(connection, run=run)
            uses = connection.one("SELECT count(*) AS many FROM quell_approval_calls WHERE state <> 'pending'").many
        if server.done[run] != 1:
            self.found.append(f"{server.done[run]} effects")
        if server.unasked:
            self.found.append("an effect before enough people were asked")
        if [effect.state for effect in effects] != [EffectState.DONE]:
            self.found.append(f"the ledger says {[effect.state.value for effect in effects]}")
        if uses != 1:
            self.found.append(f"{uses} uses of approvals")


def _is_asked(connection: Connection) -> bool:
    # Before the first worker has made them there are no tables; the database is asked, not the error.
    return bool(connection.all("SELECT id FROM quell_approvals WHERE status IN ('requested', 'approved')"))


def _has_voted(connection: Connection, user: str) -> bool:
    return bool(connection.all("SELECT person FROM quell_approval_votes WHERE voter = :voter", voter=user))


def try_case(plan: Plan, *, nursery: Nursery, postgres: str) -> Case:
    """Play one case on a journal of its own, and judge it."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="quell-restart-"))
        url = stack.enter_context(fresh_database(postgres)) if plan.is_postgres else ""
        database = open_database(Secret(url), state_dir=Path(directory))
        stack.callback(database.close)
        people: set[str] = set()
        server = stack.enter_context(_serving(may_act=lambda: len(people) >= len(plan.people)))
        case = Case(
            plan=plan,
            nursery=nursery,
            database=database,
            place=Place(
                url=url, state_dir=directory, port=server.server_address[1], tool=plan.tool, mutant=plan.mutant
            ),
            chance=random.Random(plan.seed),
            people_asked=people,
        )
        # Tables first: a case looks into the journal from its first moment on.
        case.nursery.ask(nursery.ask({"place": asdict(case.place), "plan": {"role": "founder", "moment": ""}}))
        try:
            case.play()
            case.judge(server)
        except AssertionError as error:
            case.found.append(str(error))
            _end(case)
        return case


def _end(case: Case) -> None:
    """Let no worker of a case that failed live on."""
    try:
        os.kill(case.worker, 0)
    except OSError:
        return
    case._kill_worker(after_s=0)  # noqa: SLF001 - one thing in two places


@contextmanager
def _serving(*, may_act: Callable[[], bool]) -> Iterator[Server]:
    server = Server(may_act=may_act)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def a_nursery() -> Iterator[Nursery]:
    """Give a nursery."""
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


def survive(scale: Scale, seed: int) -> Result:
    """Play every case, some beside each other, on both databases."""
    drawn = plans(scale, seed)
    with running_postgres() as postgres:

        def lane(number: int) -> list[Case]:
            with a_nursery() as nursery:
                return [try_case(plan, nursery=nursery, postgres=postgres) for plan in drawn[number::LANES]]

        with ThreadPoolExecutor(LANES) as pool:
            cases = [case for cases in pool.map(lane, range(LANES)) for case in cases]
    failures = tuple(f"{told}: {case.plan}" for case in cases for told in case.found)
    kills = sum(case.killed for case in cases)
    return Result(
        cases=len(cases),
        violations=len(failures),
        is_exhaustive=False,
        note=f"a run that asks, people in other processes and the effect, on SQLite and Postgres; {kills} SIGKILLs",
        failures=failures[:5],
    )


PROMISES = (
    Promise(
        name="approvals-survive-restarts",
        promise="A question outlives whoever asked it, a yes whoever gave it, and it has one effect whoever dies when.",
        try_it=survive,
    ),
)
