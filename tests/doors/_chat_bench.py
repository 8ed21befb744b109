"""The command line with models that play a part on a real port, and a person at a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import _canaries
from tests._quell import QUELL, environment
from tests.doors._model_bench import Answer, Provider, delta, end, provider, sse, usage

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")

_ERASES = re.compile(rb"\x1b\[(?:[?]1049h|[?]47h|[1-3]J)")


@contextmanager
def played(*answers: Answer) -> Iterator[Provider]:
    """Run a provider in a thread of its own: it answers each request with the next answer, and the last for ever."""
    there: list[Provider] = []
    is_there = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def run() -> None:
        async with provider(*answers) as state:
            there.append(state)
            is_there.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert is_there.wait(10)
        yield there[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def says(text: str, *, gap_s: float = 0.0) -> Answer:
    """Answer with a text, word by word."""
    words = [delta(piece) for piece in re.findall(r"\S+\s*", text)]
    return sse(*words, end(), usage(100, len(words)), gap_s=gap_s)


def calls(tool: str, identifier: str = "c1", **arguments: object) -> Answer:
    """Want a tool called."""
    function = {"name": tool, "arguments": json.dumps(arguments)}
    wanted = {"index": 0, "id": identifier, "type": "function", "function": function}
    return sse(delta(tool_calls=[wanted]), end("tool_calls"), usage(100, 10))


def agent_file(at: Path, url: str, *, more: str = "", agent: str = "") -> None:
    """Write an agent whose model is played, and a quell.toml that names it beside what stands there."""
    (at / "agent.toml").write_text(
        f'[agent]\nname = "sre"\nsystem_prompt = "You look after a small shop."\n{agent}\n'
        f'[agent.llm]\nprovider = "openai"\nmodel = "played"\napi_key = "none"\nbase_url = "{url}"\n{more}'
    )
    project = at / "quell.toml"
    project.write_text('agents = "agent.toml"\n' + (project.read_text() if project.exists() else ""))


@dataclass(slots=True)
class Terminal:
    """A `quell` process at a terminal."""

    pid: int
    descriptor: int
    seen: str = ""
    code: int | None = None

    def wait(self, words: str, *, timeout_s: float = 30.0) -> str:
        """Read until the words came, and return what came until then; what was read before does not count again."""
        deadline = time.monotonic() + timeout_s
        while words not in self.seen:
            assert time.monotonic() < deadline, f"{words!r} did not come; there was:\n{self.seen}"
            if not self._read():
                assert words in self.seen, f"{words!r} did not come before the end; there was:\n{self.seen}"
        at = self.seen.index(words) + len(words)
        came, self.seen = self.seen[:at], self.seen[at:]
        return came

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self.descriptor, text.encode())

    def end(self, *, timeout_s: float = 30.0) -> str:
        """Read to the end, and keep the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline, f"it did not end; there was:\n{self.seen}"
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.seen

    def _read(self) -> bool:
        if not select.select([self.descriptor], [], [], 0.2)[0]:
            return True
        try:
            raw = os.read(self.descriptor, 65536)
        except OSError:
            return False
        # What was printed stays: no other screen, nothing erased but the line that is being typed.
        assert not _ERASES.search(raw), raw
        text = _ESCAPES.sub("", raw.decode(errors="replace"))
        _canaries.SEARCH.text("a terminal", text)
        self.seen += text
        return bool(raw)


@contextmanager
def terminal(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """Start a command at a terminal of 100 columns; at the end nothing of it is left."""
    told = {**environment(cwd, env), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(QUELL[0], [*QUELL, *arguments], told)
    sitting = Terminal(pid, descriptor)
    try:
        yield sitting
    finally:
        if sitting.code is None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        os.close(descriptor)
