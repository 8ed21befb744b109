"""Holes that the compromised-model harness found in the guard, each shown by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from quell.config import BudgetSettings
from quell.domain import OutcomeKind, ToolOutcome
from tests.doors._hand_bench import hand_room


def test_a_read_that_comes_again_under_its_old_id_costs_again(tmp_path: Path) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, budgets=BudgetSettings(run_calls=3)) as room:
            outcomes = [await room.call("logs_search", call="same", service="web", query="x") for _ in range(5)]
            kinds = [outcome.kind for outcome in outcomes if isinstance(outcome, ToolOutcome)]
            assert kinds == [OutcomeKind.OK] * 3 + [OutcomeKind.DENIED] * 2
            assert room.world.reads == 3

    asyncio.run(tell())


def test_one_id_asked_for_many_times_at_once_reads_no_more_than_the_budget(tmp_path: Path) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, budgets=BudgetSettings(run_calls=3)) as room:
            await asyncio.gather(*(room.call("logs_search", call="same", service="web", query="x") for _ in range(8)))
            assert room.world.reads == 3

    asyncio.run(tell())
