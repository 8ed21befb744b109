"""The detector's view of the recent past, kept up to date by asking only for what is new."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np

from quell.domain import ENDED_AS_ASKED
from quell.signals._detect_gauges import JUDGED_NAMES
from quell.signals._detect_state import BUCKET_S, Buckets, GaugeHistory, Heartbeat, OperationHistory, PatternHistory
from quell.signals._reader_families import Limits, Series
from quell.signals._reader_replicas import instance_of, join_replicas, worst_of
from quell.signals._schema_views import literal

K = TypeVar("K")
A = TypeVar("A", int, float)
V = TypeVar("V")

_PATTERNS_MAX = 2000
_SERIES_POINTS_MAX = 2000
_ROLLOUT_S = 60
_EXIT_PLANNED = f"{ENDED_AS_ASKED}|^0$"
"""Reasons of ends of processes that somebody asked for; nothing but the exit code 0 says so too."""


class OperationRow(msgspec.Struct):
    """One operation in one bucket."""

    service: str
    operation: str
    b: int
    calls: int
    errors: int
    total_ms: float


class PatternRow(msgspec.Struct):
    """One error template in one bucket."""

    service: str
    template: str
    b: int
    n: int


class HeartbeatRow(msgspec.Struct):
    """Logs of one service in one bucket."""

    service: str
    b: int


class GaugeRow(msgspec.Struct):
    """New points of one series."""

    service: str
    metric: str
    unit: str
    attributes: list[tuple[str, str]]
    points: list[tuple[float, float]]
    instance: str = ""
    """The process that tells it, where there are several of one service."""


class ProcessRow(msgspec.Struct):
    """One deploy, planned restart, or end of a process that nobody asked for."""

    service: str
    at: float
    ended: str
    """Reason of an end that nobody asked for; empty for what was planned."""


_Series = tuple[str, str, str, tuple[tuple[str, str], ...], str]


@dataclass(slots=True)
class History:
    """Buckets by series and time; a bucket that is read again replaces what was known of it."""

    operations: dict[tuple[str, str], dict[int, tuple[int, int, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    patterns: dict[tuple[str, str], dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    gauges: dict[_Series, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))
    spoken: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    rollouts: tuple[tuple[str, float], ...] = ()
    exits: tuple[tuple[str, float, str], ...] = ()

    def take_operations(self, rows: Sequence[OperationRow]) -> None:
        """Learn calls."""
        for row in rows:
            self.operations[row.service, row.operation][row.b] = (row.calls, row.errors, row.total_ms)

    def take_patterns(self, rows: Sequence[PatternRow]) -> None:
        """Learn error templates."""
        for row in rows:
            self.patterns[row.service, row.template][row.b] = row.n

    def take_heartbeats(self, rows: Sequence[HeartbeatRow]) -> None:
        """Learn who logged."""
        for row in rows:
            self.spoken[row.service].add(row.b)

    def take_gauges(self, rows: Sequence[GaugeRow]) -> None:
        """Learn metric points; they are signs of life too."""
        for row in rows:
            series = self.gauges[row.service, row.metric, row.unit, tuple(row.attributes), row.instance]
            series.update(row.points)
            self.spoken[row.service].update(int(at // BUCKET_S * BUCKET_S) for at, _ in row.points)

    def take_processes(self, rows: Sequence[ProcessRow]) -> None:
        """Learn what began and ended in the last minute."""
        self.rollouts = tuple((row.service, row.at) for row in rows if not row.ended)
        self.exits = tuple((row.service, row.at, row.ended) for row in rows if row.ended)

    def forget(self, *, before: float) -> None:
        """Drop what is older than the baseline."""
        _forget(self.operations, before=before)
        _forget(self.patterns, before=before)
        _forget(self.gauges, before=before)
        for service in [*self.spoken]:
            self.spoken[service] = {at for at in self.spoken[service] if at >= before}
            if not self.spoken[service]:
                del self.spoken[service]

    def buckets(self) -> Buckets:
        """Give what a judgement looks at."""
        return Buckets(
            operations=tuple(_operation(key, rows) for key, rows in sorted(self.operations.items())),
            gauges=self._gauges(),
            patterns=tuple(_pattern(key, rows) for key, rows in sorted(self.patterns.items())),
            heartbeats=tuple(_heartbeat(service, spoken) for service, spoken in sorted(self.spoken.items())),
            rollouts=self.rollouts,
            exits=self.exits,
        )

    def _gauges(self) -> tuple[GaugeHistory, ...]:
        replicas: dict[tuple[str, str, str, tuple[tuple[str, str], ...]], list[dict[float, float]]] = defaultdict(list)
        for (service, metric, unit, attributes, _instance), told in sorted(self.gauges.items()):
            replicas[service, metric, unit, attributes].append(told)
        series = [
            Series(
                service=service,
                metric=metric,
                unit=unit,
                attributes=attributes,
                times=tuple(times := sorted(points := join_replicas(members, by=worst_of(metric)))),
                values=tuple(points[at] for at in times),
            )
            for (service, metric, unit, attributes), members in replicas.items()
        ]
        limits = Limits.of(series)
        return tuple(
            GaugeHistory(
                service=one.service,
                metric=one.metric,
                unit=one.unit,
                attributes=one.attributes,
                times=one.times,
                values=one.values,
                limit=limits.find(one.service, one.metric, dict(one.attributes), unit=""),
            )
            for one in series
        )


def _forget(table: dict[K, dict[A, V]], *, before: float) -> None:
    for key in [*table]:
        table[key] = {at: value for at, value in table[key].items() if at >= before}
        if not table[key]:
            del table[key]


def _operation(key: tuple[str, str], rows: dict[int, tuple[int, int, float]]) -> OperationHistory:
    starts = sorted(rows)
    return OperationHistory(
        service=key[0],
        operation=key[1],
        starts=tuple(float(start) for start in starts),
        calls=tuple(rows[start][0] for start in starts),
        errors=tuple(rows[start][1] for start in starts),
        total_ms=tuple(rows[start][2] for start in starts),
    )


def _pattern(key: tuple[str, str], rows: dict[int, int]) -> PatternHistory:
    starts = sorted(rows)
    return PatternHistory(
        service=key[0],
        template=key[1],
        starts=tuple(float(start) for start in starts),
        counts=tuple(rows[start] for start in starts),
    )


def _heartbeat(service: str, spoken: Iterable[int]) -> Heartbeat:
    starts = sorted(spoken)
    gaps = np.diff(starts) if len(starts) > 1 else np.array([BUCKET_S])
    lasted_s = starts[-1] - starts[0] + BUCKET_S
    return Heartbeat(
        service=service,
        first=float(starts[0]),
        last=float(starts[-1]) + BUCKET_S,
        cadence_s=float(np.quantile(gaps, 0.9)),
        steadiness=float(len(starts) * np.median(gaps) / lasted_s),
        beats=len(starts),
    )


def operations_sql(source: str) -> str:
    """Ask for incoming calls, from any source of `red_source`'s columns."""
    return f"""SELECT service, operation, toUInt32(b) AS b, toUInt32(sum(c)) AS calls, toUInt32(sum(e)) AS errors, sum(d) AS total_ms
FROM ({source}) WHERE span_kind IN ('server', 'consumer') GROUP BY service, operation, b ORDER BY service, operation, b"""


