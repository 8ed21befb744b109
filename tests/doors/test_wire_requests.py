"""What may be asked: every parameter is honoured, or refused by its name, in the words of OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.config import IdentitySettings
from quell.config._agent_settings import SkillSettings, SkillSource
from quell.server._chat_request import read_chat
from quell.server._openai_errors import ChatError
from tests.doors._desk_bench import ANN, agents_of, asked, file_of
from tests.doors._model_bench import delta, end, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, settings_of

pytestmark = pytest.mark.timeout(60)
USER = [{"role": "user", "content": "Hello?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NOWHERE = "http://127.0.0.1:9/v1"


def body(**fields: object) -> bytes:
    return json.dumps({"messages": USER, **fields}).encode()


CALLED = "messages[1].tool_calls[0]"


def history(*, call: Mapping[str, object] | None = None, **function: object) -> bytes:
    """Write a question whose history has a call of this function, with its result."""
    called = {"id": "c1", "type": "function", "function": function, **(call or {})}
    said = {"role": "assistant", "content": None, "tool_calls": [called]}
    return body(messages=[*USER, said, {"role": "tool", "tool_call_id": "c1", "content": "x"}])


def refusal(raw: bytes) -> ChatError:
    with pytest.raises(ChatError) as caught:
        read_chat(raw)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "status", "reason", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"[1]", 422, "wrong_type", None),
        (b"{}", 400, "missing_required_parameter", "messages"),
        (body(messages=[]), 400, "invalid_value", "messages"),
        (body(messages="hi"), 422, "wrong_type", "messages"),
        (body(messages=[{"role": "bot", "content": "x"}]), 400, "invalid_value", "messages[0].role"),
        (body(messages=[{"role": "user", "content": 5}]), 422, "wrong_type", "messages[0].content"),
        (body(messages=[*USER, {"role": "assistant", "content": "x"}]), 400, "invalid_value", "messages"),
        (
            body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            400,
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (
            body(messages=[*USER, {"role": "tool", "tool_call_id": "no", "content": "x"}]),
            400,
            "invalid_value",
            "messages[1]",
        ),
        (history(name="look", strict=True), 400, "unsupported_parameter", f"{CALLED}.function.strict"),
        (history(name="look", arguments={}), 422, "wrong_type", f"{CALLED}.function.arguments"),
        (
            body(messages=[{"role": "assistant", "function_call": {"name": "look", "more": 1}}, *USER]),
            400,
            "unsupported_parameter",
            "messages[0].function_call.more",
        ),
        (body(stream="yes"), 422, "wrong_type", "stream"),
        (body(temperature=3), 400, "invalid_value", "temperature"),
        (body(max_tokens=0), 400, "invalid_value", "max_tokens"),
        (body(max_tokens=5, max_completion_tokens=6), 400, "invalid_value", "max_tokens"),
        (body(n=2), 400, "unsupported_value", "n"),
        (body(logprobs=True), 400, "unsupported_value", "logprobs"),
        (body(presence_penalty=0.5), 400, "unsupported_value", "presence_penalty"),
        (body(logit_bias={"5": 1}), 400, "unsupported_value", "logit_bias"),
        (body(service_tier="flex"), 400, "unsupported_value", "service_tier"),
        (body(functions=[]), 400, "unsupported_parameter", "functions"),
        (body(top_k=5), 400, "unsupported_parameter", "top_k"),
        (body(audio={"voice": "x"}), 400, "unsupported_parameter", "audio"),
        (body(tools=[{"type": "web_search"}]), 400, "unsupported_value", "tools[0].type"),
        (body(tool_choice="maybe"), 400, "invalid_value", "tool_choice"),
        (body(tool_choice={"type": "custom"}), 400, "unsupported_value", "tool_choice.type"),
        (body(tool_choice={"type": "function"}), 400, "missing_required_parameter", "tool_choice.function"),
        (
            body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look", "more": 1}}),
            400,
            "unsupported_parameter",
            "tool_choice.function.more",
        ),
        (body(tools=[TOOL, TOOL]), 400, "invalid_value", "tools"),
        (body(tools=[TOOL], parallel_tool_calls=False), 400, "unsupported_value", "parallel_tool_calls"),
        (body(response_format={"type": "xml"}), 400, "invalid_value", "response_format.type"),
        (
            body(response_format={"type": "json_schema"}),
            400,
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (body(stream_options={"more": 1}), 400, "unsupported_parameter", "stream_options.more"),
        (body(metadata={"on_disconnect": "explode"}), 400, "invalid_value", "metadata.on_disconnect"),
        (body(metadata={"a": 1}), 422, "wrong_type", "metadata"),
        (body(reasoning_effort="huge"), 400, "invalid_value", "reasoning_effort"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(raw: bytes, status: int, reason: str, param: str | None) -> None:
    found = refusal(raw)
    assert (found.status, found.reason, found.param) == (status, reason, param)


def test_what_clients_keep_at_the_calls_of_a_history_is_taken_as_they_send_it_back() -> None:
    """OpenAI's SDK keeps parsed arguments and places, LiteLLM and openai-agents marks of providers."""
    marks = {"provider_specific_fields": {"thought_signature": "x"}, "extra_content": {"google": {}}}
    raw = history(call={"index": 0, **marks}, name="look", arguments='{"a": 1}', parsed_arguments={"a": 1}, **marks)
    _, said, told = read_chat(raw).ask.messages
    assert [(call.id, call.name, call.arguments) for call in said.calls] == [("c1", "look", '{"a": 1}')]
    assert (told.call, told.tool) == ("c1", "look")


