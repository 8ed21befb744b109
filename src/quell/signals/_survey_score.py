"""How much a row matters: effect size x significance, after floors; one scale, about 0 to 10, for every kind.

A total failure of a busy operation scores near 10, a doubling of latency near 2, noise 0.
"""

from __future__ import annotations

import math
from datetime import timedelta

from quell.domain import (
    AttributeDiff,
    ChangeKind,
    EdgeShift,
    Exemplar,
    FlowBreak,
    MetricShift,
    Observation,
    ObservedChange,
    OperationShift,
    PatternShift,
    Window,
)

EFFECT_MAX = 10.0
_RATE_FLOOR = 0.01
_LATENCY_RATIO_FLOOR = 1.3
_LATENCY_FLOOR_MS = 10.0
_TRAFFIC_DOUBLINGS_FLOOR = 0.8
_CALLS_FOR_TRAFFIC = 20
_LATE_ERRORS_MIN = 3
_PATTERN_WEIGHT = {"fatal": 1.0, "error": 0.9, "warn": 0.5, "info": 0.25, "debug": 0.1, "trace": 0.1}
_CHANGE_WEIGHT = {
    ChangeKind.DEPLOY: 5.0,
    ChangeKind.FLAG: 5.0,
    ChangeKind.CONFIG: 5.0,
    ChangeKind.EXIT: 5.0,
    ChangeKind.SCALE: 4.0,
    ChangeKind.RESTART: 3.0,
    ChangeKind.OTHER: 3.0,
}
_CHANGE_LEAD = timedelta(minutes=2)
_WEIGHT_OF_KIND = {"server": 1.0, "consumer": 1.0, "client": 0.8, "producer": 0.8, "internal": 0.6}


def score_of(row: Observation, *, window: Window, baseline: Window) -> float:
    """Weigh one row; rounded to three decimals so that equal rows weigh the same everywhere."""
    return round(max(0.0, _weigh(row, window=window, baseline=baseline)), 3)


def _weigh(row: Observation, *, window: Window, baseline: Window) -> float:
    if isinstance(row, OperationShift):
        return _operation(row, window=window, baseline=baseline)
    if isinstance(row, EdgeShift):
        return _edge(row)
    if isinstance(row, PatternShift):
        return _pattern(row, window=window, baseline=baseline)
    if isinstance(row, MetricShift):
        return _metric(row)
    if isinstance(row, ObservedChange):
        near = row.at >= window.start - _CHANGE_LEAD
        return _CHANGE_WEIGHT[row.change] * (1.0 if near else 0.3)
    return _rest(row)


def _rest(row: AttributeDiff | FlowBreak | Exemplar) -> float:
    if isinstance(row, AttributeDiff):
        bad, good = row.bad / max(1, row.bad_total), row.good / max(1, row.good_total)
        lift = min(bad - good, bad - row.bad_share_before) if row.bad_share_before else bad - good
        z = two_shares_z(row.bad, row.bad_total, row.good, row.good_total)
        return 0.5 * EFFECT_MAX * max(0.0, lift) * certainty(z)
    if isinstance(row, FlowBreak):
        step = abs(row.share - row.share_before)
        return 0.7 * EFFECT_MAX * step * (1 - math.exp(-row.support / 20))
    return 0.5


def error_score(errors: int, calls: int, errors_before: int, calls_before: int) -> float:
    """Weigh a rise of a share of failures."""
    if not calls:
        return 0.0
    rise = errors / calls - (errors_before / calls_before if calls_before else 0.0)
    if rise < _RATE_FLOOR:
        return 0.0
    return EFFECT_MAX * math.sqrt(rise) * certainty(two_shares_z(errors, calls, errors_before, calls_before))


def late_error_score(failed: int | None, taken: int | None, failed_before: int, taken_before: int) -> float:
    """Weigh failures that only the end of the window holds; their beginning was chosen, so a few may be chance."""
    if failed is None or not taken or failed < _LATE_ERRORS_MIN:
        return 0.0
    return error_score(failed, taken, failed_before, taken_before)


