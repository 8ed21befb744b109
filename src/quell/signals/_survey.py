"""Gather what readers answered into one survey: typed facts with ids, most relevant first, and the gaps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from quell.domain import Answer, Evidence, Fact, Gap, Observation, QuestionKind, Scope, Survey, Window
from quell.signals._codec import encode_row
from quell.signals._reader_text import escape_line
from quell.signals._survey_lines import line_of, service_of
from quell.signals._survey_score import score_of

_EXCERPT_CHARS = 400
_KIND_ORDER = {kind: place for place, kind in enumerate(QuestionKind)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weighed:
    row: Observation
    answer: Answer
    digest: str
    score: float

    @property
    def order(self) -> tuple[float, int, str, str, str]:
        kind = _KIND_ORDER[self.answer.question.kind]
        return (-self.score, kind, service_of(self.row), self.answer.source, self.digest)


def survey(answers: Sequence[Answer | Gap], *, scope: Scope, window: Window, baseline: Window) -> Survey:
    """Number and weigh every row of every answer; the same answers in any order give the same survey.

    The same row from two questions of one reader is one fact. A partial answer leaves its gap beside its rows.
    A gap that only says `unsupported` is left out when another reader answered that question.
    """
    seen: dict[tuple[str, str], _Weighed] = {}
    for answer in answers:
        if isinstance(answer, Gap):
            continue
        for row in answer.rows:
            digest = hashlib.sha256(encode_row(row)).hexdigest()
            weighed = _Weighed(
                row=row, answer=answer, digest=digest, score=score_of(row, window=window, baseline=baseline)
            )
            known = seen.get((answer.source, digest))
            if known is None or weighed.order < known.order:
                seen[answer.source, digest] = weighed
    ranked = sorted(seen.values(), key=lambda weighed: weighed.order)
    return Survey(
        scope=scope,
        window=window,
        baseline=baseline,
        facts=tuple(_fact(weighed, number=number, window=window) for number, weighed in enumerate(ranked, start=1)),
        gaps=_gaps(answers),
    )


def _fact(weighed: _Weighed, *, number: int, window: Window) -> Fact:
    line = f"{service_of(weighed.row) or 'all services'}: {line_of(weighed.row, anchor=window.end)}"
    evidence = Evidence(
        id=f"E{number}",
        source=weighed.answer.source,
        question=weighed.answer.question.kind,
        query=weighed.answer.query,
        window=weighed.answer.question.window,
        excerpt=escape_line(line, chars_max=_EXCERPT_CHARS),
        digest=weighed.digest,
    )
    return Fact(evidence=evidence, observation=weighed.row, score=weighed.score)


def _gaps(answers: Sequence[Answer | Gap]) -> tuple[Gap, ...]:
    answered = {answer.question.kind for answer in answers if isinstance(answer, Answer)}
    gaps: set[Gap] = set()
    for answer in answers:
        if isinstance(answer, Gap):
            if answer.reason != "unsupported" or answer.question not in answered:
                gaps.add(answer)
        elif answer.partial:
            gaps.add(_partial(answer))
    return tuple(
        sorted(gaps, key=lambda gap: (_KIND_ORDER[gap.question], gap.source, gap.reason, gap.detail, gap.query))
    )


def _partial(answer: Answer) -> Gap:
    return Gap(
        question=answer.question.kind,
        source=answer.source,
        query=answer.query,
        reason="partial",
        detail=escape_line(answer.partial, chars_max=200),
    )
