"""One question of a person is one trace, in the words of OpenTelemetry and of OpenInference, and nobody's text by default."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from quell import telemetry
from quell.domain import CallWanted, ModelError, ModelFault, TokenUsage
from quell.models._scripted import Turn, says, wants
from tests import _canaries
from tests.doors._agent_bench import AgentRoom, agent_room
from tests.doors._trace_bench import CALLER, TRACE, Collector, collector, told

USAGE = TokenUsage(input_tokens=100, output_tokens=10, cached_tokens=40)
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
