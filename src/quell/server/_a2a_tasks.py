"""Tasks of other agents as durable runs: what a task is at any moment is read from its runs, so that none hangs for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from datetime import datetime

from a2a.server.events.event_queue import Event
from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import InvalidParamsError, TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError
from google.protobuf.json_format import MessageToDict

from quell.agent import AgentAnswer, Stop
from quell.app import App, TaskBook
from quell.domain import (
    AgentTask,
    Approval,
    ChatAsk,
    Heard,
    Principal,
    QuellError,
    RefusedError,
    Run,
    RunStatus,
    UsageError,
)
from quell.domain import Message as Said
from quell.governance import Approvals
from quell.server._rates import Rates

ENDED = frozenset({TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_CANCELED})
STILL = ENDED | {TaskState.TASK_STATE_INPUT_REQUIRED}
"""States that do not pass by themselves."""
_FROM_RUN: Mapping[RunStatus, TaskState] = {
    RunStatus.QUEUED: TaskState.TASK_STATE_SUBMITTED,
    RunStatus.RUNNING: TaskState.TASK_STATE_WORKING,
    RunStatus.WAITING: TaskState.TASK_STATE_WORKING,
    RunStatus.FAILED: TaskState.TASK_STATE_FAILED,
    RunStatus.CANCELLED: TaskState.TASK_STATE_CANCELED,
}
_TEXT_MAX_CHARS = 200_000
_APPROVALS_MAX = 20
RESPONSE, FINAL = "response", "final"
_LAST_HEARD = frozenset({"run.finished", "run.failed", "run.cancelled"})


class Tasks:
    """Begins, reads, follows and ends the tasks of callers."""

    def __init__(self, app: App, book: TaskBook, *, rates: Rates) -> None:
        """Take the app whose agents these are, the book that tells which runs a task is, and what bounds questions."""
        self._app = app
        self._rates = rates
        self.book = book

    def place(self) -> AbstractContextManager[None]:
        """Count somebody who waits for what comes of a task. Raises OverloadError when there are too many."""
        return self._rates.closing.place()

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send(self, message: Message, *, by: Principal, agent: str, metadata: Mapping[str, str]) -> AgentTask:
        """Begin a task, or go on with one that waits for its caller.

        Raises InvalidParamsError for what no agent takes, TaskNotFoundError, UnsupportedOperationError for a task that
        has ended or is at work, or OverloadError when its sender asks too often.
        """
        text = _text_of(message)
        if message.task_id:
            row = await self.find(message.task_id, by=by)
            state = (await self.status(row)).state
            if decision := _decision_of(message):
                await self._decide(decision, row, by=by)
                return row
            if state != TaskState.TASK_STATE_INPUT_REQUIRED or await self._waiting(row.run):
                told = "it has ended" if state in ENDED else "it is at work, or waits for a decision of people"
                raise UnsupportedOperationError(message=f"task {row.task} takes no message now: {told}")
            # One answer to what the run before asked: of two that come at once, one begins.
            ask = ChatAsk(messages=(), agent=agent, session=row.context, metadata=metadata)
            return await self._begin(text, ask, task=row.task, by=by, key=f"a2a:{row.task}:{row.number}")
        context = message.context_id or f"ctx_{self._app.entropy(12).hex()}"
        ask = ChatAsk(messages=(), agent=agent, session=context, metadata=metadata)
        return await self._begin(text, ask, task="", by=by, key="")

    async def _begin(self, text: str, ask: ChatAsk, *, task: str, by: Principal, key: str) -> AgentTask:
        desk, context = self._app.agents, ask.session
        try:
            self._rates.take(by)
            said = (*await desk.conversation(context, by=by), Said(role="user", text=text))
            run = await desk.start(replace(ask, messages=said), by=by, key=key)
        except (RefusedError, UsageError) as error:
            raise InvalidParamsError(message=f"{error}; {error.hint}" if error.hint else str(error)) from error
        task = task or run.id
        await asyncio.to_thread(self.book.add, task, run=run.id, context=context, by=by)
        return await self.find(task, by=by)

    async def _decide(self, decision: Mapping[str, str], row: AgentTask, *, by: Principal) -> None:
        if decision["approval"] not in {each.id for each in await self._waiting(row.run)}:
            raise InvalidParamsError(message=f"task {row.task} does not wait for this approval")
        if decision["decision"] not in {"approve", "reject"}:
            raise InvalidParamsError(message="a decision is approve or reject")
        try:
            await self._app.warden.vote(
                decision["approval"],
                by=by,
                verdict="approve" if decision["decision"] == "approve" else "reject",
                digest_seen=decision["digest"],
                reason=decision.get("reason", ""),
                way="api",
            )
        except QuellError as error:
            raise InvalidParamsError(message=f"{error}; {error.hint}" if error.hint else str(error)) from error

    # -- reading ------------------------------------------------------------------------------------------------------

    async def find(self, task: str, *, by: Principal | None) -> AgentTask:
        """Return where a task stands. Raises TaskNotFoundError, for a task of somebody else as well."""
        row = await asyncio.to_thread(self.book.find, task, by=by)
        if row is None:
            raise TaskNotFoundError(message=f"there is no task {task[:100]!r}")
        return row

    async def status(self, row: AgentTask) -> TaskStatus:
        """Return the state of a task now, with what there is to say about it."""
        run = await self._app.runs.get(row.run)
        if run.status is RunStatus.SUCCEEDED:
            answer = await self._app.agents.answer(run.id, timeout_s=0)
            assert answer is not None, "a run that succeeded has its answer"
            state = _state_of(answer)
            # Who has answered says so in its artifacts; what is asked back, or went wrong, stands in the status.
            words = answer.text if state != TaskState.TASK_STATE_COMPLETED else ""
            return _status(state, words or answer.fault, row=row, at=run.updated_at)
        if run.status in {RunStatus.RUNNING, RunStatus.WAITING} and (waiting := await self._waiting(run.id)):
            return _status(
                TaskState.TASK_STATE_INPUT_REQUIRED,
                "\n\n".join(Approvals.show(each, form="text") for each in waiting),
                row=row,
                at=run.updated_at,
                data={"approvals": [_row(each) for each in waiting]},
            )
        return _status(_FROM_RUN[run.status], _why(run), row=row, at=run.updated_at)

    async def whole(self, row: AgentTask, *, history: int | None = None, artifacts: bool = True) -> Task:
        """Return a task with what was said in it, and what came of it."""
        told: list[Message] = []
        made: list[Artifact] = []
        for run in await asyncio.to_thread(self.book.runs_of, row.task):
            wanted = await self._app.agents.wanted(run)
            told.append(_message(wanted.ask.messages[-1].text, row=row, role=Role.ROLE_USER, identifier=f"{run}.asked"))
            answer = await self._answer(run)
            if answer is not None:
                told.append(_message(answer.text, row=row, role=Role.ROLE_AGENT, identifier=f"{run}.answered"))
                made = [_artifact(FINAL, answer.text, metadata=_metadata(answer))]
        kept = told if history is None else told[len(told) - min(history, len(told)) :]
        task = Task(id=row.task, context_id=row.context, status=await self.status(row), history=kept)
        task.artifacts.extend(made if artifacts else [])
        return task

    async def _answer(self, run: str) -> AgentAnswer | None:
        try:
            return await self._app.agents.answer(run, timeout_s=0)
        except QuellError:
            return None

    async def _waiting(self, run: str) -> Sequence[Approval]:
        return await self._app.warden.waiting(run, items_max=_APPROVALS_MAX)

    # -- following ----------------------------------------------------------------------------------------------------

    async def follow(self, row: AgentTask, *, first: bool = True) -> AsyncGenerator[Event, None]:
        """Yield a task as it stands, then what happens in it, until it has ended or waits for its caller."""
        task = await self.whole(row)
        if first:
            yield task
        if task.status.state in ENDED:
            if first:
                # It ended between two looks at it: whoever follows is told the end as such, as always.
                yield _moved(row, task.status)
            return
        # A server that stops ends it between two events: whoever listened subscribes again.
        async with aclosing(self._rates.closing.until(self._app.agents.follow(row.run))) as heard:
            async for each in heard:
                for event in await self._events(each, row):
                    yield event
                    if isinstance(event, TaskStatusUpdateEvent) and event.status.state in STILL:
                        return

    async def _events(self, heard: Heard, row: AgentTask) -> Sequence[Event]:
        if heard.name in _LAST_HEARD:
            return await self._ending(row)
        if heard.name == "agent.call_parked":
            status = await self.status(row)
            return [_moved(row, status)] if status.state == TaskState.TASK_STATE_INPUT_REQUIRED else []
        event = _event_of(heard, row)
        return [] if event is None else [event]

    async def _ending(self, row: AgentTask) -> Sequence[Event]:
        answer = await self._answer(row.run)
        made = [] if answer is None else [_update(row, FINAL, answer.text, append=False, metadata=_metadata(answer))]
        return [*made, _moved(row, await self.status(row))]

    # -- ending -------------------------------------------------------------------------------------------------------

    async def cancel(self, row: AgentTask) -> Task:
        """Cancel a task wherever it is. Raises TaskNotCancelableError when it has ended."""
        if (await self.status(row)).state in ENDED:
            raise TaskNotCancelableError(message=f"task {row.task} has ended")
        run = await self._app.runs.get(row.run)
        if run.status is RunStatus.SUCCEEDED:
            # It waits for its caller's answer: nothing runs that could be cancelled.
            raise TaskNotCancelableError(message=f"task {row.task} has said all and waits for you; just send nothing")
        await self._app.agents.cancel(row.run)
        return await self.whole(row)


def _event_of(heard: Heard, row: AgentTask) -> Event | None:
    """Return what tells of a thing that happened; None for what callers are not told."""
    body = heard.body
    match heard.name:
        case "text":
            return _update(row, RESPONSE, str(body["text"]), append=True)
        case "void":
            return _update(row, RESPONSE, "", append=False)
        case "reasoning":
            return _update(row, f"reasoning_{body.get('turn')}", str(body["text"]), append=True)
        case "run.started":
            return _moved(row, _status(TaskState.TASK_STATE_WORKING, "", row=row))
        case "agent.call_asked":
            return _moved(row, _status(TaskState.TASK_STATE_WORKING, f"calls {body.get('tool')}", row=row))
        case _:
            return None


def _state_of(answer: AgentAnswer) -> TaskState:
    if answer.stop is Stop.ASKED:
        return TaskState.TASK_STATE_INPUT_REQUIRED
    return TaskState.TASK_STATE_FAILED if answer.fault else TaskState.TASK_STATE_COMPLETED


def _why(run: Run) -> str:
    return run.error if run.status is RunStatus.FAILED else ""


def _text_of(message: Message) -> str:
    """Return what a message says. Raises InvalidParamsError for what is no text."""
    parts: list[str] = []
    for part in message.parts:
        kind = part.WhichOneof("content")
        if kind == "text":
            parts.append(part.text)
        elif kind == "data":
            parts.append(json.dumps(MessageToDict(part.data), ensure_ascii=False))
        else:
            raise InvalidParamsError(message=f"a part is {kind or 'empty'}: agents here take text and data")
    text = "\n".join(parts)
    if not text.strip() or len(text) > _TEXT_MAX_CHARS:
        raise InvalidParamsError(message=f"a message holds between 1 and {_TEXT_MAX_CHARS:,} characters of text")
    return text


def _decision_of(message: Message) -> Mapping[str, str] | None:
    """Return what a message decides about a request for approval; None when it decides nothing."""
    for part in message.parts:
        if part.WhichOneof("content") == "data":
            body = MessageToDict(part.data)
            if isinstance(body, dict) and {"approval", "decision", "digest"} <= set(body):
                return {str(key): str(value) for key, value in body.items()}
    return None


def _row(approval: Approval) -> dict[str, object]:
    return {
        "approval": approval.id,
        "digest": approval.digest,
        "expires_at": approval.terms.expires_at.isoformat(),
        "tools": [asked.call.tool for asked in approval.terms.calls],
    }


def _metadata(answer: AgentAnswer) -> dict[str, object]:
    return {"stop": answer.stop.value, "confidence": answer.confidence, "cited": list(answer.cited)}


def _message(text: str, *, row: AgentTask, role: Role, identifier: str) -> Message:
    return Message(message_id=identifier, context_id=row.context, task_id=row.task, role=role, parts=[Part(text=text)])


def _artifact(identifier: str, text: str, *, metadata: Mapping[str, object] | None = None) -> Artifact:
    made = Artifact(artifact_id=identifier, name=identifier, parts=[Part(text=text)])
    if metadata:
        made.metadata.update(dict(metadata))
    return made


def _update(
    row: AgentTask, identifier: str, text: str, *, append: bool, metadata: Mapping[str, object] | None = None
) -> TaskArtifactUpdateEvent:
    return TaskArtifactUpdateEvent(
        task_id=row.task,
        context_id=row.context,
        artifact=_artifact(identifier, text, metadata=metadata),
        append=append,
        last_chunk=identifier == FINAL,
    )


def _status(
    state: TaskState,
    words: str,
    *,
    row: AgentTask,
    at: datetime | None = None,
    data: Mapping[str, object] | None = None,
) -> TaskStatus:
    status = TaskStatus(state=state)
    if words:
        identifier = f"{row.run}.{TaskState.Name(state).lower()}"
        status.message.CopyFrom(_message(words, row=row, role=Role.ROLE_AGENT, identifier=identifier))
        if data:
            part = Part()
            part.data.struct_value.update(dict(data))
            status.message.parts.append(part)
    if at is not None:
        status.timestamp.FromDatetime(at)
    return status


def _moved(row: AgentTask, status: TaskStatus) -> TaskStatusUpdateEvent:
    return TaskStatusUpdateEvent(task_id=row.task, context_id=row.context, status=status)
