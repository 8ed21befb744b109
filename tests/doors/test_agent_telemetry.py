"""One question of a person is one trace, in the words of OpenTelemetry and of OpenInference, and nobody's text by default."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import quell
from quell import telemetry
from quell.agent import BudgetAccounts, Live
from quell.agent._asking import Voice, asked
from quell.app import open_app
from quell.config import McpServerSettings
from quell.domain import (
    BudgetKind,
    BudgetScope,
    CallWanted,
    ChatAsk,
    Message,
    ModelError,
    ModelFault,
    ModelRequest,
    OutcomeKind,
    Price,
    Principal,
    Recovery,
    Spender,
    TextPiece,
    TokenUsage,
    ToolClass,
    ToolOutcome,
    ToolTerms,
)
from quell.governance import Budgets
from quell.models import ScriptedModel
from quell.models._scripted import Turn, says, wants
from quell.runs import Database, system_clock
from quell.server import serve
from quell.telemetry import Telemetry
from quell.telemetry._metrics import METRICS, find_metric
from tests._mcp_rogue import rogue
from tests.doors._agent_bench import AgentRoom, agent_room
from tests.doors._authority_house import settings_of
from tests.doors._budget_bench import MovedClock, cap, opened
from tests.doors._hand_bench import Room, hand_room, person
from tests.doors._trace_bench import CALLER, SECRET, TRACE, Collector, collector, told

USAGE = TokenUsage(input_tokens=100, output_tokens=10, cached_tokens=40)
PRICE = Price(
    provider="scripted",
    models="*",
    input=((0, 1_000_000),),
    output=((0, 5_000_000),),
    source="the test",
    as_of="2026-11-20",
)
QUESTION = "Why is web slow today?"


def search(query: str = "error", *, service: str = "web") -> CallWanted:
    return CallWanted(id="x", name="logs_search", arguments=json.dumps({"service": service, "query": query}))


def _play(
    tmp_path: Path,
    turns: list[Turn],
    *,
    record: bool = False,
    env: dict[str, str] | None = None,
    story: Callable[[AgentRoom], Awaitable[object]] | None = None,
) -> Collector:
    async def use(kept: Collector) -> None:
        async with (
            told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, **(env or {})}, record=record),
            agent_room(tmp_path, turns) as room,
        ):
            with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": CALLER}), kind="server"):
                await (room.ask(QUESTION) if story is None else story(room))

    with collector() as kept:
        asyncio.run(use(kept))
        return kept


TURNS: list[Turn] = [wants(search(), usage=USAGE), says("It is well [e1].", usage=USAGE)]


def test_a_question_is_one_trace_from_the_callers_request_to_the_tool(tmp_path: Path) -> None:
    kept = _play(tmp_path, TURNS)
    assert {span.trace for span in kept.spans()} == {TRACE}
    request = kept.span_of("quell.request")
    assert request.parent == CALLER.split("-")[2]
    first, second = kept.spans_of("chat")
    stem = ["quell.request", "quell.run", "invoke_agent"]
    assert kept.path_to(first) == kept.path_to(second) == [*stem, "quell.step", "chat"]
    assert kept.path_to(kept.span_of("execute_tool")) == [*stem, "quell.step", "execute_tool"]
    assert not any(span.is_failed for span in kept.spans())


def test_a_model_call_tells_who_was_asked_and_what_it_took_in_both_vocabularies(tmp_path: Path) -> None:
    first, second = _play(tmp_path, TURNS).spans_of("chat")
    assert first.name == "chat script"
    assert first.kind == 3, "a client of the model"
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "script",
        "gen_ai.response.model": "script",
        "gen_ai.response.finish_reasons": ["tool_calls"],
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.agent.name": "sre",
        "openinference.span.kind": "LLM",
        "llm.model_name": "script",
        "llm.provider": "scripted",
        "llm.token_count.prompt": 100,
        "llm.token_count.completion": 10,
        "llm.token_count.total": 110,
        "llm.token_count.prompt_details.cache_read": 40,
        "quell.usage.is_estimate": False,
    }
    assert expected.items() <= first.attributes.items()
    assert first.attributes["gen_ai.conversation.id"] == first.attributes["session.id"]
    assert first.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert second.attributes["gen_ai.response.finish_reasons"] == ["stop"]


def test_agents_and_tools_say_who_they_are_and_how_it_ended(tmp_path: Path) -> None:
    kept = _play(tmp_path, TURNS)
    agent, tool = kept.span_of("invoke_agent"), kept.span_of("execute_tool")
    assert (agent.name, tool.name) == ("invoke_agent sre", "execute_tool logs_search")
    assert {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "sre",
        "openinference.span.kind": "AGENT",
        "agent.name": "sre",
        "quell.stop": "answered",
        "quell.turns": 2,
    }.items() <= agent.attributes.items()
    assert {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "logs_search",
        "gen_ai.tool.call.id": "1.1",
        "gen_ai.agent.name": "sre",
        "openinference.span.kind": "TOOL",
        "tool.name": "logs_search",
        "quell.outcome": "ok",
        "quell.tool.class": "read",
    }.items() <= tool.attributes.items()
    assert tool.attributes["quell.run"] == agent.attributes["quell.run"]


def test_whose_conversation_it_is_stands_on_every_span_of_it(tmp_path: Path) -> None:
    async def story(room: AgentRoom) -> None:
        with telemetry.genai.conversing(session="s-1", user="ann", metadata={"team": "shop"}), telemetry.span("outer"):
            await room.ask(QUESTION)

    # The run has a life of its own: whoever carries it out says whose it is, there.
    kept = _play(tmp_path, TURNS, story=story)
    assert "user.id" not in kept.span_of("invoke_agent").attributes

    async def direct() -> None:
        async with told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": late.url}):
            with (
                telemetry.genai.conversing(session="s-1", user="ann", metadata={"team": "shop"}),
                telemetry.genai.invoke_agent("sre", run="run_1", session="other", question=()),
            ):
                pass

    with collector() as late:
        asyncio.run(direct())
    assert {
        "session.id": "s-1",
        "gen_ai.conversation.id": "s-1",
        "user.id": "ann",
        "metadata": '{"team": "shop"}',
    }.items() <= late.span_of("invoke_agent").attributes.items()


def test_nothing_that_was_said_is_recorded_unless_somebody_asked_for_it(tmp_path: Path) -> None:
    kept = _play(tmp_path, TURNS)
    for said in (QUESTION, "It is well", '"query"', "small shop", 'ok\\\\\\"', "of the small world"):
        assert not kept.holds(said), said
    log = (tmp_path / "logs" / "quell.log").read_text()
    assert "agent.answered" in log
    assert QUESTION not in log
    assert "It is well" not in log
    for span in kept.spans():
        assert not [key for key in span.attributes if key.endswith((".value", ".content", ".messages", "arguments"))]


def test_what_was_said_is_recorded_in_both_vocabularies_cut_and_without_secrets(tmp_path: Path) -> None:
    secret = SECRET
    turns = [wants(search(f"error {secret}"), usage=USAGE), says(f"It is well [e1] {secret}." + "x" * 400, usage=USAGE)]
    kept = _play(tmp_path, turns, env={"OTEL_RECORD_CONTENT": "true", "OTEL_CONTENT_MAX_LENGTH": "120"})
    first, second = kept.spans_of("chat")
    asked = first.attributes
    assert asked["llm.input_messages.0.message.role"] == "system"
    assert asked["llm.input_messages.0.message.content"].startswith("You look after a small shop.")
    assert asked["llm.input_messages.1.message.content"] == asked["input.value"] == QUESTION
    wanted = "llm.output_messages.0.message.tool_calls.0.tool_call.function"
    assert asked[f"{wanted}.name"] == "logs_search"
    assert json.loads(asked[f"{wanted}.arguments"])["query"].startswith("error [redacted")
    (reply,) = json.loads(asked["gen_ai.output.messages"])
    assert (reply["role"], reply["finish_reason"], reply["parts"][0]["name"]) == (
        "assistant",
        "tool_calls",
        "logs_search",
    )
    told_back = json.loads(second.attributes["gen_ai.input.messages"])
    assert [message["role"] for message in told_back] == ["system", "user", "assistant", "tool"]
    answered = second.attributes["output.value"]
    assert answered.startswith("It is well [e1] [redacted")
    assert len(answered) == 120
    agent = kept.span_of("invoke_agent").attributes
    assert (agent["input.value"], agent["output.value"][:15]) == (QUESTION, "It is well [e1]")
    assert not kept.holds(secret)


def test_arguments_and_results_of_tools_are_recorded_where_content_is(tmp_path: Path) -> None:
    tool = _play(tmp_path, TURNS, record=True).span_of("execute_tool").attributes
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == json.loads(tool["input.value"])
    assert json.loads(tool["input.value"]) == {"service": "web", "query": "error"}
    assert tool["input.mime_type"] == "application/json"
    assert '"ok": true' in tool["gen_ai.tool.call.result"]


def test_the_environment_may_switch_off_what_the_settings_record(tmp_path: Path) -> None:
    kept = _play(tmp_path, TURNS, record=True, env={"OTEL_RECORD_CONTENT": "false"})
    assert not kept.holds(QUESTION)


def test_every_try_of_a_model_call_is_a_span_and_says_what_went_wrong(tmp_path: Path) -> None:
    busy = ModelError("too busy", fault=ModelFault.RATE_LIMITED, hint="later", retry_after_s=0.01)
    kept = _play(tmp_path, [[busy], says("Whole.", usage=USAGE)])
    failed, fine = sorted(kept.spans_of("chat"), key=lambda span: span.attributes["quell.attempt"])
    assert failed.is_failed
    assert failed.attributes["error.type"] == "rate_limited"
    assert "llm.token_count.total" not in failed.attributes
    assert not fine.is_failed
    assert kept.total("quell.model.errors", error__type="rate_limited") == 1
    assert kept.total("quell.model.retries") == 1
    assert kept.total("gen_ai.client.operation.duration") == 2
    assert kept.total("gen_ai.client.operation.duration", error__type="rate_limited") == 1


def test_the_golden_signals_of_an_agent_are_metrics(tmp_path: Path) -> None:
    kept = _play(tmp_path, [*TURNS])
    of_agent = {"gen_ai__agent__name": "sre"}
    assert kept.total("quell.agent.requests", **of_agent) == 1
    assert kept.total("quell.agent.answers", stop="answered", **of_agent) == 1
    assert kept.total("quell.agent.duration", stop="answered", **of_agent) == 1
    assert kept.points("quell.agent.running") == [({"gen_ai.agent.name": "sre"}, 0)]
    assert kept.points("quell.agent.errors") == []
    assert kept.total("gen_ai.client.token.usage", gen_ai__token__type="input", **of_agent) == 2
    assert kept.total("gen_ai.client.token.usage", gen_ai__token__type="output", gen_ai__request__model="script") == 2
    assert kept.total("gen_ai.client.operation.time_to_first_chunk") == 2
    assert kept.total("quell.model.cached_tokens") == 80
    assert kept.total("quell.tool.calls", tool="logs_search", outcome="ok", **of_agent) == 1
    assert kept.total("quell.tool.duration", tool="logs_search", outcome="ok") == 1


def test_ends_at_bounds_and_refused_calls_are_counted_by_kind(tmp_path: Path) -> None:
    unknown = CallWanted(id="x", name="no_such_tool", arguments="{}")
    wrong = CallWanted(id="y", name="logs_search", arguments='{"service": "no such service", "query": "a"}')
    kept = _play(tmp_path, [wants(unknown, wrong), [ModelError("no", fault=ModelFault.AUTH, hint="do this")]])
    assert kept.total("quell.tool.calls", outcome="denied") == 2
    assert kept.total("quell.agent.answers", stop="model") == 1
    assert kept.total("quell.agent.errors", error__type="auth") == 1
    assert kept.span_of("invoke_agent").attributes["error.type"] == "auth"


def test_a_tool_server_learns_of_the_trace_in_its_headers_and_in_the_request(tmp_path: Path) -> None:
    async def story(kept: Collector) -> list[dict[str, Any]]:
        async with rogue() as server, told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}):
            known = {"bad": McpServerSettings(transport="http_streamable", url=server.url, call_timeout_s=5.0)}
            async with hand_room(tmp_path, servers=known) as room:
                await pin(room, "echo")
                with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": CALLER})):
                    outcome = await room.call("echo", n=1)
                assert isinstance(outcome, ToolOutcome)
                assert outcome.kind is OutcomeKind.OK, outcome
                await room.call("failed", n=1)
            return server.calls

    with collector() as kept:
        (call,) = asyncio.run(story(kept))
    request = kept.span_of("tools/call")
    assert kept.path_to(request) == ["quell.request", "execute_tool", "tools/call"]
    place = f"00-{TRACE}-{request.id}-01"
    assert call["headers"]["traceparent"] == place
    assert call["_meta"]["traceparent"] == place
    assert request.kind == 3
    assert {"mcp.method.name": "tools/call", "quell.server": "bad", "network.transport": "tcp"}.items() <= (
        request.attributes.items()
    )
    assert {span.name for span in kept.spans_of("execute_tool")} == {"execute_tool echo", "execute_tool unknown"}
    assert kept.total("quell.tool.calls", tool="unknown", outcome="denied") == 1


async def pin(room: Room, name: str) -> None:
    (offer,) = [each for each in await room.authority.servers.offers("bad") if each.original == name]
    terms = ToolTerms(tool_class=ToolClass.READ, recovery=Recovery.NATURAL, timeout_s=5.0, reason="said so")
    with room.runs.database.writing() as connection:
        room.authority.pins.accept(connection, offer, terms, by=person("ann", "operator"))


@pytest.mark.timeout(30)
def test_waits_for_people_are_counted_and_measured_and_belong_to_the_same_trace(tmp_path: Path) -> None:
    scale = CallWanted(id="s", name="scale", arguments='{"service": "web", "environment": "staging", "replicas": 3}')

    async def story(room: AgentRoom) -> None:
        run = await room.runs.start("chat", subject="web", arguments={"question": "Scale it."})
        parked = await room.parked(run)
        approvals = room.authority.guard.approvals
        with room.runs.database.writing() as connection:
            approvals.expire(connection)
        await told_by[0].flush()
        assert kept.total("quell.approvals.waiting") == 1
        await room.approve(parked, run)
        await room.answer(run)
        with room.runs.database.writing() as connection:
            approvals.expire(connection)

    async def use() -> None:
        async with (
            told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}) as telling,
            agent_room(tmp_path, [wants(scale), says("Done.")]) as room,
        ):
            told_by.append(telling)
            with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": CALLER})):
                await story(room)

    told_by: list[Telemetry] = []
    with collector() as kept:
        asyncio.run(use())
    assert kept.total("quell.approvals.waiting") == 0
    assert kept.total("quell.approvals.settled", status="approved") == 1
    assert kept.total("quell.approvals.wait", status="approved") == 1
    assert kept.total("quell.tool.parked", tool="scale") == 1
    assert kept.total("quell.agent.waits", gen_ai__agent__name="sre") >= 1
    assert kept.total("quell.agent.requests") == kept.total("quell.agent.answers") == 1
    stops = [span.attributes["quell.stop"] for span in kept.spans_of("invoke_agent")]
    assert (stops[0], stops[-1]) == ("waiting", "answered")
    assert {span.trace for span in kept.spans()} == {TRACE}


@pytest.mark.timeout(30)
def test_a_run_that_no_request_started_has_a_trace_of_its_own_over_all_its_segments(tmp_path: Path) -> None:
    scale = CallWanted(id="s", name="scale", arguments='{"service": "web", "environment": "staging", "replicas": 3}')

    async def use() -> None:
        async with (
            told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}),
            agent_room(tmp_path, [wants(scale), says("Done.")]) as room,
        ):
            run = await room.start("Scale it.")
            await room.approve(await room.parked(run), run)
            await room.answer(run)

    with collector() as kept:
        asyncio.run(use())
    start = kept.span_of("quell.start")
    lives = kept.spans_of("quell.run")
    assert len(lives) >= 2
    assert {span.parent for span in lives} == {start.id}
    assert {span.trace for span in kept.spans_of("chat")} == {start.trace}


def test_money_is_counted_by_agent_and_model(tmp_path: Path) -> None:
    spender = Spender(run="run_1", agent="sre")
    usage = TokenUsage(input_tokens=240, output_tokens=20)
    request = ModelRequest(messages=(Message(role="user", text="Why is checkout slow? " * 40),), output_max_tokens=100)

    async def use(database: Database) -> None:
        budgets = Budgets((cap(BudgetKind.MONEY, 10_000, BudgetScope.RUN),), clock=MovedClock(), prices=(PRICE,))
        accounts = BudgetAccounts(budgets, database, spender=spender)
        cut = ModelError("cut", fault=ModelFault.BROKEN_STREAM, hint="", said=True)
        model = ScriptedModel(
            [says("Because.", usage=usage), [TextPiece(text="Half"), cut], says("Because.", usage=usage)]
        )

        async def no_pause(_seconds: float) -> None:
            await asyncio.sleep(0)

        async with told(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}):
            for turn in range(2):
                await asked(
                    model,
                    request,
                    run="run_1",
                    turn=turn,
                    voice=Voice(live=Live()),
                    accounts=accounts,
                    deadline_s=5,
                    pause=no_pause,
                )

    with collector() as kept, opened(tmp_path) as database:
        asyncio.run(use(database))
    by = {"gen_ai__agent__name": "sre", "gen_ai__request__model": "script"}
    assert kept.total("quell.model.cost", basis="reported", **by) == 2 * 340
    assert kept.total("quell.model.cost", basis="reserved", **by) > 340, "what broke off is charged at its worst"


@pytest.mark.timeout(60)
def test_a_run_that_is_killed_goes_on_in_the_same_trace_in_another_process(tmp_path: Path) -> None:
    with collector() as kept:
        codes = [_life(tmp_path, kept.url, life=life) for life in ("first", "second")]
    assert codes == [-signal.SIGKILL, 0]
    assert {span.trace for span in kept.spans()} == {TRACE}
    assert [span.attributes["quell.run.dispatch"] for span in kept.spans_of("quell.run")] != []
    assert len(kept.spans_of("chat")) == 2, "one in each life"
    assert kept.path_to(kept.spans_of("chat")[-1])[-3:] == ["invoke_agent", "quell.step", "chat"]
    assert len({span.resource["service.instance.id"] for span in kept.spans()}) == 2


def _life(tmp_path: Path, url: str, *, life: str) -> int:
    command = [sys.executable, "-m", "tests.doors._trace_worker", str(tmp_path), url, life]
    return subprocess.run(command, check=False, timeout=50, stdout=subprocess.DEVNULL).returncode


def test_every_metric_is_in_the_catalogue_and_has_the_attributes_that_stand_there(tmp_path: Path) -> None:
    busy = ModelError("too busy", fault=ModelFault.RATE_LIMITED, hint="later", retry_after_s=0.01)
    made_up = CallWanted(id="y", name="no_such_tool", arguments="{}")
    kept = _play(tmp_path, [wants(search(), made_up, usage=USAGE), [busy], says("Well.", usage=USAGE)])
    sent = kept.metric_names()
    assert sent >= {"gen_ai.client.token.usage", "quell.agent.requests", "quell.tool.calls", "quell.model.retries"}
    assert sent <= METRICS.keys()
    for name in sent:
        for labels, _ in kept.points(name):
            assert labels.keys() <= set(METRICS[name].attributes), name


def test_what_the_code_counts_and_what_the_catalogue_lists_is_the_same() -> None:
    source = Path(quell.__file__).parent
    told: set[str] = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"count", "measure"}:
                first = node.args[0] if node.args else None
                name = first.value if isinstance(first, ast.Constant) else None
                if isinstance(name, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name):
                    told.add(find_metric(name)[0])
    assert told | {"quell.events"} == METRICS.keys()


@pytest.mark.timeout(60)
def test_a_served_question_goes_on_in_the_trace_of_its_request_and_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ChatAsk(messages=(Message(role="user", text=QUESTION),), session="s-1", user="bob", metadata={"team": "shop"})

    async def use() -> None:
        settings, urls = settings_of(tmp_path), asyncio.Queue[str]()
        async with open_app(
            settings, role="serve", clock=system_clock, entropy=os.urandom, env=dict(os.environ), agents=()
        ) as app:
            serving = asyncio.create_task(serve(app, on_ready=urls.put_nowait))
            async with httpx2.AsyncClient(base_url=await urls.get(), trust_env=False) as http:
                listed = await http.get("/api/v1/runs", headers={"traceparent": CALLER})
            assert listed.status_code == 200, listed.text
            with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": CALLER}), kind="server"):
                run = await app.agents.start(ask, by=Principal(user="ann", roles=("operator",)))
            assert await app.agents.answer(run.id, timeout_s=20) is not None
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    with collector() as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.url)
        asyncio.run(use())
    listed, asked_for = kept.spans_of("quell.request")
    assert listed.attributes["http.route"] == "/api/v1/runs"
    assert (listed.kind, listed.trace, listed.parent) == (2, TRACE, CALLER.split("-")[2])
    (agent,) = [span for span in kept.spans_of("invoke_agent") if span.trace == TRACE]
    assert kept.path_to(agent) == ["quell.request", "quell.run", "invoke_agent"]
    assert asked_for.id in {span.parent for span in kept.spans_of("quell.run")}
    chats = [span for span in kept.spans_of("chat") if span.trace == TRACE]
    assert chats
    whose = {
        "session.id": "s-1",
        "gen_ai.conversation.id": "s-1",
        "user.id": "bob",
        "metadata": '{"team": "shop"}',
    }
    assert all(whose.items() <= span.attributes.items() for span in (agent, *chats))
    assert not kept.holds(QUESTION)
