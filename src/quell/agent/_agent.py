"""The loop of one agent: model, tools, model, until there is an answer or a bound; every step of it is journalled."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import msgspec

from quell.agent._acting import STEP_SLACK_S, Hands, as_told
from quell.agent._asking import Accounts, Asked, Voice, asked
from quell.agent._claims import Held, Holder
from quell.agent._context import Fit, fitted, request_of, room_of
from quell.agent._ending import (
    Ended,
    Halt,
    answer_of,
    bound_of,
    failed_halt,
    found_so_far,
    opened,
    state_of,
    talk_of,
    wait_of,
    wrap_up,
)
from quell.agent._live import Live
from quell.agent._route import Question, offered, question_of
from quell.agent._seat import Seat
from quell.agent._talk import AgentAnswer, Role, Stop, Talk
from quell.agent._telling import told
from quell.domain import (
    CallWanted,
    Entropy,
    Message,
    ModelFault,
    ModelRequest,
    StepError,
    Tool,
    ToolCaller,
    ToolSpec,
)
from quell.models import Model
from quell.runs import RunContext
from quell.tools import Toolbox

_MODEL_MINUTES_MAX = 10.0
_FENCE_BYTES = 4
_NOT_TOGETHER = "(not carried out: it is the client's tool, and was called beside others; call it alone)"


def fence_of(entropy: Entropy) -> str:
    """Draw the key of the fences of one conversation."""
    return entropy(_FENCE_BYTES).hex()


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
        self._entropy = entropy
        self._hands = Hands(role, toolbox=toolbox, seat=self._seat, live=self._live)

    def begin(self, context: RunContext, messages: Sequence[Message], *, caller: ToolCaller) -> Awaitable[Ended]:
        """Begin a conversation: its last message is what is asked, or brings results of the client's own tools."""
        return self.converse(context, opened(messages, fence=fence_of(self._entropy)), caller=caller)

    def go_on(self, context: RunContext, state: Mapping[str, object], *, caller: ToolCaller) -> Awaitable[Ended]:
        """Go on with a conversation that waited."""
        return self.converse(context, talk_of(state), caller=caller)

    @told
    async def converse(self, context: RunContext, talk: Talk, *, caller: ToolCaller) -> Ended:
        """Go on with a conversation until it is answered, stopped, or waits for people.

        The same segment again after a crash asks no model and calls no tool that had ended before.
        """
        halt = await self.proceed(context, talk, caller=caller)
        if halt.parked:
            return await wait_of(context, halt.parked, state=state_of(halt.talk))
        answer: AgentAnswer = answer_of(halt, model=f"{self._model.provider}/{self._model.name}")
        await context.emit("agent.answered", key="answered", **as_told(answer))
        return answer

    async def proceed(self, context: RunContext, talk: Talk, *, caller: ToolCaller) -> Halt:
        """Go on as `converse` does, and leave it to the caller to tell anybody how it ended."""
        began_s = self._monotonic() - talk.began_s
        while True:
            if talk.waiting:
                talk, parked, closing = await self._hands.act(context, talk, caller)
                talk = replace(talk, began_s=self._monotonic() - began_s)
                if closing is not None or parked:
                    return Halt(talk=talk, stop=Stop.ANSWERED, closing=closing, parked=tuple(parked))
            stop = bound_of(talk, self.role, elapsed_s=self._monotonic() - began_s)
            if stop is not None:
                return await self._stopped(context, talk, stop)
            left_s = self.role.minutes_max * 60 - (self._monotonic() - began_s)
            talk, reply = await self._ask(context, talk, left_s=left_s)
            talk = replace(_with_reply(talk, reply, prefix=self._seat.prefix), began_s=self._monotonic() - began_s)
            if (halt := self._halted(talk, reply)) is not None:
                return halt
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
    ) -> tuple[Talk, Asked]:
        """Ask for the next turn; return the conversation as it went out, and what came of it."""
        told = self._offered(talk) if tools is None else tools
        name = f"{self._seat.prefix}model.{talk.turn}" + ("" if tools is None else ".last")
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
        whose = {"agent": self.role.name, "task": self._seat.tag}
        await context.emit("agent.turn", key=name, **_turn_told(talk.turn, reply), **whose)
        self._live.settle(context.run.id)
        return fit.talk, reply

    async def _fit(
        self, context: RunContext, talk: Talk, tools: Sequence[ToolSpec], room: int | None, *, key: str
    ) -> Fit:
        fit = fitted(talk, self.role, tools=tools, room=room, counter=self._model.counter)
        if fit.compacted is not None:
            told = as_told(fit.compacted)
            told |= {"agent": self.role.name, "task": self._seat.tag, "turn": talk.turn}
            await context.emit("agent.compacted", key=f"{key}.compacted", **told)
        return fit

    async def _turn(self, context: RunContext, talk: Talk, request: ModelRequest, *, left_s: float, name: str) -> Asked:
        deadline_s = max(1.0, min(left_s, _MODEL_MINUTES_MAX * 60))

        def work() -> Awaitable[Asked]:
            return asked(
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

        try:
            return await context.step(name, work, returns=Asked, timeout_s=deadline_s + STEP_SLACK_S)
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

    def _offered(self, talk: Talk) -> tuple[ToolSpec, ...]:
        """Return what the model is told of; tools of its seat, by which it routes or ends, are there always."""
        own = offered(talk, self.role, self._tools())
        return (*(self._seat.offered(spec) for spec in own), *self._seat.specs)

    def _tools(self) -> Iterable[Tool]:
        globs = self.role.tools
        for tool in self._toolbox.catalog():
            if globs is None or any(fnmatchcase(tool.name, glob) for glob in globs):
                yield tool

    # -- the end ------------------------------------------------------------------------------------------------------

    def _halted(self, talk: Talk, reply: Asked) -> Halt | None:
        """Return how a turn ends the conversation; None: it wants calls."""
        if reply.fault:
            return failed_halt(talk, reply)
        if not reply.calls:
            stop = Stop.LENGTH if reply.reason == "length" else Stop.ANSWERED
            return Halt(talk=talk, stop=stop, text=reply.text, held=reply.held)
        question = question_of(reply.calls) if self.role.asks == "person" else None
        return None if question is None else self._asked_back(talk, reply, question)

    async def _stopped(self, context: RunContext, talk: Talk, stop: Stop) -> Halt:
        """Stop at a bound: the model has one last word where there is time for it, and the label is ours."""
        if stop is not Stop.TIME:
            talk, reply = await self._ask(context, talk, left_s=60.0, tools=(), notice=wrap_up(stop))
            talk = replace(talk, usage=talk.usage + reply.usage)
            if reply.text:
                return Halt(talk=talk, stop=stop, text=reply.text, held=reply.held)
        return Halt(talk=talk, stop=stop, text=found_so_far(talk))

    def _asked_back(self, talk: Talk, reply: Asked, question: Question) -> Halt:
        """End with a question to the person; no other call of the turn is made."""
        said = reply.held or Held(text=reply.text, cited=(), unverified=0, confidence="none")
        text = "\n\n".join(part for part in (said.text.rstrip(), self._marked(talk, question)) if part)
        held = replace(said, text=text)
        return Halt(talk=replace(talk, waiting=()), stop=Stop.ASKED, text=text, held=held)

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


def _turn_told(turn: int, reply: Asked) -> dict[str, object]:
    """Say how a turn ended: what was said of it is kept here, for who did not hear it."""
    return {
        "turn": turn,
        "text": reply.text if reply.held is None else reply.held.text,
        "calls": [call.name for call in reply.calls],
        "model": reply.model,
        "usage": msgspec.to_builtins(reply.usage),
        "tries": reply.tries,
        "reason": reply.reason,
        "fault": reply.fault,
    }


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
        usage=talk.usage + reply.usage,
        is_usage_told=talk.is_usage_told and reply.is_usage_told,
    )
