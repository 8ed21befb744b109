"""A real model behind a real server: what no script can prove. It says nothing of how well agents do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from quell.agent import Role, Stop
from quell.config import LlmSettings, Secret
from quell.domain import (
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelReply,
    ModelRequest,
    TextPiece,
    ToolSpec,
    UsageTold,
)
from quell.models import Model, ask, list_models, open_model
from quell.models._ways import Wrapped
from quell.runs import system_clock
from tests._real_model import WINDOW_TOKENS, RealModel
from tests.doors._agent_bench import agent_room
from tests.doors._model_bench import READ_LOGS

pytestmark = [pytest.mark.needs_model, pytest.mark.timeout(120)]

RESTART = ToolSpec(
    name="restart",
    description="Restart a service.",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {"service": {"type": "string", "enum": ["cart", "checkout"]}, "wait": {"type": "boolean"}},
            "required": ["service", "wait"],
            "additionalProperties": False,
        }
    ),
)


def _settings(real: RealModel, **more: object) -> LlmSettings:
    settings = LlmSettings(provider="openai", model=real.name, api_key=Secret("none"), base_url=real.url)
    # What was asked before would change the last digits of what comes now: calls are computed anew.
    anew = {"cache_prompt": False} if "constrained_calls" in more else {}
    return replace(settings, temperature=0.0, context_window=WINDOW_TOKENS, additional_params=anew, **more)  # type: ignore[arg-type]


def _open(real: RealModel, **more: object) -> Model:
    return open_model(_settings(real, **more), clock=system_clock, env={})


def _request(text: str, **more: object) -> ModelRequest:
    return replace(ModelRequest(messages=(Message(role="user", text=text),), seed=7), **more)  # type: ignore[arg-type]


def _asked(real: RealModel, request: ModelRequest, **more: object) -> ModelReply:
    async def story() -> ModelReply:
        model = _open(real, **more)
        try:
            return await ask(model, request, deadline_s=60)
        finally:
            await model.close()

    return asyncio.run(story())


def test_words_come_one_after_the_other_then_one_end_and_the_usage(real_model: RealModel) -> None:
    async def story() -> list[ModelEvent]:
        model = _open(real_model, max_tokens=24)
        try:
            return [event async for event in model.stream(_request("Count from one to five."), deadline_s=60)]
        finally:
            await model.close()

    events = asyncio.run(story())
    kinds = [type(event) for event in events]
    assert kinds.count(TextPiece) > 5
    assert kinds[-2:] == [Ended, UsageTold]
    told = next(event for event in events if isinstance(event, UsageTold)).usage
    assert 0 < told.input_tokens < 100
    assert 5 < told.output_tokens <= 24


def test_an_answer_that_reaches_its_cap_says_that_it_was_cut_off(real_model: RealModel) -> None:
    reply = _asked(real_model, _request("Tell a long story about a ship.", output_max_tokens=8))
    assert (reply.reason, reply.usage.output_tokens, reply.is_usage_told) == ("length", 8, True)
    assert reply.model == real_model.name


def test_a_request_beyond_the_window_is_told_as_that(real_model: RealModel) -> None:
    with pytest.raises(ModelError) as caught:
        _asked(real_model, _request("word " * (WINDOW_TOKENS + 500)))
    assert caught.value.fault is ModelFault.OVERFLOW
    assert caught.value.status == 400


def test_the_count_of_tokens_comes_closer_with_every_report(real_model: RealModel) -> None:
    text = "The checkout service of the shop answers slowly since the last release of the payment gateway. " * 14

    async def story() -> tuple[float, float]:
        model = _open(real_model, max_tokens=1)
        try:
            off = []
            for _ in range(6):
                counted = model.counter.count(_request(text))
                reply = await ask(model, _request(text), deadline_s=60)
                off.append(abs(counted - reply.usage.input_tokens) / reply.usage.input_tokens)
            return off[0], off[-1]
        finally:
            await model.close()

    first, last = asyncio.run(story())
    assert last <= max(first * 0.5, 0.05)


@pytest.mark.parametrize("question", ["Restart the cart service.", "Show me the log of checkout."])
def test_a_weak_model_that_is_held_to_a_schema_makes_valid_calls(real_model: RealModel, question: str) -> None:
    tools = {tool.name: tool for tool in (READ_LOGS, RESTART)}
    request = _request(question, tools=tuple(tools.values()), choice="required", output_max_tokens=400)
    reply = _asked(real_model, request, constrained_calls=True)
    assert reply.reason == "calls"
    (call,) = reply.calls
    Draft202012Validator(json.loads(tools[call.name].parameters)).validate(json.loads(call.arguments))


def test_without_the_schema_the_same_model_only_talks_and_that_is_no_call(real_model: RealModel) -> None:
    request = _request("Restart the cart service.", tools=(RESTART,), output_max_tokens=40)
    reply = _asked(real_model, request, fallback_tool_parsing=True)
    assert (reply.calls, bool(reply.text)) == ((), True)
    assert reply.usage.output_tokens <= 40


def test_a_server_that_is_left_is_free_for_the_next_one(real_model: RealModel) -> None:
    async def story() -> str:
        model = _open(real_model)
        try:
            request = _request("Write a very long poem.", output_max_tokens=200)
            async with aclosing(model.stream(request, deadline_s=60)) as events:
                await anext(events)
            # It serves one at a time: the next one is answered only when the first is really over.
            return (await ask(model, _request("Say hello.", output_max_tokens=4), deadline_s=60)).reason
        finally:
            await model.close()

    assert asyncio.run(story()) in {"length", "stop"}


def test_the_server_lists_its_model(real_model: RealModel) -> None:
    names = asyncio.run(list_models(_settings(real_model), clock=system_clock, env={}))
    assert names == (real_model.name,)


class _FirstCalls(Wrapped):
    """A model that has to call a tool first and to answer then: this one would not know when."""

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        has_results = any(message.role == "tool" for message in request.messages)
        # Its words run on: a call has room for the longest arguments that its schema allows, an answer for a few.
        asked = replace(
            request, choice="none" if has_results else "required", output_max_tokens=30 if has_results else 400
        )
        async with aclosing(self._inner.stream(asked, deadline_s=deadline_s)) as events:
            async for event in events:
                yield event


def test_an_agent_on_a_durable_run_calls_a_tool_and_answers(real_model: RealModel, tmp_path: Path) -> None:
    model = _FirstCalls(_open(real_model, constrained_calls=True))
    role = Role(name="sre", preamble="You look after a small shop.", tools=("logs_search",), turns_max=3)

    async def story() -> None:
        try:
            async with agent_room(tmp_path, model, role=role) as room:
                answer = await room.ask("Search the log of web for errors.", timeout_s=90)
                assert answer.calls >= 1
                assert answer.turns == 2
                assert answer.stop in {Stop.ANSWERED, Stop.LENGTH}
                assert answer.is_usage_told
                assert 0 < answer.usage.input_tokens < 2 * WINDOW_TOKENS
                assert answer.text
        finally:
            await model.close()

    asyncio.run(story())
