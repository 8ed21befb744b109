"""Follow a run on behalf of one client: until it ends, the client leaves, time is over, or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Literal

from starlette.types import Receive

from quell.config import AuraSettings
from quell.domain import Heard, OverloadError
from quell.server._errors import RETRY_AFTER_S, WireError
from quell.server._openai_errors import ChatError
from quell.server._streaming import Ended, Pulse, next_after

Ending = Literal["ended", "left", "first", "inactivity", "time", "stopping"]
_BEFORE_THE_FIRST = frozenset({"run.queued", "run.started", "run.recovered", "run.taken_over", "agent.began"})
"""What is heard of a run before its model has said or wanted anything."""
_LEFT = 499
"""What nginx writes down for a client that closed its request; nobody is sent it."""
_GOES_ON = "the run goes on: follow it at /v1/chat/completions/{run}"
_SAID: dict[str, tuple[int, str, str]] = {
    "first": (504, "timeout", "nothing came within server.aura.first_chunk_timeout_s"),
    "inactivity": (504, "timeout", "nothing came for server.aura.stream_inactivity_timeout_s"),
    "time": (504, "timeout", "the answer took longer than server.aura.streaming_timeout_s"),
    "stopping": (503, "server_stopping", "the server stops"),
}


class Listening:
    """One client that listens to one run. All waits of it hang on one timer, and none on a task of its own."""

    def __init__(self, settings: AuraSettings) -> None:
        self._settings = settings
        self.before_waiting: Callable[[], Awaitable[None]] | None = None
        """Called when all that was ready has been taken, and before anything more is waited for."""
        self.on_silence: Callable[[], Awaitable[None]] | None = None
        """Called when nothing went out for as long as a heartbeat takes."""
        self._loop = asyncio.get_running_loop()
        self._limit: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Future[None] | None = None
        self.pulse = Pulse(self._loop.time)
        self._began_s = self.pulse.heard_s
        self.ending: Ending = "ended"

    async def hear(
        self, following: AsyncGenerator[Heard, None], take: Callable[[Heard], Awaitable[None]], *, receive: Receive
    ) -> Ending:
        """Give everything that is heard to `take`; return why it was the last."""
        leaving = self._loop.create_task(self._leaving(receive))
        try:
            async with asyncio.timeout(None) as limit, aclosing(following):
                self._limit = limit
                self._tick()
                if self.ending != "ended":
                    limit.reschedule(0.0)
                while (heard := await self._next(following)) is not None:
                    self.pulse.heard_s = self._loop.time()
                    self.pulse.has_first = self.pulse.has_first or heard.name not in _BEFORE_THE_FIRST
                    await take(heard)
        except TimeoutError:
            # Its own end is the only one that stops it; any other is a bug.
            if self.ending == "ended":
                raise
        finally:
            self._limit = None
            leaving.cancel()
            if self._timer is not None:
                self._timer.cancel()
            if self._beating is not None:
                await self._beating
            with suppress(asyncio.CancelledError):
                await leaving
        return self.ending

    async def _next(self, following: AsyncGenerator[Heard, None]) -> Heard | None:
        step = following.__anext__()
        try:
            return await (step if self.before_waiting is None else next_after(step, self.before_waiting))
        except StopAsyncIteration:
            return None

    def sent(self) -> None:
        """Remember that something went out just now."""
        self.pulse.sent_s = self._loop.time()

    def stop(self, ending: Ending) -> None:
        """End it for this reason, unless it has ended."""
        if self.ending != "ended":
            return
        self.ending = ending
        if self._limit is not None:
            self._limit.reschedule(self._loop.time())

    async def _leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.stop("left")

    def _tick(self) -> None:
        """Do what is due, and come again when the next thing is."""
        now_s, settings = self._loop.time(), self._settings
        waits: list[tuple[float, Ending]] = []
        if settings.first_chunk_timeout_s and not self.pulse.has_first:
            waits.append((self._began_s + settings.first_chunk_timeout_s, "first"))
        if settings.streaming_timeout_s:
            waits.append((self._began_s + settings.streaming_timeout_s, "time"))
        if settings.stream_inactivity_timeout_s:
            waits.append((self.pulse.heard_s + settings.stream_inactivity_timeout_s, "inactivity"))
        due_s = min((at_s for at_s, _ in waits), default=float("inf"))
        if due_s <= now_s:
            self.stop(next(ending for at_s, ending in waits if at_s <= now_s))
            return
        if self.on_silence is not None:
            if self.pulse.sent_s + settings.heartbeat_s <= now_s and (self._beating is None or self._beating.done()):
                self.pulse.sent_s = now_s
                self._beating = asyncio.ensure_future(self._beat(self.on_silence))
            due_s = min(due_s, max(self.pulse.sent_s + settings.heartbeat_s, now_s + 0.01))
        if due_s != float("inf"):
            self._timer = self._loop.call_at(due_s, self._tick)

    @staticmethod
    async def _beat(on_silence: Callable[[], Awaitable[None]]) -> None:
        # A connection that cannot take it any more is noticed as one that was left.
        with suppress(OSError):
            await on_silence()


def ending_error(ending: Ending, *, run: str, goes_on: bool) -> ChatError:
    """Say why a client hears no more of a run that has not ended."""
    if ending == "left":
        return ChatError(_LEFT, "the client left", reason="client_closed_request")
    status, reason, said = _SAID[ending]
    hint = _GOES_ON.format(run=run) if goes_on else "the run is cancelled, as its agent or the request wants it"
    retry_after_s = RETRY_AFTER_S if status == 503 else None
    return ChatError(status, said, reason=reason, hint=hint, retry_after_s=retry_after_s)


def ended_as(ending: Ending, error: WireError | None) -> Ended:
    """Say how a stream ended: the status that a whole answer would have had, and whether its client left."""
    told: dict[str, str | int | bool] = {"quell.stream.client_left": ending == "left"}
    if ending == "left":
        return told | {"quell.stream.status_code": _LEFT}
    if error is None:
        return told | {"quell.stream.status_code": 200}
    reason = error.reason if isinstance(error, ChatError) else None
    return told | {"quell.stream.status_code": error.status, "error.type": reason or error.kind}


class Closing:
    """Counts those who listen, and ends them when the server stops: what runs may end, and nothing new begins."""

    def __init__(self, *, listening_max: int) -> None:
        self._listening_max = listening_max
        self._open: set[Listening] = set()
        self._places = 0
        """Those of other protocols, whose waits end by themselves."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_closing = False
        self.closed = asyncio.Event()
        """Set when whoever still listens is to end."""

    async def until(self, following: AsyncGenerator[Heard, None]) -> AsyncGenerator[Heard, None]:
        """Yield what is heard until it ends, or the server does."""
        closing = asyncio.create_task(self.closed.wait())
        step: asyncio.Future[Heard | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(following, None))
                await asyncio.wait({step, closing}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done() or (heard := step.result()) is None:
                    return
                yield heard
        finally:
            closing.cancel()
            if step is not None and not step.done():
                step.cancel()
                await asyncio.wait({step})
            await following.aclose()

    def admit(self) -> None:
        """Let a request in. Raises ChatError 503 while the server stops."""
        if self.is_closing:
            raise _stopping()

    def enter(self, listening: Listening) -> None:
        """Count one more. Raises OverloadError when there are too many, and ChatError 503 when it is too late."""
        if self.closed.is_set():
            raise _stopping()
        self._check_room()
        self._open.add(listening)
        self._idle.clear()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count one more for a block. Raises OverloadError when there are too many."""
        self._check_room()
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    def _check_room(self) -> None:
        if len(self._open) + self._places >= self._listening_max:
            hint = f"try again in {RETRY_AFTER_S} s"
            raise OverloadError("too many questions are answered at once", retry_after_s=RETRY_AFTER_S, hint=hint)

    def leave(self, listening: Listening) -> None:
        """Count one less."""
        self._open.discard(listening)
        if not self._open:
            self._idle.set()

    async def close(self, *, timeout_s: float) -> None:
        """Admit nobody any more, wait for those who listen, and end the ones that are left."""
        self.is_closing = True
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout=timeout_s)
        finally:
            self.closed.set()
            for listening in list(self._open):
                listening.stop("stopping")


def _stopping() -> ChatError:
    return ChatError(503, "the server stops", reason="server_stopping", retry_after_s=RETRY_AFTER_S)
