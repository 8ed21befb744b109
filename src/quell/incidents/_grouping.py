"""Which report is which alert, and which alerts are one incident: decided purely."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

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
        known = _known(self.edges)
        if one not in known or other not in known:
            return None
        return other in _near(self.edges, one)


@lru_cache(maxsize=4)
def _known(edges: frozenset[tuple[str, str]]) -> frozenset[str]:
    return frozenset(name for edge in edges for name in edge)


@lru_cache(maxsize=64)
def _near(edges: frozenset[tuple[str, str]], service: str) -> frozenset[str]:
    """Return the services within reach: asked again for every pair of a storm of alerts, so it is kept."""
    reached = {service}
    for _ in range(_HOPS_MAX):
        reached |= {b for a, b in edges if a in reached} | {a for a, b in edges if b in reached}
    return frozenset(reached)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """An open incident with its alerts: what a new alert may join."""

    incident: Incident
    alerts: tuple[Alert, ...]

    @property
    def is_firing(self) -> bool:
        """Tell whether any alert of it still fires."""
        return bool(still_firing(self.alerts))


def find_episode(alert: Alert, known: Iterable[Alert]) -> Alert | None:
    """Find the alert that a report is about, among those of the same fingerprint: the same id, or the same beginning."""
    known = list(known)
    same_id = [candidate for candidate in known if candidate.id == alert.id]
    return next(iter(same_id or [candidate for candidate in known if candidate.starts_at == alert.starts_at]), None)


def merged(known: Alert, report: Alert) -> Alert:
    """Return what is known of an episode after one more report; no order and no repetition of reports matters.

    An end is final: a report that it fires, arriving later, only confirms that it began.
    """
    severity = worst((known.severity, report.severity))
    if report.status == "firing":
        return replace(known, severity=severity)
    ends = [end for end in (known.ends_at, report.ends_at or report.received_at) if end]
    return replace(known, severity=severity, status="resolved", ends_at=max(*ends, known.starts_at))


def still_firing(alerts: Iterable[Alert]) -> list[Alert]:
    """Return the alerts that fire: of each condition the newest episode, unless it has ended.

    An older one whose end was never reported is over as well: a condition cannot begin while it lasts.
    """
    newest: dict[str, Alert] = {}
    for alert in sorted(alerts, key=lambda a: (a.starts_at, a.id)):
        newest[alert.fingerprint] = alert
    return [alert for alert in newest.values() if alert.status == "firing"]


def as_ended(alerts: Iterable[Alert], *, closed_at: datetime | None) -> tuple[Alert, ...]:
    """Return alerts, oldest first, with the ends that nobody reported.

    A condition that began again had ended before; what fired when its incident was closed counts as over from then on.
    """
    ended: list[Alert] = []
    next_start: dict[str, datetime] = {}
    for alert in sorted(alerts, key=lambda a: (a.starts_at, a.id), reverse=True):
        end = next_start.get(alert.fingerprint) or closed_at
        next_start[alert.fingerprint] = alert.starts_at
        if alert.status == "firing" and end is not None:
            ended.append(replace(alert, status="resolved", ends_at=max(end, alert.starts_at)))
        else:
            ended.append(alert)
    return tuple(reversed(ended))


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
