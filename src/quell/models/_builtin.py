"""The model that is no language model: it understands questions about the live system, and looks before it answers.

Deterministic: the same conversation gives the same calls and the same words. What results say is data; nothing in them
is read as a question, a name of a tool, or an order.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

from quell.domain import (
    ASK_PERSON,
    CallPiece,
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelRequest,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.models._builtin_answer import WHICH, answer, joined, unable
from quell.models._builtin_plan import SENSES, Settled, Wanted, next_of, results_of
from quell.models._builtin_words import Ask, Turn, understood
from quell.models._tokens import TokenCounter

NAME = "builtin"
_FREE = UsageTold(usage=TokenUsage(input_tokens=0, output_tokens=0))
"""No token of anybody's model is used, and that is known."""


class BuiltinModel:
    """Answers without a provider and without a key, with the senses that it is offered."""

    provider = "builtin"
    name = NAME
    window = None

    def __init__(self) -> None:
        """Keep nothing but what counts."""
        self._counter = TokenCounter()

    @property
    def counter(self) -> TokenCounter:
        """Return what counts its tokens, of which none is charged."""
        return self._counter

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Answer, or want something looked at.

        Raises ModelError for what it cannot honour: an answer by a schema, or a call of a tool that is no sense.
        """
        assert deadline_s > 0, "a call has a deadline"
        _check(request)
        results = results_of(request.messages)
        steps = [(ask, next_of(ask, results)) for ask in understood(_turns(request.messages))]
        wanted = {step.key: step for _, step in steps if isinstance(step, Wanted) and _is_offered(step.tool, request)}
        if calls := list(wanted.values()) or _forced(request, has_looked=bool(results)):
            for index, call in enumerate(calls):
                arguments = json.dumps(call.arguments, sort_keys=True, ensure_ascii=False)
                yield CallPiece(index=index, id=f"call-{index + 1}", name=call.tool, arguments=arguments)
            yield Ended(reason="calls", model=NAME)
            yield _FREE
            return
        limits = _Limits(request, self._counter)
        parts = [_lines(ask, step, request) for ask, step in steps]
        asks_back = any(WHICH in part for part in parts) and _is_offered(ASK_PERSON, request)
        if asks_back:
            parts = [[line for line in part if line != WHICH] for part in parts]
        for piece in joined(parts):
            if kept := limits.kept(piece):
                yield TextPiece(text=kept)
            if limits.reason:
                break
        if asks_back and not limits.reason:
            yield CallPiece(index=0, id="call-1", name=ASK_PERSON, arguments=json.dumps({"question": WHICH}))
        yield Ended(reason="length" if limits.reason == "length" else "stop", model=NAME)
        yield _FREE

    async def close(self) -> None:
        """Hold nothing."""


class _Limits:
    """What of a text may be said: up to a stop word, and within so many tokens."""

    def __init__(self, request: ModelRequest, counter: TokenCounter) -> None:
        self._stop = tuple(word for word in request.stop if word)
        self._room = request.output_max_tokens
        self._counter = counter
        self._said = ""
        self.reason = ""

    def kept(self, piece: str) -> str:
        before = len(self._said)
        whole = self._said + piece
        ends = [at for at in (whole.find(word) for word in self._stop) if at >= 0]
        if ends:
            self.reason, whole = "stop", whole[: max(before, min(ends))]
        if self._room is not None and self._counter.count_text(whole) > self._room:
            self.reason, whole = "length", self._said
        self._said = whole
        return whole[before:]


def _check(request: ModelRequest) -> None:
    if request.answer_schema:
        raise ModelError(
            "the built-in model answers in sentences, not by a schema",
            fault=ModelFault.INVALID,
            hint="leave the schema out, or configure a language model",
        )
    if request.choice not in {"auto", "none", "required"} and request.choice not in SENSES:
        raise ModelError(
            f"the built-in model cannot be made to call {request.choice!r}: it calls its own senses only",
            fault=ModelFault.INVALID,
            hint="leave `tool_choice` out, or configure a language model",
        )


def _forced(request: ModelRequest, *, has_looked: bool) -> list[Wanted]:
    """Return the call that a request insists on where the question asks for none; it insists once."""
    if has_looked or request.choice in {"auto", "none"}:
        return []
    tool = "system_overview" if request.choice == "required" else request.choice
    if not _is_offered(tool, request):
        raise ModelError(
            "a call is required, and no sense of the built-in model is offered",
            fault=ModelFault.INVALID,
            hint="offer the senses, or leave `tool_choice` out",
        )
    return [Wanted(tool=tool, arguments={"incident": "1"} if tool == "incident" else {})]


def _lines(ask: Ask, step: Wanted | Settled, request: ModelRequest) -> list[str]:
    if isinstance(step, Settled):
        return list(answer(step))
    return [unable(ask.intent, is_over=not request.tools or request.choice == "none")]


def _turns(messages: Sequence[Message]) -> list[Turn]:
    turns: list[Turn] = []
    for message in messages:
        if message.role == "user":
            turns.append(Turn(role="user", text=message.text))
        elif message.role == "assistant" and message.text:
            turns.append(Turn(role="assistant", text=message.text))
    return turns


def _is_offered(tool: str, request: ModelRequest) -> bool:
    """Tell whether a tool may be called now; one that is named alone is the only one."""
    is_free = request.choice in {"auto", "required", tool}
    return is_free and any(each.name == tool for each in request.tools)
