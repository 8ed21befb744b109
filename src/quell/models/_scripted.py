"""A model that says what a script says: for tests and for replaying what a real one said, faults included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from quell.domain import (
    BoundExceededError,
    CallPiece,
    CallWanted,
    Ended,
    ModelError,
    ModelEvent,
    ModelRequest,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.models._tokens import TokenCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Nothing comes for a while."""

    seconds: float


Line: TypeAlias = ModelEvent | ModelError | Pause
Turn: TypeAlias = Sequence[Line]
"""What one call streams: events, a pause, or an error at which it ends."""


class ScriptedModel:
    """Plays one turn per call, in order; or asks a function what to play, which may read the request."""

    provider = "scripted"

    def __init__(
        self,
        turns: Iterable[Turn] | Callable[[ModelRequest], Turn],
        *,
        name: str = "script",
        window: int | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Play these turns; a call beyond the last is a fault of the test and raises BoundExceededError."""
        self._of = turns if callable(turns) else None
        self._turns = [] if callable(turns) else [tuple(turn) for turn in turns]
        self.name = name
        self.window = window
        self._pause = pause
        self.counter = TokenCounter()
        self.asked: list[ModelRequest] = []
        """Every request so far."""

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Play the next turn. Raises as `Model.stream` does."""
        assert deadline_s > 0, "a call has a deadline"
        number = len(self.asked)
        self.asked.append(request)
        if self._of is None and number >= len(self._turns):
            raise BoundExceededError("the calls of a script", limit=len(self._turns), hint="write another turn")
        for line in self._of(request) if self._of is not None else self._turns[number]:
            match line:
                case ModelError():
                    raise line
                case Pause():
                    await self._pause(line.seconds)
                case _:
                    yield line

    async def close(self) -> None:
        """Hold nothing."""


def says(text: str, *, usage: TokenUsage | None = None, pieces: int = 1) -> Turn:
    """Return a turn that answers with a text."""
    size = max(1, -(-len(text) // pieces))
    parts = [TextPiece(text=text[at : at + size]) for at in range(0, len(text), size)]
    return (*parts, Ended(reason="stop"), *_told(usage))


def wants(*calls: CallWanted, text: str = "", usage: TokenUsage | None = None) -> Turn:
    """Return a turn that wants tools called."""
    parts = [TextPiece(text=text)] if text else []
    pieces = [
        CallPiece(index=index, id=call.id, name=call.name, arguments=call.arguments) for index, call in enumerate(calls)
    ]
    return (*parts, *pieces, Ended(reason="calls"), *_told(usage))


def _told(usage: TokenUsage | None) -> tuple[UsageTold, ...]:
    return () if usage is None else (UsageTold(usage=usage),)
