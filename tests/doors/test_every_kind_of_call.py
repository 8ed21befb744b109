"""Seven kinds of calls, one way: each is refused, denied, asked about, permitted and told of by the same path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quell.config import McpServerSettings
from quell.domain import (
    BoundExceededError,
    CallOrigin,
    CallProgress,
    EffectState,
    OutcomeKind,
    Parked,
    Recovery,
    RefusedError,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
    ToolTerms,
)
from quell.tools import Registry
from tests._mcp_rogue import rogue
from tests.doors._hand_bench import Room, hand_room, person

pytestmark = pytest.mark.timeout(60)

POLICIES = """
@id("own.not-mallory")
forbid (principal, action, resource) when { principal.user == "mallory" };

@id("own.ask-for-carl")
forbid (principal, action, resource) when { principal.user == "carl" } unless { context.approved };

@id("own.no-text-of-eve")
forbid (principal, action, resource) when { principal.user == "eve" && context.origin == "text" };
"""
DECLARED = {
    "name": "open_ticket",
    "description": "Open a ticket in the browser.",
    "inputSchema": {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 100}},
        "required": ["title"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True},
}
TICKET: Mapping[str, object] = {"title": "web is slow"}
AT: Mapping[str, object] = {"service": "web", "environment": "staging"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call."""

    tool: str
    arguments: Mapping[str, object]
    origin: CallOrigin = CallOrigin.MODEL


KINDS: Mapping[str, Kind] = {
    "mcp": Kind(tool="echo", arguments={"n": 1}),
    "built in": Kind(tool="page_vendor", arguments={"service": "web", "message": "help"}),
    "client side": Kind(tool="open_ticket", arguments=TICKET),
    "skill": Kind(tool="logs_search", arguments={"service": "web", "query": "x"}, origin=CallOrigin.SKILL),
    "probe of a wait": Kind(tool="is_volume_deleted", arguments={**AT, "volume": "v1"}, origin=CallOrigin.WAIT),
    "read out of text": Kind(tool="scale", arguments={**AT, "replicas": 3}, origin=CallOrigin.TEXT),
    "step of a runbook": Kind(tool="restart", arguments=AT, origin=CallOrigin.RUNBOOK),
}


@dataclass(slots=True, kw_only=True)
class House:
    """A room with a server, and a client at the door."""

    room: Room
    seat: Registry.Seat
    answers: list[str]

    async def call(
        self, kind: Kind, user: str, *, call: str, tool: str = "", seat: Registry.Seat | None = None
    ) -> ToolOutcome | Parked:
        caller = self.caller(user, origin=kind.origin, client=seat or self.seat)
        wanted = ToolCall(id=call, tool=tool or kind.tool, arguments=json.dumps(kind.arguments))
        return await self.room.authority.toolbox.call(wanted, caller=caller)

    def caller(self, user: str, **changes: object) -> ToolCaller:
        caller = self.room.caller(**changes)
        return replace(caller, principal=replace(caller.principal, user=user))

    def records(self) -> list[tuple[str, dict[str, object]]]:
        audit = self.room.authority.guard.audit
        audit.flush()
        return [(record.kind, json.loads(record.body)) for record in audit.records() if record.kind != "checkpoint"]


def pin(room: Room, seat: Registry.Seat, terms: ToolTerms | None = None) -> None:
    with room.runs.database.writing() as connection:
        pins = room.authority.pins
        pins.accept(connection, seat.offers[0], terms or ToolTerms(timeout_s=5.0), by=person("ann", "operator"))


async def _carry_out(house: House) -> None:
    while True:
        handed = await house.seat.next()
        house.answers.append(handed.call.arguments)
        assert house.seat.answer(handed.ticket, kind="ok", content='{"ticket": 7}')
        assert not house.seat.answer(handed.ticket, kind="ok", content="again")


@asynccontextmanager
async def open_house(tmp_path: Path) -> AsyncIterator[House]:
    async with rogue() as server:
        known = {"bad": McpServerSettings(transport="http_streamable", url=server.url, call_timeout_s=5.0)}
        async with hand_room(tmp_path, servers=known, policies=[POLICIES]) as room:
            house = House(room=room, seat=Registry.Seat(json.dumps([DECLARED])), answers=[])
            serving = asyncio.ensure_future(_carry_out(house))
            try:
                yield house
                assert room.authority.guard.audit.verify().is_intact
            finally:
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving


