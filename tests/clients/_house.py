"""A real `quell serve` with agents whose models are scripted, built in, or a real small one."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import _canaries
from tests._quell import QUELL, environment, quell
from tests.clients._script import Script

KEY_OF_MODEL = "MODEL_KEY"
_UP_S = 60.0
_SETTINGS = """
agents = "agents"

[server]
port = 0
a2a = true

[detection]
enabled = false
"""
_AGENT = """
[agent]
name = "{name}"
system_prompt = "You look after a shop. Answer in one sentence."
description = "{description}"
model_owner = "tests"
enable_client_tools = true
hidden = {hidden}

[agent.llm]
{llm}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """Where it answers, and what it stands on."""

    url: str
    room: Path

    @property
    def v1(self) -> str:
        """Return the base URL that clients of OpenAI's protocol want."""
        return f"{self.url}/v1"

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside the server."""
        return quell(*arguments, cwd=self.room, env={KEY_OF_MODEL: _canaries.IN_SETTINGS})


def agent_file(name: str, llm: Mapping[str, object], *, hidden: str = "false", description: str = "") -> str:
    """Return an agent as a file says it."""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in llm.items())
    return _AGENT.format(name=name, llm=lines, hidden=hidden, description=description or f"The agent {name}.")


def scripted_llm(script: Script) -> dict[str, str]:
    """Return how an agent reaches the scripted provider, with a key that must never be seen."""
    key = f"{{{{ env.{KEY_OF_MODEL} }}}}"
    return {"provider": "openai", "model": "m-1", "api_key": key, "base_url": script.url}


def agents_of(script: Script) -> dict[str, str]:
    """Return the agents of the house: one that is scripted, one without a model, and one that no list shows."""
    return {
        "sre": agent_file("sre", scripted_llm(script)),
        "evidence": agent_file("evidence", {"provider": "builtin"}),
        "shy": agent_file("shy", scripted_llm(script), hidden="true"),
    }


@contextmanager
def house(room: Path, agents: Mapping[str, str], *, settings: str = "") -> Iterator[House]:
    """Run a server over these agents until the context ends."""
    (room / "agents").mkdir(parents=True)
    for name, text in agents.items():
        (room / "agents" / f"{name}.toml").write_text(text)
    (room / "quell.toml").write_text(_SETTINGS + settings)
    # What it says goes to a file: nobody reads a pipe while clients talk to it.
    with (room / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*QUELL, "serve"],
            cwd=room,
            env=environment(room, {KEY_OF_MODEL: _canaries.IN_SETTINGS}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield House(url=_url_of(server, room), room=room)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=10)


def _url_of(server: subprocess.Popen[bytes], room: Path) -> str:
    ends_at = time.monotonic() + _UP_S
    while time.monotonic() < ends_at:
        assert server.poll() is None, (room / "serve.log").read_text()
        said = room / ".quell" / "serve.json"
        if said.exists() and (url := json.loads(said.read_text() or "{}").get("url")):
            return str(url)
        time.sleep(0.05)
    raise AssertionError(f"the server did not come up:\n{(room / 'serve.log').read_text()}")
