"""What is being said right now, for whoever listens in this process; what was said is in the journal."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

_QUEUE_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of what a model says."""

    run: str
    turn: int
    attempt: int
    """Which try of the turn it belongs to: when another begins, the text of this one is void."""
    kind: Literal["text", "reasoning"]
    text: str


class Live:
    """Hands pieces to the listeners of a run. One that does not keep up misses some, and reads them in the journal."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Queue[Piece]]] = defaultdict(set)

    def say(self, piece: Piece) -> None:
        """Hand a piece to everybody who listens."""
        for queue in self._listeners.get(piece.run, ()):
            if queue.qsize() < _QUEUE_MAX:
                queue.put_nowait(piece)

    async def listen(self, run: str) -> AsyncGenerator[Piece, None]:
        """Yield what is said from now on, until closed."""
        queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._listeners[run].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners[run].discard(queue)
            if not self._listeners[run]:
                del self._listeners[run]
