"""How a conversation ends, or waits: what stopped it, what is said where no model says it, and how it is kept till then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

import msgspec

from quell.agent._asking import Asked
from quell.agent._claims import Held
from quell.agent._render import exhibit_of, result_text
from quell.agent._repeats import judged
from quell.agent._seat import Closing
from quell.agent._talk import AgentAnswer, Exhibit, Role, Stop, Talk
from quell.domain import CallWanted, Message, OutcomeKind, Parked, ToolOutcome, one_line
from quell.runs import RunContext, WaitUntil

_LOOK_AGAIN_S = 30.0
"""Who waits for people looks this often by itself; who decides wakes it."""
_HEAD_CHARS = 240

Ended: TypeAlias = AgentAnswer | WaitUntil
"""How a segment of a conversation ends: with an answer, or waiting for people."""

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


def bound_of(talk: Talk, role: Role, *, elapsed_s: float) -> Stop | None:
    """Return the bound that was reached, if one was."""
    worst = max((repeat.count for repeat in talk.repeats.values()), default=0)
    if judged(worst, talk.failures, nudge=role.repeats_nudge, most=role.repeats_max) == "stop":
        return Stop.LOOP
    if elapsed_s >= role.minutes_max * 60:
        return Stop.TIME
    if talk.calls >= role.calls_max:
        return Stop.CALLS
    return Stop.TURNS if talk.turn > role.turns_max else None


def wrap_up(stop: Stop) -> str:
    """Return what a model is told that has its last word."""
    return _WRAP_UP.format(what=_WHAT[stop])


def answer_of(halt: Halt, *, model: str) -> AgentAnswer:
    """Return what came of a conversation; its label and its confidence are ours."""
    talk, held = halt.talk, halt.held
    if held is None:
        good = tuple(each.id for each in talk.exhibits if each.is_citable and f"[{each.id}]" in halt.text)
        held = Held(text=halt.text, cited=good, unverified=0, confidence="low" if good else "none")
    return AgentAnswer(
        text=labelled(held.text, halt.stop),
        stop=halt.stop,
        usage=talk.usage,
        is_usage_told=talk.is_usage_told,
        turns=talk.turn,
        calls=talk.calls,
        failed=talk.failed,
        cited=held.cited,
        unverified=held.unverified,
        invented=held.invented,
        confidence="medium" if talk.failed and held.confidence == "high" else held.confidence,
        fault=halt.fault,
        client_calls=halt.client_calls,
        model=model,
    )


def failed_halt(talk: Talk, reply: Asked) -> Halt:
    """End where the model did not answer."""
    stop = Stop.SPENT if reply.fault == "budget" else Stop.MODEL
    return Halt(talk=talk, stop=stop, text=found_so_far(talk), fault=f"{reply.fault}: {reply.detail}")


def labelled(text: str, stop: Stop) -> str:
    """Return a text with what it lacks."""
    label = f"\n\n[Partial answer: stopped by {_WHAT[stop]}.]" if stop.is_partial else ""
    return (text + label).strip()


def found_so_far(talk: Talk) -> str:
    """Say what was found, in our own words, when no model does."""
    good = [exhibit for exhibit in talk.exhibits if exhibit.is_citable]
    if not good:
        return "Nothing was found out."
    # The head of each is harmless: nobody held it against anything.
    lines = [f"- {each.tool} [{each.id}]: {one_line(each.text, chars_max=_HEAD_CHARS)}" for each in good[-10:]]
    return "\n".join(["What was found so far:", *lines])


async def wait_of(context: RunContext, parked: Sequence[Parked], *, state: Mapping[str, object]) -> WaitUntil:
    """Return the wait for people: until the first of them has decided, or could not decide any more."""
    soon = await context.now() + timedelta(seconds=_LOOK_AGAIN_S)
    at: datetime = min([soon, *(each.expires_at for each in parked)])
    return WaitUntil(at=at, state=state)


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
