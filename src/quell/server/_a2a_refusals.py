"""How A2A says that there are too many: its library knows no such error, so what it makes of one is written anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

from a2a.utils.errors import A2AError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quell.domain import OverloadError
from quell.server._errors import WireError, json_response, with_headers

CALL = "a2a.call"
"""Where the state of a call stands in the scope of its request."""
_REFUSED = "refused"
_CODE = -32000
"""JSON-RPC leaves -32000 to -32099 to servers, and A2A takes all of them but this."""
_RETRY, _WHY = "type.googleapis.com/google.rpc.RetryInfo", "type.googleapis.com/google.rpc.ErrorInfo"


class TooManyError(A2AError):
    """A message that is not taken now."""


def refuse(state: MutableMapping[str, Any], error: OverloadError) -> TooManyError:
    """Remember in the state of a call why it is not taken; return what ends it."""
    state[_REFUSED] = error
    return TooManyError(f"{error}; {error.hint}" if error.hint else str(error))


class Refusals:
    """Answers calls that were refused, over REST with 429 and over JSON-RPC with an error, both with when to come back."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the library answer, and answer in its place when the call was refused."""
        held: list[Message] = []
        stage: Literal["before", "passed on", "refused"] = "before"

        async def watched(message: Message) -> None:
            nonlocal stage
            state = scope["state"].get(CALL, {})
            if stage == "passed on":
                await send(message)
            elif stage == "before" and _REFUSED in state:
                stage = "refused"
                await _answer(state)(scope, receive, send)
            elif stage == "before":
                # The head of a stream says nothing yet of how it goes on.
                held.append(message)
                if message["type"] != "http.response.start":
                    stage = "passed on"
                    for each in held:
                        await send(each)

        await self._inner(scope, receive, watched)


def _answer(state: Mapping[str, Any]) -> ASGIApp:
    error: OverloadError = state[_REFUSED]
    seconds = max(1, math.ceil(error.retry_after_s))
    said = f"{error}; {error.hint}" if error.hint else str(error)
    details = [
        {"@type": _WHY, "reason": "RATE_LIMIT_EXCEEDED", "domain": "quell", "metadata": {}},
        {"@type": _RETRY, "retryDelay": f"{seconds}s"},
    ]
    if "request_id" in state:
        told = {"code": _CODE, "message": said, "data": details}
        return json_response({"jsonrpc": "2.0", "id": state["request_id"], "error": told})
    told = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": said, "details": details}
    wire = WireError(429, "OverloadError", said, retry_after_s=seconds)
    return with_headers(json_response({"error": told}, status=429), wire)
