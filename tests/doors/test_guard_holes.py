"""Holes that the compromised-model harness found in the guard, each shown by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quell.config import BudgetSettings
from quell.domain import Level, OutcomeKind, Parked, ToolCaller, ToolOutcome
from tests._postgres import fresh_database
from tests.doors._hand_bench import Room, hand_room


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


def _alone(room: Room) -> ToolCaller:
    caller = room.caller()
    return replace(caller, principal=replace(caller.principal, level=Level.REVERSIBLE))


async def _interrupted(room: Room, service: str) -> None:
    """Let a worker die after it wrote what it intends, and before it begins."""
    ledger, call = room.authority.guard.ledger, room.authority.guard.ledger._call

    async def dies(write: Callable[..., object], *given: object, **named: object) -> object:
        if write.__name__ == "_start":
            raise asyncio.CancelledError
        return await call(write, *given, **named)

    ledger._call = dies  # type: ignore[assignment]  # the death of a worker
    with pytest.raises(asyncio.CancelledError):
        await room.call(
            "scale", call=service, caller=_alone(room), service=service, environment="staging", replicas=100
        )
    ledger._call = call


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_what_was_intended_long_ago_and_done_just_now_counts_as_just_now(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    async def tell(url: str) -> None:
        budgets = BudgetSettings(run_units=10_000)
        async with hand_room(tmp_path, url=url, pack="reversible-auto", budgets=budgets) as room:
            room.authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
            for service in ("web", "api"):
                await _interrupted(room, service)
            room.clock.forward(seconds=3_700)

            async def asks(call: str, service: str) -> ToolOutcome | Parked:
                return await room.call(
                    "scale", call=call, caller=_alone(room), service=service, environment="staging", replicas=100
                )

            for service in ("web", "api"):
                outcome = await asks(service, service)
                assert isinstance(outcome, ToolOutcome)
                assert outcome.kind is OutcomeKind.OK, outcome
            more = await asks("more", "pay")
            assert isinstance(more, ToolOutcome)
            assert "reversible-auto.cap-rate" in more.detail
            assert len(room.world.done) == 2

    if dialect == "sqlite":
        asyncio.run(tell(""))
    else:
        with fresh_database(request.getfixturevalue("postgres_url")) as url:
            asyncio.run(tell(url))
