"""Stops, what is not known about effects, and the signed state of the audit log, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell.app import App, Authority
from quell.domain import AuditKind, Effect, EffectState, Killed, Principal, RefusedError, Switch
from quell.runs import Connection
from quell.server._approvals import caller_of, decoded
from quell.server._body import Bodies
from quell.server._errors import WireError, json_response, refused
from quell.server._query import limit_of

T = TypeVar("T")
_BODY_MAX_MB = 0.0625


class _Stop(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/switches takes."""

    kind: Literal["kill", "freeze"]
    reason: str
    tenant: str | None = None
    agent: str = "*"
    environment: str = "*"
    tool: str = "*"
    starts_at: datetime | None = None
    ends_at: datetime | None = None


class Stops:
    """Sets, lifts and shows stops; shows effects and the signed audit log."""

    def __init__(self, app: App, *, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies

    async def listed(self, request: Request) -> Response:
        """List the stops in force that cover something of the caller's tenant."""
        tenant, authority = caller_of(request).tenant, await self._app.open_authority()

        def read() -> tuple[Switch, ...]:
            with authority.runs.database.reading() as connection:
                return authority.guard.switches.state(connection, lock="none").switches

        found = [switch for switch in await asyncio.to_thread(read) if fnmatchcase(tenant, switch.tenant)]
        return json_response({"kind": "switches", "ok": True, "switches": found, "is_cut": False})

    async def set(self, request: Request) -> Response:
        """Kill or freeze what globs cover; a kill says what it came too late for."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        stop = decoded(body, _Stop, hint="send {kind: kill|freeze, reason, tenant, agent, environment, tool}")
        by, authority = caller_of(request), await self._app.open_authority()
        work: Callable[[Authority, _Stop, Principal], Killed] = _kill if stop.kind == "kill" else _freeze
        killed = await done_on_record(self._app, request, lambda: work(authority, stop, by), what=f"set a {stop.kind}")
        answer = {"kind": "switch", "ok": True, "switch": killed.switch, "in_flight": killed.in_flight}
        return json_response(answer, status=201)

    async def lift(self, request: Request) -> Response:
        """End a stop."""
        by, authority = caller_of(request), await self._app.open_authority()
        identifier, reason = request.path_params["id"], request.query_params.get("reason", "")

        def work() -> None:
            with authority.runs.database.writing() as connection:
                authority.guard.switches.lift(connection, identifier, by=by, reason=reason)
                _record(authority, connection, by=by, told={"lifted": identifier, "reason": reason})

        if not reason.strip():
            raise WireError(400, "UsageError", "lifting a stop needs a reason", hint="add ?reason=")
        await done_on_record(self._app, request, work, what=f"lift {identifier[:100]}")
        return json_response({"kind": "switch_lifted", "ok": True, "switch": identifier})

    async def effects(self, request: Request) -> Response:
        """List entries of the ledger, newest first; those that are `unknown` wait for people."""
        by, limit, authority = caller_of(request), limit_of(request), await self._app.open_authority()
        state = _state_of(request.query_params.get("state", ""))
        run = request.query_params.get("run") or None

        def read() -> list[Effect]:
            with authority.runs.database.reading() as connection:
                return authority.guard.ledger.entries(
                    connection, run=run, state=state, tenant=by.tenant, rows_max=limit + 1
                )

        found = await asyncio.to_thread(read)
        rows = [authority.redactor.value(_effect_row(effect)) for effect in found[:limit]]
        return json_response({"kind": "effects", "ok": True, "effects": rows, "is_cut": len(found) > limit})

    async def checkpoint(self, _request: Request) -> Response:
        """Sign the audit log as it stands, and show it with the key that checks it."""
        audit = (await self._app.open_authority()).guard.audit
        signed = await asyncio.to_thread(audit.checkpoint)
        return json_response(
            {"kind": "audit_checkpoint", "ok": True, "checkpoint": signed, "public_key": audit.public_key}
        )


async def done_on_record(app: App, request: Request, work: Callable[[], T], *, what: str) -> T:
    """Do what people may do or not; a refusal is on record."""
    try:
        return await asyncio.to_thread(work)
    except RefusedError as error:
        by, audit = caller_of(request), (await app.open_authority()).guard.audit
        body = {"wanted": what, "code": error.code, "refused": str(error)}
        entry = audit.entry(AuditKind.REFUSAL, run="", principal=by.user, body=body)
        await asyncio.to_thread(audit.note, entry)
        raise refused(error) from error


def _kill(authority: Authority, stop: _Stop, by: Principal) -> Killed:
    if stop.starts_at is not None or stop.ends_at is not None:
        raise WireError(400, "UsageError", "a kill has no window", hint="it holds until somebody lifts it")

    def record(connection: Connection, killed: Killed) -> None:
        told = {**_told_of(killed.switch), "in_flight": list(killed.in_flight)}
        _record(authority, connection, by=by, told=told)

    return authority.guard.switches.kill_now(
        by=by,
        reason=stop.reason,
        tenant=stop.tenant,
        agent=stop.agent,
        environment=stop.environment,
        tool=stop.tool,
        and_then=record,
    )


def _freeze(authority: Authority, stop: _Stop, by: Principal) -> Killed:
    if stop.starts_at is None or stop.ends_at is None:
        raise WireError(400, "UsageError", "a freeze has a window", hint="send starts_at and ends_at")
    with authority.runs.database.writing() as connection:
        switch = authority.guard.switches.freeze(
            connection,
            by=by,
            reason=stop.reason,
            starts_at=stop.starts_at,
            ends_at=stop.ends_at,
            tenant=stop.tenant,
            agent=stop.agent,
            environment=stop.environment,
            tool=stop.tool,
        )
        _record(authority, connection, by=by, told=_told_of(switch))
    return Killed(switch=switch, in_flight=())


def _record(authority: Authority, connection: Connection, *, by: Principal, told: dict[str, object]) -> None:
    audit = authority.guard.audit
    audit.append(connection, audit.entry(AuditKind.SWITCH, run="", principal=by.user, body=told))


def _told_of(switch: Switch) -> dict[str, object]:
    return {
        "switch": switch.id,
        "kind": switch.kind,
        "tenant": switch.tenant,
        "agent": switch.agent,
        "environment": switch.environment,
        "tool": switch.tool,
        "starts_at": switch.starts_at.isoformat(),
        "ends_at": switch.ends_at.isoformat() if switch.ends_at else "",
        "reason": switch.reason,
    }


def _effect_row(effect: Effect) -> dict[str, object]:
    """Return an entry without what it brought: that is read where it is needed, under its digest."""
    call = effect.call
    resource = call.resource
    return {
        "key": effect.key,
        "state": effect.state.value,
        "reason": effect.reason,
        "detail": effect.detail,
        "run": call.run,
        "call": call.id,
        "tool": call.tool,
        "arguments": call.arguments,
        "resource": {"kind": resource.kind, "name": resource.name, "environment": resource.environment},
        "recovery": effect.recovery.value,
        "user": effect.user,
        "approval": effect.approval,
        "attempts": effect.attempts,
        "intended_at": _written(effect.intended_at),
        "sent_at": _written(effect.sent_at),
        "ended_at": _written(effect.ended_at),
        "result_digest": effect.result_digest,
        "result_bytes": effect.result_bytes,
        "settled_by": effect.settled_by,
    }


def _written(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None


def _state_of(written: str) -> EffectState | None:
    if not written:
        return None
    if written not in set(EffectState):
        hint = f"one of {', '.join(EffectState)}"
        raise WireError(400, "UsageError", f"there is no state {written[:40]!r}", hint=hint)
    return EffectState(written)
