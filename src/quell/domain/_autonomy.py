"""The words of earned autonomy: what was tried, what it proves, and how far an agent may go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from quell.domain._guard import Level, ToolClass


class TrialOutcome(StrEnum):
    """How something that an agent did ended, after it was verified."""

    VERIFIED_OK = "verified_ok"
    REVERTED = "reverted"
    FAILED = "failed"
    VIOLATION = "violation"
    """It broke a policy."""
    HUMAN_DISAGREED = "human_disagreed"
    """It worked, and a person would not have done it."""


class TrialSource(StrEnum):
    """Where a trial took place. Only live trials count above `Level.APPROVE_EACH`."""

    LIVE = "live"
    SHADOW = "shadow"
    REPLAY = "replay"


ReviewVerdict: TypeAlias = Literal["agree", "disagree", "violation", "severe"]
"""What is said about a trial afterwards: it can confirm one or lower it, never raise it."""

RecordKind: TypeAlias = Literal["trial", "review", "confirmation", "demotion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AutonomyScope:
    """What a level is earned for: one version of a workflow, one class of actions, one environment."""

    workflow_digest: str
    action_class: ToolClass
    environment: str
    tenant: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One verified outcome."""

    ref: str
    """What it is the outcome of, such as the key of the ledger; a second record of it counts nothing."""
    outcome: TrialOutcome
    source: TrialSource
    is_severe: bool = False
    """Whether it caused an incident of the highest severity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutonomyRecord:
    """One row of the evidence: a trial, what a person said about one, or a word about the level."""

    seq: int
    """Position within the scope, from 1."""
    kind: RecordKind
    at: datetime
    ref: str = ""
    outcome: TrialOutcome | None = None
    source: TrialSource | None = None
    is_severe: bool = False
    by: str = ""
    """The person who agreed, disagreed, confirmed or demoted; empty when nobody did."""
    is_approver: bool = False
    """Whether that person held a role that may confirm."""
    is_owner: bool = False
    """Whether that person owns the agent."""
    to: Level | None = None
    """Level that is confirmed, or demoted to."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Trials that count, by how they ended."""

    successes: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A person's word for a promotion, waiting for others or for nothing."""

    by: str
    to: Level
    at: datetime
    is_owner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the records of a scope add up to."""

    level: Level = Level.APPROVE_EACH
    why: str = "a new workflow version begins here"
    seq: int = 0
    """Records that are in it."""
    since_seq: int = 0
    """Record of the last automatic demotion; evidence must be earned again from there."""
    level_at: datetime | None = None
    """When the level last changed; None: it never did."""
    live: Tally = Tally()
    """Live trials of this workflow version; successes with which a person agreed."""
    live_since: Tally = Tally()
    """Those after the last automatic demotion."""
    every: Tally = Tally()
    """Trials of any source, counted the same way."""
    every_since: Tally = Tally()
    watched: Tally = Tally()
    """The latest live trials at this level, also those with which nobody agreed yet: what the floor watches."""
    watch_seq: int = 0
    """Record after which they begin."""
    unagreed: int = 0
    """Verified successes that count for nothing until a person agrees."""
    recent: tuple[TrialOutcome, ...] = ()
    """The last live outcomes, oldest first."""
    pending: tuple[Confirmation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AutonomyStep:
    """One record, and what it did."""

    record: AutonomyRecord
    before: Standing
    after: Standing
    """Equal to `before` when the record was there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutonomyView:
    """A standing as people are shown it."""

    scope: AutonomyScope
    standing: Standing
    next_level: Level | None
    """None at the top."""
    claim: float | None
    """Share of successes that must be proved for it; None when only a person's word is needed."""
    trials_needed: int
    """Agreed successes in a row that would still be needed."""
    confirmations_needed: int
    blockers: tuple[str, ...]
    """Why the next level cannot be confirmed now; empty when it can."""
