"""Life cycles, one table per noun: who may follow whom. Everything else reads these tables."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from quell.domain._errors import RefusedError

S = TypeVar("S", bound=StrEnum)


class Stage(StrEnum):
    """Where an Incident stands."""

    DETECTED = "detected"
    INVESTIGATING = "investigating"
    PROPOSED = "proposed"
    APPLYING = "applying"
    VERIFYING = "verifying"
    RESOLVED = "resolved"
    REVERTED = "reverted"
    ESCALATED = "escalated"


class RunStatus(StrEnum):
    """Where a Run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing is done any more, unless a person lets it go on."""
        return self in {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}


class ApprovalStatus(StrEnum):
    """Where an Approval stands."""

    REQUESTED = "requested"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CONSUMED = "consumed"


class ChangeStatus(StrEnum):
    """Where a Change stands."""

    INTENDED = "intended"
    STARTED = "started"
    APPLIED = "applied"
    VERIFIED = "verified"
    REVERTING = "reverting"
    REVERTED = "reverted"
    FAILED = "failed"
    UNKNOWN = "unknown"


class EffectState(StrEnum):
    """Where an Effect stands in the ledger."""

    INTENT = "intent"
    """Written down; certainly not sent."""
    STARTED = "started"
    """Sent, or about to be: from here on it may have happened."""
    DONE = "done"
    FAILED = "failed"
    """It certainly did not happen."""
    UNKNOWN = "unknown"
    """Nobody knows; a person or a later look settles it."""
    REVERTED = "reverted"
    """A person found what it may have done and undid it."""


INCIDENT_NEXT: Mapping[Stage, frozenset[Stage]] = {
    Stage.DETECTED: frozenset({Stage.INVESTIGATING, Stage.ESCALATED, Stage.RESOLVED}),
    Stage.INVESTIGATING: frozenset({Stage.PROPOSED, Stage.ESCALATED, Stage.RESOLVED}),
    Stage.PROPOSED: frozenset({Stage.APPLYING, Stage.INVESTIGATING, Stage.ESCALATED, Stage.RESOLVED}),
    Stage.APPLYING: frozenset({Stage.VERIFYING, Stage.REVERTED, Stage.ESCALATED}),
    Stage.VERIFYING: frozenset({Stage.RESOLVED, Stage.REVERTED, Stage.ESCALATED}),
    Stage.REVERTED: frozenset({Stage.INVESTIGATING, Stage.ESCALATED}),
    Stage.ESCALATED: frozenset({Stage.INVESTIGATING, Stage.RESOLVED}),
    Stage.RESOLVED: frozenset(),
}

RUN_NEXT: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.FAILED}),
    RunStatus.RUNNING: frozenset({RunStatus.WAITING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.WAITING: frozenset({RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.FAILED}),
    RunStatus.CANCELLED: frozenset({RunStatus.QUEUED}),
    RunStatus.FAILED: frozenset({RunStatus.QUEUED}),
    RunStatus.SUCCEEDED: frozenset(),
}

APPROVAL_NEXT: Mapping[ApprovalStatus, frozenset[ApprovalStatus]] = {
    ApprovalStatus.REQUESTED: frozenset(
        {ApprovalStatus.APPROVED, ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED, ApprovalStatus.SUPERSEDED}
    ),
    ApprovalStatus.APPROVED: frozenset({ApprovalStatus.CONSUMED, ApprovalStatus.EXPIRED, ApprovalStatus.SUPERSEDED}),
    ApprovalStatus.REJECTED: frozenset(),
    ApprovalStatus.EXPIRED: frozenset(),
    ApprovalStatus.SUPERSEDED: frozenset(),
    ApprovalStatus.CONSUMED: frozenset(),
}

CHANGE_NEXT: Mapping[ChangeStatus, frozenset[ChangeStatus]] = {
    ChangeStatus.INTENDED: frozenset({ChangeStatus.STARTED, ChangeStatus.FAILED}),
    ChangeStatus.STARTED: frozenset({ChangeStatus.APPLIED, ChangeStatus.FAILED, ChangeStatus.UNKNOWN}),
    ChangeStatus.APPLIED: frozenset({ChangeStatus.VERIFIED, ChangeStatus.REVERTING}),
    ChangeStatus.UNKNOWN: frozenset({ChangeStatus.APPLIED, ChangeStatus.FAILED, ChangeStatus.REVERTING}),
    ChangeStatus.REVERTING: frozenset({ChangeStatus.REVERTED, ChangeStatus.UNKNOWN}),
    ChangeStatus.VERIFIED: frozenset({ChangeStatus.REVERTING}),
    ChangeStatus.REVERTED: frozenset(),
    ChangeStatus.FAILED: frozenset(),
}

EFFECT_NEXT: Mapping[EffectState, frozenset[EffectState]] = {
    EffectState.INTENT: frozenset({EffectState.STARTED, EffectState.FAILED}),
    EffectState.STARTED: frozenset({EffectState.DONE, EffectState.FAILED, EffectState.UNKNOWN}),
    EffectState.UNKNOWN: frozenset({EffectState.DONE, EffectState.FAILED, EffectState.REVERTED}),
    EffectState.DONE: frozenset(),
    EffectState.FAILED: frozenset(),
    EffectState.REVERTED: frozenset(),
}


def step_to(table: Mapping[S, frozenset[S]], now: S, then: S) -> S:
    """Return `then` when the table allows it after `now`. Raises RefusedError otherwise."""
    if then in table[now]:
        return then
    allowed = ", ".join(sorted(table[now])) or "nothing: it is final"
    raise RefusedError(
        f"{type(now).__name__} cannot go from {now} to {then}", hint=f"from {now} it may go to: {allowed}"
    )
