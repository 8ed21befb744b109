"""What people see of tools and their servers, and the pins that they set: the same for a terminal and for a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Literal

from quell.app._office import Office
from quell.app._toolset import Toolset
from quell.domain import (
    AuditKind,
    BareServer,
    ListedTool,
    Offer,
    OfferSheet,
    Pinned,
    PinNote,
    Principal,
    QuellError,
    RefusedError,
    ServerCheck,
    ServerDown,
    Tool,
    ToolComparison,
    ToolDrift,
    ToolList,
    ToolPin,
    ToolSheet,
    ToolTerms,
    UsageError,
    is_person,
)

_CLIENT = "client"
"""What pins of a chat client's own tools have for a server."""
_MAY_UNPIN = frozenset({"operator", "admin"})
_DIGEST_CHARS_MIN = 8


class ToolDesk:
    """Tells of tools, asks servers what they offer, and takes pins from people."""

    def __init__(
        self, office: Office, toolset: Toolset, *, renew: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """`renew` takes what was pinned elsewhere since; None: nobody else works with these tools."""
        self._office = office
        self._toolset = toolset
        self._renew = renew

    # -- what is there ------------------------------------------------------------------------------------------------

    async def listed(self, server: str = "", *, tenant: str = "") -> ToolList:
        """Return the tools that may be called, our own first; of one MCP server when it is named. Asks no server.

        `tenant` is that of who asks from elsewhere: another one than the first is not told who pinned them.
        """
        await self._take()
        pins = {(pin.server, pin.original): note_of(pin) for pin in await asyncio.to_thread(self._pins)}
        if tenant and tenant != self._office.settings.identity.tenants[0]:
            pins = {where: replace(pin, by="") for where, pin in pins.items()}
        tools = self._toolset.registry.tools
        served = {(tool.server, tool.original) for tool in tools}
        shown = [tool for tool in tools if not server or tool.server == server]
        shown.sort(key=lambda tool: (bool(tool.server), tool.server, tool.name))
        known = self._toolset.settings.mcp.servers
        return ToolList(
            tools=tuple(ListedTool(tool=each, pin=pins.get((each.server, each.original))) for each in shown),
            idle=tuple(pin for at, pin in pins.items() if at not in served and (not server or pin.server == server)),
            bare=tuple(
                BareServer(name=name, pins=each.pin)
                for name, each in known.items()
                if all(pinned != name for pinned, _ in pins)
            ),
            at=self._office.clock(),
        )

    async def shown(self, name: str) -> ToolSheet:
        """Return a tool whole, by its name or as SERVER/NAME. Raises UsageError when there is none."""
        await self._take()
        tools = self._toolset.registry.tools
        found = [tool for tool in tools if name in {tool.name, f"{tool.server}/{tool.original}"}]
        if not found:
            raise UsageError(f"there is no tool {name[:100]!r}", hint="`quell tool list` names them")
        tool: Tool = found[0]
        pin = await asyncio.to_thread(self._pin, tool.server, tool.original) if tool.server else None
        if pin is None:
            return ToolSheet(tool=tool, pin=None, definition="")
        return ToolSheet(tool=tool, pin=note_of(pin), definition=self._toolset.pins.show(_offer_of(pin)))

    async def compared(self, server: str = "", *, headers: Mapping[str, str] | None = None) -> ToolComparison:
        """Ask what is offered now, and compare it with what is pinned; of all servers, those that are down are named.

        Raises UsageError, and WorldError when the one that is named cannot be asked.
        """
        if server:
            return ToolComparison(tools=tuple(await self._drift(self._server(server), headers)))
        names = list(self._toolset.settings.mcp.servers)
        found = await asyncio.gather(*(self._drift_or_down(name, headers) for name in names))
        return ToolComparison(
            tools=tuple(drift for drifts, _ in found for drift in drifts),
            down=tuple(down for _, down in found if down is not None),
        )

    async def checked(self, server: str = "", *, headers: Mapping[str, str] | None = None) -> tuple[ServerCheck, ...]:
        """Ask whether servers answer, and whether what is pinned is still what they offer. Raises UsageError."""
        names = [self._server(server)] if server else list(self._toolset.settings.mcp.servers)
        checked = await asyncio.gather(*(self._checked(name, headers) for name in names))
        return (*checked, *(() if server else await asyncio.to_thread(self._unserved)))

    # -- pins ---------------------------------------------------------------------------------------------------------

    async def offered(
        self, server: str, name: str, *, declared: str | None = None, headers: Mapping[str, str] | None = None
    ) -> OfferSheet:
        """Return what is offered under a name; `declared` is the JSON list of tools of a chat client.

        Raises UsageError when nothing is, and WorldError for a server that cannot be asked.
        """
        offer = await self._offer(server, name, declared=declared, headers=headers)
        old = await asyncio.to_thread(self._pin, server, name)
        pins, terms = self._toolset.pins, self._toolset.terms_of(offer)
        verdict = pins.judge(offer, old)
        return OfferSheet(
            server=offer.server,
            tool=offer.original,
            digest=offer.digest,
            terms=terms,
            verdict=verdict,
            text=pins.show(offer),
            change=pins.show_change(old, offer) if old is not None and old.digest != offer.digest else "",
            old=note_of(old) if old is not None else None,
            is_settled=verdict == "pinned" and old is not None and old.terms == terms,
        )

    async def pin(
        self,
        server: str,
        name: str,
        *,
        digest: str,
        by: Principal,
        terms: ToolTerms | None = None,
        way: Literal["here", "api"] = "here",
        declared: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Pinned:
        """Accept what is offered under a name, if its digest begins as the one that was seen; keep the account of it.

        `terms` are those that were seen; None: whatever is said of it now.

        Raises:
            RefusedError: another thing is offered (`mismatch`), or this person may not; both are on record.
            UsageError: nothing is offered under that name, or too little of a digest is given.
            WorldError: the server cannot be asked.
        """
        offer = await self._offer(server, name, declared=declared, headers=headers)
        bare, now, told = digest.removeprefix("sha256:").lower(), self._toolset.terms_of(offer), ""
        if not offer.digest.removeprefix("sha256:").startswith(bare):
            told = f"what is offered is not {digest[:80]}: it is {offer.digest}"
        elif terms is not None and terms != now:
            told = f"the settings say otherwise of it now: {now.tool_class} and {now.recovery}"
        if told:
            error = RefusedError(told, hint="read it again", code="mismatch")
            await asyncio.to_thread(self._office.refused, by, verb="tool.pin", about=f"{server}/{name}", error=error)
            raise error
        if len(bare) < _DIGEST_CHARS_MIN:
            raise UsageError(f"a digest of {len(bare)} characters says too little", hint=f"{_DIGEST_CHARS_MIN} or more")
        pinned = await asyncio.to_thread(self._accept, offer, now, by=by, way=way)
        await self._take()
        return pinned

    async def unpin(self, server: str, name: str, *, by: Principal, way: Literal["here", "api"] = "here") -> None:
        """Take a pin back, and keep the account of it. Raises RefusedError, or UsageError when there is none."""
        await asyncio.to_thread(self._drop, server, name, by=by, way=way)
        await self._take()

    def _accept(self, offer: Offer, terms: ToolTerms, *, by: Principal, way: Literal["here", "api"]) -> Pinned:
        office, pins = self._office, self._toolset.pins
        about = f"{offer.server}/{offer.original}"
        with office.changing(by, verb="tool.pin", about=about) as connection:
            old = pins.find(connection, offer.server, offer.original)
            verdict = pins.judge(offer, old)
            if verdict == "pinned" and old is not None and old.terms == terms:
                return Pinned(pin=note_of(old), change="none")
            pin = pins.accept(connection, offer, terms, by=by)
            body = {
                "server": offer.server,
                "tool": offer.original,
                "digest": pin.digest,
                "was": old.digest if old else "",
                "class": terms.tool_class.value,
                "recovery": terms.recovery.value,
            }
            office.record(connection, AuditKind.PIN, by=by, verb="tool.pin", body=body, way=way)
        return Pinned(pin=note_of(pin), change=verdict)

    def _drop(self, server: str, name: str, *, by: Principal, way: Literal["here", "api"]) -> None:
        office = self._office
        with office.changing(by, verb="tool.unpin", about=f"{server}/{name}") as connection:
            if not is_person(by) or not _MAY_UNPIN & set(by.roles):
                told = "only a person with the role operator or admin takes pins back"
                raise RefusedError(told, hint="ask one", code="forbidden")
            if not self._toolset.pins.drop(connection, server, name):
                raise UsageError(f"{name!r} of {server!r} is not pinned", hint="`quell tool list` names what is")
            office.record(
                connection, AuditKind.PIN, by=by, verb="tool.unpin", body={"server": server, "tool": name}, way=way
            )

    # -- servers ------------------------------------------------------------------------------------------------------

    async def _offer(self, server: str, name: str, *, declared: str | None, headers: Mapping[str, str] | None) -> Offer:
        if declared is not None:
            offers = {each.original: each for each in self._toolset.registry.Seat(declared).offers}
            if name not in offers or offers[name].server != server:
                known = ", ".join(sorted(offers)) if server == _CLIENT else f"nothing of that server: write `{_CLIENT}`"
                raise UsageError(f"{name!r} of {server!r} is not declared there", hint=f"there is {known!a}")
            return offers[name]
        told = await self._toolset.servers.offers(self._server(server), headers=headers or {}, max_age_s=0)
        found = {offer.original: offer for offer in told}
        if name not in found:
            known = ", ".join(sorted(map(ascii, found))) or "nothing"
            raise UsageError(f"{server} offers no tool {name!r}", hint=f"it offers: {known}")
        return found[name]

    async def _drift(self, server: str, headers: Mapping[str, str] | None) -> list[ToolDrift]:
        toolset = self._toolset
        told = await toolset.servers.offers(server, headers=headers or {}, max_age_s=0)
        offers = {offer.original: offer for offer in told}
        pins = {pin.original: pin for pin in await asyncio.to_thread(self._pins) if pin.server == server}
        drifts = []
        for original in sorted({*offers, *pins}):
            offer, pin = offers.get(original), pins.get(original)
            verdict = "gone" if offer is None else toolset.pins.judge(offer, pin)
            change = self._change(pin, offer) if offer and pin else ""
            drifts.append(ToolDrift(server=server, tool=original, verdict=verdict, change=change))
        return drifts

    async def _drift_or_down(
        self, server: str, headers: Mapping[str, str] | None
    ) -> tuple[list[ToolDrift], ServerDown | None]:
        try:
            return await self._drift(server, headers), None
        except QuellError as error:
            clean = self._office.redactor.text
            return [], ServerDown(server=server, reason=clean(str(error)), hint=clean(error.hint))

    def _change(self, pin: ToolPin, offer: Offer) -> str:
        """Show how an offer differs from its pin, and that the operator's word changed: that counts from a new pin on."""
        terms = self._toolset.terms_of(offer)
        told = self._toolset.pins.show_change(pin, offer) if pin.digest != offer.digest else ""
        if terms != pin.terms:
            was, now = f"{pin.terms.tool_class} and {pin.terms.recovery}", f"{terms.tool_class} and {terms.recovery}"
            said = f"the settings say of it otherwise than when it was pinned ({was}, now {now})"
            told += f"\n{said}: pin it again to have that"
        return told.lstrip("\n")

    async def _checked(self, name: str, headers: Mapping[str, str] | None) -> ServerCheck:
        known = self._toolset.settings.mcp.servers[name]
        pinned = sum(pin.server == name for pin in await asyncio.to_thread(self._pins))
        whole = ServerCheck(server=name, transport=known.transport, state="up", pinned=pinned, pins=known.pin)
        found, down = await self._drift_or_down(name, headers)
        if down is not None:
            return replace(whole, state="down", reason=down.reason, hint=down.hint)
        offers = await self._toolset.servers.offers(name, headers=headers or {})
        effects = (each.original for each in offers if self._toolset.terms_of(each).tool_class.is_effect)
        return replace(
            whole,
            changed=tuple(each.tool for each in found if each.verdict == "changed"),
            gone=tuple(each.tool for each in found if each.verdict == "gone"),
            unknown=sum(each.verdict == "unknown" for each in found),
            effects=tuple(sorted(effects)),
        )

    def _unserved(self) -> list[ServerCheck]:
        """Return the servers of pins that no settings name any more; a client's tools have none."""
        servers = [pin.server for pin in self._pins() if pin.server != _CLIENT]
        unknown = sorted(set(servers) - set(self._toolset.settings.mcp.servers))
        return [
            ServerCheck(server=name, transport="-", state="not configured", pinned=servers.count(name))
            for name in unknown
        ]

    def _server(self, name: str) -> str:
        """Return the name of a configured server. Raises UsageError."""
        servers = self._toolset.settings.mcp.servers
        if name not in servers:
            known = ", ".join(servers) or "none"
            raise UsageError(f"there is no MCP server {name[:100]!r}", hint=f"configured are (mcp.servers): {known}")
        return name

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _pins(self) -> list[ToolPin]:
        with self._toolset.database.reading() as connection:
            return list(self._toolset.pins.listed(connection))

    def _pin(self, server: str, name: str) -> ToolPin | None:
        with self._toolset.database.reading() as connection:
            return self._toolset.pins.find(connection, server, name)

    async def _take(self) -> None:
        if self._renew is not None:
            await self._renew()


def note_of(pin: ToolPin) -> PinNote:
    """Return a pin as lists show it."""
    return PinNote(
        server=pin.server,
        tool=pin.original,
        digest=pin.digest,
        tool_class=pin.terms.tool_class,
        recovery=pin.terms.recovery,
        reason=pin.terms.reason,
        by=pin.pinned_by,
        at=pin.pinned_at,
    )


def _offer_of(pin: ToolPin) -> Offer:
    return Offer(
        server=pin.server, original=pin.original, definition=pin.definition, digest=pin.digest, identity=pin.identity
    )
