"""`quell mcp`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._person import person_in
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._signals import TerminatedError

if TYPE_CHECKING:
    from quell.app import App


@click.command("mcp", cls=QuellCommand)
@click.pass_obj
def mcp_command(session: Session) -> int:
    """Speak the Model Context Protocol over stdin and stdout until they are closed.

    For programs that start their servers themselves, such as editors and other agents: ask, investigate, brief,
    what_changed, evidence, incidents, memory, approvals. Who calls is the owner of the state directory, or whoever
    QUELL_API_KEY proves. `quell serve` speaks the same at /mcp.
    """

    async def use(app: App) -> int:
        from quell.server import serve_mcp

        by = await person_in(app, session)
        await app.open_desk()
        await app.launch(way="direct")
        # No client waits for the queue: it comes up while the first words are exchanged.
        queue = asyncio.ensure_future(app.launch())
        try:
            await serve_mcp(app, by=by)
        finally:
            await queue
        return ExitCode.DONE

    try:
        return session.with_app(use, agents="open")
    except TerminatedError:
        return ExitCode.DONE
