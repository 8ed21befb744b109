"""A pin names one definition: the tool of another pin is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quell.domain import RefusedError
from quell.governance import pin_of
from tests.doors._policy_bench import SCALE, decide, load


def test_a_pin_covers_the_definition_the_server_and_what_people_set() -> None:
    wire = {"name": "scale", "description": "Set it.", "inputSchema": {"type": "object"}}
    first = pin_of(wire, tool=SCALE, server={"command": "k8s-tools"})
    assert first.startswith("sha256:")
    assert first == pin_of(wire, tool=replace(SCALE, pin="another"), server={"command": "k8s-tools"})
    others = {
        pin_of({**wire, "description": "Set it!"}, tool=SCALE, server={"command": "k8s-tools"}),
        pin_of(wire, tool=SCALE, server={"command": "k8s-tool"}),
        pin_of(wire, tool=SCALE),
        pin_of(wire, tool=replace(SCALE, timeout_s=61), server={"command": "k8s-tools"}),
    }
    assert len({first, *others}) == 5


def test_a_definition_that_is_no_strict_json_cannot_be_pinned() -> None:
    for broken in ({"weight": float("nan")}, {"n": 2**60}, {"text": "\ud800"}, {"x": object()}):
        with pytest.raises(RefusedError):
            pin_of(broken, tool=SCALE)


def test_a_call_frozen_for_another_definition_is_denied() -> None:
    policies = load('@id("all") permit (principal, action, resource);')
    assert decide(policies, SCALE).decision == "permit"
    for changed in (replace(SCALE, pin="sha256:new"), replace(SCALE, name="k8s.scale2")):
        verdict = decide(policies, changed, arguments={"service": "web", "environment": "prod", "replicas": 3})
        assert (verdict.decision, verdict.policies) == ("deny", ("quell.pin",))
