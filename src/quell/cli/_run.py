"""`quell run`: list, show, trace, resume, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from quell.cli._events import body_of, last_event, put_event
from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_record, put_table, put_text
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import clock_time, length_text

if TYPE_CHECKING:
    from quell.app import App, Office
    from quell.domain import Run

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
            rows = [(str(s.index), s.name, s.status, _took(s.started_at, s.ended_at)) for s in steps]
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
@click.pass_obj
def trace_run(session: Session, run_id: str) -> int:
    """Show a run as a tree: turns and calls with their time, tokens, money and outcome, and where it died and went on."""

    async def use(office: Office) -> int:
        from quell.cli._trace import Node, Tree, lines, totals

        run = await office.runs.get(run_id)
        root = Node(kind="run", name=run.id, at=run.created_at, outcome=run.status.value, tries=run.attempts)
        root.took_s = (run.updated_at - run.created_at).total_seconds()
        tree = Tree(root, price_of=office.budgets.price_of)
        after = 0
        while batch := await office.runs.events(run=run.id, after=after):
            after = batch[-1].seq
            for event in batch:
                tree.take(event)
        whole = totals(root)
        if session.is_json:
            put_document("trace", run=run, tree=root, totals=whole)
            return ExitCode.DONE
        put_text(f"{run.id} {run.kind} {run.status.value}: {run.subject}")
        rows = list(lines(root))
        put_text("\n".join(f"{branch}  {told}" if told else branch for branch, told in rows) or "nothing was done yet")
        put_text(_total_text(run, whole))
        return ExitCode.DONE

    return session.with_office(use)


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


def _total_text(run: Run, whole: Mapping[str, object]) -> str:
    from quell.cli._trace import usd_text

    paid, unpriced = whole["micro_usd"], whole["unpriced_turns"]
    money = usd_text(paid) if isinstance(paid, int) else "price unknown"
    parts = [
        _took(run.created_at, run.updated_at),
        f"{whole['turns']} model {'turn' if whole['turns'] == 1 else 'turns'}",
        f"{whole['calls']} tool {'call' if whole['calls'] == 1 else 'calls'}"
        + (f" ({whole['failed_calls']} without a result)" if whole["failed_calls"] else ""),
        f"{whole['input_tokens']}+{whole['output_tokens']} tokens",
        money + (f" and {unpriced} turns whose price nobody knows" if unpriced and paid is not None else ""),
        f"{run.attempts} {'try' if run.attempts == 1 else 'tries'}",
    ]
    return "total: " + ", ".join(parts)


def _row(run: Run) -> tuple[str, ...]:
    return (run.id, run.kind, run.status.value, clock_time(run.created_at), str(run.attempts), run.subject)


def _took(start: datetime, end: datetime) -> str:
    return length_text((end - start).total_seconds())
