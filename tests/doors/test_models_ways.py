"""Calls in text, calls in schemas, a next model when one fails, and what a script plays."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.domain import (
    BoundExceededError,
    CallWanted,
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelReply,
    ModelRequest,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.models import ChainModel, Model, ScriptedModel, TokenCounter, ask
from quell.models._scripted import says, wants
from quell.models._text_calls import calls_in
from quell.models._ways import SchemaCallModel, TextCallModel
from tests.doors._model_bench import HELLO, READ_LOGS

WITH_TOOL = ModelRequest(messages=(Message(role="user", text="Why is cart slow?"),), tools=(READ_LOGS,))
CALL = {"service": "cart", "lines": 20}


def _reply(model: Model, request: ModelRequest = WITH_TOOL) -> ModelReply:
    return asyncio.run(ask(model, request, deadline_s=5))


def _events(model: Model, request: ModelRequest = WITH_TOOL) -> list[ModelEvent]:
    async def story() -> list[ModelEvent]:
        async with aclosing(model.stream(request, deadline_s=5)) as events:
            return [event async for event in events]

    return asyncio.run(story())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"name": "read_logs", "arguments": CALL}),
        "I will look.\n```json\n" + json.dumps({"tool": "read_logs", "parameters": CALL}) + "\n```",
        json.dumps([{"function": {"name": "read_logs", "arguments": json.dumps(CALL)}}]),
        json.dumps({"tool_calls": [{"function": {"name": "read_logs", "arguments": CALL}}]}),
        'Sure. <tool_call>\n{"name": "read_logs", "arguments": {"service": "cart", "lines": 20}}\n</tool_call> ok',
        '<tool_call>{"name": "read_logs", "arguments": {"service": "cart", "lines": 20}}',
        '[read_logs(service="cart", lines=20)]',
        '```python\nread_logs(service="cart", lines=20)\n```',
        "<function=read_logs><parameter=service>cart</parameter><parameter=lines>20</parameter></function>",
        "<tool_call>\n<function=read_logs>\n<parameter=service>\ncart\n</parameter>\n<parameter=lines>\n20\n</parameter>\n</function>\n</tool_call>",
        "<function=read_logs>\n<parameter=service>\ncart\n<parameter=lines>\n20\n",
        '<function=read_logs>{"service": "cart", "lines": 20}</function>',
    ],
)
def test_a_call_in_any_of_the_forms_that_models_write_is_found(text: str) -> None:
    calls = calls_in(text, WITH_TOOL)
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("read_logs", CALL)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The logs say {nothing}.",
        '{"name": "drop_tables", "arguments": {}}',
        "[rm(path='/')]",
        "__import__('os').system('id')",
        "read_logs(**evil)",
        "read_logs(service=open('/etc/passwd'))",
        "<function=drop_tables></function>",
        "{" * 100_000,
        "[" * 100_000,
        "(" * 5_000,
        "<tool_call>" * 20_000,
    ],
)
def test_what_is_no_call_of_an_offered_tool_is_text(text: str) -> None:
    assert calls_in(text, WITH_TOOL) == ()


@given(st.text(alphabet='{}[]<>="/toolcalfunctionparameter_readlogs:,\n\\', max_size=200))
def test_no_text_breaks_the_search(text: str) -> None:
    for call in calls_in(text, WITH_TOOL):
        assert call.name == "read_logs"


def test_a_call_in_text_reaches_the_caller_as_a_call_and_the_text_stays_to_be_read() -> None:
    model = TextCallModel(
        ScriptedModel([says('<tool_call>{"name":"read_logs","arguments":{"service":"db"}}</tool_call>')])
    )
    reply = _reply(model)
    assert reply.reason == "calls"
    assert [(call.id, call.name) for call in reply.calls] == [("text_0_0", "read_logs")]
    assert "<tool_call>" in reply.text


def test_a_model_that_calls_properly_is_not_read_twice() -> None:
    call = CallWanted(id="a", name="read_logs", arguments="{}")
    reply = _reply(TextCallModel(ScriptedModel([wants(call, text='{"name":"read_logs","arguments":{}}')])))
    assert reply.calls == (call,)


def test_a_weak_model_is_held_to_a_schema_with_a_branch_for_each_tool() -> None:
    script = ScriptedModel([says('{"tool":"read_logs","arguments":{"service":"cart"}}', pieces=7)])
    reply = _reply(SchemaCallModel(script))
    assert [(call.name, call.arguments) for call in reply.calls] == [("read_logs", '{"service": "cart"}')]
    assert (reply.text, reply.reason) == ("", "calls")
    sent = script.asked[0]
    assert sent.tools == ()
    branches = json.loads(sent.answer_schema)["anyOf"]
    assert [branch["properties"]["tool"]["enum"] for branch in branches] == [["read_logs"], ["answer"]]
    assert "read_logs" in sent.messages[0].text


def test_its_answer_in_the_schema_is_plain_text_and_its_history_is_written_in_the_same_form() -> None:
    script = ScriptedModel([says('{"tool":"answer","arguments":{"text":"All is well."}}')])
    call = CallWanted(id="a", name="read_logs", arguments='{"service":"cart"}')
    history = (
        *WITH_TOOL.messages,
        Message(role="assistant", calls=(call,)),
        Message(role="tool", call="a", tool="read_logs", text="no lines"),
    )
    reply = _reply(SchemaCallModel(script), ModelRequest(messages=history, tools=(READ_LOGS,)))
    assert (reply.text, reply.calls, reply.reason) == ("All is well.", (), "stop")
    assert [message.role for message in script.asked[0].messages] == ["system", "user", "assistant", "user"]
    assert "no lines" in script.asked[0].messages[-1].text


def test_one_that_leaves_the_schema_is_a_fault_and_one_that_was_cut_off_is_told() -> None:
    with pytest.raises(ModelError) as caught:
        _reply(SchemaCallModel(ScriptedModel([says("I would rather talk.")])))
    assert caught.value.fault is ModelFault.BAD_ANSWER
    cut = SchemaCallModel(ScriptedModel([(TextPiece(text='{"tool":"rea'), Ended(reason="length"))]))
    assert _reply(cut).reason == "length"


def _fails(fault: ModelFault, *, after: str = "") -> ScriptedModel:
    error = ModelError("down", fault=fault)
    return ScriptedModel([(TextPiece(text=after), error) if after else (error,)], name="first")


@pytest.mark.parametrize(
    "fault", [each for each in ModelFault if each not in {ModelFault.INVALID, ModelFault.FILTERED}]
)
def test_the_next_model_answers_when_the_first_does_not(fault: ModelFault) -> None:
    left: list[tuple[str, object]] = []
    chain = ChainModel(
        [_fails(fault), ScriptedModel([says("here")])],
        on_change=lambda model, error: left.append((model.name, getattr(error, "fault", None))),
    )
    assert _reply(chain).text == "here"
    assert left == [("first", fault)]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (_fails(ModelFault.INVALID), ModelFault.INVALID),
        (_fails(ModelFault.FILTERED), ModelFault.FILTERED),
        (_fails(ModelFault.TIMEOUT, after="Half a "), ModelFault.TIMEOUT),
    ],
)
def test_no_other_model_finishes_a_sentence_nor_is_asked_what_every_one_refuses(
    first: ScriptedModel, told: ModelFault
) -> None:
    second = ScriptedModel([says("no")])
    with pytest.raises(ModelError) as caught:
        _reply(ChainModel([first, second]))
    assert caught.value.fault is told
    assert second.asked == []


def test_when_all_fail_the_last_word_counts() -> None:
    with pytest.raises(ModelError) as caught:
        _reply(ChainModel([_fails(ModelFault.OVERLOADED), _fails(ModelFault.AUTH)]))
    assert caught.value.fault is ModelFault.AUTH


def test_a_script_plays_its_turns_in_order_and_says_when_it_is_over() -> None:
    usage = TokenUsage(input_tokens=5, output_tokens=2)
    model = ScriptedModel([says("one", usage=usage), says("two")])
    assert _events(model, HELLO) == [TextPiece(text="one"), Ended(reason="stop"), UsageTold(usage=usage)]
    assert _reply(model, HELLO).text == "two"
    with pytest.raises(BoundExceededError, match="script"):
        _reply(model, HELLO)


def test_the_estimate_learns_how_a_provider_counts() -> None:
    counter = TokenCounter()
    request = ModelRequest(messages=(Message(role="user", text="the quick brown fox " * 200),))
    before = counter.count(request)
    for _ in range(20):
        counter.learn(request, told=before * 2)
    assert abs(counter.count(request) - before * 2) < before * 0.05
    counter.learn(request, told=before * 1000)
    assert abs(counter.count(request) - before * 2) < before * 0.05


def test_a_tokenizer_that_is_installed_counts_long_texts_exactly() -> None:
    bpe = pytest.importorskip("bpe_openai", reason="left out: bpe-openai is not installed")
    encoded = bpe.get_encoding("o200k_base").encode_ordinary
    counter, other = TokenCounter.for_model("gpt-4o"), TokenCounter.for_model("some-model")
    assert 2 <= counter.count_text("hello hello hello") <= 6
    assert not counter.is_exact, "no window and no budget is so near that it mattered"
    long = "hello " * 5_000
    assert (counter.count_text(long), counter.is_exact) == (len(encoded(long)), True)
    assert counter.count_text("hello hello hello") == 3
    request = ModelRequest(messages=(Message(role="user", text=long),))
    fresh = TokenCounter.for_model("gpt-4o")
    fresh.learn(ModelRequest(messages=(Message(role="user", text="the quick brown fox " * 60),)), told=600)
    assert fresh.factor != 1.0
    assert 0 < fresh.count(request) - len(encoded(long)) < 20
    assert fresh.factor == 1.0, "what the estimate learned says nothing about a tokenizer"
    assert other.count_text(long) > 0
    assert not other.is_exact


def test_who_is_asked_something_short_waits_for_no_vocabulary() -> None:
    pytest.importorskip("bpe_openai", reason="left out: bpe-openai is not installed")
    code = """
