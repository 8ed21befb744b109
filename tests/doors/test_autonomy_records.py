"""The level is a pure function of the records, and the statistics are those that were published."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from math import comb, exp, log
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.domain import (
    AutonomyRecord,
    AutonomyScope,
    JournalError,
    Level,
    Principal,
    RefusedError,
    Standing,
    Tally,
    ToolClass,
    Trial,
    TrialOutcome,
    TrialSource,
    UsageError,
)
from quell.governance import Autonomy
from quell.governance._evidence import log_evidence_above, log_evidence_below, proves, refutes, trials_needed
from tests.conftest import FakeClock
from tests.doors._identity_bench import NOON, books

ANN = Principal(user="ann", roles=("approver",))
BEN = Principal(user="ben", roles=("approver",))
SCOPES = [
    AutonomyScope(workflow_digest=digest, action_class=ToolClass.REVERSIBLE, environment="prod") for digest in "ab"
]

TRIALS = st.tuples(
    st.just("trial"),
    st.sampled_from(SCOPES),
    st.sampled_from([TrialOutcome.VERIFIED_OK] * 6 + list(TrialOutcome)),
    st.sampled_from([TrialSource.LIVE] * 3 + list(TrialSource)),
    st.sampled_from([None, ANN]),
    st.integers(1, 45),
)
REVIEWS = st.tuples(
    st.just("review"),
    st.sampled_from(SCOPES),
    st.integers(0, 60),
    st.sampled_from(["agree", "agree", "disagree", "violation", "severe"]),
)
WORDS = st.tuples(
    st.sampled_from(["promote", "promote", "demote"]),
    st.sampled_from(SCOPES),
    st.sampled_from(Level),
    st.sampled_from([ANN, BEN]),
)
MOVES = st.lists(st.one_of(TRIALS, REVIEWS, WORDS), max_size=40)


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES)
def test_the_level_that_holds_is_what_the_records_add_up_to(moves: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory, books(Path(directory)) as database:
        clock = FakeClock()
        autonomy = Autonomy(database, clock=clock)
        counts = dict.fromkeys(SCOPES, 0)
        for move in moves:
            clock.forward(seconds=3600)
            try:
                with database.writing(durability="written") as connection:
                    _move(autonomy, connection, move, counts)
            except (RefusedError, UsageError):
                continue
        with database.reading() as connection:
            for scope in SCOPES:
                records = autonomy.records(connection, scope)
                standing = Autonomy.recompute(records)
                assert standing == autonomy.show(connection, scope).standing
                assert standing.level == autonomy.level(connection, scope)
                _check_by_hand(records, standing)


def _move(autonomy, connection, move, counts) -> None:  # type: ignore[no-untyped-def]  # what hypothesis drew
    verb, scope, *told = move
    if verb == "trial":
        outcome, source, by, times = told
        for _ in range(times if outcome is TrialOutcome.VERIFIED_OK else 1):
            counts[scope] += 1
            trial = Trial(ref=f"t{counts[scope]}", outcome=outcome, source=source)
            autonomy.record(connection, scope, trial, agreed_by=by)
    elif verb == "review":
        autonomy.review(connection, scope, ref=f"t{told[0]}", verdict=told[1], by=ANN)
    else:
        call = autonomy.promote if verb == "promote" else autonomy.demote
        extra = {"owners": ()} if verb == "promote" else {}
        call(connection, scope, to=told[0], by=told[1], reason="so", **extra)


def _check_by_hand(records: tuple[AutonomyRecord, ...], standing: Standing) -> None:
    """Count again in another way: the last word about each trial."""
    last = {record.ref: record for record in records if record.ref}
    source = {record.ref: record.source for record in records if record.kind == "trial"}
    live = [record for ref, record in last.items() if source[ref] is TrialSource.LIVE]
    is_good = [record.outcome is TrialOutcome.VERIFIED_OK for record in live]
    assert standing.live.failures == is_good.count(False)
    assert standing.live.successes == sum(bool(record.by) for record in live if record.outcome == "verified_ok")
    if standing.level > Level.APPROVE_EACH:
        assert any(record.kind == "confirmation" and record.to == standing.level for record in records)


def records_of(successes: int, *, by: str = "ann") -> list[AutonomyRecord]:
    return [
        AutonomyRecord(
            seq=seq,
            kind="trial",
            at=NOON,
            ref=f"t{seq}",
            outcome=TrialOutcome.VERIFIED_OK,
            source=TrialSource.LIVE,
            by=by,
        )
        for seq in range(1, successes + 1)
    ]


def confirmation(seq: int, **changed: object) -> AutonomyRecord:
    record = AutonomyRecord(seq=seq, kind="confirmation", at=NOON, by="ann", is_approver=True, to=Level.REVERSIBLE)
    return replace(record, **changed)  # type: ignore[arg-type]  # a test names fields of its own


def test_records_without_gaps_add_up_and_others_are_refused() -> None:
    records = [*records_of(43), confirmation(44)]
    assert Autonomy.recompute(records).level is Level.REVERSIBLE
    for hole in (0, 20, 42):
        with pytest.raises(JournalError, match="are missing"):
            Autonomy.recompute(records[:hole] + records[hole + 1 :])
    with pytest.raises(JournalError, match="are missing"):
        Autonomy.recompute([records[1], records[0], *records[2:]])


@pytest.mark.parametrize(
    "records",
    [
        [*records_of(42), confirmation(43)],
        [*records_of(43, by=""), confirmation(44)],
        [*records_of(43), confirmation(44, to=Level.REVIEWED)],
        [*records_of(43), confirmation(44, by="")],
        [*records_of(43), confirmation(44, is_approver=False)],
        [*records_of(43), confirmation(44, is_owner=True)],
        [*records_of(43), confirmation(44, to=None)],
        [*[replace(record, ref="same") for record in records_of(43)], confirmation(44)],
        [*records_of(43), confirmation(44, kind="demotion")],
    ],
)
def test_a_forged_record_promotes_nobody(records: list[AutonomyRecord]) -> None:
    assert Autonomy.recompute(records).level is Level.APPROVE_EACH


@pytest.mark.parametrize(
    ("claim", "trials"),
    [
        (0.80, (20, 31, 41, 66)),
        (0.90, (43, 66, 85, 137)),
        (0.95, (88, 134, 174, 277)),
        (0.99, (449, 683, 882, 1404)),
    ],
)
def test_the_trials_that_a_claim_needs_are_those_that_were_measured(claim: float, trials: tuple[int, ...]) -> None:
    """The table of anytime-valid tests, for 0, 1, 2 and 5 failures at one-sided 95 %."""
    assert tuple(failed + trials_needed(Tally(failures=failed), claim=claim) for failed in (0, 1, 2, 5)) == trials


@pytest.mark.parametrize("claim", [0.8, 0.9, 0.95, 0.99])
def test_on_the_claim_itself_a_bet_wins_nothing_on_average(claim: float) -> None:
    """The sum over all outcomes of n trials, weighed by their chance, is one: so it is a fair bet, and Ville holds."""
    for n in (1, 2, 7, 30):
        chances = [comb(n, s) * claim**s * (1 - claim) ** (n - s) for s in range(n + 1)]
        above = sum(c * exp(log_evidence_above(s, n - s, claim=claim)) for s, c in enumerate(chances))
        below = sum(c * exp(log_evidence_below(s, n - s, floor=claim)) for s, c in enumerate(chances))
        assert above == pytest.approx(1, abs=1e-9)
        assert below == pytest.approx(1, abs=1e-9)


def test_the_evidence_is_the_integral_that_it_is_said_to_be() -> None:
    for s, f, claim in ((3, 0, 0.9), (40, 2, 0.9), (10, 10, 0.8), (0, 5, 0.95), (200, 1, 0.99)):
        steps = 200_000
        width = (1 - claim) / steps
        points = (claim + (step + 0.5) * width for step in range(steps))
        scale = s * log(claim) + f * log(1 - claim)
        integral = sum(exp(s * log(p) + f * log(1 - p) - scale) for p in points) * width / (1 - claim)
        assert exp(log_evidence_above(s, f, claim=claim)) == pytest.approx(integral, rel=1e-6)


@given(successes=st.integers(0, 3000), failures=st.integers(0, 3000), claim=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_another_success_speaks_for_a_claim_and_another_failure_against_it(
    successes: int, failures: int, claim: float
) -> None:
    here = log_evidence_above(successes, failures, claim=claim)
    assert log_evidence_above(successes + 1, failures, claim=claim) > here - 1e-9
    assert log_evidence_above(successes, failures + 1, claim=claim) < here + 1e-9
    tally = Tally(successes=successes, failures=failures)
    assert not (proves(tally, claim=claim) and refutes(tally, floor=claim))
    assert not proves(tally, claim=claim) or successes / (successes + failures) > claim