def patterns_sql(source: str) -> str:
    """Ask for templates of error and fatal logs, from any source of `patterns_source`'s columns."""
    return f"""SELECT service, template, toUInt32(b) AS b, toUInt32(sum(n)) AS n
FROM ({source}) WHERE severity IN ('error', 'fatal') GROUP BY service, template, b
ORDER BY b DESC, service, template LIMIT {_PATTERNS_MAX}"""


def heartbeats_sql(source: str) -> str:
    """Ask who logged when."""
    return f"SELECT service, toUInt32(b) AS b FROM ({source}) GROUP BY service, b ORDER BY service, b"


def gauges_sql(table: str, *, where: str) -> str:
    """Ask for the points of the series that a rule may concern."""
    monotonic = " AND NOT IsMonotonic" if table == "otel_metrics_sum" else ""
    return f"""SELECT service, metric, unit, attributes, instance, arraySlice(arraySort(groupArray((at, top))), 1, {_SERIES_POINTS_MAX}) AS points
FROM (
    SELECT toString(ServiceName) AS service, MetricName AS metric, MetricUnit AS unit,
        arraySort(CAST(Attributes, 'Array(Tuple(String, String))')) AS attributes, {instance_of("ResourceAttributes")} AS instance,
        toUnixTimestamp64Milli(TimeUnix) / 1000 AS at, max(Value) AS top
    FROM {table} WHERE {where} AND isFinite(Value) AND match(MetricName, {literal(JUDGED_NAMES)}){monotonic}
    GROUP BY service, metric, unit, attributes, instance, at
)
GROUP BY service, metric, unit, attributes, instance ORDER BY service, metric, unit, attributes, instance"""


def processes_sql(*, now: int) -> str:
    """Ask for deploys, planned restarts and other ends of processes of the last minute."""
    asked_for = f"(change IN ('deploy', 'scale') OR match(after, {literal(_EXIT_PLANNED)}))"
    return f"""SELECT toString(service) AS service, toUnixTimestamp64Milli(at) / 1000 AS at,
    if({asked_for}, '', if(after = '', 'unknown', after)) AS ended FROM quell_changes
WHERE at >= fromUnixTimestamp64Milli({(now - _ROLLOUT_S) * 1000}) AND change IN ('deploy', 'scale', 'exit')
GROUP BY service, at, ended ORDER BY service, at, ended"""
