"""Bytes to and from a server of tools: a child's pipes or HTTP, bounded while they are read.

The SDK parses and correlates; here is what it leaves open: how much is read before it is too much, what a failing
connection does to the calls on it, and what becomes of the child.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import anyio
import httpx2
import mcp_types as types
from mcp.client.sse import sse_client
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from quell.domain import ToolServer
from quell.tools._exchange import EDGE_BYTES, EXCHANGE, QUESTIONS_MAX, Calls, Exchange, Fault, Questions
from quell.tools._trust import trusted
from quell.tools._wire_events import EVENT_MAX_BYTES, Events

FRAME_BYTES = 65_536
"""What an envelope and the fields beside the content may take over the largest result."""
STDERR_KEPT_BYTES = 8_192
JUNK_LINES_MAX = 1_000
"""Lines on a server's standard output that are no messages; some print their banner there."""
UNSENT_MAX_BYTES = 64_000_000
GRACE_S = 1.0
_LAST_WORDS_S = 0.3
_WORDS_CHARS = 200
_TELLING = re.compile(r"(?=\S).*[A-Za-z]{3}")
UNREACHABLE_STATUS = 599
OVERFLOW_CODE = -32_097
"""Ours, in the range of JSON-RPC that is left to implementations; told apart by `Exchange.fault`, not by itself."""
_CHUNK_BYTES = 65_536
_POLL_S = 0.01
_READ_TIMEOUT_S = 300.0
_ADDRESS_MAX_CHARS = 120
_TURN_MESSAGES = 16
REOPEN_S = 1.0
"""Between two times that a stream of events is opened."""
_CHILD = Path(__file__).with_name("_mcp_child.py")

Lost = Callable[[str], None]
Item = SessionMessage | Exception


class Incoming:
    """Messages as they come, from any source; tells once when there will be no more."""

    def __init__(
        self,
        source: AsyncIterator[Item],
        *,
        contexts: object,
        questions: Questions,
        lost: Lost,
        reason: Callable[[], str],
    ) -> None:
        self._source = source
        self._questions = questions
        self._contexts = contexts
        self._lost = lost
        self._reason = reason
        self._count = 0

    @property
    def last_context(self) -> contextvars.Context | None:
        """In which context the last message was read: that of the call it belongs to, where the transport knows."""
        return getattr(self._contexts, "last_context", None)

    async def receive(self) -> Item:
        """Return the next message. Raises EndOfStream when there is none."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def aclose(self) -> None:
        """Leave the source to whoever opened it."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        self._count += 1
        if not self._count % _TURN_MESSAGES:
            # What has come already is read without a pause: a flood would leave nobody else a turn.
            await asyncio.sleep(0)
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            self._lost(self._reason())
            raise
        if isinstance(item, SessionMessage) and not self._questions.came(item.message):
            self._lost(f"the server asks more than {QUESTIONS_MAX} things at once, or one thing twice")
            raise StopAsyncIteration
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Writer(Protocol):
    """Where the SDK writes messages to."""

    async def send(self, item: SessionMessage, /) -> None:
        """Write one."""

    async def aclose(self) -> None:
        """Write no more."""


