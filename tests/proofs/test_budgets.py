"""The proof that caps hold finds nothing in the product, and finds what is broken on purpose."""

from __future__ import annotations

import secrets

import pytest
from proofs.budgets import MUTANTS, PROMISES, try_caps


@pytest.mark.timeout(60)
def test_caps_hold_against_runs_that_lie_crash_race_and_replay() -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    result = PROMISES[0].try_it("ci", seed)
    assert result.violations == 0, result.failures
    assert result.cases == 120
    assert " 0 refused" not in result.note, "the caps never bound"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name])
def test_a_budget_that_is_broken_on_purpose_is_caught(mutant: str) -> None:
    result = try_caps("ci", 7, mutant=mutant, databases=("sqlite",))
    assert result.violations > 0, f"the proof does not notice a budget that {mutant}"
