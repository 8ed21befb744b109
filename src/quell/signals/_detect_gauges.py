"""Judge metrics that say how full something is: memory, pools, descriptors, disks, queues, clocks, certificates."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quell.domain import Severity, Symptom, seconds_of
from quell.signals._detect_signs import Floats, View
from quell.signals._detect_state import GaugeHistory, Sign
from quell.signals._reader_text import escape_line
from quell.signals._survey_lines import amount

_FREE = re.compile(r"^(idle|free|available|unused)$")
_POINTS_MIN = 2
_FRESH_S = 15.0
_FULL = 0.9
_FULL_BEFORE = 0.8
_CPU_SUSTAINED_S = 9.0
_FORECAST_S = 120.0
_FORECAST_LOOKBACK_S = 30.0
_FORECAST_SHARE = 0.4
_FORECAST_FIT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What a rule says of one series."""

    strength: float
    value: float
    expected: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A series, cut into its past and its newest points."""

    times: Floats
    newest: Floats
    past: Floats
    now_times: Floats
    now: Floats


Rule = Callable[[GaugeHistory, _Split], _Judged | None]


def signs_of_gauges(gauges: Sequence[GaugeHistory], *, view: View) -> list[Sign]:
    """Judge every series of one service by the first rule that fits its name."""
    signs = []
    for gauge in gauges:
        split = _split(gauge, view=view)
        if split is None or any(_FREE.match(value) for _, value in gauge.attributes):
            continue
        for symptom, rule in _rules_of(gauge):
            judged = rule(gauge, split)
            if judged is not None and judged.strength >= 0.5:
                signs.append(_sign(gauge, judged, symptom=symptom, split=split))
    return signs


def _split(gauge: GaugeHistory, *, view: View) -> _Split | None:
    times, values = np.asarray(gauge.times), np.asarray(gauge.values) / _per_rule_unit(gauge)
    fresh = (times > view.at - _FRESH_S) & (times <= view.at + 1)
    past = view.is_baseline(times) & (times < view.at - _FORECAST_LOOKBACK_S - 5)
    if fresh.sum() < _POINTS_MIN or past.sum() < _POINTS_MIN or view.at - times[0] < view.settings.warmup_s:
        return None
    lookback = times > view.at - _FORECAST_LOOKBACK_S
    return _Split(
        times=times[lookback], newest=values[lookback], past=values[past], now_times=times[fresh], now=values[fresh]
    )


def _per_rule_unit(gauge: GaugeHistory) -> float:
    """Return how many of the gauge's unit make one of what the rules count in: seconds, and parts of a core."""
    if gauge.limit is not None:
        return 1.0  # both are told in the same unit
    return 100.0 if gauge.unit in {"%", "percent"} and "cpu" in gauge.metric.lower() else 1 / seconds_of(gauge.unit)


def _rules_of(gauge: GaugeHistory) -> list[tuple[Symptom, Rule]]:
    name = gauge.metric.lower().replace("_", ".")
    for pattern, symptom, rule in _BY_NAME:
        if pattern.search(name):
            return [(symptom, rule)]
    if gauge.limit is not None and gauge.limit > 0:
        return [(Symptom.SATURATION, _full), (Symptom.SATURATION, _forecast)]
    return [(Symptom.SATURATION, rule) for pattern, rule in _WITHOUT_LIMIT if pattern.search(name)][:1]


def _full(gauge: GaugeHistory, split: _Split) -> _Judged | None:
    assert gauge.limit is not None
    share, usual = float(split.now[-_POINTS_MIN:].min()) / gauge.limit, float(np.median(split.past)) / gauge.limit
    if usual >= _FULL_BEFORE:
        return None
    return _Judged(
        strength=share / _FULL if share >= _FULL_BEFORE else 0.0,
        value=share,
        expected=usual,
        what=_of_limit(gauge, share),
    )


def _forecast(gauge: GaugeHistory, split: _Split) -> _Judged | None:
    """Fit a line through the newest half minute: a leak that reaches the limit soon is trouble now."""
    assert gauge.limit is not None
    times, values = split.times, split.newest
    if len(times) < 4 or values[-1] < _FORECAST_SHARE * gauge.limit or np.ptp(times) < _FORECAST_LOOKBACK_S / 2:
        return None
    slope, start = np.polyfit(times - times[0], values, 1)
    spread = float(np.var(values))
    if slope <= 0 or spread == 0 or np.ptp(values) < 0.08 * gauge.limit or values[-1] <= split.past.max():
        return None
    fit = 1 - float(np.var(values - (start + slope * (times - times[0])))) / spread
    left_s = (gauge.limit - float(values[-1])) / float(slope)
    if fit < _FORECAST_FIT or left_s > _FORECAST_S:
        return None
    share, usual = float(values[-1]) / gauge.limit, float(np.median(split.past)) / gauge.limit
    return _Judged(
        strength=1.0 + _FORECAST_S / (left_s + 60),
        value=share,
        expected=usual,
        what=f"{_of_limit(gauge, share)}, full in {max(0.0, left_s):.0f} s",
    )


