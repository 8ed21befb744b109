"""`quell run`: list, show, trace, resume, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quell.cli._events import body_of, last_event, put_event
from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_record, put_table, put_text
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import clock_time, took_text

if TYPE_CHECKING:
    from quell.app import App, Office
    from quell.domain import Run, RunTrace

_STATUSES = ["queued", "running", "waiting", "succeeded", "failed", "cancelled"]


@click.group("run", cls=QuellGroup)
def run_command() -> None:
    """List, show, trace, resume and cancel durable runs."""


@run_command.command("list", cls=QuellCommand)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most this many.")
@click.option("--status", type=click.Choice(_STATUSES), help="Only runs that stand there.")
@click.option("--kind", help="Only runs of this kind, such as investigation.")
@click.pass_obj
def list_runs(session: Session, *, limit: int, status: str | None, kind: str | None) -> int:
    """List runs, newest first."""

    async def use(app: App) -> int:
        from quell.domain import RunStatus

        found = await app.runs.list(limit=limit + 1, kind=kind, status=RunStatus(status) if status else None)
        shown, is_cut = found[:limit], len(found) > limit
        if session.is_json:
            put_document("runs", runs=shown, is_cut=is_cut, limit=limit)
        else:
            put_table(("ID", "KIND", "STATUS", "CREATED", "TRIES", "ABOUT"), [_row(run) for run in shown])
            if not shown:
                is_filtered = status is not None or kind is not None
                note_none("such run" if is_filtered else "run", app.settings)
        if is_cut:
            note_cut(f"the newest {limit} runs", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_app(use)


@run_command.command("show", cls=QuellCommand)
@click.argument("run_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Print events until the run has ended; NDJSON with --json.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=500, show_default=True, help="At most this many events."
)
@click.pass_obj
def show_run(session: Session, run_id: str, *, follow: bool, limit: int) -> int:
    """Show one run with its steps and events. A unique beginning of ID is enough."""

    async def use(app: App) -> int:
        run = await app.runs.get(run_id)
        if follow:
            return await _follow(app, run, session)
        steps = await app.runs.steps(run.id)
        events = await app.runs.events(run=run.id, limit=limit + 1)
        is_cut, events = len(events) > limit, events[:limit]
        if session.is_json:
            told = [{"seq": e.seq, "at": e.at, "name": e.name, "body": body_of(e)} for e in events]
            put_document("run", run=run, steps=steps, events=told, is_cut=is_cut)
        else:
            _put_run(run)
            rows = [(str(s.index), s.name, s.status, took_text(s.started_at, s.ended_at)) for s in steps]
            put_text("\nsteps")
            put_table(("#", "STEP", "STATUS", "TOOK"), rows)
            put_text("\nevents")
            for event in events:
                put_event(event, session)
        if is_cut:
            note_cut(f"the first {limit} events", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_app(use)


@run_command.command("trace", cls=QuellCommand)
@click.argument("run_id", metavar="ID")
@click.option("--server", default="", metavar="URL", help="Read it from a `quell serve` instead of the journal here.")
@click.pass_obj
def trace_run(session: Session, run_id: str, *, server: str) -> int:
    """Show a run as a tree: turns and calls with their time, tokens, money and outcome, and where it died and went on."""

    def put(trace: RunTrace) -> int:
        from quell.cli._trace import trace_text

        if session.is_json:
            put_document("trace", run=trace.run, tree=trace.tree, totals=trace.totals)
        else:
            put_text(trace_text(trace))
        return ExitCode.DONE

    if server:
        from quell.cli._chat_remote import client_of
        from quell.cli._loop import run_until_done

        async def far() -> int:
            async with client_of(server, session) as client:
                return put(await client.trace(run_id))

        return run_until_done(far)

    async def near(office: Office) -> int:
        return put(await office.trace(run_id))

    return session.with_office(near)


@run_command.command("resume", cls=QuellCommand)
@click.argument("run_id", metavar="ID")
@click.pass_obj
def resume_run(session: Session, run_id: str) -> int:
    """Go on with a failed or cancelled run, and wait for its end. Steps that are done keep their results."""

    async def use(app: App) -> int:
        run = await app.runs.get(run_id)
        last = await last_event(app, run=run.id)
        await app.open_desk()
        await app.launch()
        run = await app.runs.resume(run.id)
        session.note = f"{run.id} is journalled; `quell run show {run.id}` tells where it stands"
        async for event in app.runs.follow(run=run.id, after=last):
            note(f"{event.at:%H:%M:%S} {event.name}")
        return _put_end(await app.runs.get(run.id), session)

    return session.with_app(use, agents="open")


@run_command.command("cancel", cls=QuellCommand)
@click.argument("run_id", metavar="ID")
@click.pass_obj
def cancel_run(session: Session, run_id: str) -> int:
    """Cancel a run, in whatever process it is executed. Its finished steps are kept."""

    async def use(app: App) -> int:
        run = await app.runs.cancel(run_id)
        if session.is_json:
            put_document("run", run=run)
        else:
            put_text(f"{run.id} is {run.status}; `quell run resume {run.id}` goes on with it")
        return ExitCode.DONE

    return session.with_app(use)


async def _follow(app: App, run: Run, session: Session) -> int:
    async for event in app.runs.follow(run=run.id):
        put_event(event, session)
    ended = await app.runs.get(run.id)
    if session.is_json:
        put_record("run", run=ended)
    return _code(ended)


def _put_end(run: Run, session: Session) -> int:
    if session.is_json:
        put_document("run", run=run)
    else:
        _put_run(run)
    return _code(run)


def _code(run: Run) -> int:
    return ExitCode.DONE if run.status.value == "succeeded" else ExitCode.BAD


def _put_run(run: Run) -> None:
    rows = [
        ("kind", run.kind),
        ("status", run.status.value),
        ("about", run.subject),
        ("created", clock_time(run.created_at)),
        ("updated", clock_time(run.updated_at)),
        ("tries", str(run.attempts)),
        ("version", run.version),
        ("executor", run.executor),
        ("error", run.error),
        ("result", run.result),
    ]
    put_text(run.id)
    put_text("\n".join(f"  {name + ':':9} {text}" for name, text in rows if text))


def _row(run: Run) -> tuple[str, ...]:
    return (run.id, run.kind, run.status.value, clock_time(run.created_at), str(run.attempts), run.subject)
