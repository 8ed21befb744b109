"""The command line beside HolmesGPT's, one question each in turns: until the first request, the first request, and a turn.

python -m bench.bench_peer

Both are asked the same, by the same played model on loopback, which wants one tool that does nothing: theirs a command of
a custom toolset, ours a tool of an MCP server over pipes. HolmesGPT is large and stands in an environment of its own:
`make bench-peer` installs it into .peers. Where it is not there, what is ours is measured alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bpe_openai

from bench.bench_ask import serving
from bench.bench_cli import environment

ROUNDS = 3
PEER = Path(".peers") / "bin" / "holmes"
ROOT = Path(__file__).parents[1]
_QUESTION = "Is anything wrong with the shop?"
_TOOL = "shop_status"
_TIMEOUT_S = 120
_AGENT = """[agent]
name = "sre"
system_prompt = "You look after a small shop."
[agent.llm]
provider = "openai"
model = "gpt-4o"
api_key = "none"
base_url = "{url}"
[mcp.servers.shop]
transport = "stdio"
cmd = ["{python}"]
args = ["{server}", "tools.json"]
[quell]
reads = ["*"]
"""
_TOOLSET = f"""toolsets:
  shop:
    description: "a shop"
    enabled: true
    tools:
      - name: "{_TOOL}"
        description: "Tell the state of the shop."
        command: "echo all is well"
"""
_DEFINITION = {
    "name": _TOOL,
    "description": "Tell the state of the shop.",
    "inputSchema": {"type": "object", "properties": {}},
}


@dataclass(slots=True)
class _Seen:
    """What came of one command."""

    asked: list[tuple[float, float]] = field(default_factory=list)
    """When each request came, and what the process had used by then."""
    answered_s: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


class _Model(ThreadingHTTPServer):
    """Wants the tool first, and is content with what it says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.process: int | None = None
        self.seen = _Seen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def note(self, body: bytes) -> None:
        assert self.process is not None, "nobody else asks"
        # The kernel's name for the processor clock of another process, as clock_getcpuclockid(3) makes it.
        self.seen.asked.append((time.monotonic(), time.clock_gettime((~self.process << 3) | 2)))
        self.seen.bodies.append(body)


class _Answer(BaseHTTPRequestHandler):
    server: _Model

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.note(raw)
        body = json.loads(raw)
        names = [tool["function"]["name"] for tool in body.get("tools", [])]
        wanted = next((name for name in names if name.endswith(_TOOL)), "")
        is_first = wanted and not any(message["role"] == "tool" for message in body["messages"])
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": wanted, "arguments": "{}"}}
        said: dict[str, Any] = {"role": "assistant", "content": None if is_first else "All is well."}
        said |= {"tool_calls": [call]} if is_first else {}
        end = "tool_calls" if is_first else "stop"
        whole = {"id": "x", "created": 1, "model": "gpt-4o"}
        whole["usage"] = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        if body.get("stream"):
            parts = [
                {"index": 0, "delta": said, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": end},
            ]
            kind = {"object": "chat.completion.chunk"}
            chunks = [json.dumps({**whole, **kind, "choices": [part]}) for part in parts]
            out, media = "".join(f"data: {chunk}\n\n" for chunk in (*chunks, "[DONE]")).encode(), "text/event-stream"
        else:
            choice = {"index": 0, "message": said, "finish_reason": end}
            out = json.dumps({**whole, "object": "chat.completion", "choices": [choice]}).encode()
            media = "application/json"
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
        self.server.seen.answered_s.append(time.monotonic())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


def _run(command: Sequence[str], *, model: _Model, env: Mapping[str, str], at: Path) -> dict[str, float]:
    """Run a command to its end; return what it took until each request."""
    model.seen = _Seen()
    started_s = time.monotonic()
    with subprocess.Popen(
        command, env=env, cwd=at, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        model.process = process.pid
        said, _ = process.communicate(timeout=_TIMEOUT_S)
    seen = model.seen
    if process.returncode != 0 or len(seen.asked) != 2:
        raise RuntimeError(
            f"{command[0]} ended with {process.returncode} after {len(seen.asked)} requests: {said[-800:]!r}"
        )
    (first_s, used_s), (second_s, used_by_then_s) = seen.asked
    body = json.loads(seen.bodies[0])
    shown = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return {
        "first_wall_ms": 1000 * (first_s - started_s),
        "first_cpu_ms": 1000 * used_s,
        "turn_wall_ms": 1000 * (second_s - seen.answered_s[0]),
        "turn_cpu_ms": 1000 * (used_by_then_s - used_s),
        "first_tokens": len(bpe_openai.get_encoding("o200k_base").encode_ordinary(shown)),
        "tools": len(body.get("tools", [])),
    }


def _ours(at: Path, url: str) -> tuple[list[str], dict[str, str]]:
    (at / "tools.json").write_text(json.dumps([_DEFINITION]))
    server = ROOT / "tests" / "_tool_server.py"
    (at / "agent.toml").write_text(_AGENT.format(url=url, python=sys.executable, server=server))
    (at / "quell.toml").write_text('agents = "agent.toml"\n[store]\nurl = "http://127.0.0.1:9"\n')
    env = environment(str(at / "bytecode")) | {"NO_COLOR": "1"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return [sys.executable, "-m", "quell", "ask", _QUESTION], env


def _theirs(at: Path, url: str) -> tuple[list[str], dict[str, str]]:
    (at / "tools.yaml").write_text(_TOOLSET)
    env = {"HOME": str(at), "PATH": os.environ["PATH"], "OPENAI_API_KEY": "none", "OPENAI_API_BASE": url}
    # Without it the first thing that it does is to wait for a list of prices from elsewhere.
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    words = ["ask", _QUESTION, "--model", "openai/gpt-4o", "-t", "tools.yaml", "--no-interactive"]
    return [str(PEER.absolute()), *words], env


def measure() -> dict[str, object]:
    """Ask both in turns; the first round, which writes what is kept for the next start, does not count."""
    told: dict[str, object] = {"rounds": ROUNDS, "is_peer_here": PEER.exists()}
    with tempfile.TemporaryDirectory() as directory, serving(_Model()) as model:
        makers = {"ours": _ours} | ({"theirs": _theirs} if PEER.exists() else {})
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
        for turn in range(ROUNDS + 1):
            for name, make in makers.items():
                at = Path(directory) / name
                at.mkdir(exist_ok=True)
                command, env = make(at, model.url)
                figures = _run(command, model=model, env=env, at=at)
                if turn:
                    taken[name].append(figures)
    for name, rounds in taken.items():
        for figure in rounds[0]:
            told[f"{name}_{figure}"] = round(statistics.median(each[figure] for each in rounds), 1)
    return told


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