async def _pin_echo(room: Room) -> None:
    (offer,) = [each for each in await room.authority.servers.offers("bad") if each.original == "echo"]
    terms = ToolTerms(tool_class=ToolClass.READ, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")
    with room.runs.database.writing() as connection:
        room.authority.pins.accept(connection, offer, terms, by=person("ann", "operator"))


def _denied(ended: ToolOutcome | Parked) -> str:
    assert isinstance(ended, ToolOutcome), ended
    assert ended.kind is OutcomeKind.DENIED, ended
    return ended.detail


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_call_goes_the_whole_way(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]

    async def tell() -> None:
        async with open_house(tmp_path) as house:
            unknown = kind.tool if name in {"mcp", "client side"} else f"{kind.tool}_"
            assert "no such tool" in _denied(await house.call(kind, "carl", call="unknown", tool=unknown))
            await _pin_echo(house.room)
            pin(house.room, house.seat)
            assert "own.not-mallory" in _denied(await house.call(kind, "mallory", call="denied"))
            parked = await house.call(kind, "carl", call="asked")
            assert isinstance(parked, Parked), parked
            assert house.answers == []
            for who in ("bob", "cat")[: parked.quorum]:
                house.room.decide(parked, person(who, "approver"))
            done = await house.call(kind, "carl", call="asked")
            assert isinstance(done, ToolOutcome)
            assert done.kind is OutcomeKind.OK, done
            told = house.records()
            assert next(kind for kind, body in told if "no such tool" in str(body.get("reason"))) == "refusal"
            decisions = [body for _, body in told if "verdict" in body]
            assert {body["facts"]["origin"] for body in decisions} == {kind.origin.value}  # type: ignore[index]  # JSON
            assert {body["verdict"]["decision"] for body in decisions} == {"deny", "ask", "permit"}  # type: ignore[index]  # JSON
            assert [kind for kind, body in told if body.get("call") == "asked"][-1] == "outcome"

    asyncio.run(tell())


def test_a_policy_tells_calls_that_were_read_out_of_text_from_others(tmp_path: Path) -> None:
    async def tell() -> None:
        async with open_house(tmp_path) as house:
            search = KINDS["skill"]
            told = _denied(await house.call(replace(search, origin=CallOrigin.TEXT), "eve", call="a"))
            assert "own.no-text-of-eve" in told
            ended = await house.call(replace(search, origin=CallOrigin.MODEL), "eve", call="b")
            assert isinstance(ended, ToolOutcome)
            assert ended.kind is OutcomeKind.OK

    asyncio.run(tell())


# -- clients ----------------------------------------------------------------------------------------------------------


def _with_client(tmp_path: Path, story: Callable[[House], object], terms: ToolTerms | None = None) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, policies=[POLICIES]) as room:
            house = House(room=room, seat=Registry.Seat(json.dumps([DECLARED])), answers=[])
            pin(room, house.seat, terms)
            told = story(house)
            assert asyncio.iscoroutine(told)
            await told

    asyncio.run(tell())


async def _approved(house: House) -> asyncio.Future[ToolOutcome | Parked]:
    parked = await house.call(KINDS["client side"], "ann", call="t")
    assert isinstance(parked, Parked), parked
    assert parked.quorum == 2, "nobody believed the client that its tool only reads"
    for who in ("bob", "cat"):
        house.room.decide(parked, person(who, "approver"))
    return asyncio.ensure_future(house.call(KINDS["client side"], "ann", call="t"))


def _effects(house: House) -> list[EffectState]:
    with house.room.runs.database.reading() as connection:
        return [effect.state for effect in house.room.authority.guard.ledger.entries(connection)]


def test_a_client_that_vanishes_with_a_call_leaves_it_to_a_person_and_one_that_never_got_it_does_not(
    tmp_path: Path,
) -> None:
    async def story(house: House) -> None:
        calling = await _approved(house)
        handed = await house.seat.next()
        assert (handed.original, json.loads(handed.call.arguments), bool(handed.key)) == ("open_ticket", TICKET, True)
        house.seat.leave()
        ended = await calling
        assert isinstance(ended, ToolOutcome)
        assert "a person decides" in ended.detail
        assert _effects(house) == [EffectState.UNKNOWN]
        gone = await house.call(KINDS["client side"], "ann", call="t")
        assert isinstance(gone, ToolOutcome)
        assert "a person decides" in gone.detail, "it is not handed out again"
        late = Registry.Seat(json.dumps([DECLARED]))
        late.leave()
        parked = await house.call(KINDS["client side"], "dan", call="u", seat=late)
        assert isinstance(parked, Parked)
        for who in ("bob", "cat"):
            house.room.decide(parked, person(who, "approver"))
        await house.call(KINDS["client side"], "dan", call="u", seat=late)
        assert sorted(_effects(house)) == [EffectState.FAILED, EffectState.UNKNOWN]

    _with_client(tmp_path, story)


