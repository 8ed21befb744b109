"""The proof of the audit log finds nothing, and finds every check that is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from proofs.audit import ATTACKS, PROMISES, opened, try_audit, wrong

from quell.audit import _checkpoint, _order, _verify

SEED = 20261120


@pytest.mark.timeout(120)
def test_every_tampering_is_found_at_its_place() -> None:
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert (result.violations, result.failures) == (0, ())
    assert result.cases > 2_500
    assert result.is_exhaustive


def _nothing(*_: object, **__: object) -> None:
    return None


MUTANTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "links between records are not looked at": (_verify._Walk, "_link", _nothing),
    "signatures are believed": (_checkpoint.Verifier, "is_signed", lambda *_: True),
    "checkpoints are not compared with the log": (_verify, "_judge_forks", _nothing),
    "the end is not looked at": (_verify, "_judge_end", _nothing),
    "checkpoints may vanish": (_verify, "_judge_told", _nothing),
    "anchors are forgotten": (_verify, "_judge_anchored", lambda *_: []),
    "bodies are not read": (_verify, "_judge_bodies", lambda *_: 0),
    "gaps are overlooked": (_order, "_judge_gap", _nothing),
    "what is out of order is overlooked": (_order, "_judge_displaced", lambda *_: set()),
    "forged records are taken for real": (_order, "_trim", _nothing),
    "the hash leaves out the record": (_verify, "chain_hash", lambda previous, _: previous),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_verification_that_leaves_out_a_check_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, instead = MUTANTS[mutant]
    monkeypatch.setattr(where, name, instead)
    with opened(records=18, seed=SEED) as log:
        caught = (told for kind in ATTACKS for attack in kind(log) if (told := wrong(attack, log)))
        assert next(caught, ""), mutant


def test_a_place_that_is_not_the_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = _order.judge_order

    def elsewhere(stretches: list[_order.Stretch], *, size: int, bound: int) -> object:
        findings, reach = judge(stretches, size=size, bound=bound)
        moved = [_order._found(one.what, one.first + 9, one.last + 9, one.detail) for one in findings]
        return moved, reach

    monkeypatch.setattr(_verify, "judge_order", elsewhere)
    assert try_audit("ci", SEED, records=15).violations > 100
