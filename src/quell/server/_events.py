"""The event log as a stream: server-sent events for browsers, NDJSON for programs; both resume by sequence number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from quell.app import App
from quell.domain import Event
from quell.server._errors import WireError

_KEEP_ALIVE_S = 15.0
_NDJSON = "application/x-ndjson"
_STREAMS_MAX = 100


class Streams:
    """Open event streams; they end when the server stops."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._open = 0
        self.stopping = asyncio.Event()

    async def endpoint(self, request: Request) -> Response:
        """Stream events past `after` (or Last-Event-ID), of one run or stream when `run` is given."""
        after = _after(request)
        run = await self._stream_of(request.query_params.get("run", ""))
        if self._open >= _STREAMS_MAX:
            raise WireError(429, "OverloadError", "too many event streams are open", retry_after_s=5)
        is_lines = _NDJSON in request.headers.get("accept", "")
        if request.query_params.get("follow") == "false":
            events = await self._app.runs.events(run=run, after=after)
            body = b"".join(_line(event) if is_lines else _frame(event) for event in events)
            return Response(body, media_type=_NDJSON if is_lines else "text/event-stream")
        if request.method == "HEAD":
            return Response(media_type=_NDJSON if is_lines else "text/event-stream")
        return StreamingResponse(
            self._stream(run, after, is_lines=is_lines),
            media_type=_NDJSON if is_lines else "text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _stream_of(self, written: str) -> str | None:
        """Return the whole id of a run or incident; None for every one. Raises UsageError when there is none such."""
        if not written:
            return None
        if written.startswith("run_"):
            return (await self._app.runs.get(written)).id
        return (await self._app.desk.incident(written)).id

    async def _stream(self, run: str | None, after: int, *, is_lines: bool) -> AsyncIterator[bytes]:
        self._open += 1
        follow = self._app.runs.follow(run=run, after=after)
        stopped = asyncio.ensure_future(self.stopping.wait())
        pending: asyncio.Future[Event] | None = None
        try:
            if not is_lines:
                yield b"retry: 1000\n\n"
            while True:
                pending = pending or asyncio.ensure_future(anext(follow))
                waiting: set[asyncio.Future[object]] = {pending, stopped}  # type: ignore[arg-type]  # futures are invariant
                await asyncio.wait(waiting, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if pending.done():
                    try:
                        event = pending.result()
                    except StopAsyncIteration:
                        return
                    pending = None
                    yield _line(event) if is_lines else _frame(event)
                elif stopped.done():
                    return
                elif not is_lines:
                    yield b": still here\n\n"
        finally:
            self._open -= 1
            stopped.cancel()
            if pending is not None:
                pending.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await pending


def event_fields(event: Event) -> dict[str, object]:
    """Return an event as JSON shows it: the body is an object, not text."""
    return {
        "seq": event.seq,
        "run": event.run,
        "key": event.key,
        "name": event.name,
        "at": event.at,
        "body": msgspec.Raw(event.body.encode()),
    }


def _line(event: Event) -> bytes:
    return msgspec.json.encode(event_fields(event)) + b"\n"


def _frame(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        event.seq,
        event.name.encode(),
        msgspec.json.encode(event_fields(event)),
    )


def _after(request: Request) -> int:
    written = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not written.isdecimal() or len(written) > 18:
        raise WireError(
            400, "UsageError", f"not a sequence number: {written[:40]!r}", hint="give the seq of the last event seen"
        )
    return int(written)
