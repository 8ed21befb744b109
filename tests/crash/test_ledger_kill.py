"""A real run dies in the middle of its effects and goes on: each effect once, what nobody can know before people."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests._postgres import fresh_database

ROOT = Path(__file__).parents[2]


def life(directory: Path, *, url: str, kill: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.crash._ledger_worker", str(directory), url, kill],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=80,
        check=False,
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr[-4000:]
    return ran.returncode, ran.stdout


@pytest.mark.crash
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("backend", "kills"),
    [
        ("sqlite", ("keyed:taken", "probeable:sending", "natural:end", "blind:taken")),
        ("postgres", ("keyed:start", "probeable:taken")),
    ],
)
def test_killed_in_the_middle_of_its_effects_a_run_does_each_of_them_once(
    backend: str, kills: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    postgres = backend == "postgres"
    with fresh_database(request.getfixturevalue("postgres_url")) if postgres else nullcontext("") as url:
        for kill in kills:
            assert life(tmp_path, url=url, kill=kill)[0] == -signal.SIGKILL, kill
        code, out = life(tmp_path, url=url, kill="")
    assert code == 0
    told = json.loads(out)
    assert told["status"] == "succeeded"
    blind = "unknown" if "blind:taken" in kills else "done"
    expected = {"keyed": "done", "natural": "done", "probeable": "done", "blind": blind}
    assert told["result"] == told["entries"] == expected
    for recovery in expected:
        keys = (tmp_path / recovery).read_text().split()
        assert len(set(keys)) == 1, "one key, whatever happened"
        if recovery in ("probeable", "blind"):
            assert len(keys) == 1, f"{recovery} was done once"
