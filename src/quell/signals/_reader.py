"""What a reader is: something that answers typed questions about production, and says so when it cannot."""

from __future__ import annotations

from typing import Protocol

from quell.domain import Answer, Gap, GapReason, Question


class Reader(Protocol):
    """Answers typed questions about production; a failure is a `Gap`, never an exception and never an empty answer."""

    name: str
    """Shown in evidence and gaps."""

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question within the deadline, with at most `question.rows_max` rows in a total order."""
        ...

    async def check(self) -> list[str]:
        """Return what keeps this reader from working, one line each; an empty list means that it works."""
        ...


class CannotAnswerError(Exception):
    """Inside a reader: why this question has no answer; the reader's rim turns it into a `Gap`."""

    def __init__(self, reason: GapReason, detail: str, *, query: str = "") -> None:
        super().__init__(detail)
        self.reason: GapReason = reason
        self.detail = detail
        self.query = query