def test_every_mistake_of_a_request_is_told_at_once() -> None:
    said = str(refusal(body(n=3, top_k=5, temperature="warm", stop=7)))
    assert all(name in said for name in ("n:", "top_k:", "temperature:", "stop:"))


def test_what_means_nothing_here_is_accepted_where_it_says_what_is_so_anyway() -> None:
    raw = body(
        n=1, presence_penalty=0, frequency_penalty=0.0, logprobs=False, logit_bias={}, modalities=["text"],
        service_tier="auto", store=False, parallel_tool_calls=False, prompt_cache_key="k", top_logprobs=None, seed=None,
    )  # fmt: skip
    assert read_chat(raw).ask.messages[0].text == "Hello?"


def test_what_is_asked_reaches_the_model(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta('{"a":1}'), end(), usage(1, 1))) as model:
            more = '[quell]\nevidence = "off"\nsystem_messages = "append"\n'
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=more))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
                fields: dict[str, Any] = {
                    "messages": [{"role": "developer", "content": "Be brief."}, *USER],
                    "temperature": 0.25,
                    "top_p": 0.5,
                    "seed": 7,
                    "stop": ["END"],
                    "max_completion_tokens": 99,
                    "reasoning_effort": "low",
                    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
                }
                assert (await wire.http.post(CHAT, json=fields)).status_code == 200
                (sent,) = model.bodies
                assert (sent["temperature"], sent["top_p"], sent["seed"], sent["stop"]) == (0.25, 0.5, 7, ["END"])
                assert 99 in (sent.get("max_tokens"), sent.get("max_completion_tokens"))
                assert "Be brief." in sent["messages"][0]["content"]  # type: ignore[index]
                assert '"integer"' in json.dumps(sent["response_format"])

    asyncio.run(story())


@pytest.mark.parametrize("policy", ["", 'system_messages = "ignore"\n', 'system_messages = "append"\n'])
def test_system_messages_of_a_request_count_only_where_the_agents_file_says_so(tmp_path: Path, policy: str) -> None:
    async def story() -> str:
        async with provider(sse(delta("Yes."), end(), usage(1, 1))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=f"[quell]\n{policy}"))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                told = [{"role": "system", "content": "Talk like a pirate."}, *USER]
                assert (await wire.http.post(CHAT, json={"messages": told})).status_code == 200
            return json.dumps(model.bodies)

    sent = asyncio.run(story())
    assert ("Talk like a pirate." in sent) == ("append" in policy)
    assert "You look after a small shop." in sent


def test_an_agent_is_chosen_by_model_and_a_hidden_one_is_there_for_who_knows_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Here."), end(), usage(1, 1))) as model:
            files = (
                file_of("one", model.url, agent='description = "The first."\ncreated_at = 1755800000000'),
                file_of("two", model.url, agent='alias = "team/two"\nhidden = true'),
            )
            async with a_wire(settings_of(tmp_path / "state"), agents_of(tmp_path / "a", *files)) as wire:
                listed = (await wire.http.get("/v1/models")).json()
                assert [each["id"] for each in listed["data"]] == ["one"]
                assert listed["data"][0]["created"] == 1755800000, "in seconds, as OpenAI has it"
                assert listed["data"][0]["description"] == "The first."
                assert (await wire.http.get("/v1/models/team/two")).json()["id"] == "team/two"
                assert (await wire.http.get("/v1/models/none")).json()["error"]["code"] == "model_not_found"
                assert (await wire.ask(model="team/two")).status_code == 200
                unknown = await wire.ask(model="gpt-9")
                assert unknown.status_code == 404
                said = "The model `gpt-9` does not exist or you do not have access to it."
                assert unknown.json()["error"]["message"] == said
                none = await wire.ask()
                assert none.status_code == 400
                error = none.json()["error"]
                assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
                assert error["message"].startswith("you must provide a model parameter")
                info = (await wire.http.get("/aura/info?detail=tools")).json()
                assert [each["id"] for each in info["agents"]] == ["one"]
                assert info["agents"][0]["mcp_servers"] == {}
                assert (await wire.http.get("/aura/info?detail=all")).status_code == 400

    asyncio.run(story())


