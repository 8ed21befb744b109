"""One span for each request, which goes on in its caller's trace and lasts as long as its answer."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quell import telemetry
from quell.server._identity import Endpoint
from quell.server._streaming import Streaming

_NAME = "quell.request"
_STATUS = "http.response.status_code"


def traced(endpoint: Endpoint) -> Endpoint:
    """Time an endpoint of ours."""

    async def timed(request: Request) -> Response:
        place = telemetry.extract(request.headers)
        with ExitStack() as lasting:
            span = lasting.enter_context(telemetry.span(_NAME, _about(request), parent=place, kind="server"))
            response = await endpoint(request)
            span.put(_STATUS, response.status_code)
            if isinstance(response, Streaming):
                # The request is over when its stream is, and that has only begun.
                response.within(lasting.pop_all(), tell=span.put)
            return response

    return timed


class Traced:
    """Times what a library answers, streams to their end included."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it answer within a span."""
        request = Request(scope)
        place = telemetry.extract(request.headers)
        with telemetry.span(_NAME, _about(request), parent=place, kind="server") as span:

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.put(_STATUS, message["status"])
                await send(message)

            await self._inner(scope, receive, watched)


def _about(request: Request) -> dict[str, str]:
    return {
        "http.request.method": request.method,
        "http.route": request.scope["route"].path,
        "openinference.span.kind": "CHAIN",
    }
