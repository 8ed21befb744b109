"""What `quell ask` costs until its first request reaches a model: processor time of the whole process, in this process's clock.

python -m bench.bench_ask

The model is played on loopback. Beside it, in turns and so on the same machine: one request by the SDK of OpenAI, by bare
httpx, and Python alone.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from bench.bench_cli import cpu_ms, environment

M = TypeVar("M", bound=ThreadingHTTPServer)
ROUNDS = 7
_AGENT = (
    '[agent]\nname = "sre"\nsystem_prompt = "You look after a small shop."\n'
    '[agent.llm]\nprovider = "openai"\nmodel = "played"\napi_key = "none"\nbase_url = "{url}"\n'
)
_SDK = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
for _ in client.chat.completions.create(model="played", stream=True, messages=[{"role": "user", "content": "hi"}]):
    pass
"""
_BARE = """
import sys, httpx
body = {"model": "played", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
with httpx.Client() as client, client.stream("POST", sys.argv[1] + "/chat/completions", json=body) as answer:
    answer.read()
"""


class _Model(ThreadingHTTPServer):
    """Says one word to everybody, and notes when it was asked and what the process that is watched had used by then."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.process: int | None = None
        self.asked: list[tuple[float, float]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def note(self) -> None:
        if self.process is not None:
            # The kernel's name for the processor clock of another process, as clock_getcpuclockid(3) makes it.
            self.asked.append((time.clock_gettime((~self.process << 3) | 2), time.monotonic()))


class _Answer(BaseHTTPRequestHandler):
    server: _Model

    def do_POST(self) -> None:
        self.server.note()
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, end in (({"role": "assistant", "content": "All is well."}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            told = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "played", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


@contextmanager
def serving(model: M) -> Iterator[M]:
    """Have a played model answer until the block ends."""
    with model:
        thread = threading.Thread(target=model.serve_forever, daemon=True)
        thread.start()
        try:
            yield model
        finally:
            model.shutdown()
            thread.join()


def _until_asked(command: Sequence[str], *, model: _Model, env: Mapping[str, str], at: Path) -> tuple[float, float]:
    """Run a command to its end; return what it had used, and how long it took, when the model was asked."""
    model.asked.clear()
    started = time.monotonic()
    with subprocess.Popen(command, env=env, cwd=at, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        model.process = process.pid
        said, _ = process.communicate(timeout=60)
    if process.returncode != 0 or not model.asked:
        raise RuntimeError(f"{command[:3]} ended with {process.returncode} and asked no model: {said[-500:]!r}")
    used_s, asked_s = model.asked[0]
    return 1000 * used_s, 1000 * (asked_s - started)


def measure() -> dict[str, object]:
    """Measure `quell ask` and its peers in turns."""
    with tempfile.TemporaryDirectory() as directory, serving(_Model()) as model:
        at = Path(directory)
        (at / "agent.toml").write_text(_AGENT.format(url=model.url))
        (at / "quell.toml").write_text('agents = "agent.toml"\n')
        env = environment(str(at / "bytecode")) | {"NO_COLOR": "1"}
        env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        peers = {"openai": _SDK, "httpx": _BARE}
        commands = {"ask": [sys.executable, "-m", "quell", "ask", "is anything wrong?"]}
        commands |= {
            name: [sys.executable, "-c", code, model.url] for name, code in peers.items() if find_spec(name) is not None
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        bare: list[float] = []
        for turn in range(ROUNDS + 1):  # the first one writes the bytecode
            for name, command in commands.items():
                figures = _until_asked(command, model=model, env=env, at=at)
                if turn:
                    taken[name].append(figures)
                shutil.rmtree(at / ".quell", ignore_errors=True)
            bare.append(cpu_ms([sys.executable, "-c", "pass"], env=env))
    return _figures(taken, bare)


def _figures(taken: Mapping[str, Sequence[tuple[float, float]]], bare: Sequence[float]) -> dict[str, object]:
    told: dict[str, object] = {"rounds": ROUNDS, "bare_python_cpu_ms": round(statistics.median(bare), 1)}
    for name, figures in taken.items():
        told[f"{name}_cpu_ms"] = round(statistics.median(cpu for cpu, _ in figures), 1)
        told[f"{name}_cpu_ms_min"] = round(min(cpu for cpu, _ in figures), 1)
        told[f"{name}_wall_ms"] = round(statistics.median(wall for _, wall in figures), 1)
        if name != "ask":
            ratios = [ours[0] / theirs[0] for ours, theirs in zip(taken["ask"], figures, strict=True)]
            told[f"vs_{name}"] = round(statistics.median(ratios), 2)
    return told


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
