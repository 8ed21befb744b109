"""Courses over time for charts: the numbers behind a fact, bucket by bucket, from the same tables as the fact."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from quell.domain import Window
from quell.signals._clickhouse import ClickHouseReader as Answering
from quell.signals._clickhouse_ask import Asking
from quell.signals._clickhouse_metrics import _TABLES, _query, _Row, _series  # the same numbers as its facts
from quell.signals._clickhouse_sources import LONG_STEP_S, SHORT_STEP_S, Shape, Stretch, calls_source, red_source
from quell.signals._reader_families import Series as MetricSeries
from quell.signals._schema_views import literal

_SHORT_REACH_S = 110 * 60
_OWN = "quell"
_SHARE_OF_USUAL = 0.25
_BYTES = frozenset({"By", "By/s"})

Unit = Literal["share", "ms", "per_s", "number", "bytes", "s"]
MetricName = tuple[str, str, tuple[tuple[str, str], ...]]
"""Service, metric, attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity of one subject over time."""

    subject: str
    measure: str
    unit: Unit
    points: tuple[tuple[datetime, float], ...]
    """Oldest first; buckets in which nothing was told are missing."""


class _Red(msgspec.Struct):
    subject: str
    b: int
    calls: int
    errors: int
    p95: float | None


class _Flow(msgspec.Struct):
    b: int
    calls: int


class ClickHouseReader(Answering):
    """Answers the typed questions, and draws the courses behind the answers."""

    async def series(
        self,
        *,
        services: Sequence[str],
        edges: Sequence[tuple[str, str]],
        metrics: Sequence[MetricName],
        window: Window,
        timeout_s: float,
    ) -> tuple[Series, ...]:
        """Return error share, p95 latency and traffic of services and edges, and the courses of metrics.

        Raises StoreError when the store cannot answer.
        """
        asking = await self._asking(timeout_s)
        found: list[Series] = []
        if services:
            found += await self._services(asking, services, window)
        for caller, callee in edges:
            found += await self._edge(asking, caller, callee, window)
        if metrics:
            found += await self._metrics(asking, metrics, window)
        return tuple(found)

    async def begins_at(self, window: Window, *, timeout_s: float) -> datetime | None:
        """Return when work on requests and messages begins in a window; None when there is none.

        Single calls before that, such as health checks while things start, are not yet the usual traffic.
        """
        asking = await self._asking(timeout_s)
        stretch, table = self._stretch(asking, window, services=())
        if not (table or asking.shape.has("otel_traces")):
            return None
        source = red_source(asking.shape, table=table, stretch=stretch)
        rows = await asking.rows(
            f"SELECT toUInt32(b) AS b, toUInt32(sum(c)) AS calls FROM ({source}) "
            f"WHERE span_kind IN ('server', 'consumer') AND service != {literal(_OWN)} GROUP BY b ORDER BY b",
            row=_Flow,
        )
        if not rows:
            return None
        usual = sorted(row.calls for row in rows)[len(rows) // 2]
        first = next(row.b for row in rows if row.calls >= _SHARE_OF_USUAL * usual)
        return datetime.fromtimestamp(first, tz=UTC)

    async def _asking(self, timeout_s: float) -> Asking:
        schema = self._client.schema or await self._client.load_schema(timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        return Asking(client=self._client, shape=Shape(schema), now=0, hidden=(), deadline=deadline)

    def _stretch(self, asking: Asking, window: Window, *, services: Sequence[str]) -> tuple[Stretch, str]:
        """Choose the finest rollup that holds the window; an empty name means the raw table."""
        reaches = window.seconds <= _SHORT_REACH_S
        table, step_s = ("quell_red_5s", SHORT_STEP_S) if reaches else ("quell_red_1m", LONG_STEP_S)
        if not asking.shape.has(table):
            table = ""
        start = math.floor(window.start.timestamp() / step_s) * step_s
        end = math.ceil(window.end.timestamp() / step_s) * step_s
        stretch = Stretch(
            step_s=step_s,
            before_from=start,
            before_until=start,
            begin=start,
            end=end,
            now=end,
            services=tuple(services),
            hidden=(),
        )
        return stretch, table

    async def _services(self, asking: Asking, services: Sequence[str], window: Window) -> list[Series]:
        stretch, table = self._stretch(asking, window, services=services)
        source = red_source(asking.shape, table=table, stretch=stretch)
        rows = await asking.rows(
            f"""SELECT service AS subject, toUInt32(b) AS b, toUInt32(sum(c)) AS calls, toUInt32(sum(e)) AS errors,
    quantilesTDigestMerge(0.5, 0.95)(q)[2] AS p95
