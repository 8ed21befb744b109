"""Kill the store and the receiver again and again, and count what is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash._receiver_worker import LINES, SERVICE


@dataclass(slots=True)
class Sender:
    """The worker of the moment, started again when it was killed; knows every number that was acknowledged."""

    state_dir: Path
    acknowledged: set[int] = field(default_factory=set)
    _next: int = 0
    _worker: subprocess.Popen[bytes] | None = None
    _rest: bytes = b""

    def gather(self, seconds: float) -> None:
        """Read acknowledgements for a while."""
        worker = self._worker or self._start()
        assert worker.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if selector.select(left):
                    chunk = os.read(worker.stdout.fileno(), 65536)
                    if not chunk:
                        raise AssertionError(f"the worker ended with {worker.wait()}")
                    self._note(chunk)

    def kill(self) -> None:
        """Kill the worker; what it still said counts as acknowledged."""
        worker = self._worker
        if worker is None:
            return
        worker.kill()
        assert worker.stdout is not None
        self._note(worker.stdout.read())
        worker.stdout.close()
        worker.wait()
        self._worker, self._rest = None, b""
        self._next = max(self.acknowledged, default=0) + 1000  # numbers in flight are never used again

    def _note(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self.acknowledged.update(int(line) for line in lines if line)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.crash._receiver_worker", str(self.state_dir), str(self._next)]
        self._worker = subprocess.Popen(command, stdout=subprocess.PIPE)
        return self._worker


def owner_pid(state_dir: Path) -> int | None:
    """Find the live owner of a state directory."""
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads((state_dir / "store.json").read_text())["pid"])
    return None


def kill_owner(state_dir: Path) -> bool:
    """Kill the owner with no chance to clean up; False when there is none at the moment."""
    pid = owner_pid(state_dir)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def storm(sender: Sender, *, kills: int, seed: int, every_s: tuple[float, float], receiver_every: int = 0) -> int:
    """Kill the owner `kills` times at random moments while lines flow, and the receiver too every so often."""
    rng = random.Random(seed)
    done = 0
    while not sender.acknowledged:
        sender.gather(0.2)
    while done < kills:
        sender.gather(rng.uniform(*every_s))
        if receiver_every and done % receiver_every == receiver_every - 1:
            sender.kill()
        if kill_owner(sender.state_dir):
            done += 1
    return done


__all__ = ["LINES", "SERVICE", "Sender", "kill_owner", "owner_pid", "storm"]
