"""`quell approval`: list, show, approve, reject, edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_table, put_text
from quell.cli._person import person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import away

if TYPE_CHECKING:
    from quell.app import Office
    from quell.domain import Approval, Principal

_WAYS: dict[str, Literal["approve", "reject"]] = {"approve": "approve", "reject": "reject"}


@click.group("approval", cls=QuellGroup)
def approval_command() -> None:
    """List, show, approve, reject and edit what waits for people."""


@approval_command.command("list", cls=QuellCommand)
@click.option("--all", "every", is_flag=True, help="Also those that are decided, used, void or expired.")
@click.option("--run", default="", metavar="ID", help="Only those of this run.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many.")
@tenant_option
@click.pass_obj
def list_approvals(session: Session, *, every: bool, run: str, limit: int, tenant: str) -> int:
    """List what waits for people, newest first."""

    def use(office: Office) -> int:
        from quell.domain import ApprovalStatus

        by = person_of(session, office, tenant=tenant)
        status = None if every else ApprovalStatus.REQUESTED
        with office.runs.database.reading() as connection:
            found = office.approvals.listed(connection, tenant=by.tenant, status=status, run=run, items_max=limit + 1)
        shown, is_cut, now = found[:limit], len(found) > limit, office.clock()
        if session.is_json:
            put_document("approvals", approvals=[_as_json(each, office) for each in shown], is_cut=is_cut, limit=limit)
        else:
            put_table(("ID", "STATUS", "ENDS", "VOTES", "ASKED BY", "WHAT"), [_row(each, now=now) for each in shown])
            if not shown:
                note_none("approval" if every else "approval that waits for people", office.settings)
        if is_cut:
            note_cut(f"the newest {limit} approvals", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_office(use)


@approval_command.command("show", cls=QuellCommand)
@click.argument("approval_id", metavar="ID")
@tenant_option
@click.pass_obj
def show_approval(session: Session, approval_id: str, *, tenant: str) -> int:
    """Show the whole question: every argument, the dry run, the way back. A unique beginning of ID is enough."""

    def use(office: Office) -> int:
        by = person_of(session, office, tenant=tenant)
        approval = _found(office, approval_id, by=by)
        if session.is_json:
            put_document("approval", approval=_as_json(approval, office))
            return ExitCode.DONE
        put_text(office.redactor.text(office.approvals.show(approval, form="text")))
        if approval.votes:
            put_text("\nVOTES")
            rows = [(f"{vote.at:%Y-%m-%d %H:%M:%SZ}", vote.verdict, vote.voter, vote.reason) for vote in approval.votes]
            put_table(("AT", "SAID", "WHO", "WHY"), rows)
        return ExitCode.DONE

    return session.with_office(use)


@approval_command.command("approve", cls=QuellCommand)
@click.argument("approval_id", metavar="ID")
@click.option(
    "--digest", required=True, metavar="D", help="What you saw: the digest in the question, or 8 letters of it."
)
@click.option("--reason", default="", help="Kept with your vote.")
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="NAME=VALUE",
    help="Fills in a field of the form that the tool's server shows; once for each field.",
)
@tenant_option
@click.pass_obj
def approve(
    session: Session, approval_id: str, *, digest: str, reason: str, answers: tuple[str, ...], tenant: str
) -> int:
    """Say yes to exactly what you saw. Exit 5 while more people are needed."""
    return _decide(session, approval_id, way="approve", digest=digest, reason=reason, tenant=tenant, answers=answers)


@approval_command.command("reject", cls=QuellCommand)
@click.argument("approval_id", metavar="ID")
@click.option(
    "--digest", required=True, metavar="D", help="What you saw: the digest in the question, or 8 letters of it."
)
@click.option("--reason", required=True, help="Why not; kept, and told to whoever asked.")
@tenant_option
@click.pass_obj
def reject(session: Session, approval_id: str, *, digest: str, reason: str, tenant: str) -> int:
    """Say no: one no is enough, and the same is not asked again in that run."""
    return _decide(session, approval_id, way="reject", digest=digest, reason=reason, tenant=tenant)


@approval_command.command("edit", cls=QuellCommand)
@click.argument("approval_id", metavar="ID")
@click.option(
    "--digest", required=True, metavar="D", help="What you saw: the digest in the question, or 8 letters of it."
)
@click.option(
    "--arguments", required=True, metavar="JSON", help="All arguments of the call as they shall be, or @FILE with them."
)
@tenant_option
@click.pass_obj
def edit(session: Session, approval_id: str, *, digest: str, arguments: str, tenant: str) -> int:
    """Ask others about other arguments instead. The old request is void, and neither you nor who asked may approve."""

    async def use(office: Office) -> int:
        from quell.app import open_authority

        by = person_of(session, office, tenant=tenant)
        old = _found(office, approval_id, by=by)
        wanted = _read(arguments)
        # The pinned tools judge the arguments, and the policies whether they may be asked about.
        authority = await open_authority(
            office.runs, office.settings, clock=office.clock, entropy=office.entropy, env=office.env
        )
        try:
            new = await authority.toolbox.edit(old.id, arguments=wanted, by=by, digest_seen=digest, way="cli")
        finally:
            await authority.close()
        if session.is_json:
            put_document("approval", change="edited", old=old.id, approval=_as_json(new, office))
            return ExitCode.DONE
        for name, approval in (("old", old), ("new", new)):
            told = office.redactor.text(approval.terms.calls[0].call.arguments)
            put_text(f"{name}  {approval.id}  digest {approval.digest[:8]}  {office.approvals.visible(told)}")
        note(f"{old.id} is void; others decide about {new.id}: quell approval show {new.id}")
        return ExitCode.DONE

    return session.with_office(use)


def _read(arguments: str) -> str:
    """Return the JSON text that was given, or that of the file that was named. Raises UsageError."""
    from pathlib import Path

    from quell.domain import UsageError

    if not arguments.startswith("@"):
        return arguments
    try:
        return Path(arguments[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{arguments[1:]} cannot be read: {error}", hint="write @ and the path of a file") from error


def _typed(approval: Approval | None, answers: Sequence[str]) -> dict[str, object]:
    """Read answers as the form wants them: texts as they stand, everything else as JSON. Raises UsageError."""
    from quell.domain import UsageError

    forms = [asked.form for asked in approval.terms.calls if asked.form] if approval is not None else []
    fields = json.loads(forms[0])["properties"] if forms else {}
    told: dict[str, object] = {}
    for answer in answers:
        name, separator, value = answer.partition("=")
        if not separator or name in told:
            raise UsageError(f"{answer!r} is no answer", hint="write --answer NAME=VALUE, once for each field")
        told[name] = value
        if name in fields and fields[name].get("type") != "string":
            with suppress(ValueError):
                told[name] = json.loads(value)
    return told


def _decide(
    session: Session,
    approval_id: str,
    *,
    way: str,
    digest: str,
    reason: str,
    tenant: str,
    answers: Sequence[str] = (),
) -> int:
    async def use(office: Office) -> int:
        from quell.domain import ApprovalStatus, AuditKind, QuellError

        by, verb = person_of(session, office, tenant=tenant), f"approval.{way}"
        with office.changing(by, verb=verb, about=approval_id) as connection:
            named = office.approvals.named(connection, approval_id, tenant=by.tenant)
            told = _typed(office.approvals.find(connection, named, tenant=by.tenant), answers) if answers else {}
            decided = office.approvals.decide(
                connection, named, by=by, verdict=_WAYS[way], digest_seen=digest, reason=reason, answers=told
            )
            approval = decided.approval
            if decided.change != "none":
                body = decided.account(verdict=way, reason=reason, way="cli")
                body |= {"answers": told} if told else {}
                office.record(connection, AuditKind.APPROVAL, by=by, verb=verb, body=body, run=approval.terms.run)
        waits = approval.status is ApprovalStatus.REQUESTED
        if not waits:
            with suppress(QuellError):
                # It would look by itself, but later; a run that is not there any more waits for nothing.
                await office.runs.wake(approval.terms.run)
        if session.is_json:
            put_document("approval", change=decided.change, approval=_as_json(approval, office))
        else:
            put_text(f"{named}: {decided.told}")
        if waits:
            note("your vote is counted; it needs other people too")
        return ExitCode.WAITING if waits else ExitCode.DONE

    return session.with_office(use)


def _found(office: Office, beginning: str, *, by: Principal) -> Approval:
    with office.runs.database.reading() as connection:
        named = office.approvals.named(connection, beginning, tenant=by.tenant)
        approval = office.approvals.find(connection, named, tenant=by.tenant)
    assert approval is not None, "what was named is there"
    return approval


def _as_json(approval: Approval, office: Office) -> dict[str, object]:
    told = office.redactor.value(json.loads(office.approvals.show(approval, form="json")))
    assert isinstance(told, dict)
    return told | {"votes": approval.votes, "steps": approval.steps, "settled_at": approval.settled_at}


def _row(approval: Approval, *, now: datetime) -> tuple[str, ...]:
    from quell.governance import Approvals

    terms = approval.terms
    yes = len({vote.voter for vote in approval.votes if vote.verdict == "approve"})
    is_live = approval.status.value in {"requested", "approved"}
    calls = [
        f"{asked.call.tool} on {asked.call.resource.kind} {asked.call.resource.name or '(the whole server)'}"
        f" in {asked.call.resource.environment}"
        for asked in terms.calls
    ]
    return (
        approval.id,
        approval.status.value,
        away(terms.expires_at, now=now) if is_live else "-",
        f"{yes} of {terms.quorum}",
        Approvals.visible(terms.requester),
        Approvals.visible(calls[0]) + (f" and {len(calls) - 1} more calls" if len(calls) > 1 else ""),
    )
