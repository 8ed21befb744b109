"""The loop of one agent: model, tools, model, until there is an answer or a bound; every step of it is journalled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TypeAlias

import msgspec

from quell.agent._asking import Accounts, Asked, asked
from quell.agent._claims import Held, Holder
from quell.agent._context import Fit, fitted, request_of, room_of
from quell.agent._live import Live, Moved
from quell.agent._render import SKILLS, Source, exhibit_of, result_text
from quell.agent._repeats import counted, judged
from quell.agent._route import Question, offered, question_of, unasked
from quell.agent._talk import AgentAnswer, Exhibit, Role, Stop, Talk
from quell.agent._telling import told
from quell.domain import (
    CallOrigin,
    CallProgress,
    CallWanted,
    Entropy,
    Message,
    ModelFault,
    ModelRequest,
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
    one_line,
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
_FENCE_BYTES = 4

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
_WHAT: Mapping[Stop, str] = {
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
        entropy: Entropy = os.urandom,
    ) -> None:
        """Join what an agent needs; it keeps nothing of a conversation itself."""
        self.role = role
        self._model = model
        self._toolbox = toolbox
        self._live = live or Live()
        self._accounts = accounts or Accounts()
        self._monotonic = monotonic
        self._entropy = entropy

    async def begin(self, context: RunContext, messages: Sequence[Message], *, caller: ToolCaller) -> Ended:
        """Begin a conversation: its last message is what is asked, or brings results of the client's own tools."""
        return await self.converse(context, opened(messages, fence=self._entropy(_FENCE_BYTES).hex()), caller=caller)

    async def go_on(self, context: RunContext, state: Mapping[str, object], *, caller: ToolCaller) -> Ended:
        """Go on with a conversation that waited."""
        return await self.converse(context, talk_of(state), caller=caller)

    @told
    async def converse(self, context: RunContext, talk: Talk, *, caller: ToolCaller) -> Ended:
        """Go on with a conversation until it is answered, stopped, or waits for people.

        The same segment again after a crash asks no model and calls no tool that had ended before.
        """
        began_s = self._monotonic() - talk.began_s
        while True:
            if talk.waiting:
                talk, parked = await self._act(context, talk, caller)
                if parked:
                    return await self._wait(context, replace(talk, began_s=self._monotonic() - began_s), parked)
            stop = self._bound(talk, elapsed_s=self._monotonic() - began_s)
            if stop is not None:
                return await self._stopped(context, talk, stop)
            left_s = self.role.minutes_max * 60 - (self._monotonic() - began_s)
            talk, reply = await self._ask(context, talk, left_s=left_s)
            talk = _with_reply(talk, reply)
            if reply.fault:
                return await self._failed(context, talk, reply)
            if not reply.calls:
                return await self._answered(context, talk, reply)
            if (question := question_of(reply.calls)) is not None:
                return await self._asked_back(context, talk, reply, question)
            talk, wanted = self._split(context, talk)
            if wanted:
                return await self._ended(context, talk, reply.text, Stop.CLIENT, held=reply.held, client_calls=wanted)

    # -- the model ----------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        context: RunContext,
        talk: Talk,
        *,
        left_s: float,
        tools: Sequence[ToolSpec] | None = None,
        notice: str = "",
    ) -> tuple[Talk, Asked]:
        """Ask for the next turn; return the conversation as it went out, and what came of it."""
        told = offered(talk, self.role, self._tools()) if tools is None else tools
        name = f"model.{talk.turn}" if tools is None else f"model.{talk.turn}.last"
        window, counter = self._model.window, self._model.counter
        room = None if window is None else room_of(self.role, window)
        fit = await self._fit(context, talk, told, room, key=name)
        reply = Asked(fault=ModelFault.OVERFLOW, detail=f"the request is larger than the window of {window} tokens")
        if fit.fits:
            request = request_of(fit.talk, self.role, tools=told, notice=notice)
            reply = await self._turn(context, fit.talk, request, left_s=left_s, name=name)
            if reply.fault == ModelFault.OVERFLOW:
                # The provider counts otherwise, or nobody said how large its window is: once more with half of it.
                fit = await self._fit(context, fit.talk, told, counter.count(request) // 2, key=f"{name}.again")
                if fit.compacted is not None:
                    request = request_of(fit.talk, self.role, tools=told, notice=notice)
                    reply = await self._turn(context, fit.talk, request, left_s=left_s, name=f"{name}.again")
        await context.emit("agent.turn", key=name, **_turn_told(talk.turn, reply, agent=self.role.name))
        self._live.settle(context.run.id)
        return fit.talk, reply

    async def _fit(
        self, context: RunContext, talk: Talk, tools: Sequence[ToolSpec], room: int | None, *, key: str
    ) -> Fit:
        fit = fitted(talk, self.role, tools=tools, room=room, counter=self._model.counter)
        if fit.compacted is not None:
            told = _told(fit.compacted)
            await context.emit("agent.compacted", key=f"{key}.compacted", agent=self.role.name, turn=talk.turn, **told)
        return fit

    async def _turn(self, context: RunContext, talk: Talk, request: ModelRequest, *, left_s: float, name: str) -> Asked:
        deadline_s = max(1.0, min(left_s, _MODEL_MINUTES_MAX * 60))

        async def work() -> Asked:
            return await asked(
                self._model,
                request,
                run=context.run.id,
                turn=talk.turn,
                live=self._live,
                accounts=self._accounts,
                deadline_s=deadline_s,
                holder=lambda: self._holder(talk),
            )

        try:
            return await context.step(name, work, returns=Asked, timeout_s=deadline_s + _STEP_SLACK_S)
        except StepError as error:
            return Asked(fault="step", detail=str(error))

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

    def _tools(self) -> Iterable[Tool]:
        globs = self.role.tools
        for tool in self._toolbox.catalog():
            if globs is None or any(fnmatchcase(tool.name, glob) for glob in globs):
                yield tool

    # -- tools --------------------------------------------------------------------------------------------------------

    async def _act(self, context: RunContext, talk: Talk, caller: ToolCaller) -> tuple[Talk, list[Parked]]:
        """Make the calls that wait: all at once when all of them only read, one after the other otherwise."""
        classes = {tool.name: tool.tool_class for tool in self._toolbox.catalog()}
        reads = all(classes.get(wanted.name) is ToolClass.READ for wanted in talk.waiting)
        principal = replace(caller.principal, is_tainted=caller.principal.is_tainted or talk.is_tainted)
        caller = replace(caller, principal=principal)
        acted: dict[str, _Acted] = {}
        if reads:
            gate = asyncio.Semaphore(_READS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                tasks = {
                    wanted.id: group.create_task(self._call(context, wanted, caller, gate)) for wanted in talk.waiting
                }
            acted = {identifier: task.result() for identifier, task in tasks.items()}
        else:
            gate = asyncio.Semaphore(1)
            for wanted in talk.waiting:
                acted[wanted.id] = await self._call(context, wanted, caller, gate)
                if acted[wanted.id].parked is not None:
                    break  # what comes after it may rest on it
        return await self._heard(context, talk, acted)

    async def _call(
        self, context: RunContext, wanted: CallWanted, caller: ToolCaller, gate: asyncio.Semaphore
    ) -> _Acted:
        call = ToolCall(id=wanted.id, tool=wanted.name, arguments=wanted.arguments)

        def tell(progress: CallProgress) -> None:
            told = Moved(caller.run, wanted.id, wanted.name, progress.message, progress.done, progress.total)
            self._live.say(told)

        origin = CallOrigin.TEXT if wanted.form == "text" else caller.origin

        async def work() -> _Acted:
            if (refused := unasked(wanted)) is not None:
                return _Acted(outcome=refused)
            ended = await self._toolbox.call(call, caller=replace(caller, origin=origin, on_progress=tell))
            return _Acted(parked=ended) if isinstance(ended, Parked) else _Acted(outcome=ended)

        async with gate:
            await context.emit(
                "agent.call_asked",
                key=f"{wanted.id}.asked",
                call=wanted.id,
                tool=wanted.name,
                arguments=wanted.arguments,
            )
            return await context.step(
                f"tool.{wanted.id}", work, returns=_Acted, timeout_s=caller.deadline_s + _STEP_SLACK_S
            )

    async def _heard(self, context: RunContext, talk: Talk, acted: Mapping[str, _Acted]) -> tuple[Talk, list[Parked]]:
        """Put what came into the conversation, in the order in which it was wanted."""
        parked: list[Parked] = []
        left: list[CallWanted] = []
        for wanted in talk.waiting:
            ended = acted.get(wanted.id)
            if ended is None:
                left.append(wanted)
            elif ended.parked is not None:
                left.append(wanted)
                parked.append(ended.parked)
                await context.emit("agent.call_parked", key=f"{wanted.id}.parked", **_told(ended.parked))
            elif ended.outcome is not None:
                talk = self._with_outcome(talk, wanted, ended.outcome)
                await context.emit("agent.call_ended", key=f"{wanted.id}.ended", **_told(ended.outcome))
        return replace(talk, waiting=tuple(left)), parked

    def _with_outcome(self, talk: Talk, wanted: CallWanted, outcome: ToolOutcome) -> Talk:
        source = self._source(wanted, outcome)
        exhibit = exhibit_of(f"e{len(talk.exhibits) + 1}", outcome, call=wanted.id, tool=wanted.name, source=source)
        repeats, count = counted(talk.repeats, wanted, outcome)
        failures = 0 if outcome.is_citable else talk.failures + 1
        notice = ""
        if judged(count, failures, nudge=self.role.repeats_nudge, most=self.role.repeats_max) != "fine":
            notice = _NUDGE_REPEAT.format(n=max(count, failures))
        notice = notice or self._turns_notice(talk)
        message = Message(
            role="tool",
            call=wanted.id,
            tool=wanted.name,
            text=result_text(exhibit, outcome, key=talk.fence, notice=notice, source=source),
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

    def _source(self, wanted: CallWanted, outcome: ToolOutcome) -> Source:
        """Say who wrote a result: a skill is the operator's, where a tool of ours brought it."""
        if wanted.name not in SKILLS or not outcome.is_citable:
            return ""
        is_own = any(tool.name == wanted.name and not tool.server for tool in self._toolbox.catalog())
        return "operator" if is_own else ""

    def _turns_notice(self, talk: Talk) -> str:
        left = self.role.turns_max - talk.turn
        if left <= 0 and self.role.nudge_last:
            return _NUDGE_LAST
        if self.role.nudge_remaining is not None and left <= self.role.nudge_remaining:
            return _NUDGE_REMAINING.format(n=max(left, 0))
        return ""

    async def _wait(self, context: RunContext, talk: Talk, parked: Sequence[Parked]) -> WaitUntil:
        now = await context.now()
        soon = now + timedelta(seconds=_LOOK_AGAIN_S)
        at: datetime = min([soon, *(each.expires_at for each in parked)])
        return WaitUntil(at=at, state=state_of(talk))

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

    async def _stopped(self, context: RunContext, talk: Talk, stop: Stop) -> AgentAnswer:
        """End at a bound: the model has one last word where there is time for it, and the label is ours."""
        if stop is not Stop.TIME:
            notice = _WRAP_UP.format(what=_WHAT[stop])
            talk, reply = await self._ask(context, talk, left_s=60.0, tools=(), notice=notice)
            talk = replace(talk, usage=_sum(talk.usage, reply.usage))
            if reply.text:
                return await self._ended(context, talk, reply.text, stop, held=reply.held)
        return await self._ended(context, talk, _found_so_far(talk), stop)

    async def _failed(self, context: RunContext, talk: Talk, reply: Asked) -> AgentAnswer:
        stop = Stop.SPENT if reply.fault == "budget" else Stop.MODEL
        return await self._ended(context, talk, _found_so_far(talk), stop, fault=f"{reply.fault}: {reply.detail}")

    async def _answered(self, context: RunContext, talk: Talk, reply: Asked) -> AgentAnswer:
        stop = Stop.LENGTH if reply.reason == "length" else Stop.ANSWERED
        return await self._ended(context, talk, reply.text, stop, held=reply.held)

    async def _asked_back(self, context: RunContext, talk: Talk, reply: Asked, question: Question) -> AgentAnswer:
        """End with a question to the person; no other call of the turn is made."""
        said = reply.held or Held(text=reply.text, cited=(), unverified=0, confidence="none")
        held = replace(
            said, text="\n\n".join(part for part in (said.text.rstrip(), self._marked(talk, question)) if part)
        )
        return await self._ended(context, replace(talk, waiting=()), held.text, Stop.ASKED, held=held)

    async def _ended(
        self,
        context: RunContext,
        talk: Talk,
        text: str,
        stop: Stop,
        *,
        fault: str = "",
        held: Held | None = None,
        client_calls: tuple[CallWanted, ...] = (),
    ) -> AgentAnswer:
        if held is None:
            good = tuple(exhibit.id for exhibit in talk.exhibits if exhibit.is_citable and f"[{exhibit.id}]" in text)
            held = Held(text=text, cited=good, unverified=0, confidence="low" if good else "none")
        label = f"\n\n[Partial answer: stopped by {_WHAT[stop]}.]" if stop.is_partial else ""
        answer = AgentAnswer(
            text=(held.text + label).strip(),
            stop=stop,
            usage=talk.usage,
            is_usage_told=talk.is_usage_told,
            turns=talk.turn,
            calls=talk.calls,
            failed=talk.failed,
            cited=held.cited,
            unverified=held.unverified,
            invented=held.invented,
            confidence="medium" if talk.failed and held.confidence == "high" else held.confidence,
            fault=fault,
            client_calls=client_calls,
            model=f"{self._model.provider}/{self._model.name}",
        )
        await context.emit("agent.answered", key="answered", **_told(answer))
        return answer

    def _marked(self, talk: Talk, question: Question) -> str:
        """Return a question as the person reads it: what it claims on the way is held against the evidence too."""
        holder = self._holder(talk)
        asked_text = question.question if holder is None else holder.feed(question.question) + holder.end()
        return "\n".join([asked_text, *(f"- {option}" for option in question.options)])

    def _holder(self, talk: Talk) -> Holder | None:
        if self.role.evidence == "off" or self.role.answer_schema:
            # Marks would break an answer that a program is to read.
            return None
        questions = "\n".join(message.text for message in talk.messages if message.role == "user")
        return Holder(talk.exhibits, question=questions)


def opened(messages: Sequence[Message], *, fence: str) -> Talk:
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
        told.append(replace(message, text=result_text(exhibit, outcome, key=fence)))
    return Talk(messages=tuple(told), exhibits=tuple(exhibits), is_tainted=bool(exhibits), fence=fence)


def state_of(talk: Talk) -> Mapping[str, object]:
    """Return a conversation as a run keeps it."""
    state: Mapping[str, object] = msgspec.to_builtins({"talk": talk})
    return state


def talk_of(state: Mapping[str, object]) -> Talk:
    """Return a conversation as it was kept."""
    return msgspec.convert(state["talk"], type=Talk)


def _turn_told(turn: int, reply: Asked, *, agent: str) -> dict[str, object]:
    """Say how a turn ended: what was said of it is kept here, for who did not hear it."""
    return {
        "agent": agent,
        "task": "",
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


def _with_reply(talk: Talk, reply: Asked) -> Talk:
    """Put a reply into the conversation; calls get ids of ours, so that no model can name a call of another turn."""
    turn = talk.turn + 1
    calls = tuple(replace(call, id=f"{turn}.{number}") for number, call in enumerate(reply.calls, start=1))
    messages = talk.messages
    if reply.text or calls:
        messages = (*messages, Message(role="assistant", text=reply.text, calls=calls))
    return replace(
        talk,
        messages=messages,
        waiting=calls,
        turn=turn,
        usage=_sum(talk.usage, reply.usage),
        is_usage_told=talk.is_usage_told and reply.is_usage_told,
    )


def _sum(one: TokenUsage, other: TokenUsage) -> TokenUsage:
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
    """Return the first of what a result says, harmless: nobody held it against anything."""
    return one_line(exhibit.text, chars_max=_HEAD_CHARS)
