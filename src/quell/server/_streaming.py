"""A response that is written piece by piece, straight to the connection, and what is ready at once goes out at once."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")
Write: TypeAlias = Callable[[str, str, int, Callable[[], str]], bytes]
"""Writes text of an agent's turn as frames; the last gives the id to go on after."""
Ended: TypeAlias = Mapping[str, str | int | bool]
"""How a stream ended, as attributes of its request's span."""
_SEND = "quell.send"


def kept_near(app: ASGIApp) -> ASGIApp:
    """Keep the way to the connection at hand for streams: middleware wraps it once and again."""

    async def near(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SEND] = send
        await app(scope, receive, send)

    return near


class Streaming(StreamingResponse):
    """Hands the connection to whoever writes; Starlette's own would put two tasks between each piece and the wire."""

    def __init__(self, write: Callable[[Receive, Send], Awaitable[Ended]], *, headers: Mapping[str, str]) -> None:
        """Take what writes it to its end, and then tells how it ended."""
        super().__init__(iter(()), headers=headers)
        self._write = write
        self._within: AbstractContextManager[object] = nullcontext()
        self._tell: Callable[[str, str | int | bool], None] | None = None

    def within(self, lasting: AbstractContextManager[object], *, tell: Callable[[str, str | int | bool], None]) -> None:
        """Leave `lasting` when the stream has ended, and `tell` before that how it did."""
        self._within, self._tell = lasting, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: the head, what is written, and the end."""
        with self._within:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # Now that it has begun, nobody in between has anything to do with what is sent.
            send = scope.get(_SEND, send)
            ended = await self._write(receive, send)
            if self._tell is not None:
                for name, value in ended.items():
                    self._tell(name, value)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Outlet:
    """Gathers what is to be sent, and sends it in one go; or one thing at once, while nothing else is under way."""

    def __init__(self, send: Send, *, on_sent: Callable[[], None]) -> None:
        self._send = send
        self._on_sent = on_sent
        self._waiting: list[bytes] = []
        self._sending = asyncio.Lock()
        self._halfway: tuple[Generator[Any, Any, None], object] | None = None
        """A send that the connection had no room for, and what it waits for."""

    @property
    def is_ready(self) -> bool:
        """Tell whether something can be sent at once."""
        return self._halfway is None and not self._waiting and not self._sending.locked()

    def put(self, piece: bytes) -> None:
        """Add to what is sent next."""
        if piece:
            self._waiting.append(piece)

    def now(self, piece: bytes) -> None:
        """Send at once; what the connection has no room for is on its way with the next `flush`."""
        if not piece:
            return
        self._on_sent()
        sending = self._send({"type": "http.response.body", "body": piece, "more_body": True}).__await__()
        try:
            self._halfway = sending, next(sending)
        except StopIteration:
            return

    async def flush(self) -> None:
        """Send what was gathered."""
        if self._halfway is None and not self._waiting:
            return
        async with self._sending:
            if self._halfway is not None:
                (sending, waits_for), self._halfway = self._halfway, None
                await _finished(sending, waits_for)
            if not self._waiting:
                return
            body = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._on_sent()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


class Straight:
    """Writes text to the connection in the moment in which it is said: no task wakes for it."""

    def __init__(self, outlet: Outlet, write: Write, *, on_heard: Callable[[], None]) -> None:
        self._outlet = outlet
        self._write = write
        self._on_heard = on_heard

    @property
    def is_ready(self) -> bool:
        """Tell whether the connection can take something now."""
        return self._outlet.is_ready

    def say(self, text: str, *, agent: str, turn: int, id_of: Callable[[], str]) -> None:
        """Write some text."""
        self._on_heard()
        self._outlet.now(self._write(text, agent, turn, id_of))


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


@types.coroutine
def _finished(steps: Generator[Any, Any, T], waits_for: object) -> Generator[Any, Any, T]:
    """Await what is left of steps."""
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
