"""`quell investigate`."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from quell.cli._exit import DeadlineError, ExitCode
from quell.cli._incident import FORMS, check_output, put_case
from quell.cli._loop import begun
from quell.cli._output import note
from quell.cli._progress import progress
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._values import LENGTH

if TYPE_CHECKING:
    from quell.app import App
    from quell.domain import Run
    from quell.incidents import CaseFile, Request

_DEADLINE_SLACK_S = 15.0
_ALERT_FILE_BYTES_MAX = 10_000_000
_CANCEL_S = 5.0


@click.command("investigate", cls=QuellCommand)
@click.argument("question", required=False, metavar='["TEXT"]')
@click.option(
    "--alert",
    type=click.File("rb"),
    metavar="FILE",
    help="Alerts as Alertmanager's webhook sends them, or as Quell prints them; - for stdin.",
)
@click.option("--service", multiple=True, metavar="NAME", help="A service to look at; may be given more than once.")
@click.option("--since", type=LENGTH, metavar="30m", help="Look at this much of the past.")
@click.option("--budget-tokens", type=click.IntRange(50, 1_000_000), help="Hard cap of the briefing.")
@click.option("--form", type=click.Choice(FORMS), help="Form of the report; text by default.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the report there."
)
@click.pass_obj
def investigate_command(
    session: Session,
    *,
    question: str | None,
    alert: BinaryIO | None,
    service: tuple[str, ...],
    since: float | None,
    budget_tokens: int | None,
    form: Literal["text", "markdown", "json", "html"] | None,
    output: Path | None,
) -> int:
    """Find out why something is wrong; print the case file.

    quell investigate "checkout is slow"

    Exit 0 when a cause was found or nothing is wrong, 1 when it is inconclusive, 3 when no source could be reached,
    124 when the deadline passed.
    """
    if not question and not service and alert is None:
        raise click.UsageError('say what to look at: "TEXT", --service NAME or --alert FILE')
    if budget_tokens is not None:
        session.overrides["investigation.budget_tokens"] = str(budget_tokens)
    body = alert.read(_ALERT_FILE_BYTES_MAX + 1) if alert is not None else None
    if body is not None and len(body) > _ALERT_FILE_BYTES_MAX:
        raise click.UsageError(f"the file of --alert is larger than {_ALERT_FILE_BYTES_MAX // 1_000_000} MB")
    check_output(output)

    async def use(app: App) -> int:
        request = _request(body, text=question or "", services=service, since_s=since)
        case = await _investigated(app, request, session)
        put_case(case, session, form=form, output=output)
        return _code(case)

    return session.with_app(use)


def _request(body: bytes | None, *, text: str, services: tuple[str, ...], since_s: float | None) -> Request:
    from quell.incidents import Request, request_of_alerts
    from quell.runs import system_clock

    if body is None:
        return Request(text=text, services=services, since_s=since_s)
    request = request_of_alerts(body, received_at=system_clock(), entropy=os.urandom)
    return replace(request, text=text or request.text, services=services, since_s=since_s)


async def _investigated(app: App, request: Request, session: Session) -> CaseFile:
    """Start it, show how it goes, and return what came of it."""
    from quell.domain import RefusedError, RunStatus, WorldError
    from quell.runs import system_clock

    began_at = system_clock()
    run = await begun(
        app.desk.investigate(request),
        undo=lambda run: _cancel_own(app, run, began_at=began_at, session=session),
    )
    bounds = app.settings.investigation
    session.note = f"`quell run show {run.id}` tells how far it came"
    try:
        with progress(session) as shown:
            async with asyncio.timeout(bounds.settle_s + bounds.deadline_s + _DEADLINE_SLACK_S):
                async for event in app.runs.follow(run=run.id):
                    shown.take(event)
    except TimeoutError:
        await _cancel_own(app, run, began_at=began_at, session=session)
        took = f"the investigation {run.id} took longer than {bounds.deadline_s:g} s (investigation.deadline_s)"
        raise DeadlineError(took, hint=session.note) from None
    except asyncio.CancelledError:
        await _cancel_own(app, run, began_at=began_at, session=session)
        raise
    ended = await app.runs.get(run.id)
    if ended.status is RunStatus.FAILED:
        raise WorldError(
            f"the investigation failed: {ended.error}", hint=f"`quell run resume {run.id}` goes on with it"
        )
    if ended.status is RunStatus.CANCELLED:
        raise RefusedError(
            f"the investigation {run.id} was cancelled", hint=f"`quell run resume {run.id}` goes on with it"
        )
    return await app.desk.case_file(run.id)


async def _cancel_own(app: App, run: Run, *, began_at: datetime, session: Session) -> None:
    """Cancel what this command began; an investigation that somebody else began goes on."""
    if run.created_at < began_at:
        session.note = f"the investigation {run.id} goes on where it was begun"
        return
    with suppress(Exception):
        # Shielded: a second Ctrl-C during these few milliseconds must not leave a run that nobody cancelled.
        await asyncio.wait_for(asyncio.shield(app.runs.cancel(run.id)), timeout=_CANCEL_S)
        session.note = f"cancelled {run.id}; finished steps are kept: `quell run resume {run.id}` goes on with it"


def _code(case: CaseFile) -> int:
    from quell.domain import Outcome

    if case.finding is None:
        return ExitCode.BAD
    if case.finding.outcome is not Outcome.INCONCLUSIVE:
        return ExitCode.DONE
    unreached = {"failed", "timeout", "refused"}
    asked = [gap for gap in case.gaps if gap.reason != "unsupported"]
    if asked and not case.evidence_total and all(gap.reason in unreached for gap in asked):
        note("no source could be reached; `quell doctor` tells why")
        return ExitCode.UNREACHABLE
    return ExitCode.BAD
