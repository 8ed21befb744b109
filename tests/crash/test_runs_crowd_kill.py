"""Many direct runs in several processes, killed again and again: none is lost, none runs twice, nothing kept is repeated."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._postgres import fresh_database
from tests.crash._crowd_worker import STEPS

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
RUNS, KILLS, SEED = 60, 6, 20261120


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty journal; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as database:
        yield database


def _worker(plan: dict[str, object]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash._crowd_worker", json.dumps(plan)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_crowd_of_runs_outlives_every_process_that_executes_it(url: str, tmp_path: Path) -> None:
    plan: dict[str, object] = {"directory": str(tmp_path), "url": url, "runs": RUNS, "at_once_max": 20}
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    workers = [_worker(plan), _worker(plan)]
    recovered = 0
    try:
        for _ in range(KILLS):
            victim = workers.pop(0)
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.25))
            _end(victim)
            workers.append(_worker(plan))
        for worker in workers:
            out, err = worker.communicate(timeout=90)
            assert worker.returncode == 0, err
            told = json.loads(out.splitlines()[-1])
            assert told["status"] == ["succeeded"]
            assert len(told["told"]) == RUNS
            for events in told["told"]:
                kinds = Counter(events)
                recovered += kinds.pop("run.recovered", 0) + kinds.pop("run.taken_over", 0)
                assert kinds == {
                    "run.queued": 1,
                    "run.started": 1,
                    "run.continued": 1,
                    "step.started": STEPS,
                    "step.finished": STEPS,
                    "sample.told": STEPS,
                    "run.finished": 1,
                }
    finally:
        for worker in workers:
            _end(worker)
    assert not (tmp_path / "wrong").exists(), (tmp_path / "wrong").read_text()
    assert recovered > 0, "no kill met a run"
