"""Chat completions as clients read them, byte for byte: golden transcripts of streams, and whole answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from quell.config import AuraSettings
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Provider, delta, end, plain, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, chunk, frames, golden, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
LOOSE = '[quell]\nevidence = "off"\n'
CLOCK = {"type": "function", "function": {"name": "local_time", "description": "The time.", "parameters": {}}}
TOLD = (
    '"quell":{"run":"run_1","stop":"%s","is_partial":%s,"turns":%d,"tool_calls":%d,"tool_failures":0,'
    '"confidence":"%s","cited":%s,"unverified":0,"is_usage_told":true}'
)


def sent_of(model: Provider) -> list[dict[str, Any]]:
    """Return what the model was sent."""
    return model.bodies


def test_a_plain_answer_streams_as_aura_frames_it(tmp_path: Path) -> None:
    async def story() -> None:
        # Pieces that come before anybody listens go out as one: the model takes its time.
        said = sse(delta("Hel"), delta('lo "you"\n'), delta("é🙂"), end(), usage(10, 3), gap_s=0.2)
        async with provider(said) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                response = await wire.ask(stream=True)
                assert response.headers["content-type"] == "text/event-stream"
                assert response.headers["cache-control"] == "no-cache"
                assert response.headers["x-accel-buffering"] == "no"
                assert response.headers["x-chat-session-id"].startswith("cs_")
                assert response.headers["x-quell-run"].startswith("run_")
                used = '"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}'
                assert golden(response.text) == (
                    chunk('{"role":"assistant","content":"Hel"}')
                    + chunk('{"content":"lo \\"you\\"\\n"}')
                    + chunk('{"content":"é🙂"}')
                    + chunk("{}", finish="stop", more=f",{used}," + TOLD % ("answered", "false", 1, 0, "none", "[]"))
                    + "data: [DONE]\n\n"
                )

    asyncio.run(story())


def test_a_whole_answer_is_the_same_answer_with_true_usage(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Hello."), end(), usage(10, 2))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                told = (await wire.ask(metadata={"chat_session_id": "cs_mine"}, user="ann")).json()
                assert told["object"] == "chat.completion"
                assert told["id"].startswith("chatcmpl-")
                assert told["model"] == "openai/played"
                (choice,) = told["choices"]
                assert choice["message"] == {"role": "assistant", "content": "Hello.", "refusal": None}
                assert choice["finish_reason"] == "stop"
                assert told["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
                assert told["metadata"] == {"chat_session_id": "cs_mine"}

    asyncio.run(story())


def test_calls_of_the_servers_tools_are_told_where_that_is_wanted_and_text_after_them_stands_apart(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "system_overview", "arguments": "{}"}}
        turns = (
            sse(delta("I look."), delta(tool_calls=[call]), end("tool_calls"), usage(9, 3)),
            sse(delta("All is "), delta("well."), end(), usage(20, 3)),
        )
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state", aura=AuraSettings(tool_calls=True)), agents) as wire:
                text = golden(await wire.stream())
                told = '[{"index":0,"id":"call_r_1_1","type":"function","function":{"name":"system_overview","arguments":"{}"}}]'
                used = '"usage":{"prompt_tokens":29,"completion_tokens":6,"total_tokens":35}'
                assert text == (
                    chunk('{"role":"assistant","content":"I look."}')
                    + chunk('{"tool_calls":' + told + "}")
                    + chunk('{"content":"\\n\\nAll is "}')
                    + chunk('{"content":"well."}')
                    + chunk("{}", finish="stop", more=f",{used}," + TOLD % ("answered", "false", 2, 1, "none", "[]"))
                    + "data: [DONE]\n\n"
                )

    asyncio.run(story())


def test_open_webui_is_shown_the_result_as_a_second_chunk_of_the_call(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "system_overview", "arguments": "{}"}}
        turns = (sse(delta(tool_calls=[call]), end("tool_calls"), usage(9, 3)), sse(delta("Well."), end(), usage(1, 1)))
        aura = AuraSettings(tool_result_mode="open-web-ui", tool_result_max_length=21)
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                found = frames(await wire.stream())
                deltas = [each["choices"][0]["delta"] for _, each in found if isinstance(each, dict)]
                assert deltas[0] == {"role": "assistant", "content": ""}
                (first,), (second,) = deltas[1]["tool_calls"], deltas[2]["tool_calls"]
                assert (first["index"], first["id"]) == (second["index"], second["id"])
                assert first["function"] == {"name": "system_overview", "arguments": ""}
                assert second["function"]["name"] == ""
                assert 0 < len(second["function"]["arguments"].encode()) <= 21

    asyncio.run(story())


def test_usage_stands_in_a_chunk_of_its_own_where_the_client_asks_for_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Hello."), end(), usage(10, 2))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                found = frames(await wire.stream(stream_options={"include_usage": True}))
                *before, last, done = [each for _, each in found]
                assert done == "[DONE]"
                assert all(each["usage"] is None for each in before)
                assert last["choices"] == []
                assert last["usage"]["total_tokens"] == 12

    asyncio.run(story())


def test_a_model_that_fails_is_an_error_and_never_an_answer(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(plain(401, {"error": {"message": "bad key"}})) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                whole = await wire.ask()
                assert whole.status_code == 502
                assert whole.json()["error"]["code"] == "model_auth"
                assert whole.headers["x-quell-run"].startswith("run_")
                found = [each for _, each in frames(await wire.stream())]
                assert found[-1] == "[DONE]"
                assert found[-2]["error"]["code"] == "model_auth"
                assert found[-2]["error"]["type"] == "server_error"
                assert not any(each["choices"][0].get("finish_reason") for each in found[:-2])

    asyncio.run(story())


def test_an_answer_at_a_bound_is_labelled_and_finishes_as_cut_off(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "system_overview", "arguments": "{}"}}
        again = sse(delta(tool_calls=[call]), end("tool_calls"), usage(9, 3))
        async with provider(again, again, again, sse(delta("So far: nothing."), end(), usage(1, 1))) as model:
            file = file_of("sre", model.url, more=LOOSE, agent="turn_depth = 2")
            async with a_wire(settings_of(tmp_path / "state"), agents_of(tmp_path / "agents", file)) as wire:
                found = [each for _, each in frames(await wire.stream())]
                last = found[-2]
                assert last["choices"][0]["finish_reason"] == "length"
                assert (last["quell"]["stop"], last["quell"]["is_partial"]) == ("turns", True)
                assert "[Partial answer: stopped by rounds of tools.]" in text_of(found)

    asyncio.run(story())


def test_a_try_that_broke_off_is_not_passed_off_as_a_part_of_the_answer(tmp_path: Path) -> None:
    async def story() -> None:
        broken = sse(delta("Half a "), delta("sentence"), cut=2)
        async with provider(broken, sse(delta("Whole."), end(), usage(5, 2))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                text = text_of([each for _, each in frames(await wire.stream())])
                assert text.startswith("Half a sentence\n\n[What stands above broke off")
                assert text.endswith("begins anew.]\n\nWhole.")

    asyncio.run(story())


def test_a_tool_of_the_client_goes_out_and_its_result_comes_back(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "local_time", "arguments": '{"zone":"UTC"}'}}
        turns = (
            sse(delta(tool_calls=[call]), end("tool_calls"), usage(9, 3)),
            sse(delta("It is noon."), end(), usage(20, 3)),
        )
        async with provider(*turns) as model:
            more = 'enable_client_tools = true\nclient_tool_filter = ["local_*"]'
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, agent=more, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                other = {"type": "function", "function": {"name": "rm_all"}}
                response = await wire.ask("What time is it?", stream=True, tools=[CLOCK, other])
                assert "rm_all" in response.headers["x-quell-warning"]
                offered = {each["function"]["name"] for each in sent_of(model)[0]["tools"]}
                assert "local_time" in offered
                assert "rm_all" not in offered
                found = [each for _, each in frames(response.text)]
                assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
                (wanted,) = found[-3]["choices"][0]["delta"]["tool_calls"]
                assert wanted["function"] == {"name": "local_time", "arguments": '{"zone":"UTC"}'}
                assert set(wanted["id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
                history = [
                    {"role": "user", "content": "What time is it?"},
                    {"role": "assistant", "content": None, "tool_calls": [wanted]},
                    {"role": "tool", "tool_call_id": wanted["id"], "content": "12:00"},
                ]
                answer = await wire.http.post(CHAT, json={"messages": history, "tools": [CLOCK]})
                assert answer.json()["choices"][0]["message"]["content"] == "It is noon."
                assert "12:00" in json.dumps(model.bodies[1]["messages"])

    asyncio.run(story())


def test_calls_that_the_server_carried_out_may_come_back_in_the_history(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Hello."), end(), usage(10, 2))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                done = {"id": "call_1", "type": "function", "function": {"name": "overview", "arguments": "{}"}}
                history = [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b", "tool_calls": [done], "refusal": None},
                    {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
                ]
                assert (await wire.http.post(CHAT, json={"messages": history})).status_code == 200
                sent = sent_of(model)[0]["messages"]
                assert [(each["role"], each["content"]) for each in sent[1:]] == [
                    ("user", "a"),
                    ("assistant", "b"),
                    ("user", "c\nd"),
                ]
                assert "call_1" not in json.dumps(sent)

    asyncio.run(story())


def test_two_streams_at_once_never_hear_each_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(sse(*[delta("one ")] * 20, end(), usage(1, 20), gap_s=0.01)) as first,
            provider(sse(*[delta("two ")] * 20, end(), usage(1, 20), gap_s=0.01)) as second,
        ):
            files = (file_of("first", first.url, more=LOOSE), file_of("second", second.url, more=LOOSE))
            aura = AuraSettings(custom_events=True)
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents_of(tmp_path / "a", *files)) as wire:
                told = await asyncio.gather(*(wire.stream(model=name) for name in ("first", "second") * 4))
                for number, text in enumerate(told):
                    said = [each for name, each in frames(text) if name == "data"]
                    assert text_of(said) == ("one " if number % 2 == 0 else "two ") * 20
                    ids = {each["id"] for each in said if isinstance(each, dict)}
                    assert len(ids) == 1
                    sessions = {each["session_id"] for name, each in frames(text) if name.startswith("aura.")}
                    assert len(sessions) == 1

    asyncio.run(story())
