"""Tools of servers through the one path: pinned by a person, refused when they change, typed whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quell.app._toolset import terms_of
from quell.config import McpServerSettings, ToolSettings
from quell.domain import ConfigError, OutcomeKind, Parked, Recovery, ToolClass, ToolOutcome, ToolTerms
from quell.governance import PolicySet
from quell.tools import Pins
from tests._mcp_rogue import Rogue, rogue
from tests.doors._hand_bench import Room, hand_room, person

pytestmark = pytest.mark.timeout(60)

READ = ToolTerms(tool_class=ToolClass.READ, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")


def _told(tmp_path: Path, story: Callable[[Room, Rogue], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with rogue() as server:
            known = {"bad": McpServerSettings(transport="http_streamable", url=server.url, call_timeout_s=5.0)}
            async with hand_room(tmp_path, servers=known) as room:
                await story(room, server)

    asyncio.run(tell())


async def _pin(room: Room, *names: str, terms: ToolTerms = READ) -> None:
    pins = room.authority.pins
    offers = {offer.original: offer for offer in await room.authority.servers.offers("bad")}
    with room.runs.database.writing() as connection:
        for name in names:
            pins.accept(connection, offers[name], terms, by=person("ann", "operator"))


async def _call(room: Room, tool: str, *, call: str = "") -> ToolOutcome:
    ended = await room.call(tool, call=call, n=1)
    assert isinstance(ended, ToolOutcome), ended
    return ended


def test_a_tool_that_nobody_pinned_does_not_exist(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        assert "echo" not in [tool.name for tool in room.authority.toolbox.catalog()]
        assert (await _call(room, "echo")).kind is OutcomeKind.DENIED
        await _pin(room, "echo")
        assert (await _call(room, "echo")).kind is OutcomeKind.OK
        assert len(server.calls) == 1

    _told(tmp_path, story)


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ("failed", OutcomeKind.TOOL_ERROR),
        ("empty_list", OutcomeKind.EMPTY),
        ("lie", OutcomeKind.SUSPICIOUS),
        ("status_500", OutcomeKind.TRANSPORT_ERROR),
        ("close", OutcomeKind.TRANSPORT_ERROR),
        ("sample", OutcomeKind.TOOL_ERROR),
    ],
)
def test_whatever_a_server_does_comes_back_typed_and_is_not_cited(tool: str, kind: OutcomeKind, tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        await _pin(room, tool, "echo")
        outcome = await _call(room, tool)
        assert (outcome.kind, outcome.is_citable) == (kind, False), outcome
        assert outcome.detail or kind is OutcomeKind.EMPTY
        assert (await _call(room, "echo")).kind is OutcomeKind.OK

    _told(tmp_path, story)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"as_of": "/at", "fresh_for_s": 60.0}, OutcomeKind.STALE),
        ({"as_of": "/when", "fresh_for_s": 1e9}, OutcomeKind.STALE),
        ({"as_of": "/at", "fresh_for_s": 1e9}, OutcomeKind.OK),
        ({"as_of": "/at"}, OutcomeKind.OK),
    ],
)
def test_data_older_than_the_operator_allows_is_stale_and_is_not_cited(
    asked: dict[str, object], kind: OutcomeKind, tmp_path: Path
) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        settings = ToolSettings(server="bad", name="old", effect="read", recovery="natural", **asked)  # type: ignore[arg-type]  # keys by name
        await _pin(room, "old", terms=terms_of(settings))
        outcome = await _call(room, "old")
        assert (outcome.kind, outcome.is_citable) == (kind, kind is OutcomeKind.OK), outcome

    _told(tmp_path, story)


def test_an_effect_that_a_server_took_without_an_answer_is_left_to_people(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        effect = ToolTerms(tool_class=ToolClass.IRREVERSIBLE, timeout_s=5.0, reason="nobody can tell")
        for tool in ("accepted", "moved"):
            await _pin(room, tool, terms=effect)
            parked = await room.call(tool, call=tool, n=1)
            assert isinstance(parked, Parked)
            for who in ("bob", "cat"):
                room.decide(parked, person(who, "approver"))
            outcome = await _call(room, tool, call=tool)
            assert "nobody knows whether it happened; a person decides" in outcome.detail
        assert [one["name"] for one in server.calls] == ["accepted", "moved"]

    _told(tmp_path, story)


def test_an_effect_for_a_server_that_hangs_before_it_is_sent_is_known_not_to_have_happened(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        await _pin(room, "echo", terms=ToolTerms(tool_class=ToolClass.IRREVERSIBLE, timeout_s=1.0, reason="blind"))
        parked = await room.call("echo", call="e1", n=1)
        assert isinstance(parked, Parked)
        for who in ("bob", "cat"):
            room.decide(parked, person(who, "approver"))
        server.listing = "hangs"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await room.authority.servers.offers("bad", max_age_s=0)
        outcome = await _call(room, "echo", call="e1")
        assert outcome.kind is OutcomeKind.TRANSPORT_ERROR, outcome
        assert "nobody knows" not in outcome.detail
        assert server.calls == []

    _told(tmp_path, story)


def test_a_large_result_is_put_aside_and_read_in_parts(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        await _pin(room, "huge", terms=replace(READ, result_max_bytes=8_000_000))
        outcome = await _call(room, "huge")
        assert outcome.handle
        assert len(outcome.content) < 10_000
        reading = next(tool.name for tool in room.authority.toolbox.catalog() if tool.name.endswith("head"))
        part = await room.call(reading, handle=outcome.handle)
        assert isinstance(part, ToolOutcome)
        assert part.kind in {OutcomeKind.OK, OutcomeKind.TRUNCATED}, part
        stranger = await room.call(reading, caller=room.caller(session="another"), handle=outcome.handle)
        assert isinstance(stranger, ToolOutcome)
        assert stranger.kind is OutcomeKind.DENIED

    _told(tmp_path, story)


def test_an_effect_of_a_server_carries_its_key_and_one_that_hangs_is_left_to_people(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        effect = ToolTerms(
            tool_class=ToolClass.IRREVERSIBLE, recovery=Recovery.BLIND, timeout_s=1.0, reason="nobody can tell"
        )
        await _pin(room, "hang", terms=effect)
        parked = await room.call("hang", call="h1", n=1)
        assert isinstance(parked, Parked)
        assert server.calls == []
        for who in ("bob", "cat"):
            room.decide(parked, person(who, "approver"))
        outcome = await _call(room, "hang", call="h1")
        assert outcome.kind is OutcomeKind.TIMEOUT
        assert "nobody knows" in outcome.detail
        assert [sent["_meta"] for sent in server.calls if "_meta" in sent], "the key travels"
        await _call(room, "hang", call="h1")
        assert len(server.calls) == 1

    _told(tmp_path, story)


@pytest.mark.parametrize("tool_class", [ToolClass.READ, ToolClass.IRREVERSIBLE])
def test_a_server_that_asks_people_gets_the_answer_of_people(tool_class: ToolClass, tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        terms = ToolTerms(tool_class=tool_class, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")
        await _pin(room, "park", terms=terms)
        ended = await room.call("park", call="p", n=1)
        if tool_class.is_effect:
            assert isinstance(ended, Parked)
            for who in ("bob", "cat"):
                room.decide(ended, person(who, "approver"))
            ended = await room.call("park", call="p", n=1)
        assert isinstance(ended, Parked)
        assert (ended.call, len(server.calls)) == ("p~1", 1)
        again = await room.call("park", call="p~1", n=1)
        assert isinstance(again, Parked)
        assert (again.approval, len(server.calls)) == (ended.approval, 1)
        with room.runs.database.reading() as connection:
            approval = room.authority.guard.approvals.find(connection, ended.approval, tenant="local")
        assert approval is not None
        assert "the server asks, in its own words" in room.authority.guard.approvals.show(approval, form="text")
        for who in ("bob", "cat")[: ended.quorum]:
            room.decide(ended, person(who, "approver"))
        outcome = await _call(room, "park", call="p~1")
        assert outcome.kind is OutcomeKind.OK, outcome
        assert server.calls[-1]["inputResponses"], "the server got its answer"

    _told(tmp_path, story)


def test_what_people_pin_and_take_back_elsewhere_counts_at_the_next_call_of_a_running_process(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        await _pin(room, "echo")
        assert (await _call(room, "echo")).kind is OutcomeKind.OK
        was = room.authority.guard.policy
        assert (await _call(room, "echo")).kind is OutcomeKind.OK
        assert room.authority.guard.policy is was, "nothing is built again while nobody pins"
        await _pin(room, "echo", terms=replace(READ, tool_class=ToolClass.IRREVERSIBLE, recovery=Recovery.BLIND))
        assert isinstance(await room.call("echo", n=1), Parked)
        with room.runs.database.writing() as connection:
            assert Pins.drop(connection, "bad", "echo")
        outcome = await _call(room, "echo")
        assert (outcome.kind, "no such tool" in outcome.detail) == (OutcomeKind.DENIED, True)
        assert sum("inputResponses" not in call for call in server.calls) == 2

    _told(tmp_path, story)


def test_a_pin_that_is_taken_back_is_gone_also_where_the_policies_name_it(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        await _pin(room, "echo", "failed")
        assert (await _call(room, "echo")).kind is OutcomeKind.OK

        def refuses(*_given: object, **_named: object) -> object:
            raise ConfigError("a policy names a tool that is not there")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PolicySet, "load", refuses)
            with room.runs.database.writing() as connection:
                assert Pins.drop(connection, "bad", "failed")
            await _pin(room, "huge")
            assert (await _call(room, "failed")).kind is OutcomeKind.DENIED
            assert (await _call(room, "huge")).kind is OutcomeKind.DENIED
            assert (await _call(room, "echo")).kind is OutcomeKind.OK, "what stands as it stood goes on"
        await _pin(room, "huge")
        assert (await _call(room, "huge")).handle

    _told(tmp_path, story)


@pytest.mark.parametrize("call", ["q", "q\x00"])
def test_a_server_that_asks_what_people_can_not_be_asked_is_a_refusal_and_no_error(call: str, tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        await _pin(room, "park")
        asked = await room.call("park", call="p", n=1)
        assert isinstance(asked, Parked)
        room.decide(asked, person("bob", "approver"), verdict="reject", reason="no")
        again = await _call(room, "park", call=call)
        assert again.kind is OutcomeKind.DENIED
        assert ("rejected" if call == "q" else "id of a call") in again.detail

    _told(tmp_path, story)
