"""Curves as inline SVG: drawn here, so that a report needs no script and no request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from quell.domain import Window, one_line
from quell.incidents._model import CaseFile, Curve
from quell.incidents._words import amount_of, clock_of

_WIDTH = 440.0
_HEIGHT = 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 10.0, 10.0, 24.0
_TICKS = 3
_TIME_TICKS = 4
_BAND = (0.05, 0.95)
_MARKS_MAX = 6
_GAP_FACTOR = 4.0
_CHARTS_MAX = 8
_SPREAD_MIN = {"share": 0.02, "ms": 10.0, "per_s": 1.0}
"""Less than this is noise, whatever the baseline kept."""
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_HEADROOM = 1.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A moment drawn as an upright line."""

    x: float
    label: str
    kind: str
    """`onset`, or the kind of a timeline entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One curve, laid out: everything the template needs is a number or a safe word."""

    title: str
    measure: str
    now: str
    """Worst value in the window in trouble."""
    before: str
    """Median of the baseline."""
    is_off: bool
    """Whether that worst value lies well outside what the baseline kept."""
    described: str
    """The same in a sentence, for people who do not see it."""
    paths: tuple[str, ...]
    areas: tuple[str, ...]
    band: tuple[float, float] | None
    """Top and height of the range that the baseline kept."""
    trouble: tuple[float, float]
    """Left and width of the window in trouble."""
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM


def telling_curves(case: CaseFile) -> tuple[Curve, ...]:
    """Return the curves that show something, at most a page of them: those that left their usual range first."""
    plan = case.plan
    if plan is None:
        return ()
    named = case.finding.subject.name if case.finding and case.finding.subject else ""
    ranked = sorted(
        (curve for curve in case.curves if len(curve.points) > 1),
        key=lambda curve: (
            -_departure(curve, plan.window) * (2 if curve.subject == named else 1),
            curve.subject,
            curve.measure,
        ),
    )
    kept = set(ranked[:_CHARTS_MAX])
    return tuple(curve for curve in case.curves if curve in kept)


