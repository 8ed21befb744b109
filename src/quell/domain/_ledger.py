"""The words of the ledger: what is intended, what is known about it, and who may act on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from quell.domain._guard import FrozenCall, Recovery, Resource
from quell.domain._lifecycle import EffectState


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Proof that a worker holds a run at this moment: whoever takes the run over makes it worthless."""

    run: str
    dispatch: int
    token: str
    """The lease under which the run is executed."""

    @property
    def text(self) -> str:
        """Write it as the ledger keeps it."""
        return f"{self.dispatch}.{self.token}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An effect that is wanted, and how it may be recovered; all of it is fixed before anything happens."""

    call: FrozenCall
    recovery: Recovery
    user: str
    """Subject of the person or service behind it."""
    tenant: str = "local"
    workflow_digest: str = ""
    revert: str = "[]"
    """JSON of the calls that undo it."""
    approval: str = ""
    """Id of the approval that it consumes; empty when none was needed."""
    timeout_s: float = 60.0
    """Deadline of one attempt, and of one look."""
    quiet_s: float = 60.0
    """How long after its deadline a request may still arrive; until then a look that finds nothing is not believed."""
    key_valid_s: float = 86_400.0
    """How long the other side remembers an idempotency key; later it is never sent again."""
    attempts_max: int = 3
    """How often it is sent at most, over all lives of the run."""

    def __post_init__(self) -> None:
        """Refuse bounds under which nothing could be promised."""
        if self.timeout_s <= 0 or self.quiet_s < 1 or self.attempts_max < 1:
            raise ValueError("an effect has a deadline, a quiet time of a second or more, and at least one attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """The effect is there."""

    result: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotHappened:
    """Certain: this attempt did nothing, or, as the answer of a look, no attempt did."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclear:
    """Nobody knows: no answer in time, a lost connection, an answer that says nothing."""

    detail: str


Ending: TypeAlias = Happened | NotHappened | Unclear
"""What an attempt, or a look at the world, can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One entry of the ledger: what was to happen, and what is known of it."""

    key: str
    """Made of run, call id and digest of the frozen call; it travels as idempotency key."""
    call: FrozenCall
    recovery: Recovery
    user: str
    tenant: str
    workflow_digest: str
    revert: str
    approval: str
    state: EffectState
    reason: Literal["", "refused", "failed", "unclear", "abandoned", "probed", "settled"]
    """Why it stands there: refused by us, failed at the other side, no answer, its run ended, seen by a look, a person."""
    detail: str
    fence: str
    """Who may act on it: the fence of the worker that met it last."""
    attempts: int
    """How often it was sent, or was about to be."""
    is_in_doubt: bool
    """Whether an attempt before the last may have happened."""
    intended_at: datetime
    started_at: datetime | None
    """When it was first sent."""
    sent_at: datetime | None
    """When it was last sent."""
    ended_at: datetime | None
    result: str
    """What it brought; empty when that was too large to keep."""
    result_digest: str
    """SHA-256 of the whole result; empty before there is one."""
    result_bytes: int
    settled_by: str
    """Who settled it when nobody knew: a person, or `probe`."""

    @property
    def resource(self) -> Resource:
        """What it acts on."""
        return self.call.resource

    @property
    def is_whole(self) -> bool:
        """Whether `result` is all of it."""
        return len(self.result.encode()) == self.result_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectFacts:
    """What the ledger says about the recent past of a workflow version, for the one who decides on one more call."""

    calls: int
    """Effects of the window and all in flight, without this call and without those that we refused ourselves."""
    resources: int
    """Distinct resources that may have been touched, this call's included."""
    units: int
    """Units that may have been touched, this call's included."""
    failures: int
    """Those that failed at the other side, and those that nobody knows about."""
    in_flight: int
    """Intended or started and not ended, however long ago; without this call."""
