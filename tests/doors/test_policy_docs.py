"""What the documents about policy say is what the code does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from quell.domain import ToolClass
from quell.governance import PolicySet
from tests.doors._policy_bench import SCALE, SERVICE, TOOLS, load, source, tool

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = (DOCS / "how-to" / "write-a-policy.md").read_text()
EXPLANATION = (DOCS / "explanation" / "policy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", HOW_TO, re.DOTALL)


def test_the_policies_and_the_table_of_the_how_to_are_true() -> None:
    restart = tool(
        "k8s.restart", ToolClass.REVERSIBLE, properties=SERVICE, required=("service",), resource=SCALE.resource
    )
    restart = replace(restart, resource=replace(SCALE.resource, units=""))
    (cedar,), (table,) = blocks("cedar"), blocks("toml")
    policies = load(PolicySet.pack("copilot"), source(cedar), tools=(*TOOLS, restart))
    report = policies.run_table(table)
    assert report.cases == 3
    assert [str(mismatch) for mismatch in report.mismatches] == []


def test_the_example_of_the_how_to_runs() -> None:
    for block in blocks("python"):
        exec(compile(block, "write-a-policy.md", "exec"), {})


def test_the_explanation_names_all_that_policies_can_say() -> None:
    from quell.governance._policy_schema import CONTEXT, HISTORY, PRINCIPAL, RESOURCE  # noqa: PLC0415  # names only

    for name in (*CONTEXT, *HISTORY, *PRINCIPAL, *RESOURCE):
        assert f"`{name}`" in EXPLANATION or f"context.{name}`" in EXPLANATION, name
    for pack in ("copilot", "reversible-auto", "dark-factory"):
        assert f"`{pack}`" in EXPLANATION
