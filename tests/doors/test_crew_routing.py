"""A coordinator routes: it answers, asks back, or plans; what it may not decide is refused or becomes a plan."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quell.agent import Stop
from quell.config import OrchestrationSettings
from quell.domain import ModelError, ModelFault, TokenUsage
from quell.models._scripted import says, wants
from tests.doors._crew_bench import (
    Mind,
    asks,
    call,
    crew_room,
    manifest_in,
    plans,
    responds,
    search,
    step,
    submits,
    texts,
)

USAGE = TokenUsage(input_tokens=100, output_tokens=10)
WELL = "The search of `logs_search` went well [t1e1]."
BUSY = ModelError("busy", fault=ModelFault.OVERLOADED, retry_after_s=0.0)


def test_a_question_that_needs_no_look_is_answered_at_once_and_leaves_a_manifest(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        turns = [responds("Hello.", usage=USAGE)]
        async with crew_room(tmp_path, turns, {"reader": Mind(script=[])}, memory=memory) as room:
            run = await room.start("Say hello.")
            answer = await room.answer(run)
            assert (answer.text, answer.stop, answer.usage) == ("Hello.", Stop.ANSWERED, USAGE)
            assert await room.names(run) == ["agent.routed", "agent.answered"]
            (routed,) = await room.told(run, "agent.routed")
            assert (routed["decision"], routed["mode"]) == ("respond_directly", "direct_answer")
            assert routed["response"] == "Hello."
            manifest = manifest_in(memory, run)
            assert (manifest["routing_mode"], manifest["status"]) == ("direct_answer", "success")
            assert (memory / "s1" / "latest").resolve() == memory / "s1" / run.id

    asyncio.run(story())


def test_one_question_back_to_the_person_ends_the_run_and_leaves_a_manifest_too(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        turns = [asks("Which service?", "web", "pay")]
        async with crew_room(tmp_path, turns, {"reader": Mind(script=[])}, memory=memory) as room:
            run = await room.start("Is it well?")
            answer = await room.answer(run)
            assert (answer.text, answer.stop) == ("Which service?\n- web\n- pay", Stop.ASKED)
            (routed,) = await room.told(run, "agent.routed")
            assert (routed["question"], routed["options"]) == ("Which service?", ["web", "pay"])
            assert manifest_in(memory, run)["routing_mode"] == "clarification"

    asyncio.run(story())


def test_a_plan_of_one_task_is_carried_out_and_answered_with_the_evidence_of_its_worker(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        coordinator = [plans(step("Search the errors of web."), usage=USAGE), responds(WELL, usage=USAGE)]
        reader = [wants(search(_aura_reasoning="to see errors"), usage=USAGE), submits(WELL, usage=USAGE)]
        async with crew_room(tmp_path, coordinator, {"reader": Mind(script=reader)}, memory=memory) as room:
            run = await room.start("Is web well?")
            answer = await room.answer(run)
            assert (answer.stop, answer.cited, answer.unverified) == (Stop.ANSWERED, ("t1e1",), 0)
            assert (answer.confidence, answer.calls) == ("high", 1)
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
            (ended,) = await room.told(run, "agent.task_ended")
            assert (ended["task"], ended["worker"], ended["success"]) == ("t1", "reader", True)
            asked = [each for each in await room.told(run, "agent.call_asked") if each["tool"] == "logs_search"]
            assert [(each["intent"], each["agent"], each["task"]) for each in asked] == [
                ("to see errors", "reader", "t1")
            ]
            assert "_aura_reasoning" not in str(asked[0]["arguments"])
            manifest = manifest_in(memory, run)
            assert (manifest["routing_mode"], manifest["status"]) == ("routed", "success")
            shown = texts(room.coordinator.asked)[1]
            assert '<task id="t1" worker="reader" confidence="high">' in shown
            offered = {tool.name: tool.parameters for tool in room.workers["reader"].asked[0].tools}
            assert set(offered) == {"logs_search", "submit_result", "wait_for", "read_artifact"}
            assert "_aura_reasoning" in offered["logs_search"]

    asyncio.run(story())


def test_the_first_decision_counts_and_what_comes_after_it_in_the_turn_is_told_so(tmp_path: Path) -> None:
    async def story() -> None:
        first = call("respond_directly", response="One.", routing_rationale="r")
        second = call("respond_directly", response="Two.", routing_rationale="r")
        async with crew_room(tmp_path, [wants(first, second)], {"reader": Mind(script=[])}) as room:
            run = await room.start("?")
            assert (await room.answer(run)).text == "One."
            ended = await room.told(run, "agent.call_ended")
            assert [each["kind"] for each in ended] == ["ok", "denied"]
            assert "came first" in str(ended[1]["detail"])

    asyncio.run(story())


@pytest.mark.parametrize("allowed", ["direct", "question"])
def test_a_decision_that_is_not_allowed_becomes_a_plan_of_one_task(tmp_path: Path, allowed: str) -> None:
    async def story() -> None:
        settings = OrchestrationSettings(
            enabled=True, allow_direct_answers=allowed == "direct", allow_clarification=allowed == "question"
        )
        first = asks("Which?") if allowed == "direct" else responds("I know.")
        turns = [first, responds("Nothing was found.")]
        mind = Mind(script=[submits("I found nothing.")])
        async with crew_room(tmp_path, turns, {"reader": mind}, settings=settings) as room:
            run = await room.start("Is it well?")
            assert (await room.answer(run)).text == "Nothing was found."
            (plan,) = await room.told(run, "agent.plan_made")
            assert [(task["text"], task["worker"]) for task in plan["tasks"]] == [("Execute: Is it well?", "reader")]  # type: ignore[attr-defined]  # a list

    asyncio.run(story())


def test_where_it_is_not_clear_whose_task_that_were_the_coordinator_is_told_to_plan(tmp_path: Path) -> None:
    async def story() -> None:
        settings = OrchestrationSettings(enabled=True, allow_direct_answers=False)
        turns = [responds("I know."), plans(step("Look.")), responds("Nothing was found.")]
        minds = {"reader": Mind(script=[submits("I found nothing.")]), "writer": Mind(script=[])}
        async with crew_room(tmp_path, turns, minds, settings=settings) as room:
            assert (await room.ask("Is it well?")).text == "Nothing was found."
            assert "respond_directly is not allowed here" in texts(room.coordinator.asked)[1]

    asyncio.run(story())


def test_a_model_that_does_not_route_is_corrected_and_at_last_its_words_are_an_answer_that_failed(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        minds = {"reader": Mind(script=[]), "writer": Mind(script=[])}
        async with crew_room(tmp_path, [says("Hm."), says("Well."), says("I think 42.")], minds) as room:
            answer = await room.ask("?")
            assert answer.stop is Stop.MODEL
            assert answer.fault.startswith("unrouted")
            assert answer.text == "I think 42. [unverified]\n\n[Partial answer: stopped by the model.]"
            asked = texts(room.coordinator.asked)
            assert ["You did not route" in text for text in asked] == [False, True, True]

    asyncio.run(story())


def test_a_model_that_does_not_route_leaves_the_question_to_the_default_worker(tmp_path: Path) -> None:
    async def story() -> None:
        minds = {"reader": Mind(script=[submits("I found nothing.")]), "writer": Mind(script=[])}
        turns = [says("Hm."), says("Hm."), says("Hm."), responds("Nothing was found.")]
        async with crew_room(tmp_path, turns, minds, default_worker="reader") as room:
            run = await room.start("Is it well?")
            assert (await room.answer(run)).stop is Stop.ANSWERED
            (started,) = await room.told(run, "agent.task_started")
            assert (started["worker"], started["description"]) == ("reader", "Execute: Is it well?")

    asyncio.run(story())


def test_a_busy_provider_is_asked_again_after_pauses_and_a_closed_door_is_not(tmp_path: Path) -> None:
    async def story() -> None:
        minds = {"reader": Mind(script=[])}
        turns = [[BUSY]] * 4 + [responds("Here I am.")]
        async with crew_room(tmp_path / "1", turns, minds, chance=1.0) as room:
            assert (await room.ask("?")).text == "Here I am."
            assert room.pauses == [4.0]
        closed = [[ModelError("no", fault=ModelFault.AUTH, hint="give a key")]]
        async with crew_room(tmp_path / "2", closed, minds) as room:
            answer = await room.ask("?")
            assert (answer.stop, answer.fault) == (Stop.MODEL, "auth: no; give a key")
            assert room.pauses == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([step("Look.", "ghost")], "there is no worker 'ghost'; the workers are reader, writer"),
        ([{"type": "task", "task": "Look."}], "no worker is named; the workers are reader, writer"),
        ([{"type": "party", "items": []}], "'party' is none of task, parallel, chain"),
        ([{"type": "parallel", "items": []}], "a list of at least one step is needed"),
        ([], "a list of at least one step is needed"),
        ([step(" ")], "say what is to be done"),
        (
            [{"type": "chain", "steps": [{"type": "parallel", "items": [{"type": "chain", "steps": [step("x")]}]}]}],
            "nested deeper than 2",
        ),
        ([step(str(number)) for number in range(41)], "41 tasks are more than 40"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_goes_back_with_what_is_wrong(
    tmp_path: Path, steps: list[dict[str, object]], told: str
) -> None:
    async def story() -> None:
        minds = {"reader": Mind(script=[]), "writer": Mind(script=[])}
        async with crew_room(tmp_path, [plans(*steps), responds("Then not.")], minds) as room:
            run = await room.start("?")
            assert (await room.answer(run)).text == "Then not."
            assert told in texts(room.coordinator.asked)[1]
            assert await room.told(run, "agent.plan_made") == []

    asyncio.run(story())


def test_a_step_that_names_no_worker_goes_to_the_default_one_if_there_is_one(tmp_path: Path) -> None:
    async def story() -> None:
        minds = {"reader": Mind(script=[submits("I found nothing.")]), "writer": Mind(script=[])}
        turns = [plans({"type": "task", "task": "Look."}), responds("Nothing was found.")]
        async with crew_room(tmp_path, turns, minds, default_worker="reader") as room:
            run = await room.start("?")
            assert (await room.answer(run)).stop is Stop.ANSWERED
            (started,) = await room.told(run, "agent.task_started")
            assert started["worker"] == "reader"

    asyncio.run(story())


@pytest.mark.parametrize("tools", ["none", "summary", "full"])
def test_a_coordinator_sees_as_much_of_its_workers_tools_as_it_is_meant_to(tmp_path: Path, tools: str) -> None:
    async def story() -> None:
        settings = OrchestrationSettings(enabled=True, tools_in_planning=tools, max_tools_per_worker=2)  # type: ignore[arg-type]  # one of them
        look = wants(
            call("list_tools"), call("inspect_tool_params", tool="scale"), call("inspect_tool_params", tool="no")
        )
        turns = [look, responds("Done.")] if tools == "none" else [responds("Done.")]
        minds = {"reader": Mind(script=[], tools=None, description="reads it all")}
        async with crew_room(tmp_path, turns, minds, settings=settings) as room:
            await room.ask("?")
            first, offered = texts(room.coordinator.asked)[0], room.coordinator.asked[0].tools
            assert "- reader: reads it all" in first
            assert ("list_tools" in {tool.name for tool in offered}) == (tools == "none")
            assert (" more" in first) == (tools != "none")
            assert ("of the small world" in first) == (tools == "full")
            if tools == "none":
                seen = texts(room.coordinator.asked)[1]
                assert "logs_search" in seen
                assert "replicas" in seen
                assert "no worker has such a tool" in seen

    asyncio.run(story())
