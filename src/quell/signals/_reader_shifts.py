"""Find the series that moved, how, and since when: a robust scan over every split, in numpy.

Values are measured in units of the baseline's own spread (median and MAD, clipped), floored per family of metric, so
that neither a steady series with a tiny spread nor a single spike wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quell.domain import MetricShift, Window
from quell.signals._reader_families import Limits, Series, floor_of, is_clockwork
from quell.signals._reader_replicas import REPLICA_LABELS

Floats = NDArray[np.float64]
_Family = tuple[str, str, tuple[tuple[str, str], ...]]
Shape = Literal["step", "spike", "trend", "gone", "appeared"]

_STEP_S = 5.0
_CELLS_MAX = 2000
_CLIP = 6.0
_MAD_TO_SIGMA = 1.4826
_EFFECT_MAX = 50.0
_POINTS_BEFORE_MIN = 3
_GUARD_CELLS = 2
_HELD_SHARE = 0.7
_LINE_FIT = 0.85
_LINE_BEATS_STEP = 0.6
_SPIKE_EFFECT = 2.0
_GONE_CADENCES = 3.0
_GONE_S = 20.0
_SIGNIFICANT = 4
_BLOCK = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Columns of equal length over baseline and window."""

    start: float
    step_s: float
    cells: int
    window_at: int
    """First column of the window."""
    baseline_until: int
    """First column after the baseline."""

    def column(self, time: float) -> int:
        return int((time - self.start) // self.step_s)

    def time(self, column: int) -> datetime:
        return datetime.fromtimestamp(self.start + column * self.step_s, tz=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    shape: Shape
    before: float
    after: float
    peak: float
    since: datetime | None
    effect: float


def find_shifts(series: Sequence[Series], *, window: Window, baseline: Window) -> list[MetricShift]:
    """Return every series that moved beyond its floors, largest effect first, in a total order."""
    limits = Limits.of(series)
    alive = _alive_until(series)
    grid = _grid(window, baseline)
    usable = sorted((one for one in series if one.times and not is_clockwork(one.metric)), key=lambda one: one.order)
    shifts = []
    for begin in range(0, len(usable), _BLOCK):
        block = usable[begin : begin + _BLOCK]
        for one, found in zip(block, _scan(block, grid=grid, limits=limits, alive=alive), strict=True):
            if found is not None:
                shifts.append(_row(one, found, limits=limits))
    return sorted(shifts, key=lambda row: (-row.score, row.service, row.metric, row.attributes, row.unit))


def _row(one: Series, found: _Found, *, limits: Limits) -> MetricShift:
    return MetricShift(
        service=one.service,
        metric=one.metric,
        unit=one.unit,
        attributes=one.attributes,
        shape=found.shape,
        before=_digits(found.before),
        after=_digits(found.after),
        peak=_digits(found.peak),
        limit=_limit_of(one, limits),
        since=found.since,
        score=round(min(_EFFECT_MAX, found.effect), 2),
    )


def _limit_of(one: Series, limits: Limits) -> float | None:
    return limits.find(one.service, one.metric, dict(one.attributes), unit=one.unit)


def _grid(window: Window, baseline: Window) -> _Grid:
    start = min(baseline.start, window.start).timestamp()
    length = window.end.timestamp() - start
    step_s = _STEP_S * max(1, math.ceil(length / _STEP_S / _CELLS_MAX))
    start = math.floor(start / step_s) * step_s
    cells = math.ceil((window.end.timestamp() - start) / step_s)
    window_at = int((window.start.timestamp() - start) // step_s)
    until = min(window_at, int((baseline.end.timestamp() - start) // step_s))
    return _Grid(start=start, step_s=step_s, cells=cells, window_at=max(1, window_at), baseline_until=max(1, until))


def _fill(block: Sequence[Series], *, grid: _Grid) -> Floats:
    """Put every series on the grid, holding each value until the next; before the first point it is NaN."""
    table = np.full((len(block), grid.cells), np.nan)
    for place, one in enumerate(block):
        columns = ((np.asarray(one.times) - grid.start) // grid.step_s).astype(np.int64)
        values = np.asarray(one.values, dtype=np.float64)
        inside = (columns >= 0) & (columns < grid.cells) & np.isfinite(values)
        table[place, columns[inside]] = values[inside]
    known = np.where(np.isnan(table), 0, np.arange(grid.cells))
    np.maximum.accumulate(known, axis=1, out=known)
    return np.asarray(np.take_along_axis(table, known, axis=1), dtype=np.float64)


def _scan(
    block: Sequence[Series], *, grid: _Grid, limits: Limits, alive: Mapping[_Family, float]
) -> list[_Found | None]:
    table = _fill(block, grid=grid)
    past = table[:, : grid.baseline_until]
    counted = (~np.isnan(past)).sum(axis=1)
    with np.errstate(all="ignore"):
        filled = np.where(counted[:, None] > 0, past, 0.0)
        middle = np.nan_to_num(_nanmedian(filled))
        spread = _MAD_TO_SIGMA * np.nan_to_num(_nanmedian(np.abs(filled - middle[:, None])))
    floors = [floor_of(one, limit=_limit_of(one, limits)) for one in block]
    least = np.array([max(f.absolute, f.relative * abs(m)) for f, m in zip(floors, middle, strict=True)])
    least = np.maximum(least, 3 * spread)
    splits = _best_splits(table, middle=middle, unit=np.maximum(least / 4, 1e-12), grid=grid)
    found: list[_Found | None] = []
    for place, one in enumerate(block):
        if counted[place] == 0:
            found.append(_appeared(one, grid=grid))
        elif (gone := _gone(one, before=float(middle[place]), grid=grid)) is not None:
            # A pod that ended while others of its kind go on was replaced or scaled away; the service is not gone.
            found.append(gone if alive[_family(one)] <= one.times[-1] else None)
        else:
            found.append(
                _moved(
                    table[place],
                    before=float(middle[place]),
                    least=float(least[place]),
                    split=int(splits[place]),
                    grid=grid,
                )
            )
    return found


def _family(one: Series) -> _Family:
    """Name what replicas of one service share: all but the labels that tell one process from another."""
    return one.service, one.metric, tuple(pair for pair in one.attributes if pair[0] not in REPLICA_LABELS)


def _alive_until(series: Sequence[Series]) -> dict[_Family, float]:
    last: dict[_Family, float] = {}
    for one in series:
        if one.times:
            last[_family(one)] = max(last.get(_family(one), one.times[-1]), one.times[-1])
    return last


def _nanmedian(table: Floats) -> Floats:
    """Take row medians without a warning for rows of nothing."""
    ordered = np.sort(table, axis=1)
    counted = (~np.isnan(table)).sum(axis=1)
    low, high = np.maximum(0, (counted - 1) // 2), counted // 2
    high = np.minimum(high, np.maximum(0, counted - 1))
    rows = np.arange(len(table))
    return np.asarray((ordered[rows, low] + ordered[rows, high]) / 2, dtype=np.float64)


def _best_splits(table: Floats, *, middle: Floats, unit: Floats, grid: _Grid) -> NDArray[np.int64]:
    """Find for each row the column in the window that parts it best into before and after."""
    scaled = np.clip(np.nan_to_num((table - middle[:, None]) / unit[:, None]), -_CLIP, _CLIP)
    if grid.window_at - grid.baseline_until > _GUARD_CELLS:
        scaled[:, grid.baseline_until : grid.window_at] = 0.0  # earlier trouble lies there, which has been left out
    first, last = max(1, grid.window_at - 2), grid.cells - 1
    sums = np.cumsum(scaled, axis=1)
    at = np.arange(first, max(first + 1, last))
    before = sums[:, at - 1] / at
    after = (sums[:, -1:] - sums[:, at - 1]) / (grid.cells - at)
    weight = np.sqrt(at * (grid.cells - at) / grid.cells)
    return np.asarray(first + np.argmax(np.abs(after - before) * weight, axis=1), dtype=np.int64)


def _moved(values: Floats, *, before: float, least: float, split: int, grid: _Grid) -> _Found | None:
    newest = values[grid.window_at :]
    trend = _trend(values, before=before, least=least, grid=grid)
    if trend is not None:
        return trend
    after = float(np.median(values[split:]))
    move = after - before
    if abs(move) >= least or (before > 0 >= after and values[-1] <= 0 and least >= 3600):
        beyond = (values[split:] - before) * np.sign(move) >= abs(move) / 2
        if beyond.mean() >= _HELD_SHARE:
            since = _first_beyond(values, level=before + 0.3 * move, up=move > 0, split=split, grid=grid)
            return _Found(
                shape="step",
                before=before,
                after=after,
                peak=_peak(newest, move),
                since=since,
                effect=abs(move) / least,
            )
    reach = np.abs(newest - before)
    if reach.max() >= _SPIKE_EFFECT * least:
        place = int(np.argmax(reach >= _SPIKE_EFFECT * least))
        peak = float(newest[np.argmax(reach)])
        since = grid.time(grid.window_at + place)
        held = float((reach >= least).mean())
        effect = reach.max() / least * math.sqrt(max(held, 1 / len(newest)))
        return _Found(
            shape="spike", before=before, after=float(np.median(newest)), peak=peak, since=since, effect=float(effect)
        )
    return None


def _trend(values: Floats, *, before: float, least: float, grid: _Grid) -> _Found | None:
    """Tell a steady climb from a step: a hinge (flat, then a line) must fit much better than two levels."""
    newest = values[max(0, grid.window_at - 2) :]
    if len(newest) < 6:
        return None
    best: tuple[float, int, float] | None = None
    for bend in range(len(newest) - 5):
        climb = newest[bend:]
        x = np.arange(len(climb), dtype=np.float64)
        slope = float(((x - x.mean()) * (climb - climb.mean())).sum() / ((x - x.mean()) ** 2).sum())
        line = climb.mean() + slope * (x - x.mean())
        flat = newest[:bend]
        loss = float(((climb - line) ** 2).sum() + (((flat - np.median(flat)) ** 2).sum() if bend else 0.0))
        if best is None or loss < best[0] - 1e-12:
            best = (loss, bend, slope)
    assert best is not None
    loss, bend, slope = best
    climb = newest[bend:]
    rise = slope * (len(climb) - 1)
    total = float(((newest - newest.mean()) ** 2).sum())
    if (
        abs(rise) < least
        or total == 0
        or 1 - loss / total < _LINE_FIT
        or loss > _LINE_BEATS_STEP * _two_levels_loss(newest)
    ):
        return None
    if len(np.unique(climb)) < 4 or abs(values[-1] - before) < least:
        return None
    past = values[: grid.baseline_until]
    past = past[~np.isnan(past)]
    if len(past) >= 6 and (past[-1] - past[0]) / len(past) * np.sign(slope) > 0.5 * abs(slope):
        return None
    since = grid.time(max(0, grid.window_at - 2) + bend)
    after = float(np.median(climb[-3:]))
    return _Found(
        shape="trend",
        before=before,
        after=after,
        peak=_peak(newest, rise),
        since=since,
        effect=abs(after - before) / least,
    )


def _two_levels_loss(values: Floats) -> float:
    at = np.arange(1, len(values))
    sums, squares = np.cumsum(values), np.cumsum(values**2)
    left = squares[at - 1] - sums[at - 1] ** 2 / at
    rest = len(values) - at
    right = (squares[-1] - squares[at - 1]) - (sums[-1] - sums[at - 1]) ** 2 / rest
    return float((left + right).min())


def _first_beyond(values: Floats, *, level: float, up: bool, split: int, grid: _Grid) -> datetime:
    """Correct the best split by the columns beside it: the first that is clearly on the new side."""
    beyond = values >= level if up else values <= level
    at = split
    while at > 1 and beyond[at - 1]:
        at -= 1
    while at < grid.cells - 1 and not beyond[at]:
        at += 1
    return grid.time(at)


def _peak(newest: Floats, move: float) -> float:
    return float(np.nanmax(newest) if move >= 0 else np.nanmin(newest))


def _cadence(one: Series) -> float:
    """Return how long it takes at most, as a rule, until the next point: replicas report in turns, then pause."""
    gaps = np.diff(np.asarray(one.times))
    return float(np.quantile(gaps, 0.9)) if len(gaps) else _STEP_S


def _gone(one: Series, *, before: float, grid: _Grid) -> _Found | None:
    last = one.times[-1]
    end = grid.start + grid.cells * grid.step_s
    silent = end - last
    if (
        silent < max(_GONE_S, _GONE_CADENCES * _cadence(one))
        or len(one.times) < _POINTS_BEFORE_MIN
        or last < grid.start
    ):
        return None
    since = grid.time(grid.column(last) + 1)
    return _Found(shape="gone", before=before, after=0.0, peak=0.0, since=since, effect=2.0)


def _appeared(one: Series, *, grid: _Grid) -> _Found | None:
    first = one.times[0]
    if first < grid.start + grid.window_at * grid.step_s - grid.step_s or len(one.times) < 2:
        return None
    values = np.asarray(one.values)
    after, floor = float(np.median(values)), floor_of(one)
    effect = min(5.0, abs(after) / max(floor.absolute, 1e-12))
    if effect < 1:
        return None
    return _Found(
        shape="appeared",
        before=0.0,
        after=after,
        peak=float(values.max()),
        since=grid.time(grid.column(first)),
        effect=effect,
    )


def _digits(value: float) -> float:
    """Round to four significant digits, so that the same data gives the same text everywhere."""
    return float(f"{value:.{_SIGNIFICANT}g}")
