"""A process that investigates is killed after every single step: the finding is the same, and nothing is lost or told twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from quell.domain import QuestionKind
from tests._postgres import fresh_database

ROOT = Path(__file__).parents[2]
STEPS = (
    "plan",
    *(f"read:recorded:{kind.value}" for kind in QuestionKind),
    "survey",
    "diagnose",
    "brief",
    "series",
    "similar",
    "report",
)


@dataclass(frozen=True, kw_only=True)
class Life:
    """What one life left behind."""

    code: int
    kill_after: str
    steps: dict[str, str]
    asked: list[str]
    runs: list[tuple[str, str, str, int]]
    events: list[tuple[str, str, str]]


def lives_of(directory: Path, *, url: str, kills: tuple[str, ...]) -> list[Life]:
    directory.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.crash._investigation_worker", str(directory), url],
        input="\n".join(kills),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [Life(**json.loads(line)) for line in ran.stdout.splitlines()]


@pytest.mark.crash
@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_killed_after_every_step_an_investigation_reaches_the_same_finding(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    postgres = backend == "postgres"
    with fresh_database(request.getfixturevalue("postgres_url")) if postgres else nullcontext("") as url:
        (calm,) = lives_of(tmp_path / "calm", url="", kills=())
        lives = lives_of(tmp_path / "killed", url=url, kills=STEPS)

    assert tuple(sorted(calm.steps)) == tuple(sorted(STEPS)), "every step is one at which a life ends"
    assert [life.code for life in lives] == [-signal.SIGKILL] * len(STEPS) + [0]

    (end,) = lives[-1].runs
    (undisturbed,) = calm.runs
    assert end[1] == undisturbed[1] == "succeeded"
    assert _finding(end[2]) == _finding(undisturbed[2])
    assert _finding(end[2])["category"] == "bad_release"

    for before, after in pairwise(lives):
        assert before.kill_after in before.steps, "the step after which it was killed had been kept"
        assert before.steps.items() <= after.steps.items(), "a kept result is neither lost nor replaced"
        asked = after.asked[len(before.asked) :]
        kept = {name.rpartition(":")[2] for name in before.steps if name.startswith("read:")}
        assert not kept & set(asked), "what was read is not read again"

    told = Counter((stream, key) for stream, key, _ in lives[-1].events)
    assert max(told.values()) == 1
    names = Counter(name for _, _, name in lives[-1].events)
    assert names["incident.opened"] == names["finding.made"] == names["run.finished"] == 1
    assert names["incident.stage"] == 2
    assert names["alert.fired"] == 2
    assert names["step.finished"] == len(STEPS)
    for before, after in pairwise(lives):
        assert after.events[: len(before.events)] == before.events, "the log only grows at its end"


def _finding(result: str) -> dict[str, object]:
    """Return a finding without what names this very incident."""
    body: dict[str, object] = json.loads(result)
    return {key: value for key, value in body.items() if key != "incident"}
