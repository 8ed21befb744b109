"""Answers as their provider gave them: what our words cannot carry goes back with the next request."""

from __future__ import annotations

import json
from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

from quell.domain import CallWanted

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

_KEPT_MAX = 512


class Kept:
    """Answers as the provider gave them, found again by what was said in them: ids of calls are ours by then."""

    def __init__(self) -> None:
        """Begin empty."""
        self._answers: OrderedDict[str, ModelResponse] = OrderedDict()

    def keep(self, answer: ModelResponse, *, text: str, calls: tuple[CallWanted, ...]) -> None:
        """Remember an answer."""
        self._answers[_digest(text, calls)] = answer
        if len(self._answers) > _KEPT_MAX:
            self._answers.popitem(last=False)

    def find(self, *, text: str, calls: tuple[CallWanted, ...]) -> ModelResponse | None:
        """Return the answer that said this; None when it was said elsewhere, or too long ago."""
        return self._answers.get(_digest(text, calls))


def _digest(text: str, calls: tuple[CallWanted, ...]) -> str:
    return sha256(json.dumps([text, [[call.name, _plain(call.arguments)] for call in calls]]).encode()).hexdigest()


def _plain(arguments: str) -> object:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments
