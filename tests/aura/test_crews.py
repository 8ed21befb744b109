"""Row 9 of the acceptance list, and what row 11 says of workers: a coordinator and its crew over the wire, with events and manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from quell.config import AuraSettings
from tests.aura._bench import LOOSE, Shop, a_shop, agent_at, calls, named, played, says, server_of, thinking
from tests.doors._model_bench import Answer, silence
from tests.doors._wire_bench import CHAT, a_wire, frames, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
ON = AuraSettings(custom_events=True)
DONE = calls(("respond_directly", {"response": "All is well.", "routing_rationale": "done"}))
Worker = Callable[[str, list[str]], Answer]
"""Takes its task, and the results of its tools so far."""


def plan(*steps: Mapping[str, object]) -> Answer:
    given = {"goal": "find out", "steps": list(steps), "routing_rationale": "look", "planning_summary": "looking"}
    return calls(("create_plan", given))


def task(text: str, worker: str = "logs") -> dict[str, object]:
    return {"type": "task", "task": text, **({"worker": worker} if worker else {})}


def submits(result: str) -> Answer:
    return calls(("submit_result", {"summary": result[:20], "result": result, "confidence": "high"}))


def crew(*, more: str = "", worker: str = "", name: str = "logs") -> str:
    """Return the tables of a crew: one worker that reads, and one that may delete."""
    return (
        f"[orchestration]\nenabled = true\n{more}\n"
        f'[orchestration.worker.{name}]\ndescription = "Reads logs."\npreamble = "Read."\nmcp_filter = ["get_*"]\n{worker}'
        '[orchestration.worker.cleaner]\ndescription = "Deletes."\npreamble = "Delete."\nmcp_filter = ["delete_*", "get_*"]\n'
    )


class Minds:
    """A coordinator that says one thing after the other, and workers that think about their task."""

    def __init__(self, *coordinator: Answer, worker: Worker) -> None:
        self._coordinator = list(coordinator)
        self._worker = worker
        self.asked: list[dict[str, Any]] = []
        """Of the coordinator."""

    def __call__(self, body: dict[str, Any]) -> Answer:
        offered = {each["function"]["name"] for each in body.get("tools", [])}
        if "submit_result" in offered:
            text = "\n".join(str(each["content"]) for each in body["messages"] if each["role"] == "user")
            return self._worker(text, [str(each["content"]) for each in body["messages"] if each["role"] == "tool"])
        self.asked.append(body)
        return self._coordinator[min(len(self.asked), len(self._coordinator)) - 1]


def reads(text: str, results: list[str]) -> Answer:
    return submits("It is well.") if results else calls(("get_logs", {"service": "web"}))


class Told:
    """What came of one question: the frames, and the manifest of its run."""

    def __init__(self, text: str, place: Path) -> None:
        self.frames = frames(text)
        self.text = text_of([each for name, each in self.frames if name == "data"])
        self.names = [
            name.removeprefix("orchestrator.") for name in named(self.frames) if name.startswith("orchestrator.")
        ]
        manifests = sorted(place.rglob("manifest.json"))
        self.manifest = json.loads(manifests[-1].read_text()) if manifests else {}

    def events(self, name: str) -> list[dict[str, Any]]:
        return [each for found, each in self.frames if found == f"aura.orchestrator.{name}"]


def _asked(tmp_path: Path, minds: Minds, tables: str, *, then: Callable[[Told, Shop], None]) -> None:
    async def story() -> None:
        async with a_shop() as shop, thinking(minds) as model:
            place = tmp_path / "memory"
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + tables)
            agents = tuple(_with(agent, str(place)) for agent in agents)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                body = {"messages": [{"role": "user", "content": "How is it?"}], "stream": True}
                response = await wire.http.post(CHAT, json=body, headers={"X-Chat-Session-Id": "cs_row9"})
                then(Told(response.text, place), shop)

    played(story, timeout_s=40)


def _with(agent: Any, memory_dir: str) -> Any:
    from dataclasses import replace  # noqa: PLC0415 - only here

    return replace(agent, memory_dir=memory_dir)


def test_row_9_a_direct_answer_is_told_and_leaves_a_manifest(tmp_path: Path) -> None:
    def then(told: Told, shop: Shop) -> None:
        assert told.names == ["direct_answer"]
        (event,) = told.events("direct_answer")
        assert (event["response"], event["routing_rationale"], event["agent_id"]) == (
            "All is well.",
            "done",
            "coordinator",
        )
        assert told.text == "All is well."
        assert (told.manifest["routing_mode"], told.manifest["status"]) == ("direct_answer", "success")
        assert shop.done == []

    _asked(tmp_path, Minds(DONE, worker=reads), crew(), then=then)


def test_row_9_a_question_back_is_told_with_its_options(tmp_path: Path) -> None:
    wish = {"question": "Which shop?", "options": ["north", "south"], "routing_rationale": "two of them"}

    def then(told: Told, _shop: Shop) -> None:
        assert told.names == ["clarification_needed"]
        (event,) = told.events("clarification_needed")
        assert (event["question"], event["options"]) == ("Which shop?", ["north", "south"])
        assert "Which shop?" in told.text

    _asked(tmp_path, Minds(calls(("request_clarification", wish)), worker=reads), crew(), then=then)


def test_row_9_a_plan_of_one_task_is_routed_and_its_events_come_in_order(tmp_path: Path) -> None:
    def then(told: Told, shop: Shop) -> None:
        assert told.names == [
            "plan_created",
            "task_started",
            *("tool_call_started", "tool_call_completed") * 2,
            "task_completed",
            "synthesizing",
            "iteration_complete",
        ]
        (made,) = told.events("plan_created")
        assert (made["goal"], made["routing_mode"], made["tasks"]) == ("find out", "routed", ["look at web"])
        (started,), (completed,) = told.events("task_started"), told.events("task_completed")
        assert (started["worker_id"], completed["success"], completed["result"]) == ("logs", True, "It is well.")
        assert started["task_id"] == completed["task_id"]
        assert [each["tool_name"] for each in told.events("tool_call_started")] == ["get_logs", "submit_result"]
        assert [each["success"] for each in told.events("tool_call_completed")] == [True, True]
        (ended,) = told.events("iteration_complete")
        assert {"planning_ms", "execution_ms", "task_compute_ms", "tool_ms"} <= ended.keys()
        assert ended["will_replan"] is False
        assert told.text == "All is well."
        assert shop.done == [("get_logs", {"service": "web"})]
        assert (told.manifest["routing_mode"], told.manifest["status"]) == ("routed", "success")
        (task_told,) = told.manifest["task_summaries"]
        assert task_told["worker"] == "logs"
        # AURA's usage of an orchestrated run is all zeros.
        usage = next(each["usage"] for _, each in told.frames if isinstance(each, dict) and each.get("usage"))
        assert usage["total_tokens"] > 0

    _asked(tmp_path, Minds(plan(task("look at web")), DONE, worker=reads), crew(), then=then)


@pytest.mark.parametrize("shape", ["parallel", "chain"])
def test_row_9_steps_run_side_by_side_or_one_after_the_other(tmp_path: Path, shape: str) -> None:
    steps = [task("one"), task("two")]
    step = {"type": "parallel", "items": steps} if shape == "parallel" else {"type": "chain", "steps": steps}

    def then(told: Told, _shop: Shop) -> None:
        (made,) = told.events("plan_created")
        assert made["routing_mode"] == "orchestrated"
        order = [name for name in told.names if name in {"task_started", "task_completed"}]
        side_by_side = ["task_started", "task_started", "task_completed", "task_completed"]
        assert order == (side_by_side if shape == "parallel" else ["task_started", "task_completed"] * 2)
        ids = [each["task_id"] for each in told.events("task_started")]
        assert len(set(ids)) == 2
        assert told.manifest["routing_mode"] == "orchestrated"
        assert len(told.manifest["task_summaries"]) == 2

    _asked(tmp_path, Minds(plan(step), DONE, worker=reads), crew(), then=then)


def test_row_9_what_waits_for_a_task_that_failed_fails_as_dependency_failed(tmp_path: Path) -> None:
    def worker(text: str, results: list[str]) -> Answer:
        return says("I do not know.")

    def then(told: Told, _shop: Shop) -> None:
        assert [each["success"] for each in told.events("task_completed")] == [False, False]
        categories = [each["failure_category"] for each in told.manifest["task_summaries"]]
        assert categories == ["soft_failure", "dependency_failed"]
        assert told.manifest["status"] != "success"

    _asked(
        tmp_path,
        Minds(plan({"type": "chain", "steps": [task("one"), task("two")]}), DONE, worker=worker),
        crew(),
        then=then,
    )


def test_row_9_planning_ends_at_its_bound_and_the_workers_results_are_the_answer(tmp_path: Path) -> None:
    again = plan(task("look again"))

    def then(told: Told, _shop: Shop) -> None:
        assert told.names.count("plan_created") == 2
        (replanned,) = told.events("replan_started")
        assert replanned["trigger"] == "post_execute_create_plan"
        assert next(each["will_replan"] for each in told.events("iteration_complete")) is True
        # In AURA the numbers of tasks begin again in every round, and two tasks share one.
        ids = [each["task_id"] for each in told.events("task_started")]
        assert len(set(ids)) == len(ids) == 2
        assert "It is well." in told.text
        assert told.manifest["iterations"] == 2

    _asked(tmp_path, Minds(again, worker=reads), crew(more="max_planning_cycles = 2"), then=then)


def test_row_9_a_task_whose_time_is_over_fails_as_agent_timeout(tmp_path: Path) -> None:
    def then(told: Told, _shop: Shop) -> None:
        (completed,) = told.events("task_completed")
        assert completed["success"] is False
        assert [each["failure_category"] for each in told.manifest["task_summaries"]] == ["agent_timeout"]

    timeouts = "[orchestration.timeouts]\nper_call_timeout_secs = 2\n"
    minds = Minds(plan(task("hang")), DONE, worker=lambda _text, _results: silence())
    _asked(tmp_path, minds, crew() + timeouts, then=then)


def test_row_9_a_worker_that_repeats_itself_fails_as_loop_detected_though_its_calls_fail(tmp_path: Path) -> None:
    # AURA counts only calls that succeed: a worker may repeat a failing one until its rounds are over.
    def then(told: Told, shop: Shop) -> None:
        assert [each["failure_category"] for each in told.manifest["task_summaries"]] == ["loop_detected"]
        assert 2 <= len(shop.done) <= 6

    minds = Minds(plan(task("look")), DONE, worker=lambda _text, _results: calls(("get_trouble", {})))
    _asked(tmp_path, minds, crew(worker="turn_depth = 12\n"), then=then)


# what row 11 says of workers


def test_row_11_a_plan_step_without_a_worker_is_refused_and_nobody_has_all_tools(tmp_path: Path) -> None:
    # AURA gives such a step to a worker of its own with every tool of the agent.
    def then(told: Told, shop: Shop) -> None:
        assert shop.done == [("get_logs", {"service": "web"})]
        assert "logs" in json.dumps(minds.asked[1]["messages"]), "it is told who there is"
        assert [each["worker_id"] for each in told.events("task_started")] == ["logs"]

    minds = Minds(plan(task("delete it", worker="")), plan(task("look")), DONE, worker=reads)
    _asked(tmp_path, minds, crew(), then=then)


@pytest.mark.parametrize("worker", ["logs", "cleaner"])
def test_row_11_a_probe_of_wait_for_goes_round_neither_the_filter_nor_the_gate(tmp_path: Path, worker: str) -> None:
    # AURA probes any tool of any server, unfiltered and unasked.
    probe = {"tool": "delete_volume", "args": {"name": "v1"}}
    heard: list[str] = []

    def thinks(text: str, results: list[str]) -> Answer:
        heard.extend(results)
        wish = {"probe": probe, "until": {"matches": "gone"}, "poll_sec": 0.1, "max_wait_sec": 3}
        return submits("I could not.") if results else calls(("wait_for", wish))

    def then(told: Told, shop: Shop) -> None:
        assert shop.done == []
        assert heard, "the worker is told why"
        assert told.names[-1] == "iteration_complete"

    gate = '[hitl]\nrequire_approval = ["delete_*"]\n[hitl.route]\nmode = "conversational"\ntimeout_secs = 2\n'
    minds = Minds(plan(task("wait", worker=worker)), DONE, worker=thinks)
    _asked(tmp_path, minds, crew() + gate, then=then)
