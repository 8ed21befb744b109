"""The detector: every few seconds it asks the rollups for what is new, and judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from quell.config import DetectionSettings
from quell.domain import Alert
from quell.signals._clickhouse import OWN_SERVICES
from quell.signals._clickhouse_sources import SHORT_STEP_S, Shape, Stretch, patterns_source, red_source
from quell.signals._client import StoreClient
from quell.signals._detect_history import (
    GaugeRow,
    HeartbeatRow,
    History,
    OperationRow,
    PatternRow,
    ProcessRow,
    gauges_sql,
    heartbeats_sql,
    operations_sql,
    patterns_sql,
    processes_sql,
)
from quell.signals._detect_judge import judge, state_of
from quell.signals._detect_state import DetectorState

Entropy = Callable[[int], bytes]

_OVERLAP_S = 60
"""How late telemetry may arrive and still count."""
_AHEAD_S = 10
_QUERY_TIMEOUT_S = 5.0
_SALT_BYTES = 10


@dataclass(slots=True)
class _Memory:
    state: DetectorState
    history: History = field(default_factory=History)
    read_until: float = 0.0
    """Epoch seconds of the last look that could read everything; 0 before the first."""


class Detector:
    """Watches the store's rollups and says what newly fires and what newly resolves."""

    def __init__(
        self,
        client: StoreClient,
        *,
        settings: DetectionSettings,
        entropy: Entropy,
        known: Sequence[Alert] = (),
        hidden: tuple[str, ...] = OWN_SERVICES,
    ) -> None:
        """Build one; `known` are the alerts that were firing when the last detector ended."""
        self._client = client
        self._settings = settings
        self._hidden = hidden
        self._salt = entropy(_SALT_BYTES)
        self._memory = _Memory(state=state_of(known))

    async def look(self, at: datetime) -> list[Alert]:
        """Read what is new and judge; returns alerts that newly fire or newly resolve.

        Everything but the firing alerts is rebuilt from the rollups, so that a restart changes no judgement.
        Raises StoreError when the store cannot be read; the next look catches up.
        """
        memory = self._memory
        now = at.timestamp()
        oldest = now - 60 * self._settings.baseline_minutes
        if memory.read_until > now + _OVERLAP_S:
            memory.history, memory.read_until = History(), 0.0
        await self._read(memory.history, begin=max(oldest, memory.read_until - _OVERLAP_S), now=now)
        memory.read_until = now
        memory.history.forget(before=oldest)
        memory.state, alerts = judge(
            memory.state, memory.history.buckets(), at, settings=self._settings, salt=self._salt
        )
        return alerts

    async def _read(self, history: History, *, begin: float, now: float) -> None:
        shape = Shape(self._client.schema or await self._client.load_schema(timeout_s=_QUERY_TIMEOUT_S))
        stretch = self._stretch(begin=begin, now=now)
        if shape.has("otel_traces"):
            table = "quell_red_5s" if shape.has("quell_red_5s") else ""
            sql = operations_sql(red_source(shape, table=table, stretch=stretch))
            history.take_operations(await self._client.rows(sql, row=OperationRow, timeout_s=_QUERY_TIMEOUT_S))
        if shape.has("otel_logs"):
            table = "quell_patterns_5s" if shape.has("quell_patterns_5s") else ""
            source = patterns_source(shape, table=table, stretch=stretch)
            history.take_patterns(
                await self._client.rows(patterns_sql(source), row=PatternRow, timeout_s=_QUERY_TIMEOUT_S)
            )
            beats = await self._client.rows(heartbeats_sql(source), row=HeartbeatRow, timeout_s=_QUERY_TIMEOUT_S)
            history.take_heartbeats(beats)
        for table in ("otel_metrics_gauge", "otel_metrics_sum"):
            if shape.has(table):
                where = f"{shape.raw_time(table, column='TimeUnix', begin=stretch.before_from, end=stretch.end)} AND {stretch.scoped('ServiceName')}"
                sql = gauges_sql(table, where=where)
                history.take_gauges(await self._client.rows(sql, row=GaugeRow, timeout_s=_QUERY_TIMEOUT_S))
        if shape.has("quell_changes"):
            sql = processes_sql(now=int(now))
            history.take_processes(await self._client.rows(sql, row=ProcessRow, timeout_s=_QUERY_TIMEOUT_S))

    def _stretch(self, *, begin: float, now: float) -> Stretch:
        start = int(begin // SHORT_STEP_S * SHORT_STEP_S)
        return Stretch(
            step_s=SHORT_STEP_S,
            before_from=start,
            before_until=start,
            begin=start,
            end=int(now) + _AHEAD_S,
            now=int(now),
            services=(),
            hidden=self._hidden,
        )
