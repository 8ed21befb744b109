"""Look at production now: every typed question to every reader, at most a few at a time, what fails told as a gap."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quell.domain import (
    Answer,
    EdgeShift,
    Fact,
    Gap,
    GapReason,
    Observation,
    Question,
    QuestionKind,
    Scope,
    Survey,
    Window,
)
from quell.signals import Reader, pack, survey

_AT_ONCE = 4
_OWN_SERVICE = "quell"
_WHOLE_PAGE_TOKENS = 4_000
_NAME = re.compile(r"[^\W_]+")
_SUFFIXES = frozenset({"service", "svc"})
NAMING = (QuestionKind.ERROR_RATES, QuestionKind.EDGE_GAPS)
"""The questions whose answers name what there is."""

Names = Mapping[str, tuple[str, ...]]
Kind = Literal["service", "database", "queue", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen."""

    survey: Survey
    names: Names
    """Kind -> names, services first."""
    standing_out: frozenset[str]
    """Ids of the facts that a briefing would show."""
    is_blind: bool
    """Nothing at all could be read."""

    def facts(self, service: str) -> tuple[Fact, ...]:
        """Return the facts about one service, or about all of them, the most telling first."""
        return tuple(fact for fact in self.survey.facts if not service or service in subjects_of(fact.observation))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Return what could not be learned; that a source never answers such a question is no news."""
        return tuple(gap for gap in self.survey.gaps if gap.reason != "unsupported")


async def look(
    readers: Sequence[Reader],
    *,
    window: Window,
    baseline: Window,
    timeout_s: float,
    within_s: float,
    service: str = "",
    kinds: Iterable[QuestionKind] = QuestionKind,
) -> Look:
    """Ask; Quell's own telemetry is left out unless it is what was asked about.

    Args:
        readers: Who is asked.
        window: The time that is looked at.
        baseline: The time that it is compared with.
        timeout_s: Deadline of one question.
        within_s: Deadline of all of them: what is not answered by then is a gap.
        service: What the look is about.
        kinds: The questions.
    """
    turns = asyncio.Semaphore(_AT_ONCE)
    ends_at = asyncio.get_running_loop().time() + within_s

    async def ask(reader: Reader, kind: QuestionKind) -> Answer | Gap:
        question = Question(kind=kind, window=window, baseline=baseline)
        async with turns:
            left_s = ends_at - asyncio.get_running_loop().time()
            if left_s <= 0:
                told = "not asked: the time for the whole look was over"
                return Gap(question=kind, source=reader.name, query="", reason="timeout", detail=told)
            return await _asked(reader, question, timeout_s=min(timeout_s, left_s))

    answers = await asyncio.gather(*(ask(reader, kind) for reader in readers for kind in kinds))
    kept = [answer if service == _OWN_SERVICE else _without_own(answer) for answer in answers]
    return await asyncio.to_thread(_seen, kept, window, baseline)


def _seen(answers: Sequence[Answer | Gap], window: Window, baseline: Window) -> Look:
    gathered = survey(answers, scope=Scope(), window=window, baseline=baseline)
    briefing = pack(gathered, budget_tokens=_WHOLE_PAGE_TOKENS, anchor=window.end)
    return Look(
        survey=gathered,
        names=names_of(answers),
        standing_out=frozenset(briefing.shown),
        is_blind=not any(isinstance(answer, Answer) for answer in answers),
    )


async def _asked(reader: Reader, question: Question, *, timeout_s: float) -> Answer | Gap:
    reason: GapReason = "failed"
    try:
        async with asyncio.timeout(timeout_s + 1):
            return await reader.ask(question, timeout_s=timeout_s)
    except TimeoutError:
        reason, detail = "timeout", f"no answer within {timeout_s:g} s"
    except Exception as error:  # noqa: BLE001 - a reader that breaks its promise must not blind the others
        detail = f"{type(error).__name__}: {error}"[:300]
    return Gap(question=question.kind, source=reader.name, query="", reason=reason, detail=detail)


def names_of(answers: Iterable[Answer | Gap], *, more: Iterable[str] = ()) -> Names:
    """Return what the answers name, by kind; who makes spans of its own is a service."""
    kinds: dict[str, Kind] = {}
    for answer in answers:
        for row in answer.rows if isinstance(answer, Answer) else ():
            if isinstance(row, EdgeShift):
                kinds.setdefault(row.callee, row.callee_kind)
                kinds[row.caller] = "service"
            elif row.kind == "operation_shift":
                kinds[row.service] = "service"
            else:
                kinds.setdefault(row.service, "service")
    for name in more:
        kinds.setdefault(name, "service")
    kinds.pop("", None)
    found: dict[str, list[str]] = {"service": [], "database": [], "queue": [], "external": []}
    for name in sorted(kinds):
        found[kinds[name]].append(name)
    return {kind: tuple(names) for kind, names in found.items() if names}


def exact(wanted: str, names: Names) -> str:
    """Return the known name that these words spell, whatever their case, signs and a trailing `service`; else nothing."""
    known = [name for each in names.values() for name in each]
    if wanted in known:
        return wanted
    spelt = [name for name in known if _letters(name) == _letters(wanted)]
    return spelt[0] if len(spelt) == 1 else ""


def _letters(name: str) -> str:
    parts = _NAME.findall(name.lower())
    return "".join([part for part in parts if part not in _SUFFIXES] or parts)


def subjects_of(row: Observation) -> tuple[str, ...]:
    """Return whom a row is about; both ends of an edge."""
    return (row.caller, row.callee) if isinstance(row, EdgeShift) else (row.service,)


def _without_own(answer: Answer | Gap) -> Answer | Gap:
    if isinstance(answer, Gap) or not any(_OWN_SERVICE in subjects_of(row) for row in answer.rows):
        return answer
    rows = tuple(row for row in answer.rows if _OWN_SERVICE not in subjects_of(row))
    return Answer(
        question=answer.question,
        source=answer.source,
        query=answer.query,
        rows=rows,
        truncated=answer.truncated,
        partial=answer.partial,
    )
