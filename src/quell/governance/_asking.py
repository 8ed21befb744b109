"""Asking people: about one call, about a plan of calls, and about what somebody made of a call by editing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, Protocol

from quell.audit import Audit
from quell.domain import (
    ASK_PEOPLE,
    Approval,
    ApprovalRequest,
    ApprovalStatus,
    AskedCall,
    AuditEntry,
    AuditKind,
    BoundExceededError,
    CallRequest,
    Facts,
    Level,
    Parked,
    Presented,
    Principal,
    RefusedError,
    Tool,
    ToolClass,
    UsageError,
    Verdict,
    matches_globset,
)
from quell.governance import _approval_rows as rows
from quell.governance._approvals import Approvals
from quell.governance._policy import EDITED, GATED, PLANNED, SERVER_ASKS
from quell.governance._policy_schema import effective_class
from quell.runs import Connection, Database

_ANYWAY_ROLES = ("approver", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """A verdict, the facts it rests on, and the approval that made it a permit."""

    verdict: Verdict
    facts: Facts
    acting: Principal
    """Who was decided about: the caller, at the level that was earned."""
    presented: Presented | None = None


class Judge(Protocol):
    """Decides about a call in a transaction."""

    def __call__(self, connection: Connection, request: CallRequest, *, lock: Literal["share", "none"]) -> Ruling:
        """Decide; with `share` no stop can pass the decision before the transaction ends."""


class Scribe(Protocol):
    """Writes down a call whole."""

    def __call__(self, kind: AuditKind, request: CallRequest, body: Mapping[str, object]) -> AuditEntry:
        """Return what is to be recorded."""


class Asking:
    """Puts what policy asks about before people, and keeps the account of it."""

    def __init__(self, database: Database, *, approvals: Approvals, audit: Audit, judge: Judge, entry: Scribe) -> None:
        self._database = database
        self._approvals = approvals
        self._audit = audit
        self._judge = judge
        self._entry = entry

    def park(self, request: CallRequest, ruling: Ruling) -> Parked:
        """Ask people, or find what was asked already. Raises RefusedError when people rejected exactly this."""
        entry = self._entry(AuditKind.DECISION, request, reasons(ruling))
        wish = _wish([request], verdict=ruling.verdict)
        lasts_s = request.caller.people_s or None
        with self._database.writing() as connection:
            known = rows.find_of_call(connection, run=request.call.run, call=request.call.id)
            if lasts_s is not None and known:
                self._refuse_late(connection, known, tenant=request.caller.principal.tenant)
            approval = self._approvals.ask(connection, wish, expires_s=lasts_s)
            if approval.id != known:
                # Who looks again whether people have decided asks nothing new.
                self._audit.append(connection, entry, self._told(approval, request, {"call": request.call.digest}))
        return parked(approval, call=request.call.id)

    def propose(self, requests: Sequence[CallRequest]) -> Parked:
        """Ask people about a whole plan as one, in its order.

        Raises:
            RefusedError: policy denies a call of it, needs nobody for any, or names nobody who may approve all.
            UsageError: it is no plan.
        """
        with self._database.reading() as connection:
            rulings = [self._judge(connection, request, lock="none") for request in requests]
        verdict = _of_all(requests, [ruling.verdict for ruling in rulings])
        entries = [
            self._entry(AuditKind.DECISION, request, reasons(ruling))
            for request, ruling in zip(requests, rulings, strict=True)
        ]
        with self._database.writing() as connection:
            approval = self._approvals.ask(connection, _wish(requests, verdict=verdict))
            told = {"calls": [request.call.digest for request in requests]}
            self._audit.append(connection, *entries, self._told(approval, requests[0], told))
        return parked(approval, call=requests[0].call.id)

    def go_on(self, request: CallRequest, ruling: Ruling) -> Parked:
        """Say that a call of a plan, or an edited one, waits for people; it is never asked about by itself.

        Raises RefusedError, or DriftError for a call that is not the plan's next: that voids what is left of it.
        """
        with self._approvals.voiding(), self._database.reading() as connection:
            plan = self._approvals.standing(connection, presented_of(request, ruling.verdict))
        if plan.status is not ApprovalStatus.REQUESTED:
            raise RefusedError(
                f"approval {plan.id} is not enough for this call now: {ruling.verdict.reason}",
                hint="ask people anew, in a new call",
            )
        return parked(plan, call=request.call.id)

    def edit(self, old: Approval, request: CallRequest, *, by: Principal, digest_seen: str, way: str) -> Approval:
        """Put an edited call in the place of the one that people were asked about; the old approval is void.

        Raises:
            RefusedError: as `Approvals.edit` does, or policy denies the edited call.
            UsageError: the edit changes nothing.
        """
        body = {"approval": old.id, "verdict": "edit", "way": way}
        try:
            with self._database.writing() as connection:
                ruling = self._judge(connection, request, lock="share")
                verdict = _allowed(ruling.verdict)
                new = self._approvals.edit(
                    connection, old.id, _wish([request], verdict=verdict), by=by, digest_seen=digest_seen
                )
                told = body | {"status": old.status.value, "edited": new.id, "digest": old.digest, "by": by.user}
                entry = self._audit.entry(AuditKind.APPROVAL, run=old.terms.run, principal=by.user, body=told)
                asked = self._told(new, request, {"call": request.call.digest, "edited_from": old.id})
                self._audit.append(connection, entry, asked)
        except (RefusedError, UsageError, BoundExceededError) as error:
            self.refuse(old.id, by=by, way=way, error=error)
            raise
        return new

    def refuse(self, approval: str, *, by: Principal, way: str, error: Exception) -> None:
        """Keep the account of an edit that somebody wanted and may not have."""
        code = error.code if isinstance(error, RefusedError) else "usage"
        body = {"approval": approval[:100], "verdict": "edit", "way": way, "code": code, "refused": str(error)[:2000]}
        self._audit.note(self._audit.entry(AuditKind.REFUSAL, run="", principal=by.user, body=body))

    def _refuse_late(self, connection: Connection, known: str, *, tenant: str) -> None:
        """Raise RefusedError when the time that people had for a call is over: it is not asked about again."""
        old = self._approvals.find(connection, known, tenant=tenant)
        if old is not None and old.status is ApprovalStatus.EXPIRED:
            raise RefusedError(
                f"timed out: nobody let the call through in time (approval {old.id})",
                hint="do something else, or ask a person",
                code="gone",
            )

    def _told(self, approval: Approval, request: CallRequest, body: Mapping[str, object]) -> AuditEntry:
        told = {"approval": approval.id, "digest": approval.digest, **body}
        user = request.caller.principal.user
        return self._audit.entry(AuditKind.APPROVAL, run=request.call.run, principal=user, body=told)


def parked(approval: Approval, *, call: str) -> Parked:
    """Say that a call waits for an approval."""
    terms = approval.terms
    return Parked(
        call=call,
        approval=approval.id,
        digest=approval.digest,
        expires_at=terms.expires_at,
        quorum=terms.quorum,
        approver_roles=terms.approver_roles,
        gate=terms.gate,
    )


def gate_of(request: CallRequest) -> str:
    """Return what wants people for a call beside policy: a pattern of the agent's file, or that the agent asks itself.

    Patterns are of the names that servers give their tools. One of our own is meant only where it is named whole. A
    pattern that cannot be read covers everything.
    """
    tool = request.tool
    if not tool.server and tool.name == ASK_PEOPLE:
        return ASK_PEOPLE
    return next((pattern for pattern in request.caller.ask_first if _covers(pattern, tool)), "")


def _covers(pattern: str, tool: Tool) -> bool:
    if not tool.server:
        return tool.name == pattern
    try:
        return matches_globset(tool.original, pattern)
    except ValueError:
        return True


def needs_people(request: CallRequest) -> bool:
    """Tell whether people have a say in a call that policy would let through: it stands in something they decide."""
    stands_in_one = request.needs is not None or bool(request.edited) or bool(request.caller.approval)
    return stands_in_one or bool(gate_of(request))


def asked_anyway(request: CallRequest, verdict: Verdict) -> Verdict:
    """Turn a permit into a question: policy lets the call through, and something else wants people."""
    quorum = 2 if effective_class(request.tool) is ToolClass.IRREVERSIBLE else 1
    if request.needs is not None:
        policy, reason = SERVER_ASKS, "the server asks people before it goes on"
    elif request.edited:
        policy, reason = EDITED, "somebody edited the call, and others decide about the edit"
    elif request.caller.approval:
        policy, reason = PLANNED, "it is a call of a plan that people decide about"
    else:
        gate = gate_of(request)
        reason = "the agent asks people" if gate == ASK_PEOPLE else f"the agent's file wants people for {gate}"
        # Policy itself needs nobody: one person is what the file asks for.
        policy, quorum = GATED, 1
    return replace(
        verdict,
        decision="ask",
        policies=(policy, *verdict.policies),
        reason=reason,
        approver_roles=_ANYWAY_ROLES,
        quorum=quorum,
    )


def is_plain_read(request: CallRequest) -> bool:
    """Tell whether a call can neither change anything, nor carry anything out, nor wants people for another reason."""
    tool = request.tool
    is_read = tool.tool_class is ToolClass.READ and not tool.resource.destination
    return is_read and request.needs is None and not gate_of(request)


def presented_of(request: CallRequest, verdict: Verdict) -> Presented:
    """Return what stands ready, as approvals compare it."""
    return Presented(
        principal=request.caller.principal,
        call=request.call,
        policy_digest=verdict.policy_digest,
        evidence_digest=request.caller.evidence_digest,
        diff=request.diff,
        revert_plan=plan_of(request),
        approval=request.edited or request.caller.approval,
    )


def plan_of(request: CallRequest) -> str:
    """Return the calls that undo an effect: what the caller prepared, else the tool's own way back."""
    if request.revert != "[]" or not request.tool.revert:
        return request.revert
    call = {"tool": request.tool.revert, "arguments": json.loads(request.call.arguments)}
    return json.dumps([call], sort_keys=True, separators=(",", ":"))


