"""From settings to a model: who is asked where, with what, and what a provider's list holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from quell.config import LlmSettings, Secret
from quell.domain import (
    CallWanted,
    ConfigError,
    Message,
    ModelError,
    ModelFault,
    ModelReply,
    ModelRequest,
    TokenUsage,
)
from quell.models import Model, ask, bills_of, list_models, open_model
from quell.models._open import endpoint_of, payee_of
from tests.doors._model_bench import (
    HELLO,
    NOW,
    READ_LOGS,
    Answer,
    Provider,
    delta,
    end,
    ndjson,
    plain,
    provider,
    silence,
    sse,
    usage,
)

KEY = Secret("key-of-the-test")
HERE = LlmSettings(provider="openai", model="m", api_key=KEY)
LOCAL = LlmSettings(provider="ollama", model="qwen3:4b")


def _open(settings: LlmSettings) -> Model:
    return open_model(settings, clock=lambda: NOW, env={})


def _asked(
    settings: LlmSettings, *answers: Answer, request: ModelRequest = HELLO, path: str = "/v1"
) -> tuple[ModelReply, Provider]:
    async def story() -> tuple[ModelReply, Provider]:
        async with provider(*answers) as state:
            model = _open(replace(settings, base_url=f"http://127.0.0.1:{state.port}{path}"))
            try:
                return await ask(model, request, deadline_s=3), state
            finally:
                await model.close()

    return asyncio.run(story())


def _fault(settings: LlmSettings, *answers: Answer, path: str = "/v1") -> ModelError:
    with pytest.raises(ModelError) as caught:
        _asked(settings, *answers, path=path)
    return caught.value


# -- what the settings say ------------------------------------------------------------------------------------------------


def test_a_request_goes_out_as_the_settings_say_and_what_is_merged_wins() -> None:
    settings = replace(
        HERE,
        max_tokens=500,
        temperature=0.3,
        reasoning_effort="high",
        additional_params={"temperature": 0.9, "top_k": 5},
    )
    _, state = _asked(settings, sse(delta("x"), end()), request=replace(HELLO, extra={"top_k": 1, "user": "u"}))
    body = state.bodies[0]
    assert (body["model"], body["max_tokens"], body["reasoning_effort"]) == ("m", 500, "high")
    assert (body["temperature"], body["top_k"], body["user"]) == (0.9, 5, "u")
    assert state.heads[0]["authorization"] == "Bearer key-of-the-test"


def test_a_request_chooses_within_what_the_settings_allow() -> None:
    settings = replace(HERE, max_tokens=500, temperature=0.3, reasoning_effort="high")
    request = replace(HELLO, output_max_tokens=900, temperature=0.0, effort="low")
    _, state = _asked(settings, sse(delta("x"), end()), request=request)
    body = state.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["reasoning_effort"]) == (500, 0.0, "low")


@pytest.mark.parametrize(
    ("settings", "url", "cap", "extra"),
    [
        (HERE, "https://api.openai.com/v1", "max_completion_tokens", {}),
        (replace(HERE, base_url="https://api.openai.com/v1"), "https://api.openai.com/v1", "max_completion_tokens", {}),
        (replace(HERE, base_url="https://llm.example.com/v1"), "https://llm.example.com/v1", "max_tokens", {}),
        (
            replace(HERE, provider="openrouter"),
            "https://openrouter.ai/api/v1",
            "max_tokens",
            {"usage": {"include": True}},
        ),
    ],
)
def test_each_provider_is_reached_at_its_own_address_in_its_own_words(
    settings: LlmSettings, url: str, cap: str, extra: dict[str, object]
) -> None:
    endpoint = endpoint_of(settings)
    assert (endpoint.base_url, endpoint.output_cap, dict(endpoint.extra)) == (url, cap, extra)


@pytest.mark.parametrize(
    ("model", "base_url", "payee"),
    [
        ("gpt-5-mini", "", "openai"),
        ("qwen3-8b", "http://10.0.0.7:8000/v1", "local"),
        ("qwen3-8b", "http://vllm.internal/v1", "local"),
        ("gpt-oss-20b", "http://localhost:8000/v1", "local"),
        ("gpt-5-mini", "http://10.0.0.7:4000/v1", "openai"),
        ("anthropic/claude-sonnet-4-5", "http://gateway:4000/v1", "anthropic"),
        ("qwen3-8b", "https://llm.example.com/v1", "openai"),
    ],
)
def test_a_model_on_ones_own_network_costs_nothing_unless_a_gateway_resells_it(
    model: str, base_url: str, payee: str
) -> None:
    assert payee_of(replace(HERE, model=model, base_url=base_url)) == payee


def test_the_model_without_a_provider_needs_neither_key_nor_network() -> None:
    assert _open(LlmSettings(provider="builtin")).provider == "builtin"


def test_an_address_that_is_none_is_refused_when_the_model_is_opened() -> None:
    with pytest.raises(ConfigError, match="no base URL"):
        _open(replace(HERE, base_url="ftp://example.com"))


# -- weak models ----------------------------------------------------------------------------------------------------------


def test_calls_are_found_in_text_or_held_to_a_schema_as_the_settings_say() -> None:
    request = replace(HELLO, tools=(READ_LOGS,))
    found, _ = _asked(
        replace(LOCAL, fallback_tool_parsing=True),
        ndjson(
            {"message": {"content": '{"name": "read_logs", "arguments": {"service": "cart"}}'}},
            {"done": True, "done_reason": "stop"},
        ),
        request=request,
        path="",
    )
    assert [call.name for call in found.calls] == ["read_logs"]
    text = '{"tool": "read_logs", "arguments": {"service": "cart"}}'
    held, state = _asked(replace(HERE, constrained_calls=True), sse(delta(text), end()), request=request)
    assert [call.arguments for call in held.calls] == ['{"service": "cart"}']
    assert "tools" not in state.bodies[0]
    assert "response_format" in state.bodies[0]


@pytest.mark.parametrize("settings", [HERE, replace(HERE, fallback_tool_parsing=True)])
def test_a_provider_is_left_at_once_when_nobody_listens_any_more(settings: LlmSettings) -> None:
    async def story() -> None:
        async with provider(sse(*[delta("x")] * 400, end(), gap_s=0.02)) as state:
            model = _open(replace(settings, base_url=state.url))
            async with aclosing(model.stream(HELLO, deadline_s=20)) as events:
                await anext(events)
            await asyncio.wait_for(state.left.wait(), timeout=3)
            await model.close()

    asyncio.run(story())


# -- Ollama ---------------------------------------------------------------------------------------------------------------


def test_ollama_answers_in_lines_with_thoughts_calls_and_usage() -> None:
    call = {"function": {"name": "read_logs", "arguments": {"service": "cart"}}}
    reply, state = _asked(
        LOCAL,
        ndjson(
            {"model": "qwen3:4b", "message": {"role": "assistant", "thinking": "Logs first."}},
            {"model": "qwen3:4b", "message": {"content": "I look."}},
            {"model": "qwen3:4b", "message": {"content": "", "tool_calls": [call, call]}},
            {"model": "qwen3:4b", "done": True, "done_reason": "stop", "prompt_eval_count": 30, "eval_count": 9},
        ),
        request=replace(HELLO, tools=(READ_LOGS,)),
        path="/",
    )
    assert state.heads[0][":path"] == "/api/chat"
    assert (reply.text, reply.reasoning, reply.reason) == ("I look.", "Logs first.", "calls")
    assert reply.calls == tuple(
        CallWanted(id=f"call_{number}", name="read_logs", arguments='{"service":"cart"}') for number in range(2)
    )
    assert reply.usage == TokenUsage(input_tokens=30, output_tokens=9)
    assert reply.model == "qwen3:4b"


def test_ollama_is_asked_with_its_own_options() -> None:
    settings = replace(
        LOCAL,
        max_tokens=64,
        temperature=0.1,
        reasoning_effort="none",
        additional_params={"num_ctx": 32768, "keep_alive": "10m", "options": {"mirostat": 1}},
    )
    request = ModelRequest(
        messages=(
            Message(role="system", text="Be short."),
            Message(role="assistant", calls=(CallWanted(id="1.1", name="read_logs", arguments='{"service": "a"}'),)),
            Message(role="tool", call="1.1", tool="read_logs", text="nothing"),
        ),
        tools=(READ_LOGS,),
        choice="none",
        answer_schema='{"type": "object"}',
    )
    _, state = _asked(settings, ndjson({"message": {"content": "x"}}, {"done": True}), request=request, path="")
    body = state.bodies[0]
    assert body["options"] == {"num_predict": 64, "temperature": 0.1, "num_ctx": 32768, "mirostat": 1}
    assert (body["keep_alive"], body["think"], body["format"]) == ("10m", False, {"type": "object"})
    assert "tools" not in body
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "read_logs", "arguments": {"service": "a"}}}],
        },
        {"role": "tool", "tool_name": "read_logs", "content": "nothing"},
    ]


def test_ollama_is_asked_for_the_window_that_the_settings_know() -> None:
    for more, window in (({}, 16384), ({"num_ctx": 4096}, 4096)):
        settings = replace(LOCAL, context_window=16384, additional_params=more)
        _, state = _asked(settings, ndjson({"message": {"content": "x"}}, {"done": True}), path="")
        assert state.bodies[0]["options"] == {"num_ctx": window}


def test_ollama_says_that_an_answer_was_cut_off() -> None:
    reply, _ = _asked(LOCAL, ndjson({"message": {"content": "It"}}, {"done": True, "done_reason": "length"}), path="")
    assert (reply.reason, reply.is_usage_told) == ("length", False)


@pytest.mark.parametrize(
    ("answer", "fault", "said"),
    [
        (plain(404, {"error": 'model "x" not found, try pulling it first'}), ModelFault.NOT_FOUND, False),
        (ndjson({"message": {"content": "It"}}), ModelFault.BROKEN_STREAM, True),
        (ndjson({"message": {"content": "It"}}, cut=True), ModelFault.BROKEN_STREAM, True),
        (ndjson({"message": {"content": "It"}}, {"error": "out of memory"}), ModelFault.BROKEN_STREAM, True),
        (ndjson({"error": "the input is too long: context length"}), ModelFault.OVERFLOW, False),
        (ndjson("no json"), ModelFault.BAD_ANSWER, False),
    ],
)
def test_what_ollama_says_instead_of_an_answer_has_its_kind(answer: Answer, fault: ModelFault, said: bool) -> None:
    error = _fault(LOCAL, answer, path="")
    assert (error.fault, error.said) == (fault, said)


def test_ollama_behind_the_other_protocol_is_asked_in_it() -> None:
    reply, state = _asked(LOCAL, sse(delta("hi"), end(), usage(5, 1)), path="/v1")
    assert reply.text == "hi"
    assert state.heads[0][":path"] == "/v1/chat/completions"


# -- lists ----------------------------------------------------------------------------------------------------------------


def _listed(settings: LlmSettings, answer: Answer, *, path: str) -> tuple[tuple[str, ...], Provider]:
    async def story() -> tuple[tuple[str, ...], Provider]:
        async with provider(answer) as state:
            at = replace(settings, base_url=f"http://127.0.0.1:{state.port}{path}")
            return await list_models(at, clock=lambda: NOW, env={}, timeout_s=0.5), state

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "path", "body", "asked", "header"),
    [
        (HERE, "/v1", {"data": [{"id": "b"}, {"id": "a"}]}, "/v1/models", "authorization"),
        (LOCAL, "", {"models": [{"name": "b"}, {"name": "a"}]}, "/api/tags", "host"),
        (
            replace(HERE, provider="anthropic"),
            "",
            {"data": [{"id": "b", "type": "model"}, {"id": "a"}]},
            "/v1/models?limit=1000",
            "x-api-key",
        ),
        (
            replace(HERE, provider="gemini"),
            "",
            {
                "models": [
                    {"name": "models/b", "supportedGenerationMethods": ["generateContent"]},
                    {"name": "models/a", "supportedGenerationMethods": ["generateContent"]},
                    {"name": "models/vectors", "supportedGenerationMethods": ["embedContent"]},
                ]
            },
            "/v1beta/models?pageSize=1000",
            "x-goog-api-key",
        ),
    ],
    ids=lambda each: each.provider if isinstance(each, LlmSettings) else "",
)
def test_a_provider_lists_what_it_offers(
    settings: LlmSettings, path: str, body: object, asked: str, header: str
) -> None:
    names, state = _listed(settings, plain(200, body), path=path)
    assert names == ("a", "b")
    assert state.heads[0][":path"] == asked
    assert header in state.heads[0]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (silence, ModelFault.TIMEOUT),
        (lambda: plain(401, {"error": {"message": "no"}}), ModelFault.AUTH),
        (lambda: plain(200, {"models": "none"}), ModelFault.BAD_ANSWER),
    ],
)
def test_a_list_that_does_not_come_has_its_reason(answer: Callable[[], Answer], fault: ModelFault) -> None:
    for settings, path in ((HERE, "/v1"), (LOCAL, ""), (replace(HERE, provider="anthropic"), "")):
        with pytest.raises(ModelError) as caught:
            _listed(settings, answer(), path=path)
        assert caught.value.fault is fault


# -- what a call may come to ----------------------------------------------------------------------------------------------


def test_a_bill_knows_the_most_that_may_come_back_whoever_says_it() -> None:
    def most(settings: LlmSettings, request: ModelRequest = HELLO) -> int:
        (bill,) = bills_of(_open(settings), request)
        return bill.output_tokens

    assert most(replace(HERE, max_tokens=700)) == 700
    assert most(replace(HERE, max_tokens=700), replace(HELLO, output_max_tokens=50)) == 50
    assert most(replace(HERE, max_tokens=700, additional_params={"max_completion_tokens": 9000})) == 9000
    assert most(replace(LOCAL, additional_params={"options": {"num_predict": 80}})) == 80
    assert most(replace(HERE, context_window=5000)) < 5000
    assert most(HERE) == 32_768
    assert most(replace(HERE, context_window=1_000_000)) == 32_768


def test_a_bill_counts_the_tools_that_a_schema_writes_into_the_prompt() -> None:
    request = replace(HELLO, tools=(READ_LOGS,))
    (plainly,) = bills_of(_open(HERE), request)
    (written,) = bills_of(_open(replace(HERE, constrained_calls=True)), request)
    assert written.counted_tokens > plainly.counted_tokens