def _departure(curve: Curve, trouble: Window) -> float:
    """Say how far a curve left its usual range, in widths of that range."""
    quiet = sorted(value for at, value in curve.points if at < trouble.start)
    loud = [value for at, value in curve.points if at >= trouble.start]
    if not quiet or not loud:
        return 0.0
    usual = quiet[len(quiet) // 2]
    spread = max(quiet[-1] - quiet[0], _SPREAD_MIN.get(curve.unit, 0.1 * abs(usual)), 1e-9)
    return max(abs(value - usual) for value in loud) / spread


def charts_of(case: CaseFile) -> tuple[Chart, ...]:
    """Lay out the curves that tell something."""
    plan = case.plan
    if plan is None:
        return ()
    drawn = telling_curves(case)
    if not drawn:
        return ()
    start = min(curve.points[0][0] for curve in drawn)
    end = max(curve.points[-1][0] for curve in drawn)
    if end <= start:
        return ()
    span = Window(start=start, end=end)
    marks = _marks(case, span)
    return tuple(_chart(curve, span=span, trouble=plan.window, marks=marks) for curve in drawn)


def _marks(case: CaseFile, span: Window) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    finding = case.finding
    if finding and finding.since and span.start <= finding.since <= span.end:
        marks.append(Mark(x=_x(finding.since, span), label=f"{clock_of(finding.since)} it began", kind="onset"))
    for entry in case.timeline:
        if entry.kind == "change" and span.start <= entry.at <= span.end:
            label = f"{clock_of(entry.at)} {one_line(entry.text, chars_max=80)}"
            marks.append(Mark(x=_x(entry.at, span), label=label, kind="change"))
    return tuple(marks[:_MARKS_MAX])


def _chart(curve: Curve, *, span: Window, trouble: Window, marks: tuple[Mark, ...]) -> Chart:
    values = [value for _, value in curve.points]
    quiet = sorted(value for at, value in curve.points if at < trouble.start)
    loud = [value for at, value in curve.points if at >= trouble.start] or values
    ticks = _ticks(min(0.0, *values), max(values) * _HEADROOM, unit=curve.unit)
    low, high = ticks[0], ticks[-1]
    usual = quiet[len(quiet) // 2] if quiet else None
    extreme = max(loud, key=lambda value: abs(value - (usual or 0.0)))
    left, right = _x(max(trouble.start, span.start), span), _x(min(trouble.end, span.end), span)
    runs = _runs(curve.points)
    before = amount_of(usual, curve.unit) if usual is not None else "unknown"
    now = amount_of(extreme, curve.unit)
    title, measure = one_line(curve.subject, chars_max=60), one_line(curve.measure, chars_max=60)
    return Chart(
        title=title,
        measure=measure,
        now=now,
        before=before,
        described=f"{measure} of {title}: usually {before}, most extreme {now} in the window in trouble",
        paths=tuple(_path(run, span, low, high) for run in runs),
        areas=tuple(_area(run, span, low, high) for run in runs if len(run) > 1),
        band=_band(quiet, low, high),
        trouble=(left, max(0.0, right - left)),
        y_ticks=tuple((_y(value, low, high), amount_of(value, curve.unit)) for value in ticks),
        is_off=_is_off(extreme, quiet),
        x_ticks=_x_ticks(span),
        marks=marks,
    )


def _ticks(low: float, high: float, *, unit: str) -> list[float]:
    """Return round numbers that enclose low..high."""
    if high <= low:
        high = low + (0.03 if unit == "share" else 1.0)
    scale = 1024 ** int(math.log(max(abs(low), abs(high), 1), 1024)) if unit == "bytes" else 1
    rough = (high - low) / scale / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor for factor in _ROUND if factor * power >= rough) * power * scale
    first = math.floor(low / step)
    ticks = [first * step]
    while ticks[-1] < high and len(ticks) <= _TICKS + 1:
        ticks.append((first + len(ticks)) * step)
    if unit == "share" and high <= _HEADROOM:
        ticks = [tick for tick in ticks if tick <= 1.0] + ([1.0] if ticks[-1] > 1.0 else [])
    return ticks


def _is_off(extreme: float, quiet: Sequence[float]) -> bool:
    if len(quiet) < 3:
        return False
    least, most = quiet[0], quiet[-1]
    room = max(most - least, 0.1 * abs(most))
    return extreme > most + room or extreme < least - room


def _x_ticks(span: Window) -> tuple[tuple[float, str], ...]:
    step = (span.end - span.start) / _TIME_TICKS
    moments = [span.start + step * i for i in range(_TIME_TICKS + 1)]
    return tuple((_x(at, span), clock_of(at)) for at in moments)


def _band(quiet: Sequence[float], low: float, high: float) -> tuple[float, float] | None:
    if len(quiet) < 3:
        return None
    bottom, top = (quiet[min(len(quiet) - 1, int(share * len(quiet)))] for share in _BAND)
    y_top, y_bottom = _y(top, low, high), _y(bottom, low, high)
    return round(y_top - 1, 2), round(max(2.0, y_bottom - y_top + 2), 2)


def _runs(points: Sequence[tuple[datetime, float]]) -> list[list[tuple[datetime, float]]]:
    """Cut a curve where points are missing: a line over a hole would claim what nobody measured."""
    steps = sorted((b[0] - a[0]).total_seconds() for a, b in pairwise(points))
    usual = steps[len(steps) // 2] if steps else 0.0
    runs: list[list[tuple[datetime, float]]] = [[points[0]]]
    for before, point in pairwise(points):
        if (point[0] - before[0]).total_seconds() > _GAP_FACTOR * usual:
            runs.append([])
        runs[-1].append(point)
    return runs


def _path(run: Sequence[tuple[datetime, float]], span: Window, low: float, high: float) -> str:
    return "M" + " L".join(f"{_x(at, span)} {_y(value, low, high)}" for at, value in run)


def _area(run: Sequence[tuple[datetime, float]], span: Window, low: float, high: float) -> str:
    floor = _y(max(low, 0.0), low, high)
    return f"{_path(run, span, low, high)} L{_x(run[-1][0], span)} {floor} L{_x(run[0][0], span)} {floor} Z"


def _x(at: datetime, span: Window) -> float:
    share = (at - span.start).total_seconds() / span.seconds
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)


def _y(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low)
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 2)
