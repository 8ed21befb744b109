"""Anthropic, Gemini and Bedrock through pydantic-ai's model layer: our words out, our words back, every fault by its kind."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
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
    OverloadError,
    TokenUsage,
)
from quell.models import Limits, ask, list_models, open_model
from quell.models._direct_faults import fault_of
from tests.doors._direct_bench import (
    bedrock,
    claude,
    claude_begins,
    claude_block,
    claude_ends,
    claude_text,
    gemini,
    gemini_chunk,
)
from tests.doors._model_bench import HELLO, NOW, READ_LOGS, Answer, Provider, plain, provider, silence

PACKAGES = {"anthropic": "anthropic", "gemini": "google.genai", "bedrock": "boto3"}


def _is_installed(provider_name: str) -> bool:
    try:
        return all(importlib.util.find_spec(name) for name in ("pydantic_ai", PACKAGES[provider_name]))
    except ModuleNotFoundError:
        return False


def _needs(provider_name: str) -> pytest.MarkDecorator:
    reason = f"left out: needs the extra `{provider_name}` (pip install 'quell[{provider_name}]')"
    return pytest.mark.skipif(not _is_installed(provider_name), reason=reason)


pytestmark = pytest.mark.timeout(60)  # whoever comes first loads an SDK
CLAUDE = LlmSettings(provider="anthropic", model="claude-sonnet-4-6", api_key=Secret("key-of-the-test"))
GEMINI = LlmSettings(provider="gemini", model="gemini-2.5-flash", api_key=Secret("key-of-the-test"))
BEDROCK = LlmSettings(provider="bedrock", model="anthropic.claude-sonnet-4-5-20250929-v1:0", region="eu-central-1")
AWS = {"AWS_ACCESS_KEY_ID": "AKIDOFTHETEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
HI = claude(claude_begins(), *claude_text(0, "hi"), *claude_ends())
LOGS = CallWanted(id="1.1", name="read_logs", arguments='{"service": "cart"}')


def _quick(settings: LlmSettings) -> LlmSettings:
    return replace(settings, first_token_timeout_s=0.5, inactivity_timeout_s=0.3)


def _asked(
    settings: LlmSettings, *answers: Answer, requests: tuple[ModelRequest, ...] = (HELLO,), limits: Limits | None = None
) -> tuple[ModelReply, Provider]:
    async def story() -> tuple[ModelReply, Provider]:
        async with provider(*answers) as state:
            at = replace(settings, base_url=f"http://127.0.0.1:{state.port}")
            model = open_model(at, clock=lambda: NOW, env=AWS, limits=limits)
            try:
                for request in requests:
                    reply = await ask(model, request, deadline_s=20)
                return reply, state
            finally:
                await model.close()

    return asyncio.run(story())


def _fault(settings: LlmSettings, *answers: Answer) -> tuple[ModelError, Provider]:
    async def story() -> tuple[ModelError, Provider]:
        async with provider(*answers) as state:
            at = replace(settings, base_url=f"http://127.0.0.1:{state.port}")
            model = open_model(at, clock=lambda: NOW, env=AWS)
            try:
                await ask(model, HELLO, deadline_s=20)
            except ModelError as error:
                return error, state
            finally:
                await model.close()
        raise AssertionError("it answered")

    return asyncio.run(story())


# -- Anthropic ------------------------------------------------------------------------------------------------------------


@_needs("anthropic")
def test_claude_streams_thoughts_text_calls_and_usage_with_what_its_cache_read_and_wrote() -> None:
    call = claude_block(
        2,
        {"type": "tool_use", "id": "toolu_1", "name": "read_logs", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"service"'},
        {"type": "input_json_delta", "partial_json": ': "cart"}'},
    )
    thought = claude_block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Logs first."},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    begins = claude_begins(cache_read_input_tokens=90, cache_creation_input_tokens=20)
    reply, state = _asked(
        CLAUDE,
        claude(begins, *thought, *claude_text(1, "I ", "look."), *call, *claude_ends("tool_use")),
        requests=(replace(HELLO, tools=(READ_LOGS,)),),
    )
    assert (reply.text, reply.reasoning, reply.reason) == ("I look.", "Logs first.", "calls")
    assert [(each.id, each.name, each.arguments) for each in reply.calls] == [
        ("toolu_1", "read_logs", '{"service":"cart"}')
    ]
    assert reply.usage == TokenUsage(input_tokens=120, output_tokens=7, cached_tokens=90, written_tokens=20)
    assert reply.model == "claude-x"
    assert state.heads[0][":path"].startswith("/v1/messages")
    assert "key-of-the-test" in str(state.heads[0])


@_needs("anthropic")
def test_claude_is_asked_as_the_settings_say_and_told_what_it_may_cache() -> None:
    settings = replace(CLAUDE, max_tokens=300, temperature=0.2, additional_params={"metadata": {"user_id": "u"}})
    request = ModelRequest(
        messages=(
            Message(role="system", text="Be short."),
            Message(role="user", text="Why?"),
            Message(role="assistant", text="I look.", calls=(LOGS,)),
            Message(role="tool", call="1.1", tool="read_logs", text="nothing"),
        ),
        tools=(READ_LOGS,),
        choice="read_logs",
        stop=("END",),
    )
    _, state = _asked(settings, HI, requests=(request,))
    body = state.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["stop_sequences"]) == (300, 0.2, ["END"])
    assert body["metadata"] == {"user_id": "u"}
    assert "cache_control" in str(body["system"])
    assert "Be short." in str(body["system"])
    assert body["tool_choice"] == {"type": "any"}, "there is one tool, and it has to be called"
    messages = body["messages"]
    assert isinstance(messages, list)
    _, said, result = messages
    (used,) = [part for part in said["content"] if part["type"] == "tool_use"]
    assert (used["name"], used["input"]) == ("read_logs", {"service": "cart"})
    assert used["id"].replace("_", "").replace("-", "").isalnum()
    assert result["content"][0]["tool_use_id"] == used["id"]


@_needs("anthropic")
def test_claude_gets_its_own_thoughts_back_with_the_results_of_its_calls() -> None:
    thought = claude_block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Logs first."},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    call = claude_block(
        1,
        {"type": "tool_use", "id": "toolu_9", "name": "read_logs", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"service": "cart"}'},
    )
    first = replace(HELLO, tools=(READ_LOGS,))
    answered = Message(role="assistant", calls=(replace(LOGS, arguments='{"service":  "cart"}'),))
    result = Message(role="tool", call="1.1", tool="read_logs", text="nothing")
    second = replace(first, messages=(*first.messages, answered, result))
    _, state = _asked(
        replace(CLAUDE, reasoning_effort="low", max_tokens=4000),
        claude(claude_begins(), *thought, *call, *claude_ends("tool_use")),
        HI,
        requests=(first, second),
    )
    assert "thinking" in state.bodies[0]
    messages = state.bodies[1]["messages"]
    assert isinstance(messages, list)
    kinds = [(part["type"], part.get("signature"), part.get("id")) for part in messages[1]["content"]]
    assert kinds == [("thinking", "c2ln", None), ("tool_use", None, "toolu_9")]
    assert messages[2]["content"][0]["tool_use_id"] == "toolu_9"


@_needs("anthropic")
@pytest.mark.parametrize(
    ("status", "kind", "words", "fault"),
    [
        (401, "authentication_error", "invalid x-api-key", ModelFault.AUTH),
        (404, "not_found_error", "model: claude-9", ModelFault.NOT_FOUND),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", ModelFault.OVERFLOW),
        (400, "invalid_request_error", "messages: at least one message is required", ModelFault.INVALID),
        (402, "billing_error", "no credit", ModelFault.QUOTA),
        (429, "rate_limit_error", "too many", ModelFault.RATE_LIMITED),
        (500, "api_error", "internal", ModelFault.OVERLOADED),
        (529, "overloaded_error", "Overloaded", ModelFault.OVERLOADED),
    ],
)
def test_claude_is_asked_once_and_its_refusal_has_its_kind(
    status: int, kind: str, words: str, fault: ModelFault
) -> None:
    body = {"type": "error", "error": {"type": kind, "message": words}}
    headers = ("Content-Type: application/json", "retry-after: 7")
    error, state = _fault(CLAUDE, plain(status, body, headers=headers))
    assert (error.fault, error.status, error.said) == (fault, status, False)
    assert words in str(error)
    assert len(state.bodies) == 1
    if fault is ModelFault.RATE_LIMITED:
        assert error.retry_after_s == 7
    if fault is not ModelFault.INVALID:
        assert fault is ModelFault.OVERLOADED or error.hint


@_needs("anthropic")
@pytest.mark.parametrize(
    ("answer", "fault", "said"),
    [
        (silence(), ModelFault.TIMEOUT, False),
        (claude(claude_begins(), *claude_text(0, "It")[:2], cut=True), ModelFault.BROKEN_STREAM, True),
        (claude(claude_begins(), *claude_text(0, "It")[:2]), ModelFault.BROKEN_STREAM, True),
        (
            claude(
                claude_begins(),
                *claude_text(0, "It")[:2],
                {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            ),
            ModelFault.OVERLOADED,
            True,
        ),
    ],
    ids=["silence", "cut", "no end", "error"],
)
def test_claude_that_goes_silent_or_breaks_off_is_told(answer: Answer, fault: ModelFault, said: bool) -> None:
    error, _ = _fault(_quick(CLAUDE), answer)
    assert (error.fault, error.said) == (fault, said)


@_needs("anthropic")
def test_an_answer_that_was_cut_off_says_so() -> None:
    reply, _ = _asked(CLAUDE, claude(claude_begins(), *claude_text(0, "It"), *claude_ends("max_tokens")))
    assert (reply.text, reply.reason) == ("It", "length")


@_needs("anthropic")
def test_claude_tells_its_limits_and_they_hold_for_the_next_one_who_asks() -> None:
    headers = (
        "anthropic-ratelimit-requests-limit: 2",
        "anthropic-ratelimit-requests-remaining: 0",
        "anthropic-ratelimit-requests-reset: 2026-11-20T12:01:00Z",
    )
    answer = claude(claude_begins(), *claude_text(0, "hi"), *claude_ends(), headers=headers)
    limits = Limits(lambda: 0.0)
    _asked(CLAUDE, answer, limits=limits)

    async def story() -> None:
        (limiter,) = limits._limiters.values()
        await limiter.admit(10, wait_s=1)

    with pytest.raises(OverloadError) as caught:
        asyncio.run(story())
    assert caught.value.retry_after_s == pytest.approx(30)


@_needs("anthropic")
def test_claude_is_left_at_once_when_nobody_listens_any_more() -> None:
    async def story() -> None:
        async with provider(claude(claude_begins(), *claude_text(0, *["x" * 200_000] * 200), *claude_ends())) as state:
            model = open_model(replace(CLAUDE, base_url=f"http://127.0.0.1:{state.port}"), clock=lambda: NOW, env={})
            async with aclosing(model.stream(HELLO, deadline_s=20)) as events:
                await anext(events)
            await asyncio.wait_for(state.left.wait(), timeout=10)
            await model.close()

    asyncio.run(story())


def test_nobody_listens_and_it_is_told() -> None:
    if not _is_installed("anthropic"):
        pytest.skip("left out: needs the extra `anthropic`")

    async def story() -> ModelError:
        async with provider(silence()) as state:
            port = state.port
        model = open_model(replace(CLAUDE, base_url=f"http://127.0.0.1:{port}"), clock=lambda: NOW, env={})
        try:
            await ask(model, HELLO, deadline_s=20)
        except ModelError as error:
            return error
        finally:
            await model.close()
        raise AssertionError("it answered")

    assert asyncio.run(story()).fault is ModelFault.UNREACHABLE


# -- Gemini ---------------------------------------------------------------------------------------------------------------


@_needs("gemini")
def test_gemini_streams_thoughts_text_calls_and_usage() -> None:
    call: dict[str, object] = {
        "functionCall": {"name": "read_logs", "args": {"service": "cart"}},
        "thoughtSignature": "c2ln",
    }
    first = replace(HELLO, tools=(READ_LOGS,))
    told = {"promptTokenCount": 40, "candidatesTokenCount": 6, "thoughtsTokenCount": 3, "cachedContentTokenCount": 8}
    answered = Message(role="assistant", text="I look.", calls=(LOGS,))
    result = Message(role="tool", call="1.1", tool="read_logs", text="nothing")
    second = replace(first, messages=(*first.messages, answered, result))
    answers = (
        gemini(
            gemini_chunk({"text": "Logs first.", "thought": True}),
            gemini_chunk({"text": "I "}),
            gemini_chunk({"text": "look."}, call, reason="STOP", **told),
        ),
        gemini(gemini_chunk({"text": "Nothing."}, reason="MAX_TOKENS", promptTokenCount=50, candidatesTokenCount=2)),
    )
    reply, _ = _asked(GEMINI, answers[0], requests=(first,))
    assert (reply.text, reply.reasoning, reply.reason) == ("I look.", "Logs first.", "calls")
    assert [(each.name, each.arguments) for each in reply.calls] == [("read_logs", '{"service":"cart"}')]
    assert reply.usage == TokenUsage(input_tokens=40, output_tokens=9, cached_tokens=8, reasoning_tokens=3)
    last, state = _asked(GEMINI, *answers, requests=(first, second))
    assert (last.text, last.reason) == ("Nothing.", "length")
    contents = state.bodies[1]["contents"]
    assert isinstance(contents, list)
    assert [part["thoughtSignature"] for part in contents[1]["parts"] if "functionCall" in part] == ["c2ln"]
    assert "functionResponse" in contents[2]["parts"][0]


@_needs("gemini")
def test_gemini_is_asked_as_the_settings_say_and_what_is_merged_wins() -> None:
    settings = replace(
        GEMINI,
        max_tokens=300,
        temperature=0.2,
        additional_params={"generationConfig": {"temperature": 0.7}, "labels": {"team": "sre"}},
    )
    request = replace(HELLO, messages=(Message(role="system", text="Be short."), *HELLO.messages), seed=4)
    answer = gemini(gemini_chunk({"text": "hi"}, reason="STOP", promptTokenCount=4, candidatesTokenCount=1))
    _, state = _asked(settings, answer, requests=(request,))
    body = state.bodies[0]
    config = body["generationConfig"]
    assert isinstance(config, dict)
    assert (config["maxOutputTokens"], config["temperature"], config["seed"]) == (300, 0.7, 4)
    assert body["labels"] == {"team": "sre"}
    assert "Be short." in str(body["systemInstruction"])
    assert state.heads[0]["x-goog-api-key"] == "key-of-the-test"
    assert "/models/gemini-2.5-flash:streamGenerateContent" in state.heads[0][":path"]


@_needs("gemini")
@pytest.mark.parametrize(
    ("status", "code", "words", "fault"),
    [
        (400, "INVALID_ARGUMENT", "The input token count (2000000) exceeds the maximum number of tokens", "overflow"),
        (403, "PERMISSION_DENIED", "API key not valid", "auth"),
        (404, "NOT_FOUND", "models/x is not found", "not_found"),
        (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", "rate_limited"),
        (503, "UNAVAILABLE", "The model is overloaded", "overloaded"),
    ],
)
def test_gemini_is_asked_once_and_its_refusal_has_its_kind(status: int, code: str, words: str, fault: str) -> None:
    body = {"error": {"code": status, "message": words, "status": code}}
    error, state = _fault(GEMINI, plain(status, body))
    assert (error.fault, error.status) == (ModelFault[fault.upper()], status)
    assert len(state.bodies) == 1


# -- Bedrock --------------------------------------------------------------------------------------------------------------


@_needs("bedrock")
def test_bedrock_streams_text_calls_and_usage() -> None:
    request = replace(HELLO, tools=(READ_LOGS,), output_max_tokens=200)
    reply, state = _asked(
        replace(BEDROCK, temperature=0.1, additional_params={"top_k": 40}),
        bedrock(
            ("messageStart", {"role": "assistant"}),
            ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "I look."}}),
            ("contentBlockStop", {"contentBlockIndex": 0}),
            (
                "contentBlockStart",
                {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t1", "name": "read_logs"}}},
            ),
            ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"service": "cart"}'}}}),
            ("contentBlockStop", {"contentBlockIndex": 1}),
            ("messageStop", {"stopReason": "tool_use"}),
            (
                "metadata",
                {
                    "usage": {
                        "inputTokens": 30,
                        "outputTokens": 9,
                        "totalTokens": 139,
                        "cacheReadInputTokens": 100,
                        "cacheWriteInputTokens": 0,
                    },
                    "metrics": {"latencyMs": 5},
                },
            ),
        ),
        requests=(request,),
    )
    assert (reply.text, reply.reason) == ("I look.", "calls")
    assert [(each.id, each.name, each.arguments) for each in reply.calls] == [("t1", "read_logs", '{"service":"cart"}')]
    assert reply.usage == TokenUsage(input_tokens=130, output_tokens=9, cached_tokens=100)
    body = state.bodies[0]
    assert body["additionalModelRequestFields"] == {"top_k": 40}
    assert body["inferenceConfig"] == {"maxTokens": 200, "temperature": 0.1}
    assert "AKIDOFTHETEST" in state.heads[0]["authorization"]
    assert state.heads[0][":path"].endswith("/converse-stream")


@_needs("bedrock")
@pytest.mark.parametrize(
    ("status", "kind", "words", "fault"),
    [
        (400, "ValidationException", "Input is too long for requested model.", ModelFault.OVERFLOW),
        (403, "AccessDeniedException", "You don't have access to the model", ModelFault.AUTH),
        (404, "ResourceNotFoundException", "Model not found", ModelFault.NOT_FOUND),
        (429, "ThrottlingException", "Too many requests", ModelFault.RATE_LIMITED),
        (503, "ServiceUnavailableException", "Try again later", ModelFault.OVERLOADED),
    ],
)
def test_bedrock_is_asked_once_and_its_refusal_has_its_kind(
    status: int, kind: str, words: str, fault: ModelFault
) -> None:
    headers = ("Content-Type: application/json", f"x-amzn-errortype: {kind}")
    error, state = _fault(BEDROCK, plain(status, {"message": words}, headers=headers))
    assert (error.fault, error.status) == (fault, status)
    assert len(state.bodies) == 1


@_needs("bedrock")
def test_bedrock_that_goes_silent_is_told() -> None:
    error, _ = _fault(_quick(BEDROCK), silence())
    assert error.fault is ModelFault.TIMEOUT


@_needs("gemini")
@pytest.mark.parametrize("cut", [True, False])
def test_gemini_that_breaks_off_is_told(cut: bool) -> None:
    error, _ = _fault(GEMINI, gemini(gemini_chunk({"text": "It"}), cut=cut))
    assert (error.fault, error.said) == (ModelFault.BROKEN_STREAM, True)


@_needs("bedrock")
@pytest.mark.parametrize("cut", [True, False])
def test_bedrock_that_breaks_off_is_told(cut: bool) -> None:
    begun = ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "It"}})
    error, _ = _fault(BEDROCK, bedrock(("messageStart", {"role": "assistant"}), begun, cut=cut))
    assert (error.fault, error.said) == (ModelFault.BROKEN_STREAM, True)


@_needs("bedrock")
def test_a_profile_that_is_not_there_is_told_as_that() -> None:
    error, state = _fault(replace(BEDROCK, profile="no-such-profile"), silence())
    assert (error.fault, state.bodies) == (ModelFault.AUTH, [])
    assert "no-such-profile" in str(error)


@_needs("bedrock")
def test_bedrock_lists_what_it_offers_for_text() -> None:
    async def story() -> tuple[tuple[str, ...], Provider]:
        models = {"modelSummaries": [{"modelId": "b", "modelArn": "arn:b"}, {"modelId": "a", "modelArn": "arn:a"}]}
        async with provider(plain(200, models)) as state:
            at = replace(BEDROCK, base_url=f"http://127.0.0.1:{state.port}")
            return await list_models(at, clock=lambda: NOW, env=AWS), state

    names, state = asyncio.run(story())
    assert names == ("a", "b")
    assert state.heads[0][":path"].startswith("/foundation-models?byOutputModality=TEXT")


# -- what is not installed, what is not known ------------------------------------------------------------------------------


def test_a_provider_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for settings in (CLAUDE, GEMINI, BEDROCK):
        with pytest.raises(ConfigError) as caught:
            open_model(settings, clock=lambda: NOW, env={})
        assert caught.value.hint == f"pip install 'quell[{settings.provider}]'"


def test_the_package_of_a_provider_is_loaded_when_its_model_is_asked_and_not_before() -> None:
    code = (
        "import sys; from quell.models import open_model; "
        "print(sorted({'anthropic', 'boto3', 'google.genai', 'pydantic_ai', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_that_nobody_knows_is_told_by_its_words_and_its_secrets_are_not_ours() -> None:
    class OddError(Exception):
        pass

    for error, fault in (
        (OddError("context length exceeded"), ModelFault.OVERFLOW),
        (OddError("something"), ModelFault.BAD_ANSWER),
        (ConnectionResetError("reset"), ModelFault.UNREACHABLE),
    ):
        assert fault_of(error, said=False, now=NOW).fault is fault
    assert fault_of(ConnectionResetError("reset"), said=True, now=NOW).fault is ModelFault.BROKEN_STREAM
    assert len(str(fault_of(OddError("\x1b[31m" + "x" * 9000), said=False, now=NOW))) < 600
