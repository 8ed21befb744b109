"""`quell autonomy`: show, promote, demote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_text
from quell.cli._person import one_of, person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import clock_time

if TYPE_CHECKING:
    from quell.app import Office
    from quell.domain import AutonomyRecord, AutonomyScope, AutonomyView, Level, Principal

_CLASSES = ("read", "egress", "reversible", "irreversible")
_WORDS = (
    "observes",
    "proposes",
    "acts when each act is approved",
    "acts by itself where it can be undone",
    "acts; people review the next day",
    "closes the loop",
)
_SAME = "the audit log adds up to the same"
_RECORDS_MAX = 1_000_000


class _Where(NamedTuple):
    """What a level is moved of, as it was typed."""

    workflow: str
    action_class: str
    environment: str
    tenant: str


@click.group("autonomy", cls=QuellGroup)
def autonomy_command() -> None:
    """Show, promote and demote what acts by itself."""


def _scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.argument("workflow", metavar="WORKFLOW"),
        click.option("--class", "action_class", type=click.Choice(_CLASSES), required=True, help="Class of actions."),
        click.option("--environment", default="", help="governance.environment without it."),
        click.option("--to", "level", type=click.IntRange(0, 5), required=True, help="Level, 0 to 5."),
        click.option("--reason", required=True, help="Why; kept."),
        tenant_option,
    ):
        command = decorate(command)
    return command


@autonomy_command.command("show", cls=QuellCommand)
@click.argument("workflow", metavar="[WORKFLOW]", default="")
@click.option("--records", is_flag=True, help="Also every record that the levels follow from.")
@click.option("--audited", is_flag=True, help="Also compute every level again from the audit log alone.")
@tenant_option
@click.pass_obj
def show_autonomy(session: Session, workflow: str, *, records: bool, audited: bool, tenant: str) -> int:
    """Show the levels of every workflow version, the evidence, and what the next level still needs.

    WORKFLOW is the digest of a workflow version, or a beginning of it. With --audited: exit 1 when a level, or the
    evidence for it, is not what the audit log adds up to.
    """

    def use(office: Office) -> int:
        by = person_of(session, office, tenant=tenant)
        with office.runs.database.reading() as connection:
            scopes = [
                scope
                for scope in office.autonomy.scopes(connection, tenant=by.tenant)
                if scope.workflow_digest.startswith(workflow)
            ]
            found = [
                (office.autonomy.show(connection, scope), office.autonomy.records(connection, scope) if records else ())
                for scope in scopes
            ]
        again = _again(office, [view for view, _ in found]) if audited else {}
        is_same = all(said == _SAME for said in again.values())
        if session.is_json:
            told = [
                {"view": view, "level": int(view.standing.level), "records": kept, "audited": again.get(view.scope)}
                for view, kept in found
            ]
            put_document("autonomy", is_ok=is_same, scopes=told)
            return ExitCode.DONE if is_same else ExitCode.BAD
        put_text("\n\n".join(_shown(view, kept, again.get(view.scope, "")) for view, kept in found)) if found else None
        if not found:
            note_none("workflow version with a record" if not workflow else "such workflow version", office.settings)
            note("without any, a workflow begins at level 2: it acts when each act is approved")
        return ExitCode.DONE if is_same else ExitCode.BAD

    return session.with_office(use)


@autonomy_command.command("promote", cls=QuellCommand)
@_scope_options
@click.pass_obj
def promote(
    session: Session, workflow: str, *, action_class: str, environment: str, level: int, reason: str, tenant: str
) -> int:
    """Confirm the next level; the evidence must prove it. Exit 5 while other people must confirm too."""
    where = _Where(workflow=workflow, action_class=action_class, environment=environment, tenant=tenant)
    return _move(session, where, level=level, reason=reason, way="promote")


@autonomy_command.command("demote", cls=QuellCommand)
@_scope_options
@click.pass_obj
def demote(
    session: Session, workflow: str, *, action_class: str, environment: str, level: int, reason: str, tenant: str
) -> int:
    """Lower the level at once; the evidence stands."""
    where = _Where(workflow=workflow, action_class=action_class, environment=environment, tenant=tenant)
    return _move(session, where, level=level, reason=reason, way="demote")


def _move(session: Session, where: _Where, *, level: int, reason: str, way: Literal["promote", "demote"]) -> int:
    def use(office: Office) -> int:
        from quell.domain import AuditKind, Level

        by, verb, to = person_of(session, office, tenant=where.tenant), f"autonomy.{way}", Level(level)
        with office.changing(by, verb=verb, about=where.workflow) as connection:
            scope = _scope(office, where, by=by)
            if way == "promote":
                office.approvals.break_glass.check_reviewed(connection, tenant=by.tenant)
                owners = office.settings.governance.owners
                step = office.autonomy.promote(connection, scope, to=to, by=by, owners=owners, reason=reason)
            else:
                step = office.autonomy.demote(connection, scope, to=to, by=by, reason=reason)
            body = {**_body(scope), "to": level, "level": int(step.after.level), "record": step.record.seq}
            body["reason"] = reason
            office.record(connection, AuditKind.AUTONOMY, by=by, verb=verb, body=body)
        is_there = step.after.level == to
        if session.is_json:
            put_document("autonomy_step", scope=scope, step=step, level=int(step.after.level), is_there=is_there)
        else:
            put_text(f"{scope.workflow_digest} {scope.action_class} in {scope.environment}: {_level(step.after.level)}")
        if not is_there:
            note("your word is kept for 72 h; it needs somebody else's too")
        return ExitCode.DONE if is_there else ExitCode.WAITING

    return session.with_office(use)


def _scope(office: Office, where: _Where, *, by: Principal) -> AutonomyScope:
    """Return the scope that is meant: a workflow version that nobody has seen at work has no level to move."""
    from quell.domain import AutonomyScope, ToolClass

    with office.runs.database.reading() as connection:
        known = {scope.workflow_digest for scope in office.autonomy.scopes(connection, tenant=by.tenant)}
    named = one_of(
        where.workflow, known, what="workflow version", hint="`quell autonomy show` names those with a record"
    )
    return AutonomyScope(
        workflow_digest=named,
        action_class=ToolClass(where.action_class),
        environment=where.environment or office.settings.governance.environment,
        tenant=by.tenant,
    )


def _body(scope: AutonomyScope) -> dict[str, object]:
    return {
        "workflow_digest": scope.workflow_digest,
        "action_class": scope.action_class.value,
        "environment": scope.environment,
    }


def _level(level: Level) -> str:
    return f"level {int(level)}, {_WORDS[level]}"


def _again(office: Office, views: list[AutonomyView]) -> dict[AutonomyScope, str]:
    """Compute levels again from the audit log alone, and say how they compare."""
    from dataclasses import replace

    from quell.domain import AuditKind, JournalError
    from quell.governance import Autonomy

    newest = office.audit.newest(kinds=(AuditKind.AUTONOMY,), items_max=_RECORDS_MAX)
    kept = Autonomy.audited(reversed(newest))
    found = {}
    for view in views:
        try:
            standing = Autonomy.recompute(kept.get(view.scope, ()))
        except JournalError as error:
            found[view.scope] = f"it cannot be computed from there: {error}"
            continue
        # Words of people may hold a secret, which the log does not keep.
        is_same = replace(standing, why="") == replace(view.standing, why="")
        found[view.scope] = (
            _SAME if is_same else f"{_level(standing.level)}, by {standing.seq} records: not what is here"
        )
    return found


def _shown(view: AutonomyView, records: tuple[AutonomyRecord, ...], audited: str) -> str:
    scope, standing = view.scope, view.standing
    lines = [
        f"{scope.workflow_digest}  {scope.action_class} in {scope.environment}",
        f"  level:   {_level(standing.level)}",
        f"  why:     {standing.why}",
        *([f"  audit:   {audited}"] if audited else []),
        f"  live:    {standing.live.successes} agreed successes, {standing.live.failures} failures"
        + (f"; {standing.unagreed} successes wait for a person's word" if standing.unagreed else ""),
    ]
    if standing.every != standing.live:
        lines.append(f"  in all:  {standing.every.successes} agreed successes, {standing.every.failures} failures")
    if view.next_level is not None:
        words = "one person's word" if view.confirmations_needed == 1 else f"{view.confirmations_needed} people's words"
        needs = [*view.blockers] or [f"it is earned, and needs {words}: quell autonomy promote"]
        claim = "" if view.claim is None else f", when a share above {view.claim:.2f} is proved"
        lines.append(f"  next:    level {int(view.next_level)}{claim}")
        lines += [f"           {need}" for need in needs]
    lines += [
        f"  said:    {each.by} confirmed level {int(each.to)} at {clock_time(each.at)}" for each in standing.pending
    ]
    for each in records:
        what = each.outcome.value if each.outcome else f"to level {each.to}"
        who = f" by {each.by}" if each.by else ""
        lines.append(
            f"  {each.seq:>5}  {clock_time(each.at)}  {each.kind}: {what} {each.ref}{who} {each.reason}".rstrip()
        )
    return "\n".join(lines)
