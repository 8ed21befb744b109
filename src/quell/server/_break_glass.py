"""Authority that people take in emergencies, and what others make of it, over HTTP."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell.app import App, Authority
from quell.domain import AuditKind, BreakGlass, Principal, RefusedError, UsageError
from quell.runs import Connection
from quell.server._approvals import caller_of, decoded
from quell.server._body import Bodies
from quell.server._errors import WireError, json_response
from quell.server._query import limit_of
from quell.server._stops import done_on_record

_BODY_MAX_MB = 0.0625
_ID_MAX_CHARS = 100


class _Opening(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/break-glass takes."""

    reason: str
    run: str = ""


class _Review(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/break-glass/ID/review takes."""

    review: str


class Emergencies:
    """Opens, shows and has reviewed what people take in emergencies."""

    def __init__(self, app: App, *, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies

    async def listed(self, request: Request) -> Response:
        """List what waits for review in the caller's tenant, the longest waiting first; or all, the newest first."""
        by, limit, authority = caller_of(request), limit_of(request), await self._app.open_authority()
        state = request.query_params.get("state", "unreviewed")
        if state not in {"unreviewed", "all"}:
            raise WireError(400, "UsageError", f"there is no state {state[:40]!r}", hint="one of unreviewed, all")

        def read() -> tuple[BreakGlass, ...]:
            break_glass = authority.guard.approvals.break_glass
            with authority.runs.database.reading() as connection:
                if state == "all":
                    return break_glass.listed(connection, tenant=by.tenant, rows_max=limit + 1)
                return break_glass.unreviewed(connection, tenant=by.tenant)

        found = await asyncio.to_thread(read)
        body = {"kind": "break_glass_list", "ok": True, "break_glass": found[:limit], "is_cut": len(found) > limit}
        return json_response(body)

    async def open(self, request: Request) -> Response:
        """Take emergency authority, for one run or for what the caller does directly."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        wanted = decoded(body, _Opening, hint="send {reason, run}; run may be left out")
        by, authority = caller_of(request), await self._app.open_authority()
        break_glass, is_known = authority.guard.approvals.break_glass, await self._is_run(wanted.run)

        def work() -> BreakGlass:
            with authority.runs.database.writing() as connection:
                run = wanted.run if is_known else ""
                opened = break_glass.open(connection, by=by, reason=wanted.reason, run=run)
                if not is_known:
                    # Only now: who may not open anything does not learn which runs there are.
                    raise UsageError(f"there is no run {wanted.run[:_ID_MAX_CHARS]!r}", hint="write its whole id")
                told: dict[str, object] = {
                    "verb": "break-glass.open",
                    "break_glass": opened.id,
                    "covers": opened.run,
                    "reason": opened.reason,
                    "expires_at": opened.expires_at.isoformat(),
                    "review_due_at": opened.review_due_at.isoformat(),
                }
                _record(authority, connection, by=by, told=told, run=opened.run)
            return opened

        opened = await done_on_record(self._app, request, work, what="break the glass")
        await self._app.runs.emit(
            opened.run or opened.id, "break_glass.opened", key=f"break_glass.{opened.id}", body=break_glass.told(opened)
        )
        return json_response({"kind": "break_glass", "ok": True, "break_glass": opened}, status=201)

    async def review(self, request: Request) -> Response:
        """Take what another person makes of an emergency."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        said = decoded(body, _Review, hint="send {review}")
        by, authority = caller_of(request), await self._app.open_authority()
        identifier = request.path_params["id"]

        def work() -> BreakGlass:
            if not identifier.isprintable() or len(identifier) > _ID_MAX_CHARS:
                hint = "GET /api/v1/break-glass lists them"
                raise RefusedError(f"there is no emergency {identifier[:40]!r}", hint=hint, code="unknown")
            with authority.runs.database.writing() as connection:
                break_glass = authority.guard.approvals.break_glass
                reviewed = break_glass.review(connection, identifier, by=by, review=said.review)
                told: dict[str, object] = {
                    "verb": "break-glass.review",
                    "break_glass": reviewed.id,
                    "covers": reviewed.run,
                    "opened_by": reviewed.user,
                    "review": reviewed.review,
                }
                _record(authority, connection, by=by, told=told, run=reviewed.run)
            return reviewed

        reviewed = await done_on_record(self._app, request, work, what=f"review {identifier[:_ID_MAX_CHARS]}")
        return json_response({"kind": "break_glass", "ok": True, "break_glass": reviewed})

    async def _is_run(self, identifier: str) -> bool:
        """Tell whether a run is named whole; none at all is right too."""
        if not identifier:
            return True
        if not identifier.isprintable() or len(identifier) > _ID_MAX_CHARS:
            return False
        try:
            return (await self._app.runs.get(identifier)).id == identifier
        except UsageError:
            return False


def _record(authority: Authority, connection: Connection, *, by: Principal, told: dict[str, object], run: str) -> None:
    audit, body = authority.guard.audit, {"tenant": by.tenant, "roles": list(by.roles), **told}
    audit.append(connection, audit.entry(AuditKind.IDENTITY, run=run, principal=by.user, body=body))
