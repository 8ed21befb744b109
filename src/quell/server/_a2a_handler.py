"""The methods of A2A, each on behalf of whoever was let in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress

from a2a.server.context import ServerCallContext
from a2a.server.events.event_queue import Event
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types.a2a_pb2 import (
    AgentCard,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import (
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from starlette.types import Receive

from quell.domain import AgentTask, OverloadError, Principal, TaskHook
from quell.server._a2a_push import Screen
from quell.server._a2a_refusals import refuse
from quell.server._a2a_tasks import ENDED, Tasks

_PAGE, _PAGE_MAX = 50, 100
_HOOKS_MAX = 10
_SHOWN = re.compile(r"[\x20-\x7e]{0,4096}")
_NEWEST = 2**62
"""More than any number of a task."""


class TaskHandler(RequestHandler):
    """Answers every method of the protocol, whichever way it came."""

    def __init__(self, tasks: Tasks, *, screen: Screen) -> None:
        """Take the tasks; `screen` says whether an address may be told of them."""
        self._tasks = tasks
        self._screen = screen

    @validate_request_params
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task | Message:
        """Begin or go on with a task, and wait for it unless the caller does not want to."""
        with self._placed(context):
            row = await self._sent(params, context)
            if not params.configuration.return_immediately:
                await self._ended_or_left(row, context)
        return await self._tasks.whole(row, history=_history_of(params.configuration))

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        """Begin or go on with a task, and tell what happens in it. Who leaves can come back by subscribing."""
        with self._placed(context):
            row = await self._sent(params, context)
            async with aclosing(self._tasks.follow(row)) as events:
                async for event in events:
                    yield event

    @validate_request_params
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task | None:
        """Return one task."""
        row = await self._tasks.find(params.id, by=_caller(context))
        return await self._tasks.whole(row, history=_history_of(params))

    @validate_request_params
    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        """List the caller's tasks, the newest first."""
        if params.page_size < 0:
            raise InvalidParamsError(message="a page has one task at least")
        size = min(params.page_size or _PAGE, _PAGE_MAX)
        before, token = _page_of(params.page_token), ""
        found: list[Task] = []
        last = before
        async with aclosing(self._matching(params, by=_caller(context), before=before)) as matching:
            async for row, task in matching:
                if len(found) == size:
                    token = str(last)
                    break
                found.append(task)
                last = row.number
        return ListTasksResponse(tasks=found, next_page_token=token, page_size=size, total_size=len(found))

    async def _matching(
        self, params: ListTasksRequest, *, by: Principal, before: int
    ) -> AsyncGenerator[tuple[AgentTask, Task], None]:
        """Yield the tasks of a list, the newest first: whether one is in a state is only known of each."""
        history = _history_of(params) or 0
        while rows := await asyncio.to_thread(
            self._tasks.book.listed, by=by, context=params.context_id, before=before, rows_max=_PAGE_MAX
        ):
            for row in rows:
                before = row.number
                task = await self._tasks.whole(row, history=history, artifacts=params.include_artifacts)
                if params.status in (TaskState.TASK_STATE_UNSPECIFIED, task.status.state) and _is_after(task, params):
                    yield row, task

    @validate_request_params
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task | None:
        """Cancel a task."""
        return await self._tasks.cancel(await self._tasks.find(params.id, by=_caller(context)))

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        """Tell what happens in a task from now on, from whichever process it runs in."""
        row = await self._tasks.find(params.id, by=_caller(context))
        state = (await self._tasks.status(row)).state
        if state in ENDED:
            raise UnsupportedOperationError(message=f"task {row.task} has ended: get it instead")
        with self._placed(context):
            async with aclosing(self._tasks.follow(row)) as events:
                async for event in events:
                    yield event

    # -- who is told --------------------------------------------------------------------------------------------------

    @validate_request_params
    async def on_create_task_push_notification_config(
        self, params: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Keep an address that is told of a task."""
        row = await self._tasks.find(params.task_id, by=_caller(context))
        return await self._hooked(params, row)

    @validate_request_params
    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Return one of them."""
        row = await self._tasks.find(params.task_id, by=_caller(context))
        for hook in await asyncio.to_thread(self._tasks.book.hooks, row.task):
            if hook.id == params.id or not params.id:
                return _config_of(hook)
        raise TaskNotFoundError(message=f"task {row.task} has no such configuration")

    @validate_request_params
    async def on_list_task_push_notification_configs(
        self, params: ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        """Return all of them."""
        row = await self._tasks.find(params.task_id, by=_caller(context))
        hooks = await asyncio.to_thread(self._tasks.book.hooks, row.task)
        return ListTaskPushNotificationConfigsResponse(configs=[_config_of(hook) for hook in hooks])

    @validate_request_params
    async def on_delete_task_push_notification_config(
        self, params: DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Tell an address nothing more."""
        row = await self._tasks.find(params.task_id, by=_caller(context))
        await asyncio.to_thread(self._tasks.book.drop_hook, row.task, params.id)

    async def on_get_extended_agent_card(
        self,
        params: GetExtendedAgentCardRequest,  # noqa: ARG002 - the protocol's own signature
        context: ServerCallContext,  # noqa: ARG002 - as above
    ) -> AgentCard:
        """Refuse: the card that everybody sees is all there is."""
        raise ExtendedAgentCardNotConfiguredError

    async def _ended_or_left(self, row: AgentTask, context: ServerCallContext) -> None:
        """Wait until there is nothing to wait for: the task has ended or asks, or whoever sent it is gone."""

        async def ended() -> None:
            async with aclosing(self._tasks.follow(row, first=False)) as events:
                async for _ in events:
                    pass

        async def left() -> None:
            receive: Receive = context.state["receive"]
            while (await receive())["type"] != "http.disconnect":
                pass

        waits = [asyncio.ensure_future(ended()), asyncio.ensure_future(left())]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    @contextmanager
    def _placed(self, context: ServerCallContext) -> Iterator[None]:
        """Count whoever waits for a task, for as long as that; a message that is one too many ends as such."""
        try:
            with self._tasks.place():
                yield
        except OverloadError as error:
            raise refuse(context.state, error) from error

    async def _sent(self, params: SendMessageRequest, context: ServerCallContext) -> AgentTask:
        headers = context.state.get("headers", {})
        agent = str(headers.get("x-aura-model", "")) if isinstance(headers, Mapping) else ""
        hook = None
        if params.configuration.HasField("task_push_notification_config"):
            hook = params.configuration.task_push_notification_config
            await self._screened(hook)
        told = MessageToDict(params.metadata)
        metadata = {str(key): str(value) for key, value in told.items()}
        row = await self._tasks.send(params.message, by=_caller(context), agent=agent, metadata=metadata)
        if hook is not None:
            with suppress(InvalidParamsError):  # it was screened a moment ago
                await self._hooked(hook, row)
        return row

    async def _hooked(self, wanted: TaskPushNotificationConfig, row: AgentTask) -> TaskPushNotificationConfig:
        await self._screened(wanted)
        known = await asyncio.to_thread(self._tasks.book.hooks, row.task)
        kept = TaskPushNotificationConfig()
        kept.CopyFrom(wanted)
        kept.task_id = row.task
        kept.id = kept.id or f"hook-{len(known) + 1}"
        if len(known) >= _HOOKS_MAX and kept.id not in {hook.id for hook in known}:
            raise InvalidParamsError(message=f"a task has {_HOOKS_MAX} configurations at most")
        await asyncio.to_thread(self._tasks.book.put_hook, row.task, kept.id, settings=json.dumps(MessageToDict(kept)))
        return kept

    async def _screened(self, wanted: TaskPushNotificationConfig) -> None:
        if why := (await self._screen.judge(wanted.url)).refused:
            raise InvalidParamsError(message=f"this address is not told of tasks: {why}")
        shown = wanted.authentication
        if not all(map(_SHOWN.fullmatch, (wanted.token, shown.scheme, shown.credentials))):
            raise InvalidParamsError(message="a token and credentials are up to 4,096 visible characters of ASCII")


def _caller(context: ServerCallContext) -> Principal:
    principal = context.state["principal"]
    assert isinstance(principal, Principal), "its route is guarded"
    return principal


def _page_of(token: str) -> int:
    """Return where a page begins. Raises InvalidParamsError for a token that is none of ours."""
    if not token:
        return _NEWEST
    if not (token.isascii() and token.isdecimal() and len(token) <= len(str(_NEWEST)) and int(token) <= _NEWEST):
        raise InvalidParamsError(message="that is no page token of ours")
    return int(token)


def _history_of(params: object) -> int | None:
    has = params.HasField("history_length")  # type: ignore[attr-defined]  # every message of the protocol has it
    return int(params.history_length) if has else None  # type: ignore[attr-defined]  # as above


def _config_of(hook: TaskHook) -> TaskPushNotificationConfig:
    config = TaskPushNotificationConfig()
    ParseDict(json.loads(hook.settings), config)
    return config


def _is_after(task: Task, params: ListTasksRequest) -> bool:
    if not params.HasField("status_timestamp_after"):
        return True
    return bool(task.status.timestamp.ToDatetime() >= params.status_timestamp_after.ToDatetime())
