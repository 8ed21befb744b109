"""The demo leaves nothing behind, whenever it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.flow


def processes_of(out: Path) -> list[psutil.Process]:
    """Return every process that this demo started: they carry its directory in command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(out) in word for word in words):
            found.append(process)
    return found


def wait_for_line(demo: subprocess.Popen[str], text: str) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if text in line:
            return
    raise AssertionError(f"the demo ended before it said {text!r}")


def start_demo(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "quell",
            "demo",
            "--fault",
            "bad_flag",
            "--seed",
            "1",
            "--out",
            str(out),
            "--baseline",
            "8",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What the demo starts inherits this, so that every process of it can be found.
        env={**os.environ, "DEMO_OF_TEST": str(out)},
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "stage", ["starting quell serve", "starting the shop", "a healthy baseline", "something breaks now"]
)
def test_ctrl_c_ends_the_demo_with_130_and_no_orphan(tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    demo = start_demo(out)
    try:
        wait_for_line(demo, stage)
        time.sleep(1.5)
        assert len(processes_of(out)) >= 2, "the demo should be busy"
        demo.send_signal(signal.SIGINT)
        assert demo.stdout is not None
        demo.stdout.read()
        assert demo.wait(60) == 130
        _gone, alive = psutil.wait_procs(processes_of(out), timeout=20)
        assert alive == []
    finally:
        demo.kill()
        demo.wait()
        assert demo.stdout is not None
        demo.stdout.close()


@pytest.mark.timeout(240)
def test_a_killed_demo_takes_everything_along(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = start_demo(out)
    try:
        wait_for_line(demo, "a healthy baseline")
        assert len(processes_of(out)) > 10
        demo.kill()
        demo.wait(10)
        _gone, alive = psutil.wait_procs(processes_of(out), timeout=45)
        assert alive == []
    finally:
        demo.kill()
        demo.wait()
        assert demo.stdout is not None
        demo.stdout.close()
