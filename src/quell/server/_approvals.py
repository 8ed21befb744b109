"""Requests for approval over HTTP: read whole, and answered by people, or by an approver's service on AURA's wire."""

from __future__ import annotations

import asyncio
import json
from typing import Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell.app import App
from quell.domain import Approval, ApprovalStatus, Principal, RefusedError
from quell.governance import Approvals
from quell.server._body import Bodies
from quell.server._errors import WireError, json_response, refused
from quell.server._identity import ANY, Access, Gate
from quell.server._query import limit_of

T = TypeVar("T")
_BODY_MAX_MB = 0.125
_UNEXPLAINED = "no reason was given"
DECIDE = Access(verb="approval.decide", roles=ANY, belongs_to="tenant")


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/approvals/ID takes."""

    decision: Literal["approve", "reject", "edit"]
    digest: str
    reason: str = ""
    answers: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    """What is filled into the form of a tool's server, with an approval."""
    arguments: dict[str, object] | None = None
    """What shall stand in the place of the arguments, with an edit."""


class Inbox:
    """Shows what waits for people, and takes what they say."""

    def __init__(self, app: App, *, bodies: Bodies, gate: Gate) -> None:
        self._app = app
        self._bodies = bodies
        self._gate = gate

    async def listed(self, request: Request) -> Response:
        """List the requests of the caller's tenant, newest first."""
        by, limit = caller_of(request), limit_of(request)
        status = _status_of(request.query_params.get("status", ""))
        run = request.query_params.get("run", "")
        authority = await self._app.open_authority()

        def read() -> tuple[Approval, ...]:
            with authority.runs.database.reading() as connection:
                return authority.guard.approvals.listed(
                    connection, tenant=by.tenant, status=status, run=run, items_max=limit + 1
                )

        found = await asyncio.to_thread(read)
        rows = [_row(await self._app.warden.shown(approval)) for approval in found[:limit]]
        return json_response({"kind": "approvals", "ok": True, "approvals": rows, "is_cut": len(found) > limit})

    async def one(self, request: Request) -> Response:
        """Show one request: the whole question, for people and for programs."""
        approval = await self._find(request.path_params["id"], tenant=caller_of(request).tenant)
        return json_response({"kind": "approval", "ok": True, **await self._whole(approval)})

    async def decide(self, request: Request) -> Response:
        """Take what a person says to exactly what they saw."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        answer = decoded(body, _Answer, hint="send {decision: approve|reject|edit, digest, reason, answers, arguments}")
        if misfit := _misfit(answer):
            raise WireError(400, "UsageError", misfit, hint="arguments belong to an edit, answers to an approval")
        if answer.decision == "edit":
            return await self._edited(request, answer)
        try:
            decided = await self._app.warden.vote(
                request.path_params["id"],
                by=caller_of(request),
                verdict=answer.decision,
                digest_seen=answer.digest,
                reason=answer.reason,
                way="api",
                answers=answer.answers,
            )
        except RefusedError as error:
            raise refused(error) from error
        told = {"change": decided.change, "told": decided.told}
        return json_response({"kind": "decision", "ok": True, **told, **await self._whole(decided.approval)})

    async def _edited(self, request: Request, answer: _Answer) -> Response:
        """Put other arguments in the place of those that were asked about; the answer shows the new request."""
        authority = await self._app.open_authority()
        try:
            new = await authority.toolbox.edit(
                request.path_params["id"],
                arguments=json.dumps(answer.arguments),
                by=caller_of(request),
                digest_seen=answer.digest,
                way="api",
            )
        except RefusedError as error:
            raise refused(error) from error
        told = {"change": "edited", "told": f"{new.terms.supersedes} is void; others decide about {new.id}"}
        return json_response({"kind": "decision", "ok": True, **told, **await self._whole(new)})

    async def decide_on_the_wire(self, request: Request) -> Response:
        """Take a decision on AURA's wire: 204 for the one that counts, 404 for every one after it.

        With a signing secret only the approver's service decides here, and whatever is wrong with its signature is
        answered in the same words. Without one it takes an identity, as everything else does.
        """
        herald = await self._app.warden.herald()
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        try:
            identifier = Approvals.approval_id_of(request.path_params["id"])
        except RefusedError as error:
            if herald.service.is_signed:
                raise _unsigned() from error
            await self._gate.principal(request, DECIDE)
            raise WireError(400, "UsageError", "the decision id is no UUID", hint="send it as it was given") from error
        by = None if herald.service.is_signed else await self._gate.principal(request, DECIDE)
        try:
            answer = herald.service.answer(
                body, headers=_headers_of(request), approval=identifier, at=self._app.clock()
            )
        except RefusedError as error:
            raise _unread(error, body) from error
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise WireError(415, "UsageError", "a decision is JSON", hint="send Content-Type: application/json")
        approval = await self._found(identifier)
        if approval is None or (by is not None and by.tenant != approval.terms.tenant):
            raise _decided_or_unknown()
        await self._count(
            approval,
            by=by or herald.voter(tenant=approval.terms.tenant),
            verdict="approve" if answer.approved else "reject",
            reason=answer.reason,
            signature=answer.signature,
        )
        return Response(status_code=204)

    async def _count(
        self, approval: Approval, *, by: Principal, verdict: Literal["approve", "reject"], reason: str, signature: str
    ) -> None:
        try:
            decided = await self._app.warden.vote(
                approval.id,
                by=by,
                verdict=verdict,
                digest_seen=approval.digest,
                reason=reason or ("" if verdict == "approve" else _UNEXPLAINED),
                way="wire",
                signature=signature,
            )
        except RefusedError as error:
            raise (_decided_or_unknown() if error.code in {"unknown", "gone"} else refused(error)) from error
        if decided.change == "none":
            raise _decided_or_unknown()

    async def _found(self, identifier: str) -> Approval | None:
        """Find a request of any tenant that is served: the wire names none, and its id cannot be guessed."""
        authority = await self._app.open_authority()

        def read() -> Approval | None:
            with authority.runs.database.reading() as connection:
                found = (
                    authority.guard.approvals.find(connection, identifier, tenant=tenant)
                    for tenant in self._app.settings.identity.tenants
                )
                return next((approval for approval in found if approval is not None), None)

        return await asyncio.to_thread(read)

    async def _find(self, identifier: str, *, tenant: str) -> Approval:
        authority = await self._app.open_authority()

        def read() -> Approval | None:
            with authority.runs.database.reading() as connection:
                return authority.guard.approvals.find(connection, identifier, tenant=tenant)

        approval = await asyncio.to_thread(read)
        if approval is None:
            there_is_none = RefusedError(
                f"there is no approval {identifier[:100]!r}", hint="GET /api/v1/approvals lists them", code="unknown"
            )
            raise refused(there_is_none)
        return approval

    async def _whole(self, approval: Approval) -> dict[str, object]:
        shown = await self._app.warden.shown(approval)
        question = msgspec.Raw(Approvals.show(shown, form="json").encode())
        return {"approval": _row(shown), "text": Approvals.show(shown, form="text"), "question": question}


def caller_of(request: Request) -> Principal:
    """Return who was let through to a route that is open to nobody."""
    principal = request.state.principal
    assert isinstance(principal, Principal), "its route is guarded"
    return principal


def decoded(body: bytes, kind: type[T], *, hint: str) -> T:
    """Read a body of JSON as what it must be. Raises WireError 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(400, "UsageError", f"the body cannot be read: {error}", hint=hint) from error