class Outgoing:
    """Messages as they go, over HTTP."""

    def __init__(self, inner: Writer, *, questions: Questions) -> None:
        self._inner = inner
        self._questions = questions

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message."""
        await self._inner.send(item)
        self._questions.went(item.message)

    async def aclose(self) -> None:
        """Write no more."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Child:
    """A server program and its pipes. It is its own writing stream; `lines` are its messages."""

    def __init__(self, process: asyncio.subprocess.Process, *, line_max_bytes: int, lost: Lost) -> None:
        self._process = process
        self._line_max = line_max_bytes
        self._lost = lost
        self._calls = Calls()
        self.questions = Questions()
        self._stderr = bytearray()
        self.draining = asyncio.create_task(self._drain(), name="quell mcp stderr")

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message. Raises BrokenResourceError when the program takes no more."""
        stdin, message = self._process.stdin, item.message
        assert stdin is not None, "spawned with pipes"
        exchange = EXCHANGE.get()
        if exchange is not None and isinstance(message, types.JSONRPCRequest):
            self._calls.went(message.id, exchange)
            exchange.is_sent = True
        if stdin.is_closing() or stdin.transport.get_write_buffer_size() > UNSENT_MAX_BYTES:
            self._lost(self.epitaph())
            raise anyio.BrokenResourceError
        try:
            stdin.write(message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await stdin.drain()
            self.questions.went(message)
        except OSError:
            self._lost(self.epitaph())
            raise anyio.BrokenResourceError from None

    async def aclose(self) -> None:
        """Leave the program to `stop`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def messages(self) -> AsyncIterator[Item]:
        """Yield what the program writes, line by line; an over-long line fails its call and is not kept."""
        junk = 0
        async for line, size in self._lines():
            message = self._message(line, size)
            if message is None:
                junk += 1
                if junk > JUNK_LINES_MAX:
                    return
                continue
            if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
                self._calls.came(message.id)
            yield SessionMessage(message)
        await asyncio.wait({self.draining}, timeout=_LAST_WORDS_S)

    def epitaph(self) -> str:
        """Say what is known about why it is gone."""
        said = self._stderr.decode(errors="replace").splitlines()
        # Stack traces are indented; what went wrong is not, and often stands far above the last line.
        told = [line.rstrip()[:_WORDS_CHARS] for line in said if _TELLING.match(line)] or said[-3:]
        return "; ".join(told[-3:])[-400:] or "the server closed its output"

    async def _lines(self) -> AsyncIterator[tuple[bytes, int]]:
        """Yield lines with their true size; of one that is too long only both edges are kept."""
        stdout = self._process.stdout
        assert stdout is not None, "spawned with pipes"
        parts: list[bytes] = []
        size = 0
        while chunk := await stdout.read(_CHUNK_BYTES):
            first, *rest = chunk.split(b"\n")
            for index, piece in enumerate((first, *rest)):
                if index:
                    yield b"".join(parts), size
                    parts, size = [], 0
                size += len(piece)
                parts.append(piece)
                if size > self._line_max:
                    whole = b"".join(parts)
                    parts = [whole[:EDGE_BYTES], whole[-EDGE_BYTES:]]

    def _message(self, line: bytes, size: int) -> types.JSONRPCMessage | None:
        """Read a line; one that is none, or too long, fails the call that it names, and is junk when it names none."""
        if size <= self._line_max:
            with suppress(ValueError):
                return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        meant = self._calls.meant_by(line)
        if meant is None:
            return None
        id_, exchange = meant
        error = types.ErrorData(code=types.PARSE_ERROR, message="the answer cannot be read")
        if size > self._line_max:
            error = types.ErrorData(code=OVERFLOW_CODE, message=f"the answer has {size} bytes")
            exchange.end("overflow", error.message)
        return types.JSONRPCError(jsonrpc="2.0", id=id_, error=error)

    async def _drain(self) -> None:
        """Read standard error so that the program never blocks on it; keep its end."""
        assert self._process.stderr is not None, "spawned with pipes"
        while chunk := await self._process.stderr.read(_CHUNK_BYTES):
            self._stderr += chunk
            del self._stderr[:-STDERR_KEPT_BYTES]

    async def stop(self) -> None:
        """End the program: close its input, wait, terminate, kill; every wait is bounded."""
        assert self._process.stdin is not None, "spawned with pipes"
        self._process.stdin.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with suppress(ProcessLookupError, PermissionError):
                    # Its guardian first: it knows the descendants that left the group.
                    if number is signal.SIGTERM:
                        self._process.send_signal(number)
                    else:
                        os.killpg(self._process.pid, number)
            if await self._is_gone(within_s=GRACE_S):
                break
        self.draining.cancel()
        await asyncio.wait({self.draining})
        # Closes the pipes that a survivor may hold open; asyncio offers no other way.
        self._process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001

    async def _is_gone(self, *, within_s: float) -> bool:
        """Tell whether it ended in time. `wait()` would also wait for descendants that hold its pipes."""
        for _ in range(int(within_s / _POLL_S)):
            if self._process.returncode is not None:
                return True
            await asyncio.sleep(_POLL_S)
        return False


@asynccontextmanager
async def child_streams(
    server: ToolServer, *, argv: Sequence[str], lost: Lost
) -> AsyncIterator[tuple[Incoming, Child]]:
    """Run a program and give its streams; it is gone afterwards. Raises OSError when it cannot be run."""
    guarded = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), *argv]
    process = await asyncio.create_subprocess_exec(
        *guarded,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**get_default_environment(), **server.env},
        cwd=server.cwd or None,
        start_new_session=True,
    )
    child = Child(process, line_max_bytes=server.result_max_bytes + FRAME_BYTES, lost=lost)
    try:
        incoming = Incoming(child.messages(), contexts=None, questions=child.questions, lost=lost, reason=child.epitaph)
        yield incoming, child
    finally:
        with anyio.CancelScope(shield=True):
            await child.stop()


