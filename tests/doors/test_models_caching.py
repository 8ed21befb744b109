"""What providers are told of the part of a prompt that stays the same, that it does stay the same, and what is paid for it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from dataclasses import replace

import pytest

from quell.agent import Role
from quell.agent._context import request_of
from quell.agent._ending import opened
from quell.config import LlmSettings, Secret
from quell.domain import CallWanted, Message, ModelReply, ModelRequest, TokenUsage
from quell.governance import Budgets
from quell.governance._prices import cost
from quell.models import ask, open_model
from quell.models._open import endpoint_of
from quell.models._openai import body_of
from quell.runs import system_clock
from tests.doors._direct_bench import bedrock, claude, claude_begins, claude_ends, claude_text
from tests.doors._model_bench import NOW, READ_LOGS, Answer, Provider, delta, end, provider, sse, usage

pytestmark = pytest.mark.timeout(60)  # whoever comes first loads an SDK
KEY = Secret("key-of-the-test")
ASKED = (Message(role="system", text="Be short."), Message(role="user", text="Why?"))
CALL = CallWanted(id="1.1", name="read_logs", arguments='{"service": "cart"}')
ANSWERED = (
    Message(role="assistant", text="I look.", calls=(CALL,)),
    Message(role="tool", call="1.1", tool="read_logs", text="nothing"),
)
FIRST = ModelRequest(messages=ASKED, tools=(READ_LOGS,))
SECOND = replace(FIRST, messages=(*ASKED, *ANSWERED))
MARK = {"type": "ephemeral"}
HI = sse(delta("hi"), end(), usage(3, 2))


def _needs(name: str, *packages: str) -> None:
    try:
        is_there = all(importlib.util.find_spec(each) for each in ("pydantic_ai", *packages))
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"left out: needs the extra `{name}` (pip install 'quell[{name}]')")


def _asked(settings: LlmSettings, answer: Answer, *requests: ModelRequest) -> tuple[ModelReply, Provider]:
    async def story() -> tuple[ModelReply, Provider]:
        async with provider(answer) as state:
            told = replace(settings, base_url=f"http://127.0.0.1:{state.port}/v1")
            env = {"AWS_ACCESS_KEY_ID": "AKIDOFTHETEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
            model = open_model(told, clock=lambda: NOW, env=env)
            try:
                for request in requests[:-1]:
                    await ask(model, request, deadline_s=10)
                return await ask(model, requests[-1], deadline_s=10), state
            finally:
                await model.close()

    return asyncio.run(story())


def _keys(settings: LlmSettings, *requests: ModelRequest) -> list[object]:
    endpoint = endpoint_of(settings)
    return [body_of(request, name="m", endpoint=endpoint).get("prompt_cache_key") for request in requests]


def test_openai_is_told_a_key_that_a_conversation_keeps_and_another_does_not_share() -> None:
    settings = LlmSettings(provider="openai", model="gpt-5", api_key=KEY)
    other = replace(FIRST, messages=(ASKED[0], Message(role="user", text="Where?")))
    noticed = replace(SECOND, messages=(Message(role="system", text="Be short."), *SECOND.messages[1:]))
    first, second, elsewhere, same = _keys(settings, FIRST, SECOND, other, noticed)
    assert first == second == same
    assert isinstance(first, str)
    assert len(first) == 32
    assert elsewhere != first
    assert "Why" not in first
    assert _keys(replace(settings, prompt_cache="off"), FIRST) == [None]


def test_no_server_is_told_a_key_that_it_may_refuse_unless_the_settings_say_so() -> None:
    _, state = _asked(LlmSettings(provider="openai", model="m", api_key=KEY), HI, FIRST)
    assert "prompt_cache_key" not in state.bodies[0]
    _, state = _asked(LlmSettings(provider="openai", model="m", api_key=KEY, prompt_cache="always"), HI, FIRST, SECOND)
    first, second = (body["prompt_cache_key"] for body in state.bodies)
    assert first == second
    _, state = _asked(LlmSettings(provider="ollama", model="m", prompt_cache="always"), HI, FIRST)
    assert "prompt_cache_key" not in state.bodies[0]
    extra = {"prompt_cache_key": "mine"}
    wish = LlmSettings(provider="openai", model="m", api_key=KEY, prompt_cache="always", additional_params=extra)
    _, state = _asked(wish, HI, FIRST)
    assert state.bodies[0]["prompt_cache_key"] == "mine"


def test_openrouter_is_told_where_claude_may_stop_reading_and_nobody_else_is() -> None:
    settings = LlmSettings(provider="openrouter", model="anthropic/claude-sonnet-4.5", api_key=KEY)
    _, state = _asked(settings, HI, FIRST, SECOND)
    first, second = (body["messages"] for body in state.bodies)
    assert first == [
        {"role": "system", "content": [{"type": "text", "text": "Be short.", "cache_control": MARK}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?", "cache_control": MARK}]},
    ]
    assert isinstance(second, list)
    assert [type(each["content"]).__name__ for each in second] == ["list", "str", "list", "str"]
    assert second[2]["tool_calls"][0]["id"] == "1.1"
    for other in (replace(settings, model="meta-llama/llama-4"), replace(settings, prompt_cache="off")):
        _, state = _asked(other, HI, FIRST)
        assert "cache_control" not in json.dumps(state.bodies[0])
        assert "prompt_cache_key" not in state.bodies[0]


def test_claude_is_told_the_end_of_tools_instructions_and_conversation() -> None:
    _needs("anthropic", "anthropic")
    answer = claude(claude_begins(), *claude_text(0, "hi"), *claude_ends())
    settings = LlmSettings(provider="anthropic", model="claude-sonnet-4-6", api_key=KEY)
    _, state = _asked(settings, answer, FIRST, SECOND)
    for body in state.bodies:
        assert "cache_control" in json.dumps(body["tools"])
        assert "cache_control" in json.dumps(body["system"])
        assert "cache_control" in body or "cache_control" in json.dumps(body["messages"])
    assert state.bodies[0]["tools"] == state.bodies[1]["tools"]
    assert state.bodies[0]["system"] == state.bodies[1]["system"]
    _, state = _asked(replace(settings, prompt_cache="off"), answer, FIRST)
    assert "cache_control" not in json.dumps(state.bodies[0])


def test_bedrock_is_told_cache_points_for_models_that_have_them() -> None:
    _needs("bedrock", "boto3")
    answer = bedrock(
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}, "metrics": {"latencyMs": 1}}),
    )
    model = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    settings = LlmSettings(provider="bedrock", model=model, region="eu-central-1")
    _, state = _asked(settings, answer, FIRST)
    body = state.bodies[0]
    assert "cachePoint" in json.dumps(body["system"])
    assert "cachePoint" in json.dumps(body["toolConfig"])
    assert "cachePoint" in json.dumps(body["messages"])
    for other in (replace(settings, prompt_cache="off"), replace(settings, model="meta.llama3-1-70b-instruct-v1:0")):
        _, state = _asked(other, answer, FIRST)
        assert "cachePoint" not in json.dumps(state.bodies[0])


# -- what stays the same ----------------------------------------------------------------------------------------------


def test_instructions_are_equal_between_turns_and_conversations_differ_at_their_end_alone() -> None:
    role = Role(name="sre", preamble="You help.", tools=("read_logs",))
    question = [Message(role="user", text="Why?")]
    one, other = (opened(question, fence=fence) for fence in ("a1b2c3d4", "e5f6a7b8"))
    later = replace(one, turn=3, messages=(*one.messages, *ANSWERED))
    first, next_turn, elsewhere = (request_of(talk, role, tools=(READ_LOGS,)) for talk in (one, later, other))
    assert first.messages == next_turn.messages[: len(first.messages)]
    assert first.tools == next_turn.tools == elsewhere.tools
    told, their = first.messages[0].text, elsewhere.messages[0].text
    assert told.removesuffix("a1b2c3d4") == their.removesuffix("e5f6a7b8")
    assert told != their


# -- what is paid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {"prompt_tokens_details": {"cached_tokens": 800}},
            TokenUsage(input_tokens=1000, output_tokens=50, cached_tokens=800, written_tokens=0),
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": 700, "cache_write_tokens": 200}},
            TokenUsage(input_tokens=1000, output_tokens=50, cached_tokens=700, written_tokens=200),
        ),
        (
            {"prompt_cache_hit_tokens": 900},
            TokenUsage(input_tokens=1000, output_tokens=50, cached_tokens=900, written_tokens=0),
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": 9999, "cache_write_tokens": 7}},
            TokenUsage(input_tokens=1000, output_tokens=50, cached_tokens=1000, written_tokens=0),
        ),
        (
            {"prompt_tokens_details": {"cached_tokens": -5}},
            TokenUsage(input_tokens=1000, output_tokens=50, cached_tokens=0, written_tokens=0),
        ),
    ],
)
def test_tokens_that_a_cache_had_are_told_apart(told: dict[str, object], expected: TokenUsage) -> None:
    reply, _ = _asked(
        LlmSettings(provider="openai", model="m", api_key=KEY), sse(delta("hi"), end(), usage(1000, 50, **told)), FIRST
    )
    assert reply.usage == expected


def test_what_a_cache_had_is_paid_at_its_own_price() -> None:
    price = Budgets((), clock=system_clock).find_price("anthropic", "claude-sonnet-4-5")
    assert price is not None
    plain, cached, written = (steps[0][1] for steps in (price.input, price.cached, price.written))
    assert cached < plain < written
    told = TokenUsage(input_tokens=1_000_000, output_tokens=0, cached_tokens=700_000, written_tokens=200_000)
    small = replace(price, input=((0, plain),), cached=((0, cached),), written=((0, written),))
    assert (
        cost(small, told)
        == (plain * 100_000 + cached * 700_000 + written * 200_000) // 1_000_000 + price.request_micro_usd
    )
