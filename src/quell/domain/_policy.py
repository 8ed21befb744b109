"""The words of the policy kernel: where policies come from, what a test of them found, what a change of them would change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quell.domain._errors import Problem
from quell.domain._guard import Facts, FrozenCall, Principal, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """One named set of Cedar policies: a file of the operator or a pack."""

    name: str
    """Such as `policies/payments.cedar` or `pack:copilot`; problems point to it."""
    text: str
    mode: Literal["enforce", "log"] = "enforce"
    """A set in `log` never decides; what it would have denied is told beside the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """What a check of policies found."""

    problems: tuple[Problem, ...]
    policies: tuple[str, ...]
    """Ids of all policies that could be read."""
    unchecked: tuple[str, ...]
    """Ids of policies that name tools or arguments which were not at hand: read and linted, their types not checked."""
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMismatch:
    """A case of a policy table that came out otherwise than the table says."""

    case: str
    expected: str
    """The decision, and the policies or the quorum where the table names them."""
    verdict: Verdict

    def __str__(self) -> str:
        """Write it as one line with the policies that decided."""
        by = ", ".join(self.verdict.policies) or "no policy"
        return f"{self.case}: expected {self.expected}, got {self.verdict.decision} by {by}: {self.verdict.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTableReport:
    """What a run of a policy table found."""

    cases: int
    mismatches: tuple[PolicyMismatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """One decision of the past with all that it was decided from, to be decided again."""

    call: FrozenCall
    principal: Principal
    facts: Facts
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShift:
    """One decision of the past that other policies would have taken otherwise."""

    record: RecordedDecision
    verdict: Verdict
    """What the candidate says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRuling:
    """What one policy by itself says of a call."""

    policy: str
    source: str
    effect: Literal["permit", "forbid"]
    says: Literal["applies", "applies with approvals", "does not apply", "fails"]
    text: str
    """The policy as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyExplanation:
    """Why a call got its verdict: the verdict, and each policy's part in it."""

    verdict: Verdict
    rulings: tuple[PolicyRuling, ...]
    """Those that apply first, then those of the same tool that do not."""
