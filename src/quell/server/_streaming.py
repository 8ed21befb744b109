"""A response that is written piece by piece, straight to the connection, and what is ready at once goes out at once."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
Write: TypeAlias = Callable[[str, str, int, Callable[[], str]], bytes]
"""Writes text of an agent's turn as frames; the last gives the id to go on after."""
Ended: TypeAlias = Mapping[str, str | int | bool]
"""How a stream ended, as attributes of its request's span."""
AtOnce: TypeAlias = Callable[[bytes], bool]
"""Sends a piece of a body in this moment; False: the connection has no room for it now."""
AT_ONCE = "quell.at_once"
"""Where a request's scope has the way to its connection that takes no waiting."""
LASTING = "quell.lasting"
"""Where a request's scope takes what goes on when all that stands around its endpoint has been left."""
Lasting: TypeAlias = Callable[[Send], Awaitable[None]]


def never(_piece: bytes) -> bool:
    """Send nothing at once: the way of a connection that is not ours."""
    return False


class Writing(Protocol):
    """Writes a stream to its end, and then tells how it ended."""

    def __call__(self, receive: Receive, send: Send, *, at_once: AtOnce) -> Awaitable[Ended]:
        """Write it."""


def _forget(_name: str, _value: object) -> None:
    """Tell nobody."""


class Streaming(StreamingResponse):
    """Hands the connection to whoever writes; Starlette's own would put two tasks between each piece and the wire."""

    def __init__(self, write: Writing, *, headers: Mapping[str, str]) -> None:
        """Take what writes it to its end, and then tells how it ended."""
        super().__init__(iter(()), headers=headers)
        self._write = write
        self._within: AbstractContextManager[object] = nullcontext()
        self._tell: Callable[[str, str | int | bool], None] = _forget

    def within(self, lasting: AbstractContextManager[object], *, tell: Callable[[str, str | int | bool], None]) -> None:
        """Leave `lasting` when the stream has ended, and `tell` before that how it did."""
        self._within, self._tell = lasting, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin to answer, and leave the rest to the outermost: the frames in between would last as long as the stream."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writing = partial(self._write, receive, at_once=scope.get(AT_ONCE, never))
        scope[LASTING] = partial(_lasting, writing, within=self._within, tell=self._tell)


async def _lasting(
    write: Callable[[Send], Awaitable[Ended]],
    send: Send,
    *,
    within: AbstractContextManager[object],
    tell: Callable[[str, str | int | bool], None],
) -> None:
    """Write a stream to its end, and tell how it ended."""
    with within:
        for name, value in (await write(send)).items():
            tell(name, value)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Outlet:
    """Gathers what is to be sent, and sends it in one go; or one thing at once, while nothing else is under way."""

    __slots__ = ("_on_sent", "_send", "_sending", "_waiting", "at_once", "is_busy")

    def __init__(self, send: Send, *, on_sent: Callable[[], None], at_once: AtOnce = never) -> None:
        self._send = send
        self.at_once = at_once
        self._on_sent = on_sent
        self._waiting: list[bytes] = []
        self._sending = asyncio.Lock()
        self.is_busy = False
        """Whether something is on its way that has to arrive before what comes next."""

    def put(self, piece: bytes) -> None:
        """Add to what is sent next."""
        if piece:
            self._waiting.append(piece)
            self.is_busy = True

    async def flush(self) -> None:
        """Send what was gathered."""
        if not self._waiting:
            return
        async with self._sending:
            if not self._waiting:
                return
            body = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._on_sent()
            try:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            finally:
                self.is_busy = bool(self._waiting)


class Pulse:
    """When something was last heard and last sent, by the clock of the loop."""

    __slots__ = ("has_first", "heard_s", "now_s", "sent_s")

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self.heard_s = self.sent_s = now_s()
        self.has_first = False
        """Whether a model has said or wanted anything."""


class Straight:
    """Writes text to the connection in the moment in which it is said: no task wakes for it."""

    __slots__ = ("_outlet", "_pulse", "_write")

    def __init__(self, outlet: Outlet, write: Write, *, pulse: Pulse) -> None:
        self._outlet = outlet
        self._write = write
        self._pulse = pulse

    @property
    def is_ready(self) -> bool:
        """Tell whether nothing is on its way that has to arrive before."""
        return not self._outlet.is_busy

    def say(self, text: str, *, agent: str, turn: int, id_of: Callable[[], str]) -> None:
        """Write some text; what the connection has no room for is on its way with the next `flush`."""
        pulse = self._pulse
        pulse.heard_s = pulse.sent_s = pulse.now_s()
        pulse.has_first = True
        piece = self._write(text, agent, turn, id_of)
        if piece and not self._outlet.at_once(piece):
            self._outlet.put(piece)


@types.coroutine
def next_after(step: Awaitable[T], before_waiting: Callable[[], Awaitable[None]]) -> Generator[Any, Any, T]:
    """Await `step`; only when it is not ready at once, `before_waiting` is awaited first.

    It costs no task: the step is taken as far as it goes, and what it waits for is handed to the loop afterwards.
    """
    steps = step.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as ready:
        found: T = ready.value
        return found
    try:
        yield from before_waiting().__await__()
    except BaseException as error:
        # Whatever ends the wait ends the step as well: it must not stay halfway.
        steps.throw(error)
        raise
    return (yield from _rest_of(steps, waits_for))


def _rest_of(steps: Generator[Any, Any, T], waits_for: object) -> Generator[Any, Any, T]:
    """Go on with steps that were taken up to where they wait for something."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on to the step, which decides
                waits_for = steps.throw(error)
            else:
                waits_for = steps.send(sent)
    except StopIteration as ready:
        found: T = ready.value
        return found
