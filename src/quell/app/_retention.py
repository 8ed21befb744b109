"""What authority leaves in the journal, and how long it is kept: as long as the runs that it belongs to."""

from __future__ import annotations

from datetime import datetime

from quell.app._agent_book import forget_sessions
from quell.app._authority import Authority
from quell.app._task_book import forget_tasks


def forget_old(authority: Authority, *, before: datetime) -> None:
    """Delete settled effects, ended reservations and requests, accounts of past days and of runs that are gone.

    What is in flight or unknown stays, and so does everything in the audit log.
    """
    guard, database = authority.guard, authority.runs.database
    with database.writing(durability="written") as connection:
        guard.ledger.retain(connection, before=before)
    with database.writing(durability="written") as connection:
        guard.budgets.retain(connection, before=before)
        known = {row.id for row in connection.all("SELECT id FROM quell_runs")}
        guard.budgets.forget(connection, sorted(set(guard.budgets.runs(connection)) - known))
    with database.writing(durability="written") as connection:
        forget_sessions(connection, before=before)
        forget_tasks(connection)
    with database.writing(durability="written") as connection:
        authority.toolbox.retain(connection, before=before)
    with database.writing(durability="written") as connection:
        guard.approvals.forget(connection, before=before)
