"""`quell tool call`: one call by a person, through the same path as those of agents."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._events import body_of
from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_text
from quell.cli._person import person_in
from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App
    from quell.domain import OutcomeKind, ToolOutcome

_CANCEL_S = 5.0


@click.command("call", cls=QuellCommand)
@click.argument("name")
@click.option(
    "--arguments", default="{}", metavar="JSON", help="Arguments of the call, @FILE with them, or - for stdin."
)
@click.option("--wait", is_flag=True, help="Wait when people are asked, instead of leaving with exit 5.")
@click.pass_obj
def call_tool(session: Session, name: str, *, arguments: str, wait: bool) -> int:
    """Call a tool yourself: policy, approvals, budgets and the audit log hold for you as for any agent.

    Exit 0 when it answered, 3 when it failed, 4 when it was denied, 5 when people have to decide first: the call goes
    on when they have, under `quell serve`.
    """
    wanted = _read(arguments)

    async def use(app: App) -> int:
        by = await person_in(app, session)
        await app.launch(way="direct")
        run = await app.calls.start(name, arguments=wanted, by=by)
        session.note = f"`quell run show {run.id}` tells where it stands"
        parked: dict[str, object] = {}
        try:
            async with aclosing(app.runs.follow(run=run.id)) as events:
                async for event in events:
                    if event.name == "agent.call_parked":
                        parked = body_of(event)
                        note(f"waits for people: approval {parked.get('approval')}, until {parked.get('expires_at')}")
                        if not wait:
                            return _waiting(parked, run=run.id)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait_for(asyncio.shield(app.runs.cancel(run.id)), timeout=_CANCEL_S)
                session.note = f"cancelled {run.id}; whether anything was done tells `quell run trace {run.id}`"
            raise
        ended = await app.runs.get(run.id)
        return _put(app.calls.outcome_of(ended), session, run=run.id, error=ended.error)

    return session.with_app(use)


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


def _waiting(parked: dict[str, object], *, run: str) -> int:
    identifier, digest = parked.get("approval"), str(parked.get("digest", ""))
    note(f"hint: `quell approval show {identifier}`, then `quell approval approve {identifier} --digest {digest[:20]}`")
    note(f"it goes on under `quell serve`; `quell run show {run} --follow` watches it")
    return ExitCode.WAITING


def _put(outcome: ToolOutcome | None, session: Session, *, run: str, error: str) -> int:
    from quell.domain import RefusedError, WorldError

    if outcome is None:
        raise WorldError(error or f"the call ended without a result (run {run})", hint=f"`quell run trace {run}`")
    if not outcome.kind.is_answer:
        kind = RefusedError if outcome.kind.value == "denied" else WorldError
        raise kind(
            f"{outcome.tool}: {outcome.kind.value}: {outcome.detail or outcome.content}", hint=_hint(outcome.kind, run)
        )
    if session.is_json:
        put_document("tool_outcome", run=run, outcome=outcome)
    else:
        put_text(outcome.content)
        for told in filter(None, (outcome.detail, outcome.handle and f"the whole result: {outcome.handle}")):
            note(told)
    return ExitCode.DONE


def _hint(kind: OutcomeKind, run: str) -> str:
    return "`quell policy explain` tells what decides" if kind.value == "denied" else f"`quell run trace {run}`"
