"""What an agent's file says of its window is what its requests leave free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from quell.app._agent_minds import open_mind, role_of, worker_of
from quell.app._in_force import InForce
from quell.config import load_agents
from quell.domain import ChatAsk, Message
from quell.memory import Skills
from quell.models import Limits
from tests.doors._model_bench import NOW

_FILE = """
memory_dir = "runs"
[agent]
name = "sre"
system_prompt = "Find out."
[agent.llm]
provider = "builtin"
context_window = 8000
[agent.scratchpad]
{agent}
[orchestration.worker.logs]
description = "Reads logs."
preamble = "Read."
[orchestration.worker.logs.scratchpad]
{worker}
"""


@pytest.mark.parametrize(
    ("agent", "worker", "margins"),
    [
        ("enabled = true\ncontext_safety_margin = 0.5", "enabled = true\ncontext_safety_margin = 0.1", (0.5, 0.1)),
        ("enabled = true\ncontext_safety_margin = 1.5", "enabled = true\ncontext_safety_margin = -1.0", (0.95, 0.0)),
        ("context_safety_margin = 0.5", "", (0.2, 0.2)),
    ],
)
def test_the_margin_of_a_scratchpad_is_kept_by_the_agent_and_by_its_worker(
    tmp_path: Path, agent: str, worker: str, margins: tuple[float, float]
) -> None:
    (tmp_path / "a.toml").write_text(_FILE.format(agent=agent, worker=worker))
    env: Mapping[str, str] = {}
    (settings,) = load_agents(tmp_path / "a.toml", env=env).agents
    mind = open_mind(
        settings,
        in_force=InForce(policy="p", tools="t", settings="s"),
        servers={},
        clock=lambda: NOW,
        env=env,
        limits=Limits(time.monotonic),
        on_change=lambda _model, _error: None,
        price_of=lambda _provider, _model: None,
        skills_of=lambda _settings: Skills.load(()),
    )
    ask = ChatAsk(agent="sre", messages=(Message(role="user", text="Why?"),))
    assert role_of(mind, ask, tools=()).window_margin == margins[0]
    assert worker_of(mind, "logs", tools=()).role.window_margin == margins[1]


def test_a_key_that_is_read_and_not_used_is_told(tmp_path: Path) -> None:
    route = '[hitl.route]\nmode = "webhook"\nurl = "https://h/x"\ntool_headers_from_response = { "X-Ticket" = "X-Ticket" }\n'
    (tmp_path / "a.toml").write_text(_FILE.format(agent="", worker="") + route)
    warned = [problem.path for problem in load_agents(tmp_path / "a.toml", env={}).warnings]
    assert "hitl.route.tool_headers_from_response" in warned
