"""Authority is handed on without growing: an agent has what it, its workflow and its person all have."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.domain import (
    AgentGrant,
    ConfigError,
    Level,
    Principal,
    WorkflowGrant,
    is_person,
    may_do,
    may_use,
    meet_globs,
    on_behalf_of,
)

ALICE = Principal(user="alice", roles=("viewer", "operator"), scopes=("tool:logs.*", "tool:k8s.*", "verb:run.*"))
AGENT = AgentGrant(name="sre", tools=("logs.*", "k8s.get*"), roles=("operator", "admin"))
FLOW = WorkflowGrant(name="triage", digest="sha256:1", tools=("*",), stage="canary", level=Level.REVERSIBLE)

GLOBS = st.text(alphabet="ab*", min_size=1, max_size=6)
WORDS = ["".join(letters) for size in range(7) for letters in product("ab", repeat=size)]


def matches(glob: str, word: str) -> bool:
    """Match by the definition, sharing nothing with the product."""
    reach = {0}
    for letter in glob:
        if letter == "*":
            reach = set(range(min(reach), len(word) + 1)) if reach else set()
        else:
            reach = {at + 1 for at in reach if at < len(word) and word[at] == letter}
    return len(word) in reach


@given(one=st.lists(GLOBS, max_size=3), other=st.lists(GLOBS, max_size=3))
def test_the_intersection_of_globs_matches_exactly_what_both_match(one: list[str], other: list[str]) -> None:
    met = meet_globs(tuple(one), tuple(other))
    for word in WORDS:
        both = any(matches(glob, word) for glob in one) and any(matches(glob, word) for glob in other)
        assert any(matches(glob, word) for glob in met) is both, (word, met)


def test_an_intersection_of_many_stars_stays_small_and_never_grows() -> None:
    one, other = "*" + "ab*" * 3 + "cd", "ab*" + "ba*" * 3
    met = meet_globs((one,), (other,))
    assert 0 < len(met) <= 64
    for tail in product(["ab", "ba", "cd"], repeat=5):
        word = "".join(tail)
        if any(matches(glob, word) for glob in met):
            assert matches(one, word)
            assert matches(other, word)


def test_an_agent_has_what_all_three_have() -> None:
    acting = on_behalf_of(ALICE, agent=AGENT, workflow=FLOW)
    assert (acting.user, acting.agent, acting.workflow, acting.workflow_digest) == (
        "alice",
        "sre",
        "triage",
        "sha256:1",
    )
    assert acting.roles == ("operator",)
    assert (acting.stage, acting.level) == ("canary", Level.REVERSIBLE)
    assert not is_person(acting)
    used = [tool for tool in ("logs.read", "k8s.get_pod", "k8s.delete", "metrics.read") if may_use(acting, tool)]
    assert used == ["logs.read", "k8s.get_pod"]
    assert may_do(acting, "run.start")
    assert not may_do(acting, "autonomy.promote")


def test_scopes_that_have_nothing_in_common_permit_nothing() -> None:
    acting = on_behalf_of(ALICE, agent=replace(AGENT, scopes=("verb:approval.list",)))
    assert acting.scopes
    for again in (acting, on_behalf_of(acting, agent=AGENT)):
        assert not may_do(again, "approval.list")
        assert not may_do(again, "run.start")
        assert not may_use(again, "logs.read")


def test_a_run_keeps_its_workflow_version_and_its_level_only_falls() -> None:
    acting = on_behalf_of(ALICE, agent=AGENT, workflow=FLOW)
    lower = replace(FLOW, level=Level.PROPOSE, stage="shadow")
    again = on_behalf_of(acting, agent=replace(AGENT, name="worker"), workflow=lower)
    assert (again.agent, again.level, again.stage) == ("sre>worker", Level.PROPOSE, "shadow")
    higher = on_behalf_of(again, agent=AGENT, workflow=replace(FLOW, level=Level.CLOSED_LOOP, stage="stable"))
    assert (higher.level, higher.stage) == (Level.PROPOSE, "shadow")
    with pytest.raises(ConfigError, match="keeps the workflow version"):
        on_behalf_of(acting, agent=AGENT, workflow=replace(FLOW, digest="sha256:2"))


def test_what_reached_a_run_stays_with_those_it_hands_on_to() -> None:
    assert on_behalf_of(replace(ALICE, is_tainted=True), agent=AGENT, workflow=FLOW).is_tainted


@pytest.mark.parametrize(
    "grant",
    [
        replace(AGENT, name=""),
        replace(AGENT, name="sre>root"),
        replace(AGENT, tools=("logs.?",)),
        replace(AGENT, tools=("[a-z]*",)),
        replace(AGENT, tools=("",)),
        replace(AGENT, tools=("*a*b*c*d*e",)),
        replace(AGENT, tools=("lögs",)),
        replace(AGENT, scopes=("everything",)),
    ],
)
def test_a_grant_that_could_be_read_in_two_ways_is_a_mistake(grant: AgentGrant) -> None:
    with pytest.raises(ConfigError):
        on_behalf_of(ALICE, agent=grant)


def test_an_agent_without_tools_uses_none() -> None:
    assert not may_use(on_behalf_of(ALICE, agent=replace(AGENT, tools=())), "logs.read")