def reasons(ruling: Ruling) -> dict[str, object]:
    """Return what a ruling rests on, as its record has it."""
    return {"verdict": flat(ruling.verdict), "facts": flat(ruling.facts), "principal": flat(ruling.acting)}


def flat(value: object) -> dict[str, object]:
    """Write a flat dataclass as JSON has it: tuples as lists, numbers that are names as numbers."""
    assert is_dataclass(value)
    found: dict[str, object] = {}
    for each in fields(value):
        held = getattr(value, each.name)
        found[each.name] = list(held) if isinstance(held, tuple) else int(held) if isinstance(held, Level) else held
    return found


def _wish(requests: Sequence[CallRequest], *, verdict: Verdict) -> ApprovalRequest:
    asked = tuple(
        AskedCall(
            call=request.call,
            tool_class=effective_class(request.tool),
            diff=request.diff,
            revert_plan=plan_of(request),
            facts=(*request.facts, *_words_of_server(request)),
            form=(Approvals.form_of(request.needs.asks) or "") if request.needs is not None else "",
        )
        for request in requests
    )
    caller = requests[0].caller
    return ApprovalRequest(
        principal=caller.principal,
        calls=asked,
        verdict=verdict,
        evidence_digest=caller.evidence_digest,
        explanation=requests[0].explanation,
        barred=requests[0].editors,
        gate=next(filter(None, map(gate_of, requests)), ""),
    )


