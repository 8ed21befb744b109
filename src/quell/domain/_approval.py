"""The words of human authority: what is asked, what it is bound to, who answered, and what stops everything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal, Protocol, TypeAlias

from quell.domain._guard import ASK_PEOPLE, FrozenCall, Principal, ToolClass, Verdict
from quell.domain._lifecycle import ApprovalStatus

StepState: TypeAlias = Literal["pending", "used", "done", "failed"]
"""Where one call of an approval stands: not begun, begun, ended well, ended badly."""


class Signer(Protocol):
    """Signs votes and tells signed ones from others; the key stands outside the database."""

    key_id: str
    """Names the key without giving it away."""

    def sign(self, message: bytes) -> str:
        """Return the signature as text."""

    def verify(self, message: bytes, *, signature: str) -> bool:
        """Tell whether this key made that signature over exactly these bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedCall:
    """One call that people are asked about, with what code knows of it."""

    call: FrozenCall
    tool_class: ToolClass
    diff: str = ""
    """What a dry run said would change; empty when there was none."""
    revert_plan: str = ""
    """The calls that would undo it; empty when nothing does."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the inventory knows of the resource: (name, value), as people are shown it."""
    form: str = ""
    """JSON Schema of what the tool's server wants people to fill in; empty when it wants nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """A wish for approval: one call, or a whole plan in its order."""

    principal: Principal
    """Whose run asks; the person behind it never approves."""
    calls: tuple[AskedCall, ...]
    verdict: Verdict
    """The `ask` of policy: who may approve, and how many."""
    evidence_digest: str = ""
    """Digest of the evidence that led here."""
    explanation: str = ""
    """The model's own words; shown apart and marked as unverified."""
    barred: tuple[str, ...] = ()
    """Who may not approve it either, such as who edited the call before."""
    gate: str = ""
    """What wants people beside policy: a pattern of the agent's file, or the tool by which the agent asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalTerms:
    """Everything that an approval is bound to. A change in any field is another digest, so another approval."""

    id: str
    """`apr_…`"""
    tenant: str
    run: str
    requester: str
    """Subject of the person behind the run."""
    barred: tuple[str, ...]
    """Subjects who may not approve: the requester, and whoever edited the calls."""
    agent: str
    workflow: str
    workflow_digest: str
    policy_digest: str
    policies: tuple[str, ...]
    """Ids of the policies that asked."""
    reason: str
    """Why policy asks, in its own words."""
    evidence_digest: str
    approver_roles: tuple[str, ...]
    quorum: int
    calls: tuple[AskedCall, ...]
    explanation: str
    supersedes: str
    """The approval that this one was edited from; empty when none."""
    requested_at: datetime
    expires_at: datetime
    gate: str = ""
    """What wants people beside policy: a pattern of the agent's file, or the tool by which the agent asked."""

    def origin(self) -> Mapping[str, str]:
        """Say who asks, as AURA's wire does: a pattern of the configuration, or the agent itself."""
        if self.gate == ASK_PEOPLE:
            said = json.loads(self.calls[0].call.arguments)
            return {
                "kind": "agent_requested",
                "reason": str(said.get("risk_rationale", "")),
                "agent_name": self.agent,
            }
        return {"kind": "config_gate", "matched_pattern": self.gate or ", ".join(self.policies)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one person said to a request, signed."""

    approval: str
    digest: str
    """The whole digest that the voter saw."""
    verdict: Literal["approve", "reject"]
    voter: str
    """Subject of the person."""
    tenant: str
    roles: tuple[str, ...]
    """The eligible roles that the voter had."""
    reason: str
    at: datetime
    answers: str = ""
    """What the voter filled into the form of the tool's server, canonical JSON; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A request for human decision, bound to a digest of everything it is about."""

    terms: ApprovalTerms
    digest: str
    """SHA-256 of the canonical terms, in hex: what an approver sends back."""
    status: ApprovalStatus
    """As of the moment it was read: what has passed its time is expired."""
    votes: tuple[Vote, ...]
    """Oldest first; only those whose signature holds."""
    steps: tuple[StepState, ...]
    """One per call, in order."""
    settled_at: datetime | None
    """When it was approved, rejected, superseded or used up."""
    told: str
    """What happened to it so far, as one sentence for people."""

    @property
    def id(self) -> str:
        """Name the approval, `apr_…`."""
        return self.terms.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What an answer to a request did."""

    approval: Approval
    change: Literal["counted", "settled", "none"]
    """`counted`: one vote of several; `settled`: it decided; `none`: it was a repetition."""
    told: str
    """What happened, as one sentence for the person who answered."""

    def account(self, *, verdict: str, reason: str, way: str) -> dict[str, object]:
        """Return what the audit keeps of the answer, whichever way it came."""
        return {
            "approval": self.approval.id,
            "digest": self.approval.digest,
            "verdict": verdict,
            "reason": reason,
            "way": way,
            "status": self.approval.status.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What stands ready to run: each field must be what was approved."""

    principal: Principal
    call: FrozenCall
    policy_digest: str
    """Of the verdict that re-authorises it now."""
    evidence_digest: str = ""
    diff: str = ""
    revert_plan: str = ""
    approval: str = ""
    """The approval that it comes from, such as that of the plan being carried out; empty: the newest of this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """One call of an approval was used up; it cannot be used again."""

    approval: str
    digest: str
    position: int
    """Which call of the plan, from 0."""
    of: int
    """How many calls the plan has."""
    voters: tuple[str, ...]
    """Who approved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproverHabit:
    """How one person decides: the figures that show rubber-stamping."""

    approver: str
    decisions: int
    approved: int
    median_s: float
    """Median time from request to answer."""
    under_3s: int
    """Answers within three seconds of the request."""

    @property
    def approve_share(self) -> float:
        """Share of answers that said yes."""
        return self.approved / self.decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlass:
    """Authority that a person took in an emergency, to be reviewed by another."""

    id: str
    """`brk_…`"""
    tenant: str
    user: str
    run: str
    """The one run that it covers; empty: what the person does directly."""
    reason: str
    opened_at: datetime
    expires_at: datetime
    review_due_at: datetime
    reviewed_at: datetime | None
    reviewed_by: str
    review: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A stop that people set: a kill, or a freeze with a window."""

    id: str
    """`swt_…`"""
    kind: Literal["kill", "freeze"]
    tenant: str
    """Glob, as the three that follow; all four must match."""
    agent: str
    environment: str
    tool: str
    starts_at: datetime
    ends_at: datetime | None
    """None: until somebody lifts it."""
    reason: str
    by: str

    def covers(self, call: FrozenCall, *, principal: Principal, also: Iterable[str] = ()) -> bool:
        """Tell whether a call of a principal falls under its globs; `also` are other names that the tool goes by."""
        return (
            fnmatchcase(principal.tenant, self.tenant)
            and fnmatchcase(principal.agent, self.agent)
            and fnmatchcase(call.resource.environment, self.environment)
            and any(fnmatchcase(name, self.tool) for name in (call.tool, *also))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchState:
    """Which stops were in force at one moment."""

    as_of: datetime
    switches: tuple[Switch, ...]
    """Those whose window holds `as_of`."""
    stale_max_s: float = 0.0
    """How old this may be at most; 0: read in the transaction that asks."""

    def stops(
        self,
        call: FrozenCall,
        *,
        principal: Principal,
        kind: Literal["kill", "freeze"] | None = None,
        also: Iterable[str] = (),
    ) -> tuple[Switch, ...]:
        """Return the switches that cover a call; `also` are other names that its tool goes by."""
        return tuple(
            switch
            for switch in self.switches
            if (kind is None or switch.kind == kind) and switch.covers(call, principal=principal, also=also)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A kill was set; this is what it came too late for."""

    switch: Switch
    in_flight: tuple[str, ...]
    """Keys of the effects that had started before it and have not ended."""
