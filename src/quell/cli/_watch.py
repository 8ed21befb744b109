"""`quell watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quell.cli._events import body_of, last_event, put_event
from quell.cli._exit import ExitCode
from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App
    from quell.domain import Event


@click.command("watch", cls=QuellCommand)
@click.option(
    "--incident", "incident_id", metavar="ID", help="Only this incident and its investigations, from their beginning."
)
@click.option(
    "--after", type=click.IntRange(0), metavar="SEQ", help="Begin after this event; with --json every line has its seq."
)
@click.pass_obj
def watch_command(session: Session, *, incident_id: str | None, after: int | None) -> int:
    """Print events as they happen, one per line; NDJSON with --json. Ends with Ctrl-C."""

    async def use(app: App) -> int:
        wanted: set[str] | None = None
        if incident_id is not None:
            incident = await app.desk.incident(incident_id)
            wanted = {incident.id, *([incident.run] if incident.run else [])}
        start = after if after is not None else 0 if wanted is not None else await last_event(app)
        async for event in app.runs.follow(after=start):
            if wanted is None or _belongs(event, wanted):
                put_event(event, session)
        return ExitCode.DONE

    return session.with_app(use)


def _belongs(event: Event, wanted: set[str]) -> bool:
    """Tell whether an event is about what is wanted; a run that is started for an incident is wanted from then on."""
    if event.run in wanted:
        run = body_of(event).get("investigation")
        if event.name == "incident.investigating" and isinstance(run, str):
            wanted.add(run)
        return True
    if event.name in {"run.queued", "run.started"} and body_of(event).get("subject") in wanted:
        wanted.add(event.run)
        return True
    return False
