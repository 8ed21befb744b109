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

from quell.app import AgentDesk, App, TaskBook
from quell.app._agent_servers import spill_of
from quell.app._first_pins import pin_first
from quell.config import AuraSettings, ServerSettings, agent_kept, load
from quell.config import kept_agent as agent_kept_text
from quell.domain import (
    ApprovalStatus,
    CallWanted,
    ChatAsk,
    ConfigError,
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
from tests.conftest import FakeClock
from tests.doors._agent_tools_bench import agent_of, room_of, server_table
from tests.doors._authority_house import KEYS, OWNER, House
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
                    desk._room.answering = _broken  # type: ignore[method-assign, assignment]  # a bug of ours
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
                await wire.app.agents.take(others)
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


A2A = {"A2A-Version": "1.0"}
OTHERS = ServerSettings(port=0, a2a=True)


def _message(text: str = "Is anything wrong?", **more: object) -> dict[str, object]:
    return {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": text}]} | more}


async def _rpc(http: httpx2.AsyncClient, method: str, params: object) -> dict[str, Any]:
    said = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return (await http.post("/a2a/v1/rpc", json=said, headers=A2A)).json()  # type: ignore[no-any-return]  # JSON


def test_pages_of_tasks_are_as_long_as_was_asked_and_tokens_that_are_none_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def story() -> None:
        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        short = sse(delta("Well."), end(), usage(9, 3))
        async with provider(short, short, slow, short) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_wire(settings_of(tmp_path / "state", server=OTHERS), agents) as wire:
                ended = []
                for place in range(4):
                    config = {"configuration": {"returnImmediately": True}} if place == 2 else {}
                    sent = await _rpc(wire.http, "SendMessage", _message() | config)
                    ended.append(sent["result"]["task"]["id"])
                    while place == 2 and len(model.bodies) < 3:
                        await asyncio.sleep(0.02)
                going = ended.pop(2)
                wish = {"pageSize": 2, "status": "TASK_STATE_COMPLETED"}
                first = (await _rpc(wire.http, "ListTasks", wish))["result"]
                assert [task["id"] for task in first["tasks"]] == [ended[2], ended[1]]
                rest = (await _rpc(wire.http, "ListTasks", wish | {"pageToken": first["nextPageToken"]}))["result"]
                assert ([task["id"] for task in rest["tasks"]], rest["nextPageToken"]) == ([ended[0]], "")
                for wrong in ({"pageToken": "9" * 30}, {"pageToken": "9" * 5000}, {"pageSize": -1}):
                    assert (await _rpc(wire.http, "ListTasks", wrong))["error"]["code"] == -32602
                await wire.app.agents.cancel(going)

    asyncio.run(story())


@pytest.mark.parametrize(
    "hook",
    [
        {"url": "https://" + "a" * 64 + ".example/"},
        {"url": "https://[::10.0.0.1]/"},
        {"url": "https://[64:ff9b::a00:1]/"},
        {"url": "https://[2002:a00:1::1]/"},
        {"url": "https://[fec0::1]/"},
        {"url": "http://127.0.0.1:9/", "token": "\u4e2d"},
        {"url": "http://127.0.0.1:9/", "token": "a\r\nHost: b"},
        {"url": "http://127.0.0.1:9/", "authentication": {"scheme": "Bearer", "credentials": "\u4e2d"}},
    ],
)
def test_an_address_that_cannot_or_must_not_be_told_is_refused_at_once(tmp_path: Path, hook: object) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def story() -> None:
        server = replace(OTHERS, a2a_push_inside=("127.0.0.1:9",))
        async with a_wire(settings_of(tmp_path, server=server)) as wire:
            wish = _message() | {"configuration": {"taskPushNotificationConfig": hook}}
            assert (await _rpc(wire.http, "SendMessage", wish))["error"]["code"] == -32602
            assert not await wire.app.runs.list(limit=1)

    asyncio.run(story())


def test_one_who_cannot_be_told_and_hundreds_who_wait_keep_nobody_from_being_told(tmp_path: Path) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def story() -> None:
        told: asyncio.Queue[bytes] = asyncio.Queue()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.put_nowait(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        slow = sse(*[delta("On. ")] * 400, end(), usage(9, 3), gap_s=0.05)
        listening = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening, provider(slow, sse(delta("Well."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            server = replace(OTHERS, a2a_push_inside=(f"127.0.0.1:{port}",))
            async with a_wire(settings_of(tmp_path / "state", server=server), agents) as wire:
                book, hook = TaskBook(wire.app.runs.database, clock=system_clock), {"url": f"http://127.0.0.1:{port}/"}
                wish = _message() | {"configuration": {"returnImmediately": True}}
                going = (await _rpc(wire.http, "SendMessage", wish))["result"]["task"]["id"]
                while not model.bodies:
                    await asyncio.sleep(0.02)
                for number in range(220):
                    await asyncio.to_thread(book.put_hook, going, f"hook-{number}", settings=json.dumps(hook))
                broken = hook | {"token": "\u4e2d"}
                ended = (await _rpc(wire.http, "SendMessage", _message()))["result"]["task"]["id"]
                await asyncio.to_thread(book.put_hook, ended, "a", settings=json.dumps(broken))
                await asyncio.to_thread(book.put_hook, ended, "b", settings=json.dumps(hook))
                assert (await asyncio.wait_for(told.get(), timeout=15)).startswith(b"POST / ")
                await wire.app.agents.cancel(going)

    asyncio.run(story())


def test_a_message_to_a_task_decides_about_that_task_alone(tmp_path: Path) -> None:
    pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

    async def story() -> None:
        async with a_wire(settings_of(tmp_path, identity=KEYS, server=OTHERS)) as wire:
            authority = await wire.app.open_authority()
            house = House(app=wire.app, authority=authority, url=wire.url, clock=FakeClock(), http=wire.http)
            approval = house.ask()
            wanted = {"approval": approval.id, "decision": "approve", "digest": approval.digest}
            roles = ("operator", "approver")
            shown = await _key_of(wire.app, "ann", roles=roles)
            sent = await wire.http.post("/a2a/v1/message:send", json=_message(), headers=A2A | shown)
            part = {"taskId": sent.json()["task"]["id"], "parts": [{"data": wanted}]}
            other = await wire.http.post("/a2a/v1/message:send", json=_message(**part), headers=A2A | shown)
            assert "does not wait for this approval" in other.text
            assert house.find(approval).status is ApprovalStatus.REQUESTED

    asyncio.run(story())


def test_a_secret_of_another_place_is_not_shown_to_the_place_of_before(tmp_path: Path) -> None:
    (before,) = agents_of(tmp_path / "before", file_of("sre", "https://one.example/v1"))
    (after,) = agents_of(tmp_path / "after", file_of("sre", "https://two.example/v1"))
    kept = agent_kept(agent_kept_text(before), now=before)
    assert kept == before
    with pytest.raises(ConfigError, match="for another place"):
        agent_kept(agent_kept_text(before), now=after)


def test_agents_at_home_are_taken_anew_as_others_are(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}

    async def story() -> None:
        agents_of(tmp_path / "agents", file_of("sre", "http://127.0.0.1:9"))
        loaded = load(None, env=env, overrides={"agents": "~/agents", "store.url": "http://127.0.0.1:9"})
        settings = replace(loaded.settings, state_dir=tmp_path / "state")
        async with a_desk(tmp_path / "state", loaded.agents, settings=settings) as app:
            await app.agents.look()
            (tmp_path / "agents" / "agent-0.toml").write_text(file_of("ops", "http://127.0.0.1:9"))
            await app.agents.look()
            assert [agent.id for agent in app.agents.agents()] == ["ops"]

    asyncio.run(story())


@pytest.mark.parametrize("names", ["itself", "others"])
def test_a_file_with_an_agent_still_says_what_is_wrong_with_the_rest_of_it(tmp_path: Path, names: str) -> None:
    agents_of(tmp_path / "agents", file_of("sre", "http://127.0.0.1:9"))
    path = tmp_path / "quell.toml"
    named = f'agents = "{tmp_path}/agents"\n' if names == "others" else ""
    own = file_of("own", "http://127.0.0.1:9")
    path.write_text(f'{named}{own}\n[store]\npassword = "{{{{ env.NO_SUCH_THING }}}}"\n')
    with pytest.raises(ConfigError) as refused:
        load(path, env={})
    assert "NO_SUCH_THING" in str(refused.value.problems)


def test_a_long_line_that_no_sentence_ends_stops_nothing_and_is_asked_for_once(tmp_path: Path) -> None:
    async def story() -> None:
        line = [f"{number} " for number in range(8_000)]
        async with provider(sse(*map(delta, line), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("?"), by=ANN)
                answer = await app.agents.answer(run.id, timeout_s=50)
                assert answer is not None
                assert answer.text.split()[:8_000] == "".join(line).split()
                # A loop that was held up would have lost its lease, and another one would have asked again.
                assert len(model.bodies) == 1

    asyncio.run(story())
