"""What an approval is bound to, and whether what stands ready to run is that: pure rules over one request.

One call and a plan of many are the same thing: terms with one call or several, whose digest covers every field.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import fields, replace

import msgspec

from quell.domain import (
    ApprovalRequest,
    ApprovalTerms,
    AskedCall,
    BoundExceededError,
    DriftError,
    LocalOwner,
    Presented,
    RefusedError,
    StepState,
    ToolClass,
    UsageError,
    Vote,
)

_DOMAIN = b"quell approval v1\n"
_VOTE_DOMAIN = b"quell vote v1\n"
_SEAL_DOMAIN = b"quell approval seal v1\n"
_QUORUM_IRREVERSIBLE = 2
_CALLS_MAX = 64
_ONE = LocalOwner()
_GATED = "quell.config-gate"
"""As verdicts name it: nothing but an agent's file wants people."""
_BODY_MAX_BYTES = 4_000_000
SEEN_MIN = 8
"""Characters of the digest that an approver sends back at least."""


def person(subject: str) -> str:
    """Fold a subject so that two spellings of one person are not two people."""
    return unicodedata.normalize("NFKC", subject).strip().casefold()


def written(terms: ApprovalTerms) -> str:
    """Write terms as canonical JSON: sorted keys, no spaces. Raises RefusedError when a text of it is not Unicode."""
    try:
        told = msgspec.to_builtins(terms, order="sorted")
        for asked in told["calls"]:
            if not asked["form"]:  # as it was written before there were forms: what was asked then still holds
                del asked["form"]
        return msgspec.json.encode(told, order="sorted").decode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            "the request holds half a character (a lone surrogate) and cannot be written",
            hint="send texts that are valid Unicode",
        ) from error


def read(body: str) -> ApprovalTerms:
    """Read terms that `written` wrote."""
    return msgspec.json.decode(body, type=ApprovalTerms)


def check_size(terms: ApprovalTerms) -> None:
    """Check that people could read a request at all. Raises BoundExceededError."""
    if len(written(terms).encode()) > _BODY_MAX_BYTES:
        raise BoundExceededError("bytes of an approval request", limit=_BODY_MAX_BYTES, hint="ask for less at a time")


def digest_of(body: str) -> str:
    """Name written terms: SHA-256 in hex, in a domain of its own."""
    return hashlib.sha256(_DOMAIN + body.encode()).hexdigest()


def vote_bytes(vote: Vote) -> bytes:
    """Return the bytes of a vote that are signed."""
    told = msgspec.to_builtins(vote, order="sorted")
    if not vote.answers:
        del told["answers"]
    return _VOTE_DOMAIN + msgspec.json.encode(told, order="sorted")


def seal_bytes(digest: str, *, principal: str) -> bytes:
    """Return the bytes of a request that are signed when it is asked: its digest, and whose it is."""
    return _SEAL_DOMAIN + f"{digest}\n{principal}".encode()


def check_request(request: ApprovalRequest) -> int:
    """Return the quorum of a request: never less than two for what cannot be undone.

    Raises:
        RefusedError: nobody may approve it, or policy does not ask.
        UsageError: it is no plan: no calls, too many, of several runs, or one call twice.
    """
    verdict = request.verdict
    if verdict.decision != "ask" or not verdict.approver_roles:
        raise RefusedError(
            f"policy does not let people approve this: its verdict is {verdict.decision}",
            hint="name approver roles in the policy that asks" if verdict.decision == "ask" else verdict.reason,
        )
    if not request.principal.user:
        raise RefusedError("nobody stands behind this run", hint="start it on behalf of a person or a service")
    calls = [asked.call for asked in request.calls]
    if not 1 <= len(calls) <= _CALLS_MAX:
        raise UsageError(f"a plan has 1 to {_CALLS_MAX} calls, not {len(calls)}", hint="split it")
    if not all(is_plain(call.run) and is_plain(call.id) for call in calls):
        raise RefusedError("the id of a call holds what no id holds", hint="use letters, digits, `_`, `-`")
    if len({call.run for call in calls}) != 1 or len({call.id for call in calls}) != len(calls):
        raise UsageError("the calls of a plan are of one run, each under its own id", hint="give each call a new id")
    return max(verdict.quorum, least_quorum(request.calls))


def least_quorum(calls: Sequence[AskedCall]) -> int:
    """Return how many people it takes at least, whatever anybody wrote: two for what cannot be undone."""
    return _QUORUM_IRREVERSIBLE if any(asked.tool_class is ToolClass.IRREVERSIBLE for asked in calls) else 1


