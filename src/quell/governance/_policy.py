"""Decide what a call may do: permit, ask or deny, by policies that were judged before they may decide."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import ClassVar, Literal, Self

import cedarpy

from quell.domain import (
    ConfigError,
    Facts,
    FrozenCall,
    Level,
    PolicyExplanation,
    PolicyReport,
    PolicyRuling,
    PolicyShift,
    PolicySource,
    PolicyTableReport,
    Principal,
    RecordedDecision,
    Recovery,
    RefusedError,
    Tool,
    ToolClass,
    Verdict,
    may_use,
)
from quell.governance._arguments import digest_of, resource_of
from quell.governance._canonical import parse
from quell.governance._packs import pack
from quell.governance._plan import person
from quell.governance._policy_engine import Answer, Engine, Request, counted_approvals, request_of
from quell.governance._policy_load import Examined, examine
from quell.governance._policy_schema import cedar_schema, effective_class, under_other_names
from quell.governance._policy_source import QUORUM_MAX, Policy, attributes_read
from quell.governance._policy_table import run_table
from quell.governance._recorded import recorded

SERVER_ASKS, EDITED, PLANNED, GATED = "quell.server-asks", "quell.edited", "quell.plan", "quell.config-gate"
"""Stand before the policies of a permit that became a question: the tool's server wants people, they edited or planned it,
or the agent's file names it."""
_ANYWAY = frozenset({SERVER_ASKS, EDITED, PLANNED, GATED})
_APPROVERS = ("approver",)
"""Who may approve what a permit allows that names nobody."""


