"""A run survives kill -9 at every place, on SQLite and on Postgres."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests._postgres import fresh_database
from tests.crash._runs_worker import STEPS

RESULT = '{"told":1542}'
ROOT = Path(__file__).parents[2]
PLACES = ("body", "before", "after")

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty journal; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as database:
        yield database


@pytest.fixture(params=["queue", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    """How runs are executed."""
    return str(request.param)


@contextmanager
def worker(plan: dict[str, object], *, kill: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a worker process; it is gone at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash._runs_worker", json.dumps(plan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "QUELL_KILL": kill},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(plan: dict[str, object], *, kill: str = "") -> tuple[int, list[dict[str, object]]]:
    """Run a worker to its end and return its exit code and lines."""
    with worker(plan, kill=kill) as process:
        out, err = process.communicate(timeout=90)
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode in (0, -signal.SIGKILL), f"{err}\n{out}"
        return process.returncode, lines


def until(stream: IO[str], field: str) -> dict[str, object]:
    """Read lines until one has that field."""
    for line in stream:
        told: dict[str, object] = json.loads(line)
        if field in told:
            return told
    raise AssertionError(f"the worker ended before it told {field!r}")


def times(directory: Path, step: str, what: str) -> int:
    """Return how often a step began, or did its effect."""
    path = directory / f"{step}.{what}"
    return len(path.read_text()) if path.exists() else 0


def assert_whole(lines: list[dict[str, object]]) -> None:
    """The event log of a run that was recovered reads like that of one that was not: nothing missing, nothing twice."""
    events = [event for line in lines if isinstance(event := line.get("event"), dict)]
    sequence = [event["seq"] for event in events]
    assert sequence == sorted(set(sequence))
    names = Counter((event["name"], event["key"]) for event in events)
    assert set(names.values()) == {1}
    kinds = Counter(event["name"] for event in events)
    for told_again in ("run.recovered", "run.taken_over"):
        kinds.pop(told_again, None)
    assert kinds == {
        "run.queued": 1,
        "run.started": 1,
        "run.continued": 1,
        "run.waiting": 1,
        "step.started": len(STEPS),
        "step.finished": len(STEPS),
        "sample.planned": 1,
        "run.finished": 1,
    }


@pytest.mark.timeout(300)
def test_a_run_killed_at_every_place_of_every_step_ends_with_the_same_result(
    url: str, way: str, tmp_path: Path
) -> None:
    """One run, executed by nineteen processes: eighteen of them kill themselves, each at another place."""
    plan: dict[str, object] = {"directory": str(tmp_path), "url": url, "way": way}
    kept: Counter[str] = Counter()
    for step in STEPS:
        for place in PLACES:
            (tmp_path / "killed").unlink(missing_ok=True)
            code, _ = finished(plan, kill=f"{step}:{place}")
            assert code == -signal.SIGKILL, (step, place)
            # Killed inside the work or before its result was kept, a step runs again; nothing else ever does.
            kept[step] = 1 + PLACES.index(place) if place != "after" else 3
            assert {other: times(tmp_path, other, "began") for other in STEPS} == {
                other: kept[other] for other in STEPS
            }
    code, lines = finished(plan)
    assert code == 0
    assert lines[-1]["status"] == "succeeded"
    assert lines[-1]["result"] == RESULT
    assert_whole(lines)
    assert {step: times(tmp_path, step, "done") for step in STEPS} == dict.fromkeys(STEPS, 2)


def test_a_process_that_dies_is_replaced_by_a_living_one(url: str, way: str, tmp_path: Path) -> None:
    plan: dict[str, object] = {
        "directory": str(tmp_path),
        "url": url,
        "way": way,
        "lease_s": 2.0,
        "pause_s": 0.2,
    }
    with worker({**plan, "role": "idle"}) as heir:
        assert heir.stdout is not None
        until(heir.stdout, "ready")
        with worker({**plan, "executor": "doomed"}) as doomed:
            assert doomed.stdout is not None
            until(doomed.stdout, "run")
            _wait_for(tmp_path / "read-a.done")
            doomed.kill()
            doomed.wait()
        _wait_for(tmp_path / "report.done")
        heir.kill()
    code, lines = finished(plan)
    assert code == 0
    assert lines[-1]["result"] == RESULT
    assert_whole(lines)
    assert all(times(tmp_path, step, "done") <= 2 for step in STEPS)
    assert times(tmp_path, "plan", "done") == 1


def test_a_frozen_process_loses_its_runs_and_does_not_disturb_them_when_it_thaws(
    url: str, way: str, tmp_path: Path
) -> None:
    plan: dict[str, object] = {"directory": str(tmp_path), "url": url, "way": way, "lease_s": 1.0, "pause_s": 0.6}
    with worker(plan) as frozen:
        assert frozen.stdout is not None
        until(frozen.stdout, "run")
        _wait_for(tmp_path / "read-a.began")
        _freeze(frozen, tmp_path / "state" / "quell.db")
        code, lines = finished(plan)
        assert code == 0
        assert lines[-1]["result"] == RESULT
        assert_whole(lines)
        frozen.send_signal(signal.SIGCONT)
        out, err = frozen.communicate(timeout=20)
        assert frozen.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["result"] == RESULT
    code, lines = finished(plan)
    assert_whole(lines)


def test_a_second_process_of_the_same_executor_name_is_refused_until_the_first_is_dead(
    url: str, tmp_path: Path
) -> None:
    plan: dict[str, object] = {"directory": str(tmp_path), "url": url, "executor": "serve", "lease_s": 30.0}
    with worker({**plan, "role": "idle"}) as first:
        assert first.stdout is not None
        until(first.stdout, "ready")
        with worker(plan) as second:
            out, _ = second.communicate(timeout=20)
            assert second.returncode == 3
            assert f"held by process {first.pid}" in json.loads(out.splitlines()[-1])["refused"]
        first.kill()
        first.wait()
    code, lines = finished(plan)  # at once, long before the lease is over: the process is known to be gone
    assert code == 0
    assert lines[-1]["result"] == RESULT


def _wait_for(path: Path, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not happen"
        time.sleep(0.02)


def _freeze(process: subprocess.Popen[str], journal: Path) -> None:
    """Stop a process where it holds no lock on the file: nobody could write there until it thaws."""
    while True:
        process.send_signal(signal.SIGSTOP)
        # Its threads stop one after the other. Until all have, one may still take the lock that another has let go.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if not journal.exists():
            return
        connection = sqlite3.connect(journal, isolation_level=None, timeout=0.3)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        else:
            return
        finally:
            connection.close()
