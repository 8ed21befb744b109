"""One stream out of two: what the journal keeps of a run, and what is being said of it right now.

Who comes back with the id of what it heard last gets neither a word twice nor one too few: text that was said while
nobody listened is in the journal with its turn, and how much of it somebody has stands in the id.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

import msgspec

from quell.agent import Live, Moved, Piece
from quell.domain import Event, Heard, UsageError
from quell.runs import Runs

_KEPT = ("agent.", "run.")
_ID_MAX_CHARS = 80
_PENDING_MAX = 16
_NUMBER_MAX = 2**63 - 1
"""What the journal counts up to."""


class Straight(Protocol):
    """Takes text that is being said in the moment in which it is said; it must not block."""

    @property
    def is_ready(self) -> bool:
        """Tell whether it can take something now; if not, that is yielded like everything else."""

    def say(self, text: str, *, agent: str, turn: int, id_of: Callable[[], str]) -> None:
        """Take some more text of a turn that it has heard the beginning of; `id_of` gives the id to go on after."""


@dataclass(slots=True, kw_only=True)
class _Place:
    """What somebody has heard: events up to `seq`, and so much of the text of a turn."""

    seq: int = 0
    turn: int = -1
    attempt: int = 0
    chars: int = 0
    _digest: int = 0
    """CRC of that text, but for what is pending: another try of the turn says something else."""
    _pending: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, written: str) -> Self:
        """Read an id. Raises UsageError when it is none of ours."""
        parts = written.split(".") if written else ["0"]
        is_ours = len(written) <= _ID_MAX_CHARS and len(parts) in (1, 4)
        is_ours = is_ours and all(part.isascii() and part.isdecimal() for part in parts)
        numbers = [int(part) for part in parts] if is_ours else []
        if not numbers or max(numbers) > _NUMBER_MAX:
            raise UsageError(
                f"not the id of an event: {written[:40]!r}", hint="give the id of the last one, as it came"
            )
        seq, *more = numbers
        turn, chars, digest = more or (-1, 0, 0)
        return cls(seq=seq, turn=turn, chars=chars, _digest=digest)

    def written(self) -> str:
        """Return the id of this place."""
        return self.id

    @property
    def id(self) -> str:
        """Write it."""
        return f"{self.seq}.{self.turn}.{self.chars}.{self.digest}" if self.chars else str(self.seq)

    @property
    def digest(self) -> int:
        """Return the CRC of the text that was heard."""
        if self._pending:
            self._reckon()
        return self._digest

    def said(self, text: str) -> None:
        """Note that this was heard as well."""
        self.chars += len(text)
        self._pending.append(text)
        if len(self._pending) > _PENDING_MAX:
            self._reckon()

    def _reckon(self) -> None:
        """Reckon several pieces in one."""
        self._digest = zlib.crc32("".join(self._pending).encode("utf-8", "surrogatepass"), self._digest)
        self._pending.clear()

    def forget(self) -> None:
        """Nothing of the turn was heard, or nothing that counts."""
        self.chars = self._digest = 0
        self._pending.clear()

    def begins(self, text: str) -> bool:
        """Tell whether what was heard of a turn is how this text begins."""
        head = text[: self.chars].encode("utf-8", "surrogatepass")
        return len(text) >= self.chars and zlib.crc32(head) == self.digest


@dataclass(slots=True, kw_only=True)
class Follower:
    """What one listener has heard of a run."""

    run: str
    place: _Place
    _last: str = field(default="", init=False)
    """Text of the turn that ended last."""
    _ended: int = field(default=-1, init=False)
    """Number of that turn."""
    _agent: str = field(default="", init=False)
    """Whose turn it was."""

    @classmethod
    def after(cls, run: str, written: str) -> Self:
        """Go on after the id of what was heard last. Raises UsageError when it is none."""
        return cls(run=run, place=_Place.read(written))

    def is_ahead(self, piece: Piece) -> bool:
        """Tell whether a later turn begins with this: what its run did before may not have been heard."""
        return piece.turn > 0 and piece.turn not in {self.place.turn, self._ended} and not piece.task

    def piece(self, piece: Piece) -> Iterator[Heard]:
        """Hear some more of what is being said."""
        place = self.place
        if piece.kind == "reasoning" or piece.task:
            yield self._heard(piece.kind, piece, piece.text)
            return
        if piece.turn <= self._ended:
            return
        if piece.turn != place.turn:
            place.turn, place.attempt = piece.turn, piece.attempt
            place.forget()
        elif piece.attempt != place.attempt:
            if place.chars:
                place.forget()
                yield self._heard("void", piece, "")
            place.attempt = piece.attempt
        place.said(piece.text)
        yield self._heard("text", piece, piece.text)

    def at_once(self, straight: Straight, piece: Piece) -> bool:
        """Have some more text of a turn heard in this moment; False: it is not that, or it cannot be taken now."""
        place, turn = self.place, piece.turn
        is_more = turn == place.turn and piece.attempt == place.attempt and turn > self._ended
        if not is_more or piece.task or piece.kind != "text" or not straight.is_ready:
            return False
        text = piece.text
        place.said(text)
        straight.say(text, agent=piece.agent, turn=turn, id_of=place.written)
        return True

    def whole(self, piece: Piece) -> Iterator[Heard]:
        """Hear all that was said of a turn so far, of which a part may be known."""
        place = self.place
        if piece.turn != place.turn or piece.turn <= self._ended:
            if piece.text:
                yield from self.piece(piece)
            return
        if not place.begins(piece.text):
            place.forget()
            yield self._heard("void", piece, "")
        place.attempt = piece.attempt
        if rest := piece.text[place.chars :]:
            place.said(rest)
            yield self._heard("text", piece, rest)

    def event(self, event: Event) -> Iterator[Heard]:
        """Hear what the journal tells, and before it what of its text was not heard."""
        body: dict[str, object] = msgspec.json.decode(event.body)
        if event.name == "agent.turn" and not body.get("task"):
            self._last = str(body.get("text", ""))
            turn = _turn_of(body)
            self._agent = str(body.get("agent", ""))
            yield from self.whole(Piece(self.run, turn, self.place.attempt, "text", self._last, self._agent))
            self._ended = max(self._ended, turn)
            if turn >= self.place.turn:
                # Only the end of this turn: events of earlier ones, and others, may be read while it is being said.
                self.place.forget()
        elif event.name == "agent.answered":
            yield from self._label(str(body.get("text", "")))
        self.place.seq = event.seq
        yield Heard(id=self.place.id, name=event.name, body=body)

    def knew(self, event: Event) -> None:
        """Take note of an event that was heard before."""
        if event.name == "agent.turn":
            body: dict[str, object] = msgspec.json.decode(event.body)
            if not body.get("task"):
                self._last, self._agent = str(body.get("text", "")), str(body.get("agent", ""))
                self._ended = max(self._ended, _turn_of(body))

    def moved(self, moved: Moved) -> Heard:
        """Hear how far a call is."""
        body = {name: getattr(moved, name) for name in ("call", "tool", "message", "done", "total", "agent", "task")}
        return Heard(id=self.place.id, name="agent.progress", body=body)

    def _label(self, text: str) -> Iterator[Heard]:
        """Say what only the answer has: its label at a bound, or all of it where no model said it."""
        said = self._last.strip()
        rest = text[len(said) :] if text.startswith(said) else f"\n\n{text}"
        if rest:
            piece = Piece(self.run, self.place.turn, self.place.attempt, "text", rest, self._agent)
            yield self._heard("text", piece, rest)

    def _heard(self, name: str, piece: Piece, text: str) -> Heard:
        body = {"agent": piece.agent, "task": piece.task, "turn": piece.turn, "text": text}
        return Heard(id=self.place.id, name=name, body=body)


def _turn_of(body: Mapping[str, object]) -> int:
    turn = body.get("turn")
    return turn if isinstance(turn, int) else 0


def followed(
    runs: Runs, live: Live, run: str, *, after: str, straight: Straight | None = None
) -> AsyncGenerator[Heard, None]:
    """Yield what happened in a run and what is being said, until it has ended. Raises UsageError for an id that is none.

    What `straight` takes is not yielded; the order is kept, as it gets something only while nothing waits to be yielded.
    """
    # Before anything is heard: who begins a stream learns of a wrong id while it can still say so.
    return _followed(runs, live, Follower.after(run, after), straight)


async def _followed(
    runs: Runs, live: Live, follower: Follower, straight: Straight | None
) -> AsyncGenerator[Heard, None]:
    with live.listen(follower.run) as ear:
        if follower.place.seq:
            await _remember(runs, follower)
        async for heard in _caught_up(runs, live, follower, forget=ear.forget_pieces):
            yield heard
        ear.at_once = None if straight is None else partial(follower.at_once, straight)

        async def pump() -> None:
            try:
                async for event in runs.follow(run=follower.run, after=follower.place.seq):
                    ear.put_nowait(event)
            finally:
                # A journal that is away ends it as well: who listens would wait for nothing.
                ear.put_nowait(None)

        pumping = asyncio.create_task(pump())
        try:
            while (item := await ear.get()) is not None:
                if isinstance(item, Piece) and follower.is_ahead(item):
                    # What went before this turn is in the journal by now, and its bell may ring later than words come.
                    for heard in await _news(runs, follower):
                        yield heard
                for heard in _heard_of(follower, item):
                    yield heard
            await pumping
        finally:
            pumping.cancel()
            await asyncio.wait({pumping})


async def _caught_up(
    runs: Runs, live: Live, follower: Follower, *, forget: Callable[[], None]
) -> AsyncGenerator[Heard, None]:
    """Yield what the journal has, and after it what was said before anybody listened here and is not in it yet."""
    while True:
        said = live.said(follower.run)
        forget()  # it is in one of the two
        seq = follower.place.seq
        for heard in await _news(runs, follower):
            yield heard
        if follower.place.seq == seq:
            break
    for heard in () if said is None else follower.whole(said):
        yield heard


async def _news(runs: Runs, follower: Follower) -> list[Heard]:
    """Return what the journal has of a run past the place of its follower, who has heard it with that."""
    found: list[Heard] = []
    for event in await runs.events(run=follower.run, after=follower.place.seq):
        found += _heard_of(follower, event)
        follower.place.seq = event.seq
    return found


async def _remember(runs: Runs, follower: Follower) -> None:
    """Find out which turn ended last before the place where somebody goes on."""
    seq = 0
    while seq < follower.place.seq and (batch := await runs.events(run=follower.run, after=seq)):
        for event in batch:
            if event.seq <= follower.place.seq:
                follower.knew(event)
        seq = batch[-1].seq


def _heard_of(follower: Follower, item: object) -> Iterator[Heard]:
    match item:
        case Piece():
            yield from follower.piece(item)
        case Moved():
            yield follower.moved(item)
        case Event() if item.seq > follower.place.seq and item.name.startswith(_KEPT):
            yield from follower.event(item)
