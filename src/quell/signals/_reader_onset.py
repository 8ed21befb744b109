"""Find since when: the first bucket that is on the new side of a shift."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

_LEAD_BUCKETS = 2
_ONSET_SHARE = 0.3


def find_onset(
    starts: Sequence[int], amounts: Sequence[float], weights: Sequence[float], *, window_start: int, step_s: int
) -> datetime | None:
    """Return the start of the first bucket of the window that shows the shift of `amounts` per `weights`, or None.

    Empty buckets may be missing. The best two-level split, weighted by calls, is found first; then the buckets beside
    it are corrected: one that has crossed a third of the way belongs to the new side.
    """
    if not starts:
        return None
    first, last = min(starts), max(starts)
    places = (np.asarray(starts, dtype=np.int64) - first) // step_s
    size = (last - first) // step_s + 1
    weight, amount = np.zeros(size), np.zeros(size)
    np.add.at(weight, places, np.asarray(weights, dtype=np.float64))
    np.add.at(amount, places, np.asarray(amounts, dtype=np.float64))
    window_at = max(0, (window_start - first) // step_s)
    at = np.arange(max(1, window_at - _LEAD_BUCKETS), size)
    if not len(at):
        return _time(max(first, window_start)) if first >= window_start else None
    sums, masses = np.cumsum(amount), np.cumsum(weight)
    left, right = masses[at - 1], masses[-1] - masses[at - 1]
    valid = (left > 0) & (right > 0)
    if not valid.any():
        return _time(max(first, window_start)) if masses[window_at:].sum() > 0 and left.max(initial=0) == 0 else None
    before = sums[at - 1] / np.maximum(left, 1e-12)
    after = (sums[-1] - sums[at - 1]) / np.maximum(right, 1e-12)
    gain = np.where(valid, (after - before) ** 2 * left * right / np.maximum(left + right, 1e-12), -1.0)
    best = int(np.argmax(gain))
    split, low, high = int(at[best]), float(before[best]), float(after[best])
    if gain[best] <= 0:
        return None
    level = low + _ONSET_SHARE * (high - low)
    share = np.divide(amount, weight, out=np.full(size, low), where=weight > 0)
    beyond = (share >= level) if high > low else (share <= level)
    while split > max(1, window_at - _LEAD_BUCKETS) and beyond[split - 1]:
        split -= 1
    while split < size - 1 and not beyond[split]:
        split += 1
    return _time(first + split * step_s)


def sum_since(starts: Sequence[int], amounts: Sequence[int], since: datetime | None) -> int | None:
    """Return the sum of all buckets from an onset on; None without an onset."""
    if since is None:
        return None
    return sum(amount for start, amount in zip(starts, amounts, strict=True) if start >= since.timestamp())


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
