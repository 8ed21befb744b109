"""Quell as anybody else uses it: a server process, its HTTP interface and its command line."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from quell_lab._child import parent_environment, tied

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
REQUEST_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0
FINAL_STAGES = frozenset({"resolved"})


class ProductError(Exception):
    """Quell did not do what its interface promises."""


@dataclass(slots=True)
class Server:
    """One `quell serve` that ends with this process."""

    config: Path
    state: Path
    url: str
    process: subprocess.Popen[bytes]
    _stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def start(cls, directory: Path) -> Server:
        """Write a configuration, start the server on a free port, and wait until it answers."""
        directory.mkdir(parents=True, exist_ok=True)
        state = (directory / "state").resolve()
        config = directory / "quell.toml"
        config.write_text(f'state_dir = "{state}"\n\n[server]\nport = 0\n')
        command = [sys.executable, "-m", "quell", "serve", "--config", str(config)]
        with (directory / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                tied(command, signal_name="SIGTERM"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=parent_environment(),
                # A group of its own: Ctrl-C in a terminal reaches the caller alone, which then ends it in order.
                start_new_session=True,
            )
        try:
            return cls(
                config=config, state=state, url=_wait_url(state, process, directory / "serve.log"), process=process
            )
        except BaseException:
            _end(process)
            raise

    def get(self, path: str) -> dict[str, object]:
        """Return one JSON document of the interface."""
        document: dict[str, object] = json.loads(self.raw(path))
        return document

    def raw(self, path: str) -> bytes:
        """Return the body of one answer; raise ProductError when it is not a 200."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProductError(f"GET {path}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ProductError(f"GET {path}: {answer.status} {body[:200].decode(errors='replace')}")
        return body

    def incidents(self) -> list[dict[str, object]]:
        """Return the incidents that Quell knows."""
        found = self.get("/api/v1/incidents").get("incidents", [])
        assert isinstance(found, list)
        return found

    def open_incidents(self) -> list[dict[str, object]]:
        """Return the incidents that are not over."""
        return [each for each in self.incidents() if str(each.get("stage")) not in FINAL_STAGES]

    def case(self, incident: str) -> dict[str, object]:
        """Return the case file of an incident."""
        document = self.get(f"/api/v1/incidents/{incident}")
        found = document.get("case", document)
        assert isinstance(found, dict)
        return found

    def follow(self, *, after: int = 0) -> Iterator[dict[str, object]]:
        """Yield events as they happen, until the server ends or `stop` is called."""
        last = after
        while not self._stopping.is_set() and self.process.poll() is None:
            connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=REQUEST_TIMEOUT_S)
            try:
                connection.request("GET", f"/api/v1/events?after={last}", headers={"accept": "application/x-ndjson"})
                answer = connection.getresponse()
                while not self._stopping.is_set() and (line := answer.readline()):
                    if line.strip():
                        event = json.loads(line)
                        last = int(event.get("seq", last))
                        yield event
            except (OSError, http.client.HTTPException, ValueError):
                pass
            finally:
                connection.close()
            # Quiet for a while, or the stream ended: ask again from where it was.
            self._stopping.wait(0.5)

    def firing(self) -> list[dict[str, object]]:
        """Return the alerts that have not ended."""
        found = self.get("/api/v1/alerts").get("alerts", [])
        assert isinstance(found, list)
        return [each for each in found if each.get("ends_at") is None]

    def show(self, incident: str) -> str:
        """Return what `quell incident show` prints."""
        return self._command("incident", "show", incident)

    def close_incident(self, incident: str, *, reason: str) -> None:
        """Say that an incident is over, as the person on call does."""
        self._command("incident", "close", incident, "--reason", reason)

    def _command(self, *words: str) -> str:
        with subprocess.Popen(
            tied([sys.executable, "-m", "quell", *words, "--config", str(self.config)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=parent_environment(),
        ) as command:
            try:
                text, problem = command.communicate(timeout=COMMAND_TIMEOUT_S)
            except BaseException:
                command.kill()
                raise
        if command.returncode != 0:
            raise ProductError(f"quell {' '.join(words)}: {problem.decode(errors='replace').strip()[-300:]}")
        return text.decode(errors="replace")

    def stop(self) -> None:
        """End the server in order, and at once when it does not."""
        self._stopping.set()
        _end(self.process)


def _wait_url(state: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ProductError(f"quell serve ended with code {process.returncode}: {' / '.join(tail)}")
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads((state / "serve.json").read_text())["url"])
        time.sleep(0.1)
    raise ProductError(f"quell serve was not ready within {START_TIMEOUT_S:g} s, see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
