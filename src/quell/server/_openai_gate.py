"""The way in to routes of OpenAI's protocol: errors in its words, and nobody new while the server stops."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quell import telemetry
from quell.app import App
from quell.domain import QuellError
from quell.server._errors import WireError
from quell.server._identity import Endpoint
from quell.server._listening import Closing
from quell.server._openai_errors import ChatError, chat_error_of, openai_response


def spoken(endpoint: Endpoint, app: App, *, closing: Closing) -> Endpoint:
    """Return an endpoint whose errors are those of OpenAI's protocol."""

    async def asked(request: Request) -> Response:
        try:
            closing.admit()
            return await endpoint(request)
        except WireError as error:
            return openai_response(error, clean=app.warden.redactor.text)
        except QuellError as error:
            return openai_response(chat_error_of(error), clean=app.warden.redactor.text)
        except Exception as error:  # noqa: BLE001 - a bug of ours; who asked is told so in words that it can read
            telemetry.event("server.failed", path=request.url.path, error=f"{type(error).__name__}: {error}")
            return openai_response(ChatError(500, "a bug of Quell's; its log says more", reason="internal_error"))

    return asked
