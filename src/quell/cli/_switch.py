"""`quell switch`: kill, freeze, lift, list."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_table, put_text
from quell.cli._person import one_of, person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import MOMENT, away, clock_time, moment_of

if TYPE_CHECKING:
    from datetime import datetime

    from quell.app import Office
    from quell.domain import Killed, Principal, Switch
    from quell.runs import Connection


@click.group("switch", cls=QuellGroup)
def switch_command() -> None:
    """Stop what acts: kill, freeze, lift, and what is in force."""


def _scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, what in (("--environment", "environments"), ("--agent", "agents"), ("--tool", "tools")):
        command = click.option(name, default="*", metavar="GLOB", show_default=True, help=f"Only these {what}.")(
            command
        )
    return tenant_option(command)


@switch_command.command("kill", cls=QuellCommand)
@_scope_options
@click.option("--reason", required=True, help="Why; everybody who is stopped is told.")
@click.pass_obj
def kill(session: Session, *, tool: str, agent: str, environment: str, reason: str, tenant: str) -> int:
    """Stop every call at once, or those that the globs name, until somebody lifts it. Nothing starts after this."""

    def use(office: Office) -> int:
        from quell.domain import QuellError

        by = person_of(session, office, tenant=tenant)

        def and_then(connection: Connection, killed: Killed) -> None:
            body = {**_body(killed.switch), "in_flight": list(killed.in_flight[:1000])}
            _record(office, connection, by, "switch.kill", body)

        try:
            killed = office.switches.kill_now(
                by=by, reason=reason, agent=agent, environment=environment, tool=tool, and_then=and_then
            )
        except QuellError as error:
            office.refused(by, verb="switch.kill", about=f"{agent} {environment} {tool}", error=error)
            raise
        if session.is_json:
            put_document("switch_killed", switch=killed.switch, in_flight=killed.in_flight)
            return ExitCode.DONE
        put_text(f"{killed.switch.id} is in force: {_covers(killed.switch)}")
        if killed.in_flight:
            put_text(f"{len(killed.in_flight)} effects had started before it and have not ended:")
            put_text("\n".join(f"  {key}" for key in killed.in_flight))
        note(f"`quell switch lift {killed.switch.id} --reason ...` ends it")
        return ExitCode.DONE

    return session.with_office(use)


@switch_command.command("freeze", cls=QuellCommand)
@_scope_options
@click.option(
    "--from", "starts", type=MOMENT, default="now", show_default=True, help="now, +2h or 2026-12-24T18:00:00Z."
)
@click.option("--to", "ends", type=MOMENT, required=True, help="When it ends by itself, written in the same way.")
@click.option("--reason", required=True, help="Why; everybody who is stopped is told.")
@click.pass_obj
def freeze(
    session: Session,
    *,
    tool: str,
    agent: str,
    environment: str,
    starts: str,
    ends: str,
    reason: str,
    tenant: str,
) -> int:
    """Forbid changes for a window of time; reads go on."""

    def use(office: Office) -> int:
        by, now = person_of(session, office, tenant=tenant), office.clock()
        with office.changing(by, verb="switch.freeze", about=f"{agent} {environment} {tool}") as connection:
            switch = office.switches.freeze(
                connection,
                by=by,
                reason=reason,
                starts_at=moment_of(starts, now=now),
                ends_at=moment_of(ends, now=now),
                agent=agent,
                environment=environment,
                tool=tool,
            )
            _record(office, connection, by, "switch.freeze", _body(switch))
        if session.is_json:
            put_document("switch", switch=switch)
        else:
            put_text(f"{switch.id} holds {_window(switch, now=now)}: {_covers(switch)}")
        return ExitCode.DONE

    return session.with_office(use)


@switch_command.command("lift", cls=QuellCommand)
@click.argument("switch_id", metavar="ID")
@click.option("--reason", required=True, help="Why it may go on; kept.")
@tenant_option
@click.pass_obj
def lift(session: Session, switch_id: str, *, reason: str, tenant: str) -> int:
    """End a stop. A unique beginning of ID is enough."""

    def use(office: Office) -> int:
        by = person_of(session, office, tenant=tenant)
        with office.changing(by, verb="switch.lift", about=switch_id) as connection:
            known = [switch.id for switch in office.switches.listed(connection, tenant=by.tenant)]
            named = one_of(switch_id, known, what="stop", hint="`quell switch list` names those in force")
            office.switches.lift(connection, named, by=by, reason=reason)
            _record(office, connection, by, "switch.lift", {"switch": named, "reason": reason})
        if session.is_json:
            put_document("switch_lifted", switch=named)
        else:
            put_text(f"{named} is lifted")
        return ExitCode.DONE

    return session.with_office(use)


@switch_command.command("list", cls=QuellCommand)
@tenant_option
@click.pass_obj
def list_switches(session: Session, *, tenant: str) -> int:
    """List the stops that nobody has lifted: kills, and freezes that hold or are still to come."""

    def use(office: Office) -> int:
        by, now = person_of(session, office, tenant=tenant), office.clock()
        with office.runs.database.reading() as connection:
            found = [each for each in office.switches.listed(connection, tenant=by.tenant) if _is_ahead(each, now=now)]
        if session.is_json:
            put_document("switches", switches=found)
            return ExitCode.DONE
        rows = [(each.id, each.kind, _window(each, now=now), _covers(each), each.by, each.reason) for each in found]
        put_table(("ID", "KIND", "HOLDS", "COVERS", "BY", "WHY"), rows)
        if not found:
            note_none("stop in force", office.settings)
        return ExitCode.DONE

    return session.with_office(use)


def _record(office: Office, connection: Connection, by: Principal, verb: str, body: dict[str, object]) -> None:
    from quell.domain import AuditKind

    office.record(connection, AuditKind.SWITCH, by=by, verb=verb, body=body)


def _body(switch: Switch) -> dict[str, object]:
    return {
        "switch": switch.id,
        "kind": switch.kind,
        "covers": {
            "tenant": switch.tenant,
            "agent": switch.agent,
            "environment": switch.environment,
            "tool": switch.tool,
        },
        "starts_at": switch.starts_at.isoformat(),
        "ends_at": switch.ends_at.isoformat() if switch.ends_at else "",
        "reason": switch.reason,
    }


def _covers(switch: Switch) -> str:
    parts = [("agent", switch.agent), ("environment", switch.environment), ("tool", switch.tool)]
    told = ", ".join(f"{name} {glob}" for name, glob in parts if glob != "*") or "everything"
    return f"{told} of {'every tenant' if switch.tenant == '*' else f'tenant {switch.tenant}'}"


def _window(switch: Switch, *, now: datetime) -> str:
    if switch.ends_at is None:
        return f"since {away(switch.starts_at, now=now)}"
    if switch.starts_at > now:
        return f"{clock_time(switch.starts_at)} to {clock_time(switch.ends_at)}"
    return f"until {clock_time(switch.ends_at)} ({away(switch.ends_at, now=now)})"


def _is_ahead(switch: Switch, *, now: datetime) -> bool:
    return switch.ends_at is None or switch.ends_at > now
