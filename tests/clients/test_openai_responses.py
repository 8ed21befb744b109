"""The `openai` SDK's newer protocol: `/v1/responses`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseFunctionToolCall, ResponseTextDeltaEvent

from tests.clients._house import House
from tests.clients._script import Script, called, said
from tests.doors._model_bench import delta, plain, sse

UPTIME: Any = {
    "type": "function",
    "name": "uptime",
    "description": "Say for how long a host has been up.",
    "parameters": {"type": "object", "properties": {"host": {"type": "string"}}, "required": ["host"]},
    "strict": False,
}


@pytest.fixture
def client(open_house: House) -> Iterator[OpenAI]:
    with OpenAI(base_url=open_house.v1, api_key="any", max_retries=0, timeout=30) as made:
        yield made


def test_a_response_has_text_usage_and_an_end(client: OpenAI, script: Script) -> None:
    script.on("Respond, shop.", said("Here ", "I am.", prompt=90, completion=6))
    response = client.responses.create(model="sre", input="Respond, shop.")
    assert (response.object, response.status, response.output_text) == ("response", "completed", "Here I am.")
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (90, 6, 96)


def test_a_streamed_response_tells_its_events_in_order_and_ends_with_the_whole(client: OpenAI, script: Script) -> None:
    script.on("Respond in pieces.", said("One ", "two ", "three."))
    with client.responses.create(model="sre", input="Respond in pieces.", stream=True) as stream:
        events = list(stream)
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)) == "One two three."
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert events[-1].response.output_text == "One two three."
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_streaming_helper_of_the_sdk_puts_the_same_response_together(client: OpenAI, script: Script) -> None:
    script.on("Respond, helper.", said("Helped ", "along."))
    with client.responses.stream(model="sre", input="Respond, helper.") as stream:
        for _ in stream:
            pass
        response = stream.get_final_response()
    assert response.output_text == "Helped along."


def test_a_tool_of_the_client_goes_round_in_responses_too(client: OpenAI, script: Script) -> None:
    question = "For how long is db-2 up (response)?"
    script.on(question, called("uptime", {"host": "db-2"}), said("For two days."))
    first = client.responses.create(model="sre", input=question, tools=[UPTIME])
    (call,) = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    assert (call.name, json.loads(call.arguments)) == ("uptime", {"host": "db-2"})
    more: Any = [
        {"role": "user", "content": question},
        call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "2 days"},
    ]
    second = client.responses.create(model="sre", input=more, tools=[UPTIME])
    assert second.output_text == "For two days."


def test_instructions_and_lists_of_parts_are_read(client: OpenAI, script: Script) -> None:
    asked = script.on("Read my parts.", said("Read."))
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Read my parts."}]}]
    response = client.responses.create(model="sre", input=parts, max_output_tokens=50)
    assert response.output_text == "Read."
    assert asked.bodies


def test_errors_of_responses_are_the_sdks_own(client: OpenAI, script: Script) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.responses.create(model="nobody", input="Anybody?")
    assert told.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="sre", input=[])
    script.on("Respond out of quota.", plain(429, {"error": {"message": "quota", "code": "insufficient_quota"}}))
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="sre", input="Respond out of quota.")


def test_a_response_that_breaks_off_fails_and_is_never_completed(client: OpenAI, script: Script) -> None:
    script.on("Respond and break off.", sse(delta("I was about"), delta(" to"), delta("…"), cut=2))
    kinds: list[str] = []
    with pytest.raises(openai.APIError):  # noqa: PT012 - what came before it counts too
        for event in client.responses.create(model="sre", input="Respond and break off.", stream=True):
            kinds.append(event.type)
            if event.type == "response.failed":
                raise openai.APIError("failed", request=None, body=event.response.error)  # type: ignore[arg-type]  # as an application would
    assert "response.completed" not in kinds
