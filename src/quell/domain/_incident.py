"""Trouble, and the work done about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from quell.domain._case import Category, Subject
from quell.domain._lifecycle import ChangeStatus, RunStatus, Stage


class Symptom(StrEnum):
    """What an alert is about."""

    ERRORS = "errors"
    LATENCY = "latency"
    TRAFFIC = "traffic"
    SATURATION = "saturation"
    SILENCE = "silence"
    NEW_ERRORS = "new_errors"
    OTHER = "other"


class Severity(StrEnum):
    """How bad it is for people who use the system."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A named condition that fired, from our detector, from Alertmanager or from a person."""

    id: str
    """`alr_…`, one per episode (firing until resolved)."""
    fingerprint: str
    """Stable for the same condition; see `fingerprint_of`."""
    source: Literal["detector", "alertmanager", "person"]
    name: str
    service: str
    """Empty when the alert names none."""
    symptom: Symptom
    severity: Severity
    status: Literal["firing", "resolved"]
    summary: str
    """One line; escaped and cut to 300 characters."""
    starts_at: datetime
    ends_at: datetime | None
    received_at: datetime
    labels: tuple[tuple[str, str], ...]
    value: float | None = None
    expected: float | None = None


def fingerprint_of(*, source: str, service: str, symptom: str, labels: Mapping[str, str]) -> str:
    """Name a condition: 16 hex digits over source, service, symptom and sorted labels."""
    text = "\x1f".join([source, service, symptom, *(f"{k}\x1e{labels[k]}" for k in sorted(labels))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A unit of trouble with one owner, severity, timeline and outcome."""

    id: str
    """`inc_…`"""
    stage: Stage
    severity: Severity
    title: str
    services: tuple[str, ...]
    """Services with alerts, sorted."""
    alerts: tuple[str, ...]
    """Alert ids, oldest first."""
    opened_at: datetime
    updated_at: datetime
    closed_at: datetime | None
    run: str | None
    """The newest investigation."""
    category: Category | None
    subject: Subject | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One moment of an incident."""

    at: datetime
    kind: Literal["alert", "stage", "change", "evidence", "run", "note", "finding"]
    text: str
    evidence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runbook:
    """A versioned procedure for a category."""

    category: Category
    version: str
    title: str
    checks: tuple[str, ...]
    remediation: tuple[str, ...]
    verification: tuple[str, ...]
    rollback: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One use of a tool, frozen."""

    id: str
    tool: str
    arguments: str
    """Canonical JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A remediation made concrete."""

    id: str
    incident: str
    calls: tuple[ToolCall, ...]
    diff: str
    blast_radius: int
    """Services touched."""
    verification: str
    rollback: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An applied proposal, with its before and after."""

    id: str
    proposal: str
    status: ChangeStatus
    before: str
    after: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One durable execution."""

    id: str
    """`run_…`"""
    kind: str
    """Name of the registered work, such as `investigation`."""
    status: RunStatus
    subject: str
    """What it is about: an incident id, or a question."""
    version: str
    """Workflow version: content hash of the configuration it started under."""
    created_at: datetime
    updated_at: datetime
    attempts: int
    """How often it was started or recovered."""
    executor: str
    """Id of the process slot that holds it; empty when none does."""
    error: str
    """Empty unless it failed."""
    result: str
    """JSON; empty until it succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One journalled unit of a run."""

    run: str
    index: int
    name: str
    status: Literal["done", "failed"]
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the event log: the only source of progress for command line and server."""

    seq: int
    """Grows by insertion over all runs of one database; the resume token of every reader."""
    run: str
    key: str
    """Unique within the run; a replayed step cannot repeat it."""
    name: str
    """One of the event catalogue, such as `step.finished`."""
    at: datetime
    body: str
    """JSON object."""