import sys
from quell.domain import Message, ModelRequest
from quell.models import TokenCounter
counter = TokenCounter.for_model("gpt-4o")
assert counter.count(ModelRequest(messages=(Message(role="user", text="Is anything wrong? " * 100),))) > 100
assert "bpe_openai" not in sys.modules
counter.prepare()
assert "bpe_openai" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_estimate_is_near_a_tokenizer_on_what_an_agent_sends() -> None:
    bpe = pytest.importorskip("bpe_openai", reason="left out: bpe-openai is not installed")
    encoding = bpe.get_encoding("o200k_base")
    texts = (
        "The checkout service answers 500 since 12:03; the database refuses connections because its pool is exhausted.",
        json.dumps(
            {"service": "cart", "lines": [{"at": "2026-11-20T12:00:00Z", "level": "error", "count": 4711}] * 20}
        ),
        "2026-11-20 12:00:01,123 ERROR [pool-1-thread-7] c.e.db.Pool - no connection within 30000 ms (active=50)\n"
        * 10,
        "Ein Dienst antwortet nicht: Zeitüberschreitung nach 30 Sekunden.",
    )
    for text in texts:
        real = len(encoding.encode_ordinary(text))
        assert 0.6 * real <= TokenCounter().count_text(text) <= 1.6 * real, text[:40]
