"""A form that a tool server shows: filled in by those who approve, signed, and sent to that server for that call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.config import McpServerSettings, Secret
from quell.domain import (
    Approval,
    OutcomeKind,
    Parked,
    Recovery,
    RefusedError,
    ToolClass,
    ToolOutcome,
    ToolTerms,
    UsageError,
)
from tests import _mcp_rogue
from tests._mcp_rogue import Rogue, rogue
from tests.doors._hand_bench import Room, hand_room, person

pytestmark = pytest.mark.timeout(60)

HELD = "hunter2-correct-horse-battery"
BOB, CAT, DAN = (person(name, "approver") for name in ("bob", "cat", "dan"))
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Whom to tell", "maxLength": 40},
        "count": {"type": "integer", "minimum": 1, "maximum": 5},
        "size": {"type": "string", "enum": ["small", "large"]},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "sure"],
}


def told(tmp_path: Path, story: Callable[[Room, Rogue], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with rogue() as server:
            settings = McpServerSettings(
                transport="http_streamable", url=server.url, call_timeout_s=5.0, headers={"x-held": Secret(HELD)}
            )
            async with hand_room(tmp_path, servers={"bad": settings}) as room:
                await story(room, server)

    asyncio.run(tell())


async def asked(room: Room, tool_class: ToolClass = ToolClass.READ) -> Parked | ToolOutcome:
    terms = ToolTerms(tool_class=tool_class, timeout_s=5.0, reason="said so")
    offers = {offer.original: offer for offer in await room.authority.servers.offers("bad")}
    with room.runs.database.writing() as connection:
        room.authority.pins.accept(connection, offers["park"], terms, by=person("ann", "operator"))
    await room.authority.reload()
    ended = await room.call("park", call="p", n=1)
    if tool_class.is_effect:
        assert isinstance(ended, Parked)
        for who in (BOB, CAT):
            room.decide(ended, who)
        ended = await room.call("park", call="p", n=1)
    return ended


def say(room: Room, parked: Parked, by: Any, **answers: Any) -> Approval:
    with room.runs.database.writing() as connection:
        return room.authority.guard.approvals.decide(
            connection, parked.approval, by=by, verdict="approve", digest_seen=parked.digest, answers=answers
        ).approval


def test_what_was_filled_in_for_one_call_is_not_sent_with_another_of_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mcp_rogue, "FORM", FORM)

    async def story(room: Room, _server: Rogue) -> None:
        parked = await asked(room)
        assert isinstance(parked, Parked)
        say(room, parked, BOB, name="Ann", sure=True)
        approvals = room.authority.guard.approvals
        with room.runs.database.reading() as connection:
            approval = approvals.find(connection, parked.approval, tenant="local")
            assert approval is not None
            call = approval.terms.calls[0].call
            said = approvals.answers(connection, call, approval=approval.id, tenant="local")
            assert json.loads(said)["name"] == "Ann"
            for other, by in ((replace(call, arguments='{"n":2}', digest="0"), approval.id), (call, ""), (call, "x")):
                with pytest.raises(RefusedError, match="nobody approved"):
                    approvals.answers(connection, other, approval=by, tenant="local")

    told(tmp_path, story)


def shown(room: Room, parked: Parked, form: Any = "text") -> str:
    approvals = room.authority.guard.approvals
    with room.runs.database.reading() as connection:
        approval = approvals.find(connection, parked.approval, tenant="local")
    assert approval is not None
    return approvals.show(approval, form=form)


def test_those_who_approve_fill_it_in_alike_and_the_server_gets_exactly_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mcp_rogue, "FORM", FORM)

    async def story(room: Room, server: Rogue) -> None:
        parked = await asked(room, ToolClass.IRREVERSIBLE)
        assert isinstance(parked, Parked)
        question = shown(room, parked)
        assert "name (string, required)" in question
        assert "--answer 'name=...'" in question
        first = say(room, parked, BOB, name="Ann", count=2)
        assert json.loads(first.votes[0].answers) == {"name": "Ann", "count": 2, "sure": True}
        assert '"name":"Ann"' in shown(room, parked), "who comes next sees it"
        with pytest.raises(RefusedError, match="otherwise") as other:
            say(room, parked, CAT, name="Eve", count=2)
        assert other.value.code == "mismatch"
        with pytest.raises(RefusedError, match="otherwise"):
            say(room, parked, CAT, name="Ann")
        say(room, parked, CAT, name="Ann", count=2, sure=True)
        outcome = await room.call("park", call="p~1", n=1)
        assert isinstance(outcome, ToolOutcome)
        assert outcome.kind is OutcomeKind.OK, outcome
        (reply,) = server.calls[-1]["inputResponses"].values()
        assert reply["content"] == {"name": "Ann", "count": 2, "sure": True}
        parked = await room.call("park", call="q", n=2)
        assert isinstance(parked, Parked)
        assert sum("inputResponses" in sent for sent in server.calls) == 1, "another call is not told it"

    told(tmp_path, story)


def test_a_server_that_asks_about_an_edited_call_goes_on_with_the_edited_arguments(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        await asked(room)
        terms = ToolTerms(tool_class=ToolClass.REVERSIBLE, recovery=Recovery.NATURAL, timeout_s=5.0, reason="x")
        offers = {offer.original: offer for offer in await room.authority.servers.offers("bad")}
        with room.runs.database.writing() as connection:
            room.authority.pins.accept(connection, offers["park"], terms, by=person("ann", "operator"))
        await room.authority.reload()
        first = await room.call("park", call="e", n=1)
        assert isinstance(first, Parked)
        room.clock.forward(seconds=1)
        new = await room.authority.toolbox.edit(
            first.approval, arguments='{"n":2}', by=CAT, digest_seen=first.digest, way="cli"
        )
        waits = await room.call("park", call="e", n=1)
        assert isinstance(waits, Parked)
        assert waits.approval == new.id
        for who in (BOB, DAN):
            room.decide(waits, who)
        ended = await room.call("park", call="e", n=1)
        assert isinstance(ended, Parked)
        assert ended.call == "e~1"
        with pytest.raises(RefusedError, match="may not decide"):
            room.decide(ended, CAT)
        for who in (BOB, DAN):
            room.decide(ended, who)
        outcome = await room.call("park", call="e~1", n=1)
        assert isinstance(outcome, ToolOutcome)
        assert outcome.kind is OutcomeKind.OK, outcome
        assert server.calls[-1]["inputResponses"]
        assert server.calls[-1]["arguments"] == {"n": 2}

    told(tmp_path, story)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "name"),
        ({"name": "x" * 41}, "40"),
        ({"name": 7}, "name"),
        ({"name": "Ann", "count": 6}, "count"),
        ({"name": "Ann", "size": "huge"}, "size"),
        ({"name": "Ann", "more": "1"}, "more"),
        ({"name": "Ann", "sure": "yes"}, "sure"),
        ({"name": HELD}, "holds a secret"),
    ],
)
def test_what_does_not_fit_the_form_is_no_approval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(_mcp_rogue, "FORM", FORM)

    async def story(room: Room, server: Rogue) -> None:
        parked = await asked(room)
        assert isinstance(parked, Parked)
        with pytest.raises(UsageError, match=said) as caught:
            say(room, parked, BOB, **answers)
        assert HELD not in f"{caught.value} {caught.value.hint}"
        assert isinstance(await room.call("park", call="p~1", n=1), Parked)
        assert not any("inputResponses" in sent for sent in server.calls)

    told(tmp_path, story)


def test_an_answer_that_was_changed_in_the_database_reaches_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mcp_rogue, "FORM", FORM)

    async def story(room: Room, server: Rogue) -> None:
        parked = await asked(room)
        assert isinstance(parked, Parked)
        say(room, parked, BOB, name="Ann")
        with room.runs.database.writing() as connection:
            assert connection.run("UPDATE quell_approval_votes SET body = replace(body, 'Ann', 'Eve')") == 1
        ended = await room.call("park", call="p~1", n=1)
        assert not (isinstance(ended, ToolOutcome) and ended.kind is OutcomeKind.OK)
        assert not any("inputResponses" in sent for sent in server.calls)

    told(tmp_path, story)


def test_there_is_nothing_to_fill_in_where_nobody_asks(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        parked = await room.call("restart", service="web", environment="staging")
        assert isinstance(parked, Parked)
        with pytest.raises(UsageError, match="nothing is to be filled in"):
            say(room, parked, BOB, name="Ann")

    told(tmp_path, story)


@pytest.mark.parametrize(
    "field",
    [
        {"type": "object", "properties": {}},
        {"$ref": "https://example.org/schema"},
        {"type": "string", "pattern": "(a+)+$"},
        {"anyOf": [{"type": "string"}]},
        "text",
    ],
)
def test_a_form_that_is_more_than_flat_fields_is_answered_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: Any
) -> None:
    monkeypatch.setattr(_mcp_rogue, "FORM", {"type": "object", "properties": {"x": field}, "required": ["x"]})

    async def story(room: Room, server: Rogue) -> None:
        ended = await asked(room)
        assert isinstance(ended, ToolOutcome)
        assert ended.kind is not OutcomeKind.OK
        assert not any("inputResponses" in sent for sent in server.calls)

    told(tmp_path, story)
