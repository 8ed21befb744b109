"""Rows 4, 6, 7 and 8 of the acceptance list: tools of a real server over HTTP, as clients of the wire see and stop them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from quell.config import AuraSettings
from quell.domain import RunStatus
from tests._mcp_rogue import OBJECT, rogue
from tests.aura._bench import LOOSE, a_shop, agent_at, calls, named, played, says, server_of, until
from tests.doors._model_bench import provider
from tests.doors._wire_bench import CHAT, a_wire, frames, settings_of

pytestmark = pytest.mark.timeout(60)
ON = AuraSettings(custom_events=True)


def test_row_4_a_call_is_requested_started_moves_and_completes_and_its_tokens_are_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("watch_rollout", {"steps": 3})), says("Done.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                found = frames(await wire.stream())
                names = named(found)
                assert names[:4] == ["session_info", "mcp_status", "tool_requested", "tool_start"]
                progress = names.count("progress")
                assert progress >= 1
                assert names[4:] == ["progress"] * progress + ["tool_complete", "tool_usage", "usage"]
                by_name = {name: each for name, each in found if name.startswith("aura.")}
                token = by_name["aura.tool_start"]["progress_token"]
                moved = [each for name, each in found if name == "aura.progress"]
                assert {each["progress_token"] for each in moved} == {token}
                assert {each["phase"] for each in moved} == {"mcp_progress"}
                assert [each["percent"] for each in moved] == sorted(each["percent"] for each in moved)
                (server,) = by_name["aura.mcp_status"]["servers"]
                assert (server["server_name"], server["transport"], server["status"]) == (
                    "shop",
                    "http_streamable",
                    "connected",
                )
                assert server["tools_count"] == 5

    played(story)


def test_row_4_nothing_of_it_is_told_where_custom_events_are_off(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("watch_rollout", {"steps": 2})), says("Done.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                assert named(frames(await wire.stream())) == []
                assert shop.steps == 2

    played(story)


def test_row_4_a_server_that_is_down_is_told_with_its_reason_and_keeps_nobody_from_an_answer(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def story() -> None:
        down = await asyncio.start_server(refuse, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{down.sockets[0].getsockname()[1]}/mcp"
        async with a_shop() as shop, provider(calls(("get_logs", {"service": "web"})), says("Done.")) as model:
            table = f'[mcp.servers.down]\ntransport = "http_streamable"\nurl = "{url}"\n'
            agents = agent_at(tmp_path, model.url, server_of(shop) + table + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                found = frames(await wire.stream())
                (told,) = [each["servers"] for name, each in found if name == "aura.mcp_status"]
                states = {each["server_name"]: each for each in told}
                assert (states["shop"]["status"], states["down"]["status"]) == ("connected", "failed")
                assert states["down"]["reason"] == "server returned HTTP 503"
                assert shop.done == [("get_logs", {"service": "web"})]
        down.close()

    played(story)


@pytest.mark.parametrize("leaving", ["metadata", "file"])
def test_row_6_a_client_that_leaves_stops_the_tool_where_that_is_asked_for(tmp_path: Path, leaving: str) -> None:
    # AURA always cancels. Here the run goes on unless the request or the agent's file says that it shall end.
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("watch_rollout", {"steps": 400})), says("Done.")) as model:
            cancels = 'on_disconnect = "cancel"\n' if leaving == "file" else ""
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + cancels)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                body = {"messages": [{"role": "user", "content": "Roll out."}], "stream": True}
                more = {"metadata": {"on_disconnect": "cancel"}} if leaving == "metadata" else {}
                async with wire.http.stream("POST", CHAT, json=body | more) as response:
                    run = response.headers["x-quell-run"]
                    async for line in response.aiter_lines():
                        if "aura.progress" in line:
                            break
                await shop.stopped.wait()
                steps = shop.steps
                assert (await wire.app.runs.wait(run, timeout_s=10)).status is RunStatus.CANCELLED
                await asyncio.sleep(0.2)
                assert shop.steps == steps

    played(story)


def test_row_6_a_server_of_the_older_protocol_receives_notifications_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with rogue("legacy") as server, provider(calls(("hang", {"n": 1}))) as model:
            server.tools = [{"name": "hang", "inputSchema": OBJECT}]
            table = f'[mcp.servers.shop]\ntransport = "http_streamable"\nurl = "{server.url}"\n'
            agents = agent_at(tmp_path, model.url, table + LOOSE + 'on_disconnect = "cancel"\n')
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                body = {"messages": [{"role": "user", "content": "Hang."}], "stream": True}
                async with wire.http.stream("POST", CHAT, json=body) as response:
                    # That it has begun is told when it begins, though nothing comes of it.
                    async for line in response.aiter_lines():
                        if "aura.tool_start" in line:
                            break
                    await until(lambda: bool(server.calls))
                await until(lambda: bool(server.cancelled))

    played(story)


def test_row_6_by_default_the_run_goes_on_without_its_client(tmp_path: Path) -> None:
    # AURA loses the work when a browser tab is closed; a run of ours ends, and can be read afterwards.
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("watch_rollout", {"steps": 10})), says("Done.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                body = {"messages": [{"role": "user", "content": "Roll out."}], "stream": True}
                async with wire.http.stream("POST", CHAT, json=body) as response:
                    run = response.headers["x-quell-run"]
                    async for line in response.aiter_lines():
                        if "aura.progress" in line:
                            break
                assert (await wire.app.runs.wait(run, timeout_s=20)).status is RunStatus.SUCCEEDED
                assert (shop.steps, shop.stopped.is_set()) == (10, False)

    played(story)


def test_row_7_headers_of_each_request_go_on_whatever_their_case_and_static_ones_where_there_are_none(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with a_shop() as shop:
            turns = [calls(("get_logs", {"service": "web"})), says("Done.")]
            async with provider(*turns * 4) as model:
                headers = (
                    'headers = { Authorization = "Bearer static", X-Team = "none" }\n'
                    'headers_from_request = { Authorization = "X-User-Token", x-team = "x-TEAM" }\n'
                )
                agents = agent_at(tmp_path, model.url, server_of(shop, more=headers) + LOOSE)
                async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                    body = {"messages": [{"role": "user", "content": "Look."}]}
                    for sent in ({"x-USER-token": "Bearer ann"}, {"X-User-Token": "Bearer bob", "X-Team": "blue"}, {}):
                        response = await wire.http.post(CHAT, json=body, headers=sent)
                        assert response.status_code == 200, response.text
                got = [(each.get("authorization"), each.get("x-team")) for each in shop.headers]
                assert got == [("Bearer ann", "none"), ("Bearer bob", "blue"), ("Bearer static", "none")]

    played(story)


def test_row_8_structured_content_is_what_the_model_reads(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("get_logs", {"service": "web"})), says("Done.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            aura = AuraSettings(custom_events=True, tool_result_mode="aura")
            async with a_wire(settings_of(tmp_path / "state", aura=aura), agents) as wire:
                found = frames(await wire.stream())
                (told,) = [each for name, each in found if name == "aura.tool_complete"]
                assert (told["success"], json.loads(told["result"])) == (True, {"lines": ["web: out of cheese"]})
                read = json.dumps(model.bodies[1]["messages"])
                assert "web: out of cheese" in read
                assert "see the structure" not in read

    played(story)


def test_row_8_a_tool_that_says_it_failed_is_never_told_as_a_success(tmp_path: Path) -> None:
    # AURA tells `success: true` here: it looks at how the text begins, and looks for the wrong beginning.
    async def story() -> None:
        async with a_shop() as shop, provider(calls(("get_trouble", {})), says("It failed.")) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                found = frames(await wire.stream())
                (told,) = [each for name, each in found if name == "aura.tool_complete"]
                assert told["success"] is False
                assert "out of cheese" in told["error"]
                assert "result" not in told
                assert "out of cheese" in json.dumps(model.bodies[1]["messages"])
                assert shop.done == [("get_trouble", {})]

    played(story)


def test_row_4_a_session_names_its_model_as_the_chunks_do_and_how_much_it_takes(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("Done.")) as model:
            agents = agent_at(tmp_path, model.url, "context_window = 8000\n" + LOOSE)
            async with a_wire(settings_of(tmp_path / "state", aura=ON), agents) as wire:
                found = frames(await wire.stream())
                (info,) = [each for name, each in found if name == "aura.session_info"]
                (named_so,) = {each["model"] for name, each in found if name == "data" and isinstance(each, dict)}
                assert (info["model"], info["model_context_limit"]) == (named_so, 8000)

    played(story)
