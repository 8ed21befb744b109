"""The harness of compromised models: nothing happens that was not authorised, and every hole in the guard is seen."""

from __future__ import annotations

import random

import pytest
from proofs._moods import MOODS
from proofs._mutants import MUTANTS, SUITS
from proofs.compromised import is_caught, play, result_of

SEED = random.randrange(1_000_000)
SAMPLED = 12
"""Of the guards with a hole, in each run of the suite; `.ci/run` and `make prove` try all of them."""
ABOUT = {
    "pins": "repinned",
    "emergency": "glass",
    "plans": "plans",
    "workers": "taken over",
    "shifts": "taken over",
    "ladder": "demoted",
    "questions": "asked",
}
"""What happens in a mood that is about it."""


@pytest.mark.timeout(120)
def test_a_compromised_model_causes_nothing_that_was_not_authorised() -> None:
    print(f"seed {SEED}")
    tally = play(seed=SEED, moves=4_800)
    result = result_of(tally)
    assert result.violations == 0, result.failures
    assert result.cases >= 4_800
    # It means little that nothing bad happened where nothing happened.
    assert tally.effects > 20
    assert min(tally.counts[kind] for kind in ("ok", "parked", "denied", "yes")) > 50


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mood", sorted(MOODS))
def test_moods_that_find_holes_find_none_where_there_is_none(mood: str) -> None:
    print(f"seed {SEED}")
    tally = play(seed=SEED, moves=300, mood=mood)
    assert tally.violations == 0, tally.failures
    assert tally.counts["ok"] >= 3
    assert tally.counts[ABOUT.get(mood, "ok")] >= 1


@pytest.mark.timeout(60)
def test_a_compromised_model_causes_nothing_on_a_server_either(postgres_url: str) -> None:
    print(f"seed {SEED}")
    tally = play(seed=SEED, moves=400, server_url=postgres_url)
    assert tally.violations == 0, tally.failures
    assert tally.counts["ok"] > 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", range(SAMPLED))
def test_a_guard_with_a_hole_is_caught(place: int) -> None:
    name = random.Random(SEED).sample(sorted(MUTANTS), SAMPLED)[place]
    print(f"seed {SEED}: {name}")
    assert is_caught(name, seed=SEED, moves=12_000)


def test_the_same_seed_tells_the_same_story() -> None:
    one, other = (play(seed=SEED, moves=300) for _ in range(2))
    assert (one.counts, one.effects, one.moves) == (other.counts, other.effects, other.moves)


def test_there_are_mutants_enough_and_each_mood_is_of_one() -> None:
    assert len(MUTANTS) >= 14
    assert set(SUITS) <= set(MUTANTS)
    assert set(SUITS.values()) <= set(MOODS)
