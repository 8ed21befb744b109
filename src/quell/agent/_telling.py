"""What telemetry is told of a conversation: once around the loop, and nothing inside of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from quell.agent._talk import AgentAnswer, Role, Talk
from quell.domain import ToolCaller
from quell.runs import RunContext, WaitUntil
from quell.telemetry import genai


class _Speaker(Protocol):
    role: Role


Who = TypeVar("Who", bound=_Speaker)
Ended = TypeVar("Ended", bound=AgentAnswer | WaitUntil)
P = ParamSpec("P")


def told(
    converse: Callable[Concatenate[Who, RunContext, Talk, P], Awaitable[Ended]],
) -> Callable[Concatenate[Who, RunContext, Talk, P], Awaitable[Ended]]:
    """Tell telemetry of every segment of a conversation: that it began, and how it ended."""

    @wraps(converse)
    async def telling(who: Who, context: RunContext, talk: Talk, /, *args: P.args, **named: P.kwargs) -> Ended:
        caller = named.get("caller")
        session = caller.session if isinstance(caller, ToolCaller) else ""
        began_s = time.perf_counter() - talk.began_s
        with genai.invoke_agent(
            who.role.name, run=context.run.id, session=session or context.run.id, question=talk.messages
        ) as invoked:
            if talk.turn == 0:
                invoked.began()
            ended = await converse(who, context, talk, *args, **named)
            tell_end(invoked, ended, elapsed_s=time.perf_counter() - began_s)
            return ended

    return telling


def tell_end(invoked: genai.Invoked, ended: AgentAnswer | WaitUntil, *, elapsed_s: float) -> None:
    """Tell how a segment ended: with an answer, or waiting for people."""
    if isinstance(ended, WaitUntil):
        invoked.waits()
        return
    invoked.ended(
        stop=ended.stop.value,
        is_partial=ended.stop.is_partial,
        fault=ended.fault.partition(":")[0],
        turns=ended.turns,
        elapsed_s=elapsed_s,
        answer=ended.text,
    )
