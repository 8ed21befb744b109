"""The tool by which an agent asks people about something that is no call: it goes on only when they said yes."""

from __future__ import annotations

from collections.abc import Mapping

from quell.domain import ASK_PEOPLE, CallRequest, OutcomeKind, ResourceRule, Tool, ToolOutcome, own_read
from quell.tools import LocalHand

_DESCRIPTION = (
    "Ask people before you go on with something risky. It comes back when they have decided: approved, or why not."
)
_WORDS: Mapping[str, object] = {"type": "string", "minLength": 1, "maxLength": 4_000}
_SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "action_description": {**_WORDS, "description": "What you want to do, exactly."},
        "risk_rationale": {**_WORDS, "description": "Why it is risky, and why it is needed."},
        "context": {"type": "string", "maxLength": 8_000, "description": "What people should know besides."},
    },
    "required": ["action_description", "risk_rationale"],
    "additionalProperties": False,
}
_APPROVED = "Approved: people let you go on with exactly this. It permits no tool call by itself."


def ask_people_hand() -> tuple[Tool, LocalHand]:
    """Return `request_approval`. The guard lets no call of it through but those that people approved."""
    resource = ResourceRule(kind="People")
    tool = own_read(ASK_PEOPLE, description=_DESCRIPTION, takes=_SCHEMA, resource=resource)
    return tool, LocalHand(ASK_PEOPLE, _approved)


async def _approved(request: CallRequest, _key: str) -> ToolOutcome:
    size = len(_APPROVED)
    call, tool = request.call.id, request.call.tool
    return ToolOutcome(call=call, tool=tool, kind=OutcomeKind.OK, content=_APPROVED, size_bytes=size)
