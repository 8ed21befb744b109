"""All routes in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from quell import telemetry
from quell.app import App
from quell.domain import ConfigError, QuellError, UsageError
from quell.server._agent_list import AgentList
from quell.server._api import Api
from quell.server._approvals import DECIDE, Inbox
from quell.server._body import Bodies
from quell.server._break_glass import Emergencies
from quell.server._chat import Chats
from quell.server._errors import WireError, error_response, wire_error_of
from quell.server._events import Streams
from quell.server._guard import KnownNames, is_local
from quell.server._identity import ANY, OPERATORS, READERS, Access, Endpoint, Gate
from quell.server._listening import Closing
from quell.server._mcp import McpFace
from quell.server._models import Models
from quell.server._openai_gate import spoken
from quell.server._rates import Rates
from quell.server._responses import Responses
from quell.server._spans import traced
from quell.server._stops import Stops
from quell.server._streaming import LASTING, Lasting
from quell.server._telemetry import Intake, Signal
from quell.server._tools import Tools

if TYPE_CHECKING:
    from quell.server._a2a import A2A

_TELEMETRY = Access(verb="telemetry.write", roles=OPERATORS, opens="on loopback", grants="role or scope")
_ALERTS = Access(verb="alert.write", roles=OPERATORS, opens="on loopback", grants="role or scope")
_TRACE = Access(verb="run.read", belongs_to="tenant")
_CHANGES = Access(verb="change.write", roles=OPERATORS, grants="role or scope")


class _Face(Starlette):
    """Answers requests, and writes the streams that they began when nothing else of them is left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one."""
        await super().__call__(scope, receive, send)
        lasting: Lasting | None = scope.pop(LASTING, None)
        if lasting is None:
            return
        try:
            await lasting(send)
        except Exception as error:
            _tell_bug(scope["path"], error)
            raise


def asgi(app: App) -> Starlette:
    """Return the HTTP face of an app."""
    settings = app.settings.server
    bodies = Bodies(timeout_s=settings.request_timeout_s)
    streams, gate = Streams(app), Gate(app)
    closing = Closing(listening_max=settings.chats_max)
    reach: Literal["loopback", "network"] = "loopback" if is_local(settings.host) else "network"
    rates = Rates(per_minute=settings.chats_per_minute, closing=closing)
    face = McpFace(app, gate=gate, bodies=bodies, rates=rates) if app.desk_of_agents is not None else None
    others = _a2a_face(app, gate, bodies=bodies, rates=rates)
    talking: list[BaseRoute] = [Route("/mcp", face)] if face is not None else []
    talking += others.routes if others is not None else []
    starlette = _Face(
        routes=[
            *talking,
            *_trouble(app, gate, streams, bodies=bodies),
            *_authority(app, gate, bodies=bodies),
            *_tools(app, gate, bodies=bodies, rates=rates),
            *_agents(app, gate, bodies=bodies, rates=rates),
        ],
        middleware=[Middleware(KnownNames, names=settings.names, reach=reach)],
        exception_handlers={WireError: _wire, QuellError: _ours, HTTPException: _http, Exception: _unexpected},
    )
    starlette.state.streams = streams
    starlette.state.bodies = bodies
    starlette.state.closing = closing
    starlette.state.quell = app
    starlette.state.mcp = face
    starlette.state.a2a = others
    return starlette


def _a2a_face(app: App, gate: Gate, *, bodies: Bodies, rates: Rates) -> A2A | None:
    """Return what speaks A2A, where it is wanted. Raises ConfigError when what it needs is not installed."""
    if app.desk_of_agents is None or not app.settings.server.a2a:
        return None
    try:
        from quell.server._a2a import A2A  # noqa: PLC0415 - an extra, and half a second to load
    except ImportError as error:
        raise ConfigError(
            "server.a2a needs packages that are not installed", hint="pip install 'quell[a2a]'"
        ) from error
    return A2A(app, gate=gate, bodies=bodies, rates=rates, url=app.settings.server.a2a_url.rstrip("/"))


def _trouble(app: App, gate: Gate, streams: Streams, *, bodies: Bodies) -> list[Route]:
    """Return the routes by which telemetry and alerts come in, and incidents and runs are read."""
    api, intake = Api(app, bodies=bodies), Intake(app, bodies=bodies)

    def reads(verb: str, endpoint: Endpoint) -> Endpoint:
        return traced(gate.guarded(endpoint, Access(verb=verb)))

    def takes(signal: Signal) -> Endpoint:
        return gate.guarded(intake.endpoint(signal), _TELEMETRY, form="otlp")

    return [
        Route("/v1/logs", takes("logs"), methods=["POST"]),
        Route("/v1/traces", takes("traces"), methods=["POST"]),
        Route("/v1/metrics", takes("metrics"), methods=["POST"]),
        Route("/webhooks/alertmanager", traced(gate.guarded(api.alertmanager, _ALERTS)), methods=["POST"]),
        Route("/health", api.health),
        Route("/api/v1/incidents", reads("incident.read", api.incidents)),
        Route("/api/v1/incidents/{id}", reads("incident.read", api.incident)),
        Route("/api/v1/incidents/{id}/report.{form}", reads("incident.read", api.report)),
        Route("/api/v1/runs", reads("run.read", api.runs)),
        Route("/api/v1/runs/{id}", reads("run.read", api.run)),
        Route("/api/v1/runs/{id}/trace", traced(gate.guarded(api.trace, _TRACE))),
        Route("/api/v1/alerts", reads("alert.read", api.alerts)),
        Route("/api/v1/events", gate.guarded(streams.endpoint, Access(verb="event.read"))),
        Route("/api/v1/changes", traced(gate.guarded(intake.change, _CHANGES)), methods=["POST"]),
    ]


def _authority(app: App, gate: Gate, *, bodies: Bodies) -> list[Route]:
    """Return the routes by which people use their authority."""
    inbox, stops = Inbox(app, bodies=bodies, gate=gate), Stops(app, bodies=bodies)
    emergencies, involved = Emergencies(app, bodies=bodies), READERS | {"break-glass"}

    def own(verb: str, endpoint: Endpoint, *, roles: frozenset[str] = READERS) -> Endpoint:
        return traced(gate.guarded(endpoint, Access(verb=verb, roles=roles, belongs_to="tenant")))

    return [
        Route("/api/v1/approvals", own("approval.list", inbox.listed, roles=ANY)),
        Route("/api/v1/approvals/{id}", own("approval.list", inbox.one, roles=ANY)),
        Route("/api/v1/approvals/{id}", traced(gate.guarded(inbox.decide, DECIDE)), methods=["POST"]),
        Route("/v1/approvals/{id}", traced(gate.accounted(inbox.decide_on_the_wire)), methods=["POST"]),
        Route("/api/v1/switches", own("switch.list", stops.listed)),
        Route("/api/v1/switches", own("switch.set", stops.set), methods=["POST"]),
        Route("/api/v1/switches/{id}", own("switch.lift", stops.lift), methods=["DELETE"]),
        Route("/api/v1/break-glass", own("break-glass.list", emergencies.listed, roles=involved)),
        Route("/api/v1/break-glass", own("break-glass.open", emergencies.open, roles=involved), methods=["POST"]),
        Route(
            "/api/v1/break-glass/{id}/review",
            own("break-glass.review", emergencies.review, roles=involved),
            methods=["POST"],
        ),
        Route("/api/v1/effects", own("effect.list", stops.effects)),
        Route("/api/v1/audit/checkpoint", traced(gate.guarded(stops.checkpoint, Access(verb="audit.read")))),
    ]


def _tools(app: App, gate: Gate, *, bodies: Bodies, rates: Rates) -> list[Route]:
    """Return the routes by which people see tools, pin them, and call them by hand."""
    tools = Tools(app, bodies=bodies, rates=rates)

    def whose(verb: str, endpoint: Endpoint) -> Endpoint:
        return traced(gate.guarded(endpoint, Access(verb=verb, belongs_to="tenant")))

    def ours(verb: str, endpoint: Endpoint, *, roles: frozenset[str] = READERS) -> Endpoint:
        return traced(gate.guarded(endpoint, Access(verb=verb, roles=roles)))

    return [
        Route("/api/v1/tools", whose("tool.list", tools.listed)),
        Route("/api/v1/tools/{name:path}", ours("tool.read", tools.one)),
        Route("/api/v1/tool-servers", ours("tool.read", tools.checked)),
        Route("/api/v1/tool-drift", ours("tool.read", tools.compared)),
        Route("/api/v1/offers", ours("tool.read", tools.offered), methods=["POST"]),
        Route("/api/v1/pins", ours("tool.pin", tools.pin, roles=OPERATORS), methods=["POST"]),
        Route("/api/v1/pins/{server}/{tool:path}", ours("tool.pin", tools.unpin, roles=OPERATORS), methods=["DELETE"]),
        Route("/api/v1/tool-calls", whose("tool.call", tools.call), methods=["POST"]),
        Route("/api/v1/tool-calls/{run}", whose("tool.call", tools.state)),
        Route("/api/v1/tool-calls/{run}/cancel", whose("tool.call", tools.cancel), methods=["POST"]),
    ]


def _agents(app: App, gate: Gate, *, bodies: Bodies, rates: Rates) -> list[Route]:
    """Return the routes by which clients of OpenAI's protocol ask agents."""
    if app.desk_of_agents is None:
        return []
    chats, models, listed = Chats(app, bodies=bodies, rates=rates), Models(app), AgentList(app)
    responses = Responses(chats)

    def asks(endpoint: Endpoint) -> Endpoint:
        access = Access(verb="chat", belongs_to="tenant")
        return traced(spoken(gate.guarded(endpoint, access), app, closing=rates.closing))

    return [
        Route("/v1/chat/completions", asks(chats.create), methods=["POST"]),
        Route("/v1/chat/completions/{id}", asks(chats.resume), methods=["GET"]),
        Route("/v1/responses", asks(responses.create), methods=["POST"]),
        Route("/v1/responses/{id}", asks(responses.one), methods=["GET"]),
        Route("/v1/responses/{id}/cancel", asks(responses.cancel), methods=["POST"]),
        Route("/aura/info", asks(listed.told), methods=["GET"]),
        Route("/v1/models", asks(models.listed), methods=["GET"]),
        Route("/v1/models/{id:path}", asks(models.one), methods=["GET"]),
    ]