FROM ({source}) WHERE span_kind IN ('server', 'consumer') GROUP BY service, b ORDER BY service, b""",
            row=_Red,
        )
        whole = [row for row in rows if _is_whole(row, window, step_s=stretch.step_s)]
        found: list[Series] = []
        for service in services:
            found += _red_series(service, [row for row in whole if row.subject == service], step_s=stretch.step_s)
        return found

    async def _edge(self, asking: Asking, caller: str, callee: str, window: Window) -> list[Series]:
        stretch, _ = self._stretch(asking, window, services=())
        table = "quell_calls" if asking.shape.has("quell_calls") else ""
        source = calls_source(asking.shape, table=table, stretch=stretch)
        name = literal(callee)
        rows = await asking.rows(
            f"""SELECT '' AS subject, toUInt32(b) AS b, toUInt32(count()) AS calls, toUInt32(sum(failed)) AS errors,
    quantileExact(0.95)(client) AS p95
FROM ({source}) WHERE caller = {literal(caller)} AND (callee = {name} OR hint = {name}) GROUP BY b ORDER BY b""",
            row=_Red,
        )
        whole = [row for row in rows if _is_whole(row, window, step_s=SHORT_STEP_S)]
        return _red_series(f"{caller} -> {callee}", whole, step_s=SHORT_STEP_S)

    async def _metrics(self, asking: Asking, metrics: Sequence[MetricName], window: Window) -> list[Series]:
        services = sorted({service for service, _, _ in metrics})
        stretch, _ = self._stretch(asking, window, services=services)
        wanted = set(metrics)
        found: list[Series] = []
        for table in _TABLES:
            if asking.shape.has(table):
                rows = await asking.rows(_query(asking, table, stretch), row=_Row)
                found += [_metric(one) for one in _series(rows, table=table) if _key(one) in wanted]
        return found


def _is_whole(row: _Red, window: Window, *, step_s: int) -> bool:
    """Tell whether a bucket lies in the window with both ends: half of one looks like a fall of traffic."""
    return window.start.timestamp() <= row.b and row.b + step_s <= window.end.timestamp()


def _key(one: MetricSeries) -> MetricName:
    return one.service, one.metric, one.attributes


def _metric(one: MetricSeries) -> Series:
    shown = ", ".join(f"{key}={value}" for key, value in one.attributes)
    unit: Unit = "bytes" if one.unit in _BYTES else "s" if one.unit == "s" else "number"
    moments = [datetime.fromtimestamp(at, tz=UTC) for at in one.times]
    return Series(
        subject=one.service,
        measure=f"{one.metric}{{{shown}}}" if shown else one.metric,
        unit=unit,
        points=tuple(zip(moments, one.values, strict=True)),
    )


def _red_series(subject: str, rows: Sequence[_Red], *, step_s: int) -> list[Series]:
    if not rows:
        return []
    times = [datetime.fromtimestamp(row.b, tz=UTC) for row in rows]
    shares = [row.errors / row.calls if row.calls else 0.0 for row in rows]
    slow = [row.p95 if row.p95 is not None and math.isfinite(row.p95) else 0.0 for row in rows]
    rates = [row.calls / step_s for row in rows]
    measures: list[tuple[str, Unit, list[float]]] = [
        ("error share", "share", shares),
        ("p95 latency", "ms", slow),
        ("calls", "per_s", rates),
    ]
    return [
        Series(subject=subject, measure=measure, unit=unit, points=tuple(zip(times, values, strict=True)))
        for measure, unit, values in measures
    ]
