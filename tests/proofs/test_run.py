"""`python -m proofs`: nothing that went wrong passes for a promise that was kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proofs._proof import Promise, Result, Scale

from proofs import _run


def test_a_proof_that_fails_to_run_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_scale: Scale, _seed: int) -> Result:
        raise RuntimeError("no such server")

    promise = Promise(name="fails", promise="It fails.", try_it=fails)
    monkeypatch.setattr(_run, "promises", lambda: [promise])
    tried = _run._try_one("fails", "ci", 1)
    assert tried.result.violations == 1
    assert "no such server" in tried.result.failures[0]


@pytest.mark.timeout(60)
def test_an_interrupted_run_says_what_was_not_tried_and_leaves_nothing_running(tmp_path: Path) -> None:
    here = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "proofs", "--seed", "1", "level-by-agent", "no-duplicate-no-loss"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{here / 'src'}:{here}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # Who runs the suite in the background of a shell has interrupts ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread here
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("level-by-agent"):
                break
        running.send_signal(signal.SIGINT)
        said = running.stdout.read()
        assert running.wait() == 130
    assert "not tried to the end: no-duplicate-no-loss" in said
    while _is_alive(running.pid):
        time.sleep(0.05)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
