"""What every Reader must keep, whoever writes it: import `ReaderContract` and give it a reader and a question."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from quell.domain import Answer, Gap, Question, QuestionKind
from quell.signals import Reader, decode_answer, encode_answer

CONTROL = frozenset(chr(code) for code in [*range(32), *range(127, 160), *range(0x202A, 0x202F)])


class ReaderContract:
    """Subclass it and override `ask`, which must give what the reader says to one question."""

    reader_name = ""

    def ask(self, question: Question, *, timeout_s: float = 10.0) -> Answer | Gap:
        raise NotImplementedError

    def question(self, kind: QuestionKind) -> Question:
        raise NotImplementedError

    @pytest.mark.parametrize("kind", list(QuestionKind))
    def test_it_answers_or_says_why_not(self, kind: QuestionKind) -> None:
        question = self.question(kind)
        said = self.ask(question)
        assert said.source == self.reader_name
        if isinstance(said, Gap):
            assert said.question is kind
            assert said.detail
            assert "\n" not in said.detail
        else:
            assert said.question == question
            assert said.query

    @pytest.mark.parametrize("kind", list(QuestionKind))
    def test_the_same_question_gets_the_same_answer(self, kind: QuestionKind) -> None:
        first, second = self.ask(self.question(kind)), self.ask(self.question(kind))
        if isinstance(first, Answer) and isinstance(second, Answer):
            assert first.rows == second.rows
        else:
            assert type(first) is type(second)

    @pytest.mark.parametrize("kind", list(QuestionKind))
    def test_rows_are_cut_at_what_was_asked_for_and_it_says_so(self, kind: QuestionKind) -> None:
        whole = self.ask(self.question(kind))
        one = self.ask(replace(self.question(kind), rows_max=1))
        if isinstance(whole, Answer) and isinstance(one, Answer):
            assert one.rows == whole.rows[:1]
            assert one.truncated == (len(whole.rows) > 1)

    @pytest.mark.parametrize("kind", list(QuestionKind))
    def test_what_it_says_survives_the_journal_and_hides_no_control_codes(self, kind: QuestionKind) -> None:
        said = self.ask(self.question(kind))
        assert decode_answer(encode_answer(said)) == said
        if isinstance(said, Answer):
            assert not CONTROL & set(encode_answer(replace(said, query="")).decode())

    def test_a_deadline_is_kept(self) -> None:
        began = time.monotonic()
        said = self.ask(self.question(QuestionKind.METRIC_SHIFTS), timeout_s=0.001)
        assert time.monotonic() - began < 3
        assert isinstance(said, (Answer, Gap))


def ask_once(reader: Reader, question: Question, *, timeout_s: float = 5.0) -> Answer | Gap:
    """Ask from a synchronous test."""
    return asyncio.run(_ask(reader, question, timeout_s))


async def _ask(reader: Reader, question: Question, timeout_s: float) -> Answer | Gap:
    return await reader.ask(question, timeout_s=timeout_s)
