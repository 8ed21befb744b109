"""`quell break-glass`: open, list, review."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_table, put_text
from quell.cli._person import one_of, person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import away, clock_time

if TYPE_CHECKING:
    from datetime import datetime

    from quell.app import Office
    from quell.domain import BreakGlass

_KNOWN_MAX = 10_000


@click.group("break-glass", cls=QuellGroup)
def break_glass_command() -> None:
    """Take authority in an emergency; review what others took."""


@break_glass_command.command("open", cls=QuellCommand)
@click.option("--reason", required=True, help="Why; kept, and read by whoever reviews it.")
@click.option(
    "--run", "run_id", default="", metavar="RUN", help="The one run that it covers; else what you do yourself."
)
@tenant_option
@click.pass_obj
def open_break_glass(session: Session, *, reason: str, run_id: str, tenant: str) -> int:
    """Take emergency authority for half an hour. It gives what policies marked @break_glass give, and no more."""

    async def use(office: Office) -> int:
        from quell.domain import AuditKind

        by = person_of(session, office, tenant=tenant)
        run = (await office.runs.get(run_id)).id if run_id else ""
        verb, break_glass = "break-glass.open", office.approvals.break_glass
        with office.changing(by, verb=verb, about=run) as connection:
            opened = break_glass.open(connection, by=by, reason=reason, run=run)
            body = {
                "break_glass": opened.id,
                "covers": run,
                "reason": opened.reason,
                "expires_at": opened.expires_at.isoformat(),
                "review_due_at": opened.review_due_at.isoformat(),
            }
            office.record(connection, AuditKind.IDENTITY, by=by, verb=verb, body=body, run=run)
        await office.runs.emit(
            opened.run or opened.id, "break_glass.opened", key=f"break_glass.{opened.id}", body=break_glass.told(opened)
        )
        if session.is_json:
            put_document("break_glass", break_glass=opened)
        else:
            put_text(f"{opened.id} holds until {clock_time(opened.expires_at)}: {_covers(opened)}")
            note(f"somebody else has to review it before {clock_time(opened.review_due_at)}")
        return ExitCode.DONE

    return session.with_office(use)


@break_glass_command.command("list", cls=QuellCommand)
@click.option("--all", "every", is_flag=True, help="Also those that are reviewed.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many.")
@tenant_option
@click.pass_obj
def list_break_glass(session: Session, *, every: bool, limit: int, tenant: str) -> int:
    """List what waits for review. The longest waiting stands first; with --all the newest does."""

    def use(office: Office) -> int:
        by, break_glass, now = person_of(session, office, tenant=tenant), office.approvals.break_glass, office.clock()
        with office.runs.database.reading() as connection:
            if every:
                found = break_glass.listed(connection, tenant=by.tenant, rows_max=limit + 1)
            else:
                found = break_glass.unreviewed(connection, tenant=by.tenant)
        shown, is_cut = found[:limit], len(found) > limit
        if session.is_json:
            put_document("break_glass_list", break_glass=shown, is_cut=is_cut, limit=limit)
        else:
            put_table(("ID", "BY", "HOLDS", "COVERS", "REVIEW", "WHY"), [_row(each, now=now) for each in shown])
            if not shown:
                note_none("break-glass" if every else "break-glass that waits for review", office.settings)
        if is_cut:
            note_cut(f"the {'newest' if every else 'longest waiting'} {limit}", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_office(use)


@break_glass_command.command("review", cls=QuellCommand)
@click.argument("break_glass_id", metavar="ID")
@click.option("--review", required=True, help="What you make of it; kept.")
@tenant_option
@click.pass_obj
def review_break_glass(session: Session, break_glass_id: str, *, review: str, tenant: str) -> int:
    """Say what you make of an emergency of somebody else. A unique beginning of ID is enough."""

    def use(office: Office) -> int:
        from quell.domain import AuditKind

        by = person_of(session, office, tenant=tenant)
        verb, break_glass = "break-glass.review", office.approvals.break_glass
        with office.changing(by, verb=verb, about=break_glass_id) as connection:
            known = {each.id for each in break_glass.listed(connection, tenant=by.tenant, rows_max=_KNOWN_MAX)}
            known |= {each.id for each in break_glass.unreviewed(connection, tenant=by.tenant)}
            hint = "`quell break-glass list` names those that wait for review"
            named = one_of(break_glass_id, known, what="break-glass", hint=hint)
            reviewed = break_glass.review(connection, named, by=by, review=review)
            body = {
                "break_glass": reviewed.id,
                "covers": reviewed.run,
                "opened_by": reviewed.user,
                "review": reviewed.review,
            }
            office.record(connection, AuditKind.IDENTITY, by=by, verb=verb, body=body, run=reviewed.run)
        if session.is_json:
            put_document("break_glass", break_glass=reviewed)
        else:
            put_text(f"{reviewed.id} of {reviewed.user} is reviewed")
        return ExitCode.DONE

    return session.with_office(use)


def _covers(opened: BreakGlass) -> str:
    return f"run {opened.run} for {opened.user}" if opened.run else f"what {opened.user} does directly"


def _row(each: BreakGlass, *, now: datetime) -> tuple[str, ...]:
    holds = (
        f"ends {away(each.expires_at, now=now)}" if each.expires_at > now else f"ended {away(each.expires_at, now=now)}"
    )
    if each.reviewed_at is not None:
        review = f"by {each.reviewed_by}: {each.review}"
    elif each.review_due_at > now:
        review = f"due {away(each.review_due_at, now=now)}"
    else:
        review = f"late: was due {away(each.review_due_at, now=now)}"
    return (each.id, each.user, holds, _covers(each), review, each.reason)
