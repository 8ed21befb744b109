"""`brief` asks every reader everything, a few at a time, and hands on what each could not tell."""

from __future__ import annotations

import asyncio

from quell.domain import Answer, Gap, Question, QuestionKind, Scope
from quell.signals import brief
from tests.doors._brief_surveys import BASELINE, WINDOW, answers


class _Scripted:
    """Answers from a list; counts how many questions are under way at once."""

    def __init__(self, name: str, *, seed: int | None) -> None:
        self.name = name
        self._said = (
            {} if seed is None else {said.question.kind: said for said in answers(seed) if isinstance(said, Answer)}
        )
        self.asked: list[QuestionKind] = []
        self.under_way = self.most = 0

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        assert timeout_s == 3
        self.asked.append(question.kind)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        said = self._said.get(question.kind)
        return said or Gap(question=question.kind, source=self.name, query="", reason="failed", detail="gone")

    async def check(self) -> list[str]:
        return []


def test_every_reader_is_asked_everything_and_what_fails_is_a_gap() -> None:
    working, broken = _Scripted("store", seed=5), _Scripted("prom", seed=None)
    made, briefing = asyncio.run(brief([working, broken], Scope(), WINDOW, BASELINE, budget_tokens=700, timeout_s=3))
    assert working.asked == broken.asked == list(QuestionKind)
    assert working.most + broken.most <= 8
    assert {gap.question for gap in made.gaps if gap.source == "prom"} == set(QuestionKind)
    assert briefing.gaps == made.gaps
    assert 0 < briefing.tokens <= 700
    assert "gaps" in briefing.text


def test_with_no_reader_at_all_the_briefing_is_empty_of_facts_and_says_so() -> None:
    made, briefing = asyncio.run(brief([], Scope(), WINDOW, BASELINE, budget_tokens=200, timeout_s=3))
    assert made.facts == ()
    assert briefing.shown == ()
    assert "nothing unusual" in briefing.text