def test_where_there_is_one_agent_any_model_means_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            assert (await wire.ask("Is anything wrong?", model="gpt-4o")).status_code == 200

    asyncio.run(story())


def test_a_session_is_what_the_metadata_say_then_our_header_then_open_webuis_then_a_new_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:

            async def session(headers: dict[str, str], **fields: object) -> str:
                answer = await wire.http.post(CHAT, json={"messages": USER, **fields}, headers=headers)
                assert answer.json()["metadata"]["chat_session_id"] == answer.headers["x-chat-session-id"]
                return answer.headers["x-chat-session-id"]

            both = {"X-Chat-Session-Id": "ours", "X-OpenWebUI-Chat-Id": "webui"}
            assert await session(both, metadata={"chat_session_id": "mine"}) == "mine"
            assert await session(both) == "ours"
            assert await session({"X-OpenWebUI-Chat-Id": "webui"}) == "webui"
            assert (await session({})).startswith("cs_")
            bad = await wire.http.post(CHAT, json={"messages": USER}, headers={"X-Chat-Session-Id": "a b"})
            assert bad.status_code == 400

    asyncio.run(story())


def test_only_json_is_a_question_and_nobody_asks_without_a_name(tmp_path: Path) -> None:
    async def story() -> None:
        settings = settings_of(tmp_path, identity=IdentitySettings(api_keys=True))
        async with a_wire(settings) as wire:
            nobody = await wire.ask()
            assert nobody.status_code == 401
            assert nobody.json()["error"]["type"] == "authentication_error"
            assert nobody.headers["www-authenticate"].startswith("Bearer")
        async with a_wire(settings_of(tmp_path / "open")) as wire:
            text = await wire.http.post(CHAT, content=b"hi", headers={"Content-Type": "text/plain"})
            assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media_type")

    asyncio.run(story())


def test_a_tool_that_must_be_called_and_is_not_taken_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        agents = agents_of(tmp_path / "agents", file_of("sre", NOWHERE))
        async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
            tools = [{"type": "function", "function": {"name": "t"}}]
            refused = await wire.ask(tools=tools, tool_choice="required")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")

    asyncio.run(story())


def test_an_answer_is_there_for_who_asked_and_for_nobody_else(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            theirs = await wire.app.agents.start(asked("Is anything wrong?"), by=ANN)
            mine = (await wire.ask("Is anything wrong?")).headers["x-quell-run"]
            for run, status in ((theirs.id, 404), (mine, 200)):
                assert (await wire.http.get(f"{CHAT}/{run}")).status_code == status
                assert (await wire.http.get(f"/v1/responses/{run.replace('run_', 'resp_')}")).status_code == status
                begun = {"input": "And?", "previous_response_id": run.replace("run_", "resp_")}
                assert (await wire.http.post("/v1/responses", json=begun)).status_code == status
            await wire.app.agents.answer(theirs.id, timeout_s=10)

    asyncio.run(story())


def test_an_agent_that_cannot_be_opened_is_a_fault_of_this_server(tmp_path: Path) -> None:
    async def story() -> None:
        agents = agents_of(tmp_path / "agents", file_of("sre", NOWHERE))
        broken = replace(
            agents[0], agent=replace(agents[0].agent, skills=SkillSettings(local=(SkillSource(source="/no"),)))
        )
        async with a_wire(settings_of(tmp_path / "state"), (broken,)) as wire:
            response = await wire.ask()
            assert (response.status_code, response.json()["error"]["type"]) == (500, "internal_error")

    asyncio.run(story())


def test_an_agent_that_asks_people_in_its_stream_answers_as_a_stream_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Here."), end(), usage(1, 1))) as model:
            hitl = '[hitl]\nrequire_approval = ["scale*"]\n[hitl.route]\nmode = "conversational"\n'
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=hitl))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                refused = await wire.ask()
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
                assert "[DONE]" in await wire.stream()

    asyncio.run(story())