def is_plain(identifier: str) -> bool:
    """Tell whether a text can be an id at all: models write them too, and a database refuses some characters."""
    return bool(identifier) and identifier.isprintable()


def is_seen(digest: str, *, seen: str) -> bool:
    """Tell whether what an approver sent back is this digest, whole or its beginning. Raises UsageError for less."""
    told = seen.strip().lower().removeprefix("sha256:")
    if len(told) < SEEN_MIN:
        raise UsageError(
            f"send the digest that you saw, at least its first {SEEN_MIN} characters",
            hint="it stands in the question: `quell approval show`",
        )
    return digest.startswith(told)


def find_position(terms: ApprovalTerms, *, call: str) -> int | None:
    """Return which call of the plan has that id."""
    return next((index for index, asked in enumerate(terms.calls) if asked.call.id == call), None)


def drifted(terms: ApprovalTerms, presented: Presented, *, position: int, digest: str) -> tuple[str, ...]:
    """Return what differs between the terms and what stands ready; nothing when it is exactly what was approved.

    The digest decides: it is computed anew over what stands ready. The names are for people.
    """
    ready = _ready(terms, presented, position=position)
    try:
        if digest_of(written(ready)) == digest:
            return ()
    except RefusedError:
        return ("call",)
    asked, is_at = terms.calls[position], ready.calls[position]
    return (
        *_differences(terms, ready, without="calls"),
        *(f"call.{name}" for name in _differences(asked.call, is_at.call, without="resource")),
        *(f"resource.{name}" for name in _differences(asked.call.resource, is_at.call.resource, without="")),
        *_differences(asked, is_at, without="call"),
    ) or ("the stored request",)


def check_turn(terms: ApprovalTerms, steps: Sequence[StepState], *, position: int) -> None:
    """Check that a call of a plan is the next one.

    Raises:
        RefusedError: it was used already, or the one before it has not ended.
        DriftError: it is not its turn, or an earlier one failed.
    """
    state = steps[position]
    if state != "pending":
        raise RefusedError(
            f"approval {terms.id} was already used for this call", hint="ask for a new approval", code="gone"
        )
    before = steps[:position]
    if "failed" in before:
        raise DriftError("an earlier call of the plan failed", approval=terms.id, hint="ask for a new plan")
    if "pending" in before:
        raise DriftError(
            f"call {position + 1} of the plan came before call {before.index('pending') + 1}",
            approval=terms.id,
            hint="the plan was approved in its order; ask for a new one",
        )
    if "used" in before:
        raise RefusedError(
            f"call {before.index('used') + 1} of the plan has not ended yet", hint="wait for it, then call again"
        )


def refuse_drift(terms: ApprovalTerms, differences: Sequence[str]) -> RefusedError:
    """Return the refusal of something that is not what was approved; of a plan it voids the rest."""
    said = f"not what approval {terms.id} was given for; different: {', '.join(differences)}"
    if len(terms.calls) > 1:
        return DriftError(said, approval=terms.id, hint="the rest of the plan is void; ask for a new one")
    return RefusedError(said, hint="ask for a new approval of what shall run now", code="mismatch")


def _ready(terms: ApprovalTerms, presented: Presented, *, position: int) -> ApprovalTerms:
    """Write what stands ready to run as the terms it would have been asked with."""
    principal = presented.principal
    asked = terms.calls[position]
    ready = AskedCall(
        call=presented.call,
        tool_class=asked.tool_class,
        diff=presented.diff,
        revert_plan=presented.revert_plan,
        facts=asked.facts,
        form=asked.form,
    )
    return replace(
        terms,
        tenant=principal.tenant,
        run=presented.call.run,
        requester=principal.user,
        agent=principal.agent,
        workflow=principal.workflow,
        workflow_digest=principal.workflow_digest,
        policy_digest=presented.policy_digest,
        evidence_digest=presented.evidence_digest,
        calls=(*terms.calls[:position], ready, *terms.calls[position + 1 :]),
    )


def _differences(one: object, other: object, *, without: str) -> tuple[str, ...]:
    names = [field.name for field in fields(one) if field.name != without]  # type: ignore[arg-type]  # dataclasses
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def is_word_to_oneself(request: ApprovalRequest) -> bool:
    """Tell whether the one person of an embedded Quell is only asked to be sure: policy permits, their own file wants a word.

    Where identities are configured nobody is that person, and who asks never decides.
    """
    principal = request.principal
    is_only_one = (principal.tenant, principal.user) == (_ONE.tenant, _ONE.user)
    return is_only_one and bool(request.gate) and request.verdict.policies[:1] == (_GATED,)
