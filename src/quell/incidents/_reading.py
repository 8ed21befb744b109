"""Ask every reader every question, each answer a step that is kept; what fails is a Gap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quell import telemetry
from quell.config import InvestigationSettings
from quell.domain import Answer, Gap, GapReason, Question, QuestionKind, StepError, StoreError
from quell.incidents._answers import without_own
from quell.incidents._model import Plan
from quell.runs import RunContext
from quell.signals import Reader, decode_answer, encode_answer

_AT_ONCE_MAX = 3
"""Questions that one source answers at the same time; more would only wait in its queue."""
_TIMEOUTS_MAX = 2
"""A source that timed out this often is not asked further: its other answers would come too late as well."""
_STEP_MARGIN_S = 5.0
_LATE = "the deadline of the investigation had passed"


@dataclass(slots=True, kw_only=True)
class _Patience:
    """How much one source may still disappoint."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE_MAX))
    timeouts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """All answers, in the order of readers and questions, and whether the deadline cut them short."""

    answers: tuple[Answer | Gap, ...]
    is_late: bool


async def read_all(
    context: RunContext,
    *,
    plan: Plan,
    readers: Sequence[Reader],
    settings: InvestigationSettings,
    until_s: float,
) -> Readings:
    """Ask every question of every reader, some at a time, until the loop's clock says `until_s`; each is one step."""
    patience: Mapping[str, _Patience] = {reader.name: _Patience() for reader in readers}

    async def read(reader: Reader, kind: QuestionKind) -> Answer | Gap:
        question = Question(kind=kind, window=plan.window, baseline=plan.baseline)
        timeout_s = settings.read_timeout_s

        async def ask() -> str:
            answer = await _ask(reader, question, patience[reader.name], timeout_s=timeout_s, until_s=until_s)
            return encode_answer(answer).decode()

        async with patience[reader.name].slots:
            try:
                raw = await context.step(
                    f"read:{reader.name}:{kind.value}", ask, returns=str, timeout_s=timeout_s + _STEP_MARGIN_S
                )
            except StepError as error:
                return _gap(reader.name, kind, reason="failed", detail=str(error))
        try:
            answer = decode_answer(raw.encode())
        except StoreError as error:  # numbers that are none, or what another version had kept
            answer = _gap(reader.name, kind, reason="nonsense", detail=f"what it answered cannot be read: {error}")
        if isinstance(answer, Gap):
            await _tell(context, answer)
        return answer

    answers = await asyncio.gather(*(read(reader, kind) for reader in readers for kind in QuestionKind))
    late = any(isinstance(answer, Gap) and answer.detail == _LATE for answer in answers)
    return Readings(answers=tuple(without_own(answer, focus=plan.focus) for answer in answers), is_late=late)


async def ask_once(reader: Reader, question: Question, *, timeout_s: float) -> Answer | Gap:
    """Ask one question; whatever goes wrong is a Gap."""
    try:
        async with asyncio.timeout(timeout_s + 1):
            return await reader.ask(question, timeout_s=timeout_s)
    except TimeoutError:
        return _gap(reader.name, question.kind, reason="timeout", detail=f"no answer within {timeout_s:g} s")
    except Exception as error:  # noqa: BLE001 - a reader that breaks its promise must not end the investigation
        return _gap(reader.name, question.kind, reason="failed", detail=f"{type(error).__name__}: {error}"[:300])


async def _ask(
    reader: Reader, question: Question, patience: _Patience, *, timeout_s: float, until_s: float
) -> Answer | Gap:
    left_s = until_s - asyncio.get_running_loop().time()
    if left_s <= 0:
        return _gap(reader.name, question.kind, reason="timeout", detail=_LATE)
    if patience.timeouts >= _TIMEOUTS_MAX:
        detail = f"not asked: {reader.name} had already failed to answer {patience.timeouts} times in time"
        return _gap(reader.name, question.kind, reason="timeout", detail=detail)
    with telemetry.span("quell.read", {"quell.source": reader.name, "quell.question": question.kind.value}):
        answer = await ask_once(reader, question, timeout_s=min(timeout_s, left_s))
    if isinstance(answer, Gap) and answer.reason == "timeout":
        if left_s < timeout_s:
            return replace(answer, detail=_LATE)
        patience.timeouts += 1
    return answer


def _gap(source: str, kind: QuestionKind, *, reason: GapReason, detail: str) -> Gap:
    return Gap(question=kind, source=source, query="", reason=reason, detail=detail)


async def _tell(context: RunContext, gap: Gap) -> None:
    """Let watchers see what could not be learned; that a source never answers such a question is no news."""
    if gap.reason != "unsupported":
        key = f"gap:{gap.source}:{gap.question.value}"
        body = {"source": gap.source, "question": gap.question.value, "reason": gap.reason, "detail": gap.detail}
        await context.emit("source.gap", key=key, **body)
