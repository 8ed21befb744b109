"""Ask Cedar: a call as a request, and an answer that is a yes only when nothing at all went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cedarpy

from quell.domain import Facts, FrozenCall, Principal, RefusedError, Tool
from quell.governance._canonical import INTEGER_MAX, Json, parse
from quell.governance._policy_schema import HISTORY, ArgumentType, cedar_value
from quell.governance._policy_source import QUORUM_MAX, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Cedar says of one request."""

    is_allowed: bool
    policies: tuple[str, ...]
    """Policies that decided: the permits of a yes, the forbids of a no."""
    errors: tuple[str, ...]
    """What went wrong; whatever it was, the answer is no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call as Cedar sees it; what people have approved is filled in for each question."""

    principal: Mapping[str, str]
    action: Mapping[str, str]
    resource: Mapping[str, str]
    entities: str
    context: str
    """JSON text of the context without its opening brace and without the approvals."""
    others: tuple[tuple[Request, cedarpy.Schema], ...] = ()
    """The same call under other names that its tool goes by: forbids count for them, permits do not."""


class Engine:
    """Policies and schema, parsed once."""

    __slots__ = ("_forbids", "_policies", "_schema")

    def __init__(self, policies: Iterable[Policy], schema: cedarpy.Schema) -> None:
        listed = list(policies)
        self._policies = _parsed(listed)
        self._forbids = _parsed(policy for policy in listed if policy.effect == "forbid")
        self._schema = schema

    def answers(self, request: Request, approvals: Sequence[int]) -> list[Answer]:
        """Answer a request once for each number of approvals."""
        told = self._asked(self._policies, request, approvals, self._schema)
        for other, schema in request.others:
            stopped = self._asked(self._forbids, other, approvals, schema)
            told = [_stricter(*both) for both in zip(told, stopped, strict=True)]
        return told

    def _asked(
        self, policies: cedarpy.PolicySet, request: Request, approvals: Sequence[int], schema: cedarpy.Schema
    ) -> list[Answer]:
        asked = [
            {
                "principal": request.principal,
                "action": request.action,
                "resource": request.resource,
                "context": f'{{"approved":{"true" if count else "false"},"approvals":{count},{request.context}',
            }
            for count in approvals
        ]
        told = cedarpy.is_authorized_batch(asked, policies, request.entities, schema)
        assert len(told) == len(asked)
        return [self.judged(each) for each in told]

    @staticmethod
    def judged(result: cedarpy.AuthzResult) -> Answer:
        """Read an answer. Cedar skips a policy that fails, a forbid too: with any error the answer is no."""
        errors = tuple(result.diagnostics.errors)
        if result.decision is cedarpy.Decision.NoDecision and not errors:
            errors = ("no decision",)
        return Answer(
            is_allowed=result.decision is cedarpy.Decision.Allow and not errors,
            policies=decided_by(result),
            errors=errors,
        )


def _parsed(policies: Iterable[Policy]) -> cedarpy.PolicySet:
    return cedarpy.PolicySet.from_str("\n".join(policy.text for policy in policies))


def _stricter(answer: Answer, stopped: Answer) -> Answer:
    """Add to an answer the forbids of the same call under another name."""
    if not (stopped.policies or stopped.errors):
        return answer
    own = () if answer.is_allowed else answer.policies
    return Answer(
        is_allowed=False,
        policies=tuple(sorted({*own, *stopped.policies})),
        errors=(*answer.errors, *stopped.errors),
    )


def decided_by(result: cedarpy.AuthzResult) -> tuple[str, ...]:
    """Return the ids of the policies that decided; Cedar itself only numbers them."""
    names = result.diagnostics.id_annotations_by_reason
    return tuple(sorted(names[number] for number in result.diagnostics.reasons))


def request_of(
    call: FrozenCall, *, tool: Tool, types: ArgumentType, read: frozenset[str], principal: Principal, facts: Facts
) -> Request:
    """Write a call as a request. Raises RefusedError when a number is out of its bounds or an argument not of its type."""
    run = {"type": "Quell::Run", "id": call.run}
    resource = {"type": "Quell::Resource", "id": call.resource.name}
    context: dict[str, Json] = {
        "args": cedar_value(types, parse(call.arguments), read=read),
        "host": call.resource.host,
        "server": tool.server,
        "recovery": str(tool.recovery),
        "origin": str(facts.origin),
        "history": {name: _bounded(getattr(facts, name), name) for name in HISTORY},
        "blast_percent": _bounded(facts.blast_percent, "blast_percent", most=100),
        "frozen": facts.is_frozen,
        "killed": facts.is_killed,
        "break_glass": facts.is_break_glass,
    }
    return Request(
        principal=run,
        action={"type": "Quell::Action", "id": tool.name},
        resource=resource,
        entities=json.dumps([_run(run, principal), _resource(resource, call)]),
        context=json.dumps(context)[1:],
    )


def counted_approvals(facts: Facts) -> int:
    """Return the approvals that policies may see; more than the largest quorum is as good as it. Raises RefusedError."""
    return min(_bounded(facts.approvals, "approvals"), QUORUM_MAX)


def _bounded(number: int, name: str, *, most: int = INTEGER_MAX) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise RefusedError(
            f"the fact `{name}` is no number from 0 to {most}", hint="this is a fault of Quell: report it"
        )
    return number


def _run(uid: dict[str, str], principal: Principal) -> Json:
    parents: list[tuple[str, str]] = [("User", principal.user), ("Tenant", principal.tenant)]
    parents += [("Role", role) for role in dict.fromkeys(principal.roles)]
    parents += [("Agent", principal.agent)] if principal.agent else []
    parents += [("Workflow", principal.workflow)] if principal.workflow else []
    attributes: dict[str, Json] = {
        "user": principal.user,
        "tenant": principal.tenant,
        "agent": principal.agent,
        "workflow": principal.workflow,
        "workflow_digest": principal.workflow_digest,
        "stage": principal.stage,
        "level": _bounded(int(principal.level), "level", most=5),
        "tainted": principal.is_tainted,
        "roles": list(principal.roles),
    }
    return {
        "uid": dict(uid),
        "attrs": attributes,
        "parents": [{"type": f"Quell::{kind}", "id": name} for kind, name in parents],
    }


def _resource(uid: dict[str, str], call: FrozenCall) -> Json:
    resource = call.resource
    attributes: dict[str, Json] = {
        "kind": resource.kind,
        "name": resource.name,
        "environment": resource.environment,
        "units": _bounded(resource.units, "units"),
    }
    environment: Json = {"type": "Quell::Environment", "id": resource.environment}
    return {"uid": dict(uid), "attrs": attributes, "parents": [environment]}
