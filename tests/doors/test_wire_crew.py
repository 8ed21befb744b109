"""A coordinator and its workers as chat clients hear them: golden transcripts of whole streams, and usage that adds up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from quell.config import AgentSettings, ApprovalSettings, AuraSettings, load_agents
from quell.domain import ConfigError, Parked, Principal
from tests._mcp_rogue import Rogue, rogue
from tests.doors._authority_house import Service
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Answer, Provider, delta, end, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, frames, golden, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
ON = AuraSettings(custom_events=True, emit_reasoning=True)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "unit": {"type": "string"}}, "required": ["n"]}
TAIL = {"agent_id": "coordinator", "agent_name": "sre", "session_id": "cs_1"}
CREW = """
[mcp.servers.shop]
transport = "http_streamable"
url = "{server}"
[orchestration]
enabled = true
worker_system_prompt = "You are one of the night shift."
[orchestration.worker.reader]
description = "reads what there is"
preamble = "Read it."
mcp_filter = ["echo"]
[orchestration.worker.keeper]
description = "keeps what was read"
preamble = "Keep it."
mcp_filter = []
[quell]
evidence = "off"
reads = ["echo"]
"""


def calls(name: str, given: Mapping[str, object], *, spent: int) -> Answer:
    """Play a turn that calls one tool, and takes so many tokens in and one out."""
    asked = {"index": 0, "id": "x", "function": {"name": name, "arguments": json.dumps(given)}}
    return sse(delta(tool_calls=[asked]), end("tool_calls"), usage(spent, 1))


def plans(*tasks: tuple[str, str], spent: int) -> Answer:
    steps = [{"type": "task", "task": text, "worker": worker} for text, worker in tasks]
    given = {"goal": "find out", "steps": steps, "routing_rationale": "look", "planning_summary": "looking"}
    return calls("create_plan", given, spent=spent)


def responds(text: str, *, spent: int) -> Answer:
    return calls("respond_directly", {"response": text, "routing_rationale": "known"}, spent=spent)


def submits(result: str, *, spent: int) -> Answer:
    return calls("submit_result", {"summary": "done", "result": result, "confidence": "high"}, spent=spent)


LOOKS = (
    plans(("echo it", "reader"), ("keep it", "keeper"), spent=1),
    calls("echo", {"n": 7, "unit": None, "_aura_reasoning": "to see"}, spent=10),
    submits("it says it", spent=100),
    submits("kept", spent=1_000),
    responds("All is well.", spent=10_000),
)
SPENT = {"prompt_tokens": 11_111, "completion_tokens": 5, "total_tokens": 11_116}


def crew_of(directory: Path, model: Provider, server: Rogue, *, more: str = "") -> tuple[AgentSettings, ...]:
    server.tools = [{"name": "echo", "description": "says it again", "inputSchema": SCHEMA}]
    return agents_of(directory, file_of("sre", model.url, more=CREW.format(server=server.url) + more))


def ask(tmp_path: Path, *answers: Answer, more: str = "", **wish: object) -> tuple[httpx2.Response, Provider, Rogue]:
    """Ask a crew one question over the wire."""

    async def story() -> tuple[httpx2.Response, Provider, Rogue]:
        async with provider(*answers) as model, rogue() as server:
            agents = crew_of(tmp_path / "agents", model, server, more=more)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                return await wire.ask("Is all well?", **wish), model, server

    return asyncio.run(story())


def told(response: httpx2.Response) -> list[tuple[str, Any]]:
    """Return the frames of a stream without times and ids."""
    assert response.status_code == 200, response.text
    return frames(golden(response.text))


def lines(response: httpx2.Response) -> list[str]:
    """Return a stream in short: the name of each event with who and what it is about; `data` for chunks."""
    found = []
    for name, body in told(response):
        about = [str(body[key]) for key in _ABOUT if key in body] if isinstance(body, dict) else []
        found.append(" ".join([name.removeprefix("aura."), *about]))
    return found


_ABOUT = ("agent_id", "task_id", "worker_id", "tool_name", "iteration", "will_replan", "success")


def last_chunk(response: httpx2.Response) -> dict[str, Any]:
    chunks: list[dict[str, Any]] = [body for name, body in told(response) if name == "data" and isinstance(body, dict)]
    return chunks[-1]


def of_plan(response: httpx2.Response) -> list[dict[str, Any]]:
    """Return what is told of a plan; each says the same of who tells it."""
    bodies = [body for name, body in told(response) if name.startswith("aura.orchestrator.")]
    assert all(body | TAIL == body for body in bodies)
    return [{key: value for key, value in body.items() if key not in TAIL} for body in bodies]


def shown(model: Provider, number: int) -> dict[str, Any]:
    """Return the tools that a model was shown in its request of this number, with their schemas."""
    body: dict[str, Any] = model.bodies[number]
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}


def said(response: httpx2.Response) -> str:
    return text_of([body for name, body in told(response) if name == "data"])


def test_an_answer_of_the_coordinator_itself(tmp_path: Path) -> None:
    response, model, _ = ask(tmp_path, responds("It is night.", spent=7), stream=True)
    assert lines(response) == [
        "session_info",
        "mcp_status",
        "tool_requested coordinator respond_directly",
        "tool_start coordinator respond_directly",
        "tool_complete coordinator respond_directly True",
        "tool_usage",
        "orchestrator.direct_answer coordinator",
        "data",
        "usage",
        "data",
        "data",
    ]
    direct = dict(told(response))["aura.orchestrator.direct_answer"]
    assert (direct["response"], direct["routing_rationale"]) == ("It is night.", "known")
    assert said(response) == "It is night."
    assert last_chunk(response)["usage"] == {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    names = set(shown(model, 0))
    assert {"respond_directly", "create_plan", "request_clarification"} <= names
    assert "echo" not in names, "a coordinator has no tools of the system"


def test_a_question_back(tmp_path: Path) -> None:
    given = {"question": "Which shop?", "options": ["red", "blue"], "routing_rationale": "unclear"}
    response, _, _ = ask(tmp_path, calls("request_clarification", given, spent=3), stream=True)
    asked = dict(told(response))["aura.orchestrator.clarification_needed"]
    assert (asked["question"], asked["options"]) == ("Which shop?", ["red", "blue"])
    assert said(response) == "Which shop?\n- red\n- blue"
    assert last_chunk(response)["quell"]["stop"] == "asked"


def test_a_plan_is_carried_out_by_workers_and_its_usage_adds_up(tmp_path: Path) -> None:
    response, model, server = ask(tmp_path, *LOOKS, stream=True)
    assert lines(response) == [
        "session_info",
        "mcp_status",
        "tool_requested coordinator create_plan",
        "tool_start coordinator create_plan",
        "tool_complete coordinator create_plan True",
        "tool_usage",
        "orchestrator.plan_created coordinator",
        "orchestrator.task_started coordinator 0 reader",
        "tool_requested reader echo",
        "orchestrator.tool_call_started coordinator 0 reader echo",
        "tool_start reader echo",
        "tool_complete reader echo True",
        "tool_usage",
        "orchestrator.tool_call_completed coordinator 0 True",
        "tool_requested reader submit_result",
        "orchestrator.tool_call_started coordinator 0 reader submit_result",
        "tool_start reader submit_result",
        "tool_complete reader submit_result True",
        "tool_usage",
        "orchestrator.tool_call_completed coordinator 0 True",
        "orchestrator.task_completed coordinator 0 reader True",
        "orchestrator.task_started coordinator 1 keeper",
        "tool_requested keeper submit_result",
        "orchestrator.tool_call_started coordinator 1 keeper submit_result",
        "tool_start keeper submit_result",
        "tool_complete keeper submit_result True",
        "tool_usage",
        "orchestrator.tool_call_completed coordinator 1 True",
        "orchestrator.task_completed coordinator 1 keeper True",
        "orchestrator.synthesizing coordinator 1",
        "tool_requested coordinator respond_directly",
        "tool_start coordinator respond_directly",
        "tool_complete coordinator respond_directly True",
        "tool_usage",
        "orchestrator.iteration_complete coordinator 1 False",
        "data",
        "usage",
        "data",
        "data",
    ]
    events = dict(told(response))
    task = {"task_id": 0, "orchestrator_id": "coordinator", "worker_id": "reader"}
    call = {"task_id": 0, "tool_call_id": "call_r_t1_1_1"}
    assert of_plan(response)[:4] == [
        {
            "goal": "find out",
            "tasks": ["echo it", "keep it"],
            "routing_mode": "orchestrated",
            "routing_rationale": "look",
            "planning_response": "looking",
        },
        {"description": "echo it"} | task,
        {"tool_name": "echo", "worker_id": "reader", "arguments": {"n": 7}} | call,
        {"success": True, "duration_ms": 0, "result": '{"n": 7}'} | call,
    ]
    assert of_plan(response)[6] == {"success": True, "duration_ms": 0, "result": "it says it"} | task
    assert last_chunk(response)["quell"]["tool_failures"] == 0
    assert said(response) == "All is well."
    assert last_chunk(response)["usage"] == SPENT
    assert events["aura.usage"] | SPENT == events["aura.usage"]
    assert shown(model, 1)["echo"]["required"] == ["n", "unit", "_aura_reasoning"]
    assert shown(model, 1)["echo"]["additionalProperties"] is False
    assert "echo" not in shown(model, 3)
    assert [call["arguments"] for call in server.calls] == [{"n": 7}], "a null that had to be said is not sent"


def test_without_a_stream_it_is_the_same_answer_with_the_same_usage(tmp_path: Path) -> None:
    response, _, _ = ask(tmp_path, *LOOKS)
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "All is well."
    assert body["usage"] == SPENT


def test_a_second_round_is_told_and_tasks_keep_numbers_of_their_own(tmp_path: Path) -> None:
    response, _, _ = ask(
        tmp_path,
        plans(("keep it", "keeper"), spent=1),
        submits("nothing yet", spent=1),
        plans(("keep it again", "keeper"), spent=1),
        submits("kept", spent=1),
        responds("Kept.", spent=1),
        stream=True,
    )
    of_plan = [line.removeprefix("orchestrator.") for line in lines(response) if line.startswith("orchestrator.")]
    assert [line for line in of_plan if not line.startswith("tool_")] == [
        "plan_created coordinator",
        "task_started coordinator 0 keeper",
        "task_completed coordinator 0 keeper True",
        "synthesizing coordinator 1",
        "iteration_complete coordinator 1 True",
        "replan_started coordinator 2",
        "plan_created coordinator",
        "task_started coordinator 1 keeper",
        "task_completed coordinator 1 keeper True",
        "synthesizing coordinator 2",
        "iteration_complete coordinator 2 False",
    ]
    replan = dict(told(response))["aura.orchestrator.replan_started"]
    assert replan["trigger"] == "post_execute_create_plan"
    assert said(response) == "Kept."


def test_an_answer_in_a_schema_is_refused_and_tools_of_clients_are_left_out(tmp_path: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    refused, model, _ = ask(tmp_path / "a", *LOOKS, response_format=form)
    assert refused.status_code == 400, refused.text
    assert "has workers" in refused.text
    assert model.bodies == []
    clock = {"type": "function", "function": {"name": "local_time", "description": "The time.", "parameters": {}}}
    taken, model, _ = ask(tmp_path / "b", responds("It is night.", spent=7), tools=[clock])
    assert taken.status_code == 200, taken.text
    assert "local_time" not in shown(model, 0)


def test_schemas_stay_as_they_are_where_the_file_says_so(tmp_path: Path) -> None:
    _, model, _ = ask(tmp_path, *LOOKS, more="[mcp]\nsanitize_schemas = false\n")
    assert shown(model, 1)["echo"]["required"] == ["n"]


def test_workers_have_the_small_model_where_the_file_names_one_and_their_own_where_they_do(tmp_path: Path) -> None:
    async def story() -> list[object]:
        async with provider(*LOOKS) as model, rogue() as server:
            llm = f'provider = "openai"\napi_key = "none"\nbase_url = "{model.url}"\nmodel = '
            more = f'[quell.small]\n{llm}"tiny"\n[orchestration.worker.keeper.llm]\n{llm}"of the keeper"\n'
            agents = crew_of(tmp_path / "agents", model, server, more=more)
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                assert (await wire.ask("Is all well?")).status_code == 200
            return [body["model"] for body in model.bodies]

    # The coordinator plans, the reader calls and submits, the keeper submits, the coordinator answers.
    assert asyncio.run(story()) == ["played", "tiny", "tiny", "of the keeper", "played"]


def test_each_worker_has_skills_and_bounds_of_its_own(tmp_path: Path) -> None:
    for name in ("sweep", "count"):
        (tmp_path / name / name).mkdir(parents=True)
        text = f"---\nname: {name}\ndescription: how to {name}\n---\nTo {name}, begin at the door."
        (tmp_path / name / name / "SKILL.md").write_text(text)
    more = f'[[agent.skills.local]]\nsource = "{tmp_path}/sweep"\n'
    more += f'[[orchestration.worker.keeper.skills.local]]\nsource = "{tmp_path}/count"\n'
    _, model, _ = ask(
        tmp_path,
        plans(("keep it", "keeper"), spent=1),
        calls("load_skill", {"name": "count"}, spent=1),
        calls("load_skill", {"name": "sweep"}, spent=1),
        submits("kept", spent=1),
        responds("Kept.", spent=1),
        more=more,
    )
    first: Any = model.bodies[1]["messages"]
    assert "how to count" in first[0]["content"]
    assert "how to sweep" not in first[0]["content"]
    assert first[0]["content"].startswith("You are one of the night shift.\n\nKeep it.")
    last: Any = model.bodies[3]["messages"]
    results = [each["content"] for each in last if each["role"] == "tool"]
    assert "To count, begin at the door." in results[0]
    assert "To sweep" not in results[1]
    assert 'outcome="ok"' not in results[1]


def test_a_call_of_a_worker_waits_for_people_and_its_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    answers = (
        plans(("wipe it", "wiper"), spent=1),
        calls("wipe", {"n": 7}, spent=1),
        submits("wiped", spent=1),
        responds("It is wiped.", spent=1),
    )
    wiper = '[orchestration.worker.wiper]\ndescription = "wipes"\npreamble = "Wipe it."\nmcp_filter = ["wipe"]\n'

    async def story() -> tuple[httpx2.Response, list[tuple[bool, Any]]]:
        async with provider(*answers) as model, rogue() as server:
            agents = crew_of(tmp_path / "agents", model, server, more=wiper)
            server.tools.append({"name": "wipe", "description": "empties a disk", "inputSchema": SCHEMA})
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                asking = asyncio.create_task(wire.ask("Wipe it.", stream=True))
                runs = wire.app.warden.runs
                parked = None
                for _ in range(60):
                    if parked is not None:
                        break
                    await asyncio.sleep(0.05)
                    events = [each for run in await runs.list(limit=1) for each in await runs.events(run=run.id)]
                    found = [each for each in events if each.name == "agent.call_parked"]
                    parked = msgspec.json.decode(found[0].body, type=Parked) if found else None
                assert parked is not None, [each.name for each in events]
                before = list(server.calls)
                authority = await wire.app.open_authority()
                for who in ("bob", "carol"):  # what nothing undoes, two people approve
                    with runs.database.writing() as connection:
                        authority.guard.approvals.decide(
                            connection,
                            parked.approval,
                            by=Principal(user=who, roles=("approver",)),
                            verdict="approve",
                            digest_seen=parked.digest,
                            reason="",
                        )
                (run,) = await runs.list(limit=1)
                assert await runs.wake(run.id)
                return await asking, [(not before, each["arguments"]) for each in server.calls]

    response, done = asyncio.run(story())
    assert done == [(True, {"n": 7})]
    of_call = [
        line for line in lines(response) if line.endswith(("wiper wipe", "wiper wipe True")) or "approval" in line
    ]
    assert of_call == [
        "tool_requested wiper wipe",
        "orchestrator.tool_call_started coordinator 0 wiper wipe",
        "approval_requested wipe",
        "approval_pending wipe",
        "tool_start wiper wipe",
        "approval_completed",
        "tool_complete wiper wipe True",
    ]
    scope = dict(told(response))["aura.approval_requested"]["scope"]
    assert (scope["kind"], scope["worker"]) == ("worker", "wiper")
    assert said(response) == "It is wiped."


def test_an_approvers_service_is_told_which_worker_asks(tmp_path: Path) -> None:
    answers = (plans(("wipe it", "wiper"), spent=1), calls("wipe", {"n": 7}, spent=1))
    wiper = '[orchestration.worker.wiper]\ndescription = "wipes"\npreamble = "Wipe it."\nmcp_filter = ["wipe"]\n'

    async def story() -> None:
        async with provider(*answers) as model, rogue() as server, Service() as service:
            agents = crew_of(tmp_path / "agents", model, server, more=wiper)
            server.tools.append({"name": "wipe", "description": "empties a disk", "inputSchema": SCHEMA})
            settings = settings_of(tmp_path / "state", aura=ON)
            settings = replace(settings, approvals=ApprovalSettings(webhook_url=f"{service.url}/hook"))
            service.answer = lambda _: (202, {}, b"")
            async with a_wire(settings, agents) as wire:
                body = {"messages": [{"role": "user", "content": "Wipe it."}], "stream": True}
                async with wire.http.stream("POST", CHAT, json=body) as response:
                    run, session = (response.headers[name] for name in ("x-quell-run", "x-chat-session-id"))
                    while not service.told:
                        await asyncio.sleep(0.05)
                    shown = ""
                    async for text in response.aiter_text():
                        shown += text
                        if "aura.approval_pending" in shown and shown.endswith("\n\n"):
                            break
                (told,) = service.told
                scope = json.loads(told.body)["scope"]
                assert scope == {
                    "kind": "worker",
                    "run_id": run,
                    "task_id": scope["task_id"],
                    "worker": "wiper",
                    "session_id": session,
                }
                (pending,) = [each for name, each in frames(shown) if name == "aura.approval_pending"]
                assert pending["scope"] == scope, "the stream tells the same"
                await wire.app.agents.cancel(run)

    asyncio.run(story())


def test_a_coordinator_without_workers_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(file_of("sre", "http://127.0.0.1:9/v1", more="[orchestration]\nenabled = true\n"))
    with pytest.raises(ConfigError) as refused:
        load_agents(path, env={})
    assert "a coordinator has no workers" in str([each.reason for each in refused.value.problems])
