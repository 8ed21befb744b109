"""A response that is written piece by piece, straight to the connection, and what is ready at once goes out at once."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class Streaming(StreamingResponse):
    """Hands the connection to whoever writes; Starlette's own would put two tasks between each piece and the wire."""

    def __init__(self, write: Callable[[Receive, Send], Awaitable[None]], *, headers: Mapping[str, str]) -> None:
        super().__init__(iter(()), headers=headers)
        self._write = write

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: the head, what is written, and the end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._write(receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Outlet:
    """Gathers what is to be sent, and sends it in one go."""

    def __init__(self, send: Send, *, on_sent: Callable[[], None]) -> None:
        self._send = send
        self._on_sent = on_sent
        self._waiting: list[bytes] = []

    def put(self, piece: bytes) -> None:
        """Add to what is sent next."""
        if piece:
            self._waiting.append(piece)

    async def flush(self) -> None:
        """Send what was gathered."""
        if not self._waiting:
            return
        body = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._on_sent()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


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
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on to the step, which decides
                waits_for = steps.throw(error)
            else:
                waits_for = steps.send(sent)
    except StopIteration as ready:
        found = ready.value
        return found
