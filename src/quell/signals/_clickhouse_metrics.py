"""metric_shifts: gauges as they are, monotonic sums as rates, histograms as means; per series, across restarts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from quell.domain import Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_attributes import has_rows
from quell.signals._clickhouse_sources import SHORT_STEP_S, Stretch, stretch_of
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_families import Series
from quell.signals._reader_shifts import find_shifts

_SERIES_MAX = 5000
_POINTS_MAX = 4000
_DELTA = 1
_TABLES = ("otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram")
_Key = tuple[str, str, str, tuple[tuple[str, str], ...]]
_Points = dict[float, float]


class _Row(msgspec.Struct):
    service: str
    metric: str
    unit: str
    attributes: list[tuple[str, str]]
    monotonic: int
    temporality: int
    points: list[tuple[float, float, float]]
    """Time, value or sum, count."""


async def metric_shifts(asking: Asking, question: Question) -> Asked:
    """Read every series of the asked services and scan them for what moved."""
    present = [table for table in _TABLES if asking.shape.has(table)]
    if not present:
        raise CannotAnswerError("unsupported", "there are no metric tables here")
    stretch = stretch_of(question, step_s=SHORT_STEP_S, now=asking.now, hidden=asking.hidden)
    queries, series, partial = [], [], ""
    for table in present:
        asking.shape.require(table)
        sql = _query(asking, table, stretch)
        queries.append(sql)
        rows = await asking.rows(sql, row=_Row)
        if len(rows) > _SERIES_MAX:
            partial = f"only the first {_SERIES_MAX} series of {table} were compared"
        series.extend(_series(rows[:_SERIES_MAX], table=table))
    query = ";\n".join(queries)
    if not series and not any([await has_rows(asking, stretch, table=table, column="TimeUnix") for table in present]):
        raise asking.empty("no metrics from anybody that was asked about", query)
    shifts = find_shifts(series, window=question.window, baseline=question.baseline)
    return Asked(rows=tuple(shifts), query=query, partial=partial)


def _query(asking: Asking, table: str, stretch: Stretch) -> str:
    time = asking.shape.raw_time(table, column="TimeUnix", begin=stretch.before_from, end=stretch.end)
    value = {"otel_metrics_histogram": "Sum"}.get(table, "Value")
    count = {"otel_metrics_histogram": "toFloat64(Count)"}.get(table, "toFloat64(0)")
    monotonic = {"otel_metrics_sum": "toUInt8(max(IsMonotonic))"}.get(table, "toUInt8(0)")
    temporality = {"otel_metrics_gauge": "toInt32(0)"}.get(table, "max(AggregationTemporality)")
    # A new instance id after a restart must not make a new series, yet two instances must not mix their counters.
    return f"""SELECT toString(ServiceName) AS service, MetricName AS metric, MetricUnit AS unit,
    arraySort(CAST(Attributes, 'Array(Tuple(String, String))')) AS attributes,
    {monotonic} AS monotonic, {temporality} AS temporality,
    arraySlice(arraySort(groupArray((toUnixTimestamp64Milli(TimeUnix) / 1000, {value}, {count}))), 1, {_POINTS_MAX}) AS points
FROM {table}
WHERE {time} AND {stretch.scoped("ServiceName")} AND isFinite({value})
GROUP BY service, metric, unit, attributes, ResourceAttributes['service.instance.id'], StartTimeUnix
ORDER BY service, metric, unit, attributes, ResourceAttributes['service.instance.id'], StartTimeUnix
LIMIT {_SERIES_MAX + 1}"""


def _series(rows: Sequence[_Row], *, table: str) -> list[Series]:
    grouped: dict[_Key, list[_Row]] = defaultdict(list)
    for row in rows:
        grouped[row.service, row.metric, row.unit, tuple(row.attributes)].append(row)
    series = []
    for (service, metric, unit, attributes), members in sorted(grouped.items()):
        if table == "otel_metrics_histogram":
            points = _means(members)
        elif members[0].monotonic:
            points, unit = _sums(_rates(row) for row in members), f"{unit or '1'}/s"  # noqa: PLW2901 - a rate has its own unit
        else:
            points = _tops(members)
        if points:
            times = sorted(points)
            series.append(
                Series(
                    service=service,
                    metric=metric,
                    unit=unit,
                    attributes=attributes,
                    times=tuple(times),
                    values=tuple(points[at] for at in times),
                )
            )
    return series


def _slot(at: float) -> float:
    return float(at // SHORT_STEP_S * SHORT_STEP_S)


def _tops(members: Sequence[_Row]) -> _Points:
    """Take, of several instances, the fullest at each moment."""
    points: _Points = {}
    for row in members:
        for at, value, _ in row.points:
            slot = _slot(at)
            points[slot] = max(points.get(slot, value), value)
    return points


def _rates(row: _Row) -> _Points:
    """Turn a counter of one process into a rate; a first value after a start counts from nothing known."""
    if len(row.points) < 2:
        return {}
    times = np.array([at for at, _, _ in row.points])
    values = np.array([value for _, value, _ in row.points])
    gaps = np.diff(times)
    steps = values[1:] if row.temporality == _DELTA else np.diff(values)
    fit = (gaps > 0) & (steps >= 0)
    rates = np.divide(steps, gaps, out=np.zeros(len(gaps)), where=gaps > 0)
    return {_slot(float(at)): float(rate) for at, rate in zip(times[1:][fit], rates[fit], strict=True)}


def _sums(parts: Iterable[_Points]) -> _Points:
    points: _Points = defaultdict(float)
    for part in parts:
        for at, rate in part.items():
            points[at] += rate
    return dict(points)


def _means(members: Sequence[_Row]) -> _Points:
    """Average what was recorded between two exports, over all instances."""
    sums: _Points = defaultdict(float)
    counts: _Points = defaultdict(float)
    for row in members:
        before = (0.0, 0.0)
        for place, (at, total, count) in enumerate(row.points):
            if row.temporality == _DELTA:
                step, more = total, count
            else:
                step, more = (total - before[0], count - before[1]) if place else (0.0, 0.0)
                before = (total, count)
            if more > 0:
                sums[_slot(at)] += step
                counts[_slot(at)] += more
    return {at: sums[at] / counts[at] for at in sums}
