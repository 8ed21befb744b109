"""Real `quell` processes for tests: run one, start one, wait for what it says."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests import _canaries

QUELL = [sys.executable, "-m", "quell"]
NOWHERE = "http://127.0.0.1:9"
"""Discard's port: nothing listens there."""
_PLANTED = "QUELL_STORE__PASSWORD"
UNPLANTED = {_PLANTED: ""}
"""For tests about settings that nobody wrote."""


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our environment without anything that configures Quell."""
    foreign = ("QUELL_", "AURA_", "OTEL_", "XDG_", "NO_COLOR", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    # Bytecode as an installed program has it, in one place for all tests: a process starts twice as fast.
    bytecode = Path(tempfile.gettempdir()) / f"quell-tests-bytecode-{os.getuid()}"
    own = {"HOME": str(home), "PYTHONPYCACHEPREFIX": str(bytecode)}
    wanted = clean | own | {_PLANTED: _canaries.IN_SETTINGS} | dict(extra or {})
    return {key: value for key, value in wanted.items() if key != _PLANTED or value}


def quell(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "", timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*QUELL, *arguments],
        cwd=cwd,
        env=environment(cwd, env),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def error_of(told: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Read the error document that `--json` promises; it is the last line of stderr."""
    document = json.loads(told.stderr.strip().splitlines()[-1])
    assert document["ok"] is False
    error = document["error"]
    assert isinstance(error, dict)
    assert error["exit"] == told.returncode
    return error


@contextmanager
def started(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start one command in a session of its own; at the end nothing of it is left."""
    process = subprocess.Popen(
        [*QUELL, *arguments],
        cwd=cwd,
        env=environment(cwd, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what was read is what was asked for, so that select() tells the truth
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait(timeout=15)


def end_of(process: subprocess.Popen[bytes], *, timeout_s: float = 60) -> tuple[str, str]:
    """Wait for the end, and return what was not read yet of stdout and stderr."""
    out, err = process.communicate(timeout=timeout_s)
    return out.decode(), err.decode()


def wait_for_line(
    process: subprocess.Popen[bytes], words: str, *, stream: str = "stderr", timeout_s: float = 60
) -> str:
    """Read lines until one holds `words`. Fails with everything that was read."""
    source = process.stdout if stream == "stdout" else process.stderr
    assert source is not None
    seen: list[str] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ready, _, _ = select.select([source], [], [], 0.2)
        if not ready:
            continue
        line = source.readline().decode()
        if not line:
            break
        _canaries.SEARCH.text(f"{stream} of a program", line)
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"{words!r} did not come (exit {process.poll()}); read:\n{''.join(seen)}")


@contextmanager
def tarpit() -> Iterator[str]:
    """Listen and never answer; yields the URL."""
    with socket.socket() as pit:
        pit.bind(("127.0.0.1", 0))
        pit.listen(64)
        yield f"http://127.0.0.1:{pit.getsockname()[1]}"
