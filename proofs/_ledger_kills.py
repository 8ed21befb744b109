"""Real workers, killed with SIGKILL at random moments, against a real server that keeps its own record."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tests._postgres import fresh_database, running_postgres

from proofs._ledger_worker import CALLS, SUPERSEDED, intent_of
from proofs._proof import Result, Scale
from quell.config import Secret
from quell.domain import EffectState, Recovery
from quell.runs import Database, Ledger, system_clock
from quell.runs._database import open_database
from quell.runs._schema import create_tables

_DELAY_MAX_S = 0.004
_KILL_AFTER_MAX_S = 0.015
_ARRIVES_MAX_S = 1.0
_SETTLE_S = 0.1


class Server(ThreadingHTTPServer):
    """The other side: it takes effects a little after they arrive, and answers a little after that."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.random = random.Random(seed)
        self.lock = threading.Condition()
        self.requests = 0
        self.applied: Counter[str] = Counter()
        """How often each key took effect: the oracle."""

    def take(self, recovery: str, key: str) -> None:
        with self.lock:
            is_repeatable = recovery in (Recovery.KEYED, Recovery.NATURAL)  # deduplicated, or setting the same value
            self.applied[key] = 1 if is_repeatable else self.applied[key] + 1

    def arrived(self) -> None:
        """Count a request that has arrived and had no effect yet."""
        with self.lock:
            self.requests += 1
            self.lock.notify_all()

    def await_requests(self, count: int) -> None:
        """Wait until so many more have arrived, or for a while."""
        with self.lock:
            until = self.requests + count
            self.lock.wait_for(lambda: self.requests >= until, timeout=_ARRIVES_MAX_S)

    def linger(self) -> None:
        with self.lock:
            delay_s = self.random.uniform(0, _DELAY_MAX_S)
        time.sleep(delay_s)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        _, recovery, key = self.path.split("/")
        self.server.arrived()
        self.server.linger()
        self.server.take(recovery, key)
        self.server.linger()
        self._answer(200)

    def do_GET(self) -> None:
        key = self.path.rpartition("/")[2]
        with self.server.lock:
            is_there = self.server.applied[key] > 0
        self._answer(200 if is_there else 404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        """Keep quiet."""


class Nursery:
    """The process that gives birth to workers."""

    def __init__(self, url: str, directory: Path, *, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proofs._ledger_worker", url, str(directory), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def ask(self, asked: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


@dataclass(slots=True)
class Kills:
    """Kills workers on one backend until enough have died."""

    database: Database
    nursery: Nursery
    server: Server
    random: random.Random
    recovery: Literal["by class", "careless"]
    runs: int = 0
    lives: int = 0
    killed: int = 0
    races: int = 0
    escalated: int = 0
    effects: int = 0
    failures: list[str] = field(default_factory=list)

    def until(self, kills: int) -> None:
        while self.killed < kills:
            run = self._new_run()
            while self.killed < kills and not self._disturbed(run):
                pass
            while self.nursery.ask(self._life(run)) != 0:
                raise AssertionError("a worker that nobody killed ended before its work")
            self._judge(run)

    def _new_run(self) -> str:
        self.runs += 1
        run = f"run_{self.runs}"
        with self.database.writing() as connection:
            connection.run(
                "INSERT INTO quell_runs (id, kind, subject, arguments, status, version, created_at, updated_at)"
                " VALUES (:run, 'k', 's', '{}', 'running', '1', '', '')",
                run=run,
            )
        return run

    def _life(self, run: str) -> int:
        self.lives += 1
        return self.nursery.ask({"run": run, "token": f"t{self.lives}", "recovery": self.recovery})

    def _disturbed(self, run: str) -> bool:
        """Let one worker or two live, kill them; tell whether one reached the end of the run first."""
        workers = [self._life(run)]
        if self.random.random() < 1 / 3:
            self.races += 1
            self.server.await_requests(self.random.randint(0, 2))
            workers.append(self._life(run))
            self.random.shuffle(workers)
        codes = []
        for worker in workers:
            # Somewhere in its first effects, however slow the machine is: some before the first request.
            self.server.await_requests(self.random.randint(0, 3))
            time.sleep(self.random.uniform(0, _KILL_AFTER_MAX_S))
            os.kill(worker, signal.SIGKILL)  # not yet waited for, so the number is still its own
            codes.append(self.nursery.ask(worker))
        assert set(codes) <= {0, SUPERSEDED, -signal.SIGKILL}, f"a worker failed: {codes}"
        self.killed += codes.count(-signal.SIGKILL)
        return 0 in codes

    def _judge(self, run: str) -> None:
        """Compare the ledger with the record of the other side, once nothing is on its way any more."""
        time.sleep(_SETTLE_S)
        ledger = Ledger(self.database, clock=system_clock)
        with self.database.reading() as connection:
            entries = {effect.call.id: effect for effect in ledger.entries(connection, run=run)}
            moments = Counter(row.moment for row in connection.all("SELECT moment FROM proof_audit"))
        for call in range(CALLS):
            self.effects += 1
            effect = entries.get(intent_of(run, call).call.id)
            if effect is None or effect.state in (EffectState.INTENT, EffectState.STARTED):
                self.failures.append(f"{run} call {call}: lost, {effect and effect.state}")
                continue
            applied = self.server.applied[effect.key]
            self.escalated += effect.state is EffectState.UNKNOWN
            may_be = {EffectState.DONE: {1}, EffectState.FAILED: {0}}.get(effect.state, {0, 1})
            if applied not in may_be:
                self.failures.append(f"{run} call {call} ({effect.recovery}): {effect.state}, applied {applied} times")
            if effect.state is EffectState.UNKNOWN and effect.recovery in (Recovery.KEYED, Recovery.NATURAL):
                self.failures.append(f"{run} call {call} ({effect.recovery}): left to people without need")
            if moments[f"{effect.key}.{effect.state}.{effect.attempts}"] != 1:
                self.failures.append(f"{run} call {call}: its end was not written together with the audit")


@contextmanager
def backend(url: str, *, seed: int, recovery: Literal["by class", "careless"] = "by class") -> Iterator[Kills]:
    """Give a server, workers and a journal of their own; `careless` workers send everything again."""
    with tempfile.TemporaryDirectory(prefix="quell-kills-") as directory:
        database = open_database(Secret(url), state_dir=Path(directory))
        create_tables(database)
        with database.writing() as connection:
            connection.make_tables((*Ledger.TABLES, "CREATE TABLE proof_audit (number {number}, moment TEXT NOT NULL)"))
        server = Server(seed=seed)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        serving.start()
        nursery = Nursery(url, Path(directory), port=server.server_address[1])
        try:
            yield Kills(
                database=database, nursery=nursery, server=server, random=random.Random(seed), recovery=recovery
            )
        finally:
            nursery.close()
            server.shutdown()
            serving.join()
            server.server_close()
            database.close()


def kills(scale: Scale, seed: int) -> Result:
    """Kill as often on SQLite as on Postgres; every third time two workers are on one run."""
    wanted = 200 if scale == "full" else 10
    told: list[Kills] = []
    with backend("", seed=seed) as on_sqlite:
        on_sqlite.until(wanted)
        told.append(on_sqlite)
    with running_postgres() as server_url, fresh_database(server_url) as url, backend(url, seed=seed) as on_postgres:
        on_postgres.until(wanted)
        told.append(on_postgres)
    failures = tuple(failure for one in told for failure in one.failures)
    return Result(
        cases=sum(one.killed for one in told),
        violations=len(failures),
        is_exhaustive=False,
        note=f"SIGKILLs on SQLite and Postgres, {sum(one.races for one in told)} times two workers on one run;"
        f" {sum(one.effects for one in told)} effects, {sum(one.escalated for one in told)} left to people",
        failures=failures[:5],
    )
