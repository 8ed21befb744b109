"""`quell budget`: show."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_table
from quell.cli._person import person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import length_text

if TYPE_CHECKING:
    from quell.app import Office
    from quell.config import CapSettings
    from quell.domain import Balance, BudgetKind

_WORDS = {
    "money_micro_usd": "money",
    "wall_ms": "time",
    "size_bytes": "bytes",
    "blast_units": "units touched",
}


@click.group("budget", cls=QuellGroup)
def budget_command() -> None:
    """Show what a run has spent, and its caps."""


@budget_command.command("show", cls=QuellCommand)
@click.argument("run_id", metavar="RUN")
@click.option("--agent", default="", metavar="NAME", help="Also the caps that count by agent: those of this one.")
@click.option("--feature", default="", metavar="NAME", help="Also the caps that count by feature: those of this one.")
@tenant_option
@click.pass_obj
def show_budget(session: Session, run_id: str, *, agent: str, feature: str, tenant: str) -> int:
    """Show what a run, and its tenant today, have spent of what they may. Exit 6 when a cap is reached."""

    async def use(office: Office) -> int:
        from quell.domain import BudgetScope, Spender

        by, run = person_of(session, office, tenant=tenant), await office.runs.get(run_id)
        spender = Spender(run=run.id, tenant=by.tenant, agent=agent, feature=feature)
        with office.runs.database.reading() as connection:
            balances = office.budgets.balances(connection, spender)
        # An account of no agent is not that of the agent who works: what stands in it would look like room.
        unnamed = {scope for scope, name in ((BudgetScope.AGENT, agent), (BudgetScope.FEATURE, feature)) if not name}
        told = [each for each in balances if unnamed.isdisjoint((*each.cap.per, *dict(each.cap.only)))]
        if hidden := sum(_counts_by(each, unnamed) for each in office.settings.cap):
            note(f"caps that count by agent or feature are not shown ({hidden}): name one with --agent or --feature")
        found = sorted(told, key=lambda each: BudgetScope.RUN not in each.cap.per)
        is_reached = any(_is_reached(each) for each in found)
        if session.is_json:
            rows = [{**_as_json(each), "is_reached": _is_reached(each)} for each in found]
            put_document("budget", run=run.id, balances=rows, is_reached=is_reached)
        else:
            put_table(("ACCOUNT", "WHAT", "SPENT", "IN FLIGHT", "CAP", "LEFT"), [_row(each) for each in found])
        return ExitCode.LIMIT if is_reached else ExitCode.DONE

    return session.with_office(use)


def _counts_by(cap: CapSettings, scopes: Container[str]) -> bool:
    globs = (("agent", cap.agent), ("feature", cap.feature))
    return any(name in scopes and (name in cap.per or glob != "*") for name, glob in globs)


def _row(balance: Balance) -> tuple[str, ...]:
    cap = balance.cap
    if cap.limit is None:
        limit, left = "none", "-"
    else:
        limit = _amount(cap.kind, cap.limit)
        share = 100 * (cap.limit - balance.spent - balance.in_flight) // cap.limit if cap.limit else 0
        left = "reached" if _is_reached(balance) else f"{share} %" + (", near" if balance.is_near else "")
    return (
        balance.account,
        _WORDS.get(cap.kind.value, cap.kind.value),
        _amount(cap.kind, balance.spent),
        _amount(cap.kind, balance.in_flight) if balance.in_flight else "-",
        limit,
        left,
    )


def _amount(kind: BudgetKind, amount: int) -> str:
    if kind.value == "money_micro_usd":
        return f"{amount / 1_000_000:.2f} USD"
    if kind.value == "wall_ms":
        return length_text(amount / 1000) if amount else "0 s"
    return f"{amount:,}".replace(",", " ")


def _is_reached(balance: Balance) -> bool:
    return balance.cap.limit is not None and balance.spent + balance.in_flight >= balance.cap.limit


def _as_json(balance: Balance) -> dict[str, object]:
    return {
        "account": balance.account,
        "kind": balance.cap.kind.value,
        "spent": balance.spent,
        "in_flight": balance.in_flight,
        "limit": balance.cap.limit,
        "is_near": balance.is_near,
    }
