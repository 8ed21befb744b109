"""All routes in one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quell import telemetry
from quell.app import App
from quell.domain import QuellError, UsageError
from quell.server._api import Api
from quell.server._body import Bodies
from quell.server._errors import WireError, error_response, wire_error_of
from quell.server._events import Streams
from quell.server._guard import LocalOnly
from quell.server._telemetry import Intake

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def asgi(app: App) -> Starlette:
    """Return the HTTP face of an app."""
    bodies = Bodies(timeout_s=app.settings.server.request_timeout_s)
    api, intake, streams = Api(app, bodies=bodies), Intake(app, bodies=bodies), Streams(app)
    routes = [
        Route("/v1/logs", intake.endpoint("logs"), methods=["POST"]),
        Route("/v1/traces", intake.endpoint("traces"), methods=["POST"]),
        Route("/v1/metrics", intake.endpoint("metrics"), methods=["POST"]),
        Route("/webhooks/alertmanager", _traced(api.alertmanager), methods=["POST"]),
        Route("/health", api.health),
        Route("/api/v1/incidents", _traced(api.incidents)),
        Route("/api/v1/incidents/{id}", _traced(api.incident)),
        Route("/api/v1/incidents/{id}/report.{form}", _traced(api.report)),
        Route("/api/v1/runs", _traced(api.runs)),
        Route("/api/v1/runs/{id}", _traced(api.run)),
        Route("/api/v1/alerts", _traced(api.alerts)),
        Route("/api/v1/events", streams.endpoint),
        Route("/api/v1/changes", _traced(intake.change), methods=["POST"]),
    ]
    starlette = Starlette(
        routes=routes,
        middleware=[Middleware(LocalOnly)],
        exception_handlers={WireError: _wire, QuellError: _ours, HTTPException: _http, Exception: _unexpected},
    )
    starlette.state.streams = streams
    starlette.state.bodies = bodies
    return starlette


def _traced(endpoint: Endpoint) -> Endpoint:
    """Time an endpoint as one span that continues the caller's trace."""

    async def traced(request: Request) -> Response:
        attributes = {"http.request.method": request.method, "http.route": request.scope["route"].path}
        with telemetry.span("quell.request", attributes, parent=telemetry.extract(request.headers)) as span:
            response = await endpoint(request)
            span.put("http.response.status_code", response.status_code)
            return response

    return traced


async def _wire(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError), "registered for this type only"
    return error_response(error)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, QuellError), "registered for this type only"
    wire = wire_error_of(error)
    if isinstance(error, UsageError) and request.method in {"GET", "HEAD"}:
        wire.status = 404
    return error_response(wire)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this type only"
    response = error_response(WireError(error.status_code, "UsageError", str(error.detail), hint=_hint_of(error)))
    response.headers.update(error.headers or {})
    return response


def _hint_of(error: HTTPException) -> str:
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == 405 and allowed:
        return f"this route takes {allowed}"
    return "docs/reference/http.md lists what there is" if error.status_code == 404 else ""


async def _unexpected(request: Request, error: Exception) -> Response:
    said = f"{type(error).__name__}: {error}"
    telemetry.event("server.failed", path=request.url.path, error=said)
    return error_response(
        WireError(500, "InternalError", "a bug of Quell's; its log says more", hint="see logs/quell.log")
    )
