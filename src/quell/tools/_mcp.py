"""All connections of a process to servers of tools: what they offer, and calls of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, cast

import mcp_types as types
from mcp import MCPError
from mcp.client.session import ClientSession
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.inbound import mcp_param_headers
from mcp_types import RequestParamsMeta
from pydantic import ValidationError

from quell.domain import (
    CallProgress,
    Clock,
    Entropy,
    NeedsPeople,
    Offer,
    OutcomeKind,
    OverloadError,
    RefusedError,
    Reply,
    ServerAnswer,
    ServerStatus,
    ServerUnavailable,
    ToolServer,
    UsageError,
    WorldError,
)
from quell.tools._mcp_answer import (
    Expectation,
    ask_of,
    judge_refusal,
    judge_result,
    key_of_question,
    needs_of,
)
from quell.tools._mcp_checks import check_servers, is_reserved
from quell.tools._mcp_link import CallExchange, Link, elicit_result
from quell.tools._mcp_offers import Known, Listing, Raw, list_tools

LINKS_MAX = 32
"""Connections to one server: one for each set of forwarded headers in use."""
PROGRESS_MAX = 1_000
"""Reports of one call that are passed on; a flood of them is not."""
KEY_META = "quell/idempotency-key"
KEY_HEADER = "Idempotency-Key"
_URL_ELICITATION_REQUIRED = -32_042

Prepare = Callable[[ToolServer], Sequence[str]]
OnProgress = Callable[[CallProgress], None]


def plain_command(server: ToolServer) -> Sequence[str]:
    """Return the command line of a stdio server as it is, in no sandbox."""
    return [server.command, *server.args]


class Servers:
    """Tool servers by name. Connections are made when first wanted; a lost one is made again.

    Use it as a context manager, or close it: child processes and connections end with it.
    """

    def __init__(
        self,
        servers: Sequence[ToolServer],
        *,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        entropy: Entropy = os.urandom,
        prepare: Prepare = plain_command,
    ) -> None:
        """Take the settings; connect to nobody yet. `prepare` may wrap a command, as a sandbox does.

        Raises:
            ConfigError: settings that cannot be, all of them at once.
        """
        check_servers(servers)
        self._servers = {server.name: server for server in servers}
        self._clock = clock
        self._monotonic = monotonic
        self._entropy = entropy
        self._prepare = prepare
        self._links: dict[str, dict[tuple[tuple[str, str], ...], Link]] = {name: {} for name in self._servers}
        self._listings: dict[Link, Listing] = {}
        self._listing: dict[Link, asyncio.Lock] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def offers(
        self, server: str, *, headers: Mapping[str, str] | None = None, max_age_s: float | None = None
    ) -> tuple[Offer, ...]:
        """Return what a server offers now, or offered at most `max_age_s` ago and has not said to have changed.

        Raises:
            ServerUnavailable: it cannot be reached.
            WorldError, BoundExceededError: its listing is not to be trusted.
            UsageError: there is no such server.
        """
        link = self._link(server, headers or {})
        listing = await self._listed(link, timeout_s=link.server.connect_timeout_s, max_age_s=max_age_s)
        return tuple(known.offer for known in listing.tools.values())

    async def call(
        self,
        server: str,
        original: str,
        arguments: Mapping[str, object],
        *,
        digest: str,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        meta: Mapping[str, object] | None = None,
        on_progress: OnProgress | None = None,
        replies: Mapping[str, Reply] | None = None,
        request_state: str = "",
        answers: Literal["anything", "json"] = "anything",
        as_of: str = "",
        fresh_for_s: float | None = None,
        result_max_bytes: int | None = None,
    ) -> ServerAnswer:
        """Call a tool whose definition still has the digest that a person pinned.

        A call that is given up or takes too long is cancelled on the server too. `key` is the idempotency key; it goes
        into the metadata of the call and, over HTTP, into a header. `replies` and `request_state` go on with a call
        that needed people.

        Raises:
            ServerUnavailable: it cannot be reached, or was lost; `was_sent` tells whether the call may have arrived.
            RefusedError: the tool is not offered, or is not what was pinned.
            WorldError, BoundExceededError: its listing is not to be trusted.
            UsageError: there is no such server.
        """
        link = self._link(server, headers or {})
        bound_s = min(timeout_s or link.server.call_timeout_s, link.server.call_timeout_s)
        until_s = self._monotonic() + bound_s
        listing = await self._listed(link, timeout_s=bound_s, max_age_s=None)
        known = self._pinned(link, listing, original, digest)
        session = await link.session(timeout_s=max(0.0, until_s - self._monotonic()))
        exchange = CallExchange(
            headers={**({KEY_HEADER: key} if key else {}), **mcp_param_headers(known.header_map, dict(arguments))},
            replies=replies or {},
        )
        expected = Expectation(
            output=known.output,
            answers=answers,
            as_of=as_of,
            fresh_for_s=fresh_for_s,
            now=self._clock,
            result_max_bytes=min(result_max_bytes or link.server.result_max_bytes, link.server.result_max_bytes),
        )
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(
                name=original,
                arguments=dict(arguments),
                input_responses={name: elicit_result(reply) for name, reply in (replies or {}).items()} or None,
                request_state=request_state or None,
                _meta=cast("RequestParamsMeta", {**(meta or {}), **({KEY_META: key} if key else {})}) or None,
            )
        )
        return await _exchange(
            link,
            session,
            request=request,
            exchange=exchange,
            expected=expected,
            on_progress=on_progress,
            timeout_s=until_s - self._monotonic(),
        )

    def status(self) -> tuple[ServerStatus, ...]:
        """Tell of each server whether it is there; of one with several connections, the last used."""
        told = []
        for name, server in self._servers.items():
            link = next(reversed(self._links[name].values()), None)
            if link is None:
                told.append(ServerStatus(name=name, transport=server.transport, state="idle"))
                continue
            tools = len(self._listings.get(link, Listing()).tools)
            told.append(
                ServerStatus(
                    name=name,
                    transport=server.transport,
                    state=link.state,
                    reason=link.reason,
                    protocol=link.protocol,
                    tools=tools,
                )
            )
        return tuple(told)

    async def close(self) -> None:
        """End every call, connection and child, in bounded time whatever the servers do."""
        links = [link for links in self._links.values() for link in links.values()]
        await asyncio.gather(*(link.close() for link in links), *self._leaving)

    def _link(self, name: str, headers: Mapping[str, str]) -> Link:
        """Return the connection for a caller: one for each set of forwarded headers, the longest unused one leaves."""
        server = self._servers.get(name)
        if server is None:
            raise UsageError(f"there is no tool server {name}", hint=f"there are: {', '.join(self._servers) or 'none'}")
        allowed = {header.lower() for header in server.forward_headers if not is_reserved(header)}
        passed = tuple(sorted((h.lower(), value) for h, value in headers.items() if h.lower() in allowed))
        links = self._links[name]
        link = links.pop(passed, None)
        if link is None:
            self._make_room(name, links)
            link = Link(
                server,
                headers=dict(passed),
                argv=self._prepare(server) if server.transport == "stdio" else (),
                monotonic=self._monotonic,
                entropy=self._entropy,
                key_of=key_of_question,
            )
        links[passed] = link
        return link

    def _make_room(self, name: str, links: dict[tuple[tuple[str, str], ...], Link]) -> None:
        if len(links) < LINKS_MAX:
            return
        idle = next((passed for passed, link in links.items() if not link.calls), None)
        if idle is None:
            raise OverloadError(f"all {LINKS_MAX} connections to tool server {name} are in use", retry_after_s=1.0)
        gone = links.pop(idle)
        self._listings.pop(gone, None)
        self._listing.pop(gone, None)
        leaving = asyncio.create_task(gone.close(), name=f"quell mcp {name} leaves")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _listed(self, link: Link, *, timeout_s: float, max_age_s: float | None) -> Listing:
        """Return the listing of a connection, made anew when it is old or the server said that it changed."""
        oldest_s = link.server.offers_fresh_s if max_age_s is None else max_age_s
        listing = self._fresh(link, oldest_s)
        if listing is not None:
            return listing
        async with self._listing.setdefault(link, asyncio.Lock()):
            listing = self._fresh(link, oldest_s)
            if listing is not None:
                return listing
            session = await link.session(timeout_s=min(timeout_s, link.server.connect_timeout_s))
            link.is_stale = False
            exchange = CallExchange()
            try:
                tools = await link.do(
                    lambda: list_tools(session, link.server, link.identity), exchange, timeout_s=timeout_s
                )
            except (MCPError, TimeoutError) as error:
                link.is_stale = True
                reason = "it does not list its tools in time" if isinstance(error, TimeoutError) else str(error)[:300]
                raise link.unavailable(reason, was_sent=False) from None
            except ValidationError:
                link.is_stale = True
                raise WorldError(
                    f"tool server {link.server.name} lists its tools in a form that is none", hint="tell who runs it"
                ) from None
            except BaseException:
                link.is_stale = True
                raise
            listing = Listing(tools=tools, at_s=self._monotonic())
            self._listings[link] = listing
            return listing

    def _fresh(self, link: Link, oldest_s: float) -> Listing | None:
        listing = self._listings.get(link)
        if listing is None or link.is_stale or link.state != "connected":
            return None
        return listing if self._monotonic() - listing.at_s <= oldest_s else None

    @staticmethod
    def _pinned(link: Link, listing: Listing, original: str, digest: str) -> Known:
        known = listing.tools.get(original)
        where = f"{original} of tool server {link.server.name}"
        if known is None:
            raise RefusedError(f"{where} is not offered", hint="look at what the server offers now")
        if known.offer.digest != digest:
            raise RefusedError(
                f"{where} is not what was pinned: its definition, or its server, changed",
                hint="let a person look at the difference and pin it again",
            )
        return known


async def _exchange(
    link: Link,
    session: ClientSession,
    *,
    request: types.CallToolRequest,
    exchange: CallExchange,
    expected: Expectation,
    on_progress: OnProgress | None,
    timeout_s: float,
) -> ServerAnswer:
    """Send one call and judge what comes of it."""
    try:
        raw = await link.do(
            lambda: session.send_request(request, Raw, progress_callback=_forwarding(on_progress)),
            exchange,
            timeout_s=max(0.0, timeout_s),
        )
    except TimeoutError:
        return ServerAnswer(kind=OutcomeKind.TIMEOUT, detail=f"no answer within {timeout_s:.3g} s; it was cancelled")
    except ServerUnavailable:
        if exchange.fault != "overflow":
            raise
        return judge_refusal(0, "", exchange)
    except ValidationError:
        return ServerAnswer(kind=OutcomeKind.SUSPICIOUS, detail="the result does not have the form of the protocol")
    except MCPError as error:
        return _refused(link, session, exchange, error)
    if raw.root.get("resultType") == "input_required":
        return _parked(needs_of(raw.root))
    return _asked(exchange.asked) if exchange.asked else judge_result(raw.root, expected=expected)


def _refused(link: Link, session: ClientSession, exchange: CallExchange, error: MCPError) -> ServerAnswer:
    """Tell a lost connection, a question in the clothes of an error, and an error apart."""
    if exchange.status == 404 and session.initialize_result is not None:
        link.lose("the server has forgotten the session")
    if not link.has(session):
        raise link.unavailable(link.reason or "the connection was lost", was_sent=exchange.is_sent)
    if error.code == _URL_ELICITATION_REQUIRED:
        with suppress(ValidationError):
            wanted = types.ElicitationRequiredErrorData.model_validate(error.data).elicitations
            return _asked(list(wanted))
    return judge_refusal(error.code, error.message, exchange)


def _asked(questions: Sequence[types.ElicitRequestParams]) -> ServerAnswer:
    """Park a call in which an old server asked: it was told no, and the call begins anew once people have replied."""
    asks = []
    for question in questions:
        ask = ask_of(key_of_question(question), question)
        if isinstance(ask, str):
            return _parked(ask)
        asks.append(ask)
    return _parked(NeedsPeople(asks=tuple(asks), goes_on="restarts"))


def _parked(needs: NeedsPeople | str) -> ServerAnswer:
    if isinstance(needs, str):
        return ServerAnswer(kind=OutcomeKind.TOOL_ERROR, detail=needs)
    return ServerAnswer(kind=OutcomeKind.DENIED, detail="the server asks people before it goes on", needs=needs)


def _forwarding(on_progress: OnProgress | None) -> ProgressFnT | None:
    """Pass progress on, within bounds; a listener that fails does not fail the call."""
    if on_progress is None:
        return None
    left = PROGRESS_MAX

    async def forward(progress: float, total: float | None, message: str | None) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            with suppress(Exception):
                on_progress(CallProgress(done=progress, total=total, message=(message or "")[:1000]))

    return forward
