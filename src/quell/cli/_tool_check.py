"""`quell tool check`: whether servers answer, and whether what is pinned is still what they offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_table
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._tool_door import server_option, with_tools

if TYPE_CHECKING:
    from quell.cli._tool_door import ToolDoor
    from quell.domain import ServerCheck

_NAMED_MAX = 10


@click.command("check", cls=QuellCommand)
@click.argument("server", metavar="[SERVER]", default="")
@server_option
@click.pass_obj
def check_tools(session: Session, server: str, *, url: str) -> int:
    """Ask every MCP server whether it answers, and whether what is pinned is still what it offers.

    Exit 1 when a pinned tool changed or is gone, 3 when a server cannot be reached.
    """

    async def use(door: ToolDoor) -> int:
        checked = await door.checked(server)
        is_ok = all(each.is_ok for each in checked)
        if session.is_json:
            put_document("tool_check", is_ok=is_ok, servers=checked)
        else:
            rows = [_row(each) for each in checked]
            put_table(("SERVER", "TRANSPORT", "STATE", "PINNED", "CHANGED", "GONE", "NOT PINNED"), rows)
            for each in checked:
                _remark(each)
            if not checked:
                door.note_none("MCP server (mcp.servers)")
        if any(each.state == "down" for each in checked):
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if is_ok else ExitCode.BAD

    return with_tools(session, use, url=url)


def shown(text: str) -> str:
    """Name every character of a server's words that does not show itself."""
    from quell.governance import Approvals

    return Approvals.visible(text)


def _row(checked: ServerCheck) -> tuple[str, ...]:
    is_up = checked.state == "up"
    counts = (len(checked.changed), len(checked.gone), checked.unknown)
    told = tuple(str(count) if is_up else "-" for count in counts)
    return (checked.server, checked.transport, checked.state, str(checked.pinned), *told)


def _remark(checked: ServerCheck) -> None:
    if checked.reason:
        note(f"{checked.server}: {checked.reason}" + (f" ({checked.hint})" if checked.hint else ""))
    for word, tools in (("changed", checked.changed), ("gone", checked.gone)):
        if tools:
            note(f"{checked.server}: {word}: {', '.join(map(shown, tools))}; `quell tool diff {checked.server}`")
    if checked.unknown and checked.pins == "first_use":
        note(f"{checked.server}: what it offers is pinned when an agent is first asked")
    if checked.effects:
        names = ", ".join(map(shown, checked.effects[:_NAMED_MAX])) + (", …" if checked.effects[_NAMED_MAX:] else "")
        note(f"{checked.server}: people are asked about each call of {names}; `reads` names tools that only read")
