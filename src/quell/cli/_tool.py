"""`quell tool`: list, show, check, diff, call, pin, unpin."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_table, put_text
from quell.cli._person import confirmed, person_of
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._tool_call import call_tool
from quell.cli._tool_check import check_tools, compared, server_of
from quell.cli._values import away, clock_time

if TYPE_CHECKING:
    from quell.app import Office, Toolset
    from quell.domain import Offer, Tool, ToolPin, ToolTerms


@click.group("tool", cls=QuellGroup)
def tool_command() -> None:
    """List tools; pin what servers offer. What nobody pinned does not exist for any agent."""


tool_command.add_command(call_tool)
tool_command.add_command(check_tools)


@tool_command.command("list", cls=QuellCommand)
@click.option("--server", default="", metavar="NAME", help="Only tools of this MCP server.")
@click.pass_obj
def list_tools(session: Session, *, server: str) -> int:
    """List the tools that may be called: our own, and those that are pinned. No server is asked."""

    async def use(office: Office, toolset: Toolset) -> int:
        with office.runs.database.reading() as connection:
            pins = {(pin.server, pin.original): pin for pin in toolset.pins.listed(connection)}
        tools = [tool for tool in toolset.registry.tools if not server or tool.server == server]
        served = {(tool.server, tool.original) for tool in toolset.registry.tools}
        idle = [pin for where, pin in pins.items() if where not in served and (not server or pin.server == server)]
        if session.is_json:
            told = [_as_json(tool, pins.get((tool.server, tool.original))) for tool in tools]
            put_document("tools", tools=told, not_served=[[pin.server, pin.original] for pin in idle])
            return ExitCode.DONE
        now = office.clock()
        tools.sort(key=lambda tool: (not tool.server, tool.server, tool.name))
        rows = [_row(tool, pins.get((tool.server, tool.original)), now=now) for tool in tools]
        put_table(("NAME", "SERVER", "CLASS", "RECOVERY", "PINNED"), rows)
        for pin in idle:
            note(f"{pin.original} of {pin.server} is pinned, and no such server is configured (mcp.servers)")
        bare = [name for name in office.settings.mcp.servers if all(where[0] != name for where in pins)]
        if not tools and server:
            note_none(f"pinned tool of {server}", office.settings)
        for name in bare:
            when = ""
            if office.settings.mcp.servers[name].pin == "first_use":
                when = " yet: what it offers is when an agent is first asked"
            note(f"nothing of {name} is pinned{when}; `quell tool diff {name}` shows what it offers")
        return ExitCode.DONE

    return session.with_toolset(use)


@tool_command.command("show", cls=QuellCommand)
@click.argument("name")
@click.pass_obj
def show_tool(session: Session, name: str) -> int:
    """Show a tool whole: its class and why, what it acts on, and its definition with nothing hidden in it."""

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.domain import UsageError

        found = [tool for tool in toolset.registry.tools if name in {tool.name, f"{tool.server}/{tool.original}"}]
        if not found:
            raise UsageError(f"there is no tool {name!r}", hint="`quell tool list` names them")
        tool = found[0]
        with office.runs.database.reading() as connection:
            pin = toolset.pins.find(connection, tool.server, tool.original) if tool.server else None
        if session.is_json:
            put_document("tool", tool=_as_json(tool, pin))
            return ExitCode.DONE
        put_text(tool.name)
        put_text(
            "\n".join(f"  {key + ':':10} {office.approvals.visible(text)}" for key, text in _facts(tool, pin) if text)
        )
        put_text("\nDEFINITION")
        if pin is None:
            put_text(_laid_out(tool.input_schema))
        else:
            put_text(toolset.pins.show(_offer_of(pin)))
        return ExitCode.DONE

    return session.with_toolset(use)


@tool_command.command("diff", cls=QuellCommand)
@click.argument("server", metavar="[SERVER]", default="")
@click.pass_obj
def diff(session: Session, server: str) -> int:
    """Ask servers what they offer now, and compare with what is pinned. Exit 1 when a pinned tool changed or is gone."""

    async def use(office: Office, toolset: Toolset) -> int:
        names = [server_of(office, server)] if server else list(office.settings.mcp.servers)
        found = [each for name in names for each in await compared(office, toolset, name)]
        is_same = not any(verdict in {"changed", "gone"} for _, _, verdict, _ in found)
        if session.is_json:
            told = [
                {"server": where, "tool": original, "verdict": verdict, "change": change}
                for where, original, verdict, change in found
            ]
            put_document("tool_diff", is_ok=is_same, tools=told)
            return ExitCode.DONE if is_same else ExitCode.BAD
        rows = [(where, office.approvals.visible(tool), verdict) for where, tool, verdict, _ in found]
        put_table(("SERVER", "TOOL", "IT IS"), rows)
        for where, original, _, change in found:
            if change:
                put_text(f"\n{where} {office.approvals.visible(original)}\n{change}")
        if not names:
            note_none("MCP server (mcp.servers)", office.settings)
        if any(verdict == "unknown" for _, _, verdict, _ in found):
            note("`quell tool pin SERVER NAME` shows an unknown one whole and lets you accept it")
        return ExitCode.DONE if is_same else ExitCode.BAD

    return session.with_toolset(use)


@tool_command.command("pin", cls=QuellCommand)
@click.argument("server")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Accept it without being asked; you have read it.")
@click.option(
    "--digest", default="", metavar="D", help="Accept it only if its digest begins so, such as one you reviewed."
)
@click.option(
    "--from",
    "declared",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of SERVER `client`: the JSON list of tools that a chat client declares.",
)
@click.pass_obj
def pin_tool(session: Session, server: str, name: str, *, yes: bool, digest: str, declared: Path | None) -> int:
    """Show what a server offers under a name, and accept exactly that. Any later change of it is refused.

    Without --yes a person at a terminal types the name; elsewhere nothing is accepted.
    """
    text = None if declared is None else declared.read_text(encoding="utf-8", errors="replace")

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.domain import AuditKind, RefusedError

        by = person_of(session, office)
        if text is None:
            offer = await _offered(office, toolset, server, name)
        else:
            offer = _declared(toolset, server, name, text=text)
        terms = toolset.terms_of(offer)
        with office.runs.database.reading() as connection:
            old = toolset.pins.find(connection, server, name)
        verdict = toolset.pins.judge(offer, old)
        if not session.is_json:
            _put_question(office, toolset, offer, terms, old)
        if digest and not offer.digest.removeprefix("sha256:").startswith(digest.removeprefix("sha256:").lower()):
            error = RefusedError(
                f"what is offered is not {digest}: it is {offer.digest}", hint="read it again", code="mismatch"
            )
            office.refused(by, verb="tool.pin", about=f"{server}/{name}", error=error)
            raise error
        if verdict == "pinned" and old is not None and old.terms == terms:
            _put_pinned(session, old, change="none")
            return ExitCode.DONE
        if not yes and not await confirmed(session, f"Accept {name} of {server} as {terms.tool_class}?", word=name):
            raise RefusedError("nothing was pinned", hint="read what is shown above, then type the name, or give --yes")
        with office.changing(by, verb="tool.pin", about=f"{server}/{name}") as connection:
            pin = toolset.pins.accept(connection, offer, terms, by=by)
            body = {
                "server": server,
                "tool": name,
                "digest": pin.digest,
                "was": old.digest if old else "",
                "class": terms.tool_class.value,
                "recovery": terms.recovery.value,
            }
            office.record(connection, AuditKind.PIN, by=by, verb="tool.pin", body=body)
        _put_pinned(session, pin, change=verdict)
        return ExitCode.DONE

    return session.with_toolset(use)


@tool_command.command("unpin", cls=QuellCommand)
@click.argument("server")
@click.argument("name")
@click.pass_obj
def unpin_tool(session: Session, server: str, name: str) -> int:
    """Take a pin back: the tool does not exist any more until somebody pins it again."""

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.domain import AuditKind, RefusedError, UsageError, is_person

        by = person_of(session, office)
        with office.changing(by, verb="tool.unpin", about=f"{server}/{name}") as connection:
            if not is_person(by) or not {"operator", "admin"} & set(by.roles):
                raise RefusedError("only a person with the role operator or admin takes pins back", hint="ask one")
            if not toolset.pins.drop(connection, server, name):
                raise UsageError(f"{name!r} of {server!r} is not pinned", hint="`quell tool list` names what is")
            body = {"server": server, "tool": name}
            office.record(connection, AuditKind.PIN, by=by, verb="tool.unpin", body=body)
        if session.is_json:
            put_document("tool_unpinned", server=server, tool=name)
        else:
            put_text(f"{name} of {server} is pinned no more")
        note("a server that runs takes it at its next call")
        return ExitCode.DONE

    return session.with_toolset(use)


def _put_question(office: Office, toolset: Toolset, offer: Offer, terms: ToolTerms, old: ToolPin | None) -> None:
    resource = terms.resource
    acts_on = f"{resource.kind}, named by {resource.name or 'nothing: the server as a whole'}"
    rows = [
        ("server", offer.server),
        ("digest", offer.digest),
        ("class", f"{terms.tool_class}: {terms.reason}"),
        ("recovery", terms.recovery.value),
        ("acts on", acts_on),
        ("undone by", terms.revert or "nothing"),
        ("dry run", terms.dry_run or "none"),
        ("pinned", f"{clock_time(old.pinned_at)} by {old.pinned_by} as {old.digest}" if old else "never"),
    ]
    put_text(f"TOOL {office.approvals.visible(offer.original)}")
    put_text("\n".join(f"  {key + ':':10} {office.approvals.visible(text)}" for key, text in rows))
    put_text("\nOFFERED (the server's own words: nobody has checked them)")
    put_text(toolset.pins.show(offer))
    if old is not None and old.digest != offer.digest:
        put_text("\nCHANGED SINCE IT WAS PINNED")
        put_text(toolset.pins.show_change(old, offer))


def _put_pinned(session: Session, pin: ToolPin, *, change: str) -> None:
    if session.is_json:
        put_document("tool_pinned", pin=_pin_json(pin), change=change)
    else:
        told = "is pinned already" if change == "none" else "is pinned"
        put_text(f"\n{pin.original} of {pin.server} {told} as {pin.terms.tool_class}: {pin.digest}")
    if change != "none":
        note("a server that runs takes it at its next call")


async def _offered(office: Office, toolset: Toolset, server: str, name: str) -> Offer:
    from quell.domain import UsageError

    offers = {offer.original: offer for offer in await toolset.servers.offers(server_of(office, server), max_age_s=0)}
    if name not in offers:
        known = ", ".join(sorted(map(office.approvals.visible, offers))) or "nothing"
        raise UsageError(f"{server} offers no tool {name!r}", hint=f"it offers: {known}")
    return offers[name]


def _declared(toolset: Toolset, server: str, name: str, *, text: str) -> Offer:
    from quell.domain import UsageError

    offers = {offer.original: offer for offer in toolset.registry.Seat(text).offers if offer.server == server}
    if name not in offers:
        known = ", ".join(sorted(offers)) or "nothing of that server: write `client`"
        raise UsageError(f"{name!r} of {server!r} is not declared there", hint=f"there is {known!a}")
    return offers[name]


def _row(tool: Tool, pin: ToolPin | None, *, now: datetime) -> tuple[str, ...]:
    pinned = f"{away(pin.pinned_at, now=now)} by {pin.pinned_by}" if pin else "our own"
    return (tool.name, tool.server or "-", tool.tool_class.value, tool.recovery.value, pinned)


def _facts(tool: Tool, pin: ToolPin | None) -> list[tuple[str, str]]:
    resource = tool.resource
    return [
        ("server", tool.server or "our own"),
        ("on wire", tool.original if tool.server else ""),
        ("class", tool.tool_class.value + (f": {pin.terms.reason}" if pin else "")),
        ("recovery", tool.recovery.value),
        ("acts on", f"{resource.kind}, named by {resource.name or 'nothing: the server as a whole'}"),
        ("reaches", resource.destination),
        ("probe", tool.probe),
        ("undone by", tool.revert),
        ("dry run", tool.dry_run),
        ("timeout", f"{tool.timeout_s:g} s"),
        ("pin", tool.pin),
        ("pinned", f"{clock_time(pin.pinned_at)} by {pin.pinned_by}" if pin else ""),
        ("says", "" if pin else tool.description),
    ]


def _as_json(tool: Tool, pin: ToolPin | None) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(tool), "pinned": _pin_json(pin) if pin else None}


def _pin_json(pin: ToolPin) -> dict[str, object]:
    return {
        "server": pin.server,
        "tool": pin.original,
        "digest": pin.digest,
        "class": pin.terms.tool_class.value,
        "recovery": pin.terms.recovery.value,
        "reason": pin.terms.reason,
        "by": pin.pinned_by,
        "at": pin.pinned_at,
    }


def _offer_of(pin: ToolPin) -> Offer:
    from quell.domain import Offer

    return Offer(
        server=pin.server, original=pin.original, definition=pin.definition, digest=pin.digest, identity=pin.identity
    )


def _laid_out(schema: str) -> str:
    return json.dumps(json.loads(schema), indent=2, ensure_ascii=True)