def _misfit(answer: _Answer) -> str:
    if (answer.decision == "edit") != (answer.arguments is not None):
        return "an edit has arguments, and nothing else has"
    return "only an approval has answers" if answer.answers and answer.decision != "approve" else ""


def _row(approval: Approval) -> dict[str, object]:
    """Return an approval as lists have it; what is asked stands whole in the question."""
    terms = approval.terms
    return {
        "id": approval.id,
        "decision_id": Approvals.decision_id_of(approval.id),
        "status": approval.status,
        "told": approval.told,
        "digest": approval.digest,
        "run": terms.run,
        "requester": terms.requester,
        "agent": terms.agent,
        "workflow": terms.workflow,
        "calls": [
            {"tool": asked.call.tool, "class": asked.tool_class, "resource": asked.call.resource}
            for asked in terms.calls
        ],
        "reason": terms.reason,
        "approver_roles": terms.approver_roles,
        "quorum": terms.quorum,
        "votes": [
            {"voter": vote.voter, "verdict": vote.verdict, "reason": vote.reason, "at": vote.at}
            | ({"answers": json.loads(vote.answers)} if vote.answers else {})
            for vote in approval.votes
        ],
        "requested_at": terms.requested_at,
        "expires_at": terms.expires_at,
        "settled_at": approval.settled_at,
    }


def _status_of(written: str) -> ApprovalStatus | None:
    if not written:
        return None
    if written not in set(ApprovalStatus):
        hint = f"one of {', '.join(ApprovalStatus)}"
        raise WireError(400, "UsageError", f"there is no status {written[:40]!r}", hint=hint)
    return ApprovalStatus(written)


def _headers_of(request: Request) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]


def _unsigned() -> WireError:
    error = RefusedError("the signature is missing or not valid", hint="sign the request anew", code="unauthenticated")
    return refused(error)


def _unread(error: RefusedError, body: bytes) -> WireError:
    """Say why a decision is none: its signature, that it is no JSON, or that it is some other JSON."""
    if error.code == "unauthenticated":
        return _unsigned()
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return WireError(400, "UsageError", "the body is no JSON", hint=error.hint)
    return WireError(422, "UsageError", str(error), hint=error.hint)


def _decided_or_unknown() -> WireError:
    return refused(RefusedError("there is no such decision to be made", hint="GET /api/v1/approvals", code="unknown"))
