"""One connection to one server of tools: made when first wanted, owned by one task, made again when it is lost.

The SDK's scopes live in the owner's task alone. Calls run in tasks of their own, so that a connection that dies ends
them with a typed error and no cancellation that they did not ask for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import anyio
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext, ClientSession
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

from quell.domain import Entropy, Reply, ServerIdentity, ServerUnavailable, ToolServer, UsageError
from quell.tools._exchange import EXCHANGE, Exchange
from quell.tools._mcp_answer import key_of_question
from quell.tools._wire import Carrier, child_streams, http_streams

CLOSE_S = 2.0
RELISTEN_S = 1.0
BACK_OFF_FIRST_S = 0.5
BACK_OFF_MAX_S = 30.0
STEADY_S = 10.0
"""A connection that lived that long was a good one: its loss is met with one attempt at once."""
_MODERN = "2026-07-28"
_REASON_MAX_CHARS = 300

State = Literal["idle", "connecting", "connected", "failed"]
Answer = TypeVar("Answer")


@dataclass(slots=True, kw_only=True, eq=False)
class CallExchange(Exchange):
    """One call: what the wire saw of it, what people had replied before, and what the server asks during it."""

    replies: Mapping[str, types.ElicitResult] = field(default_factory=dict)
    asked: list[types.ElicitRequestParams] = field(default_factory=list)


class Link:
    """A connection that looks after itself."""

    def __init__(
        self,
        server: ToolServer,
        *,
        headers: Mapping[str, str],
        argv: Sequence[str],
        monotonic: Callable[[], float],
        entropy: Entropy,
        clean: Callable[[str], str],
    ) -> None:
        self.server = server
        self.state: State = "idle"
        self.reason = ""
        self.protocol = ""
        self.identity = ServerIdentity(address=address_of(server))
        self.is_stale = True
        """Whether the tools may have changed since they were listed."""
        self.calls: set[Exchange] = set()
        """Those in flight."""
        self._headers = headers
        self.argv = argv
        self._monotonic = monotonic
        self._entropy = entropy
        self._clean = clean
        self._session: ClientSession | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._owner: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._is_closing = False
        self._failures = 0
        self._again_at = 0.0
        # What they log as errors holds what servers sent: bodies, and secrets in them. We say the same with types.
        for name in ("client", "mcp.client", "mcp.shared"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    async def session(self, *, timeout_s: float) -> ClientSession:
        """Give the session, connecting if there is none. Raises ServerUnavailable when there cannot be one now."""
        if self._session is not None:
            return self._session
        if self._is_closing:
            raise self.unavailable("closed", was_sent=False)
        wait_s = self._again_at - self._monotonic()
        if self.state == "failed" and wait_s > 0:
            raise self.unavailable(self.reason, was_sent=False, retry_after_s=wait_s)
        if self._owner is None or self._owner.done():
            self._owner = asyncio.create_task(self._own(), name=f"quell mcp {self.server.name}")
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._opened}, timeout=timeout_s)
        return self.present()

    def present(self) -> ClientSession:
        """Give the session that is there. Raises ServerUnavailable when there is none."""
        if self._session is None:
            raise self.unavailable(self.reason or "no connection in time", was_sent=False)
        return self._session

    async def do(self, work: Callable[[], Awaitable[Answer]], exchange: Exchange, *, timeout_s: float) -> Answer:
        """Run one request in a task of its own.

        Raises:
            TimeoutError: it took too long; the server was told to stop.
            MCPError, pydantic.ValidationError: as the SDK does.
            ServerUnavailable: the connection was lost meanwhile.
        """
        token = EXCHANGE.set(exchange)
        try:
            task: asyncio.Task[Answer] = asyncio.ensure_future(work())
        finally:
            EXCHANGE.reset(token)
        exchange.on_fault = task.cancel
        self.calls.add(exchange)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
        finally:
            exchange.on_fault = None
            self.calls.discard(exchange)
            if not task.done():
                exchange.end("cut", "it was given up")
            # Not waited for: telling a server that hangs to stop may take as long as it likes.
            task.cancel()
        if not done:
            raise TimeoutError
        if task.cancelled():
            raise self.unavailable(
                exchange.detail or self.reason or "the connection was lost", was_sent=exchange.is_sent
            )
        return task.result()

    def has(self, session: ClientSession) -> bool:
        """Tell whether a session is still the one in use."""
        return self._session is session

    def lose(self, reason: str) -> None:
        """Give the connection up; the owner makes another."""
        reason = self._clean(reason)
        if self.state == "connected":
            self.state, self.reason = "failed", reason
        elif self.state == "connecting":
            self.reason = reason
        self._session = None
        self._lost.set()

    async def close(self) -> None:
        """End the calls, the connection and the child; bounded, whatever the server does."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=CLOSE_S / 2)
        self._session = None
        self._lost.set()
        if self._owner is not None:
            await asyncio.wait({self._owner}, timeout=3 * CLOSE_S)
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=CLOSE_S)
        self.state, self.reason = "idle", ""

    def unavailable(self, reason: str, *, was_sent: bool, retry_after_s: float = 0.0) -> ServerUnavailable:
        """Build the error for callers."""
        reason = self._clean(reason)
        later = f"; tried again in {retry_after_s:.1f} s" if retry_after_s else ""
        return ServerUnavailable(
            f"tool server {self.server.name} is not available: {reason}{later}",
            server=self.server.name,
            was_sent=was_sent,
            retry_after_s=retry_after_s,
            hint=self._hint(),
        )

    def _hint(self) -> str:
        where = f"mcp.servers.{self.server.name}"
        if self.server.transport != "stdio":
            return f"check that it runs, and {where}.url and .headers"
        if tuple(self.argv) == (self.server.command, *self.server.args):
            return f"check {where}.cmd, .args and .env"
        return (
            f"check {where}.cmd, .args and .env; it runs confined and begins in /: what it may read beside the directory "
            'of its program stands in .readable, what it may write in .writable; .network = "host" gives it the network. '
            f"Of a server in an agent's file they stand under [quell.servers.{self.server.name}]"
        )

    async def _own(self) -> None:
        """Hold connections one after another, until closed or until the server must be left alone for a while."""
        try:
            while not self._is_closing:
                self.state, self.reason = "connecting", ""
                self._lost.clear()
                since_s = self._monotonic()
                was_connected = await self._hold()
                self._session = None
                lived_s = self._monotonic() - since_s
                self._failures = 1 if was_connected and lived_s >= STEADY_S else self._failures + 1
                self.state = "failed"
                if not was_connected or self._failures > 1:
                    # Full jitter around a doubling wait (Brooker, "Exponential backoff and jitter", AWS, 2015). Whether
                    # there is anybody who wants it then, the next call tells: an unused server is left alone.
                    wait_s = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2 ** min(self._failures - 1, 10))
                    self._again_at = self._monotonic() + wait_s * (0.5 + self._entropy(1)[0] / 512)
                    return
        finally:
            self._session = None
            self._settle()

    async def _hold(self) -> bool:
        """Make one connection and keep it until it is lost; tell whether there was one."""
        was_connected = False
        carrier = None if self.server.transport == "stdio" else Carrier(self.server, lost=self.lose)
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + self.server.connect_timeout_s) as scope:
                async with self._client(carrier) as client:
                    scope.deadline = math.inf
                    was_connected = True
                    self._welcome(client)
                    listening = self._listen(client)
                    try:
                        await self._lost.wait()
                    finally:
                        self._session = None  # first of all, so that the calls it ends know what ended them
                        scope.deadline = anyio.current_time() + CLOSE_S
                        if listening is not None:
                            listening.cancel()
            if scope.cancelled_caught and not was_connected:
                self.reason = self.reason or f"no connection within {self.server.connect_timeout_s:g} s"
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._is_closing or (me is not None and me.cancelling()):
                raise  # not of the SDK's making
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - an SDK's group may hold anything; it is told
            told = carrier.failure if carrier is not None else ""
            self.reason = self.reason or self._clean(told or _first_words(error))[:_REASON_MAX_CHARS]
        return was_connected

    def _client(self, carrier: Carrier | None) -> Client:
        transport: AbstractAsyncContextManager[object]
        if carrier is None:
            transport = child_streams(self.server, argv=self.argv, lost=self.lose)
        else:
            transport = http_streams(self.server, headers=self._headers, carrier=carrier, lost=self.lose)
        return Client(
            transport,
            mode="auto",
            cache=None,
            client_info=types.Implementation(name="quell", version="1"),
            message_handler=self._hear,
            elicitation_callback=self._on_question,
            list_roots_callback=self._on_roots if self.server.roots else None,
        )

    def _welcome(self, client: Client) -> None:
        """Take down who it is, and let the callers in."""
        told = client.server_info
        self.identity = ServerIdentity(
            address=address_of(self.server),
            instructions=client.session.instructions or "",
            product=told.name if told else "",
            version=told.version if told else "",
        )
        self.protocol = client.protocol_version
        self.is_stale = True
        self.state = "connected"
        self._session = client.session
        self._settle()

    def _settle(self) -> None:
        """Wake everybody who waits for a connection, or for the news that there is none."""
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._opened = None

    def _listen(self, client: Client) -> asyncio.Task[None] | None:
        """Ask a server of today's protocol to tell of changed tools; older ones tell unasked."""
        tools = client.server_capabilities.tools
        if self.protocol < _MODERN or tools is None or not tools.list_changed:
            return None

        async def hear() -> None:
            while True:
                with suppress(SubscriptionLost):
                    async with client.listen(tools_list_changed=True) as events:
                        async for _ in events:
                            self.is_stale = True
                self.is_stale = True  # nobody knows what was missed
                await asyncio.sleep(RELISTEN_S)

        async def hear_while_told() -> None:
            with suppress(MCPError, ListenNotSupportedError, TimeoutError):
                await hear()

        return asyncio.create_task(hear_while_told(), name=f"quell mcp {self.server.name} changes")

    async def _hear(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.is_stale = True

    async def _on_question(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK calls by this name
        params: types.ElicitRequestParams,
    ) -> types.ElicitResult | types.ErrorData:
        """Answer an old server's question with what people replied before; decline it and take it down otherwise."""
        exchange = EXCHANGE.get()
        calls = [one for one in self.calls if isinstance(one, CallExchange)]
        if exchange is None and len(calls) == 1:
            exchange = calls[0]  # over pipes only a lone call can be told to be the one that asks
        if not isinstance(exchange, CallExchange):
            return types.ElicitResult(action="decline")
        reply = exchange.replies.get(key_of_question(params))
        if reply is None:
            exchange.asked.append(params)
            return types.ElicitResult(action="decline")
        return reply

    async def _on_roots(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK calls by this name
    ) -> types.ListRootsResult | types.ErrorData:
        return types.ListRootsResult.model_validate({"roots": [{"uri": uri} for uri in self.server.roots]})

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, or to nobody when the caller is gone


def elicit_result(reply: Reply) -> types.ElicitResult:
    """Write a reply as the protocol wants it. Raises UsageError when its content is no plain JSON object."""
    try:
        content = json.loads(reply.content) if reply.action == "accept" and reply.content else None
        return types.ElicitResult(action=reply.action, content=content)
    except ValueError:
        raise UsageError(
            "the reply to a server is no JSON object of plain values", hint="fit it to the schema"
        ) from None


def address_of(server: ToolServer) -> str:
    """Return what names the server for a pin: its URL, or its command line."""
    return server.url or json.dumps([server.command, *server.args], ensure_ascii=True)


def _first_words(error: BaseException) -> str:
    """Return the first leaf of a group in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"cannot start it: {error.strerror} ({error.filename})"
    return f"{type(error).__name__}: {error}"
