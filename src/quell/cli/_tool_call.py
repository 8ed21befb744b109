"""`quell tool call`: one call by a person, through the same path as those of agents."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._loop import begun
from quell.cli._output import note, put_document, put_text
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._tool_door import server_option, with_calls
from quell.cli._values import clock_time

if TYPE_CHECKING:
    from quell.cli._tool_door import CallDoor
    from quell.domain import CallState, OutcomeKind, Parked

_CANCEL_S = 5.0


@click.command("call", cls=QuellCommand)
@click.argument("name")
@click.option(
    "--arguments", default="{}", metavar="JSON", help="Arguments of the call, @FILE with them, or - for stdin."
)
@click.option("--wait", is_flag=True, help="Wait when people are asked, instead of leaving with exit 5.")
@server_option
@click.pass_obj
def call_tool(session: Session, name: str, *, arguments: str, wait: bool, url: str) -> int:
    """Call a tool yourself: policy, approvals, budgets and the audit log hold for you as for any agent.

    Exit 0 when it answered, 3 when it failed, 4 when it was denied, 5 when people have to decide first: the call goes
    on when they have, under `quell serve`.
    """
    wanted = _read(arguments)

    async def use(door: CallDoor) -> int:
        run = await begun(door.start(name, arguments=wanted), undo=door.cancel)
        session.note = f"{door.shown_by(run)} tells where it stands"
        try:
            state = await door.until(run, after=0)
            while not state.status.is_final:
                if state.parked is not None:
                    note(
                        f"waits for people: approval {state.parked.approval}, until {clock_time(state.parked.expires_at)}"
                    )
                    if not wait:
                        return _waiting(state.parked, run=run, shown_by=door.shown_by(run))
                state = await door.until(run, after=state.seq)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait_for(asyncio.shield(door.cancel(run)), timeout=_CANCEL_S)
                session.note = f"cancelled {run}; whether anything was done tells {door.shown_by(run)}"
            raise
        return _put(state, session, shown_by=door.shown_by(run))

    return with_calls(session, use, url=url)


def _read(arguments: str) -> str:
    import json

    try:
        text = sys.stdin.read() if arguments == "-" else arguments
        text = Path(arguments[1:]).read_text(encoding="utf-8") if arguments.startswith("@") else text
        told = json.loads(text)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--arguments is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise click.UsageError('--arguments must be an object, such as {"service": "web"}')
    return text


def _waiting(parked: Parked, *, run: str, shown_by: str) -> int:
    identifier, digest = parked.approval, parked.digest
    note(f"hint: `quell approval show {identifier}`, then `quell approval approve {identifier} --digest {digest[:20]}`")
    note(f"{run} goes on under `quell serve`; {shown_by} tells what it did")
    return ExitCode.WAITING


def _put(state: CallState, session: Session, *, shown_by: str) -> int:
    from quell.domain import RefusedError, WorldError

    outcome = state.outcome
    if outcome is None:
        raise WorldError(state.error or f"the call ended without a result (run {state.run})", hint=shown_by)
    if not outcome.kind.is_answer:
        kind = RefusedError if outcome.kind.value == "denied" else WorldError
        told = f"{outcome.tool}: {outcome.kind.value}: {outcome.detail or outcome.content}"
        raise kind(told, hint=_hint(outcome.kind, shown_by))
    if session.is_json:
        put_document("tool_outcome", run=state.run, outcome=outcome)
    else:
        put_text(outcome.content)
        for each in filter(None, (outcome.detail, outcome.handle and f"the whole result: {outcome.handle}")):
            note(each)
    return ExitCode.DONE


def _hint(kind: OutcomeKind, shown_by: str) -> str:
    return "`quell policy explain` tells what decides" if kind.value == "denied" else shown_by