def test_a_client_that_is_silent_is_cut_off_and_its_late_answer_counts_for_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        calling = await _approved(house)
        handed = await house.seat.next()
        ended = await calling
        assert isinstance(ended, ToolOutcome)
        assert ended.kind is OutcomeKind.TIMEOUT
        assert not house.seat.answer(handed.ticket, kind="ok", content="done after all")
        assert _effects(house) == [EffectState.UNKNOWN]

    _with_client(tmp_path, story, ToolTerms(timeout_s=0.2))


@pytest.mark.parametrize("change", ["description", "gone", "nobody"])
def test_what_a_client_declares_otherwise_than_it_was_pinned_is_refused_before_people_are_asked(
    tmp_path: Path, change: str
) -> None:
    async def story(house: House) -> None:
        declared = {"description": [{**DECLARED, "description": "Other."}], "gone": [], "nobody": []}[change]
        seat = Registry.Seat(json.dumps(declared))
        toolbox = house.room.authority.toolbox
        if change == "nobody":
            wanted = ToolCall(id="t", tool="open_ticket", arguments=json.dumps(TICKET))
            _denied(await toolbox.call(wanted, caller=house.room.caller()))
            assert "open_ticket" not in [tool.name for tool in toolbox.catalog()]
        else:
            _denied(await house.call(KINDS["client side"], "ann", call="t", seat=seat))
            assert "open_ticket" not in [tool.name for tool in toolbox.catalog(seat)]
        assert "open_ticket" in [tool.name for tool in toolbox.catalog(house.seat)]
        assert [kind for kind, _ in house.records()] == ["refusal"]

    _with_client(tmp_path, story)


def test_what_a_client_answers_is_bounded_and_typed(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for call, kind, content, told in (
            ("a", "ok", "y" * 101, OutcomeKind.TRUNCATED),
            ("b", "ok", "  ", OutcomeKind.EMPTY),
            ("c", "failed", "no such page", OutcomeKind.TOOL_ERROR),
            ("d", "ok", '{"n": 1}', OutcomeKind.OK),
        ):
            calling = asyncio.ensure_future(house.call(KINDS["client side"], "ann", call=call))
            handed = await house.seat.next()
            assert house.seat.answer(handed.ticket, kind="ok" if kind == "ok" else "failed", content=content)
            ended = await calling
            assert isinstance(ended, ToolOutcome)
            assert (ended.kind, ended.is_json) == (told, told is OutcomeKind.OK), ended

    terms = ToolTerms(tool_class=ToolClass.READ, recovery=Recovery.NATURAL, result_max_bytes=100, reason="said so")
    _with_client(tmp_path, story, terms)


@pytest.mark.parametrize(
    "declared",
    ["", "{}", "[1]", '[{"name": "a"}]', '[{"name": "", "inputSchema": {}}]', "[" * 100_000],
)
def test_what_is_no_declaration_is_refused(declared: str) -> None:
    with pytest.raises(RefusedError):
        Registry.Seat(declared)


def test_a_client_declares_no_more_than_anybody_could_read() -> None:
    with pytest.raises(BoundExceededError):
        Registry.Seat(json.dumps([{**DECLARED, "name": f"t{number}"} for number in range(129)]))
    with pytest.raises(BoundExceededError):
        Registry.Seat(" " * 1_000_001)


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_of_a_server_reaches_the_caller_without_our_secrets(tmp_path: Path) -> None:
    async def tell() -> None:
        async with open_house(tmp_path) as house:
            room, heard = house.room, list[CallProgress]()
            offers = {offer.original: offer for offer in await room.authority.servers.offers("bad")}
            terms = ToolTerms(tool_class=ToolClass.READ, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")
            with room.runs.database.writing() as connection:
                room.authority.pins.accept(connection, offers["flood"], terms, by=person("ann", "operator"))
            room.authority.redactor.text = lambda text: text.replace("half way", "[taken out]")  # type: ignore[method-assign]
            ended = await room.call("flood", caller=house.caller("ann", on_progress=heard.append), n=1)
            assert isinstance(ended, ToolOutcome)
            assert "[taken out]" in heard[0].message
            assert "half way" not in " ".join(each.message for each in heard)

    asyncio.run(tell())
