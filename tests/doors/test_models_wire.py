"""Models behind the Chat Completions API: what goes out, what comes back, and every way in which it does not."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.domain import (
    CallWanted,
    ConfigError,
    Ended,
    Message,
    ModelError,
    ModelFault,
    ModelReply,
    ModelRequest,
    TextPiece,
    TokenUsage,
)
from quell.models import ask
from quell.models._exchange import Patience
from quell.models._openai import Endpoint, OpenAIModel
from quell.models._sse import EventSplitter
from tests.doors._model_bench import (
    HELLO,
    NOW,
    READ_LOGS,
    Answer,
    Provider,
    delta,
    end,
    model_at,
    plain,
    provider,
    raw,
    silence,
    sse,
    usage,
)

QUICK = Patience(connect_s=1.0, first_s=0.3, quiet_s=0.2)


def _asked(*answers: Answer, request: ModelRequest = HELLO, patience: Patience = QUICK) -> tuple[ModelReply, Provider]:
    async def story() -> tuple[ModelReply, Provider]:
        async with provider(*answers) as state:
            model = model_at(state, patience=patience)
            try:
                return await ask(model, request, deadline_s=3), state
            finally:
                await model.close()

    return asyncio.run(story())


def _fault(*answers: Answer, patience: Patience = QUICK, deadline_s: float = 3) -> ModelError:
    async def story() -> None:
        async with provider(*answers) as state:
            model = model_at(state, patience=patience)
            try:
                await ask(model, HELLO, deadline_s=deadline_s)
            finally:
                await model.close()

    with pytest.raises(ModelError) as caught:
        asyncio.run(story())
    return caught.value


def test_an_answer_streams_and_its_usage_is_what_the_provider_told() -> None:
    told = usage(12, 3, prompt_tokens_details={"cached_tokens": 8}, completion_tokens_details={"reasoning_tokens": 1})
    reply, state = _asked(sse(delta("Hel"), delta("lo."), end(), told))
    assert reply.text == "Hello."
    assert reply.reason == "stop"
    assert reply.model == "m-1"
    assert reply.usage == TokenUsage(input_tokens=12, output_tokens=3, cached_tokens=8, reasoning_tokens=1)
    assert reply.is_usage_told
    assert state.heads[0][":path"] == "/v1/chat/completions"
    assert state.heads[0]["authorization"] == "Bearer key-of-the-test"
    assert state.bodies[0]["stream"] is True


def test_a_request_goes_out_as_the_protocol_has_it() -> None:
    call = CallWanted(id="c1", name="read_logs", arguments='{"service":"cart"}')
    request = ModelRequest(
        messages=(
            Message(role="system", text="Be short."),
            Message(role="user", text="Why?"),
            Message(role="assistant", calls=(call,)),
            Message(role="tool", call="c1", tool="read_logs", text="nothing"),
        ),
        tools=(READ_LOGS,),
        choice="read_logs",
        output_max_tokens=50,
        temperature=0.0,
        seed=7,
        stop=("END",),
        extra={"top_k": 3},
    )
    _, state = _asked(sse(delta("x"), end()), request=request)
    body = state.bodies[0]
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "read_logs", "arguments": '{"service":"cart"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "read_logs"}}
    tools = body["tools"]
    assert isinstance(tools, list)
    assert tools[0]["function"]["parameters"] == json.loads(READ_LOGS.parameters)
    assert [body[key] for key in ("max_tokens", "temperature", "seed", "stop", "top_k")] == [50, 0.0, 7, ["END"], 3]


def test_usage_that_nobody_told_is_an_estimate_and_says_so() -> None:
    reply, _ = _asked(sse(delta("word " * 50), end()))
    assert not reply.is_usage_told
    assert 30 <= reply.usage.output_tokens <= 120
    assert reply.usage.input_tokens > 0


@pytest.mark.parametrize(
    "pieces",
    [
        [
            [{"index": 0, "id": "a", "function": {"name": "read_logs", "arguments": ""}}],
            [{"index": 0, "function": {"arguments": '{"service":'}}],
            [{"index": 0, "function": {"arguments": '"cart"}'}}],
            [{"index": 1, "id": "b", "function": {"name": "read_logs", "arguments": '{"service":"db"}'}}],
        ],
        [
            [{"id": "a", "function": {"name": "read_logs", "arguments": '{"service":"cart"}'}}],
            [{"id": "b", "function": {"name": "read_logs", "arguments": '{"service":"db"}'}}],
        ],
        [
            [{"index": 0, "id": "a", "function": {"name": "read_logs", "arguments": {"service": "cart"}}}],
            [{"index": 0, "id": "b", "function": {"name": "read_logs", "arguments": {"service": "db"}}}],
        ],
        [
            [{"index": 0, "id": "a", "function": {"name": "read_logs", "arguments": '{"service":'}}],
            [{"index": 0, "id": "a2", "function": {"arguments": '"cart"}'}}],
            [{"index": 1, "id": "b", "function": {"name": "read_logs", "arguments": '{"service":"db"}'}}],
        ],
    ],
    ids=["as documented", "without index", "the index 0 for all", "a new id each time"],
)
def test_calls_come_together_whatever_a_server_makes_of_indexes_and_ids(pieces: list[object]) -> None:
    reply, _ = _asked(sse(*[delta(tool_calls=each) for each in pieces], end("stop")))
    assert [(call.id, call.name, json.loads(call.arguments)) for call in reply.calls] == [
        ("a", "read_logs", {"service": "cart"}),
        ("b", "read_logs", {"service": "db"}),
    ]
    assert reply.reason == "calls"


def test_a_server_that_does_not_stream_is_read_as_well() -> None:
    whole = {
        "model": "m-2",
        "choices": [{"index": 0, "message": {"content": "Hello."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2},
    }
    reply, _ = _asked(plain(200, whole))
    assert (reply.text, reply.model, reply.usage.output_tokens) == ("Hello.", "m-2", 2)


def test_what_a_model_thinks_aloud_is_no_part_of_its_answer() -> None:
    reply, _ = _asked(sse(delta(reasoning_content="hm "), delta(reasoning="so"), delta("Yes."), end()))
    assert (reply.text, reply.reasoning) == ("Yes.", "hm so")


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (401, {"error": {"message": "no such key"}}, ModelFault.AUTH),
        (403, {"error": "forbidden"}, ModelFault.AUTH),
        (404, {"error": {"message": "model maximum context not found"}}, ModelFault.NOT_FOUND),
        (400, {"error": {"message": "This model's maximum context length is 8192"}}, ModelFault.OVERFLOW),
        (400, {"error": {"code": "context_length_exceeded", "message": ""}}, ModelFault.OVERFLOW),
        (400, {"error": {"message": "temperature must be at most 2"}}, ModelFault.INVALID),
        (400, {"error": {"message": "x", "code": "content_filter"}}, ModelFault.FILTERED),
        (422, {"detail": "unknown field"}, ModelFault.INVALID),
        (429, {"error": {"message": "slow down"}}, ModelFault.RATE_LIMITED),
        (429, {"error": {"code": "insufficient_quota", "message": "…"}}, ModelFault.QUOTA),
        (500, b"<html><h1>Bad</h1></html>", ModelFault.OVERLOADED),
        (503, {"message": "overloaded"}, ModelFault.OVERLOADED),
        (529, b"", ModelFault.OVERLOADED),
        (302, b"", ModelFault.INVALID),
    ],
)
def test_a_refusal_is_told_by_kind(status: int, body: object, fault: ModelFault) -> None:
    error = _fault(plain(status, body))
    assert (error.fault, error.status, error.said) == (fault, status, False)
    assert "key-of-the-test" not in str(error)
    assert "<html>" not in str(error)


def test_words_of_a_provider_cannot_move_a_cursor_nor_fill_a_page() -> None:
    error = _fault(plain(400, {"error": {"message": "\x1b[2J\u202e" + "x" * 9000}}))
    assert "\x1b" not in str(error)
    assert "\u202e" not in str(error)
    assert len(str(error)) < 700


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Retry-After: 7"], 7.0),
        (["Retry-After-Ms: 250"], 0.25),
        (["Retry-After: Fri, 20 Nov 2026 12:00:30 GMT"], 30.0),
        (["Retry-After: soon"], None),
        (["Retry-After: 999999999"], 3600.0),
        ([], None),
    ],
)
def test_when_to_come_again_is_the_providers_word(headers: list[str], expected: float | None) -> None:
    assert _fault(plain(429, {}, headers=headers)).retry_after_s == expected


@pytest.mark.parametrize(
    ("answer", "fault", "said"),
    [
        (silence(), ModelFault.TIMEOUT, False),
        (sse(delta("Hel"), delta("lo"), end(), cut=2), ModelFault.BROKEN_STREAM, True),
        (sse(delta("Hel"), done=True), ModelFault.BROKEN_STREAM, True),
        (sse(delta("Hel"), done=False), ModelFault.BROKEN_STREAM, True),
        (sse(delta("a"), delta("b"), end(), gap_s=0.5), ModelFault.TIMEOUT, True),
        (sse("{no json"), ModelFault.BAD_ANSWER, False),
        (sse({"choices": "none"}), ModelFault.BAD_ANSWER, False),
        (sse(delta("a"), {"error": {"message": "server overloaded"}}), ModelFault.OVERLOADED, True),
        (sse(delta("a"), {"error": {"message": "boom"}}), ModelFault.BROKEN_STREAM, True),
        (raw(b""), ModelFault.UNREACHABLE, False),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), ModelFault.BAD_ANSWER, False),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000), ModelFault.BAD_ANSWER, False),
        (plain(200, {"choices": []}), ModelFault.BROKEN_STREAM, False),
    ],
    ids=[
        "silence",
        "cut between pieces",
        "no end",
        "no end and no mark of it",
        "silence between pieces",
        "no JSON",
        "no choices",
        "overloaded in the middle",
        "broken in the middle",
        "closed at once",
        "another protocol",
        "a head without an end",
        "an empty answer",
    ],
)
def test_every_way_to_fail_is_told_apart_and_none_hangs(answer: Answer, fault: ModelFault, said: bool) -> None:
    error = _fault(answer)
    assert (error.fault, error.said) == (fault, said)


def test_a_drip_that_never_falls_silent_is_ended_by_the_deadline() -> None:
    error = _fault(sse(*[delta("x")] * 200, end(), gap_s=0.05), deadline_s=0.4)
    assert error.fault is ModelFault.TIMEOUT


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    async def story() -> None:
        model = OpenAIModel(
            Endpoint(provider="x", base_url="http://127.0.0.1:1/v1", headers={}), name="m", clock=lambda: NOW
        )
        await ask(model, HELLO, deadline_s=2)

    with pytest.raises(ModelError) as caught:
        asyncio.run(story())
    assert caught.value.fault is ModelFault.UNREACHABLE
    assert "base_url" in caught.value.hint


def test_a_connection_is_used_again_and_one_that_was_closed_meanwhile_is_replaced() -> None:
    async def closing(writer: asyncio.StreamWriter) -> None:
        await sse(delta("b"), end())(writer)
        await writer.drain()
        writer.close()

    async def story() -> tuple[list[str], int]:
        async with provider(sse(delta("a"), end()), closing, sse(delta("c"), end())) as state:
            model = model_at(state, patience=QUICK)
            texts = [(await ask(model, HELLO, deadline_s=3)).text for _ in range(3)]
            await model.close()
            return texts, state.connections

    texts, connections = asyncio.run(story())
    assert texts == ["a", "b", "c"]
    assert connections == 2


def test_who_stops_listening_ends_the_answer_at_the_provider_too() -> None:
    async def story() -> bool:
        async with provider(sse(*[delta("x")] * 1000, end(), gap_s=0.01)) as state:
            model = model_at(state, patience=QUICK)
            events = model.stream(HELLO, deadline_s=3)
            async with aclosing(events) as stream:
                async for event in stream:
                    assert isinstance(event, TextPiece)
                    break
            await asyncio.wait_for(state.left.wait(), 2)
            await model.close()
            return state.left.is_set()

    assert asyncio.run(story())


def test_many_answers_at_once_do_not_mix() -> None:
    async def echo(writer: asyncio.StreamWriter) -> None:
        await sse(*[delta("x")] * 20, end(), gap_s=0.002)(writer)

    async def story() -> list[str]:
        async with provider(echo) as state:
            model = model_at(state)
            replies = await asyncio.gather(*[ask(model, HELLO, deadline_s=5) for _ in range(50)])
            await model.close()
            return [reply.text for reply in replies]

    assert asyncio.run(story()) == ["x" * 20] * 50


@given(st.lists(st.integers(1, 40), max_size=30))
def test_events_are_the_same_however_their_bytes_are_cut(cuts: list[int]) -> None:
    text = b": hello\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata: lines\n\n: again\n\ndata: three\n\n"
    splitter, found, at = EventSplitter(), [], 0
    for cut in cuts:
        found += splitter.feed(text[at : at + cut])
        at += cut
    found += splitter.feed(text[at:])
    assert found == [b"one", b"two\nlines", b"three"]


@pytest.mark.parametrize(
    "url", ["", "api.example.com", "ftp://x/v1", "http://u:p@x/v1", "http://x:99999/v1", "http://x?a=1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        OpenAIModel(Endpoint(provider="x", base_url=url, headers={}), name="m", clock=lambda: NOW)


def test_a_key_with_a_line_end_is_refused_and_not_told() -> None:
    endpoint = Endpoint(provider="x", base_url="http://127.0.0.1:1/v1", headers={"Authorization": "Bearer a\r\nX: b"})
    model = OpenAIModel(endpoint, name="m", clock=lambda: NOW)
    with pytest.raises(ConfigError) as caught:
        asyncio.run(ask(model, HELLO, deadline_s=1))
    assert "Bearer" not in str(caught.value)


def test_the_end_names_its_reason() -> None:
    for said, meant in {"length": "length", "content_filter": "filtered", "eos": "stop", "novel": "stop"}.items():
        reply, _ = _asked(sse(delta("x"), end(said)))
        assert reply.reason == meant
    assert Ended(reason="stop").model == ""
