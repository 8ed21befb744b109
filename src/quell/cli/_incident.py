"""`quell incident`: list, show, close."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_table, put_text, text_width
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import clock_time

if TYPE_CHECKING:
    from quell.app import App
    from quell.domain import Incident
    from quell.incidents import CaseFile

FORMS = ("text", "markdown", "json", "html")


@click.group("incident", cls=QuellGroup)
def incident_command() -> None:
    """List, show and close incidents."""


@incident_command.command("list", cls=QuellCommand)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most this many.")
@click.option("--open", "only_open", is_flag=True, help="Only incidents that are not resolved.")
@click.pass_obj
def list_incidents(session: Session, *, limit: int, only_open: bool) -> int:
    """List incidents, newest first."""

    async def use(app: App) -> int:
        from quell.domain import Stage

        stages = [stage for stage in Stage if stage is not Stage.RESOLVED] if only_open else ()
        found = await app.desk.incidents(limit=limit + 1, stages=stages)
        shown, is_cut = found[:limit], len(found) > limit
        if session.is_json:
            put_document("incidents", incidents=shown, is_cut=is_cut, limit=limit)
        else:
            put_table(("ID", "STAGE", "SEVERITY", "OPENED", "TITLE"), [_row(incident) for incident in shown])
            if not shown:
                note_none("open incident" if only_open else "incident", app.settings)
        if is_cut:
            note_cut(f"the newest {limit} incidents", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_app(use)


@incident_command.command("show", cls=QuellCommand)
@click.argument("incident_id", metavar="ID")
@click.option("--form", type=click.Choice(FORMS), default=None, help="Form of the report; text by default.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it there.")
@click.pass_obj
def show_incident(
    session: Session,
    incident_id: str,
    *,
    form: Literal["text", "markdown", "json", "html"] | None,
    output: Path | None,
) -> int:
    """Show the case file of an incident. A unique beginning of ID, or of the id of one of its runs, is enough."""
    check_output(output)

    async def use(app: App) -> int:
        put_case(await app.desk.case_file(incident_id), session, form=form, output=output)
        return ExitCode.DONE

    return session.with_app(use)


@incident_command.command("close", cls=QuellCommand)
@click.argument("incident_id", metavar="ID")
@click.option("--reason", default="closed by hand", show_default=True, help="Kept in its timeline.")
@click.pass_obj
def close_incident(session: Session, incident_id: str, *, reason: str) -> int:
    """Say that an incident is over."""

    async def use(app: App) -> int:
        closed = await app.desk.close(incident_id, by=_person(), reason=reason)
        if session.is_json:
            put_document("incident", incident=closed)
        else:
            put_text(f"{closed.id} is {closed.stage}")
        return ExitCode.DONE

    return session.with_app(use)


def put_case(
    case: CaseFile,
    session: Session,
    *,
    form: Literal["text", "markdown", "json", "html"] | None,
    output: Path | None,
) -> None:
    """Write a case file to stdout, or to a file and its path to stderr."""
    from quell.incidents import render

    if output is not None:
        chosen = form or _form_of(output)
        output.write_text(render(case, chosen), encoding="utf-8")
        note(f"written: {output}")
        if session.is_json:
            put_document("report", incident=case.incident.id, form=chosen, path=str(output))
        return
    if session.is_json or (form is not None and form != "text"):
        # The JSON form is the document that --json promises; the others are escaped by their renderers.
        click.echo(render(case, "json" if session.is_json or form is None else form).rstrip("\n"))
    else:
        put_text(render(case, "text", width=text_width()))


def check_output(output: Path | None) -> None:
    """Make the directory of a report and see that it can be written. Raises OSError before any work is done for it."""
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    is_new = not output.exists()
    with output.open("ab"):
        pass
    if is_new:
        output.unlink()


def _form_of(path: Path) -> Literal["text", "markdown", "json", "html"]:
    forms: dict[str, Literal["markdown", "json", "html"]] = {".md": "markdown", ".json": "json", ".html": "html"}
    return forms.get(path.suffix, "text")


def _row(incident: Incident) -> tuple[str, ...]:
    return (incident.id, incident.stage.value, incident.severity.value, clock_time(incident.opened_at), incident.title)


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody at the command line"
