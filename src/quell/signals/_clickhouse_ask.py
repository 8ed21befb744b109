"""What every question of the ClickHouse reader has at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

from quell.domain import Observation
from quell.signals._clickhouse_sources import Shape
from quell.signals._client import StoreClient
from quell.signals._reader import CannotAnswerError

T = TypeVar("T")
_DEADLINE_LEFT_MIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a question found, before it becomes an Answer."""

    rows: tuple[Observation, ...]
    """In a total order, the most telling first."""
    query: str
    partial: str = ""


@dataclass(slots=True, kw_only=True)
class Asking:
    """One question under way: the store, its shape, its clock and the time that is left."""

    client: StoreClient
    shape: Shape
    now: int
    """Epoch seconds by the store's own clock."""
    hidden: tuple[str, ...]
    deadline: float
    """By `time.monotonic`."""
    query: str = ""
    """The last statement sent."""

    async def rows(self, sql: str, *, row: type[T]) -> list[T]:
        """Run one statement within what is left of the deadline."""
        self.query = sql
        left_s = self.deadline - time.monotonic()
        if left_s < _DEADLINE_LEFT_MIN_S:
            raise CannotAnswerError("timeout", "the deadline passed before everything was asked", query=sql)
        return await self.client.rows(sql, row=row, timeout_s=left_s)

    def empty(self, detail: str, sql: str) -> CannotAnswerError:
        """Say that the source holds nothing at all for what was asked, which differs from nothing unusual."""
        return CannotAnswerError("empty", detail, query=sql)
