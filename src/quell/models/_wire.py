"""HTTP/1.1 for answers that stream: written for many at a time, each on a connection that is kept for the next one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from quell.domain import ConfigError, ModelError, ModelFault, OverloadError
from quell.models._proxy import Proxy
from quell.models._tunnel import tunnelled

_BUFFER_HIGH_BYTES = 256 * 1024
_HEAD_MAX_BYTES = 64 * 1024
_IDLE_S = 50.0
"""A connection that was not used for this long is not used again: servers close theirs after a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where requests go: scheme, host and port, and the path that stands before every path."""

    host: str
    port: int
    is_tls: bool
    prefix: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Read a base URL. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}", hint="such as https://api.example.com/v1") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is no base URL", hint="such as https://api.example.com/v1")
        if parts.username or parts.password:
            raise ConfigError("a base URL holds no credentials", hint="set `api_key`")
        is_tls = parts.scheme == "https"
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
        return cls(host=host, port=port or (443 if is_tls else 80), is_tls=is_tls, prefix=parts.path.rstrip("/"))

    @property
    def named(self) -> str:
        """Return what stands in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


@dataclass(slots=True)
class Head:
    """How an answer begins."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Wire(asyncio.Protocol):
    """One connection: one request at a time, and its answer piece by piece."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._kept = bytearray()
        """What came of the answer, and nobody has taken."""
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._quiet_max_s = 0.0
        self._heard_at = 0.0
        self._head_bytes = 0
        self._failure: ModelError | None = None
        self._take: Callable[[bytes], None] | None = None
        """What gets the pieces of the answer in the moment in which they come; None: they wait."""
        self._broken: Exception | None = None
        """Why it took no more."""
        self.head = Head()
        self.has_head = False
        self.is_complete = False
        self.is_lost = False
        self.is_kept = False
        """Whether it may carry another request once this answer is complete."""
        self.idle_since = 0.0

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what came, and wake who waits for it."""
        self._heard_at = self._loop.time()
        if not self.has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ModelError(f"the answer is no HTTP: {error}", fault=ModelFault.BAD_ANSWER, said=self.has_head))
        except httptools.HttpParserUpgrade:
            self._fail(ModelError("the answer changes the protocol", fault=ModelFault.BAD_ANSWER))
        if not self.has_head and self._head_bytes > _HEAD_MAX_BYTES:
            self._fail(ModelError("the head of the answer has no end", fault=ModelFault.BAD_ANSWER))
        if len(self._kept) > _BUFFER_HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._take is None or self.is_complete or self._broken is not None:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that nothing more will come."""
        self.is_lost = True
        if self.has_head and not self.is_complete and self._ends_with_connection():
            self.is_complete = True
        if not self.is_complete:
            why = f": {exc}" if exc is not None else ""
            fault = ModelFault.BROKEN_STREAM if self.has_head else ModelFault.UNREACHABLE
            self._fail(ModelError(f"the connection was lost{why}", fault=fault, said=self.has_head))
        self._wake()

    # -- httptools ----------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self.head.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note the status; 1xx is only a word in between."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.head.status = status
            self.has_head = True

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of the answer, or keep it until somebody takes it."""
        if self._take is None:
            self._kept += body
            return
        try:
            self._take(body)
        except Exception as error:  # noqa: BLE001 - it is raised where the end of the answer is awaited
            self._take, self._broken = None, error

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        if self.has_head:
            self.is_complete = True
            self.is_kept = bool(self._parser.should_keep_alive())

    # -- one exchange -------------------------------------------------------------------------------------------------

    async def ask(self, request: bytes, *, first_s: float) -> Head:
        """Send a request and wait for the head of its answer. Raises ModelError."""
        assert self._transport is not None, "a wire is connected before it is used"
        self.head, self.has_head, self.is_complete, self.is_kept = Head(), False, False, False
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._transport.write(request)
        self.expect_within(first_s)
        while not self.has_head:
            self._check()
            await self._wait()
        return self.head

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes. Raises ModelError when it breaks off."""
        while True:
            while self._kept:
                yield self._taken()
            if self.is_complete:
                return
            self._check()
            await self._wait()

    async def give(self, take: Callable[[bytes], None]) -> None:
        """Hand the answer to `take` as it comes, and return at its end. Raises as `pieces` does, and what `take` raises."""
        if self._kept:
            take(self._taken())
        self._take, self._broken = take, None
        try:
            while not self.is_complete:
                self._check()
                await self._wait()
                if self._broken is not None:
                    raise self._broken
        finally:
            self._take = None

    def expect_within(self, quiet_max_s: float) -> None:
        """Give the answer up when nothing came for this long from now on."""
        self._quiet_max_s = quiet_max_s
        self._heard_at = self._loop.time()
        if self._watch is not None and self._watch.when() > self._heard_at + quiet_max_s:
            # It was set for a longer silence, such as that before the first word.
            self._watch.cancel()
            self._watch = None
        if self._watch is None:
            self._watch = self._loop.call_later(quiet_max_s, self._look)

    def give_up(self, error: ModelError) -> None:
        """End the exchange with this error, whatever it waits for."""
        self._fail(error)
        if self._transport is not None:
            self._transport.abort()

    def rest(self) -> None:
        """Stop the watch: the exchange is over."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self.idle_since = self._loop.time()

    def drop(self) -> None:
        """Close the connection at once."""
        self.rest()
        if self._transport is not None:
            self._transport.abort()

    def is_fit(self, now: float) -> bool:
        """Tell whether it may carry another request."""
        if self.is_lost or not self.is_kept or now - self.idle_since > _IDLE_S or self._kept:
            return False
        return self._transport is not None and not self._transport.is_closing()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _taken(self) -> bytes:
        """Return what was kept, and let more come."""
        kept, self._kept = bytes(self._kept), bytearray()
        if self._paused:
            self._paused = False
            if self._transport is not None and not self.is_lost:
                self._transport.resume_reading()
        return kept

    def _look(self) -> None:
        """See whether something came in time: one timer serves a whole exchange."""
        quiet_s = self._loop.time() - self._heard_at
        left_s = self._quiet_max_s - quiet_s
        if left_s > 0.001 or self._paused:
            self._watch = self._loop.call_later(max(left_s, 0.01), self._look)
            return
        self._watch = None
        told = "nothing more came" if self.has_head else "no answer"
        self.give_up(ModelError(f"{told} within {self._quiet_max_s:g} s", fault=ModelFault.TIMEOUT, said=self.has_head))

    def _ends_with_connection(self) -> bool:
        headers = self.head.headers
        return "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "").lower()

    def _fail(self, error: ModelError) -> None:
        if self._failure is None:
            self._failure = error
        self._wake()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Pool:
    """The connections to one origin: as many as are in use, and some that wait for the next request."""

    def __init__(
        self,
        origin: Origin,
        *,
        connections_max: int = 2_048,
        tls: ssl.SSLContext | None = None,
        connect_s: float = 10.0,
        via: Proxy | None = None,
    ) -> None:
        """Hold at most so many connections; who wants one more waits for one to come back."""
        self._origin = origin
        self._via = via
        self._tls = tls
        self._connect_s = connect_s
        self._free = asyncio.Semaphore(connections_max)
        self._idle: list[Wire] = []
        self._is_closed = False

    async def take(self, *, wait_s: float) -> tuple[Wire, bool]:
        """Return a connection and whether it was used before.

        Raises:
            ModelError: nobody answers there.
            OverloadError: none came free in time.
        """
        assert not self._is_closed, "a closed pool gives no connections"
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise OverloadError(
                f"all connections to {self._origin.named} were busy for {wait_s:g} s", retry_after_s=1.0
            ) from None
        try:
            now = asyncio.get_running_loop().time()
            while self._idle:
                wire = self._idle.pop()
                if wire.is_fit(now):
                    return wire, True
                wire.drop()
            return await self._connected(min(self._connect_s, wait_s)), False
        except BaseException:
            self._free.release()
            raise

    def give_back(self, wire: Wire) -> None:
        """Take a connection back; one that cannot be used again is closed."""
        self._free.release()
        wire.rest()
        if self._is_closed or not wire.is_complete or not wire.is_fit(wire.idle_since):
            wire.drop()
        else:
            self._idle.append(wire)

    async def close(self) -> None:
        """Close what waits; what is in use is closed when it comes back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().drop()
        await asyncio.sleep(0)

    async def _connected(self, timeout_s: float) -> Wire:
        origin, via = self._origin, self._via
        named = origin.named if via is None else f"{origin.named} (by the proxy {via.named})"
        try:
            async with asyncio.timeout(timeout_s):
                return await self._joined()
        except TimeoutError:
            told = f"{named} did not take a connection within {timeout_s:g} s"
            raise ModelError(told, fault=ModelFault.UNREACHABLE) from None
        except ssl.SSLError as error:
            told = f"{named}: no trusted connection: {error.reason or error}"
            raise ModelError(told, fault=ModelFault.UNREACHABLE, hint="check the certificate and the time") from error
        except OSError as error:
            told = f"{named} cannot be reached: {error.strerror or error}"
            raise ModelError(told, fault=ModelFault.UNREACHABLE, hint="check base_url and that it runs") from error

    async def _joined(self) -> Wire:
        """Open a connection; what goes out in the clear is given to a proxy as it is, without a tunnel."""
        origin, via, loop = self._origin, self._via, asyncio.get_running_loop()
        if via is not None and origin.is_tls:
            wire = Wire()
            tls = self._tls or ssl.create_default_context()
            await tunnelled(via, host=origin.host, port=origin.port, protocol=wire, tls=tls)
            return wire
        host, port, is_tls = (
            (origin.host, origin.port, origin.is_tls) if via is None else (via.host, via.port, via.is_tls)
        )
        context = (self._tls or True) if is_tls else None
        _, wire = await loop.create_connection(Wire, host, port, ssl=context, server_hostname=host if is_tls else None)
        return wire


def request_bytes(
    origin: Origin,
    path: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    method: str = "POST",
    via: Proxy | None = None,
) -> bytes:
    """Write a request as it goes out. Raises ConfigError for a header that would end its line early."""
    is_told = via is not None and not origin.is_tls
    # A proxy that carries it in the clear is told the whole address, and who we are, with each request.
    where = f"http://{origin.named}" if is_told else ""
    lines = [f"{method} {where}{origin.prefix}{path} HTTP/1.1", f"Host: {origin.named}"]
    for name, value in {**headers, **(via.headers if via is not None and is_told else {})}.items():
        if "\r" in value or "\n" in value or "\0" in value or not name.isascii():
            raise ConfigError(f"the header {name!r} cannot be sent", hint="it holds a line end; is the key complete?")
        lines.append(f"{name}: {value}")
    lines.append(f"Content-Length: {len(body)}")
    with suppress(UnicodeEncodeError):
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    raise ConfigError("a header holds letters that HTTP cannot carry", hint="is the key complete?")
