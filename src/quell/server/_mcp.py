"""Quell as an MCP server: over HTTP at `/mcp`, and over stdio for programs that start it themselves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from quell.app import App
from quell.domain import Principal
from quell.server._body import Bodies
from quell.server._errors import WireError, error_response
from quell.server._identity import READERS, Access, Gate
from quell.server._rates import Rates

ACCESS = Access(verb="mcp", roles=READERS, belongs_to="tenant")
_BODY_MAX_MB = 1.0
_SESSIONS_MAX = 1_000
_IDLE_S = 900.0


class McpFace:
    """Speaks MCP over HTTP. The protocol's library is loaded when the first client comes."""

    def __init__(self, app: App, *, gate: Gate, bodies: Bodies, rates: Rates) -> None:
        self._app = app
        self._bodies = bodies
        self._rates = rates
        self._gate = gate
        self._opening = asyncio.Lock()
        self._manager: Any = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, for whom the gate lets through."""
        request = Request(scope, receive)
        try:
            self._rates.closing.admit()
            principal = await self._gate.principal(request, ACCESS)
            receive = await self._bodies.taken(request, body_max_mb=_BODY_MAX_MB)
        except WireError as error:
            await error_response(error, clean=self._app.warden.redactor.text)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        manager = await self._opened()
        if principal is not None:
            from quell.server._mcp_speech import user_of  # noqa: PLC0415 - loaded by now

            # The library gives a session to nobody but the user who began it.
            scope["user"] = user_of(principal)
        await manager.handle_request(scope, receive, send)

    async def close(self) -> None:
        """End every session."""
        self._stopping.set()
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def _opened(self) -> Any:
        async with self._opening:
            if self._manager is None:
                from mcp.server.streamable_http_manager import StreamableHTTPSessionManager  # noqa: PLC0415 - as above

                from quell.server._mcp_speech import mcp_server  # noqa: PLC0415 - half a second to load

                manager = StreamableHTTPSessionManager(
                    mcp_server(self._app, rates=self._rates),
                    session_idle_timeout=_IDLE_S,
                    max_sessions=_SESSIONS_MAX,
                )
                is_up = asyncio.Event()

                async def run() -> None:
                    # Its task group belongs to the task that entered it, and lives as long as the server.
                    async with manager.run():
                        is_up.set()
                        await self._stopping.wait()

                self._running = asyncio.create_task(run())
                await is_up.wait()
                self._manager = manager
            return self._manager


async def serve_mcp(app: App, *, by: Principal) -> None:
    """Speak MCP over stdin and stdout until they are closed, for one person."""
    from mcp.server.stdio import stdio_server  # noqa: PLC0415 - half a second to load

    from quell.server._mcp_speech import mcp_server  # noqa: PLC0415 - as above

    server = mcp_server(app, by=by)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())
