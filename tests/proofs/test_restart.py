"""The proof of restarts holds, and sees approvals that die with a process and effects that are sent again."""

from __future__ import annotations

import random

import pytest
from proofs.restart import PROMISES, Plan, a_nursery, plans, try_case

from tests._postgres import ENVIRONMENT

SEED = random.randrange(1_000_000)


@pytest.mark.timeout(180)
def test_a_question_a_yes_and_its_one_effect_survive_kills(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, postgres_url)
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert result.violations == 0, result.failures
    assert result.cases >= 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("mutant", "tool", "acting", "told"),
    [
        ("forgets", "set_replicas", "used up, not yet kept", "did not end well"),
        ("careless", "drop_volume", "answered", "2 effects"),
    ],
)
def test_the_proof_sees(mutant: str, tool: str, acting: str, told: str) -> None:
    plan = Plan(
        seed=1,
        tool=tool,
        is_postgres=False,
        asking="asked",
        is_up=False,
        voting="",
        acting=acting,
        mutant=mutant,
        life_s=6.0,
    )
    with a_nursery() as nursery:
        case = try_case(plan, nursery=nursery, postgres="")
    assert any(told in found for found in case.found), case.found
    assert case.killed >= 1


def test_every_moment_of_acting_is_met_in_a_full_run() -> None:
    drawn = plans("full", SEED)
    assert len(drawn) == 60
    assert {plan.acting for plan in drawn} == {plan.acting for plan in plans("full", SEED + 1)}
    assert sum(plan.is_postgres for plan in drawn) == 30
    assert {(plan.tool, plan.is_postgres) for plan in drawn} >= {("drop_volume", True), ("set_replicas", False)}
