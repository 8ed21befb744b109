"""error_rates and slow_operations: which operations fail, slow down or change their rate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import msgspec

from quell.domain import OperationShift, Question, QuestionKind
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_sources import Stretch, red_source, step_of, stretch_of
from quell.signals._reader_onset import find_onset, sum_since
from quell.signals._survey_score import error_score, late_error_score, latency_score, traffic_score

SpanKind = Literal["server", "client", "consumer", "producer", "internal"]
_KINDS: dict[str, SpanKind] = {
    "server": "server",
    "client": "client",
    "consumer": "consumer",
    "producer": "producer",
}
_COUNTED_KINDS = frozenset({"server", "consumer"})


class _Row(msgspec.Struct):
    service: str
    operation: str
    span_kind: str
    calls: int
    errors: int
    total_ms: float
    quantiles: list[float | None]
    calls_before: int
    errors_before: int
    total_ms_before: float
    quantiles_before: list[float | None]
    series: list[tuple[int, int, int, float]]


async def operation_shifts(asking: Asking, question: Question) -> Asked:
    """Compare every operation with its own past; per call, never per minute, except for the rate itself."""
    table, step_s = step_of(question, shape=asking.shape, short="quell_red_5s", long="quell_red_1m", now=asking.now)
    stretch = stretch_of(question, step_s=step_s, now=asking.now, hidden=asking.hidden)
    sql = f"""SELECT service, operation, span_kind,
    toUInt32(sumIf(c, {stretch.within})) AS calls, toUInt32(sumIf(e, {stretch.within})) AS errors,
    round(sumIf(d, {stretch.within}), 3) AS total_ms, quantilesTDigestMergeIf(0.5, 0.95)(q, {stretch.within}) AS quantiles,
    toUInt32(sumIf(c, {stretch.before})) AS calls_before, toUInt32(sumIf(e, {stretch.before})) AS errors_before,
    round(sumIf(d, {stretch.before}), 3) AS total_ms_before, quantilesTDigestMergeIf(0.5, 0.95)(q, {stretch.before}) AS quantiles_before,
    arraySort(groupArrayIf((toUInt32(b), toUInt32(c), toUInt32(e), round(d, 3)), {stretch.charted})) AS series
FROM ({red_source(asking.shape, table=table, stretch=stretch)})
GROUP BY service, operation, span_kind
ORDER BY service, operation, span_kind
SETTINGS max_threads = 1"""
    found = await asking.rows(sql, row=_Row)
    if not found:
        raise asking.empty("no spans from anybody that was asked about", sql)
    scored = []
    taken = _taken(found)
    for row in found:
        shift, score = _shift(row, question.kind, stretch_seconds=(stretch.seconds, stretch.seconds_before))
        if not score and not (row.errors and question.kind is QuestionKind.ERROR_RATES):
            continue
        shift, late = _dated(shift, row, question.kind, stretch=stretch)
        if score or late:
            calls, calls_before = taken.get(row.service, (0, 0))
            shift = replace(shift, service_calls=calls, service_calls_before=calls_before)
            scored.append((-max(score, late), shift))
    scored.sort(key=lambda item: (item[0], item[1].service, item[1].operation, item[1].span_kind))
    return Asked(rows=tuple(shift for _, shift in scored), query=sql)


def _taken(rows: list[_Row]) -> dict[str, tuple[int, int]]:
    """Return the calls that each service took, now and before: what did not move is left out of the answer, not here."""
    taken: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row.span_kind in _COUNTED_KINDS:
            calls, before = taken.get(row.service, (0, 0))
            taken[row.service] = (calls + row.calls, before + row.calls_before)
    return taken


def _shift(row: _Row, kind: QuestionKind, *, stretch_seconds: tuple[float, float]) -> tuple[OperationShift, float]:
    shift = OperationShift(
        service=row.service,
        operation=row.operation,
        span_kind=_KINDS.get(row.span_kind, "internal"),
        calls=row.calls,
        errors=row.errors,
        total_ms=round(row.total_ms, 1),
        p50_ms=_quantile(row.quantiles, 0),
        p95_ms=_quantile(row.quantiles, 1),
        calls_before=row.calls_before,
        errors_before=row.errors_before,
        total_ms_before=round(row.total_ms_before, 1),
        p50_ms_before=_quantile(row.quantiles_before, 0),
        p95_ms_before=_quantile(row.quantiles_before, 1),
    )
    calls, before = row.calls, row.calls_before
    if kind is QuestionKind.SLOW_OPERATIONS:
        mean, mean_before = row.total_ms / max(1, calls), row.total_ms_before / max(1, before)
        slower = latency_score(shift.p95_ms, shift.p95_ms_before, calls=calls, calls_before=before)
        return shift, max(slower, latency_score(mean, mean_before, calls=calls, calls_before=before))
    seconds, seconds_before = stretch_seconds
    flow = traffic_score(calls, before, seconds=seconds, seconds_before=seconds_before)
    return shift, max(
        error_score(row.errors, calls, row.errors_before, before), flow if row.span_kind in _COUNTED_KINDS else 0.0
    )


def _dated(shift: OperationShift, row: _Row, kind: QuestionKind, *, stretch: Stretch) -> tuple[OperationShift, float]:
    """Add since when, what came since, and the score of failures that only a part of the window holds."""
    begin, step_s = stretch.begin, stretch.step_s
    starts = [bucket for bucket, _, _, _ in row.series]
    calls, errors = [calls for _, calls, _, _ in row.series], [errors for _, _, errors, _ in row.series]
    weights = [float(n) for n in calls]
    late = 0.0
    if kind is QuestionKind.SLOW_OPERATIONS:
        since = find_onset(starts, [total for _, _, _, total in row.series], weights, window_start=begin, step_s=step_s)
    else:
        since = find_onset(starts, [float(n) for n in errors], weights, window_start=begin, step_s=step_s)
        failed, taken = sum_since(starts, errors, since), sum_since(starts, calls, since)
        late = late_error_score(failed, taken, shift.errors_before, shift.calls_before)
        if not late and not error_score(shift.errors, shift.calls, shift.errors_before, shift.calls_before):
            every = [at for at in range(starts[0], starts[-1] + step_s, step_s) if stretch.is_charted(at)]
            known = dict(zip(starts, weights, strict=True))
            rates = [known.get(start, 0.0) for start in every]
            since = find_onset(every, rates, [1.0] * len(every), window_start=begin, step_s=step_s)
    dated = replace(
        shift,
        since=since,
        calls_since=sum_since(starts, calls, since),
        errors_since=sum_since(starts, errors, since),
    )
    return dated, late


def _quantile(values: list[float | None], place: int) -> float:
    value = values[place] if place < len(values) else None
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else 0.0
