"""What goes into a request: the preamble, the conversation, and as much of the results as the window has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quell.agent._render import HOUSE_RULES, dropped_text
from quell.agent._talk import Exhibit, Role, Talk
from quell.domain import Message, ModelRequest, ToolSpec
from quell.models import TokenCounter

_KEPT_TURNS = 2
"""Results of the newest turns stay whatever happens."""
_ANSWER_TOKENS = 1_024


def request_of(talk: Talk, role: Role, *, tools: Sequence[ToolSpec], notice: str = "") -> ModelRequest:
    """Return the request of the next turn."""
    preamble = "\n\n".join(
        part for part in (role.preamble, HOUSE_RULES if tools or talk.exhibits else "", notice) if part
    )
    return ModelRequest(
        messages=(Message(role="system", text=preamble), *talk.messages),
        tools=tuple(tools),
        choice=role.choice if tools and talk.turn == 0 else "auto",
        answer_schema=role.answer_schema,
        output_max_tokens=role.output_max_tokens,
        temperature=role.temperature,
        top_p=role.top_p,
        seed=role.seed,
        stop=role.stop,
        effort=role.effort,
        extra=role.extra,
    )


def fitted(
    talk: Talk, role: Role, *, tools: Sequence[ToolSpec], window: int | None, counter: TokenCounter
) -> tuple[Talk, bool]:
    """Drop the oldest results until the request fits; constraints, questions and calls stay. False: it does not fit.

    A dropped result leaves its id and outcome behind, so that it may still be cited and can be asked for again.
    """
    if window is None:
        return talk, True
    room = int(window * (1 - role.window_margin)) - (role.output_max_tokens or _ANSWER_TOKENS)
    for place in _droppable(talk):
        if counter.count(request_of(talk, role, tools=tools)) <= room:
            return talk, True
        talk = _without(talk, place)
    return talk, counter.count(request_of(talk, role, tools=tools)) <= room


def _droppable(talk: Talk) -> list[int]:
    """Return the places of results, the oldest first, without those of the newest turns."""
    turns = [place for place, message in enumerate(talk.messages) if message.role == "assistant" and message.calls]
    end = turns[-_KEPT_TURNS] if len(turns) >= _KEPT_TURNS else 0
    by_call = {exhibit.call: exhibit for exhibit in talk.exhibits}
    return [
        place
        for place, message in enumerate(talk.messages[:end])
        if message.role == "tool" and message.call in by_call and by_call[message.call].id not in talk.dropped
    ]


def _without(talk: Talk, place: int) -> Talk:
    message = talk.messages[place]
    exhibit = _exhibit(talk, message.call)
    messages = (*talk.messages[:place], replace(message, text=dropped_text(exhibit)), *talk.messages[place + 1 :])
    return replace(talk, messages=messages, dropped=(*talk.dropped, exhibit.id))


def _exhibit(talk: Talk, call: str) -> Exhibit:
    return next(exhibit for exhibit in talk.exhibits if exhibit.call == call)
