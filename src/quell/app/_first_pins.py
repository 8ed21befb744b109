"""Pins on first use: what the servers that an operator wrote down offer when they are first seen, on the record.

One server that cannot be reached keeps nobody waiting: all are asked at once, in bounded time, and what became of each
is told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from quell import telemetry
from quell.domain import AuditKind, Offer, QuellError, RefusedError, ServerState, ToolPin

if TYPE_CHECKING:
    # Who merges servers into settings waits for no guard to load.
    from quell.app._authority import Authority

_AT_ONCE = 16
_TOLD_MAX_CHARS = 300
_STATUS = re.compile(r"server returned HTTP \d{3}")


async def pin_first(
    authority: Authority,
    *,
    names: Iterable[str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    max_age_s: float | None = None,
) -> Mapping[str, ServerState]:
    """Ask servers what they offer, pin what is new of those that pin on first use, and say what became of each.

    `names` are those of the settings; None asks all. `headers` are the caller's own, for servers that take some of
    them. Call it when a deployment opens, when agents are told of their servers, and again for those that were down: it
    pins nothing twice. Raises JournalError when the account cannot be kept.
    """
    known = authority.settings.mcp.servers
    wanted = list(known) if names is None else [name for name in dict.fromkeys(names) if name in known]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def look(name: str) -> tuple[tuple[Offer, ...], str]:
        try:
            async with gate, asyncio.timeout(timeout_s):
                return await authority.servers.offers(name, headers=headers or {}, max_age_s=max_age_s), ""
        except TimeoutError:
            return (), f"no answer within {timeout_s:g} s"
        except QuellError as error:
            return (), _why(error)

    found = dict(zip(wanted, await asyncio.gather(*map(look, wanted)), strict=True))
    new = [offer for name in wanted if known[name].pin == "first_use" for offer in found[name][0]]
    if new:
        await asyncio.to_thread(_pin, authority, new)
    await authority.toolbox.renew()
    pins = await asyncio.to_thread(_pinned, authority)
    return {
        name: _state(authority, name, known[name].transport, offers=found[name][0], reason=found[name][1], pins=pins)
        for name in wanted
    }


def _pin(authority: Authority, offers: Iterable[Offer]) -> None:
    """Pin what nobody saw before, all in one transaction with the account of it."""
    seen = _pinned(authority)
    fresh = [offer for offer in offers if _may_be_new(seen.get((offer.server, offer.original)), offer, authority)]
    if not fresh:
        return
    audit, book = authority.guard.audit, authority.pins
    with authority.runs.database.writing() as connection:
        entries = []
        known = {(pin.server, pin.original): pin for pin in book.listed(connection)}
        for offer in fresh:
            old = known.get((offer.server, offer.original))
            server = authority.settings.mcp.servers.get(offer.server)
            stands_for = server.stands_for if server is not None else ""
            terms = authority.toolset.terms_of(offer)
            try:
                pin = book.accept_first(connection, offer, terms, old=old, stands_for=stands_for)
            except RefusedError as refusal:
                told = {"server": offer.server, "tool": offer.original, "reason": str(refusal)[:_TOLD_MAX_CHARS]}
                telemetry.event("tool.first_pin_refused", **told)
                continue
            if pin is not None:
                body = {"verb": "tool.pin", "way": "first use", **_body(pin, old)}
                entries.append(audit.entry(AuditKind.PIN, run="", principal=book.CONFIGURATION, body=body))
        audit.append(connection, *entries)


def _may_be_new(pin: ToolPin | None, offer: Offer, authority: Authority) -> bool:
    """Look without a lock whether anything is to be written: mostly nothing is."""
    if pin is None:
        return True
    is_ours = pin.pinned_by == authority.pins.CONFIGURATION
    return is_ours and (pin.digest != offer.digest or pin.terms != authority.toolset.terms_of(offer))


def _body(pin: ToolPin, old: ToolPin | None) -> dict[str, object]:
    return {
        "server": pin.server,
        "tool": pin.original,
        "digest": pin.digest,
        "was": old.digest if old else "",
        "class": pin.terms.tool_class.value,
        "recovery": pin.terms.recovery.value,
        "reason": pin.terms.reason,
    }


def _pinned(authority: Authority) -> Mapping[tuple[str, str], ToolPin]:
    with authority.runs.database.reading() as connection:
        return {(pin.server, pin.original): pin for pin in authority.pins.listed(connection)}


def _state(
    authority: Authority,
    name: str,
    transport: Literal["stdio", "sse", "http_streamable"],
    *,
    offers: Iterable[Offer],
    reason: str,
    pins: Mapping[tuple[str, str], ToolPin],
) -> ServerState:
    offers = tuple(offers)
    judged = {offer.original: authority.pins.judge(offer, pins.get((offer.server, offer.original))) for offer in offers}
    return ServerState(
        name=name,
        transport=transport,
        is_up=not reason,
        tools=tuple(original for original, verdict in judged.items() if verdict == "pinned"),
        reason=reason,
        held_back=tuple(original for original, verdict in judged.items() if verdict != "pinned"),
    )


def _why(error: QuellError) -> str:
    """Say why a server is not there: a refusal over HTTP in AURA's words, anything else in ours, at most a line."""
    status = _STATUS.search(str(error))
    return status[0] if status else " ".join(str(error).split())[:_TOLD_MAX_CHARS]
