"""A crew's run survives: people decide inside of tasks, processes end in the middle, and nothing is asked or done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quell.agent import AgentAnswer, Stop
from quell.domain import CallWanted, ModelRequest, Run
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
