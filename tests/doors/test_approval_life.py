"""An approval: exactly these calls, once, in time, by other people who may."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import (
    Approval,
    ApprovalStatus,
    BoundExceededError,
    Principal,
    RefusedError,
    ToolClass,
    UsageError,
)
from quell.governance import Approvals
from tests import _authority as a
from tests._postgres import fresh_database
from tests.conftest import FakeClock


@pytest.fixture(params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[a.Desk]:
    if request.param == "sqlite":
        with a.desk(tmp_path, clock=clock) as opened:
            yield opened
        return
    with (
        fresh_database(request.getfixturevalue("postgres_url")) as url,
        a.desk(tmp_path, clock=clock, url=url) as opened,
    ):
        yield opened


def refusal(code: str) -> pytest.RaisesExc[RefusedError]:
    return pytest.RaisesExc(RefusedError, check=lambda error: error.code == code)


@pytest.mark.timeout(60)
def test_one_person_who_may_and_did_not_ask_approves_and_the_call_runs_once(desk: a.Desk) -> None:
    approval = desk.ask()
    assert desk.valid(a.presented()) == 0
    assert desk.say(approval, a.BO) == "settled"
    assert desk.valid(a.presented()) == 1
    assert desk.use(a.presented()) == 0
    assert desk.get(approval).status is ApprovalStatus.CONSUMED
    with refusal("gone"):
        desk.use(a.presented())
    assert desk.valid(a.presented()) == 0


@pytest.mark.timeout(60)
def test_two_different_people_approve_what_cannot_be_undone(desk: a.Desk) -> None:
    one = a.asked(tool_class=ToolClass.IRREVERSIBLE)
    approval = desk.ask(one)
    assert approval.terms.quorum == 2
    assert desk.say(approval, a.BO) == "counted"
    assert desk.say(approval, a.BO) == "none"
    assert desk.say(approval, replace(a.BO, user=" BO ")) == "none"
    with refusal("forbidden"):
        desk.use(a.presented(one))
    assert desk.say(approval, a.CY) == "settled"
    assert desk.valid(a.presented(one)) == 2
    assert desk.use(a.presented(one)) == 0


HOSTILE = {
    "who asked": (a.ANA, "forbidden"),
    "who asked, spelt otherwise": (replace(a.ANA, user="\uff21NA"), "forbidden"),
    "without the role": (a.DEE, "forbidden"),
    "of another tenant": (a.EVE, "unknown"),
    "an agent on behalf of one who may": (replace(a.BO, agent="bot", agent_tools=("*",)), "forbidden"),
    "a workflow on behalf of one who may": (replace(a.BO, workflow="heal"), "forbidden"),
    "with a credential for something else": (replace(a.BO, scopes=("tool:*",)), "forbidden"),
    "nobody": (replace(a.BO, user=""), "forbidden"),
}


@pytest.mark.parametrize("verdict", ["approve", "reject"])
@pytest.mark.parametrize("who", HOSTILE)
def test_nobody_else_decides(tmp_path: Path, clock: FakeClock, who: str, verdict: str) -> None:
    principal, code = HOSTILE[who]
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask()
        with refusal(code):
            desk.say(approval, principal, verdict=verdict, reason="because")
        assert desk.get(approval).status is ApprovalStatus.REQUESTED


def test_a_credential_with_the_scope_decides(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        assert desk.say(desk.ask(), replace(a.BO, scopes=("verb:approval.*",))) == "settled"


def test_an_answer_to_something_else_than_was_shown_does_not_count(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask()
        with refusal("mismatch"):
            desk.say(approval, a.BO, seen="0" * 64)
        with pytest.raises(UsageError, match="8 characters"):
            desk.say(approval, a.BO, seen=approval.digest[:7])
        with refusal("mismatch"):
            desk.say(approval, a.BO, seen=approval.digest + "0")
        assert desk.say(approval, a.BO, seen=f"sha256:{approval.digest[:8].upper()}") == "settled"


def test_time_is_judged_when_it_is_used_to_the_microsecond(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask()
        assert approval.terms.expires_at - approval.terms.requested_at == timedelta(minutes=15)
        desk.say(approval, a.BO)
        clock.at = approval.terms.expires_at
        assert desk.valid(a.presented()) == 0
        with refusal("gone"):
            desk.use(a.presented())
        clock.at -= timedelta(microseconds=1)
        assert desk.use(a.presented()) == 0


def test_a_late_or_repeated_answer_changes_nothing_and_says_what_happened(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask()
        assert desk.say(approval, a.BO) == "settled"
        assert desk.say(approval, a.BO) == "none"
        with pytest.raises(RefusedError, match="approved by bo") as late:
            desk.say(approval, a.CY, verdict="reject", reason="no")
        assert late.value.code == "gone"
        assert [vote.voter for vote in desk.get(approval).votes] == ["bo"]
        again = desk.ask(a.asked(2))
        clock.forward(seconds=900)
        with pytest.raises(RefusedError, match="expired at 2026-11-20 12:15:00"):
            desk.say(again, a.BO)


def test_one_rejection_ends_it_and_needs_a_reason(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask(a.asked(tool_class=ToolClass.IRREVERSIBLE))
        desk.say(approval, a.BO)
        with pytest.raises(UsageError, match="reason"):
            desk.say(approval, a.CY, verdict="reject", reason="  ")
        assert desk.say(approval, a.CY, verdict="reject", reason="payday\x00") == "settled"
        assert "rejected by cy" in desk.get(approval).told
        with refusal("gone"):
            desk.say(approval, a.ADA)


def test_what_people_rejected_is_not_asked_again_in_other_words_or_under_another_id(
    tmp_path: Path, clock: FakeClock
) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        desk.say(desk.ask(), a.BO, verdict="reject", reason="payday")
        with pytest.raises(RefusedError, match="payday"):
            desk.ask(explanation="but it is really needed")
        with pytest.raises(RefusedError, match="payday"):
            desk.ask(a.asked(call=a.other(a.frozen(), id="call_9")))
        assert desk.ask(a.asked(call=a.frozen(arguments='{"replicas":5}'))).status is ApprovalStatus.REQUESTED


def test_asking_the_same_again_gives_the_same_request_and_something_else_replaces_it(
    tmp_path: Path, clock: FakeClock
) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        first = desk.ask()
        clock.forward(seconds=5)
        assert desk.ask(explanation="please").id == first.id
        second = desk.ask(verdict=replace(a.ASK, policy_digest="p2"))
        assert second.id != first.id
        assert desk.get(first).status is ApprovalStatus.SUPERSEDED
        with refusal("gone"):
            desk.say(first, a.BO)


def test_an_edit_is_a_new_request_that_its_editor_may_not_approve(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        old = desk.ask()
        other = a.asked(call=a.frozen(arguments='{"replicas":5}'))
        with desk.database.writing(durability="written") as connection:
            new = desk.approvals.edit(connection, old.id, a.request(other), by=a.BO, digest_seen=old.digest)
        assert (new.terms.supersedes, desk.get(old).status) == (old.id, ApprovalStatus.SUPERSEDED)
        for principal in (a.BO, a.ANA):
            with refusal("forbidden"):
                desk.say(new, principal)
        assert desk.say(new, a.CY) == "settled"
        with refusal("gone"):
            desk.use(a.presented(approval=old.id))
        assert desk.use(a.presented(other)) == 0
        with desk.database.writing(durability="written") as connection, refusal("gone"):
            desk.approvals.edit(connection, old.id, a.request(other), by=a.BO, digest_seen=old.digest)


def test_an_edit_does_not_move_to_another_run(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        old = desk.ask()
        elsewhere = a.request(a.asked(call=a.frozen(run="run_2")))
        with desk.database.writing(durability="written") as connection, refusal("forbidden"):
            desk.approvals.edit(connection, old.id, elsewhere, by=a.BO, digest_seen=old.digest)


def test_nobody_is_asked_when_policy_does_not_ask_or_names_nobody(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        for verdict in (replace(a.ASK, decision="deny"), replace(a.ASK, approver_roles=())):
            with pytest.raises(RefusedError, match="does not let people approve"):
                desk.ask(verdict=verdict)
        with pytest.raises(RefusedError, match="nobody stands behind"):
            desk.ask(principal=Principal(user=""))
        with pytest.raises(RefusedError, match="surrogate"):
            desk.ask(a.asked(call=a.frozen(arguments='{"x":"\ud800"}')))
        with pytest.raises(BoundExceededError, match="bytes of an approval"):
            desk.ask(explanation="x" * 4_000_000)
        for plan in ([a.asked(1), a.asked(1)], [a.asked(1), a.asked(call=a.frozen(2, run="run_2"))]):
            with pytest.raises(UsageError, match="one run"):
                desk.ask(*plan)


def test_a_model_cannot_bury_people_under_requests(tmp_path: Path, clock: FakeClock) -> None:
    with a.database(tmp_path) as database:
        approvals = Approvals(database, clock=clock, entropy=bytes, signers=(Approvals.signer(a.KEY),), open_max=3)
        desk = a.Desk(database=database, clock=clock, approvals=approvals)
        for number in range(3):
            clock.forward(seconds=1)
            desk.ask(a.asked(number))
        with pytest.raises(BoundExceededError, match="open approval requests"):
            desk.ask(a.asked(9))
        clock.forward(seconds=899)
        desk.ask(a.asked(9))


def test_a_row_that_somebody_changed_in_the_database_is_no_approval(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        approval = desk.ask()
        with desk.database.writing(durability="written") as connection:
            connection.run("UPDATE quell_approvals SET status = 'approved'")
        with refusal("forbidden"):
            desk.use(a.presented())
        with desk.database.writing(durability="written") as connection:
            connection.run("UPDATE quell_approvals SET status = 'requested'")
        desk.say(approval, a.BO)
        with desk.database.writing(durability="written") as connection:
            connection.run("UPDATE quell_approval_votes SET body = replace(body, 'bo', 'cy')")
        assert desk.valid(a.presented()) == 0
        with refusal("forbidden"):
            desk.use(a.presented())
        with desk.database.writing(durability="written") as connection:
            connection.run("UPDATE quell_approvals SET body = replace(body, 'payments', 'checkout')")
        with refusal("mismatch"):
            desk.use(a.presented())


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_a_vote_is_worth_what_its_key_is_worth_and_keys_rotate(tmp_path: Path, clock: FakeClock, kind: str) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        old, new = (Approvals.signer(bytes([n]) * 32, kind=kind) for n in (1, 2))  # type: ignore[arg-type]

        def with_keys(*signers: object) -> a.Desk:
            approvals = Approvals(desk.database, clock=clock, entropy=desk.approvals._entropy, signers=signers)  # type: ignore[arg-type]
            return a.Desk(database=desk.database, clock=clock, approvals=approvals)

        with_keys(old).say(with_keys(old).ask(), a.BO)
        assert with_keys(new).valid(a.presented()) == 0
        assert with_keys(new, old).valid(a.presented()) == 1


def test_lists_say_how_things_stand_now(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        first, second = desk.ask(a.asked(1)), desk.ask(a.asked(2), expires_s=60)
        desk.say(first, a.BO)

        def ids(status: ApprovalStatus | None, tenant: str = "acme") -> set[str]:
            with desk.database.reading() as connection:
                return {one.id for one in desk.approvals.listed(connection, tenant=tenant, status=status)}

        assert ids(ApprovalStatus.REQUESTED) == {second.id}
        assert ids(ApprovalStatus.APPROVED) == {first.id}
        clock.forward(seconds=60)
        assert ids(ApprovalStatus.REQUESTED) == set()
        assert ids(ApprovalStatus.EXPIRED) == {second.id}
        with desk.database.writing(durability="written") as connection:
            assert desk.approvals.expire(connection) == 1
        assert ids(ApprovalStatus.EXPIRED) == {second.id}
        assert ids(None) == {first.id, second.id}
        assert ids(None, tenant="other") == set()


def test_how_people_decide_is_counted(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        for number, (after_s, verdict) in enumerate([(1.0, "approve"), (2.5, "approve"), (40.0, "reject")]):
            approval: Approval = desk.ask(a.asked(number, call=a.frozen(number, run=f"run_{number}")))
            clock.forward(seconds=after_s)
            desk.say(approval, a.BO, verdict=verdict, reason="no")
        with desk.database.reading() as connection:
            (habit,) = desk.approvals.habits(connection, tenant="acme", since=clock.at - timedelta(days=1))
            assert desk.approvals.habits(connection, tenant="acme", since=clock.at + timedelta(days=1)) == ()
        assert (habit.approver, habit.decisions, habit.median_s, habit.under_3s) == ("bo", 3, 2.5, 2)
        assert habit.approve_share == pytest.approx(2 / 3)


def many_votes(desk: a.Desk, approval: Approval, voters: list[Principal]) -> list[str]:
    """Let everybody answer at the same moment; return what each answer did."""
    gate = threading.Barrier(len(voters))
    said: list[str] = []

    def vote(by: Principal) -> None:
        gate.wait()
        try:
            said.append(desk.say(approval, by))
        except RefusedError as error:
            said.append(error.code)

    threads = [threading.Thread(target=vote, args=(by,)) for by in voters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(said)


@pytest.mark.timeout(60)
def test_answers_at_the_same_moment_count_once_each(desk: a.Desk) -> None:
    approval = desk.ask(a.asked(tool_class=ToolClass.IRREVERSIBLE))
    assert many_votes(desk, approval, [a.BO] * 6) == ["counted", *["none"] * 5]
    assert many_votes(desk, approval, [a.CY, a.ADA, a.CY]) in (
        ["gone", "none", "settled"],
        ["gone", "gone", "settled"],
    )
    assert desk.get(approval).status is ApprovalStatus.APPROVED


@pytest.mark.timeout(60)
def test_the_same_wish_at_the_same_moment_is_one_request(desk: a.Desk) -> None:
    gate = threading.Barrier(6)
    asked: set[str] = set()

    def ask() -> None:
        gate.wait()
        asked.add(desk.ask().id)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("identifier", ["", "call\x00", "call\n", "\ud800"])
def test_an_id_that_no_id_is_finds_nothing_and_breaks_nothing(desk: a.Desk, identifier: str) -> None:
    one = a.asked(call=a.other(a.frozen(), id=identifier))
    with refusal("forbidden"):
        desk.ask(one)
    assert desk.valid(a.presented(one)) == 0
    with desk.database.reading() as connection:
        assert desk.approvals.find(connection, identifier, tenant="acme") is None
    with refusal("unknown"):
        desk.use(a.presented(approval=identifier or "apr_0"))
