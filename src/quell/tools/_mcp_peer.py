"""A tool server as one caller sees it: its connection, what it offers there, and calls of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

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
    NeedsPeople,
    Offer,
    OutcomeKind,
    RefusedError,
    ServerAnswer,
    ServerUnavailable,
    WorldError,
)
from quell.telemetry import genai
from quell.tools._exchange import Exchange
from quell.tools._mcp_answer import Expectation, ask_of, judge_refusal, judge_result, key_of_question, needs_of
from quell.tools._mcp_link import CallExchange, Link, elicit_result
from quell.tools._mcp_offers import Known, Listing, Raw, list_tools
from quell.tools._mcp_wish import OnProgress, Wish

PROGRESS_MAX = 1_000
"""Reports of one call that are passed on; a flood of them is not."""
KEY_META = "quell/idempotency-key"
KEY_HEADER = "Idempotency-Key"
_URL_ELICITATION_REQUIRED = -32_042


class Peer:
    """One connection, its listing, and the calls over it."""

    def __init__(self, link: Link, *, clock: Clock, monotonic: Callable[[], float]) -> None:
        self.link = link
        self.listing = Listing()
        self._clock = clock
        self._monotonic = monotonic
        self._lock = asyncio.Lock()

    async def offers(self, *, max_age_s: float | None) -> tuple[Offer, ...]:
        """Return what is offered; see `Servers.offers`."""
        listing = await self._listed(timeout_s=self.link.server.connect_timeout_s, max_age_s=max_age_s)
        return tuple(known.offer for known in listing.tools.values())

    async def call(self, wish: Wish) -> ServerAnswer:
        """Call a tool; see `Servers.call`."""
        server = self.link.server
        bound_s = min(wish.timeout_s or server.call_timeout_s, server.call_timeout_s)
        until_s = self._monotonic() + bound_s
        said = {name: elicit_result(reply) for name, reply in wish.replies.items()}
        listing = await self._listed(timeout_s=bound_s, max_age_s=None)
        # From here to the sending nothing is waited for: what was compared with the pin is what is called.
        known = self._pinned(listing, wish.original, wish.digest)
        session = self.link.present()
        arguments = dict(wish.arguments)
        mirrored = mcp_param_headers(known.header_map, arguments)
        expected = Expectation(
            output=known.output,
            answers=wish.answers,
            as_of=wish.as_of,
            fresh_for_s=wish.fresh_for_s,
            now=self._clock,
            result_max_bytes=min(wish.result_max_bytes or server.result_max_bytes, server.result_max_bytes),
        )
        with genai.call_server(
            server.name, wish.original, transport=server.transport, protocol=self.link.protocol
        ) as place:
            meta = {**wish.meta, **place, **({KEY_META: wish.key} if wish.key else {})}
            request = types.CallToolRequest(
                params=types.CallToolRequestParams(
                    name=wish.original,
                    arguments=arguments,
                    input_responses=dict(said) if said and session.discover_result is not None else None,
                    request_state=wish.request_state or None,
                    _meta=cast("RequestParamsMeta", meta) or None,
                )
            )
            return await _exchange(
                self.link,
                session,
                request=request,
                exchange=CallExchange(
                    headers={**({KEY_HEADER: wish.key} if wish.key else {}), **place, **mirrored}, replies=said
                ),
                expected=expected,
                on_progress=wish.on_progress,
                timeout_s=until_s - self._monotonic(),
            )

    async def _listed(self, *, timeout_s: float, max_age_s: float | None) -> Listing:
        """Return the listing of a connection, made anew when it is old or the server said that it changed."""
        oldest_s = self.link.server.offers_fresh_s if max_age_s is None else max_age_s
        listing = self._fresh(oldest_s)
        if listing is not None:
            return listing
        until_s = self._monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._lock.acquire()
        except TimeoutError:
            raise self.link.unavailable("it does not list its tools in time", was_sent=False) from None
        try:
            listing = self._fresh(oldest_s)
            if listing is not None:
                return listing
            return await self._list_anew(timeout_s=max(0.0, until_s - self._monotonic()))
        finally:
            self._lock.release()

    async def _list_anew(self, *, timeout_s: float) -> Listing:
        """List the tools, and believe nothing of it when anything goes wrong."""
        until_s = self._monotonic() + timeout_s
        session = await self.link.session(timeout_s=min(timeout_s, self.link.server.connect_timeout_s))
        self.link.is_stale = False
        try:
            tools = await self.link.do(
                lambda: list_tools(session, self.link.server, self.link.identity),
                Exchange(),
                timeout_s=max(0.0, until_s - self._monotonic()),
            )
        except BaseException as error:
            self.link.is_stale = True
            if isinstance(error, TimeoutError):
                raise self.link.unavailable("it does not list its tools in time", was_sent=False) from None
            if isinstance(error, MCPError):
                why = str(error)[:300] if self.link.has(session) else self.link.reason or "the connection was lost"
                raise self.link.unavailable(why, was_sent=False) from None
            if isinstance(error, ValidationError):
                what = f"tool server {self.link.server.name} lists its tools in a form that is none"
                raise WorldError(what, hint="tell who runs it") from None
            raise
        listing = Listing(tools=tools, at_s=self._monotonic())
        self.listing = listing
        return listing

    def _fresh(self, oldest_s: float) -> Listing | None:
        listing = self.listing
        if self.link.is_stale or self.link.state != "connected":
            return None
        return listing if self._monotonic() - listing.at_s < oldest_s else None

    def _pinned(self, listing: Listing, original: str, digest: str) -> Known:
        known = listing.tools.get(original)
        where = f"{original} of tool server {self.link.server.name}"
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
    return await _judged(raw, exchange, expected)


async def _judged(raw: Raw, exchange: CallExchange, expected: Expectation) -> ServerAnswer:
    if raw.root.get("resultType") == "input_required":
        return _parked(needs_of(raw.root))
    if exchange.asked:
        return _asked(exchange.asked)
    if expected.output is None:
        return judge_result(raw.root, expected=expected)
    # In a thread: the other calls do not wait for the work that this server's schema asks for.
    return await asyncio.to_thread(judge_result, raw.root, expected=expected)


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
                on_progress(CallProgress(done=progress, total=total, message=(message or "")[:4000]))

    return forward
