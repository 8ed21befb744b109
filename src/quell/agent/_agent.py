"""The loop of one agent: model, tools, model, until there is an answer or a bound; every step of it is journalled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TypeAlias

import msgspec

from quell.agent._asking import Accounts, Asked, Voice, asked
from quell.agent._claims import Held, Holder
from quell.agent._context import fitted, request_of
from quell.agent._live import Live, Moved
from quell.agent._render import exhibit_of, result_text
from quell.agent._repeats import counted, judged
from quell.agent._seat import Closing, Seat
from quell.agent._talk import AgentAnswer, Exhibit, Role, Stop, Talk
from quell.agent._telling import told
from quell.domain import (
    CallProgress,
    CallWanted,
    Message,
    OutcomeKind,
    Parked,
    StepError,
    TokenUsage,
    Tool,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
    ToolSpec,
)
from quell.models import Model
from quell.runs import RunContext, WaitUntil
from quell.tools import Toolbox

_READS_AT_ONCE = 8
_MODEL_MINUTES_MAX = 10.0
_STEP_SLACK_S = 30.0
_LOOK_AGAIN_S = 30.0
"""Who waits for people looks this often by itself; who decides wakes it."""
_HEAD_CHARS = 240

Ended: TypeAlias = AgentAnswer | WaitUntil
"""How a segment of a conversation ends: with an answer, or waiting for people."""

_NUDGE_LAST = "FINAL TURN: no tool can be called after this. Answer now from what you have."
_NUDGE_REMAINING = "Only {n} turns remain. Wrap up."
_NUDGE_REPEAT = "This call has brought the same result {n} times. Do something else, or answer with what you have."
_NOT_TOGETHER = "(not carried out: it is the client's tool, and was called beside others; call it alone)"
_WRAP_UP = (
    "You have reached the limit of {what}. Answer the question now from the results above, as far as they go, "
    "and say what is missing. No tool can be called any more."
)
WHAT: Mapping[Stop, str] = {
    Stop.TURNS: "rounds of tools",
    Stop.CALLS: "tool calls",
    Stop.LOOP: "repeated calls",
    Stop.SPENT: "the budget",
    Stop.TIME: "time",
    Stop.MODEL: "the model",
    Stop.LENGTH: "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Acted:
    """A tool call that was made: its outcome, or that it waits for people."""

    outcome: ToolOutcome | None = None
    parked: Parked | None = None
    closing: Closing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Where a conversation stands when it goes no further by itself."""

    talk: Talk
    stop: Stop
    text: str = ""
    held: Held | None = None
    fault: str = ""
    client_calls: tuple[CallWanted, ...] = ()
    closing: Closing | None = None
    """The call that ended it."""
    parked: tuple[Parked, ...] = ()
    """What it waits for; then it has not ended."""


