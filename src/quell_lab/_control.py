"""The control door of a running lab: one JSON line in, one JSON line out, on the loopback, with a token."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from quell_lab._child import PARENT_VARIABLE, parent_environment
from quell_lab._plan import Layout
from quell_lab._truth import Truth, decode_truth

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 60.0


class LabError(Exception):
    """The lab cannot do what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A running lab, as somebody outside of it sees it."""

    layout: Layout
    pid: int
    port: int
    token: str
    child: subprocess.Popen[bytes] | None = None
    """The process, when it was started here."""

    @classmethod
    def find(cls, root: Path) -> Lab | None:
        """Return the lab that runs in a directory."""
        layout = Layout(root=root.resolve())
        try:
            fields = json.loads(layout.control.read_text())
            os.kill(fields["pid"], 0)
        except (OSError, ValueError, KeyError):
            return None
        return cls(layout=layout, pid=fields["pid"], port=fields["port"], token=fields["token"])

    @classmethod
    def start(cls, root: Path, *, endpoint: str, rate_per_s: float, seed: int, tied: str = "") -> Lab:
        """Start a lab in the background and wait until users shop in it.

        Args:
            root: Directory of the lab.
            endpoint: OTLP/HTTP base URL that telemetry goes to; empty for none.
            rate_per_s: Requests a second at the gateway, on average over the day.
            seed: Seed of the load.
            tied: Not empty when the lab must end with this process.
        """
        if cls.find(root) is not None:
            raise LabError(f"a lab runs in {root} already; stop it with `quell lab down`")
        root.mkdir(parents=True, exist_ok=True)
        environment = parent_environment() if tied else {**os.environ, PARENT_VARIABLE: ""}
        with (root / "supervisor.log").open("ab") as log:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "quell_lab._site", str(root.resolve())),
                    *("--endpoint", endpoint, "--rate", str(rate_per_s), "--seed", str(seed)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            return cls._wait_ready(root, child)
        except BaseException:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
            child.kill()
            raise

    @classmethod
    def _wait_ready(cls, root: Path, child: subprocess.Popen[bytes]) -> Lab:
        until_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until_s:
            if child.poll() is not None:
                tail = (root / "supervisor.log").read_text(errors="replace").strip().splitlines()
                raise LabError(f"the lab did not start: {tail[-1] if tail else 'no message'}")
            found = cls.find(root)
            if found is not None and found.pid == child.pid:
                return replace(found, child=child)
            time.sleep(0.1)
        raise LabError(f"the lab was not ready within {START_TIMEOUT_S:g} s, see {root}/supervisor.log")

    def ask(self, verb: str, **fields: object) -> dict[str, object]:
        """Send one request and return its answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_TIMEOUT_S) as wire:
                wire.sendall(json.dumps({"verb": verb, "token": self.token, **fields}).encode() + b"\n")
                with wire.makefile("rb") as file:
                    answer: dict[str, object] = json.loads(file.readline() or b"{}")
        except OSError as error:
            raise LabError(f"the lab does not answer: {error}") from error
        if "error" in answer:
            raise LabError(str(answer["error"]))
        return answer

    def put_in(self, fault: str, *, seed: int) -> Truth:
        """Put a fault in and return what was really done."""
        return decode_truth(self.ask("break", fault=fault, seed=seed))

    def heal(self) -> None:
        """Take back what is in, and wait until the shop runs again."""
        self.ask("heal")

    def stop(self) -> None:
        """Stop the lab and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        if not self._ends(STOP_TIMEOUT_S):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._ends(STOP_TIMEOUT_S)

    def _ends(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if self.child is not None and self.child.poll() is not None:
                return True
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False
