"""Whatever protocol a question comes by, it counts for the person who asks; who asks too often is told when to come back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client

pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

from a2a.client.errors import A2AClientError

from quell.config import AgentSettings, ServerSettings, Settings
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Provider, provider, silence
from tests.doors._wire_bench import CHAT, Wire, a_wire, settings_of
from tests.doors.test_a2a import client_of, says, sent

pytestmark = pytest.mark.timeout(60)

NEW = {"A2A-Version": "1.0"}
RETRY = "type.googleapis.com/google.rpc.RetryInfo"


def _bounded(at: Path, *, at_once: int = 2_000, per_minute: int = 0) -> Settings:
    server = ServerSettings(port=0, a2a=True, chats_max=at_once, chats_per_minute=per_minute)
    return settings_of(at, server=server)


def _rpc(method: str, text: str, *, old: bool = False) -> dict[str, object]:
    part = {"kind": "text", "text": text} if old else {"text": text}
    message = {"messageId": f"m-{text}", "role": "user" if old else "ROLE_USER", "parts": [part]}
    return {
        "jsonrpc": "2.0",
        "id": 7,
        "method": method,
        "params": {"message": message | ({"kind": "message"} if old else {})},
    }


async def _over_rest(wire: Wire, verb: str) -> None:
    body = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hi?"}]}}
    told = await wire.http.post(f"/a2a/v1/message:{verb}", json=body, headers=NEW)
    assert (told.status_code, told.headers["content-type"]) == (429, "application/json")
    error = told.json()["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    delay = {each["@type"]: each for each in error["details"]}[RETRY]["retryDelay"]
    assert delay == f"{told.headers['retry-after']}s"
    assert f"try again in {told.headers['retry-after']} s" in error["message"]


async def _over_rpc(wire: Wire, path: str, method: str) -> None:
    told = await wire.http.post(path, json=_rpc(method, "Hi?", old=path == "/"), headers={} if path == "/" else NEW)
    assert (told.status_code, told.headers["content-type"]) == (200, "application/json")
    assert (told.json()["id"], told.json()["error"]["code"]) == (7, -32000)
    details = {each["@type"]: each for each in told.json()["error"]["data"]}
    assert details[RETRY]["retryDelay"] in told.json()["error"]["message"].replace(" s", "s")


async def _over_mcp(wire: Wire, tool: str = "ask") -> None:
    async with Client(f"{wire.url}/mcp") as client:
        told = await client.call_tool(tool, {"question": "Is anything wrong?"})
    assert told.is_error
    body = told.structured_content
    assert body is not None
    assert f"try again in {body['retry_after_s']} s" in told.content[0].text  # type: ignore[union-attr]  # a text


async def _over_everything(wire: Wire) -> None:
    for verb in ("send", "stream"):
        await _over_rest(wire, verb)
    for path, methods in {
        "/a2a/v1/rpc": ("SendMessage", "SendStreamingMessage"),
        "/": ("message/send", "message/stream"),
    }.items():
        for method in methods:
            await _over_rpc(wire, path, method)
    for tool in ("ask", "investigate"):
        await _over_mcp(wire, tool)
    refused = await wire.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert f"Try again in {refused.headers['retry-after']} s" in refused.json()["error"]["message"]


def test_questions_of_every_protocol_count_for_who_asks_them(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(_bounded(tmp_path, per_minute=3)) as wire:
            assert (await wire.ask()).status_code == 200
            async with Client(f"{wire.url}/mcp") as client:
                asked = await client.call_tool("ask", {"question": "Is anything wrong?"})
                assert not asked.is_error
                for number in range(3):
                    looked = await client.call_tool("run", {"run": asked.structured_content["run"]})
                    assert not looked.is_error, number
            told = await wire.http.post("/a2a/v1/rpc", json=_rpc("SendMessage", "Hi?"), headers=NEW)
            assert told.json()["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
            task = told.json()["result"]["task"]["id"]
            await _over_everything(wire)
            assert (await wire.http.get(f"/a2a/v1/tasks/{task}", headers=NEW)).status_code == 200, (
                "reading asks nothing"
            )
            async with client_of(wire.url) as other:
                with pytest.raises(A2AClientError, match=r"you may ask 3 questions a minute; try again in \d+ s"):
                    await sent(other, says("Hi?"))

    asyncio.run(story())


async def _busy(wire: Wire, model: Provider, protocol: str) -> asyncio.Task[None]:
    """Begin a question that is not answered, and wait for it."""

    async def by_mcp() -> None:
        async with Client(f"{wire.url}/mcp") as client:
            await client.call_tool("ask", {"question": "Hi?"})

    async def by_a2a(verb: str) -> None:
        body = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hi?"}]}}
        async with wire.http.stream("POST", f"/a2a/v1/message:{verb}", json=body, headers=NEW) as response:
            async for _ in response.aiter_bytes():
                pass

    task = asyncio.create_task(by_mcp() if protocol == "mcp" else by_a2a(protocol.removeprefix("a2a ")))
    while not model.bodies:
        assert not task.done(), task
        await asyncio.sleep(0.01)
    return task


def _silent(at: Path, model: Provider) -> tuple[AgentSettings, ...]:
    return agents_of(at / "agents", file_of("sre", model.url, more='[quell]\nevidence = "off"\n'))


@pytest.mark.parametrize("protocol", ["mcp", "a2a stream", "a2a send"])
def test_whoever_waits_for_an_answer_takes_a_place_whatever_the_protocol(tmp_path: Path, protocol: str) -> None:
    async def story() -> None:
        async with (
            provider(silence()) as model,
            a_wire(_bounded(tmp_path / "state", at_once=1), _silent(tmp_path, model)) as wire,
        ):
            busy = await _busy(wire, model, protocol)
            await _over_everything(wire)
            assert len(model.bodies) == 1, "nothing that was refused has begun"
            busy.cancel()
            with suppress(asyncio.CancelledError, httpx.HTTPError, httpx2.HTTPError):
                await busy
            # The place is free once whoever held it has left.
            for _ in range(200):
                async with wire.http.stream("POST", CHAT, json=question) as response:
                    if response.status_code == 200:
                        return
                await asyncio.sleep(0.02)
            raise AssertionError("the place stayed taken")

    question = {"messages": [{"role": "user", "content": "Hi?"}], "stream": True}

    asyncio.run(story())
