"""Asking a model once per turn: bounded in money and time, tried again only while nothing came of it, told as it streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from quell.agent._claims import Held, Holder
from quell.agent._live import Live, Piece
from quell.agent._talk import NOTHING
from quell.domain import (
    BoundExceededError,
    CallWanted,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelReply,
    ModelRequest,
    OverloadError,
    QuellError,
    ReasoningPiece,
    RefusedError,
    TextPiece,
    TokenUsage,
)
from quell.models import ChainModel, Gathering, Model
from quell.telemetry import genai

_TRIES = 4
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 20.0
_RETRY_AFTER_MAX_S = 60.0
_BEGUN = frozenset({ModelFault.TIMEOUT, ModelFault.BROKEN_STREAM, ModelFault.BAD_ANSWER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of a turn: a reply, or why there is none. It is kept, so that a run that comes back asks nobody again."""

    text: str = ""
    calls: tuple[CallWanted, ...] = ()
    reason: str = ""
    usage: TokenUsage = NOTHING
    is_usage_told: bool = True
    model: str = ""
    tries: int = 1
    held: Held | None = None
    """The text after it was held against the evidence, as it was said while it streamed; None: as it is."""
    fault: str = ""
    """A ModelFault, `budget` or `overload`; empty: it replied."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """Who speaks, and where it is heard."""

    live: Live
    agent: str = ""
    task: str = ""
    """Task of a plan; empty: what is said is the answer. What is said within a task is thought aloud, no answer."""


class Accounts:
    """Where money and tokens of model calls are reserved and settled; this one counts nothing."""

    async def reserve(self, request: ModelRequest, model: Model, *, key: str) -> None:
        """Reserve the most that a call can take. Raises BoundExceededError, or RefusedError for a price nobody knows."""

    async def settle(self, model: Model, usage: TokenUsage | None, *, key: str, said_tokens: int = 0) -> None:
        """Settle what it took; None: nobody knows, and it stays charged as reserved.

        `said_tokens` are those that came, by our own count: who reports far less is not believed.
        """


async def asked(
    model: Model,
    request: ModelRequest,
    *,
    run: str,
    turn: int,
    voice: Voice,
    accounts: Accounts,
    deadline_s: float,
    holder: Callable[[], Holder | None] = lambda: None,
    silent_s: float = 0.0,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> Asked:
    """Ask until a whole answer came, the fault is none that passes, or the tries or the time are over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + deadline_s
    error: ModelError | OverloadError | None = None
    tries = _tries_of(model)
    for attempt in range(1, tries + 1):
        left_s = ends_at - loop.time()
        if left_s <= 0:
            break
        key = f"model.{turn}.{attempt}"
        try:
            await accounts.reserve(request, model, key=key)
        except (BoundExceededError, RefusedError) as bound:
            return Asked(fault="budget", detail=_told(bound), tries=attempt - 1)
        try:
            saying = _Saying(voice, run=run, turn=turn, attempt=attempt, holder=holder())
            with genai.chat(request, provider=model.provider, model=model.name, attempt=attempt) as asking:
                reply = await _once(model, request, saying, asking, deadline_s=left_s, silent_s=silent_s)
        except (ModelError, OverloadError) as caught:
            error = caught
            await accounts.settle(model, None if _may_have_cost(caught) else NOTHING, key=key)
            wait_s = _pause_s(caught, attempt, chance=chance())
            if wait_s is None or attempt == tries or loop.time() + wait_s >= ends_at:
                break
            if isinstance(model, ChainModel) and isinstance(caught, ModelError):
                model = model.after(caught)
            await pause(wait_s)
            continue
        except BaseException:
            await asyncio.shield(accounts.settle(model, None, key=key))
            raise
        await accounts.settle(model, reply.usage, key=key, said_tokens=_said_tokens(model, reply))
        return Asked(
            text=reply.text,
            calls=reply.calls,
            reason=reply.reason,
            usage=reply.usage,
            is_usage_told=reply.is_usage_told,
            model=reply.model or model.name,
            tries=attempt,
            held=saying.held(),
        )
    fault = (
        error.fault.value if isinstance(error, ModelError) else "overload" if error is not None else ModelFault.TIMEOUT
    )
    return Asked(fault=str(fault), detail=_told(error), tries=attempt)


