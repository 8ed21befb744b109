"""Rows 3, 5, 13 and 14 of the acceptance list: transcripts, streams beside each other, tools of clients, and a server that stops."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx2
import pytest

from quell.config import AuraSettings
from tests.aura._bench import LOOSE, a_shop, agent_at, calls, named, played, says, server_of, thinking
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Answer, delta, end, plain, provider, sse, usage
from tests.doors._wire_bench import CHAT, Wire, a_wire, frames, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
ASKED = {"messages": [{"role": "user", "content": "Look."}], "stream": True}


def test_row_3_a_transcript_has_auras_frames_in_auras_order(tmp_path: Path) -> None:
    # AURA always tells calls that it makes itself as calls; clients that would then make them too are spared by default.
    aura = AuraSettings(tool_calls=True)

    async def story() -> None:
        turns = (calls(("get_logs", {"service": "web"}), said="I look."), says("All ", "well."))
        async with a_shop() as shop, provider(*turns) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                response = await wire.http.post(CHAT, json=ASKED)
                for name, value in (
                    ("content-type", "text/event-stream"),
                    ("cache-control", "no-cache"),
                    ("x-accel-buffering", "no"),
                ):
                    assert response.headers[name] == value
                found = [each for _, each in frames(response.text)]
                assert found[-1] == "[DONE]"
                chunks = found[:-1]
                assert len({each["id"] for each in chunks}) == 1
                assert re.fullmatch(r"chatcmpl-[0-9a-z-]{20,}", chunks[0]["id"])
                assert {(each["object"], each["model"]) for each in chunks} == {
                    ("chat.completion.chunk", "openai/played")
                }
                deltas = [each["choices"][0]["delta"] for each in chunks]
                assert deltas[0] == {"role": "assistant", "content": "I look."}
                (call,) = deltas[1]["tool_calls"]
                assert (call["index"], call["type"]) == (0, "function")
                assert call["function"]["name"] == "get_logs"
                assert json.loads(call["function"]["arguments"]) == {"service": "web"}
                assert deltas[2] == {"content": "\n\nAll "}
                assert (deltas[-1], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
                # AURA's usage of an orchestrated run is all zeros; ours is the sum of every turn.
                assert chunks[-1]["usage"] == {"prompt_tokens": 50, "completion_tokens": 11, "total_tokens": 61}

    played(story)


def test_row_3_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Late."), end(), usage(1, 1), gap_s=0.4)) as model:
            aura = AuraSettings(heartbeat_s=0.05)
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agent_at(tmp_path, model.url)) as wire:
                assert ": heartbeat" in (await wire.stream()).split("\n\n")

    played(story)


def test_row_3_a_model_that_nobody_has_is_404_and_none_among_several_is_400_in_openais_words(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("Hello.")) as model:
            files = (file_of("one", model.url), file_of("two", model.url))
            async with a_wire(settings_of(tmp_path / "state"), agents_of(tmp_path / "two", *files)) as wire:
                unknown = await wire.ask(model="three")
                assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
                assert "`three` does not exist or you do not have access to it" in unknown.json()["error"]["message"]
                none = await wire.ask()
                assert none.status_code == 400
                error = none.json()["error"]
                assert (error["type"], error["param"], error["code"]) == (
                    "invalid_request_error",
                    "model",
                    "missing_required_parameter",
                )
            async with a_wire(settings_of(tmp_path / "one-state"), agents_of(tmp_path / "one", files[0])) as wire:
                answer = await wire.ask(model="gpt-whatever")
                assert answer.status_code == 200, "with one agent any name is its name"

    played(story)


def test_row_3_the_session_is_taken_from_auras_places_in_auras_order_and_told_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(says("Hello.")) as model,
            a_wire(settings_of(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):

            async def session(headers: dict[str, str], **more: object) -> str:
                response = await wire.http.post(CHAT, json=ASKED | more, headers=headers)
                return response.headers["x-chat-session-id"]

            everywhere = {"X-Chat-Session-Id": "cs_header", "X-OpenWebUI-Chat-Id": "cs_webui"}
            assert await session(everywhere, metadata={"chat_session_id": "cs_body"}) == "cs_body"
            assert await session(everywhere) == "cs_header"
            assert await session({"x-openwebui-chat-id": "cs_webui"}) == "cs_webui"
            assert re.fullmatch(r"cs_[0-9a-f-]{36}", await session({}))
            whole = await wire.ask(metadata={"chat_session_id": "cs_whole"})
            assert whole.json()["metadata"]["chat_session_id"] == "cs_whole"

    played(story)


def test_row_3_a_provider_that_fails_is_an_error_and_not_an_answer_that_stopped(tmp_path: Path) -> None:
    # AURA sends the failure as text of the assistant, with HTTP 200 and `stop`: no pipeline can tell it from an answer.
    async def story() -> None:
        async with (
            provider(plain(401, {"error": {"message": "bad key"}})) as model,
            a_wire(settings_of(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            assert (await wire.ask()).status_code == 502
            found = [each for _, each in frames(await wire.stream())]
            assert (found[-2]["error"]["code"], found[-1]) == ("model_auth", "[DONE]")
            assert not any(each["choices"][0].get("finish_reason") for each in found[:-2])

    played(story)


def test_row_5_streams_beside_each_other_hear_only_their_own_events(tmp_path: Path) -> None:
    async def story() -> None:
        def brain(body: dict[str, object]) -> Answer:
            messages = json.dumps(body["messages"])
            service = re.findall(r"service (s\d)", messages)[0]
            return (
                says(f"{service} ", "is well.") if '"tool"' in messages else calls(("get_logs", {"service": service}))
            )

        async with a_shop() as shop, thinking(brain) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            aura = AuraSettings(custom_events=True, tool_result_mode="aura")
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                told = await asyncio.gather(*(wire.stream(f"How is service s{number}?") for number in range(6)))
                for number, text in enumerate(told):
                    found = frames(text)
                    assert text_of([each for name, each in found if name == "data"]) == f"s{number} is well."
                    assert named(found).count("tool_complete") == 1
                    others = {f"s{other}" for other in range(6)} - {f"s{number}"}
                    assert not any(re.search(rf"\b{other}\b", text) for other in others)
                    assert len({each["session_id"] for name, each in found if name.startswith("aura.")}) == 1

    played(story)


def test_row_13_tools_of_the_client_go_out_and_come_back_and_the_filter_holds(tmp_path: Path) -> None:
    # In AURA the filter has no effect on this path.
    async def story() -> None:
        async with provider(calls(("local_time", {"zone": "UTC"})), says("It is noon.")) as model:
            takes = 'enable_client_tools = true\nclient_tool_filter = ["local_*"]'
            async with a_wire(settings_of(tmp_path / "state"), agent_at(tmp_path, model.url, agent=takes)) as wire:
                tools = [
                    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
                    for name in ("local_time", "shell")
                ]
                found = [each for _, each in frames((await wire.http.post(CHAT, json=ASKED | {"tools": tools})).text)]
                offered = {each["function"]["name"] for each in model.bodies[0]["tools"]}  # type: ignore[attr-defined]  # a list
                assert ("local_time" in offered, "shell" in offered) == (True, False)
                assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
                (wanted,) = [call for each in found[:-2] for call in each["choices"][0]["delta"].get("tool_calls", [])]
                assert wanted["function"]["name"] == "local_time"
                history = [
                    *ASKED["messages"],  # type: ignore[misc]  # a list
                    {"role": "assistant", "content": None, "tool_calls": [wanted]},
                    {"role": "tool", "tool_call_id": wanted["id"], "content": "12:00"},
                ]
                answer = await wire.http.post(CHAT, json={"messages": history, "tools": tools})
                assert answer.json()["choices"][0]["message"]["content"] == "It is noon."

    played(story)


def test_row_13_an_agent_that_takes_no_tools_of_clients_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(says("Hello.")) as model,
            a_wire(settings_of(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            tools = [{"type": "function", "function": {"name": "shell"}}]
            response = await wire.ask(tools=tools)
            assert response.status_code == 200
            assert response.headers["x-quell-warning"] == "tools ignored: agent.enable_client_tools is off"
            assert "shell" not in json.dumps(model.bodies[0].get("tools", []))

    played(story)


async def _refused(wire: Wire) -> httpx2.Response:
    while (response := await wire.http.get("/v1/models")).status_code != 503:
        await asyncio.sleep(0.01)
    return response


def test_row_14_a_stop_refuses_what_is_new_ends_what_runs_with_done_and_is_over_as_soon_as_nothing_runs(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        words = [delta(f"word{number} ") for number in range(20)]
        async with (
            provider(sse(*words, end(), usage(1, 20), gap_s=0.03)) as model,
            a_wire(settings_of(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            streaming = asyncio.create_task(wire.stream())
            while not model.bodies:
                await asyncio.sleep(0.01)
            wire.serving.cancel()
            refused = await _refused(wire)
            assert refused.headers["retry-after"]
            for path in ("/aura/info", "/v1/models"):
                assert (await wire.http.get(path)).status_code == 503
            assert (await wire.http.post(CHAT, json=ASKED)).status_code == 503
            found = [each for _, each in frames(await streaming)]
            assert found[-1] == "[DONE]"
            assert "word19" in text_of(found)
            # Long before the 30 seconds of SHUTDOWN_TIMEOUT_SECS.
            await asyncio.wait({wire.serving}, timeout=10)
            assert wire.serving.done()

    played(story)


def test_row_14_what_does_not_end_in_time_is_closed_with_an_error_and_done(tmp_path: Path) -> None:
    # AURA ends such a stream with `stop`. Here it says that this is no answer, and the run goes on after the restart.
    async def story() -> None:
        words = [delta(f"word{number} ") for number in range(400)]
        async with provider(sse(*words, end(), usage(1, 20), gap_s=0.05), says("Whole.")) as model:
            aura = AuraSettings(shutdown_timeout_s=0.2)
            agents = agent_at(tmp_path, model.url)
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                streaming = asyncio.create_task(wire.stream())
                while not model.bodies:
                    await asyncio.sleep(0.01)
                wire.serving.cancel()
                found = [each for _, each in frames(await streaming)]
                assert (found[-2]["error"]["code"], found[-1]) == ("server_stopping", "[DONE]")
                run = re.findall(r"run_[0-9a-z]{20,}", found[-2]["error"]["message"])[0]
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                await wire.app.runs.wait(run, timeout_s=15)
                assert "Whole." in (await wire.http.get(f"{CHAT}/{run}")).text

    played(story)
