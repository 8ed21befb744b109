"""AURA's named events: what is heard of a run, in their words, in their order, behind their switches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.agent import Stop
from quell.config import AgentSettings, AgentTable, AuraSettings, LlmSettings
from quell.config._agent_settings import OrchestrationSettings, WorkerSettings
from quell.domain import Approval, Heard
from quell.governance import Approvals
from quell.server._aura_events import AuraEvents
from quell.server._chat_reply import Account
from quell.server._scene import Scene
from tests.doors._authority_house import a_house, settings_of
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import delta, end, provider, sse, usage
from tests.doors._wire_bench import a_wire, frames, golden
from tests.doors._wire_bench import settings_of as wire_settings

pytestmark = pytest.mark.timeout(60)
ON = AuraSettings(custom_events=True)
RUN = "run_01m7x51d1zqg1zaxd0jkf005vw"
USED = {"input_tokens": 9, "output_tokens": 3}
ANSWERED: dict[str, object] = {
    "text": "Done.",
    "stop": Stop.ANSWERED,
    "usage": {"input_tokens": 29, "output_tokens": 6},
    "is_usage_told": True,
    "turns": 2,
    "calls": 1,
    "failed": 0,
}
LLM = LlmSettings(provider="openai", model="played")
SINGLE = AgentSettings(agent=AgentTable(name="sre", system_prompt="x", llm=LLM))
CREW = replace(
    SINGLE,
    orchestration=OrchestrationSettings(
        enabled=True, worker={"logs": WorkerSettings(description="reads logs", preamble="x")}
    ),
)


def told(
    heard: Sequence[tuple[str, Mapping[str, object]]],
    *,
    settings: AuraSettings = ON,
    agent: AgentSettings = SINGLE,
    approvals: list[Approval | None] | None = None,
) -> list[tuple[str, Any]]:
    """Play what is heard to the events of one stream."""
    scene = Scene(run=RUN, session="cs_1", agent=agent, pads=frozenset({"grep"}))
    events = AuraEvents(scene, settings, clean=str)
    account, text = Account(run=RUN), b""
    for number, (name, body) in enumerate(heard):
        each = Heard(id=str(number), name=name, body=body)
        account.hear(each)
        text += events.feed(each, approval=approvals[number] if approvals else None)
    return frames(golden((text + events.end(account)).decode()))


def call(name: str, **more: object) -> tuple[str, dict[str, object]]:
    return name, {"call": "1.1", "tool": "read_logs", "agent": "sre", "task": "", **more}


ONE_CALL = [
    ("agent.began", {"agent": "sre", "model": "openai/played", "window": 8000, "session": "cs_1", "version": "v"}),
    ("agent.turn", {"agent": "sre", "task": "", "turn": 0, "usage": USED}),
    call("agent.call_asked", arguments='{"service":"till"}'),
    call("agent.progress", message="half", done=1, total=2),
    call("agent.progress", message="done", done=2, total=2),
    call("agent.call_ended", kind="ok", content="3 lines", elapsed_ms=12.3),
    ("agent.turn", {"agent": "sre", "task": "", "turn": 1, "usage": USED}),
    ("agent.answered", ANSWERED),
]


def test_a_call_is_requested_started_moved_and_complete_and_then_its_tokens_are_told() -> None:
    found = told(ONE_CALL)
    tail = {"agent_id": "main", "agent_name": "sre", "session_id": "cs_1"}
    head = {"tool_id": "call_r_1_1", "tool_name": "read_logs"}
    tokens = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert found == [
        ("aura.session_info", {"model": "openai/played", "model_context_limit": 8000, "session_id": "cs_1"}),
        ("aura.tool_requested", {**head, "arguments": {"service": "till"}, **tail}),
        ("aura.tool_start", {**head, "progress_token": "call_r_1_1", **tail}),
        ("aura.progress", {"message": "half", "phase": "mcp_progress", "percent": 50, "progress_token": "call_r_1_1", **tail}),
        ("aura.progress", {"message": "done", "phase": "mcp_progress", "percent": 100, "progress_token": "call_r_1_1", **tail}),
        ("aura.tool_complete", {**head, "duration_ms": 0, "success": True, **tail}),
        ("aura.tool_usage", {"tool_ids": ["call_r_1_1"], **tokens, "session_id": "cs_1"}),
        ("aura.usage", {"prompt_tokens": 29, "completion_tokens": 6, "total_tokens": 35, "session_id": "cs_1"}),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["tool_error", "transport_error", "denied", "timeout", "suspicious"])
def test_no_call_that_failed_is_told_as_a_success(kind: str) -> None:
    found = told([call("agent.call_ended", kind=kind, content="", detail="it broke", elapsed_ms=1.0)])
    assert [name for name, _ in found] == ["aura.tool_start", "aura.tool_complete"]
    assert (found[1][1]["success"], found[1][1]["error"]) == (False, "it broke")


def test_nothing_is_told_without_the_switch_but_tokens_put_aside() -> None:
    aside = call("agent.call_ended", kind="ok", content="head", size_bytes=4004, handle="h1")
    read = call("agent.call_ended", tool="grep", kind="ok", content="x" * 160)
    assert told([*ONE_CALL, ("reasoning", {"text": "hm"})], settings=AuraSettings()) == []
    ((name, payload),) = told([aside, read], settings=AuraSettings())
    assert (name, payload["tokens_intercepted"], payload["tokens_extracted"]) == ("aura.scratchpad_usage", 1000, 40)


def test_thoughts_and_readings_of_results_have_switches_of_their_own() -> None:
    thought = ("reasoning", {"agent": "", "task": "", "turn": 0, "text": "hm"})
    reading = [call("agent.call_asked", tool="grep", arguments="{}"), call("agent.call_ended", tool="grep", kind="ok")]
    assert told([thought, *reading]) == []
    both = replace(ON, emit_reasoning=True, emit_scratchpad_tool_events=True)
    names = [name for name, _ in told([thought, *reading], settings=both)]
    assert names == ["aura.reasoning", "aura.tool_requested", "aura.tool_start", "aura.tool_complete"]


def test_what_a_worker_thinks_aloud_is_told_with_its_task() -> None:
    thought = ("reasoning", {"agent": "logs", "task": "t2", "turn": 0, "text": "hm"})
    found = told([thought], settings=replace(ON, emit_reasoning=True), agent=CREW)
    (_, of_plan), (_, plain) = found
    assert [name for name, _ in found] == ["aura.orchestrator.worker_reasoning", "aura.reasoning"]
    assert (of_plan["task_id"], of_plan["worker_id"], of_plan["content"]) == (1, "logs", "hm")
    assert (plain["agent_id"], plain["parent_agent_id"], plain["content"]) == ("logs", "coordinator", "hm")
    assert told([thought], agent=CREW) == []


def test_results_are_told_where_that_is_the_mode_and_never_cut_inside_a_letter() -> None:
    ended = call("agent.call_ended", kind="ok", content="é" * 10)
    (_, start), (_, complete) = told([ended], settings=replace(ON, tool_result_mode="aura", tool_result_max_length=5))
    assert complete["result"] == "éé"
    assert start["progress_token"] == complete["tool_id"]


def test_who_waits_for_people_is_told_of_though_nothing_else_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_house(settings_of(tmp_path)) as house:
            asked = house.ask(1)
            body = {"call": "1.1", "tool": "scale", "approval": asked.id}
            ended = {"call": "1.1", "tool": "scale", "kind": "denied"}
            at = {"settled_at": asked.terms.requested_at}
            ends = {
                "approved": replace(asked, status="approved", **at),  # type: ignore[arg-type]
                "denied": replace(asked, status="rejected", **at),  # type: ignore[arg-type]
                "timed_out": replace(asked, status="expired"),  # type: ignore[arg-type]
            }
            for kind, settled in ends.items():
                found = told(
                    [("agent.call_parked", body), ("agent.call_parked", body), ("agent.call_ended", ended)],
                    settings=AuraSettings(),
                    approvals=[asked, asked, settled],
                )
                names = [name for name, _ in found]
                assert names == ["aura.approval_requested", "aura.approval_pending", "aura.approval_completed"]
                pending, completed = found[1][1], found[2][1]
                assert pending["tool_name"] == asked.terms.calls[0].call.tool
                assert isinstance(pending["arguments"], dict)
                assert pending["origin"]["kind"] == "config_gate"
                assert pending["scope"] == {"kind": "single", "session_id": "cs_1"}
                assert completed["outcome"]["kind"] == kind
            assert Approvals.approval_id_of(Approvals.decision_id_of(asked.id)) == asked.id

    asyncio.run(story())


def test_a_coordinator_tells_its_plan_and_no_two_tasks_share_a_number() -> None:
    def task(name: str, number: str, **more: object) -> tuple[str, dict[str, object]]:
        return name, {"task": number, "worker": "logs", "agent": "logs", **more}

    plan = {"goal": "g", "rationale": "r", "mode": "routed", "iteration": 1, "tasks": [{"text": "look"}]}
    found = told(
        [
            ("agent.plan_made", plan),
            task("agent.task_started", "t1", description="look"),
            task("agent.call_asked", "t1", call="w1", tool="read_logs", arguments="{}"),
            task("agent.call_ended", "t1", call="w1", tool="read_logs", kind="timeout", detail="slow", elapsed_ms=1.0),
            task("agent.task_ended", "t1", success=False, elapsed_ms=5, result="nothing"),
            ("agent.synthesizing", {"iteration": 1}),
            ("agent.round_ended", {"iteration": 1, "will_replan": True, "gaps": ["logs"]}),
            ("agent.replanned", {"iteration": 2}),
            ("agent.plan_made", plan),
            task("agent.task_started", "t2", description="look again"),
        ],
        agent=CREW,
    )
    of_plan = [(name.removeprefix("aura.orchestrator."), each) for name, each in found if "orchestrator" in name]
    assert [name for name, _ in of_plan] == [
        "plan_created",
        "task_started",
        "tool_call_started",
        "tool_call_completed",
        "task_completed",
        "synthesizing",
        "iteration_complete",
        "replan_started",
        "plan_created",
        "task_started",
    ]
    by_name = dict(of_plan)
    assert (by_name["plan_created"]["tasks"], by_name["plan_created"]["routing_mode"]) == (["look"], "routed")
    assert by_name["tool_call_completed"]["success"] is False
    assert by_name["iteration_complete"]["gaps"] == ["logs"]
    assert by_name["replan_started"]["trigger"] == "post_execute_create_plan"
    assert [each["task_id"] for name, each in of_plan if name == "task_started"] == [0, 1]
    assert all(each["agent_id"] == "coordinator" for _, each in of_plan)
    workers = [each for name, each in found if name == "aura.tool_requested"]
    assert (workers[0]["agent_id"], workers[0]["parent_agent_id"]) == ("logs", "coordinator")


@pytest.mark.parametrize(
    ("decision", "mode", "event"),
    [
        ("respond_directly", "direct_answer", "direct_answer"),
        ("respond_directly", "orchestrated", ""),
        ("request_clarification", "direct_answer", "clarification_needed"),
        ("create_plan", "routed", ""),
    ],
)
def test_a_route_is_told_as_what_it_is(decision: str, mode: str, event: str) -> None:
    body = {"decision": decision, "mode": mode, "response": "t", "question": "t", "rationale": "r"}
    found = told([("agent.routed", body)], agent=CREW)
    assert [name for name, _ in found] == ([f"aura.orchestrator.{event}"] if event else [])


def test_what_a_coordinator_does_itself_is_no_workers_and_turns_side_by_side_are_told_apart() -> None:
    def turn(task: str, spent: int, agent: str) -> tuple[str, dict[str, object]]:
        used = {"input_tokens": spent, "output_tokens": 1}
        return "agent.turn", {"task": task, "agent": agent, "turn": 0, "usage": used}

    def asked(task: str, call: str, agent: str) -> tuple[str, dict[str, object]]:
        return "agent.call_asked", {"task": task, "agent": agent, "call": call, "tool": "x", "arguments": "{}"}

    def ended(task: str, call: str, agent: str) -> tuple[str, dict[str, object]]:
        return "agent.call_ended", {"task": task, "agent": agent, "call": call, "tool": "x", "kind": "ok"}

    found = told(
        [
            turn("c1", 5, "sre"),
            asked("c1", "c1.1.1", "sre"),
            ended("c1", "c1.1.1", "sre"),
            turn("t1", 7, "logs"),
            turn("t2", 9, "logs"),
            asked("t1", "t1.1.1", "logs"),
            asked("t2", "t2.1.1", "logs"),
            ended("t2", "t2.1.1", "logs"),
            ended("t1", "t1.1.1", "logs"),
        ],
        agent=CREW,
    )
    spent = [each["prompt_tokens"] for name, each in found if name == "aura.tool_usage"]
    assert spent == [5, 9, 7]
    of_coordinator = next(each for name, each in found if name == "aura.tool_requested")
    assert (of_coordinator["agent_id"], "parent_agent_id" in of_coordinator) == ("coordinator", False)
    begun = [each["task_id"] for name, each in found if name == "aura.orchestrator.tool_call_started"]
    assert begun == [0, 1]


def test_a_stream_has_its_events_between_its_chunks(tmp_path: Path) -> None:
    async def story() -> None:
        asked = {"index": 0, "id": "x", "function": {"name": "system_overview", "arguments": "{}"}}
        turns = (
            sse(delta(tool_calls=[asked]), end("tool_calls"), usage(9, 3)),
            sse(delta("Well."), end(), usage(20, 3)),
        )
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "a", file_of("sre", model.url, more='[quell]\nevidence = "off"\n'))
            async with a_wire(wire_settings(tmp_path / "state", aura=ON), agents) as wire:
                response = await wire.ask(stream=True, metadata={"chat_session_id": "cs_mine"})
                found = frames(response.text)
                assert [name for name, _ in found] == [
                    "aura.session_info",
                    "data",
                    "data",
                    "aura.tool_requested",
                    "aura.tool_start",
                    "aura.tool_complete",
                    "aura.tool_usage",
                    "data",
                    "aura.usage",
                    "data",
                    "data",
                ]
                assert {each["session_id"] for name, each in found if name.startswith("aura.")} == {"cs_mine"}

    asyncio.run(story())
