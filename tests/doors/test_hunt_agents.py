"""Defects of the agents' doors that a hunt found: each story failed before it was mended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Self, TypeAlias

import httpx2
import msgspec
import pytest

from quell.app import AgentDesk, App
from quell.app._agent_servers import spill_of
from quell.app._first_pins import pin_first
from quell.config import AuraSettings, ServerSettings
from quell.domain import (
    CallWanted,
    ChatAsk,
    KeyRequest,
    Message,
    OutcomeKind,
    QuellError,
    RefusedError,
    RunStatus,
    ToolSpec,
    UsageError,
)
from quell.runs import system_clock
from tests import _canaries
from tests._mcp_rogue import OBJECT, rogue
from tests.doors._agent_tools_bench import agent_of, room_of, server_table
from tests.doors._authority_house import KEYS, OWNER
from tests.doors._desk_bench import ANN, a_desk, agents_of, asked, file_of
from tests.doors._hand_bench import outcome_of
from tests.doors._model_bench import delta, end, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, frames, settings_of

pytestmark = pytest.mark.timeout(60)
Shown: TypeAlias = dict[str, str]


@pytest.mark.parametrize("after", ["abc", "1.2.3", "-1", "9" * 30, "0.1.2." + "9" * 30])
def test_a_stream_that_goes_on_after_what_is_no_id_is_refused_before_it_begins(tmp_path: Path, after: str) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            run = (await wire.ask()).headers["x-quell-run"]
            refused = await wire.http.get(f"{CHAT}/{run}", params={"after": after})
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")

    asyncio.run(story())


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_journal_that_goes_away_in_the_middle_of_a_stream_is_told_in_it(tmp_path: Path, path: str) -> None:
    async def story() -> None:
        slow = sse(*[delta("On and on. ")] * 200, end(), usage(9, 3), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                asked = {"messages": [{"role": "user", "content": "?"}]} if path == CHAT else {"input": "?"}
                said, is_away = "", False
                async with wire.http.stream("POST", path, json=asked | {"stream": True}) as response:
                    async for piece in response.aiter_text():
                        said += piece
                        if "On and on" in said and not is_away:
                            is_away = True
                            with wire.app.runs.database.writing() as connection:
                                connection.run("ALTER TABLE quell_events RENAME TO quell_events_away")
                with wire.app.runs.database.writing() as connection:
                    connection.run("ALTER TABLE quell_events_away RENAME TO quell_events")
                told = json.dumps(frames(said)[-3:])
                assert '"error"' in told
                assert "journal" in told

    asyncio.run(story())


def test_a_session_of_the_same_name_shows_nobody_what_somebody_else_put_aside(tmp_path: Path) -> None:
    async def story() -> None:
        async with rogue() as server:
            server.tools = [{"name": "echo", "inputSchema": OBJECT}]
            rules = '[mcp.servers.shop.scratchpad."echo"]\nmin_tokens = 1\n[quell]\nreads = ["*"]\n'
            pad = "[agent.scratchpad]\nenabled = true\n"
            agent = agent_of(tmp_path, f"{pad}{server_table('shop', server.url)}{rules}")
            async with room_of(tmp_path, agent) as (room, names):
                await pin_first(room.authority)
                ann = room.caller(spill=spill_of(agent, names["shop"]), session="s")
                bob = replace(ann, principal=replace(ann.principal, user="bob"))
                handle = outcome_of(await room.call("echo", caller=ann, n=1)).handle
                assert handle
                assert outcome_of(await room.call("read", caller=ann, handle=handle)).kind is OutcomeKind.OK
                theirs = outcome_of(await room.call("read", caller=bob, handle=handle))
                assert theirs.kind is OutcomeKind.DENIED
                guessed = outcome_of(await room.call("read", caller=bob, handle="pad_" + "0" * 32))
                assert handle not in guessed.detail

    asyncio.run(story())


def test_keys_of_two_people_are_two_keys_however_they_are_called(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            question = asked("Hello?", session="s")
            first = await app.agents.start(question, by=replace(ANN, user="ann:x"), key="k")
            second = await app.agents.start(question, by=ANN, key="x:k")
            assert first.id != second.id
            for run in (first, second):
                await app.agents.answer(run.id, timeout_s=10)

    asyncio.run(story())


@pytest.mark.parametrize("ends", ["mismatch", "cancelled", "failed"])
def test_headers_of_a_request_are_forgotten_however_its_run_ends(tmp_path: Path, ends: str) -> None:
    async def story() -> None:
        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                desk, shown = app.agents, {"authorization": "of the client"}
                if ends == "failed":
                    desk._room.answering = _broken  # type: ignore[method-assign]  # a bug of ours
                run = await desk.start(asked("?"), by=ANN, headers=shown, key="k")
                if ends == "mismatch":
                    with pytest.raises(RefusedError):
                        await desk.start(asked("!"), by=ANN, headers=shown, key="k")
                    assert len(desk._room.headers) == 1
                if ends != "failed":
                    await _first_word(desk, run.id)
                    assert desk.headers_of(run.id) == shown
                    await desk.cancel(run.id)
                with pytest.raises(QuellError):
                    await desk.answer(run.id, timeout_s=10)
                async with asyncio.timeout(5):
                    while desk._room.headers or desk._room.live.said(run.id):
                        await asyncio.sleep(0.02)

    asyncio.run(story())


async def _broken(*_: object) -> NoReturn:
    raise ZeroDivisionError


async def _first_word(desk: AgentDesk, run: str) -> None:
    async with aclosing(desk.follow(run)) as following:
        async for each in following:
            if each.name == "text":
                return


@pytest.mark.parametrize("session", ["a\r\nSet-Cookie: x=y", "\u4e2d", "a\0", "two words", "s" * 201])
def test_a_session_that_could_not_be_told_is_refused_whoever_names_it(tmp_path: Path, session: str) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            with pytest.raises(UsageError, match="session id"):
                await app.agents.start(asked("Hello?", session=session), by=ANN)
            with pytest.raises(UsageError, match="session id"):
                await app.agents.conversation(session, by=ANN)

    asyncio.run(story())


def test_a_process_that_died_before_it_noted_a_conversation_loses_nothing_of_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            first = await app.agents.start(asked("Hello?"), by=ANN)
            await app.agents.answer(first.id, timeout_s=10)
            wanted = await app.agents.wanted(first.id)
            # As it stands in the journal between the two writes.
            begun = replace(wanted, ask=asked("Is anything wrong?", session="s1"), ticket="t")
            run = await app.runs.start("chat", subject="?", arguments=msgspec.to_builtins(begun))
            await app.agents.answer(run.id, timeout_s=10)
            told = await app.agents.conversation("s1", by=ANN)
            assert [message.text for message in told][:1] == ["Is anything wrong?"]
            assert [session.id for session in await app.agents.sessions(by=ANN)] == ["s1"]

    asyncio.run(story())


def test_a_run_whose_agent_has_no_file_any_more_is_still_its_caller_s(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url), file_of("dev", model.url))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                begun = await wire.http.post("/v1/responses", json={"model": "sre", "input": "?", "background": True})
                answer = begun.json()["id"]
                others = agents_of(tmp_path / "others", file_of("ops", model.url), file_of("dev", model.url))
                wire.app.agents.take(others)
                stands = await wire.http.get(f"/v1/responses/{answer}")
                assert (stands.status_code, stands.json()["status"]) == (200, "in_progress")
                gone = await wire.http.post(f"/v1/responses/{answer}/cancel")
                assert (gone.status_code, gone.json()["status"]) == (200, "cancelled")

    asyncio.run(story())


def test_secrets_of_ours_are_taken_out_of_every_part_of_a_question(tmp_path: Path) -> None:
    secret = _canaries.IN_SETTINGS

    async def story() -> None:
        async with a_desk(tmp_path) as app:
            call = CallWanted(id="c", name="look", arguments=json.dumps({"token": secret}))
            messages = (
                Message(role="user", text="Hello?"),
                Message(role="assistant", calls=(call,)),
                Message(role="tool", call="c", tool="look", text=secret),
                Message(role="user", text="Is anything wrong?"),
            )
            tool = ToolSpec(name="look", description=secret, parameters=json.dumps({"type": "object", "title": secret}))
            ask = ChatAsk(messages=messages, user=secret, metadata={"note": secret}, client_tools=(tool,))
            run = await app.agents.start(ask, by=ANN)
            await app.agents.answer(run.id, timeout_s=10)
            kept = json.dumps(await app.runs.arguments(run.id))
            assert secret not in kept
            assert "Is anything wrong?" in kept

    asyncio.run(story())


async def _key_of(
    app: App, user: str, *, scopes: tuple[str, ...] = (), roles: tuple[str, ...] = ("operator",)
) -> Shown:
    """Give somebody a key; return the headers that show it."""
    identities = await app.warden.identities()
    expires_at = system_clock() + timedelta(days=1)
    wish = KeyRequest(name=f"of {user}", user=user, roles=roles, scopes=scopes, expires_at=expires_at)
    with app.runs.database.writing() as connection:
        _, secret = identities.new_key(connection, wish, by=OWNER)
    return {"Authorization": f"Bearer {secret.reveal()}"}


@dataclass(kw_only=True)
class _McpClient:
    """A client that speaks MCP by hand, so that it can say what no client of a library would."""

    http: httpx2.AsyncClient
    shown: Shown
    session: str = ""

    async def post(self, method: str, params: object, *, is_told: bool = False) -> httpx2.Response:
        said = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if is_told else {"id": 1})
        answer = await self.http.post("/mcp", json=said, headers=self.headers())
        self.session = answer.headers.get("mcp-session-id", self.session)
        return answer

    def headers(self) -> dict[str, str]:
        named = {"mcp-session-id": self.session} if self.session else {}
        return {"Accept": "application/json, text/event-stream", **self.shown, **named}

    async def hello(self) -> Self:
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "hand", "version": "1"}}
        assert (await self.post("initialize", about)).status_code == 200
        assert (await self.post("notifications/initialized", {}, is_told=True)).status_code == 202
        return self

    async def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        answer = await self.post("tools/call", {"name": tool, "arguments": arguments})
        return _told(answer)["result"]  # type: ignore[no-any-return]  # JSON


def _told(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return json.loads(lines[-1])  # type: ignore[no-any-return]  # JSON


def test_over_mcp_nobody_reads_what_somebody_else_asked_or_ends_their_session(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path, identity=KEYS)) as wire:
            ann = await _McpClient(http=wire.http, shown=await _key_of(wire.app, "ann")).hello()
            bob = await _McpClient(http=wire.http, shown=await _key_of(wire.app, "bob")).hello()
            run = (await ann.call("ask", question="Is anything wrong?"))["structuredContent"]["run"]
            assert not (await ann.call("run", run=run))["isError"]
            for tool in ("run", "evidence"):
                refused = await bob.call(tool, run=run)
                assert refused["isError"]
                assert "there is no run" in refused["content"][0]["text"]
            for client, has in ((ann, True), (bob, False)):
                read = _told(await client.post("resources/read", {"uri": f"quell://runs/{run}"}))
                assert ("result" in read) is has
            thief = _McpClient(http=wire.http, shown=bob.shown, session=ann.session)
            gone = await wire.http.delete("/mcp", headers=thief.headers())
            assert gone.status_code == 404
            assert not (await ann.call("run", run=run))["isError"]

    asyncio.run(story())


def test_a_run_of_no_agent_is_no_run_for_clients_that_ask_agents(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            client = await _McpClient(http=wire.http, shown={}).hello()
            run = await wire.app.calls.start("incidents", arguments="{}", by=ANN)
            refused = await client.call("run", run=run.id)
            assert refused["isError"]
            assert "there is no run" in refused["content"][0]["text"]

    asyncio.run(story())


def test_a_server_that_stops_calls_off_no_run_that_a_client_of_mcp_waits_for(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                client = await _McpClient(http=wire.http, shown={}).hello()
                waiting = asyncio.create_task(client.call("ask", question="?"))
                while not (began := await wire.app.runs.list(limit=1, status=RunStatus.RUNNING)):
                    await asyncio.sleep(0.02)
                wire.serving.cancel()
                await asyncio.gather(wire.serving, waiting, return_exceptions=True)
                assert (await wire.app.runs.get(began[0].id)).status is RunStatus.RUNNING
                await wire.app.agents.cancel(began[0].id)

    asyncio.run(story())


def test_a_server_that_stops_takes_nothing_new_over_any_protocol_and_ends_what_is_open(tmp_path: Path) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def story() -> None:
        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        server = ServerSettings(port=0, a2a=True, aura=AuraSettings(shutdown_timeout_s=1.0))
        async with provider(slow, slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_wire(settings_of(tmp_path / "state", server=server), agents) as wire:
                await (client := _McpClient(http=wire.http, shown={})).hello()
                message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "?"}]}
                body, spoken = {"message": message}, {"A2A-Version": "1.0"}
                chatting = asyncio.create_task(wire.stream("?"))
                async with wire.http.stream("POST", "/a2a/v1/message:stream", json=body, headers=spoken) as others:
                    lines = others.aiter_lines()
                    while "On." not in await anext(lines):
                        pass
                    wire.serving.cancel()
                    await asyncio.sleep(0.2)
                    assert (await client.post("tools/list", {})).status_code == 503
                    asked = await wire.http.post("/a2a/v1/message:send", json=body, headers=spoken)
                    assert asked.status_code == 503
                    # It ends as streams end: a connection that is cut raises here.
                    async for _ in lines:
                        pass
                assert "server_stopping" in await chatting
                await asyncio.gather(wire.serving, return_exceptions=True)
                for run in await wire.app.runs.list(limit=5, status=RunStatus.RUNNING):
                    await wire.app.agents.cancel(run.id)

    asyncio.run(story())


@pytest.mark.parametrize("path", ["/a2a/v1/rpc", "/a2a/v1/message:send", "/", "/mcp"])
def test_a_body_without_bounds_is_refused_over_every_protocol(tmp_path: Path, path: str) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * 1024 * 1024

    async def story() -> None:
        server = ServerSettings(port=0, a2a=True, request_timeout_s=1.0)
        async with a_wire(settings_of(tmp_path, server=server)) as wire:
            headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
            refused = await wire.http.post(path, content=endless(), headers=headers)
            assert refused.status_code == 413
            # Half a body holds nobody for ever either.
            place = httpx2.URL(wire.url)
            reader, writer = await asyncio.open_connection(place.host, place.port)
            head = f"POST {path} HTTP/1.1\r\nHost: {place.host}:{place.port}\r\nContent-Length: 99\r\n"
            writer.write(f"{head}Content-Type: application/json\r\nAccept: {headers['Accept']}\r\n\r\n{{".encode())
            assert (await asyncio.wait_for(reader.readline(), timeout=10)).startswith(b"HTTP/1.1 503")
            writer.close()

    asyncio.run(story())
