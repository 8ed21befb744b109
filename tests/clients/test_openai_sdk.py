"""The real `openai` SDK: what it lists, asks, streams, and which of its errors it raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from tests.clients._house import House
from tests.clients._script import Script, called, said
from tests.doors._model_bench import Answer, delta, end, plain, sse, usage

UPTIME: Any = {
    "type": "function",
    "function": {
        "name": "uptime",
        "description": "Say for how long a host has been up.",
        "parameters": {"type": "object", "properties": {"host": {"type": "string"}}, "required": ["host"]},
    },
}


@pytest.fixture
def client(open_house: House) -> Iterator[OpenAI]:
    with OpenAI(base_url=open_house.v1, api_key="any", max_retries=0, timeout=30) as made:
        yield made


def ask(question: str) -> Any:
    return [{"role": "user", "content": question}]


def test_models_are_the_agents_that_are_shown_and_one_is_found_by_its_name(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert sorted(model.id for model in listed) == ["evidence", "sre"]
    assert {model.object for model in listed} == {"model"}
    one = client.models.retrieve("sre")
    assert (one.id, one.object, one.owned_by) == ("sre", "model", "tests")
    assert isinstance(one.created, int)
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("nobody")
    assert told.value.code == "model_not_found"


def test_an_answer_comes_whole_with_what_it_took(client: OpenAI, script: Script) -> None:
    asked = script.on("Is the whole shop well?", said("The shop ", "is well.", prompt=120, completion=4))
    answer = client.chat.completions.create(model="sre", messages=ask("Is the whole shop well?"))
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert [choice.message.content for choice in answer.choices] == ["The shop is well."]
    assert (answer.choices[0].index, answer.choices[0].message.role) == (0, "assistant")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (120, 4, 124)
    assert len(asked.bodies) == 1


def test_a_stream_is_the_same_answer_piece_by_piece_and_tells_the_usage_once(client: OpenAI, script: Script) -> None:
    script.on("Stream it, shop!", said("All ", "is ", "well.", prompt=100, completion=5))
    with client.chat.completions.create(
        model="sre", messages=ask("Stream it, shop!"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert text_of(chunks) == "All is well."
    assert [choice.delta.role for chunk in chunks for choice in chunk.choices if choice.delta.role] == ["assistant"]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    usages = [chunk for chunk in chunks if chunk.usage is not None]
    assert [chunk.usage.total_tokens for chunk in usages if chunk.usage is not None] == [105]
    assert usages == [chunks[-1]]
    assert chunks[-1].choices == [], "OpenAI tells the usage in a chunk without choices"


def test_the_streaming_helper_of_the_sdk_puts_the_same_answer_together(client: OpenAI, script: Script) -> None:
    script.on("Help me stream.", said("Pieces ", "fit."))
    with client.chat.completions.stream(model="sre", messages=ask("Help me stream.")) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()
    assert "".join(deltas) == answer.choices[0].message.content == "Pieces fit."


def test_what_has_no_model_answers_too(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="evidence", messages=ask("What can you do?"))
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_without_tools_of_the_client_asks_it_to_call_none(client: OpenAI) -> None:
    question = ask("What changed in the last hour?")
    with client.chat.completions.stream(model="evidence", messages=question) as stream:
        stream.until_done()
        answer = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls, "an application would call what it has not got"


def test_an_agent_that_no_list_shows_answers_who_knows_its_name(client: OpenAI, script: Script) -> None:
    script.on("Who are you, shy one?", said("Nobody you saw."))
    answer = client.chat.completions.create(model="shy", messages=ask("Who are you, shy one?"))
    assert answer.choices[0].message.content == "Nobody you saw."


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_a_tool_of_the_client_is_called_by_the_client_and_its_result_comes_back(
    client: OpenAI, script: Script, way: Literal["whole", "streamed"]
) -> None:
    question = f"For how long is db-1 up ({way})?"
    asked = script.on(question, called("uptime", {"host": "db-1"}), said("For nine days."))
    messages = ask(question)
    call = _call_of(client, messages, way=way)
    assert (call.function.name, json.loads(call.function.arguments)) == ("uptime", {"host": "db-1"})
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call.to_dict()]},
        {"role": "tool", "tool_call_id": call.id, "content": "9 days"},
    ]
    answer = client.chat.completions.create(model="sre", messages=messages, tools=[UPTIME])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("For nine days.", "stop")
    results = [message for message in asked.bodies[-1]["messages"] if message["role"] == "tool"]
    assert len(results) == 1
    assert "9 days" in results[0]["content"]


def _call_of(
    client: OpenAI, messages: Any, *, way: Literal["whole", "streamed"]
) -> ChatCompletionMessageFunctionToolCall:
    if way == "whole":
        answer = client.chat.completions.create(model="sre", messages=messages, tools=[UPTIME])
    else:
        with client.chat.completions.stream(model="sre", messages=messages, tools=[UPTIME]) as stream:
            stream.until_done()
            answer = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    return call


def test_an_answer_can_be_held_to_a_schema(client: OpenAI, script: Script) -> None:
    class Health(BaseModel):
        service: str
        is_well: bool

    asked = script.on("Health of cart as JSON?", said('{"service":"cart",', '"is_well":true}'))
    answer = client.chat.completions.parse(model="sre", messages=ask("Health of cart as JSON?"), response_format=Health)
    assert answer.choices[0].message.parsed == Health(service="cart", is_well=True)
    assert asked.bodies[0]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, None, "messages"),
        ({"messages": [{"role": "assistant", "content": "I said so."}]}, None, "messages"),
        ({"model": ""}, "missing_required_parameter", "model"),
        ({"n": 2}, "unsupported_value", "n"),
        ({"temperature": 9.0}, None, "temperature"),
        ({"extra_body": {"temprature": 0.1}}, None, "temprature"),
    ],
)
def test_what_cannot_be_honoured_is_a_bad_request_that_names_it(
    client: OpenAI, change: dict[str, Any], code: str | None, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**({"model": "sre", "messages": ask("Never answered.")} | change))
    assert told.value.type == "invalid_request_error"
    assert told.value.param == param
    assert code in {None, told.value.code}
    assert param in str(told.value)


def test_an_agent_that_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.chat.completions.create(model="nobody", messages=ask("Anybody?"))
    assert told.value.code == "model_not_found"
    assert "nobody" in str(told.value)


def test_who_shows_no_key_or_a_wrong_one_is_told_so(locked_house: House) -> None:
    for key in ("wrong", "qk_wrong"):
        with (
            OpenAI(base_url=locked_house.v1, api_key=key, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as told,
        ):
            client.chat.completions.create(model="sre", messages=ask("May I?"))
        assert told.value.code == "invalid_api_key"


FAILURES: Mapping[str, tuple[Answer, type[openai.APIStatusError]]] = {
    "refuses the key": (plain(401, {"error": {"message": "bad key", "type": "x"}}), openai.InternalServerError),
    "has no more quota": (
        plain(429, {"error": {"message": "quota", "type": "insufficient_quota", "code": "insufficient_quota"}}),
        openai.RateLimitError,
    ),
    "finds it too long": (
        plain(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
        openai.BadRequestError,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_a_provider_that_fails_is_an_error_and_never_an_answer(
    client: OpenAI, script: Script, name: str, way: str
) -> None:
    question = f"What if the provider {name} ({way})?"
    answer, error = FAILURES[name]
    script.on(question, answer)
    if way == "whole":
        with pytest.raises(error):
            client.chat.completions.create(model="sre", messages=ask(question))
        return
    # A stream may have begun, and be 200 already: then the SDK raises its error when the object comes.
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="sre", messages=ask(question), stream=True))


def test_a_model_that_breaks_off_in_the_middle_ends_a_stream_with_an_error(client: OpenAI, script: Script) -> None:
    script.on("Break off!", sse(delta("I was about"), delta(" to say"), delta("…"), cut=2))
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as told:
        chunks.extend(client.chat.completions.create(model="sre", messages=ask("Break off!"), stream=True))
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [], "what failed did not end well"
    assert told.value.message


def test_the_same_key_is_the_same_answer_and_the_model_is_asked_once(client: OpenAI, script: Script) -> None:
    asked = script.on("Only once, please.", said("Once."), said("Twice!"))
    header = {"Idempotency-Key": "one-and-only"}
    answers = [
        client.chat.completions.create(model="sre", messages=ask("Only once, please."), extra_headers=header)
        for _ in range(2)
    ]
    assert [answer.choices[0].message.content for answer in answers] == ["Once.", "Once."]
    assert len(asked.bodies) == 1
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(model="sre", messages=ask("Something else."), extra_headers=header)
    assert told.value.status_code in {409, 422}


def test_who_leaves_in_the_middle_finds_the_whole_answer_under_its_key(client: OpenAI, script: Script) -> None:
    # Claims are held against the evidence sentence by sentence: that is how they are told.
    pieces = (delta("It begins here. "), delta("It goes on. "), delta("It ends without you."))
    asked = script.on("Leave me early.", sse(*pieces, end(), usage(9, 6), gap_s=0.2))
    header = {"Idempotency-Key": "left-early"}
    question = ask("Leave me early.")
    with client.chat.completions.create(model="sre", messages=question, stream=True, extra_headers=header) as stream:
        first = next(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert first.strip() == "It begins here."
    whole = client.chat.completions.create(model="sre", messages=question, extra_headers=header)
    assert whole.choices[0].message.content == "It begins here. It goes on. It ends without you."
    assert len(asked.bodies) == 1


def test_streams_at_the_same_time_never_hear_each_other(open_house: House, script: Script) -> None:
    readers = "ABCDEFGH"
    for reader in readers:
        script.on(f"Sing for reader {reader}.", said(*(f"{reader} " for _ in range(20))))

    async def read(client: AsyncOpenAI, reader: str) -> str:
        stream = await client.chat.completions.create(
            model="sre", messages=ask(f"Sing for reader {reader}."), stream=True
        )
        return text_of([chunk async for chunk in stream])

    async def story() -> list[str]:
        async with AsyncOpenAI(base_url=open_house.v1, api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(read(client, reader) for reader in readers))

    assert [text.split() for text in asyncio.run(story())] == [[reader] * 20 for reader in readers]


def test_the_session_goes_back_to_the_client(client: OpenAI, script: Script) -> None:
    script.on("Remember my session.", said("I do."))
    raw = client.chat.completions.with_raw_response.create(
        model="sre", messages=ask("Remember my session."), metadata={"chat_session_id": "cs_mine"}
    )
    assert raw.headers["X-Chat-Session-Id"] == "cs_mine"
    assert (raw.parse().metadata or {})["chat_session_id"] == "cs_mine"


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