def _tries_of(model: Model) -> int:
    """Return how often to try: each try of a chain asks all of it, and tries do not multiply."""
    return max(2, _TRIES // len(model.models)) if isinstance(model, ChainModel) else _TRIES


class _Saying:
    """Says one try of a turn to who listens, sentence by sentence where it is held against the evidence."""

    def __init__(self, voice: Voice, *, run: str, turn: int, attempt: int, holder: Holder | None) -> None:
        self._voice = voice
        self._run, self._turn, self._attempt = run, turn, attempt
        self._holder = holder
        self._kind: Literal["text", "reasoning"] = "reasoning" if voice.task else "text"
        self._kept: bytearray | None = None

    def keeps(self, gathering: Gathering) -> None:
        """Note who keeps the text, where it is said as it comes."""
        if self._holder is None:
            self._kept = gathering.text

    def text(self, piece: str) -> None:
        if self._holder is not None:
            piece = self._holder.feed(piece)
        if piece:
            self._say(piece, self._kind)

    def reasoning(self, piece: str) -> None:
        if piece:
            self._say(piece, "reasoning")

    def end(self) -> None:
        if self._holder is not None and (rest := self._holder.end()):
            self._say(rest, self._kind)

    def held(self) -> Held | None:
        return None if self._holder is None else self._holder.held(failed=0)

    def _say(self, text: str, kind: Literal["text", "reasoning"]) -> None:
        voice = self._voice
        piece = Piece(self._run, self._turn, self._attempt, kind, text, voice.agent, voice.task)
        voice.live.say(piece, kept=self._kept)


async def _once(
    model: Model,
    request: ModelRequest,
    saying: _Saying,
    asking: genai.Asking,
    *,
    deadline_s: float,
    silent_s: float,
) -> ModelReply:
    gathering, is_begun = Gathering(), False
    saying.keeps(gathering)
    loop = asyncio.get_running_loop()

    def hear(event: ModelEvent) -> None:
        nonlocal is_begun
        if not is_begun:
            is_begun = True
            asking.first()
        if silent_s:
            patience.reschedule(loop.time() + silent_s)
        if isinstance(event, TextPiece):
            saying.text(event.text)
        elif isinstance(event, ReasoningPiece):
            saying.reasoning(event.text)

    try:
        async with asyncio.timeout(silent_s or None) as patience:
            await gathering.fill(model, request, deadline_s=deadline_s, also=hear)
    except TimeoutError as silence:
        raise ModelError(f"no stream progress for {silent_s:g} s", fault=ModelFault.TIMEOUT) from silence
    saying.end()
    reply = gathering.reply(request=request, counter=model.counter)
    asking.replied(reply)
    return reply


def _said_tokens(model: Model, reply: ModelReply) -> int:
    said = (reply.text, *(call.name + call.arguments for call in reply.calls))
    return sum(model.counter.count_text(each) for each in said)


def _may_have_cost(error: ModelError | OverloadError) -> bool:
    """Tell whether the provider may have begun to answer: nobody knows what that cost."""
    return isinstance(error, ModelError) and (error.said or error.fault in _BEGUN)


def _pause_s(error: ModelError | OverloadError, attempt: int, *, chance: float) -> float | None:
    """Return how long to wait before another try; None: another try would change nothing.

    Full jitter over an exponential pause, as in Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
    """
    if isinstance(error, OverloadError):
        return error.retry_after_s
    if not error.fault.is_passing:
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= _RETRY_AFTER_MAX_S else None
    return chance * min(_PAUSE_FIRST_S * float(2**attempt), _PAUSE_MAX_S)


def _told(error: QuellError | None) -> str:
    if error is None:
        return "the time is over"
    return f"{error}; {error.hint}" if error.hint else str(error)
