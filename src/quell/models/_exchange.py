"""One request and its answer on a connection of a pool: patience, deadlines, refusals, and what is kept for the next one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quell.domain import Clock, ModelError, ModelFault
from quell.models._faults import fault_of_answer
from quell.models._proxy import Proxy
from quell.models._tunnel import require_let_through
from quell.models._wire import Origin, Pool, Wire, request_bytes

_ERROR_MAX_BYTES = 64 * 1024
_PROXY_WANTS_PROOF = 407
_WHOLE_MAX_BYTES = 32 * 1024 * 1024

Hear = Callable[[Mapping[str, str]], None]
"""Hears the headers of every answer: some tell how much may still be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long silence is borne."""

    connect_s: float = 10.0
    first_s: float = 90.0
    """Until the first byte of an answer: a large prompt takes its time."""
    quiet_s: float = 60.0
    """Between two pieces of an answer."""


class Answering:
    """An answer under way: its connection is given back when it is left."""

    __slots__ = ("_give_back", "_timer", "_wire")

    def __init__(self, wire: Wire, *, timer: asyncio.TimerHandle, give_back: Callable[[Wire], None]) -> None:
        self._wire = wire
        self._timer = timer
        self._give_back = give_back

    def __enter__(self) -> Wire:
        """Give the connection on which it comes."""
        return self._wire

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.end()

    def end(self) -> None:
        """Give the connection back: there is no more to come, or nobody wants it."""
        self._timer.cancel()
        self._give_back(self._wire)


class Exchange:
    """The way to one server: its connections, and a request at a time on each of them."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        clock: Clock,
        patience: Patience | None = None,
        pool: Pool | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        hear: Hear | None = None,
        via: Proxy | None = None,
    ) -> None:
        """Reach a server, by a proxy where one is named. Raises ConfigError for an address that is none."""
        self._origin = Origin.of(url)
        self._headers = dict(headers)
        self._clock = clock
        self._patience = patience or Patience()
        self._own = pool is None
        self._pool = pool
        self._tls = tls
        self._hear = hear
        self._via = via

    async def asked(self, path: str, body: bytes, *, accept: str, deadline_s: float) -> Answering:
        """Post a body, and give the connection on which its answer comes.

        Raises:
            ModelError: there was no answer, or none in time, or a refusal.
            OverloadError: no connection came free in time.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        wire = await self._opened(path, body, accept=accept, ends_at=ends_at)
        answering = Answering(wire, timer=loop.call_at(ends_at, _cut, wire, deadline_s), give_back=self._give_back)
        try:
            await self._require_answer(wire)
        except BaseException:
            answering.end()
            raise
        wire.expect_within(self._patience.quiet_s)
        return answering

    async def _require_answer(self, wire: Wire) -> None:
        head = wire.head
        self._require_let_through(head.status)
        if self._hear is not None:
            self._hear(head.headers)
        if head.status != 200:
            said = await whole(wire, limit_bytes=_ERROR_MAX_BYTES, is_cut=True)
            raise fault_of_answer(head.status, headers=head.headers, body=said, now=self._clock())

    async def fetched(self, path: str, *, timeout_s: float) -> bytes:
        """Return what a path holds. Raises as `asked` does."""
        request = request_bytes(self._origin, path, headers=self._headers, body=b"", method="GET", via=self._via)
        wire, _ = await self._held().take(wait_s=timeout_s)
        timer = asyncio.get_running_loop().call_later(timeout_s, _cut, wire, timeout_s)
        try:
            head = await wire.ask(request, first_s=timeout_s)
            body = await whole(wire)
        finally:
            timer.cancel()
            self._give_back(wire)
        self._require_let_through(head.status)
        if head.status != 200:
            raise fault_of_answer(head.status, headers=head.headers, body=body, now=self._clock())
        return body

    async def close(self) -> None:
        """Close its connections, if they are its own."""
        if self._own and self._pool is not None:
            await self._pool.close()

    async def _opened(self, path: str, body: bytes, *, accept: str, ends_at: float) -> Wire:
        """Send the request; a kept connection that turns out to be closed is replaced: nothing was answered on it."""
        loop, patience = asyncio.get_running_loop(), self._patience
        headers = {
            "Accept": accept,
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **self._headers,
        }
        request = request_bytes(self._origin, path, headers=headers, body=body, via=self._via)
        while True:
            left_s = max(ends_at - loop.time(), 0.001)
            wire, was_used = await self._held().take(wait_s=min(left_s, patience.first_s))
            try:
                await wire.ask(request, first_s=min(max(ends_at - loop.time(), 0.001), patience.first_s))
            except ModelError as error:
                self._give_back(wire)
                if not (was_used and error.fault is ModelFault.UNREACHABLE):
                    raise
            except BaseException:
                self._give_back(wire)
                raise
            else:
                return wire

    def _require_let_through(self, status: int) -> None:
        """Tell the word of a proxy that carries us in the clear from that of the server: only a proxy says 407."""
        if self._via is not None and status == _PROXY_WANTS_PROOF:
            require_let_through(status, via=self._via)

    def _held(self) -> Pool:
        if self._pool is None:
            tls = self._tls() if self._origin.is_tls else None
            self._pool = Pool(self._origin, tls=tls, connect_s=self._patience.connect_s, via=self._via)
        return self._pool

    def _give_back(self, wire: Wire) -> None:
        assert self._pool is not None, "a wire comes from a pool"
        self._pool.give_back(wire)


async def whole(wire: Wire, *, limit_bytes: int = _WHOLE_MAX_BYTES, is_cut: bool = False) -> bytes:
    """Return a whole answer, or as much as may be. Raises ModelError for one that is too long, or breaks off."""
    pieces: list[bytes] = []
    size = 0
    async for piece in wire.pieces():
        pieces.append(piece)
        size += len(piece)
        if size > limit_bytes:
            if is_cut:
                break
            raise ModelError(f"the answer is larger than {limit_bytes} bytes", fault=ModelFault.BAD_ANSWER, said=True)
    return b"".join(pieces)


def _cut(wire: Wire, deadline_s: float) -> None:
    wire.give_up(ModelError(f"not answered within {deadline_s:g} s", fault=ModelFault.TIMEOUT, said=wire.has_head))
