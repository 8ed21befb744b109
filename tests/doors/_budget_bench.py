"""A small real journal with the tables of budgets, on either database, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quell.config import Secret
from quell.domain import BudgetKind, BudgetScope, Cap, Charge, Reservation, Settlement, Spender
from quell.governance import Budgets
from quell.runs import Database
from quell.runs._database import open_database

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ANNA = Spender(run="run_a", agent="triage", feature="incidents", tenant="acme")


@dataclass
class MovedClock:
    at: datetime = NOON

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


@contextmanager
def opened(state_dir: Path, *, url: str = "") -> Iterator[Database]:
    database = open_database(Secret(url), state_dir=state_dir)
    try:
        with database.writing(durability="written") as connection:
            connection.make_tables(Budgets.tables)
        yield database
    finally:
        database.close()


def cap(kind: BudgetKind, limit: int | None, *per: BudgetScope, **only: str) -> Cap:
    return Cap(kind=kind, limit=limit, per=per, only=tuple((BudgetScope(scope), glob) for scope, glob in only.items()))


@dataclass
class Desk:
    """Budgets over one database, a transaction per word."""

    database: Database
    budgets: Budgets
    spender: Spender = field(default_factory=lambda: ANNA)

    def reserve(self, charge: Charge, key: str, *, spender: Spender | None = None, fence: int = 0) -> Reservation:
        with self.database.writing(durability="written") as connection:
            return self.budgets.reserve(connection, charge, spender=spender or self.spender, key=key, fence=fence)

    def settle(
        self,
        reservation: Reservation,
        actual: Charge | None,
        *,
        spender: Spender | None = None,
        seen: Charge | None = None,
    ) -> Settlement:
        with self.database.writing(durability="written") as connection:
            return self.budgets.settle(connection, reservation, actual, spender=spender or self.spender, seen=seen)

    def expire(self) -> tuple[Settlement, ...]:
        with self.database.writing(durability="written") as connection:
            return self.budgets.expire(connection)

    def books(self, *, spender: Spender | None = None) -> list[tuple[int, int]]:
        """Return (spent, in flight) against each cap."""
        with self.database.reading() as connection:
            found = self.budgets.balances(connection, spender or self.spender)
        return [(balance.spent, balance.in_flight) for balance in found]
