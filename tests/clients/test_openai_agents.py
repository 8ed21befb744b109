"""The real `openai-agents` library: our agent is the model of somebody else's agent, and uses that one's tools."""

from __future__ import annotations

import asyncio

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, RunResult, function_tool
from agents.run import RunConfig
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

from tests.clients._house import House
from tests.clients._script import Script, called, said
from tests.doors._model_bench import plain

QUIET = RunConfig(tracing_disabled=True)
CALLED: list[str] = []


@function_tool
def disk_free(host: str) -> str:
    """Say how much of a host's disk is free."""
    CALLED.append(host)
    return "12 % of /var is free"


def _client(house: House) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=house.v1, api_key="any", max_retries=0, timeout=30)


def _agent(client: AsyncOpenAI, *, model: str = "sre") -> Agent:
    settings = ModelSettings(include_usage=True)
    model_of = OpenAIChatCompletionsModel(model=model, openai_client=client)
    return Agent(name="Outer", instructions="Be brief.", model=model_of, tools=[disk_free], model_settings=settings)


def test_a_run_calls_its_own_tool_and_ends_with_our_answer(open_house: House, script: Script) -> None:
    question = "How full is web-1?"
    script.on(question, called("disk_free", {"host": "web-1"}), said("It is nearly full.", prompt=40, completion=9))

    async def story() -> RunResult:
        async with _client(open_house) as client:
            return await Runner.run(_agent(client), question, run_config=QUIET)

    result = asyncio.run(story())
    assert result.final_output == "It is nearly full."
    assert "web-1" in CALLED
    usage = result.context_wrapper.usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (2, 60, 14)


def test_a_streamed_run_hears_the_text_as_it_comes(open_house: House, script: Script) -> None:
    question = "Stream how full web-2 is."
    script.on(question, called("disk_free", {"host": "web-2"}), said("Nearly ", "full."))

    async def story() -> tuple[str, object]:
        async with _client(open_house) as client:
            result = Runner.run_streamed(_agent(client), question, run_config=QUIET)
            heard = [
                event.data.delta
                async for event in result.stream_events()
                if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
            ]
            return "".join(heard), result.final_output

    assert asyncio.run(story()) == ("Nearly full.", "Nearly full.")


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_what_our_agent_looks_at_by_itself_is_no_call_for_somebody_elses_agent(open_house: House, way: str) -> None:
    question = "What changed in the last hour?"

    async def story() -> object:
        async with _client(open_house) as client:
            agent = _agent(client, model="evidence")
            if way == "whole":
                return (await Runner.run(agent, question, run_config=QUIET)).final_output
            result = Runner.run_streamed(agent, question, run_config=QUIET)
            async for _ in result.stream_events():
                pass
            return result.final_output

    answer = asyncio.run(story())
    assert isinstance(answer, str)
    assert "chang" in answer


def test_a_model_that_fails_fails_the_run(open_house: House, script: Script) -> None:
    question = "How full is a disk that nobody can ask about?"
    script.on(question, plain(401, {"error": {"message": "bad key", "type": "x"}}))

    async def story(model: str) -> None:
        async with _client(open_house) as client:
            await Runner.run(_agent(client, model=model), question, run_config=QUIET)

    with pytest.raises(openai.InternalServerError):
        asyncio.run(story("sre"))
    with pytest.raises(openai.NotFoundError):
        asyncio.run(story("nobody"))
