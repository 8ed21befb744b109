"""Figures of the database server, as an exporter beside it sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from quell_lab.host._postgres import Postgres
from quell_lab.kit import Signals

EVERY_S = 2.0
QUERY = """SELECT
 (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS backends,
 (SELECT count(*) FROM pg_locks WHERE NOT granted) AS waiting,
 (SELECT COALESCE(max(extract(epoch FROM clock_timestamp() - query_start)), 0) FROM pg_stat_activity
   WHERE state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()) AS longest,
 (SELECT COALESCE(sum(seq_tup_read + COALESCE(idx_tup_fetch, 0)), 0) FROM pg_stat_user_tables) AS scanned"""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Poller:
    """Asks the server every few seconds; while it is down there is nothing to report."""

    def __init__(self, postgres: Postgres, signals: Signals) -> None:
        self._postgres = postgres
        self._figures: dict[str, float] = {}
        self._cpu: tuple[float, float] | None = None
        for name, unit, key in (
            ("postgresql.backends", "{backend}", "backends"),
            ("postgresql.locks.waiting", "{lock}", "waiting"),
            ("postgresql.query.duration", "s", "longest"),
            ("process.cpu.utilization", "1", "cpu"),
        ):
            signals.gauge(name, unit, self._reading(key))
        signals.total("postgresql.rows_scanned", "{row}", self._reading("scanned"))

    async def watch(self) -> None:
        """Poll for ever."""
        connection: psycopg.AsyncConnection[dict[str, object]] | None = None
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                async with asyncio.timeout(EVERY_S):
                    if connection is None or connection.closed:
                        connection = await psycopg.AsyncConnection.connect(
                            self._postgres.conninfo(),
                            autocommit=True,
                            row_factory=dict_row,
                        )
                    row = await (await connection.execute(QUERY)).fetchone()
            except (TimeoutError, psycopg.Error, OSError):
                self._figures = {}
                if connection is not None:
                    with contextlib.suppress(psycopg.Error):
                        await connection.close()
                connection = None
                continue
            assert row is not None
            self._figures = {name: float(str(value)) for name, value in row.items()} | self._cpu_share()

    def _reading(self, key: str) -> Callable[[], list[tuple[float, dict[str, str]]]]:
        return lambda: [(self._figures[key], {})] if key in self._figures else []

    def _cpu_share(self) -> dict[str, float]:
        pid = self._postgres.pid
        if pid is None:
            return {}
        now = (time.monotonic(), _cpu_seconds_of_family(pid))
        before, self._cpu = self._cpu, now
        if before is None or now[1] < before[1]:
            return {}
        return {"cpu": (now[1] - before[1]) / max(now[0] - before[0], 0.1)}


def _cpu_seconds_of_family(pid: int) -> float:
    """Return the CPU seconds of a process, its ended children, and its living children."""
    total = _cpu_ticks(pid, with_children=True)
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += _cpu_ticks(int(child), with_children=False)
    return total / TICKS_PER_S


def _cpu_ticks(pid: int, *, with_children: bool) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(fields[place]) for place in ((11, 12, 13, 14) if with_children else (11, 12)))
