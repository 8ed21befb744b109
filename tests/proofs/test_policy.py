"""The proofs of the policy kernel hold, and they would see a kernel that is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import pytest

from proofs import policy
from quell.domain import ResourceRule, ServerIdentity, Tool
from quell.governance import pin_of
from quell.tools._pins import definition_digest


@pytest.mark.timeout(60)
def test_no_call_goes_through_on_a_policy_that_fails() -> None:
    result = policy.policy_errors_deny("ci", 3)
    assert (result.violations, result.failures) == (0, ())
    assert result.cases >= 500


@pytest.mark.timeout(60)
def test_a_kernel_that_ignores_cedars_diagnostics_is_caught() -> None:
    result = policy.policy_errors_deny("ci", 3, policy.ErrorBlind)
    assert result.violations > 100


def test_every_change_of_a_definition_changes_the_pin() -> None:
    result = policy.definition_pinned("ci", 1)
    assert (result.violations, result.failures) == (0, ())
    assert result.is_exhaustive
    assert result.cases > 200


PARTS = ["annotations", "description", "_meta", "instructions", "url", "timeout_s", "resource", "revert", "tool_class"]


@pytest.mark.parametrize("part", PARTS)
def test_a_pin_that_leaves_out_one_part_is_caught(part: str) -> None:
    def forgetful(definition: Mapping[str, object], *, tool: Tool, server: Mapping[str, object]) -> str:
        fixed = {"timeout_s": 1.0, "resource": ResourceRule(), "revert": "", "tool_class": "read"}
        blind = replace(tool, **{part: fixed[part]}) if part in fixed else tool  # type: ignore[arg-type]  # one field
        return pin_of(
            {key: value for key, value in definition.items() if key != part},
            tool=blind,
            server={key: value for key, value in server.items() if key != part},
        )

    assert policy.definition_pinned("ci", 1, forgetful).violations > 0


@pytest.mark.parametrize("part", ["annotations", "outputSchema", "address", "instructions", "product", "version"])
def test_a_connection_that_leaves_out_one_part_when_it_compares_is_caught(part: str) -> None:
    def forgetful(definition: Mapping[str, object], identity: ServerIdentity) -> str:
        seen = {key: value for key, value in definition.items() if key != part}
        known = {field.name for field in fields(ServerIdentity)}
        return definition_digest(seen, replace(identity, **{part: ""}) if part in known else identity)

    result = policy.definition_pinned("ci", 1, digest=forgetful)
    assert any("taken for what was pinned" in failure for failure in result.failures)