class PolicySet:
    """Policies and the tools that they were judged for; immutable, safe to share between threads."""

    _engine: ClassVar[type[Engine]] = Engine

    def __init__(self, examined: Examined, tools: Iterable[Tool]) -> None:
        """Make the engines of a set that was examined; call `load` instead."""
        enforced = [policy for policy in examined.policies if policy.mode == "enforce"]
        self._all = examined.policies
        self._policies: Mapping[str, Policy] = {policy.id: policy for policy in enforced}
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._types = examined.types
        self._others = {tool.name: found for tool in self._tools.values() if (found := self._otherwise(tool))}
        self._schema = cedarpy.Schema.from_json_str(examined.schema)
        self._read = attributes_read(examined.policies)
        self._deciding = self._engine(enforced, self._schema)
        logged: dict[str, list[Policy]] = {}
        for policy in examined.policies:
            if policy.mode == "log":
                logged.setdefault(policy.source, []).append(policy)
        self._watching = {name: (self._engine(found, self._schema), found) for name, found in logged.items()}
        self.digest = examined.digest
        """Digest of all sources, the built-in one too."""

    @classmethod
    def load(cls, sources: Iterable[PolicySource], *, tools: Iterable[Tool]) -> Self:
        """Judge policies for these pinned tools and make them ready to decide.

        Raises ConfigError with every mistake of every source.
        """
        known = tuple(tools)
        examined = cls._examined(tuple(sources), known)
        if examined.problems:
            raise ConfigError(
                f"the policies have {len(examined.problems)} mistakes; nothing is permitted until they are put right",
                hint="; ".join(str(problem) for problem in examined.problems[:3]),
                problems=examined.problems,
            )
        return cls(examined, known)

    @staticmethod
    def _examined(sources: tuple[PolicySource, ...], tools: tuple[Tool, ...]) -> Examined:
        return examine(sources, tools)

    @staticmethod
    def check(sources: Iterable[PolicySource], *, tools: Iterable[Tool] | None = None) -> PolicyReport:
        """Say all that is wrong with policies, without tools at hand too."""
        examined = examine(tuple(sources), None if tools is None else tuple(tools))
        return PolicyReport(
            problems=examined.problems,
            policies=tuple(policy.id for policy in examined.policies),
            unchecked=examined.unchecked,
            digest=examined.digest,
        )

    @staticmethod
    def pack(
        name: Literal["copilot", "reversible-auto", "dark-factory"], *, mode: Literal["enforce", "log"] = "enforce"
    ) -> PolicySource:
        """Return a pack that comes with Quell. Raises UsageError when there is none of this name."""
        return pack(name, mode=mode)

    def admit(self, call: FrozenCall, *, tool: Tool, principal: Principal, facts: Facts) -> Verdict:
        """Decide about a call. Whatever goes wrong while deciding, the verdict is deny."""
        try:
            return self._admitted(call, tool, principal, facts)
        except RefusedError as refusal:
            return self._deny(("quell.error",), f"{refusal}: {refusal.hint}")
        except Exception as error:  # noqa: BLE001  # a fault in the guard is never a way through it
            return self._deny(("quell.error",), f"the decision failed: {type(error).__name__}")

    def approvers(
        self, call: FrozenCall, *, tool: Tool, principal: Principal, facts: Facts, people: Sequence[Principal]
    ) -> tuple[Principal, ...]:
        """Return who of these people could approve a call that asks: by role, of the same tenant, never the requester."""
        verdict = self.admit(call, tool=tool, principal=principal, facts=facts)
        if verdict.decision != "ask":
            return ()
        wanted = set(verdict.approver_roles)
        return tuple(
            each
            for each in people
            if each.user
            and person(each.user) != person(principal.user)
            and each.tenant == principal.tenant
            and not each.agent
            and wanted & set(each.roles)
        )

    def run_table(self, text: str, *, source: str = "table") -> PolicyTableReport:
        """Decide every case of a TOML table and say which came out otherwise. Raises ConfigError for a malformed table."""
        return run_table(text, source=source, tools=self._tools, admit=self.admit)

    recorded = staticmethod(recorded)
    """Reads a decision back from its audit record, to be decided again."""

    def simulate(self, records: Iterable[RecordedDecision]) -> tuple[PolicyShift, ...]:
        """Decide recorded calls again by this set, and return those that come out otherwise.

        What became a question for another reason was a permit of the policies, and is compared as one.
        """
        shifts = []
        for record in records:
            tool = self._tools.get(record.call.tool)
            if tool is None:
                verdict = self._deny(("quell.pin",), f"no tool `{record.call.tool}` is known today")
            else:
                verdict = self.admit(record.call, tool=tool, principal=record.principal, facts=record.facts)
            was = ("permit", 0, ()) if not _ANYWAY.isdisjoint(record.verdict.policies) else _outcome(record.verdict)
            if _outcome(verdict) != was:
                shifts.append(PolicyShift(record=record, verdict=verdict))
        return tuple(shifts)

    def explain(self, call: FrozenCall, *, tool: Tool, principal: Principal, facts: Facts) -> PolicyExplanation:
        """Say what each policy that covers the tool says of a call, beside the verdict."""
        verdict = self.admit(call, tool=tool, principal=principal, facts=facts)
        try:
            request = self._request(call, tool, principal, facts)
        except RefusedError:
            return PolicyExplanation(verdict=verdict, rulings=())
        rulings = [self._ruling(policy, request) for policy in self._all]
        rank = ("fails", "applies", "applies with approvals", "does not apply")
        return PolicyExplanation(
            verdict=verdict, rulings=tuple(sorted(rulings, key=lambda each: (rank.index(each.says), each.policy)))
        )

    def _ruling(self, policy: Policy, request: Request) -> PolicyRuling:
        engine = self._engine([policy], self._schema)
        now, then = engine.answers(request, [0, QUORUM_MAX])
        says: Literal["applies", "applies with approvals", "does not apply", "fails"] = "does not apply"
        if now.errors or then.errors:
            says = "fails"
        elif now.policies:
            says = "applies"
        elif then.policies:
            says = "applies with approvals"
        return PolicyRuling(policy=policy.id, source=policy.source, effect=policy.effect, says=says, text=policy.text)

    def _admitted(self, call: FrozenCall, tool: Tool, principal: Principal, facts: Facts) -> Verdict:
        known = self._tools.get(call.tool)
        refusal = _unbound(call, tool, known) or _beyond_authority(known, principal)
        if known is None or refusal is not None:
            return self._deny((refusal[0],), refusal[1]) if refusal else self._deny(("quell.pin",), "no such tool")
        request = self._request(call, known, principal, facts)
        decide = _Decision(
            policies=self._policies,
            facts=facts,
            is_effect=effective_class(known).is_effect,
            floor=_floor(known),
            ask=partial(self._deciding.answers, request),
        )
        ruling = decide.verdict(call)
        return Verdict(
            decision=ruling.decision,
            policies=ruling.policies,
            reason=ruling.reason,
            approver_roles=ruling.roles,
            quorum=ruling.quorum,
            policy_digest=self.digest,
            would_deny=self._would_deny(call, request, decide, is_permit=ruling.decision == "permit"),
        )

    def _request(self, call: FrozenCall, tool: Tool, principal: Principal, facts: Facts) -> Request:
        asking = partial(
            request_of, call, types=self._types[tool.name], read=self._read, principal=principal, facts=facts
        )
        others = self._others.get(tool.name, ())
        return replace(asking(tool=tool), others=tuple((asking(tool=other), schema) for other, schema in others))

    def _otherwise(self, tool: Tool) -> tuple[tuple[Tool, cedarpy.Schema], ...]:
        """Return a tool under the other names that policies may mean it by, each with a schema of its own."""
        types = self._types[tool.name]
        return tuple(
            (other, cedarpy.Schema.from_json_str(json.dumps(cedar_schema({other.name: types}, [other]))))
            for other in under_other_names(tool, known=self._tools)
        )

    def _deny(self, policies: tuple[str, ...], reason: str) -> Verdict:
        return Verdict(decision="deny", policies=policies, reason=reason, policy_digest=self.digest)

    def _would_deny(
        self, call: FrozenCall, request: Request, decided: _Decision, *, is_permit: bool
    ) -> tuple[str, ...]:
        """Name what watching sets say no with: their forbids, `NAME:no-permit` where none permits, `NAME:ask` of a permit."""
        named: list[str] = []
        for name, (engine, policies) in self._watching.items():
            if any(policy.effect == "permit" for policy in policies):
                by_id = {policy.id: policy for policy in policies}
                ruling = replace(decided, policies=by_id, ask=partial(engine.answers, request)).verdict(call)
                says, stopped_by = ruling.decision, ruling.policies
            else:
                (answer,) = engine.answers(request, [counted_approvals(decided.facts)])
                stopped_by = ("quell.error",) if answer.errors else answer.policies
                says = "deny" if stopped_by else "permit"
            if says == "deny":
                named += [f"{name}:error"] if stopped_by == ("quell.error",) else stopped_by or [f"{name}:no-permit"]
            elif says == "ask" and is_permit:
                named.append(f"{name}:ask")
        return tuple(named)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ruling:
    """A verdict before it is told."""

    decision: Literal["permit", "ask", "deny"]
    policies: tuple[str, ...]
    reason: str
    roles: tuple[str, ...] = ()
    quorum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """One decision: first without people, then with as many as any policy may ask for."""

    policies: Mapping[str, Policy]
    facts: Facts
    is_effect: bool
    floor: int
    """Approvals without which no policy can permit it."""
    ask: partial[list[Answer]]

    def verdict(self, call: FrozenCall) -> _Ruling:
        """Take the decision."""
        (alone,) = self.ask([0])
        if alone.errors:
            return _failed(alone)
        by_itself = [policy for policy in self._counting(alone) if self._need(policy) == 0]
        if by_itself:
            return _Ruling(decision="permit", policies=_ids(by_itself), reason="permitted by policy")
        answers = self.ask(range(1, QUORUM_MAX + 1))
        for answer in answers:
            if answer.errors:
                return _failed(answer)
        ways = self._ways(answers)
        if not ways:
            return self._denied(call, answers[-1])
        quorum, _, _, way = max(ways, key=lambda each: each[:3])
        return self._approved(call, way, quorum, answers) or _Ruling(
            decision="ask",
            policies=(way.id, *(() if alone.is_allowed else alone.policies)),
            reason=way.reason or f"`{call.tool}` on {call.resource.kind} {call.resource.name} needs {_people(quorum)}",
            roles=way.approvers or _APPROVERS,
            quorum=quorum,
        )

    def _approved(self, call: FrozenCall, way: Policy, quorum: int, answers: Sequence[Answer]) -> _Ruling | None:
        """Permit when as many people as asked for approved, and the policies still allow it with exactly those."""
        count = counted_approvals(self.facts)
        if count < quorum or way not in self._counting(answers[count - 1]):
            return None
        return _Ruling(decision="permit", policies=(way.id,), reason=f"`{call.tool}` was approved by {_people(count)}")

    def _ways(self, answers: Sequence[Answer]) -> list[tuple[int, int, str, Policy]]:
        """List the permits that people could use: approvals needed, fewest roles last, id, policy.

        The strictest decides: two permits of different people must not add up to less than either asks for.
        """
        found: dict[str, tuple[int, int, str, Policy]] = {}
        for count, answer in enumerate(answers, start=1):
            for policy in self._counting(answer):
                if count >= self._need(policy, at_least=1):
                    roles = policy.approvers or _APPROVERS
                    found.setdefault(policy.id, (count, -len(roles), policy.id, policy))
        return list(found.values())

    def _counting(self, answer: Answer) -> list[Policy]:
        """Return the permits of a yes that count: break-glass ones only while the glass is broken, then only they lift a freeze."""
        if not answer.is_allowed:
            return []
        permits = [self.policies[name] for name in answer.policies]
        if not self.facts.is_break_glass:
            return [policy for policy in permits if not policy.is_break_glass]
        if self.facts.is_frozen and self.is_effect:
            return [policy for policy in permits if policy.is_break_glass]
        return permits

    def _need(self, policy: Policy, *, at_least: int = 0) -> int:
        """Return how many people a permit needs; one that names approvers never permits without any."""
        return max(policy.quorum, 1 if policy.approvers else 0, self.floor, at_least)

    def _denied(self, call: FrozenCall, answer: Answer) -> _Ruling:
        if answer.is_allowed:
            return _Ruling(
                decision="deny",
                policies=("quell.frozen",) if self.facts.is_frozen else ("quell.break-glass",),
                reason="only a policy marked @break_glass could permit this, while the glass is broken",
            )
        if not answer.policies:
            return _Ruling(
                decision="deny",
                policies=(),
                reason=f"no policy permits `{call.tool}` on {call.resource.kind} {call.resource.name} for this principal",
            )
        reasons = [self.policies[name].reason for name in answer.policies]
        said = "; ".join(reason for reason in reasons if reason)
        return _Ruling(
            decision="deny", policies=answer.policies, reason=said or f"forbidden by {', '.join(answer.policies)}"
        )


