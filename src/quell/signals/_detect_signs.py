"""Judge calls, logs and silence of one service against its own recent past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quell.config import DetectionSettings
from quell.domain import Severity, Symptom, is_starved
from quell.signals._detect_state import BUCKET_S, Heartbeat, OperationHistory, PatternHistory, Sign
from quell.signals._reader_text import escape_line, quote
from quell.signals._survey_score import two_shares_z

Floats = NDArray[np.float64]

_ERROR_SHARE_FLOOR = 0.05
_ERRORS_MIN = 3
_CALLS_MIN = 5
_CALLS_WANTED = 10
_WINDOW_STRETCH = 3
_LATENCY_RATIO = 2.0
_LATENCY_FLOOR_MS = 40.0
_LATENCY_Z = 4.0
_LATENCY_SPREAD_FLOOR = 0.17
_DOUBT_CHUNKS = 3.0
_TRAFFIC_RISE = 2.5
_TRAFFIC_DROP = 0.15
_TRAFFIC_EXPECTED_MIN = 15.0
_RECENT_S = 60.0
_SETTLED_S = 3.0
_SILENCE_S = 10.0
_SILENCE_CADENCES = 3.0
_STEADY = 0.6
_STEADY_BEATS = 12
_STEADY_CADENCE_S = 60.0
_NEW_PATTERN_COUNT = 3
_SAME_WORDS = 0.7
_CRITICAL_ERROR_SHARE = 0.2
_FORGOTTEN_S = 600.0
_EXIT_FRESH_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The stretch of time that a judgement is about."""

    at: float
    """Epoch seconds of the look."""
    seen_until: float
    """Up to where telemetry has arrived; never later than `at`."""
    settings: DetectionSettings
    troubled: tuple[tuple[float, float], ...]
    """Stretches of this service that are no baseline."""

    @property
    def window_start(self) -> float:
        """Begin of the newest stretch, on a bucket."""
        return math.floor((self.seen_until - self.settings.window_s) / BUCKET_S) * BUCKET_S

    def is_baseline(self, starts: Floats) -> NDArray[np.bool_]:
        """Tell which buckets are fit to be compared with: before the window and a guard, and not in trouble."""
        fit = starts < self.window_start - BUCKET_S
        for begin, end in self.troubled:
            fit &= (starts < begin - 2 * BUCKET_S) | (starts > end + BUCKET_S)
        return np.asarray(fit, dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Calls of one operation or service on every bucket, empty ones included."""

    starts: Floats
    calls: Floats
    errors: Floats
    total_ms: Floats


def signs_of_calls(operations: Sequence[OperationHistory], *, view: View) -> list[Sign]:
    """Judge error share, latency and traffic of one service."""
    whole = _grid(operations, view=view)
    if whole is None or view.seen_until - float(whole.starts[0]) < view.settings.warmup_s:
        return []
    signs = [_errors(whole, service=operations[0].service, operation="", view=view)]
    signs.append(_traffic(whole, service=operations[0].service, view=view))
    for operation in operations:
        grid = _grid([operation], view=view)
        if grid is not None:
            signs.append(_errors(grid, service=operation.service, operation=operation.operation, view=view))
            signs.append(_latency(grid, service=operation.service, operation=operation.operation, view=view))
    return [sign for sign in signs if sign is not None]


def _grid(operations: Sequence[OperationHistory], *, view: View) -> _Grid | None:
    known = [operation for operation in operations if operation.starts]
    if not known:
        return None
    first = min(operation.starts[0] for operation in known)
    places = max(1, math.ceil((view.seen_until - first) / BUCKET_S))
    columns = np.zeros((3, places))
    for operation in known:
        at = ((np.asarray(operation.starts) - first) / BUCKET_S).round().astype(np.int64)
        inside = (at >= 0) & (at < places)
        for column, values in zip(columns, (operation.calls, operation.errors, operation.total_ms), strict=True):
            np.add.at(column, at[inside], np.asarray(values, dtype=np.float64)[inside])
    starts = first + BUCKET_S * np.arange(places, dtype=np.float64)
    return _Grid(starts=starts, calls=columns[0], errors=columns[1], total_ms=columns[2])


def _window(grid: _Grid, *, view: View) -> NDArray[np.bool_]:
    """Choose the newest stretch, longer where calls are rare."""
    for stretch in range(1, _WINDOW_STRETCH + 1):
        chosen = grid.starts >= view.window_start - (stretch - 1) * view.settings.window_s
        if grid.calls[chosen].sum() >= _CALLS_WANTED:
            break
    return np.asarray(chosen, dtype=np.bool_)


def _chunks(values: Floats, fit: NDArray[np.bool_]) -> Floats:
    """Sum pairs of neighbouring fit buckets: about one window each."""
    paired = values[: len(values) // 2 * 2].reshape(-1, 2).sum(axis=1)
    return np.asarray(paired[fit[: len(values) // 2 * 2].reshape(-1, 2).all(axis=1)], dtype=np.float64)


def _errors(grid: _Grid, *, service: str, operation: str, view: View) -> Sign | None:
    newest = _window(grid, view=view)
    calls, errors = float(grid.calls[newest].sum()), float(grid.errors[newest].sum())
    if calls < _CALLS_MIN or errors < _ERRORS_MIN:
        return None
    fit = view.is_baseline(grid.starts)
    calls_before, errors_before = _chunks(grid.calls, fit), _chunks(grid.errors, fit)
    busy = calls_before > 0
    if calls_before.sum() < _CALLS_MIN:
        return None
    shares = errors_before[busy] / calls_before[busy]
    usual, high = float(np.median(shares)), float(np.quantile(shares, 0.9))
    threshold = max(_ERROR_SHARE_FLOOR, 3 * usual, usual + _ERROR_SHARE_FLOOR, min(high, 3 * usual + 0.1) + 0.03)
    z = two_shares_z(int(errors), int(calls), round(usual * float(calls_before.sum())), int(calls_before.sum()))
    share = errors / calls
    fresh = grid.starts >= view.seen_until - 1.5 * BUCKET_S
    fresh_calls = float(grid.calls[fresh].sum())
    if fresh_calls >= _ERRORS_MIN:
        # What has stopped already does not fire; what was slow to show still counts.
        share = min(share, 2 * float(grid.errors[fresh].sum()) / fresh_calls)
    strength = min(share / threshold, max(0.0, z) / 3)
    bad = (grid.calls > 0) & (grid.errors / np.maximum(grid.calls, 1) >= threshold / 2)
    what = f" of {escape_line(operation, chars_max=80)}" if operation else ""
    return Sign(
        service=service,
        symptom=Symptom.ERRORS,
        severity=Severity.CRITICAL if share >= _CRITICAL_ERROR_SHARE else Severity.WARNING,
        strength=strength,
        value=round(errors / calls, 4),
        expected=round(usual, 4),
        since=_since(grid.starts, bad, view=view),
        name="error share",
        summary=f"{errors / calls:.0%} of {calls:.0f} calls{what} fail, usually {usual:.1%}",
        labels=(("operation", operation),) if operation else (),
    )


def _latency(grid: _Grid, *, service: str, operation: str, view: View) -> Sign | None:
    newest = _window(grid, view=view)
    calls = float(grid.calls[newest].sum())
    fit = view.is_baseline(grid.starts)
    calls_before, total_before = _chunks(grid.calls, fit), _chunks(grid.total_ms, fit)
    busy = calls_before > 0
    if calls < _CALLS_MIN or busy.sum() < 2:
        return None
    logs = np.log(np.maximum(total_before[busy] / calls_before[busy], 0.01))
    middle = float(np.median(logs))
    spread = max(_LATENCY_SPREAD_FLOOR, 1.4826 * float(np.median(np.abs(logs - middle))))
    usual, high = math.exp(middle), math.exp(float(np.quantile(logs, 0.95)))
    mean = float(grid.total_ms[newest].sum()) / calls
    threshold = max(
        _LATENCY_RATIO * usual, usual + _LATENCY_FLOOR_MS, usual * math.exp(_LATENCY_Z * spread), 1.3 * high
    )
    means = grid.total_ms / np.maximum(grid.calls, 1)
    slow = (grid.calls > 0) & (means >= 0.8 * threshold)
    busy_now = newest & (grid.calls > 0)
    # One slow call makes one slow bucket; trouble makes most of them slow.
    wide = slow[busy_now].sum() >= max(2, 0.6 * busy_now.sum()) or busy_now.sum() < 2
    lasting = bool(slow[np.flatnonzero(busy_now)[-1]])
    return Sign(
        service=service,
        symptom=Symptom.LATENCY,
        severity=Severity.CRITICAL if mean >= 5 * threshold else Severity.WARNING,
        strength=mean / threshold if wide and lasting else min(0.9, mean / threshold),
        value=round(mean, 1),
        expected=round(usual, 1),
        since=_since(grid.starts, slow, view=view),
        name="latency",
        summary=f"{escape_line(operation, chars_max=80)} takes {mean:.0f} ms, usually {usual:.0f} ms",
        labels=(("operation", operation),),
    )


def _traffic(grid: _Grid, *, service: str, view: View) -> Sign | None:
    """Compare the newest complete stretch with the last minute and with the whole baseline."""
    complete = grid.starts + BUCKET_S <= view.seen_until - _SETTLED_S + BUCKET_S / 2
    newest = np.flatnonzero(complete)[-max(1, round(view.settings.window_s / BUCKET_S)) :]
    fit = view.is_baseline(grid.starts)
    seconds = len(newest) * BUCKET_S
    if seconds < view.settings.window_s or fit.sum() * BUCKET_S < view.settings.warmup_s:
        return None
    recent = np.flatnonzero(fit)[-int(_RECENT_S / BUCKET_S) :]
    rates = _chunks(grid.calls, fit) / (2 * BUCKET_S)
    level = float(np.median(grid.calls[recent])) / BUCKET_S
    low, high = (float(edge) for edge in np.quantile(rates, [0.05, 0.98])) if len(rates) else (level, level)
    rate = float(grid.calls[newest].sum()) / seconds
    expected = level * seconds
    rise = min(rate / max(_TRAFFIC_RISE * level, 1e-9), rate / max(2 * high, 1e-9))
    drop = min(_TRAFFIC_DROP * level, 0.3 * low) / max(rate, 0.02 * level, 1e-9)
    if rise >= drop and rate * seconds - expected >= 2 * _TRAFFIC_EXPECTED_MIN:
        strength, name, off = rise, "traffic rise", grid.calls >= 1.6 * level * BUCKET_S
    elif expected >= _TRAFFIC_EXPECTED_MIN:
        strength, name, off = drop, "traffic drop", grid.calls <= 0.4 * level * BUCKET_S
    else:
        return None
    return Sign(
        service=service,
        symptom=Symptom.TRAFFIC,
        severity=Severity.WARNING,
        strength=min(strength, 10.0),
        value=round(rate, 2),
        expected=round(level, 2),
        since=_since(grid.starts, np.asarray(off & complete, dtype=np.bool_), view=view),
        name=name,
        summary=f"{rate:.1f} calls a second, usually {level:.1f}",
    )


def _since(starts: Floats, bad: NDArray[np.bool_], *, view: View) -> float:
    """Walk back from the newest bad bucket over bad ones, forgiving one good one between."""
    places = np.flatnonzero(bad & (starts <= view.seen_until))
    if not len(places):
        return view.window_start
    begin = places[-1]
    for place in places[::-1]:
        if begin - place > 2:
            break
        begin = place
    return float(starts[begin])


def sign_of_silence(
    operations: Sequence[OperationHistory], heartbeat: Heartbeat | None, *, service: str, view: View
) -> Sign | None:
    """Judge whether a service that spoke has fallen silent in every way: no calls, no logs, no metrics."""
    starts = [start for operation in operations for start in operation.starts]
    lasts = [max(starts) + BUCKET_S] if starts else []
    firsts = [min(starts)] if starts else []
    patience = _SILENCE_S
    if heartbeat is not None:
        if not starts and not _is_steady(heartbeat):
            return None
        lasts.append(heartbeat.last)
        firsts.append(heartbeat.first)
        patience = max(patience, _SILENCE_CADENCES * heartbeat.cadence_s)
    if not lasts or max(lasts) - min(firsts) < view.settings.warmup_s:
        return None
    quiet = view.at - max(lasts)
    if quiet < patience / 2 or quiet > _FORGOTTEN_S:
        return None
    return Sign(
        service=service,
        symptom=Symptom.SILENCE,
        severity=Severity.CRITICAL,
        strength=quiet / patience,
        value=round(quiet, 1),
        expected=round(patience / _SILENCE_CADENCES, 1),
        since=max(lasts),
        name="silence",
        summary=f"no calls, logs or metrics for {quiet:.0f} s",
    )


def _is_steady(heartbeat: Heartbeat) -> bool:
    """Tell an exporter, whose silence means something, from who speaks when something happens."""
    return (
        heartbeat.steadiness >= _STEADY
        and heartbeat.beats >= _STEADY_BEATS
        and heartbeat.cadence_s <= _STEADY_CADENCE_S
    )


def sign_of_exits(exits: Sequence[tuple[float, str]], *, service: str, now: float) -> Sign | None:
    """Judge ends of processes that nobody asked for: one for want of memory, or several, fire; a single crash does not.

    Users may feel little of either for a while, as the process is started again.
    """
    recent = [(at, reason) for at, reason in exits if now - _EXIT_FRESH_S <= at <= now + 1]
    if not recent:
        return None
    starved = [reason for _, reason in recent if is_starved(reason)]
    reason = escape_line(starved[-1] if starved else recent[-1][1], chars_max=80)
    times = f" {len(recent)} times" if len(recent) > 1 else ""
    return Sign(
        service=service,
        symptom=Symptom.SATURATION if starved else Symptom.OTHER,
        severity=Severity.CRITICAL if len(recent) > 1 else Severity.WARNING,
        strength=1.5 if len(recent) > 1 else 1.2 if starved else 0.6,
        value=float(len(recent)),
        expected=0.0,
        since=recent[0][0],
        name="process ended",
        summary=f"the process ended{times}, unplanned: {reason}",
    )


def signs_of_patterns(patterns: Sequence[PatternHistory], *, view: View, first_heard: float) -> list[Sign]:
    """Judge error templates of one service that its past does not have."""
    if view.seen_until - first_heard < view.settings.warmup_s:
        return []
    # A template stays new for as long as the trouble that it came with is open.
    open_since = [begin for begin, end in view.troubled if end >= view.at]
    horizon = min([view.window_start - 2 * view.settings.window_s, *(begin - 2 * BUCKET_S for begin in open_since)])
    old = [pattern.template.split() for pattern in patterns if pattern.starts and pattern.starts[0] < horizon]
    fresh = [pattern for pattern in patterns if pattern.starts and pattern.starts[0] >= horizon]
    signs = []
    for pattern in fresh:
        counts = [
            pair for pair in zip(pattern.starts, pattern.counts, strict=True) if view.window_start <= pair[0] <= view.at
        ]
        count = sum(n for _, n in counts)
        if not count or any(_is_same(pattern.template.split(), words) for words in old):
            continue
        # What has stopped already, as after a restart that callers noticed, does not fire.
        lasting = any(start >= view.seen_until - 1.5 * BUCKET_S for start, _ in counts)
        signs.append(
            Sign(
                service=pattern.service,
                symptom=Symptom.NEW_ERRORS,
                severity=Severity.WARNING,
                strength=count / _NEW_PATTERN_COUNT if lasting else min(0.9, count / _NEW_PATTERN_COUNT),
                value=float(count),
                expected=0.0,
                since=pattern.starts[0],
                name="new errors",
                summary=f"new error log x{count}: {quote(pattern.template, chars_max=160)}",
            )
        )
    return signs


def _is_same(words: list[str], known: list[str]) -> bool:
    if len(words) != len(known) or not words:
        return False
    return sum(a == b for a, b in zip(words, known, strict=True)) >= _SAME_WORDS * len(words)
