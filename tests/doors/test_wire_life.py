"""How long an answer lives: clients that leave, come back, wait too long or ask too often, and a server that stops."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from quell.config import AuraSettings, ServerSettings
from quell.domain import Heard, RunStatus
from quell.server._listening import Listening
from quell.server._streaming import Outlet
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import delta, end, provider, silence, sse, usage
from tests.doors._wire_bench import CHAT, Wire, a_wire, frames, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
LOOSE = '[quell]\nevidence = "off"\n'
USER = [{"role": "user", "content": "Hello?"}]
SLOW = [delta(f"word{number} ") for number in range(40)]


async def begun(response: httpx2.Response) -> AsyncIterator[str]:
    """Read until the first text has come, and return what reads on: without it the client would leave."""
    lines = response.aiter_lines()
    async for line in lines:
        if "word0" in line:
            break
    return lines


@pytest.mark.parametrize("leaving", ["continue", "cancel"])
def test_a_client_that_leaves_leaves_a_run_that_goes_on_or_ends_as_it_was_asked(tmp_path: Path, leaving: str) -> None:
    async def story() -> None:
        async with provider(sse(*SLOW, end(), usage(1, 40), gap_s=0.05)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                body = {"messages": USER, "stream": True, "metadata": {"on_disconnect": leaving}}
                async with wire.http.stream("POST", CHAT, json=body) as response:
                    reading = await begun(response)
                    assert reading is not None
                    run = response.headers["x-quell-run"]
                ended = await wire.app.runs.wait(run, timeout_s=10)
                assert ended.status is (RunStatus.SUCCEEDED if leaving == "continue" else RunStatus.CANCELLED)
                if leaving == "cancel":
                    async with asyncio.timeout(5):
                        await model.left.wait()

    asyncio.run(story())


def test_who_lost_a_stream_goes_on_after_what_it_heard_last(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(*SLOW, end(), usage(1, 40), gap_s=0.02)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                lines: list[str] = []
                headers = {"X-Quell-Event-Ids": "on"}
                body = {"messages": USER, "stream": True}
                async with wire.http.stream("POST", CHAT, json=body, headers=headers) as response:
                    run = response.headers["x-quell-run"]
                    async for line in response.aiter_lines():
                        lines.append(line)
                        if line.startswith("id: ") and "word5" in "".join(lines):
                            break
                last = lines[-1].removeprefix("id: ")
                rest = await wire.http.get(f"{CHAT}/{run}", headers={"Last-Event-ID": last})
                found = [each for _, each in frames("\n".join(lines) + "\n\n" + rest.text)]
                assert text_of(found) == "".join(f"word{number} " for number in range(40))
                assert found[-1] == "[DONE]"
                whole = await wire.http.get(f"{CHAT}/{run.replace('run_', 'chatcmpl-')}")
                assert text_of([each for _, each in frames(whole.text)]) == text_of(found)
                assert (await wire.http.get(f"{CHAT}/run_none")).status_code == 404

    asyncio.run(story())


@pytest.mark.parametrize(
    ("aura", "answers"),
    [
        (AuraSettings(first_chunk_timeout_s=0.3), "nothing came within"),
        (AuraSettings(streaming_timeout_s=0.3), "took longer than"),
        (AuraSettings(stream_inactivity_timeout_s=0.3), "nothing came for"),
    ],
)
def test_a_client_is_not_kept_for_ever_and_is_told_that_this_is_no_answer(
    tmp_path: Path, aura: AuraSettings, answers: str
) -> None:
    async def story() -> None:
        async with provider(silence()) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                whole = await wire.ask()
                assert whole.status_code == 504
                assert answers in whole.json()["error"]["message"]
                assert whole.headers["x-quell-run"] in whole.json()["error"]["message"]
                found = [each for _, each in frames(await wire.stream())]
                assert found[-2]["error"]["code"] == "timeout"
                assert found[-1] == "[DONE]"

    asyncio.run(story())


def test_nothing_is_timed_where_the_limits_are_off_and_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    async def story() -> None:
        aura = AuraSettings(first_chunk_timeout_s=0, streaming_timeout_s=0, heartbeat_s=0.05)
        async with provider(sse(delta("Late."), end(), usage(1, 1), gap_s=0.5)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                found = frames(await wire.stream())
                assert ("comment", ": heartbeat") in found
                assert text_of([each for _, each in found]) == "Late."

    asyncio.run(story())


def test_one_key_is_one_run(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            headers = {"Idempotency-Key": "k1"}
            first = await wire.http.post(CHAT, json={"messages": USER}, headers=headers)
            again = await wire.http.post(CHAT, json={"messages": USER}, headers=headers)
            assert first.json() == again.json()
            other = [{"role": "user", "content": "Something else?"}]
            refused = await wire.http.post(CHAT, json={"messages": other}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "mismatch")

    asyncio.run(story())


def test_who_asks_too_often_or_too_much_at_once_is_told_when_to_come_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path / "rate", server=ServerSettings(port=0, chats_per_minute=2))) as wire:
            told = [await wire.ask() for _ in range(3)]
            assert [each.status_code for each in told] == [200, 200, 429]
            assert told[2].json()["error"]["type"] == "rate_limit_error"
            assert int(told[2].headers["retry-after"]) > 0
        async with provider(sse(*SLOW * 10, end(), usage(1, 40), gap_s=0.05)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            settings = settings_of(tmp_path / "state", server=ServerSettings(port=0, chats_max=1))
            async with (
                a_wire(settings, agents) as wire,
                wire.http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as response,
            ):
                lines = await begun(response)
                assert (await wire.ask()).status_code == 429
                assert "word1 " in "".join([await anext(lines) for _ in range(4)])

    asyncio.run(story())


def test_a_server_that_stops_lets_answers_end_and_takes_no_new_questions(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(*SLOW, end(), usage(1, 40), gap_s=0.02)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                streaming = asyncio.create_task(wire.stream())
                await _asked(model.bodies)
                wire.serving.cancel()
                refused = await _refused(wire)
                assert refused.headers["retry-after"]
                assert refused.json()["error"]["code"] == "server_stopping"
                found = [each for _, each in frames(await streaming)]
                assert found[-1] == "[DONE]"
                assert found[-2]["choices"][0]["finish_reason"] == "stop"
                await asyncio.wait({wire.serving}, timeout=5)
                assert wire.serving.done(), "it stops as soon as it is idle"

    asyncio.run(story())


def test_an_answer_that_does_not_end_in_time_ends_with_an_error_and_its_run_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        aura = AuraSettings(shutdown_timeout_s=0.2)
        async with provider(sse(*SLOW, end(), usage(1, 40), gap_s=0.1)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            settings = settings_of(tmp_path / "state", aura=aura)
            async with a_wire(settings, agents) as wire:
                streaming = asyncio.create_task(wire.stream())
                await _asked(model.bodies)
                wire.serving.cancel()
                text = await streaming
                found = [each for _, each in frames(text)]
                assert found[-1] == "[DONE]"
                assert found[-2]["error"]["code"] == "server_stopping"
                run = re.findall(r"run_[0-9a-z]{20,}", found[-2]["error"]["message"])[0]
                assert (await wire.app.runs.get(run)).status is not RunStatus.CANCELLED
            async with a_wire(settings, agents) as wire:
                ended = await wire.app.runs.wait(run, timeout_s=20)
                assert ended.status is RunStatus.SUCCEEDED
                whole = await wire.http.get(f"{CHAT}/{run}")
                assert "word39" in text_of([each for _, each in frames(whole.text)])

    asyncio.run(story())


def test_what_is_ready_at_once_goes_out_at_once_and_a_stop_ends_a_connection_that_takes_nothing() -> None:
    async def story() -> None:
        more, sent = asyncio.Event(), list[bytes]()
        can_send = asyncio.Event()
        can_send.set()

        async def happens() -> AsyncGenerator[Heard, None]:
            for number in range(3):
                yield Heard(id=str(number), name="text", body={})
            await more.wait()
            yield Heard(id="3", name="text", body={})
            await asyncio.Event().wait()

        async def send(message: MutableMapping[str, Any]) -> None:
            await can_send.wait()
            sent.append(message["body"])

        async def never() -> MutableMapping[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError("nobody leaves")

        listening = Listening(AuraSettings())
        outlet = Outlet(send, on_sent=listening.sent)
        listening.before_waiting = outlet.flush

        async def take(heard: Heard) -> None:
            outlet.put(heard.id.encode())

        hearing = asyncio.create_task(listening.hear(happens(), take, receive=never))
        await asyncio.sleep(0.05)
        assert sent == [b"012"]
        can_send.clear()
        more.set()
        await asyncio.sleep(0.05)
        listening.stop("stopping")
        assert await asyncio.wait_for(hearing, timeout=5) == "stopping"
        assert sent == [b"012"]

    asyncio.run(story())


async def _asked(bodies: list[dict[str, object]]) -> None:
    while not bodies:
        await asyncio.sleep(0.01)


async def _refused(wire: Wire) -> httpx2.Response:
    while True:
        response = await wire.http.get("/v1/models")
        if response.status_code == 503:
            return response
        await asyncio.sleep(0.01)
