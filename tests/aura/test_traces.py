"""Row 15 of the acceptance list: one question is one trace, in both vocabularies, from the caller's place to the tool server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.aura._bench import LOOSE, Json, a_shop, agent_at, calls, played, says, server_of
from tests.doors._model_bench import provider
from tests.doors._trace_bench import CALLER, TRACE, Collector, collector
from tests.doors._wire_bench import CHAT, a_wire, settings_of

pytestmark = pytest.mark.timeout(60)
QUESTION = "Why is web slow today?"


def _asked(tmp_path: Path, *, env: dict[str, str] | None = None) -> tuple[Collector, list[Any], list[Json]]:
    """Ask one question over the wire; return what a collector got, what the shop was sent, and the frames."""
    sent: list[Any] = []
    told: list[Any] = []

    async def story() -> None:
        async with a_shop() as shop, provider(calls(("get_logs", {"service": "web"})), says("It is well.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            more = {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, **(env or {})}
            async with a_wire(settings_of(tmp_path / "state"), agents, env=more) as wire:
                body = {
                    "messages": [{"role": "user", "content": QUESTION}],
                    "stream": True,
                    "user": "bob",
                    "metadata": {"chat_session_id": "cs_15", "team": "shop"},
                }
                response = await wire.http.post(CHAT, json=body, headers={"traceparent": CALLER})
                assert response.text.endswith("data: [DONE]\n\n")
            sent.extend(shop.headers)
            told.extend(model.heads)

    with collector() as kept:
        played(story)
    return kept, sent, told


def test_row_15_a_served_question_is_one_trace_from_the_caller_to_the_tools_server(tmp_path: Path) -> None:
    # In AURA a request has two roots, and neither goes on in its caller's trace nor reaches the tool's server.
    kept, sent, _ = _asked(tmp_path)
    (request,) = [span for span in kept.spans_of("quell.request") if span.attributes.get("http.route") == CHAT]
    assert (request.trace, request.parent) == (TRACE, CALLER.split("-")[2])
    chats, (tool,) = kept.spans_of("chat"), kept.spans_of("execute_tool")
    stem = ["quell.request", "quell.run", "invoke_agent", "quell.step"]
    assert [kept.path_to(span) for span in chats] == [[*stem, "chat"]] * 2
    assert kept.path_to(tool) == [*stem, "execute_tool"]
    (call,) = [span for span in kept.spans_of("tools/call") if span.trace == TRACE]
    assert kept.path_to(call) == [*stem, "execute_tool", "tools/call"]
    assert [each["traceparent"] for each in sent] == [f"00-{TRACE}-{call.id}-01"]


def test_row_15_spans_speak_openinference_and_keep_the_words_of_opentelemetry(tmp_path: Path) -> None:
    # AURA deletes every `gen_ai.*` before it exports.
    kept, _, _ = _asked(tmp_path)
    first, second = (span.attributes for span in kept.spans_of("chat"))
    both = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "local",
        "gen_ai.request.model": "played",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 5,
        "openinference.span.kind": "LLM",
        "llm.model_name": "m-1",
        "llm.token_count.prompt": 20,
        "llm.token_count.completion": 5,
        "session.id": "cs_15",
        "gen_ai.conversation.id": "cs_15",
        "user.id": "bob",
    }
    wrong = {key: (first.get(key), value) for key, value in both.items() if first.get(key) != value}
    assert not wrong
    assert '"team"' in first["metadata"]
    assert (second["gen_ai.usage.input_tokens"], second["llm.token_count.prompt"]) == (30, 30)
    tool = kept.span_of("execute_tool").attributes
    assert (tool["gen_ai.tool.name"], tool["tool.name"], tool["openinference.span.kind"]) == (
        "get_logs",
        "get_logs",
        "TOOL",
    )
    agent = kept.span_of("invoke_agent").attributes
    assert (agent["openinference.span.kind"], agent["gen_ai.agent.name"]) == ("AGENT", "sre")
    tokens = [span for span in kept.spans() if "llm.token_count.total" in span.attributes]
    assert {span.name.split(" ")[0] for span in tokens} == {"chat"}, "who sums tokens counts each once"


@pytest.mark.parametrize("record", ["false", "true"])
def test_row_15_what_was_said_leaves_only_where_the_switch_is_on(tmp_path: Path, record: str) -> None:
    kept, _, _ = _asked(tmp_path, env={"OTEL_RECORD_CONTENT": record})
    assert kept.holds(QUESTION) is kept.holds("It is well.") is (record == "true")
    if record == "true":
        first, _ = kept.spans_of("chat")
        assert first.attributes["llm.input_messages.1.message.content"] == QUESTION
        assert QUESTION in first.attributes["gen_ai.input.messages"]


def test_row_15_phoenix_is_told_its_project(tmp_path: Path) -> None:
    kept, _, _ = _asked(tmp_path, env={"PHOENIX_PROJECT_NAME": "shop", "OTEL_SERVICE_NAME": "harness"})
    (resource,) = {tuple(sorted(span.resource.items())) for span in kept.spans()}
    assert ("openinference.project.name", "shop") in resource
    assert ("service.name", "harness") in resource


def test_row_15_the_golden_signals_are_metrics(tmp_path: Path) -> None:
    # AURA has traces alone.
    kept, _, _ = _asked(tmp_path)
    assert kept.total("quell.agent.requests", gen_ai__agent__name="sre") == 1
    assert kept.total("quell.agent.answers", stop="answered") == 1
    assert kept.total("quell.tool.calls", tool="get_logs", outcome="ok") == 1
    assert kept.total("gen_ai.client.token.usage", gen_ai__token__type="input") == 2
    assert kept.total("gen_ai.client.operation.duration") == 2
