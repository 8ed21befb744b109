"""Serve an app over HTTP until told to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from quell import telemetry
from quell.app import App
from quell.domain import QuellError, StateHeldError
from quell.governance import Identities
from quell.server._asgi import asgi
from quell.server._body import Bodies
from quell.server._connection import connection_class
from quell.server._events import Streams
from quell.server._listening import Closing

_STOP_TIMEOUT_S = 5
_BACKLOG = 256
_PUSH_INTERVAL_S = 1.0


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever started it: they cancel, and it stops."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.is_up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def serve(app: App, *, on_ready: Callable[[str], None] = lambda _url: None) -> None:
    """Answer requests and watch, until cancelled; then let answers of agents end, and finish what was begun.

    Args:
        app: Opened in the role `serve`.
        on_ready: Told the URL once requests are answered.

    Raises:
        ConfigError: the host is not loopback, and nobody could be told from anybody.
        StateHeldError: the port is taken.
    """
    settings = app.settings.server
    Identities.may_bind(settings.host, app.warden.plan)
    telemetry.event("server.starting", host=settings.host, port=settings.port)
    listener = _listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    starlette = asgi(app)
    server = _Server(_config_of(starlette, head_timeout_s=settings.request_timeout_s))
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(app.watch_forever())
    pushing = asyncio.create_task(_push(starlette))
    try:
        up = asyncio.create_task(server.is_up.wait())
        await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        app.announce(url)
        telemetry.event("server.ready", url=url, pid=os.getpid())
        on_ready(url)
        await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        began_s = loop.time()
        telemetry.event("server.stopping", reason="told to stop")
        await _heard_out(starlette, timeout_s=settings.aura.shutdown_timeout_s)
        watching.cancel()
        pushing.cancel()
        server.should_exit = True
        await _finished(serving)
        with suppress(asyncio.CancelledError):
            await watching
        _let_go(listener)
        telemetry.event("server.stopped", elapsed_ms=round((loop.time() - began_s) * 1000))


def _config_of(starlette: Starlette, *, head_timeout_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        starlette,
        log_config=None,
        access_log=False,
        lifespan="off",
        # Who is at the other end is judged by us: uvicorn would believe what a header says of it.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
        ws="none",
        http=connection_class(head_timeout_s=head_timeout_s),
    )


async def _push(starlette: Starlette) -> None:
    """Tell other agents of their tasks; what fails is told and tried again."""
    if (others := starlette.state.a2a) is None:
        return
    while True:
        try:
            await others.pusher.look()
        except QuellError as error:
            telemetry.event("a2a.push_failed", error=str(error))
        await asyncio.sleep(_PUSH_INTERVAL_S)


async def _heard_out(starlette: Starlette, *, timeout_s: float) -> None:
    """Let answers of agents end, or end them when the time is over; then end every other stream and body."""
    closing: Closing = starlette.state.closing
    streams: Streams = starlette.state.streams
    bodies: Bodies = starlette.state.bodies
    # Told to stop once more, nobody waits for an answer.
    with suppress(asyncio.CancelledError):
        await closing.close(timeout_s=timeout_s)
    streams.stopping.set()
    bodies.hurry()
    if starlette.state.mcp is not None:
        await starlette.state.mcp.close()


def _let_go(listener: socket.socket) -> None:
    """Close a listener; a server that was cut off has left it in the loop, which would take the next one for it."""
    if listener.fileno() != -1:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    listener.close()


async def _finished(serving: asyncio.Task[None]) -> None:
    """Wait for the server to finish, even when told to stop once more."""
    try:
        await asyncio.wait_for(asyncio.shield(serving), timeout=_STOP_TIMEOUT_S + 2)
    except (TimeoutError, asyncio.CancelledError):
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StateHeldError(
                f"port {port} of {host} is taken by another program",
                hint="stop it, or choose another with --port or server.port; 0 takes a free one",
            ) from error
        raise StateHeldError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="check server.host and server.port"
        ) from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    return listener
