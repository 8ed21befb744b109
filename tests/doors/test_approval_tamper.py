"""Rows of approvals that somebody changed in the database: noticed, or without effect."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from quell.domain import OutcomeKind, Parked, RefusedError, ToolOutcome
from tests.doors._hand_bench import Room, hand_room, person

BEN = person("ben", "approver")
CAL = person("cal", "approver")
ANN = person("ann", "approver")
PAGE: dict[str, Any] = {"url": "https://example.org/a"}
SCALE: dict[str, Any] = {"service": "web", "environment": "staging", "replicas": 4}
VOLUME: dict[str, Any] = {"service": "web", "environment": "staging", "volume": "v1"}


def play(state_dir: Path, story: Callable[[Room], Awaitable[None]]) -> None:
    async def run() -> None:
        async with hand_room(state_dir) as room:
            await story(room)

    asyncio.run(run())


def write(room: Room, *statements: str) -> None:
    with room.runs.database.writing() as connection:
        for statement in statements:
            assert connection.run(statement) > 0, statement


async def asked(room: Room, tool: str, call: str, **arguments: Any) -> Parked:
    parked = await room.call(tool, call=call, **arguments)
    assert isinstance(parked, Parked)
    return parked


async def refused(room: Room, tool: str, call: str, **arguments: Any) -> str:
    outcome = await room.call(tool, call=call, **arguments)
    assert isinstance(outcome, ToolOutcome)
    assert outcome.kind is OutcomeKind.DENIED, outcome
    return outcome.detail


def set_back(approval: str) -> tuple[str, str]:
    return (
        f"UPDATE quell_approvals SET status = 'approved', settled_at = NULL WHERE id = '{approval}'",
        f"UPDATE quell_approval_calls SET state = 'pending', at = NULL WHERE approval = '{approval}'",
    )


def test_an_approved_read_that_carries_data_out_does_not_run_twice_when_its_row_is_set_back(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room, "fetch_page", "c1", **PAGE)
        room.decide(parked, BEN)
        outcome = await room.call("fetch_page", call="c1", **PAGE)
        assert isinstance(outcome, ToolOutcome)
        assert (outcome.kind, room.world.reads) == (OutcomeKind.OK, 1)
        write(room, *set_back(parked.approval))
        assert "set back" in await refused(room, "fetch_page", "c1", **PAGE)
        assert room.world.reads == 1

    play(tmp_path, story)


def test_an_effect_does_not_run_twice_when_its_approval_and_its_entry_of_the_ledger_are_set_back(
    tmp_path: Path,
) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room, "scale", "c1", **SCALE)
        room.decide(parked, BEN)
        await room.call("scale", call="c1", **SCALE)
        assert len(room.world.done) == 1
        write(room, *set_back(parked.approval), "DELETE FROM quell_effects")
        room.world.keys.clear()
        assert "set back" in await refused(room, "scale", "c1", **SCALE)
        assert len(room.world.done) == 1

    play(tmp_path, story)


def test_what_was_replaced_or_rejected_stays_so_when_its_row_is_set_back(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        old = await asked(room, "scale", "c1", **SCALE)
        room.decide(old, BEN)
        new = await asked(room, "scale", "c1", **{**SCALE, "replicas": 5})
        write(room, *set_back(old.approval), f"DELETE FROM quell_approvals WHERE id = '{new.approval}'")
        assert "set back" in await refused(room, "scale", "c1", **SCALE)

        again = await asked(room, "restart", "c2", service="api", environment="staging")
        await asyncio.to_thread(vote, room, again, "reject")
        write(
            room,
            f"UPDATE quell_approvals SET status = 'requested', settled_at = NULL WHERE id = '{again.approval}'",
            f"DELETE FROM quell_approval_votes WHERE approval = '{again.approval}'",
        )
        await asyncio.to_thread(vote, room, again, "approve")
        assert "set back" in await refused(room, "restart", "c2", service="api", environment="staging")
        assert room.world.done == []

    play(tmp_path, story)


def vote(room: Room, parked: Parked, verdict: str) -> None:
    from quell.app._votes import vote as count  # noqa: PLC0415 - the one place that decides with its account

    count(
        room.authority,
        parked.approval,
        by=CAL,
        verdict="approve" if verdict == "approve" else "reject",
        digest_seen=parked.digest,
        reason="because",
        way="api",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("barred", []), ("quorum", 1), ("approver_roles", ["operator"]), ("expires_at", "2030-01-01T00:00:00Z")],
)
def test_terms_that_were_changed_before_anybody_voted_are_voted_on_by_nobody(
    tmp_path: Path, name: str, value: object
) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room, "delete_volume", "c1", **VOLUME)
        with room.runs.database.writing() as connection:
            row = connection.one("SELECT body FROM quell_approvals WHERE id = :id", id=parked.approval)
            terms = json.loads(row.body)
            assert terms[name] != value
            body = json.dumps(terms | {name: value}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            digest = hashlib.sha256(b"quell approval v1\n" + body.encode()).hexdigest()
            connection.run(
                "UPDATE quell_approvals SET body = :body, digest = :digest WHERE id = :id",
                body=body,
                digest=digest,
                id=parked.approval,
            )
            approvals = room.authority.guard.approvals
            for by in (ANN, BEN, person("olga", "operator")):
                with pytest.raises(RefusedError) as caught:
                    approvals.decide(connection, parked.approval, by=by, verdict="approve", digest_seen=digest)
                assert caught.value.code in {"mismatch", "forbidden"}
            assert approvals.find(connection, parked.approval, tenant="local").votes == ()  # type: ignore[union-attr]  # it is there
        assert room.world.done == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE quell_approvals SET status = 'approved'",
        "UPDATE quell_approvals SET expires_at = '2030-01-01T00:00:00.000000+00:00'",
        "UPDATE quell_approval_votes SET verdict = 'approve', person = 'cal', voter = 'cal'",
        "UPDATE quell_approval_votes SET body = replace(body, 'ben', 'cal')",
        "UPDATE quell_approval_seals SET principal = replace(principal, 'ann', 'eve')",
        "DELETE FROM quell_approval_seals",
        "DELETE FROM quell_approval_votes",
        "DELETE FROM quell_approval_calls",
    ],
)
def test_no_change_of_a_row_makes_one_yes_into_two_or_an_old_yes_into_a_new_one(tmp_path: Path, statement: str) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room, "delete_volume", "c1", **VOLUME)
        room.decide(parked, BEN)
        write(room, statement, "UPDATE quell_approvals SET status = 'approved'")
        await room.call("delete_volume", call="c1", **VOLUME)
        assert room.world.done == []
        room.clock.forward(seconds=901)
        await room.call("delete_volume", call="c1", **VOLUME)
        assert room.world.done == []

    play(tmp_path, story)


def test_ended_requests_are_removed_after_their_time_and_the_live_and_the_log_stay(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        done = await asked(room, "scale", "c1", **SCALE)
        room.decide(done, BEN)
        await room.call("scale", call="c1", **SCALE)
        await asked(room, "restart", "c2", service="api", environment="staging")
        room.clock.forward(seconds=timedelta(days=31).total_seconds())
        live = await asked(room, "restart", "c3", service="web", environment="staging")
        guard = room.authority.guard
        with room.runs.database.writing() as connection:
            assert guard.approvals.forget(connection, before=room.clock() - timedelta(days=30)) == 2
            left = guard.approvals.listed(connection, tenant="local")
            assert [each.id for each in left] == [live.approval]
            for table in ("calls", "seals"):
                rows = connection.all(f"SELECT DISTINCT approval FROM quell_approval_{table}")
                assert [row.approval for row in rows] == [live.approval]
            assert connection.all("SELECT approval FROM quell_approval_votes") == []
        told = [record for record in guard.audit.newest(items_max=100) if done.approval in record.body]
        assert told, "the account stays"
        assert guard.audit.verify().is_intact

    play(tmp_path, story)
