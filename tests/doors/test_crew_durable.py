"""A crew's run survives: people decide inside of tasks, processes end in the middle, and nothing is asked or done twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from quell.agent import AgentAnswer, Piece, Role, Stop
from quell.domain import CallWanted, ModelRequest, OutcomeKind, Parked, Run, ToolOutcome
from quell.models import ScriptedModel
from quell.models._scripted import Turn, wants
from tests.doors._crew_bench import Mind, call, crew_room, plans, responds, search, step, submits
from tests.doors._hand_bench import SmallWorld

SCALED = "It was scaled [t1e1]."


def scale(service: str = "web") -> CallWanted:
    return call("scale", service=service, environment="staging", replicas=3, _aura_reasoning="more room")


def parallel(*items: dict[str, object]) -> dict[str, object]:
    return {"type": "parallel", "items": list(items)}


class Gated(ScriptedModel):
    """Says nothing at one turn until a gate is opened."""

    def __init__(self, turns: list[Turn], *, at: int) -> None:
        super().__init__(turns)
        self.at = at
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()
        self.given: list[Turn] = turns

    async def stream(self, request: ModelRequest, *, deadline_s: float):  # type: ignore[no-untyped-def]  # as above
        number = len(self.asked)
        self.asked.append(request)
        if number == self.at:
            self.reached.set()
            await self.gate.wait()
        for line in self.given[min(number, len(self.given) - 1)]:
            yield line


@pytest.mark.timeout(60)
def test_an_effect_inside_a_task_waits_for_people_while_the_other_tasks_end(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        turns = [plans(parallel(step("scale", "writer"), step("look")), step("sum up")), responds(SCALED)]
        minds = {
            "writer": Mind(script=[wants(scale()), submits(SCALED)], tools=("scale",)),
            "reader": Mind(script=[wants(search()), submits("Seen [t2e1]."), submits("Both are there.")]),
        }
        async with crew_room(tmp_path, turns, minds, memory=memory) as room:
            run = await room.start("Scale web.")
            parked = await room.parked(run)
            ended = await room.told(run, "agent.task_ended")
            assert [each["task"] for each in ended] == ["t2"]
            assert room.world.done == []
            asked = room.authority.guard.approvals
            with room.runs.database.reading() as connection:
                found = asked.find(connection, parked.approval, tenant="local")
            assert found is not None
            assert "more room" in found.terms.explanation
            await room.approve(parked, run)
            answer = await room.answer(run, timeout_s=30)
            assert (answer.text, answer.stop) == (SCALED, Stop.ANSWERED)
            assert [done[0] for done in room.world.done] == ["scale"]
            assert {name: len(model.asked) for name, model in room.workers.items()} == {"writer": 2, "reader": 3}
            assert len(room.coordinator.asked) == 2
            assert (memory / "s1" / run.id / "iteration-1" / "task-1.attempt-1.result.json").is_file()

    asyncio.run(story())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("at", ["coordinator", "after the effect", "second look"])
def test_a_process_that_ends_in_the_middle_repeats_no_question_and_no_call(tmp_path: Path, at: str) -> None:
    async def story() -> None:
        world = SmallWorld()
        plan = plans(parallel(step("look"), step("scale", "writer")))
        coordinator = Gated([plan, responds("All was done.")], at={"coordinator": 0, "second look": 1}.get(at, -1))
        writer = Gated([wants(scale()), submits("It was scaled [t2e1].")], at=1 if at == "after the effect" else -1)
        reader = Gated([wants(search()), submits("Seen [t1e1].")], at=-1)
        minds = {"reader": Mind(script=[]), "writer": Mind(script=[], tools=("scale",))}
        models: dict[str, ScriptedModel] = {"reader": reader, "writer": writer}
        gated = writer if at == "after the effect" else coordinator

        async def begun() -> Run:
            async with crew_room(tmp_path, coordinator, minds, models=models, world=world) as room:
                run = await room.start("?")
                if at != "coordinator":
                    await room.approve(await room.parked(run), run)
                await asyncio.wait_for(gated.reached.wait(), 20)
                return run

        run = await begun()
        before = len(gated.asked)
        gated.gate.set()
        gated.given = [*gated.given[: before - 1], gated.given[before - 1], *gated.given[before - 1 :]]

        async def ended() -> AgentAnswer:
            async with crew_room(tmp_path, coordinator, minds, models=models, world=world) as room:
                if at == "coordinator":
                    await room.approve(await room.parked(run, timeout_s=20), run)
                answer = await room.answer(run, timeout_s=30)
                names = await room.names(run)
                assert names.count("agent.plan_made") == 1
                assert names.count("agent.task_ended") == 2
                return answer

        answer = await ended()
        assert answer.text == "All was done."
        assert [done[0] for done in world.done] == ["scale"]
        assert world.reads == 1
        assert len(gated.asked) == 3  # the one question that had no answer yet is the only one that is asked again
        others = [model for model in (coordinator, writer, reader) if model is not gated]
        assert [len(model.asked) for model in others] == [2, 2]

    asyncio.run(story())


@pytest.mark.timeout(60)
def test_a_coordinator_that_waits_for_people_itself_goes_on_routing(tmp_path: Path) -> None:
    async def story() -> None:
        role = Role(name="lead", preamble="p", tools=("scale",))
        plain = call("scale", service="web", environment="staging", replicas=3)
        turns = [wants(plain), responds("It was scaled [c1e1].")]
        async with crew_room(tmp_path, turns, {"reader": Mind(script=[])}, role=role) as room:
            run = await room.start("Scale web.")
            await room.approve(await room.parked(run), run)
            answer = await room.answer(run, timeout_s=30)
            assert (answer.text, answer.cited, answer.calls) == ("It was scaled [c1e1].", ("c1e1",), 1)
            assert len(room.world.done) == 1

    asyncio.run(story())


@pytest.mark.timeout(60)
def test_a_wait_goes_on_where_it_stood_when_its_process_ended(tmp_path: Path) -> None:
    async def story() -> None:
        world = SmallWorld()
        probe = {"tool": "logs_search", "args": {"service": "web", "query": "ready"}}
        wait = wants(call("wait_for", probe=probe, until={"matches": "ready"}, poll_sec=0.1, max_wait_sec=60))
        coordinator = ScriptedModel([plans(step("wait")), responds("Ready.")])
        reader = ScriptedModel([wait, submits("It is ready.")])
        minds = {"reader": Mind(script=[])}

        def brought(content: str) -> ToolOutcome:
            return ToolOutcome(call="", tool="logs_search", kind=OutcomeKind.OK, content=content)

        world.says += [brought("starting")] * 1_000
        async with crew_room(tmp_path, coordinator, minds, models={"reader": reader}, world=world) as room:
            run = await room.start("?")
            while world.reads < 3:
                await asyncio.sleep(0.02)
        before, world.says = world.reads, [brought("ready")] * 10
        async with crew_room(tmp_path, coordinator, minds, models={"reader": reader}, world=world) as room:
            assert (await room.answer(run, timeout_s=30)).text == "Ready."
        assert world.reads - before <= 2
        told = json.loads(reader.asked[-1].messages[-1].text.partition(">\n")[2].rpartition("\n</result")[0])
        assert (told["reason"], told["last_observation"]) == ("matched", "ready")
        assert told["samples"] > 3
        assert (len(coordinator.asked), len(reader.asked)) == (2, 2)

    asyncio.run(story())


def test_what_workers_say_beside_their_work_is_thought_aloud_and_no_part_of_the_answer(tmp_path: Path) -> None:
    async def story() -> None:
        turns = [plans(step("a"), text="Let me plan."), responds("Done.")]
        mind = Mind(script=[wants(search(), text="I look."), submits("I looked.")])
        async with crew_room(tmp_path, turns, {"reader": mind}) as room:
            heard: list[Piece] = []
            run = await room.start("?")
            with room.live.listen(run.id) as ear:
                await room.answer(run)
                while ear.qsize():
                    piece = ear.get_nowait()
                    if isinstance(piece, Piece):
                        heard.append(piece)
            assert {(each.kind, each.agent, each.task) for each in heard} <= {
                ("reasoning", "lead", "c1"),
                ("reasoning", "reader", "t1"),
            }
            assert "".join(each.text for each in heard if each.task == "t1") == "I look."
            told = await room.told(run, "agent.turn")
            assert [(each["agent"], each["task"]) for each in told] == [
                ("lead", "c1"),
                ("reader", "t1"),
                ("reader", "t1"),
                ("lead", "c2"),
            ]

    asyncio.run(story())


@pytest.mark.timeout(60)
def test_two_tasks_that_wait_for_people_go_on_one_by_one_as_they_are_decided(tmp_path: Path) -> None:
    async def story() -> None:
        turns = [plans(parallel(step("one", "first"), step("two", "second"))), responds("Both [t1e1] [t2e1].")]
        minds = {
            "first": Mind(script=[wants(scale("web")), submits("Scaled [t1e1].")], tools=("scale",)),
            "second": Mind(script=[wants(scale("pay")), submits("Scaled [t2e1].")], tools=("scale",)),
        }
        async with crew_room(tmp_path, turns, minds) as room:
            run = await room.start("Scale both.")
            await room.parked(run)
            waiting = [msgspec.convert(each, type=Parked) for each in await room.told(run, "agent.call_parked")]
            assert len(waiting) == 2
            await room.approve(waiting[1], run)
            while len(room.world.done) < 1:
                await asyncio.sleep(0.02)
            assert room.world.done[0][1]["service"] == ("pay" if waiting[1].call.startswith("t2.") else "web")
            await room.parked(run)
            await room.approve(waiting[0], run)
            answer = await room.answer(run, timeout_s=30)
            assert answer.cited == ("t1e1", "t2e1")
            assert len(room.world.done) == 2
            assert [len(model.asked) for model in room.workers.values()] == [2, 2]

    asyncio.run(story())
