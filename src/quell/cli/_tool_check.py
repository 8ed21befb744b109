"""`quell tool check`, and how what servers offer now compares with what is pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_table
from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import Office, Toolset
    from quell.domain import Offer, ToolPin

_NAMED_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What came of looking at one server."""

    server: str
    transport: str
    state: Literal["up", "down", "not configured"]
    pinned: int
    changed: tuple[str, ...] = ()
    """Pinned tools that are another one now."""
    gone: tuple[str, ...] = ()
    unknown: int = 0
    """Tools on offer that nobody pinned."""
    effects: tuple[str, ...] = ()
    """Tools on offer that are not known to read: people are asked about each call of them."""
    reason: str = ""
    hint: str = ""

    @property
    def is_ok(self) -> bool:
        return self.state == "up" and not self.changed and not self.gone


@click.command("check", cls=QuellCommand)
@click.argument("server", metavar="[SERVER]", default="")
@click.pass_obj
def check_tools(session: Session, server: str) -> int:
    """Ask every server whether it answers, and whether what is pinned is still what it offers.

    Exit 1 when a pinned tool changed or is gone, 3 when a server cannot be reached.
    """

    async def use(office: Office, toolset: Toolset) -> int:
        import asyncio

        names = [server_of(office, server)] if server else list(office.settings.mcp.servers)
        checked = list(await asyncio.gather(*(_checked(office, toolset, name) for name in names)))
        if not server:
            checked += _unserved(office, toolset)
        is_ok = all(each.is_ok for each in checked)
        if session.is_json:
            put_document("tool_check", is_ok=is_ok, servers=checked)
        else:
            rows = [_row(each) for each in checked]
            put_table(("SERVER", "TRANSPORT", "STATE", "PINNED", "CHANGED", "GONE", "NOT PINNED"), rows)
            for each in checked:
                _remark(each, office)
            if not checked:
                note_none("MCP server (mcp.servers)", office.settings)
        if any(each.state == "down" for each in checked):
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if is_ok else ExitCode.BAD

    return session.with_toolset(use)


async def _checked(office: Office, toolset: Toolset, name: str) -> _Checked:
    from quell.domain import QuellError

    with office.runs.database.reading() as connection:
        pinned = sum(pin.server == name for pin in toolset.pins.listed(connection))
    transport = office.settings.mcp.servers[name].transport
    try:
        found = await compared(office, toolset, name)
    except QuellError as error:
        reason = office.redactor.text(str(error))
        return _Checked(server=name, transport=transport, state="down", pinned=pinned, reason=reason, hint=error.hint)
    return _Checked(
        server=name,
        transport=transport,
        state="up",
        pinned=pinned,
        changed=tuple(tool for _, tool, verdict, _ in found if verdict == "changed"),
        gone=tuple(tool for _, tool, verdict, _ in found if verdict == "gone"),
        unknown=sum(verdict == "unknown" for _, _, verdict, _ in found),
        effects=await _effects(toolset, name),
    )


async def _effects(toolset: Toolset, name: str) -> tuple[str, ...]:
    """Return what is on offer and, as far as is said of it, does not only read."""
    offers = await toolset.servers.offers(name)
    return tuple(sorted(each.original for each in offers if toolset.terms_of(each).tool_class.is_effect))


def _unserved(office: Office, toolset: Toolset) -> list[_Checked]:
    """Return the servers of pins that no settings name any more; a client's tools have none."""
    with office.runs.database.reading() as connection:
        servers = [pin.server for pin in toolset.pins.listed(connection) if pin.server != "client"]
    unknown = sorted(set(servers) - set(office.settings.mcp.servers))
    return [
        _Checked(server=name, transport="-", state="not configured", pinned=servers.count(name)) for name in unknown
    ]


def _row(checked: _Checked) -> tuple[str, ...]:
    is_up = checked.state == "up"
    counts = (len(checked.changed), len(checked.gone), checked.unknown)
    told = tuple(str(count) if is_up else "-" for count in counts)
    return (checked.server, checked.transport, checked.state, str(checked.pinned), *told)


def _remark(checked: _Checked, office: Office) -> None:
    visible = office.approvals.visible
    if checked.reason:
        note(f"{checked.server}: {checked.reason}" + (f" ({checked.hint})" if checked.hint else ""))
    for word, tools in (("changed", checked.changed), ("gone", checked.gone)):
        if tools:
            note(f"{checked.server}: {word}: {', '.join(map(visible, tools))}; `quell tool diff {checked.server}`")
    if checked.unknown and office.settings.mcp.servers[checked.server].pin == "first_use":
        note(f"{checked.server}: what it offers is pinned when an agent is first asked")
    if checked.effects:
        names = ", ".join(map(visible, checked.effects[:_NAMED_MAX])) + (", …" if checked.effects[_NAMED_MAX:] else "")
        note(f"{checked.server}: people are asked about each call of {names}; `reads` names tools that only read")


async def compared(office: Office, toolset: Toolset, server: str) -> list[tuple[str, str, str, str]]:
    """Return server, tool, verdict and change of everything that is pinned or offered. Raises WorldError."""
    offers = {offer.original: offer for offer in await toolset.servers.offers(server, max_age_s=0)}
    with office.runs.database.reading() as connection:
        pins = {pin.original: pin for pin in toolset.pins.listed(connection) if pin.server == server}
    told: list[tuple[str, str, str, str]] = []
    for original in sorted({*offers, *pins}):
        offer, pin = offers.get(original), pins.get(original)
        verdict = "gone" if offer is None else toolset.pins.judge(offer, pin)
        change = _change(toolset, pin, offer) if offer and pin else ""
        told.append((server, original, verdict, change))
    return told


def _change(toolset: Toolset, pin: ToolPin, offer: Offer) -> str:
    """Show how an offer differs from its pin, and that the operator's word changed since: that counts from a new pin on."""
    terms = toolset.terms_of(offer)
    told = toolset.pins.show_change(pin, offer) if pin.digest != offer.digest else ""
    if terms != pin.terms:
        was, now = f"{pin.terms.tool_class} and {pin.terms.recovery}", f"{terms.tool_class} and {terms.recovery}"
        told += (
            f"\nthe settings say of it otherwise than when it was pinned ({was}, now {now}): pin it again to have that"
        )
    return told.lstrip("\n")


def server_of(office: Office, name: str) -> str:
    """Return the name of a configured server. Raises UsageError."""
    from quell.domain import UsageError

    if name not in office.settings.mcp.servers:
        known = ", ".join(office.settings.mcp.servers) or "none"
        raise UsageError(f"there is no MCP server {name!r}", hint=f"configured are (mcp.servers): {known}")
    return name