def _failed(answer: Answer) -> _Ruling:
    return _Ruling(
        decision="deny", policies=("quell.error",), reason=f"a policy could not be evaluated: {answer.errors[0][:300]}"
    )


def _ids(policies: Iterable[Policy]) -> tuple[str, ...]:
    return tuple(policy.id for policy in policies)


def _people(count: int) -> str:
    return "one approval" if count == 1 else f"{count} approvals"


def _outcome(verdict: Verdict) -> tuple[str, int, tuple[str, ...]]:
    return verdict.decision, verdict.quorum, tuple(sorted(verdict.approver_roles))


def _floor(tool: Tool) -> int:
    if effective_class(tool) is ToolClass.IRREVERSIBLE:
        return 2
    return 1 if tool.recovery is Recovery.BLIND and effective_class(tool).is_effect else 0


def _unbound(call: FrozenCall, tool: Tool, known: Tool | None) -> tuple[str, str] | None:
    """Refuse a call that is not what it says: another tool, another definition, another resource, other bytes."""
    if known is None:
        return "quell.pin", f"no tool {ascii(call.tool)[:80]} is known to the policies"
    if not (known.name == tool.name == call.tool and known.pin == tool.pin == call.pin):
        return "quell.pin", f"`{known.name}` is not the tool that was pinned; a person pins it again"
    arguments = parse(call.arguments)
    from quell.governance._schema import compiled  # noqa: PLC0415 - what judges schemas is large; many never call

    if not isinstance(arguments, dict) or not compiled(known.input_schema).fits(call.arguments, arguments):
        return "quell.arguments", f"the arguments of `{known.name}` are not what its schema asks for"
    if call.resource != resource_of(known, arguments, environment=call.resource.environment):
        return "quell.binding", "the resource of the call is not what its arguments name"
    digest = digest_of(tool=call.tool, pin=call.pin, arguments=call.arguments, resource=call.resource)
    return None if digest == call.digest else ("quell.binding", "the call is not what its digest was made of")


def _beyond_authority(tool: Tool | None, principal: Principal) -> tuple[str, str] | None:
    """Refuse what the agent, the workflow or the credential may not: authority is what all of them share."""
    if tool is None or not principal.user:
        return "quell.user", "nobody is named for whom this is done"
    for name, globs in (("agent", principal.agent_tools), ("workflow", principal.workflow_tools)):
        if globs is not None and not any(fnmatchcase(tool.name, glob) for glob in globs):
            return f"quell.{name}", f"the {name} of this run may not use `{tool.name}`"
    if (principal.agent and principal.agent_tools is None) or (principal.workflow and principal.workflow_tools is None):
        return "quell.agent", "the agent or workflow of this run says of no tool that it may use it"
    if not may_use(principal, tool.name):
        return "quell.credential", f"the credential may not use `{tool.name}`"
    if principal.level < Level.APPROVE_EACH and effective_class(tool).is_effect:
        return "quell.level", f"at level {int(principal.level)} an agent looks and proposes, and changes nothing"
    return None
