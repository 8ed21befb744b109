"""Other agents ask by A2A: tasks are durable runs, so none hangs, and whoever asked can come back, decide and be told."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

pytest.importorskip("a2a", reason="needs the extra `a2a` (pip install 'quell[a2a]')")

from a2a.client import Client, ClientConfig, ClientFactory
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
    TaskState,
    TaskStatusUpdateEvent,
)

from quell.app import App, TaskBook, open_app
from quell.config import AgentSettings, IdentitySettings, ServerSettings
from quell.runs import system_clock
from quell.server import serve
from quell.server._a2a_push import Screen
from quell.server._a2a_tasks import Tasks
from quell.server._listening import Closing
from quell.server._rates import Rates
from tests.doors._authority_house import settings_of
from tests.doors._desk_bench import agents_of, file_of, first_of
from tests.doors._model_bench import delta, end, provider, sse, usage

pytestmark = pytest.mark.timeout(60)
COMPLETED, WORKING = TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_WORKING
CANCELED, INPUT = TaskState.TASK_STATE_CANCELED, TaskState.TASK_STATE_INPUT_REQUIRED


@asynccontextmanager
async def served(
    state_dir: Path,
    agents: Sequence[AgentSettings] = (),
    *,
    inside: tuple[str, ...] = (),
    identity: IdentitySettings | None = None,
) -> AsyncIterator[tuple[App, str]]:
    """Serve agents to other agents on a real port."""
    urls: asyncio.Queue[str] = asyncio.Queue()
    server = ServerSettings(port=0, a2a=True, a2a_push_inside=inside)
    settings = settings_of(state_dir, server=server, identity=identity)
    async with open_app(
        settings, role="serve", clock=system_clock, entropy=os.urandom, env=dict(os.environ), agents=agents
    ) as app:
        serving = asyncio.create_task(serve(app, on_ready=urls.put_nowait))
        try:
            yield app, await first_of(urls, serving)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def client_of(url: str, *, binding: str = "JSONRPC") -> AsyncIterator[Client]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        config = ClientConfig(httpx_client=http, supported_protocol_bindings=[binding], streaming=True)
        client = await ClientFactory(config).create_from_url(url)
        try:
            yield client
        finally:
            await client.close()


def says(text: str, *, task: str = "", context: str = "") -> Message:
    identifier = os.urandom(6).hex()
    return Message(
        message_id=identifier, role=Role.ROLE_USER, parts=[Part(text=text)], task_id=task, context_id=context
    )


async def sent(client: Client, message: Message, **configuration: object) -> list[object]:
    request = SendMessageRequest(message=message, configuration=SendMessageConfiguration(**configuration))  # type: ignore[arg-type]  # as given
    return [getattr(each, each.WhichOneof("payload")) async for each in client.send_message(request)]


def task_of(events: Sequence[object]) -> str:
    return next(each.id if isinstance(each, Task) else str(getattr(each, "task_id", "")) for each in events)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_a_question_streams_to_its_end_and_can_be_read_again(tmp_path: Path, binding: str) -> None:
    async def story() -> None:
        async with provider(sse(delta("All "), delta("is well."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (_, url), client_of(url, binding=binding) as client:
                events = await sent(client, says("How is it?"))
                last = events[-1]
                assert last.status.state == COMPLETED  # type: ignore[attr-defined]  # a status update
                pieces = [e.artifact for e in events if hasattr(e, "artifact")]
                assert "".join(p.parts[0].text for p in pieces if p.artifact_id == "response") == "All is well."
                assert [p.parts[0].text for p in pieces if p.artifact_id == "final"] == ["All is well."]
                task = await client.get_task(GetTaskRequest(id=task_of(events)))
                assert task.status.state == COMPLETED
                assert [part.parts[0].text for part in task.history] == ["How is it?", "All is well."]
                assert task.artifacts[0].metadata["stop"] == "answered"

    asyncio.run(story())


def test_a_context_is_one_conversation_and_lists_its_tasks(tmp_path: Path) -> None:
    async def story() -> None:
        one, two = sse(delta("One."), end(), usage(9, 3)), sse(delta("Two."), end(), usage(9, 3))
        async with provider(one, two) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (_, url), client_of(url) as client:
                first = await sent(client, says("First?", context="ctx-1"))
                second = await sent(client, says("Second?", context="ctx-1"))
                asked = model.bodies[1]["messages"]
                assert isinstance(asked, list)
                assert [m["content"] for m in asked if m["role"] != "system"] == ["First?", "One.", "Second?"]
                listed = await client.list_tasks(ListTasksRequest(context_id="ctx-1"))
                assert [task.id for task in listed.tasks] == [task_of(second), task_of(first)]
                page = await client.list_tasks(ListTasksRequest(page_size=1))
                assert [task.id for task in page.tasks] == [task_of(second)]
                page = await client.list_tasks(ListTasksRequest(page_size=1, page_token=page.next_page_token))
                assert [task.id for task in page.tasks] == [task_of(first)]
                assert not (await client.list_tasks(ListTasksRequest(status=CANCELED))).tasks

    asyncio.run(story())


def test_who_does_not_wait_comes_back_subscribes_and_cancels(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("Still. ")] * 500, end(), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (_, url):
                async with httpx2.AsyncClient(base_url=url, timeout=20) as http:
                    body = {
                        "message": {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "Go on."}]},
                        "configuration": {"returnImmediately": True},
                    }
                    answer = await http.post("/a2a/v1/message:send", json=body, headers={"A2A-Version": "1.0"})
                    assert answer.status_code == 200, answer.text
                    task = answer.json()["task"]["id"]
                async with client_of(url) as client:
                    heard: list[object] = []

                    async def listen() -> None:
                        async for each in client.subscribe(SubscribeToTaskRequest(id=task)):
                            event = getattr(each, each.WhichOneof("payload"))
                            heard.append(event)

                    listening = asyncio.create_task(listen())
                    while not any(hasattr(each, "artifact") for each in heard):
                        await asyncio.sleep(0.02)
                    gone = await client.cancel_task(CancelTaskRequest(id=task))
                    assert gone.status.state == CANCELED
                    await listening
                    assert heard[-1].status.state == CANCELED  # type: ignore[attr-defined]  # a status update
                    with pytest.raises(Exception, match="has ended"):
                        await client.cancel_task(CancelTaskRequest(id=task))
                    with pytest.raises(Exception, match="has ended"):
                        await listen()

    asyncio.run(story())


def test_a_task_goes_on_when_its_server_is_started_again(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("Still. ")] * 500, end(), gap_s=0.05)
        async with provider(slow, sse(delta("Done."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (_, url), client_of(url) as client:
                async for each in client.send_message(SendMessageRequest(message=says("Go on."))):
                    if each.WhichOneof("payload") == "artifact_update":
                        task = each.artifact_update.task_id
                        break
            async with served(tmp_path / "state", agents) as (_, url), client_of(url) as client:
                found = await client.get_task(GetTaskRequest(id=task))
                while found.status.state != COMPLETED:
                    assert found.status.state in {WORKING, TaskState.TASK_STATE_SUBMITTED}
                    await asyncio.sleep(0.05)
                    found = await client.get_task(GetTaskRequest(id=task))
                assert found.artifacts[0].parts[0].text == "Done."

    asyncio.run(story())


def test_of_two_answers_to_one_question_of_an_agent_one_counts(tmp_path: Path) -> None:
    async def story() -> None:
        asks = {"index": 0, "id": "x", "function": {"name": "ask_person", "arguments": '{"question": "Which one?"}'}}
        asking = sse(delta(tool_calls=[asks]), end("tool_calls"), usage(9, 3))
        async with provider(asking, sse(delta("That one."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (_, url), client_of(url) as client:
                events = await sent(client, says("Restart it?"))
                assert events[-1].status.state == INPUT  # type: ignore[attr-defined]  # a status update
                task = task_of(events)
                answers = [sent(client, says(text, task=task)) for text in ("The first.", "The second.")]
                came = await asyncio.gather(*answers, return_exceptions=True)
                assert sum(isinstance(each, Exception) for each in came) == 1
                assert len(model.bodies) == 2
                found = await client.get_task(GetTaskRequest(id=task))
                assert found.status.state == COMPLETED
                assert len(found.history) == 4

    asyncio.run(story())


def test_callers_are_told_at_addresses_that_lead_nobody_inside(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Well."), end(), usage(9, 3))) as model, _listener() as (port, told):
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            inside = (f"127.0.0.1:{port}",)
            async with served(tmp_path / "state", agents, inside=inside) as (_, url), client_of(url) as client:
                for bad in (
                    "http://127.0.0.1:1/",
                    "file:///etc/passwd",
                    "http://169.254.169.254/",
                    "http://[::1]:80/x",
                ):
                    hook = TaskPushNotificationConfig(url=bad)
                    with pytest.raises(Exception, match="not told"):
                        await sent(client, says("Hello?"), task_push_notification_config=hook)
                hook = TaskPushNotificationConfig(url=f"http://127.0.0.1:{port}/hook", token="t0ken")
                events = await sent(client, says("Hello?"), task_push_notification_config=hook)
                async with asyncio.timeout(10):
                    headers, body = await told.get()
                assert headers["x-a2a-notification-token"] == "t0ken"
                update = json.loads(body)["statusUpdate"]
                assert (update["taskId"], update["status"]["state"]) == (task_of(events), "TASK_STATE_COMPLETED")

    asyncio.run(story())


def test_an_address_that_leads_inside_by_now_is_not_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Well."), end(), usage(9, 3))) as model, _listener() as (port, told):
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (app, url), client_of(url) as client:
                task = task_of(await sent(client, says("Hello?")))
                book = TaskBook(app.runs.database, clock=app.clock)
                # As one that was let in when its name led elsewhere.
                hook = json.dumps({"url": f"http://127.0.0.1:{port}/hook"})
                await asyncio.to_thread(book.put_hook, task, "h", settings=hook)
                async with asyncio.timeout(10):
                    while not (await asyncio.to_thread(book.hooks, task))[0].tries:
                        await asyncio.sleep(0.05)
                assert told.empty()

    asyncio.run(story())


def test_the_address_that_is_told_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may lead outside when it is judged, and inside a moment later."""
    posted: list[tuple[str, str]] = []
    looked: list[str] = []

    async def post(url: str, *, to: str, **_: object) -> None:
        posted.append((url, to))

    monkeypatch.setattr("quell.server._a2a_push.post_webhook", post)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def leads(host: str, port: int, **named: Any) -> list[Any]:
            if host != "turns.example":
                return await real(host, port, **named)
            looked.append(host)
            where = "93.184.216.34" if len(looked) == 1 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

        monkeypatch.setattr(loop, "getaddrinfo", leads, raising=False)
        screen = Screen(inside=frozenset())
        judged = await screen.judge("https://turns.example/hook")
        assert (judged.refused, judged.to) == ("", "93.184.216.34")
        again = await screen.judge("https://turns.example/hook")
        assert (again.refused, again.to) == ("it leads to a private or local network", "")

        looked.clear()
        async with provider(sse(delta("Well."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as (app, url), client_of(url) as client:
                task = task_of(await sent(client, says("Hello?")))
                book = TaskBook(app.runs.database, clock=app.clock)
                hook = json.dumps({"url": "https://turns.example/hook"})
                await asyncio.to_thread(book.put_hook, task, "h", settings=hook)
                async with asyncio.timeout(10):
                    while not posted:
                        await asyncio.sleep(0.05)
        assert posted == [("https://turns.example/hook", "93.184.216.34")]
        assert looked == ["turns.example"], "its name is looked up once"

    asyncio.run(story())


def test_the_card_tells_what_operators_wrote_and_no_prompt_and_old_clients_find_their_way(tmp_path: Path) -> None:
    async def story() -> None:
        url = "http://127.0.0.1:9/v1"
        files = (
            file_of("one", url, agent='description = "Looks at logs."'),
            file_of("two", url, agent="hidden = true"),
        )
        agents = agents_of(tmp_path / "agents", *files)
        async with served(tmp_path / "state", agents) as (_, at), httpx2.AsyncClient(base_url=at) as http:
            card = (await http.get("/.well-known/agent-card.json")).json()
            assert [skill["id"] for skill in card["skills"]] == ["one"]
            assert card["skills"][0]["description"] == "Looks at logs."
            assert "small shop" not in json.dumps(card)
            assert card["url"].startswith(at)
            assert card["preferredTransport"] == "JSONRPC"
            assert card["capabilities"]["pushNotifications"] is True

    asyncio.run(story())


def test_a_client_of_the_old_protocol_is_answered(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(delta("Well."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with (
                served(tmp_path / "state", agents) as (_, at),
                httpx2.AsyncClient(base_url=at, timeout=20) as http,
            ):
                message = {
                    "messageId": "1",
                    "role": "user",
                    "kind": "message",
                    "parts": [{"kind": "text", "text": "Hi?"}],
                }
                call = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
                answer = (await http.post("/", json=call)).json()
                assert answer["result"]["status"]["state"] == "completed", answer
                get = {"jsonrpc": "2.0", "id": 2, "method": "tasks/get", "params": {"id": answer["result"]["id"]}}
                assert (await http.post("/", json=get)).json()["result"]["artifacts"][0]["artifactId"] == "final"

    asyncio.run(story())


def test_tasks_of_others_do_not_exist(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (app, url), client_of(url) as client:
            events = await sent(client, says("Is anything wrong?"))
            task = task_of(events)
            book = app.agents
            assert book is not None
            row = await app.runs.get(task)
            wanted = await app.agents.wanted(row.id)
            tasks = TaskBook(app.runs.database, clock=system_clock)
            assert tasks.find(task, by=wanted.by) is not None
            assert tasks.find(task, by=replace(wanted.by, user="somebody")) is None
            with pytest.raises(Exception, match="there is no task"):
                await client.get_task(GetTaskRequest(id="run_none"))

    asyncio.run(story())


def test_who_begins_to_listen_in_the_moment_in_which_it_ends_is_told_the_end_as_always(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (app, url), client_of(url) as client:
            task = task_of(await sent(client, says("What would you do?")))
            tasks = Tasks(
                app,
                TaskBook(app.runs.database, clock=system_clock),
                rates=Rates(per_minute=0, closing=Closing(listening_max=1)),
            )
            row = await tasks.find(task, by=None)
            whole, last = [each async for each in tasks.follow(row)]
            assert isinstance(whole, Task)
            assert isinstance(last, TaskStatusUpdateEvent)
            assert whole.status.state == last.status.state == COMPLETED
            assert [each async for each in tasks.follow(row, first=False)] == []

    asyncio.run(story())


def test_nobody_is_answered_where_identities_are_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        keys = IdentitySettings(api_keys=True)
        async with served(tmp_path, identity=keys) as (_, url), httpx2.AsyncClient(base_url=url) as http:
            assert (await http.post("/a2a/v1/rpc", json={})).status_code == 401
            assert (await http.get("/a2a/v1/tasks")).status_code == 401
            assert (await http.post("/", json={})).status_code == 401
            card = await http.get("/.well-known/agent-card.json")
            assert card.json()["securitySchemes"]["bearer"]

    asyncio.run(story())


@asynccontextmanager
async def _listener() -> AsyncIterator[tuple[int, asyncio.Queue[tuple[dict[str, str], bytes]]]]:
    """Listen for what is posted."""
    told: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        await told.put((headers, body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], told
    finally:
        server.close()
