"""metric_shifts: gauges as they are, monotonic sums as rates, histograms as means; per series, across restarts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from quell.domain import Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_attributes import has_rows
from quell.signals._clickhouse_sources import SHORT_STEP_S, Stretch, stretch_of
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_families import Series
from quell.signals._reader_replicas import instance_of, join_replicas, worst_of
from quell.signals._reader_shifts import find_shifts

_SERIES_MAX = 5000
_POINTS_MAX = 4000
_DELTA = 1
_COUNTED_MAX_S = 3600.0
"""An increment that claims to be counted over longer than this has no start."""
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
    """Time, value or sum, count; of a sum, the seconds since its start."""


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
    told_s = "toFloat64(toUnixTimestamp64Milli(TimeUnix) - toUnixTimestamp64Milli(StartTimeUnix)) / 1000"
    count = {"otel_metrics_histogram": "toFloat64(Count)", "otel_metrics_sum": told_s}.get(table, "toFloat64(0)")
    monotonic = {"otel_metrics_sum": "toUInt8(max(IsMonotonic))"}.get(table, "toUInt8(0)")
    temporality = {"otel_metrics_gauge": "toInt32(0)"}.get(table, "max(AggregationTemporality)")
    # A new instance id after a restart must not make a new series, yet two instances must not mix their counters. A counter
    # that tells increments starts anew with every point, and the start of a gauge means nothing.
    start = f"if(AggregationTemporality = {_DELTA}, 0, toUnixTimestamp64Milli(StartTimeUnix))"
    process = instance_of("ResourceAttributes") + ("" if table == "otel_metrics_gauge" else f", {start}")
    return f"""SELECT toString(ServiceName) AS service, MetricName AS metric, MetricUnit AS unit,
    arraySort(CAST(Attributes, 'Array(Tuple(String, String))')) AS attributes,
    {monotonic} AS monotonic, {temporality} AS temporality,
    arraySlice(arraySort(groupArray((toUnixTimestamp64Milli(TimeUnix) / 1000, {value}, {count}))), 1, {_POINTS_MAX}) AS points
FROM {table}
WHERE {time} AND {stretch.scoped("ServiceName")} AND isFinite({value})
GROUP BY service, metric, unit, attributes, {process}
ORDER BY service, metric, unit, attributes, {process}
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
            points, unit = join_replicas([_rates(row) for row in members], by="sum"), f"{unit or '1'}/s"  # noqa: PLW2901 - a rate has its own unit
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
    """Take, of several instances, the one in trouble at each moment."""
    parts: list[_Points] = []
    for row in members:
        points: _Points = {}
        for at, value, _ in row.points:
            slot = _slot(at)
            points[slot] = max(points.get(slot, value), value)
        parts.append(points)
    return join_replicas(parts, by=worst_of(members[0].metric))


def _rates(row: _Row) -> _Points:
    """Turn a counter of one process into a rate; a first value after a start counts from nothing known."""
    if row.temporality == _DELTA:
        return _rates_of_increments(row)
    if len(row.points) < 2:
        return {}
    times = np.array([at for at, _, _ in row.points])
    gaps, steps = np.diff(times), np.diff(np.array([value for _, value, _ in row.points]))
    fit = (gaps > 0) & (steps >= 0)
    rates = np.divide(steps, gaps, out=np.zeros(len(gaps)), where=gaps > 0)
    return {_slot(float(at)): float(rate) for at, rate in zip(times[1:][fit], rates[fit], strict=True)}


def _rates_of_increments(row: _Row) -> _Points:
    """Divide each increment by the time that it was counted in: as the point tells it, else since the point before."""
    points: _Points = {}
    for place, (at, value, told_s) in enumerate(row.points):
        since_s = at - row.points[place - 1][0] if place else 0.0
        counted_s = told_s if 0 < told_s <= _COUNTED_MAX_S else since_s
        if counted_s > 0 and value >= 0:
            points[_slot(at)] = value / counted_s
    return points


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
