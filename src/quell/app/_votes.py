"""What people answer to requests for approval: counted and recorded in one transaction; and what is shown of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from quell.app._authority import Authority
from quell.audit import Redactor
from quell.domain import Approval, AskedCall, AuditKind, Decided, Principal, RefusedError

Way: TypeAlias = Literal["cli", "api", "wire", "webhook"]
"""How an answer came: by our API, by a posted decision of the approver's service, or as its reply to our webhook."""


def vote(
    authority: Authority,
    identifier: str,
    *,
    by: Principal,
    verdict: Literal["approve", "reject"],
    digest_seen: str,
    reason: str,
    way: Way,
    signature: str = "",
    answers: Mapping[str, object] | None = None,
) -> Decided:
    """Count an answer and keep the account of it, together; blocks. What is refused is on record as well.

    Raises:
        RefusedError: as `Approvals.decide` does, or the signature was used before.
        UsageError: a rejection without a reason.
    """
    guard = authority.guard
    try:
        with authority.runs.database.writing() as connection:
            if signature:
                guard.approvals.take_signature(connection, signature)
            decided = guard.approvals.decide(
                connection, identifier, by=by, verdict=verdict, digest_seen=digest_seen, reason=reason, answers=answers
            )
            if decided.change != "none":
                approval = decided.approval
                told = decided.account(verdict=verdict, reason=reason, way=way)
                if answers:
                    told["answers"] = dict(answers)
                entry = guard.audit.entry(AuditKind.APPROVAL, run=approval.terms.run, principal=by.user, body=told)
                guard.audit.append(connection, entry)
    except RefusedError as error:
        body = {"approval": identifier[:100], "verdict": verdict, "way": way, "code": error.code, "refused": str(error)}
        guard.audit.note(guard.audit.entry(AuditKind.REFUSAL, run="", principal=by.user, body=body))
        raise
    return decided


def masked(approval: Approval, redactor: Redactor) -> Approval:
    """Return an approval without the secrets that are held here, to be shown or sent; its digest is the real one's."""
    terms = approval.terms
    calls = tuple(_masked_call(asked, redactor) for asked in terms.calls)
    explanation, reason = redactor.text(terms.explanation), redactor.text(terms.reason)
    votes = tuple(replace(vote, answers=redactor.text(vote.answers)) for vote in approval.votes)
    return replace(approval, votes=votes, terms=replace(terms, calls=calls, explanation=explanation, reason=reason))


def _masked_call(asked: AskedCall, redactor: Redactor) -> AskedCall:
    call, resource = asked.call, asked.call.resource
    told = json.loads(call.arguments)
    clean = redactor.value(told)
    if clean is not told:
        written = json.dumps(clean, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        call = replace(call, arguments=written)
    return replace(
        asked,
        call=replace(call, resource=replace(resource, name=redactor.text(resource.name))),
        diff=redactor.text(asked.diff),
        revert_plan=redactor.text(asked.revert_plan),
        facts=tuple((name, redactor.text(value)) for name, value in asked.facts),
    )
