"""How tools of our own answer: what they bring, or why they could not, as the outcome of the call."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from quell.domain import CallRequest, OutcomeKind, QuellError, ToolOutcome

Work = Callable[[CallRequest, Mapping[str, object]], Awaitable[tuple[str, bool]]]
"""Does what a tool does: returns what it brings, and whether that is JSON."""


def answering(work: Work) -> Callable[[CallRequest, str], Awaitable[ToolOutcome]]:
    """Return what carries out a call by this work, with its arguments."""

    async def use(request: CallRequest, _key: str) -> ToolOutcome:
        call, tool = request.call.id, request.call.tool
        try:
            content, is_json = await work(request, json.loads(request.call.arguments))
        except QuellError as error:
            told = f"{error}; {error.hint}" if error.hint else str(error)
            return ToolOutcome(call=call, tool=tool, kind=OutcomeKind.TOOL_ERROR, detail=told)
        size = len(content.encode(errors="surrogatepass"))
        return ToolOutcome(call=call, tool=tool, kind=OutcomeKind.OK, content=content, is_json=is_json, size_bytes=size)

    return use


def as_json(value: object) -> str:
    """Write what a tool brings as small as JSON goes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
