"""The one path, from a wish to a typed outcome and the account of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from quell.domain import OutcomeKind, Parked, ToolOutcome
from tests.doors._hand_bench import hand_room, person


def test_a_read_goes_through_at_once_and_is_on_record(tmp_path: Path) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path) as room:
            outcome = await room.call("logs_search", service="web", query="timeout")
            assert isinstance(outcome, ToolOutcome)
            assert (outcome.kind, outcome.is_citable, room.world.reads) == (OutcomeKind.OK, True, 1)
            kinds = [record.kind for record in room.authority.guard.audit.records()]
            assert kinds[-2:] == ["decision", "outcome"]
            assert room.authority.guard.audit.verify().is_intact

    asyncio.run(tell())


def test_an_effect_waits_for_another_person_and_then_happens_once(tmp_path: Path) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path) as room:
            first = await room.call("scale", call="s1", service="web", environment="production", replicas=6)
            assert isinstance(first, Parked)
            again = await room.call("scale", call="s1", service="web", environment="production", replicas=6)
            assert isinstance(again, Parked)
            assert (again.approval, room.world.done) == (first.approval, [])
            room.decide(first, person("bob", "approver"))
            outcome = await room.call("scale", call="s1", service="web", environment="production", replicas=6)
            assert isinstance(outcome, ToolOutcome)
            assert outcome.kind is OutcomeKind.OK, outcome
            repeated = await room.call("scale", call="s1", service="web", environment="production", replicas=6)
            assert isinstance(repeated, ToolOutcome)
            assert len(room.world.done) == 1

    asyncio.run(tell())
