"""Sources as the rest of Quell sees them: what production says is redacted once, on its way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from quell.audit import Redactor
from quell.domain import Answer, Gap, Question
from quell.signals import Reader

_NAMES = frozenset(
    {"question", "source", "kind", "reason", "service", "caller", "callee", "callee_kind", "span_kind", "severity"}
    | {"template_id", "trace_id", "metric", "unit", "shape", "change"}
)
"""What joins one observation to another, and to what is asked next: taken as it is."""


class CleanReader:
    """Asks another reader; no secret that Quell holds is in what comes back, whoever logged it.

    What is kept of telemetry itself belongs to who sent it, and stays as it came; from here on it is ours: evidence,
    reports, briefs, answers over HTTP.
    """

    def __init__(self, reader: Reader, *, redactor: Redactor) -> None:
        self._reader = reader
        self._redactor = redactor
        self.name = reader.name

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question."""
        answer = await self._reader.ask(question, timeout_s=timeout_s)
        texts: list[str] = []

        def kept(text: str) -> str:
            texts.append(text)
            return text

        _rewritten(answer, kept)
        # One look through all of it: nearly every answer holds none.
        is_clean = not self._redactor.spans("\0".join(texts).encode("utf-8", "surrogatepass"))
        return answer if is_clean else _rewritten(answer, self._redactor.text)

    async def check(self) -> list[str]:
        """Return what keeps this reader from working."""
        return [self._redactor.text(problem) for problem in await self._reader.check()]


def _rewritten(told: Answer | Gap, rewrite: Callable[[str], str]) -> Answer | Gap:
    """Return an answer with every text of it rewritten but names; nothing else in it changes."""

    def again(value: object) -> object:
        match value:
            case str():
                return rewrite(value)
            case tuple():
                return tuple(again(part) for part in value)
            case _ if is_dataclass(value) and not isinstance(value, type):
                return _changed(value, again)
            case _:
                return value

    changed = _changed(told, again)
    assert isinstance(changed, Answer | Gap)
    return changed


def _changed(noun: Any, again: Callable[[object], object]) -> object:
    return replace(
        noun, **{each.name: again(getattr(noun, each.name)) for each in fields(noun) if each.name not in _NAMES}
    )
