"""Break-glass: taken by a person with the role, short, with a reason, and reviewed by another."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import Principal, RefusedError, UsageError
from tests import _authority as a
from tests.conftest import FakeClock

GUS = Principal(user="gus", tenant="acme", roles=("break-glass",))
AUDITOR = Principal(user="ivy", tenant="acme", roles=("auditor",))


def test_an_emergency_lasts_half_an_hour_and_covers_what_the_person_named(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk:
        glass = desk.approvals.break_glass
        agent = replace(GUS, agent="bot", agent_tools=("*",))
        with desk.database.writing(durability="written") as connection:
            direct = glass.open(connection, by=GUS, reason="payments are down")
            assert glass.covers(connection, GUS, run="run_1") == direct.id
            assert glass.covers(connection, agent, run="run_1") == ""
            assert glass.covers(connection, agent, run="") == ""
            assert glass.covers(connection, replace(GUS, tenant="other"), run="run_1") == ""
            named = glass.open(connection, by=GUS, reason="and the agent helps", run="run_1")
            assert glass.covers(connection, agent, run="run_1") == named.id
            assert glass.covers(connection, agent, run="run_2") == ""
            clock.at = direct.opened_at + timedelta(minutes=30) - timedelta(microseconds=1)
            assert glass.covers(connection, agent, run="run_1") == named.id
            clock.at = direct.expires_at
            assert glass.covers(connection, GUS, run="run_1") == ""


@pytest.mark.parametrize(
    "changed",
    [
        "UPDATE quell_break_glass SET expires_at = '2030-01-01T00:00:00.000000+00:00'",
        "UPDATE quell_break_glass SET user_name = 'eve'",
        "UPDATE quell_break_glass SET run = 'run_2'",
        "DELETE FROM quell_break_glass_seals",
        (
            "INSERT INTO quell_break_glass SELECT 'brk_x', tenant, 'eve', run, reason, opened_at, expires_at,"
            " review_due_at, reviewed_at, reviewed_by, review FROM quell_break_glass"
        ),
    ],
)
def test_a_row_that_somebody_wrote_into_the_database_is_no_emergency(
    tmp_path: Path, clock: FakeClock, changed: str
) -> None:
    with a.desk(tmp_path, clock=clock) as desk, desk.database.writing(durability="written") as connection:
        glass = desk.approvals.break_glass
        opened = glass.open(connection, by=GUS, reason="payments are down")
        assert glass.covers(connection, GUS, run="run_1") == opened.id
        connection.run(changed)
        assert glass.covers(connection, replace(GUS, user="eve"), run="run_1") == ""
        if not changed.startswith("INSERT"):
            assert glass.covers(connection, GUS, run="run_1") == ""
            assert glass.covers(connection, GUS, run="run_2") == ""
        clock.at = opened.expires_at
        assert glass.covers(connection, GUS, run="run_1") == ""


def test_only_a_person_with_the_role_and_a_reason_breaks_the_glass(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk, desk.database.writing(durability="written") as connection:
        glass = desk.approvals.break_glass
        for by in (a.ADA, replace(GUS, agent="bot"), replace(GUS, user="")):
            with pytest.raises(RefusedError):
                glass.open(connection, by=by, reason="payments are down")
        for reason in ("", "  \n", "x" * 2001):
            with pytest.raises(UsageError):
                glass.open(connection, by=GUS, reason=reason)
        assert glass.unreviewed(connection, tenant="acme") == ()


def test_an_emergency_waits_for_the_review_of_another(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as desk, desk.database.writing(durability="written") as connection:
        glass = desk.approvals.break_glass
        opened = glass.open(connection, by=GUS, reason="payments are down")
        assert glass.unreviewed(connection, tenant="acme") == (opened,)
        assert opened.review_due_at - opened.opened_at == timedelta(hours=24)
        for by in (replace(GUS, roles=("admin",)), a.BO, a.EVE, replace(AUDITOR, agent="bot")):
            with pytest.raises(RefusedError):
                glass.review(connection, opened.id, by=by, review="fine")
        with pytest.raises(UsageError):
            glass.review(connection, opened.id, by=AUDITOR, review=" ")
        reviewed = glass.review(connection, opened.id, by=AUDITOR, review="it was needed")
        assert (reviewed.reviewed_by, reviewed.review) == ("ivy", "it was needed")
        assert glass.unreviewed(connection, tenant="acme") == ()
        with pytest.raises(RefusedError, match="reviewed by ivy already"):
            glass.review(connection, opened.id, by=a.ADA, review="again")