def latency_score(after_ms: float, before_ms: float, *, calls: int, calls_before: int) -> float:
    """Weigh a rise of a duration: doublings, above a relative and an absolute floor."""
    if calls < 3 or calls_before < 3:
        return 0.0
    rise_ms, ratio = after_ms - before_ms, (after_ms + 1.0) / (before_ms + 1.0)
    if rise_ms < _LATENCY_FLOOR_MS or ratio < _LATENCY_RATIO_FLOOR:
        return 0.0
    support = 1 - math.exp(-calls / 10)
    return min(EFFECT_MAX, 2 * math.log2(ratio)) * support * min(1.0, 0.3 + rise_ms / 70)


def traffic_score(calls: int, calls_before: int, *, seconds: float, seconds_before: float) -> float:
    """Weigh a change of the rate of calls, in doublings either way."""
    expected = calls_before * seconds / seconds_before
    if max(expected, calls) < _CALLS_FOR_TRAFFIC:
        return 0.0
    doublings = abs(math.log2((calls + 1) / (expected + 1)))
    if doublings < _TRAFFIC_DOUBLINGS_FLOOR:
        return 0.0
    return min(0.8 * EFFECT_MAX, 1.5 * doublings)


def two_shares_z(part: int, whole: int, part_before: int, whole_before: int) -> float:
    """Return how many standard errors two shares lie apart, with one success and one failure added to each."""
    p, q = (part + 1) / (whole + 2), (part_before + 1) / (whole_before + 2)
    spread = math.sqrt(p * (1 - p) / (whole + 2) + q * (1 - q) / (whole_before + 2))
    return (p - q) / spread


def certainty(z: float) -> float:
    """Turn standard errors into a weight between 0 and 1."""
    return min(1.0, max(0.0, (z - 1.5) / 4.5))


def _operation(row: OperationShift, *, window: Window, baseline: Window) -> float:
    mean, mean_before = row.total_ms / max(1, row.calls), row.total_ms_before / max(1, row.calls_before)
    slow = max(
        latency_score(row.p95_ms, row.p95_ms_before, calls=row.calls, calls_before=row.calls_before),
        latency_score(mean, mean_before, calls=row.calls, calls_before=row.calls_before),
    )
    wrong = max(
        error_score(row.errors, row.calls, row.errors_before, row.calls_before),
        late_error_score(row.errors_since, row.calls_since, row.errors_before, row.calls_before),
    )
    flow = traffic_score(row.calls, row.calls_before, seconds=window.seconds, seconds_before=baseline.seconds)
    return _WEIGHT_OF_KIND[row.span_kind] * max(slow, wrong, 0.7 * flow)


def _edge(row: EdgeShift) -> float:
    calls, before = row.calls, row.calls_before
    slow = latency_score(row.client_ms, row.client_ms_before, calls=calls, calls_before=before)
    gap = latency_score(row.gap_ms or 0.0, row.gap_ms_before or 0.0, calls=calls, calls_before=before)
    wrong = error_score(row.errors, calls, row.errors_before, before)
    lost = error_score(row.unanswered, calls, row.unanswered_before, before)
    failed_before = max(row.errors_before, row.unanswered_before)
    late = late_error_score(row.failed_since, row.calls_since, failed_before, before)
    return max(0.8 * slow, gap, 0.9 * wrong, lost, 0.9 * late)


def _pattern(row: PatternShift, *, window: Window, baseline: Window) -> float:
    weight = _PATTERN_WEIGHT[row.severity]
    expected = row.count_before * window.seconds / baseline.seconds
    if row.is_new:
        return (
            weight * min(EFFECT_MAX, 3 + math.log2(1 + row.count)) if row.count > 1 or weight >= 0.9 else 0.3 * weight
        )
    doublings = math.log2((row.count + 1) / (expected + 1))
    noise = abs(row.count - expected) / math.sqrt(row.count + expected * (1 + window.seconds / baseline.seconds) + 1)
    return weight * min(EFFECT_MAX, 1.5 * abs(doublings)) * certainty(noise) * (1.0 if doublings > 0 else 0.6)


def _metric(row: MetricShift) -> float:
    effect = min(7.0, 1.6 * math.log2(1 + row.score))
    if row.limit:
        full = max(row.after, row.peak) / row.limit
        effect *= 1.4 if full >= 0.9 else 1.1 if full >= 0.7 else 0.7
    return min(EFFECT_MAX, effect * (0.6 if row.shape in {"spike", "appeared"} else 1.0))
