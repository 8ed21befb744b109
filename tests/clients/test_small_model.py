"""A real small model behind a real server behind the real SDK: streams, counts, cuts and schemas as no script has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests._real_model import running_model
from tests.clients._house import House, agent_file, house

pytestmark = [pytest.mark.needs_model, pytest.mark.timeout(180)]
WINDOW_TOKENS = 8192
"""Room for what an agent is told and, as they are counted, for the schemas of its own tools."""
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello to the people of the shop."}]


@pytest.fixture(scope="module")
def small_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_model(window_tokens=WINDOW_TOKENS) as real:
        llm = {"provider": "openai", "model": real.name, "api_key": "none", "base_url": real.url}
        text = agent_file("small", {**llm, "context_window": WINDOW_TOKENS, "temperature": 0.0})
        with house(tmp_path_factory.mktemp("house") / "small", {"small": text}) as running:
            yield running


@pytest.fixture
def client(small_house: House) -> Iterator[OpenAI]:
    with OpenAI(base_url=small_house.v1, api_key="any", max_retries=0, timeout=120) as made:
        yield made


def test_a_whole_answer_and_a_stream_tell_the_tokens_that_were_really_used(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="small", messages=HELLO, max_tokens=8, seed=7)
    assert whole.usage is not None
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (8, "length")
    assert whole.usage.prompt_tokens > 10
    assert whole.choices[0].message.content
    with client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=8, seed=7, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 1
    (told,) = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert told.completion_tokens == 8
    assert told.prompt_tokens > 10
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == ["length"]


def test_a_weak_model_is_held_to_a_schema(client: OpenAI) -> None:
    class Health(BaseModel):
        service: str
        is_well: bool

    answer = client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": "Is the service cart well? Answer as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "health", "strict": True, "schema": Health.model_json_schema()},
        },
        max_tokens=200,
        seed=7,
    )
    assert answer.choices[0].finish_reason == "stop"
    Health.model_validate_json(answer.choices[0].message.content or "")
