"""`quell effect`: list, show, settle."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note_cut, note_none, put_document, put_table, put_text
from quell.cli._person import one_of, person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import away, clock_time

if TYPE_CHECKING:
    from quell.app import Office
    from quell.domain import Effect, Principal

_ENTRIES_MAX = 10_000
_SETTLERS = frozenset({"operator", "admin"})
_VERDICTS: dict[str, Literal["done", "failed", "reverted"]] = {
    "done": "done",
    "failed": "failed",
    "reverted": "reverted",
}


@click.group("effect", cls=QuellGroup)
def effect_command() -> None:
    """List effects; settle those whose end nobody saw."""


@effect_command.command("list", cls=QuellCommand)
@click.option("--unknown", is_flag=True, help="Only those whose end nobody saw: they wait for people.")
@click.option("--run", default="", metavar="ID", help="Only those of this run.")
@click.option("--limit", type=click.IntRange(1, _ENTRIES_MAX), default=50, show_default=True, help="At most this many.")
@tenant_option
@click.pass_obj
def list_effects(session: Session, *, unknown: bool, run: str, limit: int, tenant: str) -> int:
    """List what was done to the world, or was about to be, newest first."""

    def use(office: Office) -> int:
        from quell.domain import EffectState

        by, now = person_of(session, office, tenant=tenant), office.clock()
        state = EffectState.UNKNOWN if unknown else None
        with office.runs.database.reading() as connection:
            found = office.ledger.entries(
                connection, run=run or None, state=state, tenant=by.tenant, rows_max=limit + 1
            )
        shown, is_cut = found[:limit], len(found) > limit
        if session.is_json:
            put_document("effects", effects=shown, is_cut=is_cut, limit=limit)
        else:
            put_table(("KEY", "STATE", "SENT", "WHEN", "WHAT"), [_row(each, now=now) for each in shown])
            if not shown:
                note_none("effect whose end nobody saw" if unknown else "effect", office.settings)
        if is_cut:
            note_cut(f"the newest {limit} effects", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_office(use)


@effect_command.command("show", cls=QuellCommand)
@click.argument("key")
@tenant_option
@click.pass_obj
def show_effect(session: Session, key: str, *, tenant: str) -> int:
    """Show one effect whole: its arguments, how it ended, and what would undo it. A unique beginning of KEY is enough."""

    def use(office: Office) -> int:
        effect = _found(office, key, by=person_of(session, office, tenant=tenant))
        if session.is_json:
            put_document("effect", effect=effect)
            return ExitCode.DONE
        put_text(effect.key)
        put_text(
            "\n".join(f"  {name + ':':11} {office.approvals.visible(text)}" for name, text in _facts(effect) if text)
        )
        if effect.state.value == "unknown":
            put_text(f"\nlook, then: quell effect settle {effect.key[:8]} --as done|failed|reverted --reason ...")
        return ExitCode.DONE

    return session.with_office(use)


@effect_command.command("settle", cls=QuellCommand)
@click.argument("key")
@click.option("--as", "verdict", type=click.Choice(list(_VERDICTS)), required=True, help="What you found.")
@click.option("--reason", required=True, help="How you know; kept.")
@tenant_option
@click.pass_obj
def settle_effect(session: Session, key: str, *, verdict: str, reason: str, tenant: str) -> int:
    """Say what became of an effect whose end nobody saw. A unique beginning of KEY is enough."""

    def use(office: Office) -> int:
        from quell.domain import AuditKind, EffectState, RefusedError, is_person, may_do

        by = person_of(session, office, tenant=tenant)
        with office.changing(by, verb="effect.settle", about=key) as connection:
            if not is_person(by) or not _SETTLERS & set(by.roles) or not may_do(by, "effect.settle"):
                roles = ", ".join(sorted(_SETTLERS))
                raise RefusedError(
                    f"{by.user} may not settle effects", hint=f"a person with one of the roles {roles} may"
                )
            known = _found(office, key, by=by)
            if known.state is not EffectState.UNKNOWN:
                told = f" by {known.settled_by}" if known.settled_by else ""
                raise RefusedError(
                    f"effect {known.key[:16]} is {known.state} already{told}",
                    hint="only one whose end nobody saw is settled: `quell effect list --unknown`",
                    code="gone",
                )
            effect = office.ledger.settle(connection, known.key, by=by.user, verdict=_VERDICTS[verdict], reason=reason)
            body = {
                "effect": effect.key,
                "call": effect.call.id,
                "tool": effect.call.tool,
                "digest": effect.call.digest,
                "state": effect.state.value,
                "reason": reason,
            }
            office.record(connection, AuditKind.OUTCOME, by=by, verb="effect.settle", body=body, run=effect.call.run)
        if session.is_json:
            put_document("effect", effect=effect)
        else:
            put_text(f"{effect.key} is {effect.state.value}")
        return ExitCode.DONE

    return session.with_office(use)


def _found(office: Office, beginning: str, *, by: Principal) -> Effect:
    with office.runs.database.reading() as connection:
        if (exact := office.ledger.find(connection, beginning)) is not None and exact.tenant == by.tenant:
            return exact
        known = {each.key: each for each in office.ledger.entries(connection, tenant=by.tenant, rows_max=_ENTRIES_MAX)}
    return known[one_of(beginning, known, what="effect", hint="`quell effect list` names them")]


def _row(effect: Effect, *, now: datetime) -> tuple[str, ...]:
    from quell.governance import Approvals

    resource = effect.resource
    what = f"{effect.call.tool} on {resource.kind} {resource.name or '(the whole server)'} in {resource.environment}"
    state = f"{effect.state.value} ({effect.reason})" if effect.reason else effect.state.value
    return (
        effect.key[:16],
        state,
        f"{effect.attempts}x",
        away(effect.ended_at or effect.sent_at or effect.intended_at, now=now),
        Approvals.visible(what),
    )


def _facts(effect: Effect) -> list[tuple[str, str]]:
    resource = effect.resource
    return [
        ("state", f"{effect.state.value} ({effect.reason})" if effect.reason else effect.state.value),
        ("tool", effect.call.tool),
        ("acts on", f"{resource.kind} {resource.name or '(the whole server)'} in {resource.environment}"),
        ("units", str(resource.units)),
        ("arguments", effect.call.arguments),
        ("run", effect.call.run),
        ("call", effect.call.id),
        ("for", f"{effect.user}, tenant {effect.tenant}"),
        ("approval", effect.approval),
        ("recovery", effect.recovery.value),
        ("intended", clock_time(effect.intended_at)),
        ("last sent", f"{clock_time(effect.sent_at)}, {effect.attempts}x in all" if effect.sent_at else "never"),
        ("ended", clock_time(effect.ended_at) if effect.ended_at else ""),
        ("detail", effect.detail),
        ("settled by", effect.settled_by),
        ("undone by", effect.revert if effect.revert != "[]" else "nothing"),
        ("result", effect.result if effect.is_whole else f"{effect.result_bytes} bytes, {effect.result_digest}"),
    ]
