"""What the detector looks at and what it remembers: plain values, so that a judgement can be replayed."""

from __future__ import annotations

from dataclasses import dataclass, field

from quell.domain import Alert, Severity, Symptom

BUCKET_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationHistory:
    """Incoming calls of one operation, bucket by bucket, oldest first; empty buckets are missing."""

    service: str
    operation: str
    starts: tuple[float, ...]
    """Epoch seconds of each bucket's start."""
    calls: tuple[int, ...]
    errors: tuple[int, ...]
    total_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeHistory:
    """One metric series, oldest first."""

    service: str
    metric: str
    unit: str
    attributes: tuple[tuple[str, str], ...]
    times: tuple[float, ...]
    values: tuple[float, ...]
    limit: float | None = None
    """Capacity of the same resource, when a sibling series tells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternHistory:
    """One template of error or fatal logs, bucket by bucket, oldest first."""

    service: str
    template: str
    starts: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """When a service was first and last heard of by logs or metrics, and how often it speaks."""

    service: str
    first: float
    last: float
    cadence_s: float
    """Usual time between two signs of life."""
    steadiness: float
    """Part of its time that it spoke at its cadence: 1 for a steady exporter, near 0 for who speaks on occasion."""
    beats: int
    """Number of buckets in which it spoke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Everything that one judgement sees."""

    operations: tuple[OperationHistory, ...] = ()
    gauges: tuple[GaugeHistory, ...] = ()
    patterns: tuple[PatternHistory, ...] = ()
    heartbeats: tuple[Heartbeat, ...] = ()
    rollouts: tuple[tuple[str, float], ...] = ()
    """(service, epoch seconds) of deploys and planned restarts: a short disturbance is expected right after one."""
    exits: tuple[tuple[str, float, str], ...] = ()
    """(service, epoch seconds, reason) of processes that ended and should not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One symptom of one service at one look."""

    service: str
    symptom: Symptom
    severity: Severity
    strength: float
    """1 and more fires; between a half and 1 only keeps open what has fired."""
    value: float
    expected: float
    since: float
    """Epoch seconds of the first bad bucket."""
    name: str
    summary: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A symptom of a service from its first sign until it is quiet again."""

    service: str
    symptom: Symptom
    since: float
    bad_at: float
    """Newest look at which it was bad."""
    looks: int
    """Consecutive looks at which it was bad."""
    alert: Alert | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorState:
    """The detector's whole memory between two looks."""

    looked_at: float = 0.0
    episodes: tuple[Episode, ...] = ()
    troubled: tuple[tuple[str, float, float], ...] = field(default=())
    """(service, from, to) of alerts that have ended: not fit for a baseline."""
