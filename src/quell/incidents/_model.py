"""The nouns of one investigation: what was asked, what was planned, what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from quell.domain import (
    Alert,
    Briefing,
    Category,
    Citation,
    Evidence,
    Finding,
    Gap,
    Hypothesis,
    Incident,
    Outcome,
    Subject,
    Symptom,
    TimelineEntry,
    Window,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks to be investigated: words, alerts, or services and a stretch of time."""

    text: str = ""
    """The question as it was typed; services, symptoms and times are read out of it."""
    services: tuple[str, ...] = ()
    """Services named outright; they win over the words."""
    since_s: float | None = None
    """Length of the window in trouble, ending now, in seconds; None lets the words or the alerts tell."""
    alerts: tuple[Alert, ...] = ()
    """Alerts to investigate, such as those of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was understood of a question."""

    services: tuple[str, ...]
    symptom: Symptom
    since_s: float | None
    notes: tuple[str, ...]
    """What was not understood, and what was assumed instead; printed in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where and when an investigation looks."""

    question: str
    focus: tuple[str, ...]
    """Services in trouble by the alerts or the question; empty means: all of them."""
    window: Window
    baseline: Window
    alerts: tuple[Alert, ...]
    """Alerts of the incident at the moment of planning."""
    planned_at: datetime
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One quantity of one subject over time, drawn in the report."""

    subject: str
    """Service, edge or metric that it belongs to."""
    measure: str
    """Such as `error share`, `p95 latency`, `calls per second`, or a metric's name."""
    unit: Literal["share", "ms", "per_s", "number", "bytes", "s"]
    points: tuple[tuple[datetime, float], ...]
    """Oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveAsk:
    """Which curves a report wants."""

    services: tuple[str, ...]
    """Error share, p95 latency and traffic of each."""
    edges: tuple[tuple[str, str], ...]
    """Error share and latency of each caller -> callee."""
    metrics: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    """Service, metric name, attributes."""
    window: Window
    """From before the baseline's end to the end of the window in trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar:
    """An earlier incident of this store that resembles this one."""

    incident: str
    title: str
    opened_at: datetime
    outcome: Outcome
    category: Category | None
    subject: Subject | None
    score: float
    """0..1."""
    same: tuple[str, ...]
    differed: tuple[str, ...]
    ending: str
    """How it ended, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A service whose symptoms another one explains."""

    service: str
    suffers_from: str
    """The service, or the `caller->callee` edge."""
    evidence: tuple[str, ...]
    """Ids of the evidence that shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What one part of an investigation took."""

    stage: str
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an investigation took."""

    seconds: float
    """From the first step to the last, waiting left out."""
    waited_s: float
    """Time spent letting the incident unfold."""
    steps: int
    reads: int
    cpu_s: float | None
    """Processor time of the analysis; None when it was not measured."""
    stages: tuple[StageTime, ...]
    model_tokens: int
    money_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """Everything that is known about one incident, ready to be read by a person."""

    incident: Incident
    alerts: tuple[Alert, ...]
    plan: Plan | None
    """None until an investigation has begun."""
    finding: Finding | None
    """None until an investigation has ended."""
    hypotheses: tuple[Hypothesis, ...] = ()
    impact: tuple[Citation, ...] = ()
    victims: tuple[Explained, ...] = ()
    next_steps: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    """Everything cited and the most relevant of the rest, in the order of their ids."""
    evidence_total: int = 0
    gaps: tuple[Gap, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()
    briefing: Briefing | None = None
    similar: tuple[Similar, ...] = ()
    curves: tuple[Curve, ...] = ()
    cost: Cost | None = None
    run: str | None = None
    version: str = ""
    """Workflow version that the investigation ran under."""
    state: str = ""
    """Where the investigation stands when there is no finding yet, in one sentence."""
