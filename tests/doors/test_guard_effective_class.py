"""What nothing undoes is irreversible, also for the level that was earned: one class, wherever it is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from quell.app._toolset import policy_sources
from quell.domain import AutonomyScope, Level, OutcomeKind, Parked, ToolClass, ToolOutcome
from quell.governance import PolicySet
from quell.tools import LocalHand
from quell.tools._registry import Entry
from tests.doors._hand_bench import TOOLS, Room, hand_room, person


def _serve_without_a_way_back(room: Room) -> None:
    restart = next(tool for tool in TOOLS if tool.name == "restart")
    flip = replace(restart, name="flip", original="flip", pin="sha256:flip", revert="")
    served = {"flip": Entry(tool=flip, hand=LocalHand("flip", room.world.use))}
    authority = room.authority
    authority.guard.policy = PolicySet.load(
        policy_sources(authority.settings), tools=authority.registry.tools_with(served)
    )
    authority.registry.serve(served, turn=authority.registry.turn)


def _demote(room: Room, action_class: ToolClass) -> None:
    scope = AutonomyScope(tenant="local", workflow_digest="w1", action_class=action_class, environment="production")
    with room.runs.database.writing() as connection:
        room.authority.guard.autonomy.demote(
            connection, scope, to=Level.OBSERVE, by=person("ada", "admin"), reason="it went wrong"
        )


def test_the_level_of_what_nothing_undoes_is_that_of_irreversible_actions(tmp_path: Path) -> None:
    async def story() -> None:
        async with hand_room(tmp_path) as room:
            _serve_without_a_way_back(room)
            _demote(room, ToolClass.REVERSIBLE)
            asked = await room.call("flip", service="web", environment="production")
            assert isinstance(asked, Parked), "the level of reversible actions is not its own"
            assert asked.quorum == 2
            _demote(room, ToolClass.IRREVERSIBLE)
            ended = await room.call("flip", service="pay", environment="production")
            assert isinstance(ended, ToolOutcome)
            assert ended.kind is OutcomeKind.DENIED

    asyncio.run(story())
