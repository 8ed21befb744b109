"""The first fork: answer at once, look first, or ask the person one question; without a model call of its own.

A turn without calls is an answer, one with calls is a look, and `ask_person` ends the turn with a question. What a turn
needs no tool for is not told of any: a greeting costs no schemas, and the readers of results that were put aside are
offered once there is such a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import msgspec

from quell.agent._schemas import spec_of
from quell.agent._talk import Role, Talk
from quell.domain import ASK_PERSON, CallWanted, OutcomeKind, Tool, ToolOutcome, ToolSpec

_ASK = ToolSpec(
    name=ASK_PERSON,
    description=(
        "Ask the person one question, and end the turn. Only where the request cannot be understood without it; "
        "what can be looked up is looked up."
    ),
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {
                "question": {"type": "string", "maxLength": 500},
                "options": {"type": "array", "items": {"type": "string", "maxLength": 120}, "maxItems": 8},
            },
            "required": ["question"],
            "additionalProperties": False,
        },
        separators=(",", ":"),
    ),
)
_PUT_ASIDE = re.compile(r"\bpad_[0-9a-f]{32}\b")
_PLEASANTRY = re.compile(
    r"(?:(?:hi|hello|hey|good (?:morning|afternoon|evening|day)|thanks|thank you|many thanks|cheers|great|ok|okay|bye|"
    r"goodbye|see you|how are you|there|all|everyone|team|very much|so much|a lot|again)[\s,.!?]*)+",
    re.IGNORECASE,
)
_PLEASANTRY_MAX_CHARS = 60


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """What a model wants to ask the person."""

    question: str
    options: tuple[str, ...] = ()


def offered(talk: Talk, role: Role, tools: Iterable[Tool]) -> tuple[ToolSpec, ...]:
    """Return what the model is told of in the next turn."""
    if role.choice == "auto" and is_pleasantry(talk):
        return ()
    has_aside = any(_PUT_ASIDE.search(message.text) for message in talk.messages)
    told = [spec_of(tool, role) for tool in tools if has_aside or not _reads_aside(tool)]
    names = {spec.name for spec in told} | {ASK_PERSON}
    told += [spec for spec in role.client_tools if spec.name not in names]
    return (*told, _ASK) if role.asks == "person" else tuple(told)


def is_pleasantry(talk: Talk) -> bool:
    """Tell whether nothing is asked: the newest message is a greeting or a thank-you and nothing else."""
    newest = talk.messages[-1]
    text = newest.text.strip()
    return newest.role == "user" and len(text) <= _PLEASANTRY_MAX_CHARS and _PLEASANTRY.fullmatch(text) is not None


def question_of(calls: Sequence[CallWanted]) -> Question | None:
    """Return what is asked of the person; then nothing else of that turn is done."""
    for call in calls:
        if call.name == ASK_PERSON:
            try:
                asked = msgspec.json.decode(call.arguments, type=Question)
            except (msgspec.DecodeError, RecursionError):
                continue
            if asked.question.strip():
                return asked
    return None


def unasked(call: CallWanted) -> ToolOutcome | None:
    """Refuse a question that nobody can read; None: the call is no question."""
    if call.name != ASK_PERSON:
        return None
    told = 'a question is {"question": text, "options": [texts]}; ask it so, or answer'
    return ToolOutcome(call=call.id, tool=call.name, kind=OutcomeKind.DENIED, detail=told)


def _reads_aside(tool: Tool) -> bool:
    return not tool.server and tool.resource.kind == "Result"