def _of_limit(gauge: GaugeHistory, share: float) -> str:
    assert gauge.limit is not None
    return f"{share:.0%} of {amount(gauge.limit, unit=gauge.unit)}"


def _cpu(_gauge: GaugeHistory, split: _Split) -> _Judged | None:
    usual = float(np.median(split.past))
    held = split.now_times[-1] - split.now_times[0] >= _CPU_SUSTAINED_S
    level = float(split.now.min())
    if not held or usual >= 0.7 or level < usual + 0.25:
        return None
    return _Judged(
        strength=level / _FULL, value=level, expected=usual, what=f"{level:.0%} of a core, usually {usual:.0%}"
    )


def _waiting(gauge: GaugeHistory, split: _Split) -> _Judged | None:
    return _above(gauge, split, threshold=max(3.0, 3 * float(np.quantile(split.past, 0.95)) + 3))


def _age(gauge: GaugeHistory, split: _Split) -> _Judged | None:
    return _above(gauge, split, threshold=max(15.0, 4 * float(np.quantile(split.past, 0.95)) + 10))


def _depth(gauge: GaugeHistory, split: _Split) -> _Judged | None:
    judged = _above(gauge, split, threshold=max(30.0, 3 * float(np.quantile(split.past, 0.95)) + 20))
    grows = split.newest[-1] >= 1.1 * split.newest[0]
    if judged is None or grows:
        return judged
    return _Judged(strength=min(0.9, judged.strength), value=judged.value, expected=judged.expected, what=judged.what)


def _above(gauge: GaugeHistory, split: _Split, *, threshold: float) -> _Judged | None:
    level, usual = float(split.now[-_POINTS_MIN:].min()), float(np.median(split.past))
    unit = "s" if seconds_of(gauge.unit) != 1 else gauge.unit
    what = f"{amount(level, unit=unit)}, usually {amount(usual, unit=unit)}"
    return _Judged(strength=level / threshold, value=level, expected=usual, what=what)


def _clock(_gauge: GaugeHistory, split: _Split) -> _Judged | None:
    off, usual = float(np.abs(split.now[-_POINTS_MIN:]).min()), float(np.median(np.abs(split.past)))
    return _Judged(
        strength=off / max(1.0, 4 * usual), value=off, expected=usual, what=f"off by {off:.1f} s, usually {usual:.2f} s"
    )


def _expiry(_gauge: GaugeHistory, split: _Split) -> _Judged | None:
    left, usual = float(split.now[-1]), float(np.median(split.past))
    if left > 0 or usual <= 0:
        return None
    return _Judged(strength=2.0, value=left, expected=usual, what=f"expired {-left:.0f} s ago")


_BY_NAME: tuple[tuple[re.Pattern[str], Symptom, Rule], ...] = (
    (re.compile(r"clock.*(offset|skew|drift)"), Symptom.OTHER, _clock),
    (re.compile(r"cert.*(expiry|expiration|not.after)"), Symptom.OTHER, _expiry),
    (
        re.compile(r"(oldest|max)\.(.*\.)?age(\.|$)|age\.of\.oldest|lag\.(.*\.)?(seconds|age)(\.|$)"),
        Symptom.SATURATION,
        _age,
    ),
    (re.compile(r"pending|waiting|blocked"), Symptom.SATURATION, _waiting),
)
_WITHOUT_LIMIT: tuple[tuple[re.Pattern[str], Rule], ...] = (
    (re.compile(r"cpu.*utili[sz]ation"), _cpu),
    (re.compile(r"queue|backlog|lag$|depth"), _depth),
)
JUDGED_NAMES = r"(?i)clock|cert|age|lag|pending|waiting|blocked|cpu|queue|backlog|depth|usage|limit|max|count|size|capacity|open|used"
"""Metric names that some rule or limit may concern; all others need not be read."""


def _sign(gauge: GaugeHistory, judged: _Judged, *, symptom: Symptom, split: _Split) -> Sign:
    middle = (float(np.median(split.past)) + float(split.newest[-1])) / 2
    places = np.flatnonzero((split.newest >= middle) != (split.newest[-1] >= middle))
    begin = int(places[-1]) + 1 if len(places) else 0
    name = escape_line(gauge.metric, chars_max=80)
    return Sign(
        service=gauge.service,
        symptom=symptom,
        severity=Severity.CRITICAL if judged.strength >= 1.1 else Severity.WARNING,
        strength=judged.strength,
        value=round(judged.value, 4),
        expected=round(judged.expected, 4),
        since=float(split.times[min(begin, len(split.times) - 1)]),
        name=f"{name} near its limit" if gauge.limit else name,
        summary=f"{name} {judged.what}",
        labels=(("metric", gauge.metric), *gauge.attributes),
    )
