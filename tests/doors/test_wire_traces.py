"""The span of a request: it lasts as long as its answer, over all that was done for it, whatever protocol it came by."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from quell.config import AuraSettings, ServerSettings
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Answer, delta, end, plain, provider, silence, sse, usage
from tests.doors._trace_bench import CALLER, TRACE, Collector, Seen, collector
from tests.doors._wire_bench import CHAT, Wire, a_wire, settings_of

pytestmark = pytest.mark.timeout(60)

RESPONSES = "/v1/responses"
LOOSE = '[quell]\nevidence = "off"\n'
PATHS = pytest.mark.parametrize("path", [CHAT, RESPONSES])
SLOWLY = sse(*[delta(f"word{number} ") for number in range(10)], end(), usage(30, 10), gap_s=0.03)


def _question(path: str) -> dict[str, object]:
    asked = {"input": "Hello?"} if path == RESPONSES else {"messages": [{"role": "user", "content": "Hello?"}]}
    return {**asked, "model": "sre", "stream": True}


async def _whole(wire: Wire, path: str) -> None:
    told = await wire.http.post(path, json=_question(path), headers={"traceparent": CALLER})
    assert told.status_code == 200, told.text


async def _a_piece(wire: Wire, path: str) -> None:
    async with wire.http.stream("POST", path, json=_question(path), headers={"traceparent": CALLER}) as response:
        async for line in response.aiter_lines():
            if "word1" in line:
                return


def _told(tmp_path: Path, answer: Answer, path: str, *, hearing: str = "whole", first_s: float = 90) -> Collector:
    async def story() -> None:
        settings = settings_of(tmp_path / "state", aura=AuraSettings(first_chunk_timeout_s=first_s))
        async with provider(answer) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings, agents, env={"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}) as wire:
                await (_whole if hearing == "whole" else _a_piece)(wire, path)

    with collector() as kept:
        asyncio.run(story())
    return kept


def _request(kept: Collector, path: str) -> Seen:
    (request,) = [span for span in kept.spans_of("quell.request") if span.attributes["http.route"] == path]
    return request


@PATHS
def test_a_streamed_request_is_one_trace_and_its_span_covers_agent_and_model(tmp_path: Path, path: str) -> None:
    kept = _told(tmp_path, SLOWLY, path)
    request, agent, chat = _request(kept, path), kept.span_of("invoke_agent"), kept.span_of("chat")
    assert {span.trace for span in (request, agent, chat)} == {TRACE}
    assert kept.path_to(chat)[:3] == ["quell.request", "quell.run", "invoke_agent"]
    for inner in (agent, chat):
        assert request.began_ns <= inner.began_ns <= inner.ended_ns <= request.ended_ns, inner.name
    assert request.attributes["http.response.status_code"] == request.attributes["quell.stream.status_code"] == 200
    assert request.attributes["quell.stream.client_left"] is False
    assert "error.type" not in request.attributes


@PATHS
def test_the_span_of_a_stream_whose_client_left_says_so(tmp_path: Path, path: str) -> None:
    attributes = _request(_told(tmp_path, SLOWLY, path, hearing="a piece"), path).attributes
    assert attributes["http.response.status_code"] == 200, "that is what was sent"
    assert (attributes["quell.stream.status_code"], attributes["quell.stream.client_left"]) == (499, True)


@PATHS
def test_the_span_of_a_stream_that_ends_with_an_error_says_which(tmp_path: Path, path: str) -> None:
    refused = _request(_told(tmp_path / "refused", plain(401, {"error": {"message": "no"}}), path), path).attributes
    assert (refused["quell.stream.status_code"], refused["error.type"]) == (502, "model_auth")
    late = _request(_told(tmp_path / "late", silence(), path, first_s=0.2), path).attributes
    assert (late["quell.stream.status_code"], late["error.type"]) == (504, "timeout")
    assert refused["quell.stream.client_left"] is late["quell.stream.client_left"] is False


@pytest.mark.parametrize("protocol", ["a2a send", "a2a stream", "mcp headers", "mcp meta"])
def test_a_question_of_another_agent_goes_on_in_its_trace(tmp_path: Path, protocol: str) -> None:
    pytest.importorskip(protocol.partition(" ")[0], reason=f"needs the extra of {protocol}")

    async def asked(wire: Wire) -> None:
        place = {"traceparent": CALLER}
        if protocol.startswith("a2a"):
            message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hello?"}]}
            path, headers = f"/a2a/v1/message:{protocol.removeprefix('a2a ')}", {"A2A-Version": "1.0", **place}
            told = await wire.http.post(path, json={"message": message}, headers=headers)
            assert told.status_code == 200, told.text
            return
        is_in_meta = protocol == "mcp meta"
        async with (
            httpx2.AsyncClient(headers={} if is_in_meta else place, trust_env=False) as http,
            Client(streamable_http_client(f"{wire.url}/mcp", http_client=http)) as client,
        ):
            meta: Any = place if is_in_meta else None
            result = await client.call_tool("ask", {"question": "Hello?"}, meta=meta)
            assert not result.is_error

    async def story() -> None:
        settings = settings_of(tmp_path / "state", server=ServerSettings(port=0, a2a=True))
        async with provider(SLOWLY) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings, agents, env={"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url}) as wire:
                await asked(wire)

    with collector() as kept:
        asyncio.run(story())
    (request,) = kept.spans_of("quell.request")
    agent, chat = kept.span_of("invoke_agent"), kept.span_of("chat")
    assert (request.trace, request.parent) == (TRACE, CALLER.split("-")[2])
    assert {agent.trace, chat.trace} == {TRACE}
    assert kept.path_to(chat)[:3] == ["quell.request", "quell.run", "invoke_agent"]
    for inner in (agent, chat):
        assert request.began_ns <= inner.began_ns <= inner.ended_ns <= request.ended_ns, inner.name
