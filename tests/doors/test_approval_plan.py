"""A whole plan is approved as one: its calls in their order, and nothing else in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quell.domain import Approval, ApprovalStatus, DriftError, Presented, RefusedError
from tests import _authority as a
from tests.conftest import FakeClock

STEPS = tuple(a.asked(number, call=a.frozen(number, arguments=f'{{"replicas":{number}}}')) for number in (1, 2, 3))


def approved(desk: a.Desk) -> Approval:
    approval = desk.ask(*STEPS)
    desk.say(approval, a.BO)
    return approval


def test_a_plan_runs_in_its_order_once(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = approved(desk)
        assert [desk.valid(a.presented(step)) for step in STEPS] == [1, 0, 0]
        assert [desk.use_well(a.presented(step, approval=approval.id)) for step in STEPS] == [0, 1, 2]
        assert desk.get(approval).status is ApprovalStatus.CONSUMED
        with pytest.raises(RefusedError, match="used"):
            desk.use(a.presented(STEPS[2], approval=approval.id))


DRIFTS = {
    "another order": a.presented(STEPS[2]),
    "other arguments": a.presented(replace(STEPS[1], call=a.other(STEPS[1].call, arguments='{"replicas":60}'))),
    "another call": a.presented(a.asked(7)),
    "another workflow": a.presented(STEPS[1], principal=replace(a.RUN, workflow_digest="w2")),
    "another policy": replace(a.presented(STEPS[1]), policy_digest="p2"),
    "other evidence": replace(a.presented(STEPS[1]), evidence_digest="e2"),
    "another dry run": replace(a.presented(STEPS[1]), diff="-replicas: 5"),
    "another way back": replace(a.presented(STEPS[1]), revert_plan=""),
}


@pytest.mark.parametrize("is_named", [True, False], ids=["by id", "by call"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_whatever_leaves_the_plan_is_refused_and_voids_the_rest(
    tmp_path: Path, clock: FakeClock, drift: str, *, is_named: bool
) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = approved(desk)
        desk.use_well(a.presented(STEPS[0]))
        ready: Presented = replace(DRIFTS[drift], approval=approval.id if is_named else "")
        assert desk.valid(ready) == 0
        with pytest.raises(DriftError) as left:
            desk.use(ready)
        assert (left.value.approval, left.value.code) == (approval.id, "mismatch")
        after = desk.get(approval)
        assert (after.status, after.steps) == (ApprovalStatus.SUPERSEDED, ("done", "pending", "pending"))
        assert str(left.value) in after.told
        with pytest.raises(RefusedError) as late:
            desk.use(a.presented(STEPS[1]))
        assert late.value.code == "gone"


def test_a_call_waits_for_the_end_of_the_one_before_it(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = approved(desk)
        desk.use(a.presented(STEPS[0]))
        with pytest.raises(RefusedError, match="has not ended"):
            desk.use(a.presented(STEPS[1]))
        with pytest.raises(RefusedError, match="already used"):
            desk.use(a.presented(STEPS[0]))
        assert desk.get(approval).status is ApprovalStatus.APPROVED


def test_a_failed_call_voids_the_rest(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = approved(desk)
        with desk.database.writing(durability="written") as connection:
            used = desk.approvals.consume(connection, a.presented(STEPS[0]))
        with desk.database.writing(durability="written") as connection:
            desk.approvals.step_ended(connection, used, ended="failed")
            desk.approvals.step_ended(connection, used, ended="done")
        assert desk.get(approval).steps[0] == "failed"
        with pytest.raises(RefusedError) as late:
            desk.use(a.presented(STEPS[1]))
        assert late.value.code == "gone"


def test_what_was_used_and_then_undone_with_its_transaction_is_not_used(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approved(desk)
        with pytest.raises(ConnectionError):
            use_and_fail(desk)
        assert desk.use(a.presented(STEPS[0])) == 0


def use_and_fail(desk: a.Desk) -> None:
    with desk.database.writing(durability="written") as connection:
        desk.approvals.consume(connection, a.presented(STEPS[0]))
        raise ConnectionError("the budget is out of reach")
