"""The client of the real a2a-sdk: card, send, stream, get, list, cancel, and the errors of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
import pytest
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError

from tests.clients._house import House
from tests.clients._script import Script, said
from tests.doors._model_bench import plain, silence

T = TypeVar("T")
BINDINGS = ("JSONRPC", "HTTP+JSON")
TO_SRE = {"X-Aura-Model": "sre"}
"""Which agent is asked, where there are several."""


@asynccontextmanager
async def _client(house: House, binding: str, *, streaming: bool = True) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(timeout=30, headers=TO_SRE) as http:
        card = await A2ACardResolver(http, house.url).get_agent_card()
        config = ClientConfig(streaming=streaming, httpx_client=http, supported_protocol_bindings=[binding])
        async with ClientFactory(config).create(card) as client:
            yield client


def _told(house: House, binding: str, story: Callable[[Client], Awaitable[T]], *, streaming: bool = True) -> T:
    async def whole() -> T:
        async with _client(house, binding, streaming=streaming) as client:
            return await story(client)

    return asyncio.run(whole())


def _ask(question: str) -> SendMessageRequest:
    message = Message(message_id=f"m-{question}", role=Role.ROLE_USER, parts=[Part(text=question)])
    return SendMessageRequest(message=message)


def _text(task: Task) -> str:
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


async def _last_task(client: Client, question: str) -> Task:
    events = [event async for event in client.send_message(_ask(question))]
    found = next((event.task.id or event.status_update.task_id for event in events if _names_task(event)), "")
    assert found, "the first event names a task"
    return await client.get_task(GetTaskRequest(id=found))


def _names_task(event: StreamResponse) -> bool:
    return bool(event.task.id or event.status_update.task_id)


def test_the_card_says_who_it_is_and_how_it_is_reached(open_house: House) -> None:
    async def story() -> AgentCard:
        async with httpx.AsyncClient(timeout=30) as http:
            return await A2ACardResolver(http, open_house.url).get_agent_card()

    card = asyncio.run(story())
    assert card.name
    assert card.version
    assert card.capabilities.streaming
    assert {interface.protocol_binding for interface in card.supported_interfaces} >= set(BINDINGS)
    assert all(interface.url.startswith(open_house.url) for interface in card.supported_interfaces)


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_message_becomes_a_task_that_ends_with_the_answer(
    open_house: House, script: Script, binding: str, *, streaming: bool
) -> None:
    question = f"Well over {binding} ({streaming})?"
    script.on(question, said("All ", "well."))
    task = _told(open_house, binding, lambda client: _last_task(client, question), streaming=streaming)
    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    assert "All well." in _text(task)


def test_a_task_whose_model_fails_has_failed(open_house: House, script: Script) -> None:
    script.on("Fail over there.", plain(401, {"error": {"message": "bad key", "type": "x"}}))
    task = _told(open_house, "JSONRPC", lambda client: _last_task(client, "Fail over there."))
    assert task.status.state == TaskState.TASK_STATE_FAILED


def test_a_task_that_nobody_waits_for_any_more_is_cancelled_once(open_house: House, script: Script) -> None:
    script.on("Think for ever, task.", silence())

    async def story(client: Client) -> tuple[Task, list[str]]:
        stream = client.send_message(_ask("Think for ever, task."))
        first = await anext(aiter(stream))
        identifier = first.task.id or first.status_update.task_id
        cancelled = await client.cancel_task(CancelTaskRequest(id=identifier))
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=identifier))
        listed = await client.list_tasks(ListTasksRequest(page_size=100))
        return cancelled, [task.id for task in listed.tasks]

    cancelled, listed = _told(open_house, "JSONRPC", story)
    assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
    assert cancelled.id in listed


def test_who_comes_back_follows_the_task_to_its_end(open_house: House, script: Script) -> None:
    script.on("Follow me again.", silence())

    async def story(client: Client) -> set[int]:
        first = await anext(aiter(client.send_message(_ask("Follow me again."))))
        identifier = first.task.id or first.status_update.task_id

        async def follow() -> set[int]:
            events = client.subscribe(SubscribeToTaskRequest(id=identifier))
            return {event.status_update.status.state or event.task.status.state async for event in events}

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.3)
        await client.cancel_task(CancelTaskRequest(id=identifier))
        return await following

    assert TaskState.TASK_STATE_CANCELED in _told(open_house, "JSONRPC", story)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_task_that_is_not_there_is_an_error_of_the_protocol(open_house: House, binding: str) -> None:
    async def story(client: Client) -> None:
        with pytest.raises(TaskNotFoundError):
            await client.get_task(GetTaskRequest(id="no-such-task"))

    _told(open_house, binding, story)
