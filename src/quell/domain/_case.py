"""Evidence and what is concluded from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from quell.domain._signal import Gap, Observation, QuestionKind, Scope, Window


class Confidence(StrEnum):
    """How sure a claim is; computed and capped by code."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Category(StrEnum):
    """A kind of incident. Known kinds can have a runbook and a track record; NOVEL has none."""

    CRASH_LOOP = "crash_loop"
    BAD_RELEASE = "bad_release"
    BAD_CONFIG = "bad_config"
    BAD_FLAG = "bad_flag"
    DEPENDENCY_DOWN = "dependency_down"
    NETWORK_LATENCY = "network_latency"
    NETWORK_LOSS = "network_loss"
    CPU_SATURATION = "cpu_saturation"
    MEMORY_EXHAUSTION = "memory_exhaustion"
    POOL_EXHAUSTION = "pool_exhaustion"
    SLOW_QUERY = "slow_query"
    LOCK_CONTENTION = "lock_contention"
    DISK_FULL = "disk_full"
    DESCRIPTOR_EXHAUSTION = "descriptor_exhaustion"
    TRAFFIC_SPIKE = "traffic_spike"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CLOCK_SKEW = "clock_skew"
    QUEUE_BACKLOG = "queue_backlog"
    NOVEL = "novel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The object at fault."""

    kind: Literal["service", "edge", "database", "queue", "flag", "host", "external", "unknown"]
    name: str
    """Service, database, queue or flag name; `caller->callee` for an edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One observation that a claim may cite."""

    id: str
    """`E1`, `E2` …, unique within one survey and stable for the same answers."""
    source: str
    """Reader that produced it."""
    question: QuestionKind
    query: str
    """Exactly what was asked, so that a person can ask it again."""
    window: Window
    excerpt: str
    """One line for people, made by our code from the typed row; log text in it is escaped and capped."""
    digest: str
    """SHA-256 of the canonical JSON of the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Evidence together with its typed row and its weight."""

    evidence: Evidence
    observation: Observation
    score: float
    """Relevance, >= 0: effect size x significance, after floors; comparable between kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All that was learned and all that was not, from every reader, for one window."""

    scope: Scope
    window: Window
    baseline: Window
    facts: tuple[Fact, ...]
    """Most relevant first; total order."""
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Briefing:
    """The curated, budgeted picture handed to a mind or a person."""

    text: str
    """Grouped, indented lines; relative times; at most `budget_tokens`."""
    tokens: int
    """Estimated tokens of `text`, an upper bound."""
    budget_tokens: int
    shown: tuple[str, ...]
    """Ids of the evidence in `text`, in order."""
    left_out: tuple[tuple[str, int], ...]
    """What did not fit: (group, number of facts)."""
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """A claim's link to evidence."""

    evidence: str
    """Evidence id."""
    says: str
    """What this evidence means for the claim, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A proposed cause."""

    id: str
    """`H1`, `H2` … in rank order."""
    category: Category
    subject: Subject
    statement: str
    """One sentence a person can read: what, where, since when."""
    since: datetime | None
    status: Literal["open", "supported", "weakened", "refuted", "confirmed"]
    confidence: Confidence
    score: float
    support: tuple[Citation, ...]
    against: tuple[Citation, ...]


class Outcome(StrEnum):
    """How an investigation ended. All three are answers."""

    CAUSE_FOUND = "cause_found"
    HEALTHY = "healthy"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The claim that an investigation ends with."""

    outcome: Outcome
    statement: str
    """One or two sentences: the answer to *What caused it?*"""
    category: Category | None
    """None unless a cause was found."""
    subject: Subject | None
    since: datetime | None
    confidence: Confidence
    cap: str
    """Why the confidence is not higher; empty when nothing capped it."""
    citations: tuple[Citation, ...]
    """Never empty when a cause was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that the evidence engine concluded from one survey."""

    finding: Finding
    hypotheses: tuple[Hypothesis, ...]
    """Best first."""
    impact: tuple[Citation, ...]
    """What is going on: the symptoms, each cited, worst first."""
    victims: tuple[tuple[str, str], ...]
    """Services explained away: (service, the service or edge it suffers from)."""
