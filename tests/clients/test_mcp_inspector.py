"""The MCP Inspector of the protocol's makers: it lists our tools and calls them, over HTTP and over pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from tests import _canaries
from tests._quell import environment
from tests.clients._house import KEY_OF_MODEL, House
from tests.clients._node import run_tool
from tests.clients._script import Script, said

pytestmark = pytest.mark.clients("node")

TOOLS = {"ask", "investigate", "brief", "what_changed", "evidence", "incidents", "memory", "approvals"}
Way = Literal["http", "pipes"]


def inspect(way: Way, house: House, home: Path, *arguments: str) -> Any:
    """Return what the Inspector read; it fails with what it said instead."""
    target: Sequence[str] = (f"{house.url}/mcp", "--transport", "http")
    if way == "pipes":
        env = environment(home, {KEY_OF_MODEL: _canaries.IN_SETTINGS})
        wanted = {key: env[key] for key in (KEY_OF_MODEL, "PYTHONPATH", "PYTHONPYCACHEPREFIX", "HOME") if key in env}
        given = [part for key, value in wanted.items() for part in ("-e", f"{key}={value}")]
        target = (sys.executable, "-m", "quell", "mcp", "--cwd", str(home), *given)
        (home / "agents").mkdir(exist_ok=True)
        for file in (house.room / "agents").iterdir():
            (home / "agents" / file.name).write_text(file.read_text())
        (home / "quell.toml").write_text((house.room / "quell.toml").read_text())
    told = run_tool("mcp-inspector", "--cli", *target, *arguments, home=home)
    assert told.returncode == 0, told.stdout + told.stderr
    return json.loads(told.stdout)


@pytest.mark.parametrize("way", ["http", "pipes"])
def test_it_lists_our_tools_with_schemas_and_what_they_do_to_the_world(
    open_house: House, tmp_path: Path, way: Way
) -> None:
    tools = {tool["name"]: tool for tool in inspect(way, open_house, tmp_path, "--method", "tools/list")["tools"]}
    assert set(tools) >= TOOLS
    for tool in tools.values():
        assert tool["description"]
        assert tool["inputSchema"]["type"] == "object"
    assert tools["incidents"]["annotations"]["readOnlyHint"] is True


@pytest.mark.parametrize("way", ["http", "pipes"])
def test_it_asks_an_agent_and_reads_the_answer(open_house: House, script: Script, tmp_path: Path, way: Way) -> None:
    question = f"Ask by the inspector ({way})."
    script.on(question, said("Inspected."))
    told = inspect(
        way, open_house, tmp_path,
        "--method", "tools/call", "--tool-name", "ask", "--tool-arg", f"question={question}", "agent=sre",
    )  # fmt: skip
    assert told.get("isError") in {None, False}, told
    assert "Inspected." in json.dumps(told["content"])


def test_a_tool_that_is_not_there_and_arguments_that_do_not_fit_are_errors(open_house: House, tmp_path: Path) -> None:
    target = (f"{open_house.url}/mcp", "--transport", "http", "--method", "tools/call")
    lost = run_tool("mcp-inspector", "--cli", *target, "--tool-name", "no_such_tool", home=tmp_path)
    assert lost.returncode != 0 or json.loads(lost.stdout)["isError"] is True
    wrong = run_tool("mcp-inspector", "--cli", *target, "--tool-name", "ask", home=tmp_path)
    assert wrong.returncode != 0 or json.loads(wrong.stdout)["isError"] is True
