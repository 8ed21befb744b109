"""What people are shown beside a call: what a dry run says, and what the inventory knows; never a gap left blank."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quell.config import load
from quell.domain import (
    ConfigError,
    Level,
    OutcomeKind,
    Parked,
    QuestionKind,
    Resource,
    Tool,
    ToolCall,
    ToolOutcome,
)
from quell.incidents import Desk
from tests._story import RecordedReader, alert
from tests.doors._hand_bench import TOOLS, Room, hand_room, person
from tests.doors.test_incidents_desk import a_room

pytestmark = pytest.mark.timeout(60)

SCALE = next(tool for tool in TOOLS if tool.name == "scale")
READ = next(tool for tool in TOOLS if tool.name == "is_volume_deleted")
AT = {"service": "web", "environment": "production"}


def _tool(name: str, *, dry_run: str) -> Tool:
    return replace(SCALE, name=name, original=name, revert=name, dry_run=dry_run, pin=f"sha256:{name}")


PLAN = replace(READ, name="plan_of", original="plan_of", input_schema=SCALE.input_schema, pin="sha256:plan_of")
RESIZE = _tool("resize", dry_run="plan_of")
NEW = [PLAN, RESIZE, _tool("misnamed", dry_run="restart"), _tool("mismatched", dry_run="is_volume_deleted")]


def _told(tmp_path: Path, story: Callable[[Room], Awaitable[None]], **settings: object) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, tools=NEW, **settings) as room:  # type: ignore[arg-type]  # settings of a room
            await story(room)
            assert room.authority.guard.audit.verify().is_intact

    asyncio.run(tell())


def _said(text: str, kind: OutcomeKind = OutcomeKind.OK, **more: object) -> ToolOutcome:
    outcome = ToolOutcome(call="r.dry", tool="plan_of", kind=kind, content=text, size_bytes=len(text))
    return replace(outcome, **more)  # type: ignore[arg-type]  # fields of an outcome


async def _resize(room: Room, says: str = "-4\n+6", *, call: str = "r", tool: str = "resize") -> ToolOutcome | Parked:
    room.world.says = [_said(says)]
    ended = await room.call(tool, call=call, replicas=6, **AT)  # type: ignore[arg-type]  # arguments
    room.world.says = []
    return ended


def _shown(room: Room, parked: ToolOutcome | Parked) -> str:
    assert isinstance(parked, Parked), parked
    approvals = room.authority.guard.approvals
    with room.runs.database.reading() as connection:
        approval = approvals.find(connection, parked.approval, tenant="local")
    assert approval is not None
    return approvals.show(approval, form="text")


def test_people_see_what_a_dry_run_says_and_the_same_again_lets_the_call_go(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await _resize(room)
        told = _shown(room, parked)
        assert "what a dry run says\n  | -4\n  | +6\nhow it would be undone\n  | [{" in told.replace("  how", "how")
        assert isinstance(parked, Parked)
        again = await _resize(room)
        assert isinstance(again, Parked)
        assert again.approval == parked.approval, "the same state is the same question"
        room.decide(parked, person("bob", "approver"))
        done = await _resize(room)
        assert isinstance(done, ToolOutcome)
        assert done.kind is OutcomeKind.OK, done
        assert (len(room.world.done), room.world.reads) == (1, 3)
        await _resize(room)
        assert room.world.reads == 3, "what the ledger knows is not run dry again"
        room.authority.guard.audit.flush()
        bodies = [
            json.loads(record.body) for record in room.authority.guard.audit.records() if record.kind == "decision"
        ]
        assert "dry_run" in [body["facts"]["origin"] for body in bodies], "a dry run is a call like any other"

    _told(tmp_path, story)


def test_a_dry_run_that_says_otherwise_when_the_call_stands_ready_asks_people_again(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await _resize(room, "-4\n+6")
        assert isinstance(parked, Parked)
        room.decide(parked, person("bob", "approver"))
        other = await _resize(room, "-40\n+6")
        assert isinstance(other, Parked), other
        assert (other.approval == parked.approval, room.world.done) == (False, [])
        assert "| -40" in _shown(room, other)

    _told(tmp_path, story)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (_said("", OutcomeKind.TOOL_ERROR), "NOT KNOWN: the dry run `plan_of` failed (tool_error)"),
        (_said("half", OutcomeKind.TRUNCATED), "NOT KNOWN: the dry run `plan_of` failed (truncated)"),
        (_said("", OutcomeKind.EMPTY), "the dry run `plan_of` brought nothing"),
        (_said("+6", OutcomeKind.STALE), "STALE, of no known time:"),
        (RuntimeError("gone"), "NOT KNOWN: the dry run `plan_of` failed (transport_error)"),
        (_said("y" * 20_000, digest="d1"), "CUT HERE: the whole has 20,000 bytes, SHA-256 d1"),
    ],
)
def test_a_dry_run_that_failed_or_is_old_or_too_long_is_shown_as_that(
    tmp_path: Path, said: ToolOutcome | BaseException, told: str
) -> None:
    async def story(room: Room) -> None:
        room.world.says = [said] * 3
        parked = await room.call("resize", call="r", replicas=6, **AT)  # type: ignore[arg-type]  # arguments
        text = _shown(room, parked)
        assert told in text
        assert len(text) < 20_000

    _told(tmp_path, story)


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        ("misnamed", "NOT KNOWN: `restart` stands as the dry run and is no tool that only reads"),
        ("mismatched", "NOT KNOWN: the dry run `is_volume_deleted` failed (denied)"),
    ],
)
def test_what_is_no_dry_run_is_not_called_as_one(tmp_path: Path, tool: str, told: str) -> None:
    async def story(room: Room) -> None:
        parked = await room.call(tool, call="r", replicas=6, **AT)  # type: ignore[arg-type]  # arguments
        assert told in _shown(room, parked)
        assert (room.world.done, room.world.reads) == ([], 0)

    _told(tmp_path, story)


def test_where_nobody_is_asked_nothing_is_run_dry(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        caller = room.caller()
        room.authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
        alone = replace(caller, principal=replace(caller.principal, level=Level.REVERSIBLE))
        wanted = ToolCall(id="r", tool="resize", arguments=json.dumps({**AT, "environment": "staging", "replicas": 6}))
        done = await room.authority.toolbox.call(wanted, caller=alone)
        assert isinstance(done, ToolOutcome)
        assert (done.kind, room.world.reads, len(room.world.done)) == (OutcomeKind.OK, 0, 1), done

    _told(tmp_path, story, pack="reversible-auto", services=100)


# -- what the inventory knows -----------------------------------------------------------------------------------------


def test_what_the_inventory_knows_is_shown_and_its_moving_on_voids_no_answer(tmp_path: Path) -> None:
    known = [("called by", "2: api, cart")]

    async def inventory(resource: Resource) -> Sequence[tuple[str, str]]:
        return [("service", resource.name), *known]

    async def story(room: Room) -> None:
        parked = await room.call("restart", call="r", **AT)  # type: ignore[arg-type]  # arguments
        assert "| service: web\n  | called by: 2: api, cart" in _shown(room, parked)
        assert isinstance(parked, Parked)
        known[:] = [("called by", "3: api, cart, pay")]
        again = await room.call("restart", call="r", **AT)  # type: ignore[arg-type]  # arguments
        assert isinstance(again, Parked)
        assert again.approval == parked.approval
        room.decide(parked, person("bob", "approver"))
        done = await room.call("restart", call="r", **AT)  # type: ignore[arg-type]  # arguments
        assert isinstance(done, ToolOutcome)
        assert done.kind is OutcomeKind.OK, done

    _told(tmp_path, story, inventory=inventory)


@pytest.mark.parametrize("trouble", ["raises", "is endless", "is slow"])
def test_an_inventory_that_does_not_answer_is_shown_as_that(tmp_path: Path, trouble: str) -> None:
    async def inventory(_resource: Resource) -> Sequence[tuple[str, str]]:
        match trouble:
            case "raises":
                raise RuntimeError("broken")
            case "is slow":
                await asyncio.sleep(60)
        return [(f"fact {number}" * 100, "y" * 10_000) for number in range(1_000)]

    async def story(room: Room) -> None:
        text = _shown(room, await room.call("restart", call="r", **AT))  # type: ignore[arg-type]  # arguments
        told = {
            "raises": "it failed (RuntimeError)",
            "is slow": "did not answer within",
            "is endless": "977 more facts",
        }
        assert told[trouble] in text
        assert len(text) < 20_000

    _told(tmp_path, story, inventory=inventory)


def test_the_desk_knows_who_calls_a_service_its_incidents_and_what_changed(tmp_path: Path) -> None:
    async def tell() -> None:
        async with a_room(tmp_path) as room:
            await room.handled(alert())
            await asyncio.to_thread(
                room.desk._book.learn_calls, {("cart", "payment"), ("payment", "bank")}, at=room.clock()
            )
            facts = await _facts(room.desk, "payment")
            assert facts["called by"] == "2: cart, checkout"
            assert facts["calls"] == "2: bank, postgres"
            assert facts["open incidents"] == "1"
            assert "inc_" in facts["open incident"]
            assert any(name.startswith("change") for name in facts)
            assert facts == await _facts(room.desk, "payment"), "the same state is told in the same words"
            stranger = await _facts(room.desk, "nobody\u202e")
            assert stranger["called by"].startswith("NOT KNOWN")
            page = Resource(kind="Page", name="x", environment="p", units=1, host="")
            assert dict(await room.desk.inventory(page))["inventory"].startswith("NOT KNOWN")

    asyncio.run(tell())


def test_a_source_that_does_not_tell_of_changes_is_named(tmp_path: Path) -> None:
    async def tell() -> None:
        broken = RecordedReader(broken=frozenset({QuestionKind.CHANGES}))
        async with a_room(tmp_path, reader=broken) as room:
            facts = await _facts(room.desk, "payment")
            assert facts["changes, past hour"] == "NOT KNOWN: recorded does not tell (failed)"
            assert facts["open incidents"] == "0"

    asyncio.run(tell())


async def _facts(desk: Desk, service: str) -> dict[str, str]:
    resource = Resource(kind="Service", name=service, environment="production", units=1, host="")
    return dict(await desk.inventory(resource))


def test_a_dry_run_of_a_read_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "quell.toml"
    path.write_text(
        '[mcp.servers.s]\ntransport = "stdio"\ncmd = ["x"]\n'
        '[[tool]]\nserver = "s"\nname = "a"\neffect = "read"\ndry_run = "b"\n'
        '[[tool]]\nserver = "client"\nname = "a"\neffect = "reversible"\n'
        '[mcp.servers.client]\ntransport = "stdio"\ncmd = ["x"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path, env={})
    assert {problem.path for problem in caught.value.problems} == {"tool.0.dry_run", "mcp.servers.client"}
