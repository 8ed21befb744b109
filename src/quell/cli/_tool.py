"""`quell tool`: list, show, check, diff, call, pin, unpin."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_table, put_text
from quell.cli._person import confirmed
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._tool_call import call_tool
from quell.cli._tool_check import check_tools, shown
from quell.cli._tool_door import server_option, with_tools
from quell.cli._values import away, clock_time

if TYPE_CHECKING:
    from quell.cli._tool_door import ToolDoor
    from quell.domain import ListedTool, OfferSheet, Pinned, PinNote, Tool, ToolList, ToolSheet


@click.group("tool", cls=QuellGroup)
def tool_command() -> None:
    """List tools; pin what servers offer. What nobody pinned does not exist for any agent."""


tool_command.add_command(call_tool)
tool_command.add_command(check_tools)


@tool_command.command("list", cls=QuellCommand)
@click.argument("server", metavar="[SERVER]", default="")
@server_option
@click.pass_obj
def list_tools(session: Session, *, server: str, url: str) -> int:
    """List the tools that may be called: our own, and those that are pinned. No MCP server is asked.

    SERVER names an MCP server: only its tools.
    """
    if url and "/" not in url:
        raise click.UsageError(f"--server takes an address; of one MCP server: `quell tool list {url}`")

    async def use(door: ToolDoor) -> int:
        listed = await door.listed(server)
        if session.is_json:
            told = [_as_json(each.tool, each.pin) for each in listed.tools]
            put_document("tools", tools=told, not_served=[[pin.server, pin.tool] for pin in listed.idle])
        else:
            _put_list(listed)
            if not listed.tools and server:
                door.note_none(f"pinned tool of {server}")
            _note_bare(listed)
        return ExitCode.DONE

    return with_tools(session, use, url=url)


@tool_command.command("show", cls=QuellCommand)
@click.argument("name")
@server_option
@click.pass_obj
def show_tool(session: Session, name: str, *, url: str) -> int:
    """Show a tool whole: its class and why, what it acts on, and its definition with nothing hidden in it."""

    async def use(door: ToolDoor) -> int:
        sheet = await door.shown(name)
        tool, pin = sheet.tool, sheet.pin
        if session.is_json:
            put_document("tool", tool=_as_json(tool, pin))
            return ExitCode.DONE
        put_text(tool.name)
        put_text("\n".join(f"  {key + ':':10} {shown(text)}" for key, text in _facts(sheet) if text))
        put_text("\nDEFINITION")
        put_text(sheet.definition if pin is not None else _laid_out(tool.input_schema))
        return ExitCode.DONE

    return with_tools(session, use, url=url)


@tool_command.command("diff", cls=QuellCommand)
@click.argument("server", metavar="[SERVER]", default="")
@server_option
@click.pass_obj
def diff(session: Session, server: str, *, url: str) -> int:
    """Ask servers what they offer now, and compare with what is pinned.

    Exit 1 when a pinned tool changed or is gone, 3 when a server cannot be reached; the others are told all the same.
    """

    async def use(door: ToolDoor) -> int:
        compared = await door.compared(server)
        found, down = compared.tools, compared.down
        if session.is_json:
            put_document("tool_diff", is_ok=compared.is_same and not down, tools=found, down=down)
        else:
            put_table(("SERVER", "TOOL", "IT IS"), [(each.server, shown(each.tool), each.verdict) for each in found])
            for each in found:
                if each.change:
                    put_text(f"\n{each.server} {shown(each.tool)}\n{each.change}")
            for gone in down:
                note(f"{gone.server}: {gone.reason}" + (f" ({gone.hint})" if gone.hint else ""))
            if not (found or down or server):
                door.note_none("MCP server (mcp.servers), or none that offers a tool,")
            if any(each.verdict == "unknown" for each in found):
                note("`quell tool pin SERVER NAME` shows an unknown one whole and lets you accept it")
        if down:
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if compared.is_same else ExitCode.BAD

    return with_tools(session, use, url=url)


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
@server_option
@click.pass_obj
def pin_tool(
    session: Session, server: str, name: str, *, yes: bool, digest: str, declared: Path | None, url: str
) -> int:
    """Show what a server offers under a name, and accept exactly that. Any later change of it is refused.

    Without --yes a person at a terminal types the name; elsewhere nothing is accepted.
    """
    text = None if declared is None else declared.read_text(encoding="utf-8", errors="replace")

    async def use(door: ToolDoor) -> int:
        from quell.domain import RefusedError

        sheet = await door.offered(server, name, declared=text)
        if not session.is_json:
            _put_question(sheet)
        # What was reviewed and is not what is offered is refused where pins are, so that it is on record.
        is_other = bool(digest) and not _bare(sheet.digest).startswith(_bare(digest))
        question = f"Accept {name} of {server} as {sheet.terms.tool_class}?"
        if not (is_other or sheet.is_settled or yes or await confirmed(session, question, word=name)):
            raise RefusedError("nothing was pinned", hint="read what is shown above, then type the name, or give --yes")
        _put_pinned(session, await door.pin(sheet, digest=digest if is_other else sheet.digest, declared=text))
        return ExitCode.DONE

    return with_tools(session, use, url=url)


@tool_command.command("unpin", cls=QuellCommand)
@click.argument("server")
@click.argument("name")
@server_option
@click.pass_obj
def unpin_tool(session: Session, server: str, name: str, *, url: str) -> int:
    """Take a pin back: the tool does not exist any more until somebody pins it again."""

    async def use(door: ToolDoor) -> int:
        await door.unpin(server, name)
        if session.is_json:
            put_document("tool_unpinned", server=server, tool=name)
        else:
            put_text(f"{name} of {server} is pinned no more")
        note("a server that runs takes it at its next call")
        return ExitCode.DONE

    return with_tools(session, use, url=url)


def _put_list(listed: ToolList) -> None:
    rows = [_row(each, now=listed.at) for each in listed.tools]
    put_table(("NAME", "SERVER", "CLASS", "RECOVERY", "PINNED"), rows)
    for pin in listed.idle:
        note(f"{shown(pin.tool)} of {pin.server} is pinned, and no such server is configured (mcp.servers)")


def _note_bare(listed: ToolList) -> None:
    for bare in listed.bare:
        when = " yet: what it offers is when an agent is first asked" if bare.pins == "first_use" else ""
        note(f"nothing of {bare.name} is pinned{when}; `quell tool diff {bare.name}` shows what it offers")


def _put_question(sheet: OfferSheet) -> None:
    terms, old = sheet.terms, sheet.old
    acts_on = f"{terms.resource.kind}, named by {terms.resource.name or 'nothing: the server as a whole'}"
    rows = [
        ("server", sheet.server),
        ("digest", sheet.digest),
        ("class", f"{terms.tool_class}: {terms.reason}"),
        ("recovery", terms.recovery.value),
        ("acts on", acts_on),
        ("undone by", terms.revert or "nothing"),
        ("dry run", terms.dry_run or "none"),
        ("pinned", f"{clock_time(old.at)} by {old.by} as {old.digest}" if old else "never"),
    ]
    put_text(f"TOOL {shown(sheet.tool)}")
    put_text("\n".join(f"  {key + ':':10} {shown(text)}" for key, text in rows))
    put_text("\nOFFERED (the server's own words: nobody has checked them)")
    put_text(sheet.text)
    if sheet.change:
        put_text("\nCHANGED SINCE IT WAS PINNED")
        put_text(sheet.change)


def _put_pinned(session: Session, pinned: Pinned) -> None:
    pin, is_old = pinned.pin, pinned.change == "none"
    if session.is_json:
        put_document("tool_pinned", pin=_pin_json(pin), change=pinned.change)
    else:
        told = "is pinned already" if is_old else "is pinned"
        put_text(f"\n{shown(pin.tool)} of {pin.server} {told} as {pin.tool_class}: {pin.digest}")
    if not is_old:
        note("a server that runs takes it at its next call")


def _row(listed: ListedTool, *, now: datetime) -> tuple[str, ...]:
    tool, pin = listed.tool, listed.pin
    by = f" by {pin.by}" if pin and pin.by else ""
    pinned = f"{away(pin.at, now=now)}{by}" if pin else "our own"
    return (tool.name, tool.server or "-", tool.tool_class.value, tool.recovery.value, pinned)


def _facts(sheet: ToolSheet) -> list[tuple[str, str]]:
    tool, pin, resource = sheet.tool, sheet.pin, sheet.tool.resource
    return [
        ("server", tool.server or "our own"),
        ("on wire", tool.original if tool.server else ""),
        ("class", tool.tool_class.value + (f": {pin.reason}" if pin else "")),
        ("recovery", tool.recovery.value),
        ("acts on", f"{resource.kind}, named by {resource.name or 'nothing: the server as a whole'}"),
        ("reaches", resource.destination),
        ("probe", tool.probe),
        ("undone by", tool.revert),
        ("dry run", tool.dry_run),
        ("timeout", f"{tool.timeout_s:g} s"),
        ("pin", tool.pin),
        ("pinned", f"{clock_time(pin.at)} by {pin.by}" if pin else ""),
        ("says", "" if pin else tool.description),
    ]


def _as_json(tool: Tool, pin: PinNote | None) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(tool), "pinned": _pin_json(pin) if pin else None}


def _pin_json(pin: PinNote) -> dict[str, object]:
    return {
        "server": pin.server,
        "tool": pin.tool,
        "digest": pin.digest,
        "class": pin.tool_class.value,
        "recovery": pin.recovery.value,
        "reason": pin.reason,
        "by": pin.by,
        "at": pin.at,
    }


def _bare(digest: str) -> str:
    return digest.removeprefix("sha256:").lower()


def _laid_out(schema: str) -> str:
    return json.dumps(json.loads(schema), indent=2, ensure_ascii=True)
