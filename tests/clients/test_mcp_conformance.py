"""The MCP conformance suite of the protocol's makers: every scenario for servers is held, or said not to apply and why.

Most of its scenarios call tools, resources and prompts that a server has to invent for it (`test_simple_text` and so
on). Those are not ours, and are listed with what they would need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.clients._house import House
from tests.clients._node import run_tool

pytestmark = pytest.mark.clients("node")

HELD = (
    "server-initialize",
    "ping",
    "tools-list",
    "dns-rebinding-protection",
    "server-sse-multiple-streams",
)
_FIXTURE = "calls a tool that a server would have for this suite alone: "
_NO_RESOURCES = "we offer no resources: evidence is asked for by a tool, which knows who asks"
_NO_PROMPTS = "we offer no prompts: skills belong to our agents, not to those of others"
APART: Mapping[str, str] = {
    "logging-set-level": "we send no log messages to clients: logs are the operator's",
    "completion-complete": "we complete no arguments",
    "tools-call-simple-text": _FIXTURE + "test_simple_text",
    "tools-call-image": _FIXTURE + "test_image_content; our answers are text",
    "tools-call-audio": _FIXTURE + "test_audio_content; our answers are text",
    "tools-call-embedded-resource": _FIXTURE + "test_embedded_resource; our answers are text",
    "tools-call-mixed-content": _FIXTURE + "test_multiple_content_types",
    "tools-call-with-logging": _FIXTURE + "test_tool_with_logging",
    "tools-call-error": _FIXTURE + "test_error_handling",
    "tools-call-with-progress": _FIXTURE + "test_tool_with_progress",
    "tools-call-sampling": "we never ask a client's model: ours are governed and paid for here",
    "tools-call-elicitation": "we ask people by approvals, which outlive a connection",
    "json-schema-2020-12": _FIXTURE + "json_schema_2020_12_tool",
    "elicitation-sep1034-defaults": "we ask people by approvals, which outlive a connection",
    "elicitation-sep1330-enums": "we ask people by approvals, which outlive a connection",
    "server-sse-polling": _FIXTURE + "test_reconnection",
    "resources-list": _NO_RESOURCES,
    "resources-read-text": _NO_RESOURCES,
    "resources-read-binary": _NO_RESOURCES,
    "resources-templates-read": _NO_RESOURCES,
    "resources-subscribe": _NO_RESOURCES,
    "resources-unsubscribe": _NO_RESOURCES,
    "prompts-list": _NO_PROMPTS,
    "prompts-get-simple": _NO_PROMPTS,
    "prompts-get-with-args": _NO_PROMPTS,
    "prompts-get-embedded-resource": _NO_PROMPTS,
    "prompts-get-with-image": _NO_PROMPTS,
}


def test_every_scenario_of_the_suite_is_held_or_has_a_reason(tmp_path: Path) -> None:
    listed = run_tool("conformance", "list", home=tmp_path).stdout
    servers = listed.partition("Client scenarios")[0]
    assert set(re.findall(r"^\s+- ([\w/-]+)", servers, re.MULTILINE)) == {*HELD, *APART}


@pytest.mark.parametrize("scenario", HELD)
def test_a_scenario_passes_with_every_check(open_house: House, tmp_path: Path, scenario: str) -> None:
    url = f"{open_house.url}/mcp"
    told = run_tool("conformance", "server", "--url", url, "--scenario", scenario, "-o", "out", home=tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    (written,) = (tmp_path / "out").rglob("checks.json")
    checks = json.loads(written.read_text())
    assert checks
    assert {check["status"] for check in checks} <= {"SUCCESS", "INFO"}, checks


@pytest.mark.parametrize("scenario", [name for name, why in APART.items() if why in {_NO_RESOURCES, _NO_PROMPTS}])
def test_what_does_not_apply_is_refused_in_the_words_of_the_protocol(
    open_house: House, tmp_path: Path, scenario: str
) -> None:
    url = f"{open_house.url}/mcp"
    told = run_tool("conformance", "server", "--url", url, "--scenario", scenario, "-o", "out", home=tmp_path)
    assert told.returncode != 0, "it passes: then it belongs among those that are held"
