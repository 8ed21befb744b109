"""Tools over HTTP: what there is, what their servers offer, pins, and calls that people make by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell.app import App, ToolDesk
from quell.domain import RefusedError, ToolTerms, UsageError
from quell.server._approvals import caller_of, decoded
from quell.server._body import Bodies
from quell.server._errors import RETRY_AFTER_S, WireError, json_response, refused
from quell.server._query import headers_of
from quell.server._rates import Rates

T = TypeVar("T")
_BODY_MAX_MB = 1.0
_WAIT_S_MAX = 20.0
"""Who waits longer asks again: proxies cut what is silent for a minute."""
_SEQ_DIGITS_MAX = 18
_KEY_MAX_CHARS = 200


class _Acceptance(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/pins takes."""

    server: str
    tool: str
    digest: str
    terms: ToolTerms | None = None
    """Those that were seen; left out: whatever the settings say of it."""
    declared: str | None = None
    """Of the server `client`: the JSON list of tools that a chat client declares."""


class _Declared(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/offers takes."""

    server: str
    tool: str
    declared: str | None = None


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/tool-calls takes."""

    tool: str
    arguments: dict[str, object] = msgspec.field(default_factory=dict)


class Tools:
    """Shows tools and their servers, takes pins, and makes calls for people."""

    def __init__(self, app: App, *, bodies: Bodies, rates: Rates) -> None:
        self._app = app
        self._bodies = bodies
        self._rates = rates

    async def listed(self, request: Request) -> Response:
        """GET /api/v1/tools: those that may be called."""
        desk, by = await self._desk(), caller_of(request)
        return self._told("tools", await desk.listed(request.query_params.get("server", ""), tenant=by.tenant))

    async def one(self, request: Request) -> Response:
        """GET /api/v1/tools/NAME: one whole."""
        return self._told("tool", await (await self._desk()).shown(request.path_params["name"]))

    async def checked(self, request: Request) -> Response:
        """GET /api/v1/tool-servers: whether they answer, and whether what is pinned is still what they offer."""
        self._rates.take(caller_of(request))
        found = await (await self._desk()).checked(request.query_params.get("server", ""), headers=headers_of(request))
        return self._told("tool_check", {"ok": all(each.is_ok for each in found), "servers": found})

    async def compared(self, request: Request) -> Response:
        """GET /api/v1/tool-drift: what is offered now beside what is pinned."""
        self._rates.take(caller_of(request))
        found = await (await self._desk()).compared(request.query_params.get("server", ""), headers=headers_of(request))
        return self._told(
            "tool_diff", {"ok": found.is_same and not found.down, "tools": found.tools, "down": found.down}
        )

    # -- pins ---------------------------------------------------------------------------------------------------------

    async def offered(self, request: Request) -> Response:
        """POST /api/v1/offers: what is offered under a name, for whoever is to accept it."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        wanted = decoded(body, _Declared, hint="send {server, tool}, and of a chat client what it declares")
        self._rates.take(caller_of(request))
        sheet = (await self._desk()).offered(
            wanted.server, wanted.tool, declared=wanted.declared, headers=headers_of(request)
        )
        return self._told("offer", await _found(sheet))

    async def pin(self, request: Request) -> Response:
        """POST /api/v1/pins: accept exactly what was seen."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        wanted = decoded(body, _Acceptance, hint="send {server, tool, digest, terms}")
        pinned = (await self._desk()).pin(
            wanted.server,
            wanted.tool,
            digest=wanted.digest,
            terms=wanted.terms,
            declared=wanted.declared,
            by=caller_of(request),
            way="api",
            headers=headers_of(request),
        )
        return self._told("tool_pinned", await _found(pinned))

    async def unpin(self, request: Request) -> Response:
        """DELETE /api/v1/pins/SERVER/TOOL: take a pin back."""
        server, name = request.path_params["server"], request.path_params["tool"]
        await _found((await self._desk()).unpin(server, name, by=caller_of(request), way="api"))
        return json_response({"kind": "tool_unpinned", "ok": True, "server": server, "tool": name})

    # -- calls --------------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Response:
        """POST /api/v1/tool-calls: begin a call; the guard decides about it as about any other."""
        body = await self._bodies.read(request, body_max_mb=_BODY_MAX_MB)
        wanted = decoded(body, _Call, hint="send {tool, arguments}")
        by, key = caller_of(request), request.headers.get("idempotency-key", "")
        if len(key) > _KEY_MAX_CHARS:
            raise WireError(400, "UsageError", f"the Idempotency-Key has more than {_KEY_MAX_CHARS} characters")
        if self._rates.closing.is_closing:
            raise _stopping("try again when it is back")
        self._rates.take(by)
        arguments = json.dumps(wanted.arguments, ensure_ascii=False)
        begun = self._app.calls.start(wanted.tool, arguments=arguments, by=by, headers=headers_of(request), key=key)
        run = await _found(begun)
        return json_response({"kind": "tool_call", "ok": True, "run": run.id}, status=202)

    async def state(self, request: Request) -> Response:
        """GET /api/v1/tool-calls/RUN: how far a call is, at once or when something is new."""
        after, wait_s = _seq_of(request), _wait_of(request)
        calls, by = self._app.calls, caller_of(request)
        waiting = asyncio.ensure_future(calls.until(request.path_params["run"], after=after, by=by, timeout_s=wait_s))
        closing = asyncio.ensure_future(self._rates.closing.closed.wait())
        try:
            await asyncio.wait({waiting, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise _stopping("the call goes on: ask again when it is back")
            return self._told("tool_call", await _found(waiting))
        finally:
            closing.cancel()
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})

    async def cancel(self, request: Request) -> Response:
        """POST /api/v1/tool-calls/RUN/cancel: stop a call; whether anything was done tells its trace."""
        run, by = request.path_params["run"], caller_of(request)
        await _found(self._app.calls.cancel(run, by=by))
        return self._told("tool_call", await self._app.calls.until(run, by=by, timeout_s=0))

    async def _desk(self) -> ToolDesk:
        return (await self._app.open_authority()).desk()

    def _told(self, kind: str, body: object) -> Response:
        """Answer with a record; what libraries or servers quoted of our secrets is taken out of it."""
        told = self._app.warden.redactor.value(msgspec.to_builtins(body))
        assert isinstance(told, dict), "a record"
        return json_response({"kind": kind, "ok": True, **told})


async def _found(work: Awaitable[T]) -> T:
    """Wait for what people may do or not, on their own things; say on the wire why not."""
    try:
        return await work
    except RefusedError as error:
        raise refused(error) from error


def _stopping(hint: str) -> WireError:
    return WireError(503, "StateHeldError", "the server stops", hint=hint, retry_after_s=RETRY_AFTER_S)


def _seq_of(request: Request) -> int:
    written = request.query_params.get("after", "0")
    if not written.isdecimal() or len(written) > _SEQ_DIGITS_MAX:
        raise UsageError(f"not a sequence number: {written[:40]!r}", hint="give the `seq` of the last answer")
    return int(written)


def _wait_of(request: Request) -> float:
    written = request.query_params.get("wait_s", "0")
    try:
        wait_s = float(written[:20])
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= _WAIT_S_MAX:
        raise WireError(400, "UsageError", f"wait_s is {written[:20]!r}", hint=f"seconds from 0 to {_WAIT_S_MAX:g}")
    return wait_s
