"""A plan of several calls through the one path: approved as one, carried out in its order, and closed when it is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quell.domain import OutcomeKind, Parked, PlannedCall, ToolCall, ToolCaller, ToolOutcome
from tests.doors._hand_bench import Room, hand_room, person

BEN, CAL, ANN = (person(name, "approver") for name in ("ben", "cal", "ann"))
STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("scale", {"service": "web", "environment": "staging", "replicas": 4}),
    ("fetch_page", {"url": "https://example.org/is-it-up"}),
    ("restart", {"service": "web", "environment": "staging"}),
)


def play(state_dir: Path, story: Callable[[Room], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with hand_room(state_dir, **more) as room:
            await story(room)

    asyncio.run(run())


async def propose(room: Room, *steps: tuple[str, dict[str, Any]]) -> Parked | ToolOutcome:
    plan = [
        PlannedCall(wanted=ToolCall(id=f"s{number}", tool=tool, arguments=json.dumps(arguments)))
        for number, (tool, arguments) in enumerate(steps or STEPS, start=1)
    ]
    return await room.authority.toolbox.propose(plan, caller=room.caller(), explanation="it helps")


async def approved(room: Room) -> ToolCaller:
    parked = await propose(room)
    assert isinstance(parked, Parked)
    room.decide(parked, BEN)
    return room.caller(approval=parked.approval)


async def step(room: Room, number: int, caller: ToolCaller, **changed: Any) -> ToolOutcome | Parked:
    tool, arguments = STEPS[number - 1]
    return await room.call(tool, call=f"s{number}", caller=caller, **{**arguments, **changed})


async def well(room: Room, number: int, caller: ToolCaller) -> None:
    outcome = await step(room, number, caller)
    assert isinstance(outcome, ToolOutcome)
    assert outcome.kind is OutcomeKind.OK, outcome
    assert outcome.evidence["approval"] == caller.approval


async def denied(room: Room, number: int, caller: ToolCaller, said: str = "", **changed: Any) -> None:
    outcome = await step(room, number, caller, **changed)
    assert isinstance(outcome, ToolOutcome)
    assert outcome.kind is OutcomeKind.DENIED, outcome
    assert said in outcome.detail


def status(room: Room, approval: str) -> str:
    with room.runs.database.reading() as connection:
        found = room.authority.guard.approvals.find(connection, approval, tenant="local")
    assert found is not None
    return found.status.value


def test_a_plan_is_shown_whole_approved_once_and_its_calls_run_in_their_order(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await propose(room)
        assert isinstance(parked, Parked)
        with room.runs.database.reading() as connection:
            approval = room.authority.guard.approvals.find(connection, parked.approval, tenant="local")
        assert approval is not None
        shown = room.authority.guard.approvals.show(approval, form="text")
        for number, (tool, _) in enumerate(STEPS, start=1):
            assert f"CALL {number} of 3: {tool}" in shown
        caller = room.caller(approval=parked.approval)
        waits = await step(room, 1, caller)
        assert isinstance(waits, Parked)
        assert waits.approval == parked.approval
        assert room.world.done == []
        room.decide(parked, BEN)
        for number in (1, 2, 3):
            await well(room, number, caller)
        assert [tool for tool, _, _, _ in room.world.done] == ["scale", "restart"]
        assert room.world.reads == 1
        assert status(room, parked.approval) == "consumed"
        await well(room, 1, caller)  # the ledger tells what came of it
        await denied(room, 2, caller, "used")
        assert (len(room.world.done), room.world.reads) == (2, 1)

    play(tmp_path, story)


@pytest.mark.parametrize("where", [1, 2, 3])
def test_a_call_that_was_changed_is_denied_and_ends_the_plan(tmp_path: Path, where: int) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        for number in range(1, where):
            await well(room, number, caller)
        before = (len(room.world.done), room.world.reads)
        changed = {"url": "https://example.org/else"} if where == 2 else {"service": "api"}
        await denied(room, where, caller, "arguments", **changed)
        assert status(room, caller.approval) == "superseded"
        await denied(room, where, caller)
        assert (len(room.world.done), room.world.reads) == before

    play(tmp_path, story)


@pytest.mark.parametrize("order", [(2,), (3,), (1, 3)])
def test_a_call_that_is_left_out_or_comes_too_early_ends_the_plan(tmp_path: Path, order: tuple[int, ...]) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        *well_done, early = order
        for number in well_done:
            await well(room, number, caller)
        done = (len(room.world.done), room.world.reads)
        await denied(room, early, caller, "came before")
        assert status(room, caller.approval) == "superseded"
        for number in range(len(well_done) + 1, 4):
            await denied(room, number, caller)
        assert (len(room.world.done), room.world.reads) == done

    play(tmp_path, story)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_call_that_failed_ends_the_plan(tmp_path: Path, failing: int) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        for number in range(1, failing):
            await well(room, number, caller)
        room.world.says.append(
            ToolOutcome(call=f"s{failing}", tool=STEPS[failing - 1][0], kind=OutcomeKind.TOOL_ERROR, detail="no")
        )
        outcome = await step(room, failing, caller)
        assert isinstance(outcome, ToolOutcome)
        assert outcome.kind is OutcomeKind.TOOL_ERROR
        assert status(room, caller.approval) == "superseded"
        before = (len(room.world.done), room.world.reads)
        await denied(room, failing + 1, caller)
        assert (len(room.world.done), room.world.reads) == before

    play(tmp_path, story)


def test_a_call_that_is_not_of_the_plan_is_not_asked_about_under_it(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        other = await room.call("restart", call="x1", caller=caller, service="api", environment="staging")
        assert isinstance(other, ToolOutcome)
        assert other.kind is OutcomeKind.DENIED
        assert status(room, caller.approval) == "superseded"
        assert room.world.done == []

    play(tmp_path, story)


OWN = """
@id("own.small-scale")
permit (principal, action == Quell::Action::"scale", resource) when { resource.units <= 5 };
"""


def test_a_call_that_policy_would_let_through_keeps_its_place_in_the_plan(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        await denied(room, 2, caller, "came before")
        room.clock.forward(seconds=1)
        caller = await approved(room)
        for number in (1, 2, 3):
            await well(room, number, caller)

    play(tmp_path, story, policies=[OWN])


def test_a_set_back_row_does_not_let_a_call_of_a_plan_run_twice_or_out_of_order(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        caller = await approved(room)
        with room.runs.database.writing() as connection:
            connection.run("UPDATE quell_approval_calls SET state = 'done' WHERE position = 0")
        await denied(room, 2, caller, "set back")
        with room.runs.database.writing() as connection:
            connection.run("UPDATE quell_approval_calls SET state = 'pending' WHERE position = 0")
        await well(room, 1, caller)
        await well(room, 2, caller)
        with room.runs.database.writing() as connection:
            connection.run("UPDATE quell_approval_calls SET state = 'pending' WHERE position = 1")
        await denied(room, 2, caller, "set back")
        assert (len(room.world.done), room.world.reads) == (1, 1)

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((STEPS[0], ("logs_search", {"service": "web", "query": "x"})), "only reads"),
        ((STEPS[0], ("scale", {"service": "web", "environment": "staging", "replicas": 101})), "replicas"),
        ((STEPS[0], ("no_such_tool", {})), "no such tool"),
        ((STEPS[0],) * 65, "1 to 64 calls"),
    ],
)
def test_what_is_no_plan_is_denied_and_nobody_is_asked(tmp_path: Path, steps: Any, said: str) -> None:
    async def story(room: Room) -> None:
        outcome = await propose(room, *steps)
        assert isinstance(outcome, ToolOutcome)
        assert outcome.kind is OutcomeKind.DENIED
        assert said in outcome.detail
        with room.runs.database.reading() as connection:
            assert room.authority.guard.approvals.listed(connection, tenant="local") == ()

    play(tmp_path, story)


def test_a_plan_takes_as_many_people_as_its_strictest_call(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        volume = ("delete_volume", {"service": "web", "environment": "staging", "volume": "v1"})
        parked = await propose(room, STEPS[0], volume)
        assert isinstance(parked, Parked)
        assert parked.quorum == 2
        room.decide(parked, BEN)
        caller = room.caller(approval=parked.approval)
        assert isinstance(await step(room, 1, caller), Parked)
        assert room.world.done == []
        room.decide(parked, CAL)
        await well(room, 1, caller)

    play(tmp_path, story)
