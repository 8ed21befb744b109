"""The demo leaves nothing behind, whenever it is interrupted."""

from __future__ import annotations

import json
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


@pytest.mark.timeout(240)
def test_the_demo_tells_the_whole_story_and_writes_three_reports(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "quell",
        "demo",
        "--fault",
        "bad_config",
        "--seed",
        "1",
        "--out",
        str(out),
        "--json",
    ]
    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
        env={**os.environ, "DEMO_OF_TEST": str(out)},
    )
    assert told.returncode in {0, 1}, told.stderr[-2000:]
    story = json.loads(told.stdout)
    assert story["truth"]["category"] == "bad_config"
    assert story["ok"] == (told.returncode == 0)
    print(story["verdict"], story["named"], story["alert_s"], story["report_s"])
    assert set(story["reports"]) == {"md", "json", "html"}
    case = json.loads((out / "report.json").read_text())
    assert case["finding"]["outcome"] == "cause_found"
    assert case["finding"]["citations"]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for heading in ("What is going on?", "What caused it?", "What can I do next?"):
        assert heading in page
        assert heading in text
    assert "<svg" in page
    assert not processes_of(out)
