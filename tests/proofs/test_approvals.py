"""The proof of approvals holds, and sees each check that somebody leaves out."""

from __future__ import annotations

import random

import pytest
from proofs.approvals import (
    PROMISES,
    bench,
    bound,
    field_cases,
    people_cases,
    race,
    stored_cases,
    time_cases,
)

from quell.domain import Approval, ApprovalTerms, Consumption, Presented, Principal, Signer
from quell.governance import Approvals
from quell.runs import Connection
from tests._postgres import ENVIRONMENT

SEED = random.randrange(1_000_000)


@pytest.mark.timeout(120)
def test_an_approval_runs_exactly_what_was_shown_once_in_time_by_others(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, postgres_url)
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert result.violations == 0, result.failures
    assert result.cases > 600
    assert "PostgreSQL" in result.note


def leaving_out(name: str) -> type[Approvals]:
    """Return approvals that do not look at one bound field."""
    find, put = bound()[name]

    class Careless(Approvals):
        def _standing(self, connection: Connection, presented: Presented, *, lock: str) -> tuple[Approval, int]:
            asked = connection.all("SELECT id FROM quell_approvals ORDER BY id DESC LIMIT 1")
            approval = self._load(connection, asked[0].id, lock="")
            assert approval is not None
            terms = approval.terms
            known = Presented(
                principal=Principal(
                    user=terms.requester,
                    tenant=terms.tenant,
                    agent=terms.agent,
                    workflow=terms.workflow,
                    workflow_digest=terms.workflow_digest,
                ),
                call=terms.calls[0].call,
                policy_digest=terms.policy_digest,
                evidence_digest=terms.evidence_digest,
                diff=terms.calls[0].diff,
                revert_plan=terms.calls[0].revert_plan,
            )
            return super()._standing(connection, put(presented, find(known)), lock=lock)

    return Careless


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", sorted(bound()))
def test_a_field_that_nobody_looks_at_is_seen(name: str) -> None:
    with bench(kind=leaving_out(name), seed=1) as at:
        field_cases(at)
    assert at.failures
    assert all(failure.startswith(f"{name} = ") for failure in at.failures)


class LetsAnybodyDecide(Approvals):
    def _check_eligible(self, terms: ApprovalTerms, by: Principal) -> None:
        pass


class KnowsNoTime(Approvals):
    def _load(self, connection: Connection, identifier: str, *, lock: str) -> Approval | None:
        clock, self._clock = self._clock, lambda: began
        try:
            return super()._load(connection, identifier, lock=lock)
        finally:
            self._clock = clock


class UsesAgain(Approvals):
    def consume(self, connection: Connection, presented: Presented) -> Consumption:
        used = super().consume(connection, presented)
        connection.run("UPDATE quell_approval_calls SET state = 'pending' WHERE approval = :id", id=used.approval)
        connection.run("UPDATE quell_approvals SET status = 'approved' WHERE id = :id", id=used.approval)
        return used


class TrustingSigner:
    key_id = "none"

    def sign(self, message: bytes) -> str:
        return "none"

    def verify(self, message: bytes, *, signature: str) -> bool:
        return True


class TrustsRows(Approvals):
    def __init__(self, *arguments: object, **more: object) -> None:
        signers: tuple[Signer, ...] = (TrustingSigner(),)
        super().__init__(*arguments, **{**more, "signers": signers})  # type: ignore[arg-type]


with bench(kind=Approvals, seed=0) as _bench:
    began = _bench.clock()


@pytest.mark.timeout(60)
def test_what_lets_anybody_decide_is_seen() -> None:
    with bench(kind=LetsAnybodyDecide, seed=1) as at:
        people_cases(at)
    assert len(at.failures) >= 3, at.failures


@pytest.mark.timeout(60)
def test_what_knows_no_time_is_seen() -> None:
    with bench(kind=KnowsNoTime, seed=1) as at:
        time_cases(at)
    assert any("1 microseconds after its end: ran" in failure for failure in at.failures)


@pytest.mark.timeout(60)
def test_what_can_be_used_again_is_seen() -> None:
    with bench(kind=UsesAgain, seed=1) as at:
        time_cases(at)
        assert "a second time: ran" in at.failures
        at.failures.clear()
        race(at, number=1, consumers=8)
        assert at.failures == ["8 of 8 racing consumers had an effect on sqlite"]


@pytest.mark.timeout(60)
def test_what_trusts_the_rows_is_seen() -> None:
    with bench(kind=TrustsRows, seed=1) as at:
        stored_cases(at)
    assert at.failures


def test_every_bound_field_is_tried_in_six_ways_or_more() -> None:
    print(sorted(bound()))
    assert len(bound()) == 20
