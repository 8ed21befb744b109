"""The one path, from a wish to a typed outcome and the account of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quell.config import BudgetSettings, CapSettings
from quell.domain import EffectState, Level, OutcomeKind, Parked, ToolCall, ToolOutcome
from tests.doors._hand_bench import Room, outcome_of, parked_of, person, play

pytestmark = pytest.mark.timeout(30)


def _kinds(room: Room) -> list[str]:
    room.authority.guard.audit.flush()
    return [record.kind for record in room.authority.guard.audit.records() if record.kind != "checkpoint"]


async def _scale(room: Room, call: str, *, environment: str = "production", replicas: int = 6) -> ToolOutcome | Parked:
    return await room.call("scale", call=call, service="web", environment=environment, replicas=replicas)


def test_a_read_goes_through_at_once_and_is_on_record(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        outcome = outcome_of(await room.call("logs_search", service="web", query="timeout"))
        assert (outcome.kind, outcome.is_citable, room.world.reads) == (OutcomeKind.OK, True, 1)
        assert _kinds(room) == ["decision", "outcome"]

    play(tmp_path, story)


def test_an_effect_waits_for_another_person_and_then_happens_once(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        first = parked_of(await _scale(room, "s1"))
        again = parked_of(await _scale(room, "s1"))
        assert (again.approval, room.world.done) == (first.approval, [])
        room.decide(first, person("bob", "approver"))
        outcome = outcome_of(await _scale(room, "s1"))
        assert outcome.kind is OutcomeKind.OK, outcome
        assert outcome.evidence["approval"] == first.approval
        repeated = outcome_of(await _scale(room, "s1"))
        assert (repeated.kind, repeated.content) == (OutcomeKind.OK, outcome.content)
        assert len(room.world.done) == 1
        assert _kinds(room) == ["decision", "approval", "effect", "outcome"]

    play(tmp_path, story)


def test_what_nothing_undoes_needs_two_people_and_never_the_one_who_asks(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        async def delete() -> ToolOutcome | Parked:
            return await room.call("delete_volume", call="d1", service="pay", environment="production", volume="old-1")

        parked = parked_of(await delete())
        assert parked.quorum == 2
        with pytest.raises(Exception, match="ann"):
            room.decide(parked, person("ann", "approver"))
        room.decide(parked, person("bob", "approver"))
        assert parked_of(await delete()).approval == parked.approval
        room.decide(parked, person("cat", "approver"))
        assert outcome_of(await delete()).kind is OutcomeKind.OK
        assert [done[0] for done in room.world.done] == ["delete_volume"]

    play(tmp_path, story)


def test_other_arguments_under_an_approved_call_are_not_that_call(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await _scale(room, "s1"))
        room.decide(parked, person("bob", "approver"))
        other = parked_of(await _scale(room, "s1", replicas=60))
        assert other.approval != parked.approval
        assert room.world.done == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("logs_serach", {"service": "web", "query": "x"}, "no such tool"),
        ("logs_sеarch", {"service": "web", "query": "x"}, "no such tool"),  # noqa: RUF001 - a Cyrillic letter
        ("logs_search", {"service": "web"}, "query"),
        ("logs_search", {"service": "web", "query": "x", "also": 1}, "also"),
        ("logs_search", {"service": "WEB", "query": "x"}, "web"),
        ("scale", {"service": "web", "environment": "staging", "replicas": True}, "replicas"),
        ("scale", {"service": "web", "environment": "staging", "replicas": 1e3}, "replicas"),
        ("fetch_page", {"url": "https://docs.example@evil.example/"}, "user info"),
    ],
)
def test_what_no_schema_allows_is_refused_with_a_lesson_and_is_on_record(
    tool: str, arguments: dict[str, object], told: str, tmp_path: Path
) -> None:
    async def story(room: Room) -> None:
        wanted = ToolCall(id="c1", tool=tool, arguments=json.dumps(arguments))
        outcome = outcome_of(await room.authority.toolbox.call(wanted, caller=room.caller()))
        assert outcome.kind is OutcomeKind.DENIED
        assert told in outcome.detail
        assert (room.world.done, room.world.reads) == ([], 0)
        assert _kinds(room) == ["refusal"]

    play(tmp_path, story)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"service": "web", "service": "pay", "query": "x"}',
        '{"service": "web", "query": ' + "[" * 5000,
        "NaN",
        "x" * 10_000_000,
    ],
    ids=["twice", "deep", "nan", "ten megabytes"],
)
def test_arguments_that_are_no_json_are_refused(arguments: str, tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        wanted = ToolCall(id="c1", tool="logs_search", arguments=arguments)
        outcome = outcome_of(await room.authority.toolbox.call(wanted, caller=room.caller()))
        assert (outcome.kind, room.world.reads) == (OutcomeKind.DENIED, 0)

    play(tmp_path, story)


def test_a_stop_between_the_approval_and_the_call_is_heeded(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await _scale(room, "s1"))
        room.decide(parked, person("bob", "approver"))
        switches = room.authority.guard.switches
        with room.runs.database.writing() as connection:
            killed = switches.kill(connection, by=person("eve", "admin"), reason="something is wrong")
        outcome = outcome_of(await _scale(room, "s1"))
        assert (outcome.kind, room.world.done) == (OutcomeKind.DENIED, [])
        with room.runs.database.writing() as connection:
            switches.lift(connection, killed.switch.id, by=person("eve", "admin"), reason="all is well")
        assert outcome_of(await _scale(room, "s1")).kind is OutcomeKind.OK

    play(tmp_path, story)


def test_an_approval_that_came_too_late_lets_nothing_go(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await _scale(room, "s1"))
        room.decide(parked, person("bob", "approver"))
        room.clock.forward(seconds=3600)
        again = parked_of(await _scale(room, "s1"))
        assert again.approval != parked.approval
        assert room.world.done == []

    play(tmp_path, story)


def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_key_and_counts_once(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await _scale(room, "s1"))
        room.decide(parked, person("bob", "approver"))
        room.world.says = [ConnectionResetError("lost")]
        outcome = outcome_of(await _scale(room, "s1"))
        assert (outcome.kind, len(room.world.done)) == (OutcomeKind.OK, 1)

    play(tmp_path, story)


def test_a_blind_tool_whose_answer_is_lost_goes_to_a_person_and_never_out_again(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        async def page() -> ToolOutcome | Parked:
            return await room.call("page_vendor", call="p1", service="pay", message="help")

        parked = parked_of(await page())
        for who in ("bob", "cat"):
            room.decide(parked, person(who, "approver"))
        room.world.says = [ConnectionResetError("lost")]
        outcome = outcome_of(await page())
        assert (outcome.kind, outcome.is_citable) == (OutcomeKind.TIMEOUT, False)
        assert "nobody knows" in outcome.detail
        assert outcome_of(await page()).kind is OutcomeKind.TIMEOUT
        assert len(room.world.done) == 1
        with room.runs.database.reading() as connection:
            (unknown,) = room.authority.guard.ledger.entries(connection, state=EffectState.UNKNOWN)
        assert unknown.call.id == "p1"

    play(tmp_path, story)


def test_without_a_run_that_is_held_nothing_is_changed(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = parked_of(await _scale(room, "s1"))
        room.decide(parked, person("bob", "approver"))
        for fence in (None, replace(room.fence, token="slot-9.z")):
            caller = room.caller(fence=fence)
            ended = await room.call(
                "scale", call="s1", caller=caller, service="web", environment="production", replicas=6
            )
            assert outcome_of(ended).kind is OutcomeKind.DENIED
        assert room.world.done == []

    play(tmp_path, story)


def test_a_budget_that_is_used_up_refuses_and_says_so(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        kinds = [
            outcome_of(await room.call("logs_search", service="web", query=str(number))).kind for number in range(4)
        ]
        assert kinds == [OutcomeKind.OK] * 3 + [OutcomeKind.DENIED]
        assert room.world.reads == 3

    play(tmp_path, story, budgets=BudgetSettings(run_calls=3))


def test_what_the_agent_may_not_use_is_denied_whatever_the_person_may(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        narrow = replace(room.caller().principal, agent_tools=("metrics_*",))
        ended = await room.call("logs_search", caller=room.caller(principal=narrow), service="web", query="x")
        outcome = outcome_of(ended)
        assert (outcome.kind, room.world.reads) == (OutcomeKind.DENIED, 0)
        assert "quell.agent" in outcome.detail
        assert _kinds(room) == ["decision"]

    play(tmp_path, story)


def test_a_read_that_fails_on_its_way_is_tried_again_and_one_that_is_refused_is_not(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        lost = ToolOutcome(call="r1", tool="logs_search", kind=OutcomeKind.TRANSPORT_ERROR, detail="reset")
        room.world.says = [lost]
        outcome = outcome_of(await room.call("logs_search", call="r1", service="web", query="x"))
        assert (outcome.kind, outcome.attempts, room.world.reads) == (OutcomeKind.OK, 2, 2)
        room.world.says = [replace(lost, kind=OutcomeKind.TOOL_ERROR)]
        outcome = outcome_of(await room.call("logs_search", call="r2", service="web", query="x"))
        assert (outcome.kind, outcome.is_citable, room.world.reads) == (OutcomeKind.TOOL_ERROR, False, 3)

    play(tmp_path, story)


def test_a_secret_in_a_result_does_not_reach_the_caller_or_the_account(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        text = "password=hunter2-of-the-database token ghp_0123456789abcdefghijABCDEFGHIJ012345"
        room.world.says = [ToolOutcome(call="r1", tool="logs_search", kind=OutcomeKind.OK, content=text)]
        outcome = outcome_of(await room.call("logs_search", call="r1", service="web", query="x"))
        assert "ghp_0123456789" not in outcome.content
        kept = "".join(record.body for record in room.authority.guard.audit.records())
        assert "ghp_0123456789" not in kept

    play(tmp_path, story)


def test_one_call_id_is_one_call(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        async def restart(service: str) -> ToolOutcome | Parked:
            return await room.call("restart", call="x", service=service, environment="staging")

        parked = parked_of(await restart("web"))
        room.decide(parked, person("bob", "approver"))
        assert outcome_of(await restart("web")).kind is OutcomeKind.OK
        other = await restart("pay")
        if isinstance(other, Parked):
            room.decide(other, person("bob", "approver"))
            other = await restart("pay")
        assert outcome_of(other).kind is OutcomeKind.DENIED
        assert [done[1]["service"] for done in room.world.done] == ["web"]

    play(tmp_path, story)


def test_nothing_is_carried_out_of_the_house_after_a_kill_however_fresh_it_is(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        async def fetch(call: str) -> ToolOutcome:
            parked = parked_of(await room.call("fetch_page", call=call, url="https://docs.example/a"))
            room.decide(parked, person("bob", "approver"))
            return outcome_of(await room.call("fetch_page", call=call, url="https://docs.example/a"))

        assert (await fetch("f1")).kind is OutcomeKind.OK
        parked = parked_of(await room.call("fetch_page", call="f2", url="https://docs.example/a"))
        room.decide(parked, person("bob", "approver"))
        with room.runs.database.writing() as connection:
            room.authority.guard.switches.kill(connection, by=person("eve", "admin"), reason="a leak")
        ended = await room.call("fetch_page", call="f2", url="https://docs.example/a")
        assert outcome_of(ended).kind is OutcomeKind.DENIED
        assert room.world.reads == 1

    play(tmp_path, story)


def test_a_cap_of_ones_own_holds_for_the_agents_that_it_names(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        async def read(agent: str, query: str) -> OutcomeKind:
            who = replace(room.caller().principal, agent=agent)
            ended = await room.call("logs_search", caller=room.caller(principal=who), service="web", query=query)
            return outcome_of(ended).kind

        assert [await read("night-watch", str(number)) for number in range(3)] == [
            OutcomeKind.OK,
            OutcomeKind.OK,
            OutcomeKind.DENIED,
        ]
        assert await read("sre", "x") is OutcomeKind.OK

    cap = CapSettings(kind="calls", limit=2, per=("agent", "day"), agent="night-*")
    play(tmp_path, story, caps=(cap,))


@pytest.mark.parametrize(("services", "waits"), [(4, True), (40, False)])
def test_what_touches_too_large_a_share_of_the_services_does_not_go_by_itself(
    services: int, *, waits: bool, tmp_path: Path
) -> None:
    async def story(room: Room) -> None:
        room.authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
        who = replace(room.caller().principal, level=Level.CLOSED_LOOP)
        ended = await room.call(
            "scale", call="s1", caller=room.caller(principal=who), service="web", environment="staging", replicas=3
        )
        assert isinstance(ended, Parked) is waits, ended

    play(tmp_path, story, pack="reversible-auto", services=services)
