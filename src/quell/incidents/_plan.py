"""Choose where an investigation looks: the window in trouble, and a healthy baseline before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from quell.config import InvestigationSettings
from quell.domain import Alert, Window

_MARGIN = timedelta(seconds=30)
"""Alerts begin a little after the trouble does: detection needs a few looks."""
_GUARD = timedelta(seconds=5)
_BASELINE_MIN = timedelta(seconds=60)
_BASELINE_SHORT = timedelta(seconds=20)
_BASELINE_SHORTEST = timedelta(seconds=10)
_LOOK_BACK = 4
"""A healthy stretch is sought this many baselines back."""
_AFTERMATH = timedelta(seconds=30)
"""Numbers take this long to settle after an incident's last alert ended."""


def choose_window(
    alerts: Sequence[Alert],
    *,
    at: datetime,
    settings: InvestigationSettings,
    since_s: float | None,
    elsewhere: Sequence[Alert] = (),
) -> tuple[Window, list[str]]:
    """Return the window in trouble, and what has to be said about it.

    Args:
        alerts: What the incident is about.
        at: Now.
        settings: How long a window may be.
        since_s: Length that a person named; it wins.
        elsewhere: Alerts of other incidents: what is firing now tells when to look where a person named no time.
    """
    if since_s is not None:
        return Window(start=at - timedelta(seconds=since_s), end=at), []
    longest = timedelta(minutes=settings.window_minutes)
    dated = [alert for alert in alerts if alert.source != "person"]
    notes: list[str] = []
    if not dated:
        dated = [a for a in elsewhere if a.source != "person" and a.status == "firing" and a.starts_at > at - longest]
        notes = ["No time was named; the time since the first alert that is firing was looked at."] if dated else []
    if not dated:
        minutes = settings.window_minutes
        return Window(start=at - longest, end=at), [f"No time was named; the last {minutes:g} minutes were looked at."]
    first = min(dated, key=lambda alert: alert.starts_at)
    start = min(first.starts_at, at) - _MARGIN
    if at - start <= longest:
        return Window(start=start, end=at), notes
    note = f"The trouble began more than {settings.window_minutes:g} minutes ago; the stretch around its beginning was looked at."
    return Window(start=start, end=start + longest), [note]


def reach_of(window: Window, *, settings: InvestigationSettings) -> Window:
    """Return the stretch before a window in which a baseline may lie."""
    length = timedelta(minutes=settings.baseline_minutes)
    return Window(start=window.start - _LOOK_BACK * length, end=window.start - _GUARD)


def choose_baseline(
    window: Window, *, trouble: Iterable[Window], first: datetime | None, settings: InvestigationSettings
) -> tuple[Window, list[str]]:
    """Return the newest healthy stretch before the window, and what has to be said about it.

    Earlier trouble is left out, and so is the time from before there was telemetry (`first`): it would count as silence.
    """
    length = timedelta(minutes=settings.baseline_minutes)
    wanted = window.before(length=length, guard=_GUARD)
    reach = reach_of(window, settings=settings)
    notes: list[str] = []
    if first is not None and wanted.start < first:
        start = min(first, wanted.end - _BASELINE_SHORTEST)
        reach, wanted = Window(start=start, end=reach.end), Window(start=start, end=wanted.end)
        notes.append(f"Telemetry begins at {first:%H:%M:%S} UTC; the baseline does not reach back farther.")
    newest = _newest_healthy(_without(reach, trouble))
    if newest is None:
        overlaps = "No healthy stretch before the window is free of earlier incidents; the baseline overlaps them."
        return wanted, [*notes, overlaps]
    chosen = Window(start=max(newest.start, newest.end - length), end=newest.end)
    if chosen != wanted:
        notes.append("The baseline leaves out the time of earlier incidents.")
    return chosen, notes


def _newest_healthy(free: Sequence[Window]) -> Window | None:
    """Return the newest stretch that is long enough, else the longest that will do."""
    good = [stretch for stretch in free if stretch.end - stretch.start >= _BASELINE_MIN]
    if good:
        return good[-1]
    longest = max(free, key=lambda stretch: stretch.end - stretch.start, default=None)
    return longest if longest and longest.end - longest.start >= _BASELINE_SHORT else None


def trouble_of(alerts: Sequence[Alert], *, at: datetime) -> Window | None:
    """Return the stretch that an incident disturbed: from before its first alert until things settled."""
    dated = [alert for alert in alerts if alert.source != "person"]
    if not dated:
        return None
    # No end lies in the future, whatever clock its sender has.
    start = min(at, *(alert.starts_at for alert in dated)) - _MARGIN
    end = min(at, max(alert.ends_at or at for alert in dated)) + _AFTERMATH
    return Window(start=start, end=end) if end > start else None


def _without(reach: Window, busy: Iterable[Window]) -> list[Window]:
    """Return what is left of `reach`, oldest first."""
    free: list[Window] = []
    start = reach.start
    for stretch in sorted(busy, key=lambda w: (w.start, w.end)):
        if stretch.start > start:
            end = min(stretch.start, reach.end)
            if end > start:
                free.append(Window(start=start, end=end))
        start = max(start, stretch.end)
        if start >= reach.end:
            return free
    return [*free, Window(start=start, end=reach.end)]