def _words_of_server(request: CallRequest) -> tuple[tuple[str, str], ...]:
    """Return what the server asks, as a fact about it: its words, not ours."""
    asks = request.needs.asks if request.needs is not None else ()
    return tuple(("the server asks, in its own words", f"{ask.message} {ask.url}".strip()) for ask in asks)


def _allowed(verdict: Verdict) -> Verdict:
    if verdict.decision == "deny":
        raise RefusedError(f"policy denies the edited call: {verdict.reason}", hint="the old request stands")
    return verdict


def _of_all(requests: Sequence[CallRequest], verdicts: Sequence[Verdict]) -> Verdict:
    """Return the one question about a plan: by those who may approve every call of it, as many as the strictest wants.

    Raises:
        RefusedError: a call of it is denied, or is a plain read; or nobody may approve all of it, or nobody has to.
        UsageError: there is no call.
    """
    if not requests:
        raise UsageError("a plan has calls", hint="name them in their order")
    for number, (request, verdict) in enumerate(zip(requests, verdicts, strict=True), start=1):
        if is_plain_read(request):
            raise RefusedError(f"call {number} of the plan only reads", hint="leave it out: it needs nobody")
        if verdict.decision == "deny":
            raise RefusedError(f"call {number} of the plan is denied: {verdict.reason}", hint="leave it out")
    asked = [verdict for verdict in verdicts if verdict.decision == "ask"]
    if not asked:
        raise RefusedError("policy needs nobody for this plan", hint="make the calls one by one")
    roles = [role for role in asked[0].approver_roles if all(role in verdict.approver_roles for verdict in asked)]
    if not roles:
        raise RefusedError("no role may approve every call of the plan", hint="ask about its calls one by one")
    return replace(
        asked[0],
        policies=tuple(dict.fromkeys(policy for verdict in asked for policy in verdict.policies)),
        reason="; ".join(dict.fromkeys(verdict.reason for verdict in asked)),
        approver_roles=tuple(roles),
        quorum=max(verdict.quorum for verdict in asked),
    )
