"""How far an agent goes by itself: what it has earned, for the class by which a call is judged, and never what is claimed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from quell.domain import (
    AuditKind,
    AutonomyScope,
    Facts,
    Level,
    OutcomeKind,
    Parked,
    Principal,
    ToolCaller,
    ToolClass,
    ToolOutcome,
    Trial,
    TrialOutcome,
    TrialSource,
)
from tests.doors import _hand_bench as bench
from tests.doors._hand_bench import Room, hand_room, person
from tests.doors._policy_bench import ADA, SCALE, decide, load, source

ALONE = """
@id("own.alone")
permit (principal, action, resource) when { principal.level >= 3 };
@id("own.asked")
@approvers("approver")
permit (principal, action, resource) when { context.approved };
"""


def _claiming(room: Room, level: Level, **changes: object) -> ToolCaller:
    caller = room.caller()
    return replace(caller, principal=replace(caller.principal, level=level, **changes))  # type: ignore[arg-type]  # fields


def _earn(room: Room, action_class: ToolClass, *, level: Level, environment: str) -> None:
    """Let the workflow be right until people may confirm a level, one after the other."""
    autonomy = room.authority.guard.autonomy
    scope = AutonomyScope(workflow_digest="w1", action_class=action_class, environment=environment, tenant="local")
    bob, eve = person("bob", "approver"), person("eve", "approver")
    with room.runs.database.writing() as connection:
        for number in range(460):
            trial = Trial(ref=f"t{number}", outcome=TrialOutcome.VERIFIED_OK, source=TrialSource.LIVE)
            autonomy.record(connection, scope, trial, agreed_by=bob)
        for to in range(3, level + 1):
            for by in (bob, eve):
                if autonomy.level(connection, scope) < to:
                    autonomy.promote(connection, scope, to=Level(to), by=by, owners=("ann",), reason="earned")
        assert autonomy.level(connection, scope) == level


def _in_a_room(tmp_path: Path, story: Callable[[Room], Awaitable[None]], *, pack: str = "dark-factory") -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, pack=pack) as room:
            await story(room)

    asyncio.run(tell())


@contextmanager
def _without_a_way_back(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    tools = tuple(replace(tool, revert="") if tool.name == name else tool for tool in bench.TOOLS)
    with monkeypatch.context() as patch:
        patch.setattr(bench, "TOOLS", tools)
        yield


def test_what_is_carried_out_of_the_house_goes_by_itself_only_when_that_was_earned(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        claimed = _claiming(room, Level.CLOSED_LOOP)
        page = "https://pages.example/a"
        first = await room.call("fetch_page", caller=claimed, url=page)
        assert isinstance(first, Parked), "a level that is claimed opens nothing"
        assert room.world.reads == 0
        _earn(
            room,
            ToolClass.REVERSIBLE,
            level=Level.CLOSED_LOOP,
            environment=room.authority.settings.governance.environment,
        )
        other = await room.call("fetch_page", caller=claimed, url=page)
        assert isinstance(other, Parked), "nor does one of another class"
        _earn(
            room, ToolClass.EGRESS, level=Level.CLOSED_LOOP, environment=room.authority.settings.governance.environment
        )
        earned = await room.call("fetch_page", caller=claimed, url=page)
        assert isinstance(earned, ToolOutcome)
        assert earned.kind is OutcomeKind.OK

    _in_a_room(tmp_path, story)


def test_what_nothing_undoes_does_not_ride_on_what_could_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(room: Room) -> None:
        _earn(room, ToolClass.REVERSIBLE, level=Level.REVERSIBLE, environment="staging")
        claimed = _claiming(room, Level.REVERSIBLE)
        for tool in ("scale", "restart"):
            arguments = {"service": "web", "environment": "staging"} | ({"replicas": 3} if tool == "scale" else {})
            await room.call(tool, call=tool, caller=claimed, **arguments)
        room.authority.guard.audit.flush()
        told = [json.loads(each.body) for each in room.authority.guard.audit.records()]
        levels = {each["call"]: each["principal"]["level"] for each in told if "principal" in each}
        assert levels == {"scale": 3, "restart": 2}
        assert [done[0] for done in room.world.done] == ["scale"]

    with _without_a_way_back(monkeypatch, "restart"):
        _in_a_room(tmp_path, story, pack="reversible-auto")


def test_what_has_no_version_has_earned_nothing(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        nameless = _claiming(room, Level.CLOSED_LOOP, workflow_digest="")
        for tool, more in (
            ("restart", {"environment": "staging"}),
            ("scale", {"environment": "staging", "replicas": 2}),
        ):
            assert isinstance(await room.call(tool, caller=nameless, service="web", **more), Parked)
        assert not room.world.done

    _in_a_room(tmp_path, story)


def test_a_plain_read_that_a_policy_keeps_for_a_level_is_read_at_the_level_that_was_earned(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        claimed = _claiming(room, Level.REVERSIBLE)
        assert isinstance(await room.call("logs_search", caller=claimed, service="web", query="x"), Parked)
        _earn(room, ToolClass.READ, level=Level.REVERSIBLE, environment=room.authority.settings.governance.environment)
        read = await room.call("logs_search", caller=claimed, service="web", query="x")
        assert isinstance(read, ToolOutcome)
        assert read.kind is OutcomeKind.OK
        room.authority.guard.audit.flush()
        (last, *_) = [
            each
            for each in reversed(list(room.authority.guard.audit.records(kinds=(AuditKind.DECISION,))))
            if json.loads(each.body)["verdict"]["decision"] == "permit"
        ]
        assert json.loads(last.body)["principal"]["level"] == 3

    async def tell() -> None:
        async with hand_room(tmp_path, policies=[ALONE]) as room:
            guard = room.authority.guard
            guard.policy = type(guard.policy).load([source(ALONE)], tools=room.authority.registry.tools)
            await story(room)

    asyncio.run(tell())


@pytest.mark.parametrize("level", [Level.OBSERVE, Level.PROPOSE])
def test_who_only_looks_and_proposes_changes_nothing_whatever_a_policy_says(level: Level) -> None:
    everything = load(source('@id("all") permit (principal, action, resource);'))
    who: Principal = replace(ADA, level=level)
    for facts in (Facts(), Facts(approvals=5), Facts(is_break_glass=True)):
        refused = decide(everything, SCALE, who, facts=facts)
        assert (refused.decision, refused.policies) == ("deny", ("quell.level",))
    assert decide(everything, SCALE, replace(ADA, level=Level.APPROVE_EACH)).decision == "permit"


def test_what_one_tenant_did_is_not_the_past_of_another(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
        mine, theirs = (_claiming(room, Level.CLOSED_LOOP, tenant=tenant) for tenant in ("local", "acme"))

        async def restart(caller: ToolCaller) -> str:
            told = await room.call("restart", caller=caller, service="web", environment="staging")
            assert isinstance(told, ToolOutcome)
            return told.detail if told.kind is OutcomeKind.DENIED else told.kind.value

        room.world.says = [ToolOutcome(call="", tool="restart", kind=OutcomeKind.TOOL_ERROR)] * 3
        assert [await restart(theirs) for _ in range(3)] == ["tool_error"] * 3
        assert "too much of it failed" in await restart(theirs)
        assert await restart(mine) == "ok"

    _in_a_room(tmp_path, story, pack="reversible-auto")
