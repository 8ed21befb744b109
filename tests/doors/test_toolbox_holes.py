"""Holes in the one path that a model, a server or an impatient caller could find, each shown by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quell.config import BudgetSettings, McpServerSettings
from quell.domain import (
    BudgetKind,
    EffectState,
    OutcomeKind,
    Parked,
    Recovery,
    Spender,
    ToolCall,
    ToolClass,
    ToolOutcome,
    ToolTerms,
)
from tests._mcp_rogue import Rogue, rogue
from tests._postgres import fresh_database
from tests.doors._hand_bench import Room, hand_room, outcome_of, parked_of, person, play

pytestmark = pytest.mark.timeout(60)


def _refusals(room: Room) -> list[str]:
    room.authority.guard.audit.flush()
    records = [record for record in room.authority.guard.audit.records() if record.kind == "refusal"]
    return [str(json.loads(record.body)["reason"]) for record in records]


async def _restart(room: Room, call: str, *, service: str = "web") -> ToolOutcome | Parked:
    return await room.call("restart", call=call, service=service, environment="production")


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_an_id_that_no_database_can_carry_is_refused_and_never_raises(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    async def story(room: Room) -> None:
        for odd in ("", "\ud800", "a\x00b", "two\nlines", "x" * 257):
            for tool, arguments in (
                ("logs_search", {"service": "web", "query": "x"}),
                ("restart", {"service": "web", "environment": "production"}),
            ):
                wanted = ToolCall(id=odd, tool=tool, arguments=json.dumps(arguments))
                outcome = outcome_of(await room.authority.toolbox.call(wanted, caller=room.caller()))
                assert outcome.kind is OutcomeKind.DENIED
                assert outcome.call.encode() is not None, "the outcome itself can be written down"
        assert room.world.reads == 0
        assert len(_refusals(room)) == 10

    if dialect == "sqlite":
        play(tmp_path, story)
    else:
        with fresh_database(request.getfixturevalue("postgres_url")) as url:
            play(tmp_path, story, url=url)


def test_what_people_rejected_is_refused_again_on_record(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.decide(parked_of(await _restart(room, "r")), person("bob", "approver"), verdict="reject", reason="not now")
        assert _refusals(room) == []
        assert outcome_of(await _restart(room, "r")).kind is OutcomeKind.DENIED
        (told,) = _refusals(room)
        assert "not now" in told

    play(tmp_path, story)


def test_what_a_cap_refuses_is_on_record_for_reads_and_for_effects(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        await room.call("logs_search", service="web", query="x")
        await room.call("logs_search", service="web", query="x")
        parked = parked_of(await _restart(room, "r"))
        room.decide(parked, person("bob", "approver"))
        assert outcome_of(await _restart(room, "r")).kind is OutcomeKind.DENIED
        assert len(_refusals(room)) == 2
        assert all("calls of run" in told for told in _refusals(room))
        assert room.world.done == []

    play(tmp_path, story, budgets=BudgetSettings(run_calls=1))


def test_the_id_of_an_effect_with_other_arguments_is_refused_before_people_are_asked(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.decide(parked_of(await _restart(room, "r")), person("bob", "approver"))
        await _restart(room, "r")
        other = outcome_of(await _restart(room, "r", service="pay"))
        assert (other.kind, len(room.world.done)) == (OutcomeKind.DENIED, 1)
        assert "other arguments" in other.detail
        (told,) = _refusals(room)
        assert "other arguments" in told

    play(tmp_path, story)


def test_one_id_in_flight_twice_happens_once_and_both_learn_how_it_ended(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.decide(parked_of(await _restart(room, "r")), person("bob", "approver"))
        ended = await asyncio.gather(*(_restart(room, "r") for _ in range(5)))
        assert [outcome_of(each).kind for each in ended] == [OutcomeKind.OK] * 5
        assert len(room.world.done) == 1

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("tool", "arguments", "state"),
    [
        ("page_vendor", {"service": "web", "message": "hello"}, EffectState.UNKNOWN),
        ("restart", {"service": "web", "environment": "production"}, EffectState.FAILED),
    ],
)
def test_the_word_of_a_blind_tool_that_it_failed_is_left_to_a_person(
    tmp_path: Path, tool: str, arguments: dict[str, Any], state: EffectState
) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await room.call(tool, call="e", **arguments))
        for who in ("bob", "cat")[: parked.quorum]:
            room.decide(parked, person(who, "approver"))
        room.world.says = [
            ToolOutcome(call="e", tool=tool, kind=OutcomeKind.TOOL_ERROR, detail="sent, then lost the thread")
        ]
        outcome = outcome_of(await room.call(tool, call="e", **arguments))
        assert "lost the thread" in outcome.detail
        with room.runs.database.reading() as connection:
            (effect,) = room.authority.guard.ledger.entries(connection)
        assert effect.state is state

    play(tmp_path, story)


def test_a_result_that_was_too_large_to_keep_is_not_cited_when_it_is_asked_for_again(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.decide(parked_of(await _restart(room, "r")), person("bob", "approver"))
        room.world.says = [ToolOutcome(call="r", tool="restart", kind=OutcomeKind.OK, content="y" * 300_000)]
        assert outcome_of(await _restart(room, "r")).is_citable
        again = outcome_of(await _restart(room, "r"))
        assert (again.kind, again.is_citable) == (OutcomeKind.TRUNCATED, False)
        assert "too large" in again.detail
        assert len(room.world.done) == 1

    play(tmp_path, story)


def test_a_read_that_is_given_up_while_it_is_decided_holds_nothing_of_the_budget(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        guard, enter = room.authority.guard, room.authority.guard.enter
        loop, is_in, is_done = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slow(request: object) -> object:
            loop.call_soon_threadsafe(is_in.set)
            try:
                return enter(request)  # type: ignore[arg-type]  # handed on as it came
            finally:
                is_done.set()

        guard.enter = slow  # type: ignore[assignment,method-assign]  # a person who gives up at the worst moment
        asking = asyncio.ensure_future(room.call("logs_search", call="q", service="web", query="x"))
        await is_in.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.to_thread(is_done.wait)
        with room.runs.database.reading() as connection:
            balances = guard.budgets.balances(
                connection, Spender(run=room.run, agent="sre", feature="", tenant="local")
            )
        assert {balance.in_flight for balance in balances} == {0}, balances
        assert any(balance.cap.kind is BudgetKind.BYTES for balance in balances)
        assert room.world.reads == 0

    play(tmp_path, story)


# -- servers that ask people ----------------------------------------------------------------------------------------


def _asked(tmp_path: Path, tool_class: ToolClass, story: Callable[[Room, Rogue], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with rogue() as server:
            known = {"bad": McpServerSettings(transport="http_streamable", url=server.url, call_timeout_s=5.0)}
            async with hand_room(tmp_path, servers=known) as room:
                terms = ToolTerms(tool_class=tool_class, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")
                offers = {offer.original: offer for offer in await room.authority.servers.offers("bad")}
                with room.runs.database.writing() as connection:
                    room.authority.pins.accept(connection, offers["park"], terms, by=person("ann", "operator"))
                await story(room, server)
                assert room.authority.guard.audit.verify().is_intact

    asyncio.run(tell())


def test_a_read_that_a_server_asked_about_goes_on_under_its_first_id_too(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        parked = parked_of(await room.call("park", call="p", n=1))
        room.decide(parked, person("bob", "approver"))
        outcome = outcome_of(await room.call("park", call="p", n=1))
        assert (outcome.call, outcome.kind) == ("p~1", OutcomeKind.OK), outcome
        assert server.calls[-1]["inputResponses"], "the server got its answer"
        assert parked_of(await room.call("park", call="p", n=1)).approval != parked.approval, "a yes is used once"

    _asked(tmp_path, ToolClass.READ, story)


def test_a_servers_question_that_people_rejected_is_a_refusal_and_not_an_error(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue) -> None:
        parked = parked_of(await room.call("park", call="p", n=1))
        room.decide(parked, person("bob", "approver"), verdict="reject", reason="no")
        assert outcome_of(await room.call("park", call="p", n=1)).kind is OutcomeKind.DENIED
        assert "rejected by bob" in _refusals(room)[-1]

    _asked(tmp_path, ToolClass.READ, story)


def test_a_model_that_takes_the_id_of_a_round_first_gets_a_typed_outcome(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue) -> None:
        for call in ("p~1", "p"):
            first = parked_of(await room.call("park", call=call, n=1))
            for who in ("bob", "cat"):
                room.decide(first, person(who, "approver"))
            last = await room.call("park", call=call, n=1)
        assert outcome_of(last).kind is not OutcomeKind.OK
        assert not any("inputResponses" in call for call in server.calls), "nobody answered the server"

    _asked(tmp_path, ToolClass.IRREVERSIBLE, story)