class Agent:
    """One agent: a role, a model, and the one way to the world."""

    def __init__(
        self,
        role: Role,
        *,
        model: Model,
        toolbox: Toolbox,
        live: Live | None = None,
        accounts: Accounts | None = None,
        monotonic: Callable[[], float],
        seat: Seat | None = None,
    ) -> None:
        """Join what an agent needs; it keeps nothing of a conversation itself."""
        self._seat = seat or Seat()
        self.role = role
        self._model = model
        self._toolbox = toolbox
        self._live = live or Live()
        self._accounts = accounts or Accounts()
        self._monotonic = monotonic

    async def begin(self, context: RunContext, messages: Sequence[Message], *, caller: ToolCaller) -> Ended:
        """Begin a conversation: its last message is what is asked, or brings results of the client's own tools."""
        return await self.converse(context, opened(messages), caller=caller)

    async def go_on(self, context: RunContext, state: Mapping[str, object], *, caller: ToolCaller) -> Ended:
        """Go on with a conversation that waited."""
        return await self.converse(context, talk_of(state), caller=caller)

    @told
    async def converse(self, context: RunContext, talk: Talk, *, caller: ToolCaller) -> Ended:
        """Go on with a conversation until it is answered, stopped, or waits for people.

        The same segment again after a crash asks no model and calls no tool that had ended before.
        """
        halt = await self.proceed(context, talk, caller=caller)
        if halt.parked:
            return await wait_of(context, halt.parked, state=state_of(halt.talk))
        return await self._ended(context, halt)

    async def proceed(self, context: RunContext, talk: Talk, *, caller: ToolCaller) -> Halt:
        """Go on as `converse` does, and leave it to the caller to tell anybody how it ended."""
        began_s = self._monotonic() - talk.began_s
        while True:
            if talk.waiting:
                talk, parked, closing = await self._act(context, talk, caller)
                talk = replace(talk, began_s=self._monotonic() - began_s)
                if closing is not None or parked:
                    return Halt(talk=talk, stop=Stop.ANSWERED, closing=closing, parked=tuple(parked))
            stop = self._bound(talk, elapsed_s=self._monotonic() - began_s)
            if stop is not None:
                return await self._stopped(context, talk, stop)
            reply = await self._ask(context, talk, left_s=self.role.minutes_max * 60 - (self._monotonic() - began_s))
            talk = replace(_with_reply(talk, reply, prefix=self._seat.prefix), began_s=self._monotonic() - began_s)
            if reply.fault:
                return _failed(talk, reply)
            if not reply.calls:
                stop = Stop.LENGTH if reply.reason == "length" else Stop.ANSWERED
                return Halt(talk=talk, stop=stop, text=reply.text, held=reply.held)
            talk, wanted = self._split(context, talk)
            if wanted:
                return Halt(talk=talk, stop=Stop.CLIENT, text=reply.text, held=reply.held, client_calls=wanted)

    # -- the model ----------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        context: RunContext,
        talk: Talk,
        *,
        left_s: float,
        tools: Sequence[ToolSpec] | None = None,
        notice: str = "",
    ) -> Asked:
        offered = self._offered() if tools is None else tools
        talk, fits = fitted(talk, self.role, tools=offered, window=self._model.window, counter=self._model.counter)
        if not fits:
            told = f"the request is larger than the window of {self._model.window} tokens"
            return Asked(fault="context_overflow", detail=told)
        request = request_of(talk, self.role, tools=offered, notice=notice)
        deadline_s = max(1.0, min(left_s, _MODEL_MINUTES_MAX * 60))

        async def work() -> Asked:
            return await asked(
                self._model,
                request,
                run=context.run.id,
                turn=talk.turn,
                voice=Voice(live=self._live, agent=self.role.name, task=self._seat.tag),
                accounts=self._accounts,
                deadline_s=deadline_s,
                holder=lambda: self._holder(talk),
                silent_s=self.role.silent_max_s,
            )

        name = f"{self._seat.prefix}model.{talk.turn}" + ("" if tools is None else ".last")
        try:
            reply = await context.step(name, work, returns=Asked, timeout_s=deadline_s + _STEP_SLACK_S)
        except StepError as error:
            return Asked(fault="step", detail=str(error))
        await context.emit(
            "agent.turn", key=name, **_turn_told(talk.turn, reply, agent=self.role.name, task=self._seat.tag)
        )
        self._live.settle(context.run.id)
        return reply

    def _split(self, context: RunContext, talk: Talk) -> tuple[Talk, tuple[CallWanted, ...]]:
        """Return the calls that the client is to carry out, when the turn wants no others; else those wait for a turn of their own."""
        theirs = {spec.name for spec in self.role.client_tools} - {tool.name for tool in self._tools()}
        wanted = tuple(each for each in talk.waiting if each.name in theirs)
        if not wanted:
            return talk, ()
        if len(wanted) == len(talk.waiting):
            # Ids that no other run has: the client's next question brings them back as history.
            named = tuple(replace(each, id=f"{context.run.id}.{each.id}") for each in wanted)
            return replace(talk, waiting=()), named
        messages = (
            *talk.messages,
            *(Message(role="tool", call=each.id, tool=each.name, text=_NOT_TOGETHER) for each in wanted),
        )
        return replace(talk, messages=messages, waiting=tuple(each for each in talk.waiting if each not in wanted)), ()

    def _offered(self) -> tuple[ToolSpec, ...]:
        own = tuple(
            ToolSpec(name=tool.name, description=tool.description, parameters=tool.input_schema)
            for tool in self._tools()
        )
        own = (*(self._seat.offered(spec) for spec in own), *self._seat.specs)
        names = {spec.name for spec in own}
        return (*own, *(spec for spec in self.role.client_tools if spec.name not in names))

    def _tools(self) -> Iterable[Tool]:
        globs = self.role.tools
        for tool in self._toolbox.catalog():
            if globs is None or any(fnmatchcase(tool.name, glob) for glob in globs):
                yield tool

    # -- tools --------------------------------------------------------------------------------------------------------

    async def _act(
        self, context: RunContext, talk: Talk, caller: ToolCaller
    ) -> tuple[Talk, list[Parked], Closing | None]:
        """Make the calls that wait: all at once when all of them only read, one after the other otherwise."""
        classes = {tool.name: tool.tool_class for tool in self._toolbox.catalog()}
        natives = {spec.name for spec in self._seat.specs}
        reads = all(classes.get(wanted.name) is ToolClass.READ for wanted in talk.waiting)
        principal = replace(caller.principal, is_tainted=caller.principal.is_tainted or talk.is_tainted)
        caller = replace(caller, principal=principal)
        acted: dict[str, _Acted] = {}
        if reads and natives.isdisjoint(wanted.name for wanted in talk.waiting):
            gate = asyncio.Semaphore(_READS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                tasks = {
                    wanted.id: group.create_task(self._call(context, wanted, caller, gate)) for wanted in talk.waiting
                }
            return await self._heard(context, talk, {identifier: task.result() for identifier, task in tasks.items()})
        gate = asyncio.Semaphore(1)
        for wanted in talk.waiting:
            if wanted.name in natives:
                acted[wanted.id] = await self._own(context, wanted, caller)
            else:
                acted[wanted.id] = await self._call(context, wanted, caller, gate)
            if acted[wanted.id].outcome is None:
                break  # what comes after it may rest on it, or comes too late
        return await self._heard(context, talk, acted)

    async def _own(self, context: RunContext, wanted: CallWanted, caller: ToolCaller) -> _Acted:
        await self._tell_asked(context, wanted)
        ended = await self._seat.use(context, wanted, caller=caller)
        return _Acted(closing=ended) if isinstance(ended, Closing) else _Acted(outcome=ended)

    async def _tell_asked(self, context: RunContext, wanted: CallWanted, *, intent: str = "") -> None:
        await context.emit(
            "agent.call_asked",
            key=f"{wanted.id}.asked",
            call=wanted.id,
            tool=wanted.name,
            arguments=wanted.arguments,
            intent=intent,
            agent=self.role.name,
            task=self._seat.tag,
        )

    async def _call(
        self, context: RunContext, wanted: CallWanted, caller: ToolCaller, gate: asyncio.Semaphore
    ) -> _Acted:
        wanted, intent = self._seat.plain(wanted)
        call = ToolCall(id=wanted.id, tool=wanted.name, arguments=wanted.arguments)

        def tell(progress: CallProgress) -> None:
            told = Moved(
                caller.run,
                wanted.id,
                wanted.name,
                progress.message,
                progress.done,
                progress.total,
                agent=self.role.name,
                task=self._seat.tag,
            )
            self._live.say(told)

        async def work() -> _Acted:
            ended = await self._toolbox.call(call, caller=replace(caller, on_progress=tell), explanation=intent)
            return _Acted(parked=ended) if isinstance(ended, Parked) else _Acted(outcome=ended)

        async with gate:
            await self._tell_asked(context, wanted, intent=intent)
            return await context.step(
                f"tool.{wanted.id}", work, returns=_Acted, timeout_s=caller.deadline_s + _STEP_SLACK_S
            )

    async def _heard(
        self, context: RunContext, talk: Talk, acted: Mapping[str, _Acted]
    ) -> tuple[Talk, list[Parked], Closing | None]:
        """Put what came into the conversation, in the order in which it was wanted."""
        parked: list[Parked] = []
        left: list[CallWanted] = []
        closing: Closing | None = None
        whose = {"agent": self.role.name, "task": self._seat.tag}
        for wanted in talk.waiting:
            ended = acted.get(wanted.id)
            if ended is None and closing is not None:
                ended = _Acted(outcome=_too_late(wanted, closing))
                await self._tell_asked(context, wanted)
            if ended is None:
                left.append(wanted)
            elif ended.closing is not None:
                closing = ended.closing
                done = ToolOutcome(call=wanted.id, tool=wanted.name, kind=OutcomeKind.OK)
                await context.emit("agent.call_ended", key=f"{wanted.id}.ended", **_told(done), **whose)
            elif ended.parked is not None:
                left.append(wanted)
                parked.append(ended.parked)
                await context.emit("agent.call_parked", key=f"{wanted.id}.parked", **_told(ended.parked), **whose)
            elif ended.outcome is not None:
                talk = await self._with_outcome(talk, wanted, ended.outcome)
                await context.emit("agent.call_ended", key=f"{wanted.id}.ended", **_told(ended.outcome), **whose)
        return replace(talk, waiting=tuple(left)), parked, closing

    async def _with_outcome(self, talk: Talk, wanted: CallWanted, outcome: ToolOutcome) -> Talk:
        wanted, intent = self._seat.plain(wanted)
        number = len(talk.exhibits) + 1
        exhibit = exhibit_of(f"{self._seat.tag}e{number}", outcome, call=wanted.id, tool=wanted.name)
        if self._seat.witness is not None:
            await self._seat.witness.saw(wanted, outcome, exhibit, reason=intent)
        repeats, count = counted(talk.repeats, wanted, outcome)
        failures = 0 if outcome.is_citable else talk.failures + 1
        notice = ""
        if judged(count, failures, nudge=self.role.repeats_nudge, most=self.role.repeats_max) != "fine":
            notice = _NUDGE_REPEAT.format(n=max(count, failures))
        notice = notice or self._turns_notice(talk)
        message = Message(
            role="tool", call=wanted.id, tool=wanted.name, text=result_text(exhibit, outcome, notice=notice)
        )
        return replace(
            talk,
            messages=(*talk.messages, message),
            exhibits=(*talk.exhibits, exhibit),
            repeats=repeats,
            failures=failures,
            calls=talk.calls + 1,
            failed=talk.failed + (not outcome.is_citable),
            is_tainted=True,
        )

    def _turns_notice(self, talk: Talk) -> str:
        left = self.role.turns_max - talk.turn
        if left <= 0 and self.role.nudge_last:
            return _NUDGE_LAST
        if self.role.nudge_remaining is not None and left <= self.role.nudge_remaining:
            return _NUDGE_REMAINING.format(n=max(left, 0))
        return ""

    # -- the end ------------------------------------------------------------------------------------------------------

    def _bound(self, talk: Talk, *, elapsed_s: float) -> Stop | None:
        """Return the bound that was reached, if one was."""
        worst = max((repeat.count for repeat in talk.repeats.values()), default=0)
        if judged(worst, talk.failures, nudge=self.role.repeats_nudge, most=self.role.repeats_max) == "stop":
            return Stop.LOOP
        if elapsed_s >= self.role.minutes_max * 60:
            return Stop.TIME
        if talk.calls >= self.role.calls_max:
            return Stop.CALLS
        return Stop.TURNS if talk.turn > self.role.turns_max else None

    async def _stopped(self, context: RunContext, talk: Talk, stop: Stop) -> Halt:
        """Stop at a bound: the model has one last word where there is time for it, and the label is ours."""
        if stop is not Stop.TIME:
            reply = await self._ask(context, talk, left_s=60.0, tools=(), notice=_WRAP_UP.format(what=WHAT[stop]))
            talk = replace(talk, usage=summed(talk.usage, reply.usage))
            if reply.text:
                return Halt(talk=talk, stop=stop, text=reply.text, held=reply.held)
        return Halt(talk=talk, stop=stop, text=_found_so_far(talk))

    async def _ended(self, context: RunContext, halt: Halt) -> AgentAnswer:
        talk, held = halt.talk, halt.held
        if held is None:
            text = halt.text
            good = tuple(exhibit.id for exhibit in talk.exhibits if exhibit.is_citable and f"[{exhibit.id}]" in text)
            held = Held(text=text, cited=good, unverified=0, confidence="low" if good else "none")
        answer = AgentAnswer(
            text=labelled(held.text, halt.stop),
            stop=halt.stop,
            usage=talk.usage,
            is_usage_told=talk.is_usage_told,
            turns=talk.turn,
            calls=talk.calls,
            failed=talk.failed,
            cited=held.cited,
            unverified=held.unverified,
            confidence="medium" if talk.failed and held.confidence == "high" else held.confidence,
            fault=halt.fault,
            client_calls=halt.client_calls,
            model=f"{self._model.provider}/{self._model.name}",
        )
        await context.emit("agent.answered", key="answered", **_told(answer))
        return answer

    def _holder(self, talk: Talk) -> Holder | None:
        if self.role.evidence == "off":
            return None
        questions = "\n".join(message.text for message in talk.messages if message.role == "user")
        return Holder(talk.exhibits, question=questions)


async def wait_of(context: RunContext, parked: Sequence[Parked], *, state: Mapping[str, object]) -> WaitUntil:
    """Return the wait for people: until the first of them has decided, or could not decide any more."""
    soon = await context.now() + timedelta(seconds=_LOOK_AGAIN_S)
    at: datetime = min([soon, *(each.expires_at for each in parked)])
    return WaitUntil(at=at, state=state)


def labelled(text: str, stop: Stop) -> str:
    """Return a text with what it lacks."""
    label = f"\n\n[Partial answer: stopped by {WHAT[stop]}.]" if stop.is_partial else ""
    return (text + label).strip()


def opened(messages: Sequence[Message]) -> Talk:
    """Return a conversation as a client tells it: results of its own tools are exhibits, and not to be trusted."""
    exhibits: list[Exhibit] = []
    told: list[Message] = []
    for message in messages:
        if message.role != "tool":
            told.append(message)
            continue
        outcome = ToolOutcome(call=message.call, tool=message.tool, kind=OutcomeKind.OK, content=message.text)
        exhibit = exhibit_of(f"e{len(exhibits) + 1}", outcome, call=message.call, tool=message.tool)
        exhibits.append(exhibit)
        told.append(replace(message, text=result_text(exhibit, outcome)))
    return Talk(messages=tuple(told), exhibits=tuple(exhibits), is_tainted=bool(exhibits))


def state_of(talk: Talk) -> Mapping[str, object]:
    """Return a conversation as a run keeps it."""
    state: Mapping[str, object] = msgspec.to_builtins({"talk": talk})
    return state


def talk_of(state: Mapping[str, object]) -> Talk:
    """Return a conversation as it was kept."""
    return msgspec.convert(state["talk"], type=Talk)


def _turn_told(turn: int, reply: Asked, *, agent: str, task: str) -> dict[str, object]:
    """Say how a turn ended: what was said of it is kept here, for who did not hear it."""
    return {
        "agent": agent,
        "task": task,
        "turn": turn,
        "text": reply.text if reply.held is None else reply.held.text,
        "calls": [call.name for call in reply.calls],
        "model": reply.model,
        "usage": msgspec.to_builtins(reply.usage),
        "tries": reply.tries,
        "reason": reply.reason,
        "fault": reply.fault,
    }


def _told(value: object) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(value)
    return found


def _with_reply(talk: Talk, reply: Asked, *, prefix: str) -> Talk:
    """Put a reply into the conversation; calls get ids of ours, so that no model can name a call of another turn."""
    turn = talk.turn + 1
    calls = tuple(replace(call, id=f"{prefix}{turn}.{number}") for number, call in enumerate(reply.calls, start=1))
    messages = talk.messages
    if reply.text or calls:
        messages = (*messages, Message(role="assistant", text=reply.text, calls=calls))
    return replace(
        talk,
        messages=messages,
        waiting=calls,
        turn=turn,
        usage=summed(talk.usage, reply.usage),
        is_usage_told=talk.is_usage_told and reply.is_usage_told,
    )


def _failed(talk: Talk, reply: Asked) -> Halt:
    stop = Stop.SPENT if reply.fault == "budget" else Stop.MODEL
    return Halt(talk=talk, stop=stop, text=_found_so_far(talk), fault=f"{reply.fault}: {reply.detail}")


def _too_late(wanted: CallWanted, closing: Closing) -> ToolOutcome:
    return ToolOutcome(
        call=wanted.id,
        tool=wanted.name,
        kind=OutcomeKind.DENIED,
        detail=f"not carried out: {closing.tool} came first, and ended this conversation",
    )


def summed(one: TokenUsage, other: TokenUsage) -> TokenUsage:
    return TokenUsage(
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        written_tokens=one.written_tokens + other.written_tokens,
    )


def _found_so_far(talk: Talk) -> str:
    """Say what was found, in our own words, when no model does."""
    good = [exhibit for exhibit in talk.exhibits if exhibit.is_citable]
    if not good:
        return "Nothing was found out."
    lines = [f"- {exhibit.tool} [{exhibit.id}]: {_head(exhibit)}" for exhibit in good[-10:]]
    return "\n".join(["What was found so far:", *lines])


def _head(exhibit: Exhibit) -> str:
    return " ".join(exhibit.text.split())[:_HEAD_CHARS]
