"""Which report is which alert, and which alerts are one incident: decided purely."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from quell.domain import Alert, Incident, Severity

_SEVERITY_ORDER = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_HOPS_MAX = 2
"""A service feels a fault directly or through one other; farther away, two alerts are two incidents until more alerts link them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGraph:
    """Who calls whom, as far as it was learned."""

    edges: frozenset[tuple[str, str]] = frozenset()

    def linked(self, one: str, other: str) -> bool | None:
        """Tell whether two services are neighbours (directly or over one more); None when the graph does not know one."""
        known = {name for edge in self.edges for name in edge}
        if one not in known or other not in known:
            return None
        reached = {one}
        for _ in range(_HOPS_MAX):
            reached |= {b for a, b in self.edges if a in reached} | {a for a, b in self.edges if b in reached}
        return other in reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """An open incident with its alerts: what a new alert may join."""

    incident: Incident
    alerts: tuple[Alert, ...]

    @property
    def is_firing(self) -> bool:
        """Tell whether any alert of it still fires."""
        return any(alert.status == "firing" for alert in self.alerts)


def find_episode(alert: Alert, known: Iterable[Alert]) -> Alert | None:
    """Find the alert that a report is about, among those of the same fingerprint.

    The same start is the same episode. So is anything reported while the condition fires, and a late report of a time
    that a finished episode covers: senders repeat themselves, and networks reorder.
    """
    known = sorted(known, key=lambda k: k.starts_at, reverse=True)
    for candidate in known:
        if candidate.starts_at == alert.starts_at:
            return candidate
    for candidate in known:
        if candidate.status == "firing":
            over_before = (
                alert.status == "resolved" and alert.ends_at is not None and alert.ends_at < candidate.starts_at
            )
            if not over_before:
                return candidate
        elif candidate.starts_at <= alert.starts_at <= (candidate.ends_at or candidate.starts_at):
            return candidate
    return None


def merged(known: Alert, report: Alert) -> Alert:
    """Return what is known of an episode after one more report, whatever the order of the reports.

    A resolution is final: a firing report of an episode that has ended only confirms that it began.
    """
    starts_at = min(known.starts_at, report.starts_at) if known.status == report.status == "firing" else known.starts_at
    if known.status == "firing" and report.status == "resolved":
        ends_at = report.ends_at or report.received_at
        return replace(known, status="resolved", ends_at=max(ends_at, starts_at), starts_at=starts_at)
    return replace(known, starts_at=starts_at)


def find_place(alert: Alert, gatherings: Sequence[Gathering], *, graph: CallGraph, group_window_s: float) -> str | None:
    """Choose the open incident that an alert belongs to, or None when it begins a new one."""
    best: tuple[int, datetime, str] | None = None
    for gathering in gatherings:
        strength = _strength(alert, gathering, graph=graph, group_window_s=group_window_s)
        if strength:
            candidate = (strength, gathering.incident.opened_at, gathering.incident.id)
            best = candidate if best is None else max(best, candidate)
    return best[2] if best else None


def _strength(alert: Alert, gathering: Gathering, *, graph: CallGraph, group_window_s: float) -> int:
    """Rank the link: 4 same condition, 3 same service, 2 neighbours, 1 close in time and graph unknown, 0 none."""
    if any(known.fingerprint == alert.fingerprint for known in gathering.alerts):
        return 4
    if not gathering.is_firing:
        return 0
    if alert.service and any(known.service == alert.service for known in gathering.alerts):
        return 3
    if not any(
        abs((known.starts_at - alert.starts_at).total_seconds()) <= group_window_s for known in gathering.alerts
    ):
        return 0
    links = {graph.linked(alert.service, known.service) for known in gathering.alerts}
    return 2 if True in links else int(None in links)


def summary_of(incident: Incident, alerts: Sequence[Alert]) -> Incident:
    """Return the incident with title, severity, services and alerts as its alerts say."""
    ordered = sorted(alerts, key=lambda a: (a.starts_at, a.id))
    return replace(
        incident,
        severity=worst(alert.severity for alert in ordered),
        services=tuple(sorted({alert.service for alert in ordered if alert.service})),
        alerts=tuple(alert.id for alert in ordered),
        title=title_of(ordered) or incident.title,
    )


def worst(severities: Iterable[Severity]) -> Severity:
    """Return the most severe."""
    return max(severities, key=_SEVERITY_ORDER.index, default=Severity.INFO)


def title_of(alerts: Sequence[Alert]) -> str:
    """Say in one line what an incident is about: its most severe, then oldest alert, and how many more."""
    if not alerts:
        return ""
    first = min(alerts, key=lambda a: (-_SEVERITY_ORDER.index(a.severity), a.starts_at, a.id))
    said = first.summary or first.name
    others = sorted({a.service for a in alerts if a.service} - {first.service})
    if first.service and first.service not in said:
        said = f"{first.service}: {said}"
    return f"{said} (also {listed(others)})" if others else said


def listed(names: Collection[str], *, names_max: int = 4) -> str:
    """Join names for people, and say how many were left out."""
    shown = list(names)[:names_max]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
