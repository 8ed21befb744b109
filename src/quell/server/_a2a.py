"""Quell for other agents: A2A 1.0 over JSON-RPC and REST, and 0.3 for those that speak no other."""

from __future__ import annotations

from typing import Any

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from quell import __version__
from quell.app import App, TaskBook
from quell.server._a2a_handler import TaskHandler
from quell.server._a2a_push import Pusher, Screen
from quell.server._a2a_refusals import CALL, Refusals
from quell.server._a2a_tasks import Tasks
from quell.server._body import Bodies
from quell.server._errors import WireError, error_response, json_response
from quell.server._identity import READERS, Access, Gate
from quell.server._listening import Closing
from quell.server._query import headers_of
from quell.server._rates import Rates
from quell.server._spans import Traced

ACCESS = Access(verb="a2a", roles=READERS, belongs_to="tenant")
RPC, REST = "/a2a/v1/rpc", "/a2a/v1"
_GRACE_S = 4.0
_BODY_MAX_MB = 4.0


class A2A:
    """The routes of the protocol, and who is told of tasks."""

    def __init__(self, app: App, *, gate: Gate, bodies: Bodies, rates: Rates, url: str = "") -> None:
        """Speak for the agents of an app; `url` is where this server is reached from outside, when it is not asked itself."""
        self._app = app
        self._url = url
        settings = app.settings
        screen = Screen(inside=frozenset(settings.server.a2a_push_inside))
        tasks = Tasks(app, TaskBook(app.runs.database, clock=app.clock), rates=rates)
        handler, builder = TaskHandler(tasks, screen=screen), _Builder()
        self.pusher = Pusher(tasks, screen=screen, clock=app.clock)
        guarded = [
            *create_jsonrpc_routes(handler, RPC, builder, shutdown_grace_period=_GRACE_S),
            *create_rest_routes(handler, builder, path_prefix=REST, shutdown_grace_period=_GRACE_S),
            # Old clients post to the root, as AURA has it for them.
            *create_jsonrpc_routes(handler, "/", builder, enable_v0_3_compat=True, shutdown_grace_period=_GRACE_S),
        ]
        for route in guarded:
            if isinstance(route, Route):
                inner = Refusals(route.app)
                route.app = Traced(_Guarded(inner, app=app, gate=gate, bodies=bodies, closing=rates.closing))
        # Mounts are the same once more under a tenant's name: who calls tells its tenant, and nothing else does.
        self.routes = [
            Route("/.well-known/agent-card.json", self._card),
            *(route for route in guarded if isinstance(route, Route)),
        ]

    async def _card(self, request: Request) -> Response:
        """Show what these agents are to other agents; everybody may see it."""
        base = self._url or self._app.warden.url or str(request.base_url).rstrip("/")
        return json_response(agent_card_to_dict(card_of(self._app, base)))


class _Guarded:
    """Lets a request through to the protocol once it is known who calls."""

    def __init__(self, inner: ASGIApp, *, app: App, gate: Gate, bodies: Bodies, closing: Closing) -> None:
        self._inner = inner
        self._bodies = bodies
        self._closing = closing
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self._closing.admit()
            principal = await self._gate.principal(request, ACCESS)
            receive = await self._bodies.taken(request, body_max_mb=_BODY_MAX_MB)
        except WireError as error:
            await error_response(error, clean=self._app.warden.redactor.text)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._inner(scope, receive, send)


class _Builder(ServerCallContextBuilder):
    """Hands on who was let in; what a request says of its own tenant or user is not believed."""

    def build(self, request: Request) -> ServerCallContext:
        state: dict[str, Any] = {
            "principal": request.scope["state"]["principal"],
            "headers": headers_of(request),
            "receive": request.receive,
        }
        context = ServerCallContext(state=state)
        request.scope["state"][CALL] = context.state
        return context


def card_of(app: App, base: str) -> AgentCard:
    """Return the card: names and descriptions that operators wrote for others, never a prompt."""
    shown = [agent for agent in app.agents.agents() if not agent.agent.hidden]
    skills = [
        AgentSkill(
            id=agent.id,
            name=agent.agent.name,
            description=agent.agent.description or f"Questions to the agent {agent.agent.name}.",
            tags=["sre", "operations"],
        )
        for agent in shown
    ]
    card = AgentCard(
        name="Quell",
        description="Watches production and says what broke, with evidence for every claim.",
        version=__version__,
        supported_interfaces=[
            AgentInterface(url=f"{base}{RPC}", protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=f"{base}{REST}", protocol_binding="HTTP+JSON", protocol_version="1.0"),
            AgentInterface(url=f"{base}/", protocol_binding="JSONRPC", protocol_version="0.3"),
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True, extended_agent_card=False),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=skills,
    )
    if app.settings.identity.api_keys or app.settings.identity.oidc:
        scheme = SecurityScheme(http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="bearer"))
        card.security_schemes["bearer"].CopyFrom(scheme)
        card.security_requirements.append(SecurityRequirement(schemes={"bearer": StringList()}))
    return card