def _clean_of(request: Request) -> Callable[[str], str]:
    app: App = request.app.state.quell
    return app.warden.redactor.text


async def _wire(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError), "registered for this type only"
    return error_response(error, clean=_clean_of(request))


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, QuellError), "registered for this type only"
    wire = wire_error_of(error)
    if isinstance(error, UsageError) and request.method in {"GET", "HEAD"}:
        wire.status = 404
    return error_response(wire, clean=_clean_of(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this type only"
    hint, headers = "", dict(error.headers or {})
    if error.status_code == 404:
        hint = "docs/reference/http.md lists what there is"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
        hint = f"this path takes {headers['Allow']}"
    response = error_response(WireError(error.status_code, "UsageError", str(error.detail), hint=hint))
    response.headers.update(headers)
    return response


def _methods_of(request: Request) -> list[str]:
    """Return what a path takes: one path has a route per verb, and Starlette tells of the first alone."""
    routes = [each for each in request.app.routes if isinstance(each, Route)]
    found = [each.methods or set() for each in routes if each.matches(request.scope)[0] is not Match.NONE]
    return sorted(set().union(*found))


async def _unexpected(request: Request, error: Exception) -> Response:
    _tell_bug(request.url.path, error)
    return error_response(
        WireError(500, "InternalError", "a bug of Quell's; its log says more", hint="see logs/quell.log")
    )


def _tell_bug(path: str, error: Exception) -> None:
    telemetry.event("server.failed", path=path, error=f"{type(error).__name__}: {error}")
