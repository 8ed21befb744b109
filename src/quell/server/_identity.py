"""Who calls, and whether that is enough for what is asked: every route names what it takes, and nothing else is open.

A refusal says the same whatever was wrong; why somebody was not believed stands in the audit log.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from quell.app import App
from quell.domain import AuditKind, Caller, Principal, QuellError, Refusal, RefusedError, may_do
from quell.governance import Identities
from quell.server._errors import Form, WireError, otlp_error_response, refused

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

READERS = frozenset({"viewer", "operator", "approver", "admin", "auditor"})
OPERATORS = frozenset({"operator", "admin"})
ANY: frozenset[str] = frozenset()
"""Any role at all: policies may name approvers as they like."""
_TOLD_MAX = 50
_TOLD_EVERY = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a route takes of its caller."""

    verb: str
    """What a scope of a credential must name, such as `verb:run.read`."""
    roles: frozenset[str] = READERS
    """One of them, or `ANY`; the functions behind a route may want more."""
    belongs_to: Literal["deployment", "tenant"] = "deployment"
    """`deployment`: to the first tenant that is served, as nothing in it names another; `tenant`: to the caller's own."""
    opens: Literal["to nobody", "on loopback"] = "to nobody"
    """`on loopback`: who calls from this machine itself is not asked."""
    grants: Literal["role and scope", "role or scope"] = "role and scope"
    """`role or scope`: a credential that names the verb needs no role for it."""


class Gate:
    """Lets requests through to their routes, or answers them."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._ledger = _Account(app)

    def guarded(self, endpoint: Endpoint, access: Access, *, form: Literal["api", "otlp"] = "api") -> Endpoint:
        """Return an endpoint that begins only for callers whom `access` lets through."""

        async def asked(request: Request) -> Response:
            try:
                request.state.principal = await self.principal(request, access)
            except WireError as error:
                if form == "api":
                    raise
                return otlp_error_response(error, form=_form_of(request))
            return await endpoint(request)

        return asked

    def accounted(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that finds out by itself whether to believe a request, and keeps the account of its refusals."""

        async def asked(request: Request) -> Response:
            try:
                return await endpoint(request)
            except WireError as error:
                if not getattr(request.state, "is_on_record", False):
                    told = {"reason": str(error), "status": str(error.status)}
                    await self._ledger.tell(request, principal="", told=told)
                raise

        return asked

    async def principal(self, request: Request, access: Access) -> Principal | None:
        """Return who calls; None for an open route. Raises WireError 401 for nobody and 403 for too little."""
        caller = _caller_of(request)
        if access.opens == "on loopback" and _is_direct(caller):
            return None
        found = await self._app.warden.identify(caller)
        if isinstance(found, Refusal):
            told = {"way": found.way, "reason": found.reason, "credential": found.credential}
            await self._ledger.tell(request, principal="", told=told)
            raise refused(RefusedError("you could not be identified", hint=_HOW, code="unauthenticated"))
        if lacking := self._lacking(found, access):
            await self._ledger.tell(request, principal=found.user, told={"reason": lacking})
            raise refused(
                RefusedError("you may not do this", hint=f"{lacking}; ask somebody who may", code="forbidden")
            )
        return found

    def _lacking(self, principal: Principal, access: Access) -> str:
        """Say what somebody lacks; empty when nothing."""
        if access.belongs_to == "deployment" and principal.tenant != self._app.settings.identity.tenants[0]:
            return "it belongs to another tenant"
        if not may_do(principal, access.verb):
            return f"the credential lacks the scope verb:{access.verb}"
        is_named = access.grants == "role or scope" and bool(principal.scopes)
        has_role = bool(principal.roles) if access.roles == ANY else not access.roles.isdisjoint(principal.roles)
        if not is_named and not has_role:
            return f"it takes one of the roles {', '.join(sorted(access.roles))}" if access.roles else "it takes a role"
        return ""


_HOW = "send Authorization: Bearer with a valid API key or token"


class _Account:
    """Keeps the account of refusals, and of a flood of them only how many there were."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._since: datetime | None = None
        self._told = 0
        self._untold = 0

    async def tell(self, request: Request, *, principal: str, told: dict[str, str]) -> None:
        """Record a refusal. A journal that is away does not turn it into another answer."""
        request.state.is_on_record = True
        now = self._app.clock()
        if self._since is None or not timedelta(0) <= now - self._since < _TOLD_EVERY:
            self._since, self._told = now, 0
        if self._told >= _TOLD_MAX:
            self._untold += 1
            return
        self._told += 1
        untold, self._untold = self._untold, 0
        peer = request.client.host if request.client else ""
        body: dict[str, object] = {**told, "peer": peer, "method": request.method, "path": request.url.path[:200]}
        body |= {"not_recorded_before": untold} if untold else {}
        with suppress(QuellError):
            audit = (await self._app.open_authority()).guard.audit
            entry = audit.entry(AuditKind.IDENTITY, run="", principal=principal, body=body)
            await asyncio.to_thread(audit.note, entry)


def is_from_here(request: Request) -> bool:
    """Tell whether somebody on this machine calls for itself, and no proxy for somebody elsewhere."""
    return _is_direct(_caller_of(request))


def _caller_of(request: Request) -> Caller:
    peer = request.client.host if request.client else ""
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"])
    return Caller(peer=peer, headers=headers, is_loopback=_is_loopback(peer))


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_direct(caller: Caller) -> bool:
    return caller.is_loopback and not Identities.forwarded_by(caller)


def _form_of(request: Request) -> Form:
    return "json" if "json" in request.headers.get("content-type", "") else "protobuf"
