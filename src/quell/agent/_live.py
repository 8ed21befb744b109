"""What is being said right now, for whoever listens in this process; what was said is in the journal."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import msgspec

_QUEUE_MAX = 10_000


class Piece(msgspec.Struct, frozen=True, gc=False):  # a dataclass takes eight times as long to make
    """Some more of what a model says."""

    run: str
    turn: int
    attempt: int
    """Which try of the turn it belongs to: when another begins, the text of this one is void."""
    kind: Literal["text", "reasoning"]
    text: str
    agent: str = ""
    """Who speaks; empty: the agent that answers."""
    task: str = ""
    """Task of a plan that it belongs to; empty: the answer itself."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a tool call is."""

    run: str
    call: str
    tool: str
    message: str
    done: float
    total: float | None
    agent: str = ""
    task: str = ""


@dataclass(slots=True)
class _Now:
    """What a run says at this moment: the text of the present try, for who comes late."""

    turn: int
    attempt: int
    agent: str
    text: bytearray
    """In UTF-8: pieces alone would take five times their text."""


class Ear:
    """What a listener hears, in its order; who listens may put more into it. A queue for one, a third as large."""

    __slots__ = ("_ears", "_heard", "_run", "_waiter", "at_once")

    def __init__(self, ears: dict[str, list[Ear]], run: str) -> None:
        self._ears = ears
        self._run = run
        self._heard: deque[object] | None = None
        """None while nothing waits, as it does nearly always: an empty one takes more than all the rest."""
        self._waiter: asyncio.Future[None] | None = None
        self.at_once: Callable[[Piece], bool] | None = None
        """Takes a piece in the moment in which it is said, while nothing else waits; False: it cannot now."""

    def __enter__(self) -> Self:
        """Begin to hear."""
        self._ears.setdefault(self._run, []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Hear no more."""
        self._ears[self._run].remove(self)
        if not self._ears[self._run]:
            del self._ears[self._run]

    def qsize(self) -> int:
        """Return how much waits."""
        return len(self._heard or ())

    def get_nowait(self) -> object:
        """Return what was heard first, and has not been taken."""
        if self._heard is None:
            raise IndexError("nothing waits")
        heard = self._heard.popleft()
        self._heard = self._heard or None
        return heard

    async def get(self) -> object:
        """Return what was heard next. Raises what `at_once` raised."""
        while self._heard is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        heard = self.get_nowait()
        if isinstance(heard, Exception):
            raise heard
        return heard

    def put_nowait(self, heard: object) -> None:
        """Have something heard after all that waits."""
        if self._heard is None:
            self._heard = deque()
        self._heard.append(heard)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def forget_pieces(self) -> None:
        """Forget what waits of what was said: who listens has it by another way."""
        self._heard = deque(each for each in self._heard or () if not isinstance(each, Piece)) or None

    def hear(self, piece: Piece | Moved) -> None:
        """Hand on what is said: at once where that is wanted and keeps the order."""
        if self.at_once is not None and self._waiter is not None and self._heard is None and isinstance(piece, Piece):
            try:
                if self.at_once(piece):
                    return
            except Exception as error:  # noqa: BLE001 - who speaks has no part in it: it is raised where one listens
                self.put_nowait(error)
                return
        if self.qsize() < _QUEUE_MAX:
            self.put_nowait(piece)


class Live:
    """Hands pieces to the listeners of a run. One that does not keep up misses some, and reads them in the journal."""

    def __init__(self) -> None:
        self._ears: dict[str, list[Ear]] = {}
        self._now: dict[str, _Now] = {}

    def say(self, piece: Piece | Moved, *, kept: bytearray | None = None) -> None:
        """Hand a piece to everybody who listens; `kept` is where who speaks adds what was said, in UTF-8: it is not kept twice."""
        if isinstance(piece, Piece) and piece.kind == "text" and not piece.task:
            now = self._now.get(piece.run)
            if now is None or now.turn != piece.turn or now.attempt != piece.attempt:
                text = bytearray() if kept is None else kept
                self._now[piece.run] = now = _Now(piece.turn, piece.attempt, piece.agent, text)
            if kept is None:
                now.text += piece.text.encode("utf-8", "surrogatepass")
        for ear in self._ears.get(piece.run, ()):
            ear.hear(piece)

    def settle(self, run: str) -> None:
        """Forget what was said of a turn: the journal has it now."""
        self._now.pop(run, None)

    def said(self, run: str) -> Piece | None:
        """Return all that was said of the present turn, as one piece; None when nothing is being said."""
        now = self._now.get(run)
        if now is None:
            return None
        return Piece(run, now.turn, now.attempt, "text", now.text.decode("utf-8", "surrogatepass"), now.agent)

    def listen(self, run: str) -> Ear:
        """Give an ear to what is said from now on, while it is entered."""
        return Ear(self._ears, run)
