"""A coordinator routes: it answers, asks back, or plans, and what it may not decide is refused or becomes a plan."""

from __future__ import annotations

import asyncio
from pathlib import Path

from quell.agent import Stop
from quell.domain import TokenUsage
from quell.models._scripted import wants
from tests.doors._crew_bench import (
    Mind,
    crew_room,
    manifest_in,
    plans,
    responds,
    search,
    step,
    submits,
)

USAGE = TokenUsage(input_tokens=100, output_tokens=10)


def test_a_question_that_needs_no_look_is_answered_at_once_and_leaves_a_manifest(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        async with crew_room(
            tmp_path, [responds("Hello.", usage=USAGE)], {"reader": Mind(script=[])}, memory=memory
        ) as room:
            run = await room.start("Say hello.")
            answer = await room.answer(run)
            assert (answer.text, answer.stop, answer.usage) == ("Hello.", Stop.ANSWERED, USAGE)
            assert await room.names(run) == ["agent.routed", "agent.answered"]
            (routed,) = await room.told(run, "agent.routed")
            assert (routed["decision"], routed["mode"]) == ("respond_directly", "direct_answer")
            manifest = manifest_in(memory, run)
            assert (manifest["routing_mode"], manifest["status"]) == ("direct_answer", "success")

    asyncio.run(story())


def test_a_plan_of_one_task_is_carried_out_and_its_result_answered_with_evidence(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        coordinator = [
            plans(step("Search the errors of web."), usage=USAGE),
            responds("The search of `logs_search` went well [t1e1].", usage=USAGE),
        ]
        reader = [
            wants(search(_aura_reasoning="to see errors"), usage=USAGE),
            submits("The search of `logs_search` went well [t1e1].", usage=USAGE),
        ]
        async with crew_room(tmp_path, coordinator, {"reader": Mind(script=reader)}, memory=memory) as room:
            run = await room.start("Is web well?")
            answer = await room.answer(run)
            assert (answer.stop, answer.cited, answer.unverified) == (Stop.ANSWERED, ("t1e1",), 0)
            assert answer.usage == TokenUsage(input_tokens=400, output_tokens=40)
            assert await room.names(run) == [
                "agent.routed",
                "agent.plan_made",
                "agent.task_started",
                "agent.task_ended",
                "agent.synthesizing",
                "agent.routed",
                "agent.round_ended",
                "agent.answered",
            ]
            (asked, _) = (
                await room.told(run, "agent.call_asked")[:2]
                if False
                else [each for each in await room.told(run, "agent.call_asked") if each["task"] == "t1"]
            )
            assert (asked["intent"], asked["agent"], asked["call"]) == ("to see errors", "reader", "t1.1.1")
            assert "_aura_reasoning" not in str(asked["arguments"])
            assert manifest_in(memory, run)["routing_mode"] == "routed"

    asyncio.run(story())
