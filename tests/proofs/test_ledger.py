"""The proofs of the ledger hold, and find what is wrong with ledgers that leave something out."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from proofs._ledger_kills import backend, kills
from proofs.ledger import Life, World, by_ledger, proved

from proofs import ledger as proof
from quell.domain import Effect, EffectState, Ending, Happened, Recovery, RefusedError
from quell.runs import Connection, _effect, _ledger
from quell.runs import _effect_table as table


@pytest.mark.timeout(180)
def test_no_schedule_of_crashes_or_frozen_workers_makes_a_duplicate_or_a_loss() -> None:
    result = proof.no_duplicate_no_loss("ci", 0)
    assert (result.violations, result.failures) == (0, ())
    assert result.cases >= 1000
    assert result.is_exhaustive


def test_the_oracle_counts_what_the_usual_protocols_do() -> None:
    after, before = proof.compared()
    assert "record after" in after
    assert " 0 duplicates" not in after
    assert "never retry" in before
    assert " 0 lost" not in before


async def _new_key_per_attempt(life: Life) -> EffectState | None:
    async def send(key: str, attempt: int) -> Ending:
        return await life.send(f"{key}.{attempt}", attempt)

    effect = await life.ledger.perform(
        life.intent(),
        send=send,
        probe=None,
        fence=life.fence,
        on_intent=life.place,
        on_start=life.place,
        on_end=life.place,
    )
    return effect.state


def test_a_ledger_with_a_new_key_per_attempt_is_caught() -> None:
    tally = proved(_new_key_per_attempt, crashes_max=lambda world: int(world.recovery is Recovery.KEYED))
    assert tally.duplicates


SEED = secrets.randbelow(1_000_000)

Patch = Callable[[pytest.MonkeyPatch], None]


def _moves_as(pretended: Recovery, *, of: Recovery) -> Patch:
    """Let one class be recovered as if it were another."""

    def next_move(effect: Effect, **rest: Any) -> _effect.Move:
        return _effect.next_move(replace(effect, recovery=pretended) if effect.recovery is of else effect, **rest)

    return lambda patch: patch.setattr(_ledger, "next_move", next_move)


def _lose_the_fence(patch: pytest.MonkeyPatch) -> None:
    def change(connection: Connection, effect: Effect, *, fence: str, **columns: Any) -> None:
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        connection.run(f"UPDATE quell_effects SET {sets} WHERE key = :key", key=effect.key, **columns)

    patch.setattr(table, "hold", lambda *_, **__: None)
    patch.setattr(table, "_change", change)


def _believe_a_refusal_of_the_last(effect: Effect, ending: Ending) -> EffectState | None:
    return _effect.after_attempt(replace(effect, is_in_doubt=False), ending)


def _take_silence_for(state: EffectState) -> Patch:
    def after_attempt(effect: Effect, ending: Ending) -> EffectState | None:
        return _effect.after_attempt(effect, ending) or state

    return lambda patch: patch.setattr(_ledger, "after_attempt", after_attempt)


def _forget_the_start(patch: pytest.MonkeyPatch) -> None:
    """Meet a started effect as if it had never been sent."""

    def locked(*args: Any, **rest: Any) -> Effect:
        known = real(*args, **rest)
        if known.state is not EffectState.STARTED:
            return known
        args[0].run("UPDATE quell_effects SET state = 'intent'")
        return replace(known, state=EffectState.INTENT, is_in_doubt=False)

    real = table.locked
    patch.setattr(table, "locked", locked)


def _forget_the_end(patch: pytest.MonkeyPatch) -> None:
    """Say that it is done without writing so."""
    patch.setattr(table, "end", lambda *_: None)


def _refuse_the_next_holder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(table, "claim", lambda _, effect, **__: effect)


MUTANTS: dict[str, Patch] = {
    "blind effects are sent again": _moves_as(Recovery.NATURAL, of=Recovery.BLIND),
    "probeable effects are sent again without a look": _moves_as(Recovery.NATURAL, of=Recovery.PROBEABLE),
    "keyed effects are never recovered, and nobody is told": lambda patch: patch.setattr(
        _ledger, "next_move", lambda effect, **_: "send" if effect.state is EffectState.INTENT else "stop"
    ),
    "a look that finds nothing is believed at once": lambda patch: patch.setattr(
        _ledger, "quiet_left_s", lambda *_, **__: 0.0
    ),
    "a key is believed to be remembered for ever": lambda patch: patch.setattr(
        _effect, "_is_key_valid", lambda *_, **__: True
    ),
    "that the last attempt failed is taken for the whole": lambda patch: patch.setattr(
        _ledger, "after_attempt", _believe_a_refusal_of_the_last
    ),
    "silence is a failure": _take_silence_for(EffectState.FAILED),
    "silence is a success": _take_silence_for(EffectState.DONE),
    "a look is taken for a success whatever it says": lambda patch: patch.setattr(
        _ledger, "after_look", lambda *_, **__: EffectState.DONE
    ),
    "the start is forgotten": _forget_the_start,
    "the end is not written": _forget_the_end,
    "nobody is fenced out": _lose_the_fence,
    "nobody can take over": _refuse_the_next_holder,
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_ledger_that_leaves_a_check_out_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[mutant](monkeypatch)

    async def protocol(life: Life) -> EffectState | None:
        try:
            return await by_ledger(life)
        except RefusedError:
            return None

    def few(world: World) -> int:
        return 1 if world.gap_s != 300.0 else 0

    tally = proved(protocol, crashes_max=few, frozen_max=lambda world: int(world.gap_s == 1.0))
    print(f"{mutant}: {tally.duplicates} duplicates, {tally.lost} lost of {tally.cases}")
    assert tally.violations, mutant
    assert tally.failures


@pytest.mark.crash
@pytest.mark.timeout(180)
def test_workers_that_are_really_killed_leave_no_duplicate_and_no_loss() -> None:
    result = kills("ci", SEED)
    assert (result.violations, result.failures) == (0, ()), f"seed {SEED}"
    assert result.cases >= 20


@pytest.mark.crash
@pytest.mark.timeout(180)
def test_careless_workers_that_are_really_killed_are_caught() -> None:
    with backend("", seed=SEED, recovery="careless") as on_sqlite:
        on_sqlite.until(30)
    assert any("applied 2 times" in failure for failure in on_sqlite.failures), f"seed {SEED}"


def test_the_other_side_of_the_proof_knows_its_keys_and_forgets_them() -> None:
    downstream = proof.Downstream(World(recovery=Recovery.KEYED, can_look=False, manner="answers", gap_s=1.0))
    assert downstream.request("k") == Happened(result='"done"')
    assert downstream.request("k") == Happened(result='"done"')
    assert downstream.applied == 1, "the other side knows its keys"
    downstream.forward(proof.KEYS_REMEMBERED_S)
    downstream.request("k")
    assert downstream.applied == 2, "and forgets them"