class Carrier(httpx2.AsyncBaseTransport):
    """HTTP whose failures fail the one call they belong to, and whose bodies are bounded.

    The SDK would let a failed POST tear down the connection with everything on it (mcp 2.3): here it becomes an
    answer with a status of our own.
    """

    def __init__(self, server: ToolServer, *, lost: Lost) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=trusted())
        self._body_max = server.result_max_bytes + FRAME_BYTES
        self._gap_s = server.call_timeout_s + GRACE_S
        self._is_events = server.transport == "sse"
        self._lost = lost
        self._calls = Calls()
        self._listened_s = -REOPEN_S
        self.failure = ""
        """What went wrong last, for a connection that could not be made."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and watch its answer."""
        exchange = EXCHANGE.get() if request.method == "POST" else None
        if exchange is not None:
            self._prepare(request, exchange)
        elif request.method == "GET":
            # A server that ends its stream at once, and says that it may be opened again at once, would keep us busy.
            await anyio.sleep(max(0.0, self._listened_s + REOPEN_S - anyio.current_time()))
            self._listened_s = anyio.current_time()
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            is_absent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            if exchange is not None:
                exchange.is_sent = not (is_absent or isinstance(error, httpx2.PoolTimeout))
            if is_absent or self._is_events:
                self._lost(_words(error))
            return self._failed(request, exchange, _words(error))
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            return self._failed(request, exchange, "it compressed its answer although asked not to")
        self._watch(request, response, exchange)
        return response

    def _prepare(self, request: httpx2.Request, exchange: Exchange) -> None:
        message = json.loads(request.content) if self._is_events else {}
        if "id" in message:  # a notification has none
            self._calls.went(message["id"], exchange)
        request.headers.update(exchange.headers)
        # A gap longer than any call may take: nobody waits for what comes after it.
        request.extensions["timeout"] = {**request.extensions["timeout"], "read": self._gap_s}
        exchange.is_sent = True

    def _watch(self, request: httpx2.Request, response: httpx2.Response, exchange: Exchange | None) -> None:
        """Take down how it answers, and bound the body that follows."""
        if response.status_code >= 400:
            self.failure = f"server returned HTTP {response.status_code}"
        elif request.method == "POST" and response.has_redirect_location:
            self.failure = _not_followed(request, response)
        if exchange is not None:
            exchange.status = response.status_code
            exchange.content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        assert isinstance(response.stream, httpx2.AsyncByteStream), "an asynchronous transport"
        if request.method == "POST":
            response.stream = _Bounded(response.stream, exchange=exchange, body_max_bytes=self._body_max)
        elif self._is_events:
            event_max = min(self._body_max, EVENT_MAX_BYTES)
            response.stream = Events(response.stream, event_max_bytes=event_max, dropped=self._dropped)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    def _dropped(self, edges: bytes, size: int) -> None:
        """Fail the call whose answer was too long for an event; an answer that names none is waited for in vain."""
        if meant := self._calls.meant_by(edges):
            most = min(self._body_max, EVENT_MAX_BYTES)
            meant[1].end("overflow", f"the answer has {size} bytes, and an event of this server carries {most}")

    def _failed(self, request: httpx2.Request, exchange: Exchange | None, reason: str) -> httpx2.Response:
        self.failure = reason
        if exchange is not None:
            exchange.end("unreachable", reason)
        return httpx2.Response(UNREACHABLE_STATUS, request=request)


class _Bounded(httpx2.AsyncByteStream):
    """The body of an answer to one POST."""

    def __init__(self, inner: httpx2.AsyncByteStream, *, exchange: Exchange | None, body_max_bytes: int) -> None:
        self._inner = inner
        self._exchange = exchange
        self._max = body_max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange, size = self._exchange, 0
        try:
            async for chunk in self._inner:
                size += len(chunk)
                if size > self._max:
                    self._end("overflow", f"the answer has more than {self._max} bytes")
                if exchange is not None and exchange.fault:
                    # The SDK takes this kind for a body that cannot be read, and fails the one request.
                    raise httpx2.StreamError(exchange.detail)
                if size > self._max:
                    raise httpx2.StreamError("too long")
                yield chunk
        except httpx2.TransportError as error:
            self._end("cut", _words(error))
            raise httpx2.StreamError(_words(error)) from error

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _end(self, fault: Fault, detail: str) -> None:
        if self._exchange is not None:
            self._exchange.end(fault, detail)


def _not_followed(request: httpx2.Request, response: httpx2.Response) -> str:
    """Take the new address out of an answer, or the SDK would send the request there: a call is sent once."""
    location = response.headers.pop("location")
    try:
        where = str(request.url.join(location).copy_with(userinfo=b"", query=None, fragment=None))[:_ADDRESS_MAX_CHARS]
    except (httpx2.InvalidURL, ValueError):
        where = "what is no address"
    return f"server returned HTTP {response.status_code}: it redirects to {where}, which is not followed; write that address"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__


@asynccontextmanager
async def http_streams(
    server: ToolServer, *, headers: Mapping[str, str], carrier: Carrier, lost: Lost
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Open the streams of an HTTP server, of today's kind or of the old one with a stream of events."""
    bounds = httpx2.Timeout(server.connect_timeout_s, read=max(_READ_TIMEOUT_S, 2 * server.call_timeout_s))
    whole = {**server.headers, **headers, "accept-encoding": "identity"}

    def client(*_: object, **__: object) -> httpx2.AsyncClient:  # what the SDK hands over is known here already
        return httpx2.AsyncClient(transport=carrier, headers=whole, timeout=bounds)

    def reason() -> str:
        return carrier.failure or "the server ended the connection"

    if server.transport == "sse":
        async with sse_client(server.url, httpx_client_factory=client) as (read, write):
            questions = Questions()
            incoming = Incoming(aiter(read), contexts=read, questions=questions, lost=lost, reason=reason)
            yield incoming, Outgoing(write, questions=questions)
        return
    event_max = server.result_max_bytes + FRAME_BYTES
    async with (
        client() as http,
        streamable_http_client(server.url, http_client=http, max_sse_event_size=event_max) as (read, write),
    ):
        questions = Questions()
        incoming = Incoming(aiter(read), contexts=read, questions=questions, lost=lost, reason=reason)
        yield incoming, Outgoing(write, questions=questions)
