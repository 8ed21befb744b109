"""The MCP conformance suite of the protocol's makers: every scenario for servers is held, or said not to apply and why.

Most of its scenarios call a tool, read a resource or get a prompt that a server has to invent for it alone, such as
`test_simple_text`. Ours has none of those: what it must do then is to say so in the words of the protocol.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clients._house import House
from tests.clients._node import run_tool

pytestmark = pytest.mark.clients("node")

HELD = (
    "server-initialize",
    "ping",
    "tools-list",
    "resources-list",
    "prompts-list",
    "dns-rebinding-protection",
    "server-sse-multiple-streams",
)
OF_THE_SUITE: Mapping[str, str] = {
    "tools-call-simple-text": "test_simple_text",
    "tools-call-image": "test_image_content",
    "tools-call-audio": "test_audio_content",
    "tools-call-embedded-resource": "test_embedded_resource",
    "tools-call-mixed-content": "test_multiple_content_types",
    "tools-call-error": "test_error_handling",
    "tools-call-with-progress": "test_tool_with_progress",
    "tools-call-sampling": "test_sampling",
    "tools-call-elicitation": "test_elicitation",
    "elicitation-sep1034-defaults": "test_elicitation_sep1034_defaults",
    "elicitation-sep1330-enums": "test_elicitation_sep1330_enums",
    "json-schema-2020-12": "json_schema_2020_12_tool",
    "resources-read-text": "test://static-text",
    "resources-read-binary": "test://static-binary",
    "resources-templates-read": "test://template/123/data",
    "prompts-get-simple": "test_simple_prompt",
    "prompts-get-with-args": "test_prompt_with_arguments",
    "prompts-get-embedded-resource": "test_prompt_with_embedded_resource",
    "prompts-get-with-image": "test_prompt_with_image",
}
"""What a scenario wants that only a server of the suite's own has. We never ask a client's model or its user either:
models are governed and paid for here, and people are asked by approvals, which outlive a connection."""
NOT_OFFERED: Mapping[str, str] = {
    "logging-set-level": "we send no log messages to clients: logs are the operator's",
    "tools-call-with-logging": "the same",
    "completion-complete": "we complete no arguments",
    "resources-subscribe": "resources are evidence, which does not change",
    "resources-unsubscribe": "the same",
}
"""Methods that are optional, and why we have them not."""
UNDECIDED: Mapping[str, str] = {
    "server-sse-polling": "it only notes whether a server sends hints about reconnecting, and fails none",
}

Outcomes = Mapping[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def outcomes(open_house: House, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Run the whole suite once."""
    home = tmp_path_factory.mktemp("conformance")
    run_tool("conformance", "server", "--url", f"{open_house.url}/mcp", "--suite", "all", "-o", "out", home=home)
    found = {}
    for written in (home / "out").rglob("checks.json"):
        name = re.fullmatch(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z", written.parent.name)
        assert name, written
        found[name[1]] = json.loads(written.read_text())
    return found


def test_every_scenario_of_the_suite_is_held_or_has_a_reason(outcomes: Outcomes, tmp_path: Path) -> None:
    listed = run_tool("conformance", "list", home=tmp_path).stdout.partition("Client scenarios")[0]
    scenarios = set(re.findall(r"^\s+- ([\w/-]+)", listed, re.MULTILINE))
    assert scenarios == {*HELD, *OF_THE_SUITE, *NOT_OFFERED, *UNDECIDED}
    assert scenarios == set(outcomes)


@pytest.mark.parametrize("scenario", HELD)
def test_a_scenario_passes_with_every_check(outcomes: Outcomes, scenario: str) -> None:
    statuses = [check["status"] for check in outcomes[scenario]]
    assert "SUCCESS" in statuses
    assert set(statuses) <= {"SUCCESS", "INFO"}, outcomes[scenario]


@pytest.mark.parametrize("scenario", OF_THE_SUITE)
def test_what_only_the_suite_has_is_said_not_to_be_there(outcomes: Outcomes, scenario: str) -> None:
    (check,) = outcomes[scenario]
    assert check["status"] == "FAILURE", "it passes: then it belongs among those that are held"
    assert OF_THE_SUITE[scenario] in check["errorMessage"]
    if scenario != "json-schema-2020-12":  # which looks into the list of tools by itself
        assert "-32602" in check["errorMessage"]
        assert "there is no " in check["errorMessage"]


@pytest.mark.parametrize("scenario", NOT_OFFERED)
def test_what_is_not_offered_is_a_method_that_is_not_found(outcomes: Outcomes, scenario: str) -> None:
    (check,) = outcomes[scenario]
    assert check["status"] == "FAILURE", "it passes: then it belongs among those that are held"
    assert "-32601" in check["errorMessage"]
