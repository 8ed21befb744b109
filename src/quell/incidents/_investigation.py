"""One investigation, as a durable run: plan, read, survey, diagnose, brief, compare, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar

from quell import telemetry
from quell.config import InvestigationSettings
from quell.diagnosis import diagnose
from quell.domain import (
    Alert,
    Answer,
    Briefing,
    Clock,
    Confidence,
    Diagnosis,
    Gap,
    Outcome,
    QuellError,
    Question,
    QuestionKind,
    Scope,
    StepError,
    Survey,
    Symptom,
    Window,
)
from quell.incidents._answers import SurveyWire, edges_of, names_of, survey_of_wire, survey_to_wire
from quell.incidents._book import Book
from quell.incidents._case import build_case, wanted_curves
from quell.incidents._model import Cost, Curve, CurveAsk, Plan, Reading, Similar
from quell.incidents._plan import choose_baseline, choose_window, reach_of, trouble_of
from quell.incidents._reading import ask_once, read_all
from quell.incidents._request import read_question
from quell.incidents._similar import find_similar
from quell.runs import Continue, Done, Next, RunContext, WaitUntil
from quell.signals import Reader, pack, survey

KIND = "investigation"

CurveSource: TypeAlias = Callable[[CurveAsk], Awaitable[tuple[Curve, ...]]]
"""Draws curves from the store's rollups."""

Extent: TypeAlias = Callable[[Window], Awaitable[datetime | None]]
"""Tells when the telemetry of a window begins."""

T = TypeVar("T")

_STEP_TIMEOUT_S = 30.0
_PLAN_TIMEOUT_S = 60.0
"""The plan is the first to need the store, which may have to be started."""
_UNFOLDED = 3
"""Trouble that is this many settling times old when its alert arrives has unfolded."""
_NAMES_WINDOW = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surveyed:
    survey: SurveyWire
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Diagnosed:
    diagnosis: Diagnosis
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Briefed:
    briefing: Briefing
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    similar: tuple[Similar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reported:
    outcome: Outcome
    steps: int


class Investigator:
    """Does the work of investigation runs."""

    def __init__(
        self,
        *,
        book: Book,
        readers: Sequence[Reader],
        settings: InvestigationSettings,
        clock: Clock,
        curves: CurveSource | None,
        begins_at: Extent | None,
        cost_of: Callable[[str, float], Awaitable[Cost]],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self._book = book
        self._readers = readers
        self._settings = settings
        self._clock = clock
        self._curves = curves
        self._begins_at = begins_at
        self._cost_of = cost_of
        self._flush = flush

    async def work(self, context: RunContext) -> Next:
        """Do one segment of an investigation: first let the incident unfold, then look."""
        incident = str(context.arguments["incident"])
        if not context.state:
            settled_at = await asyncio.to_thread(self._settled_at, incident)
            state = {"settled_at": settled_at.isoformat()}
            return WaitUntil(at=settled_at, state=state) if settled_at > await context.now() else Continue(state=state)
        with telemetry.span("quell.investigation", {"quell.incident": incident, "quell.run": context.run.id}):
            return await self._look(context, incident)

    def _settled_at(self, incident: str) -> datetime:
        """Return when the incident has unfolded enough to be read, counted from its first alert."""
        page = self._book.get_page(incident)
        settle = timedelta(seconds=self._settings.settle_s)
        dated = [alert.starts_at for alert in self._book.alerts_of(incident) if alert.source != "person"]
        if page.rounds > 1 or not dated:
            return min(page.incident.opened_at, self._clock())
        # However the clock was set since: no incident needs longer from now on than one that has just begun.
        first = min(page.incident.opened_at, *dated)
        return min(page.incident.opened_at + settle, first + _UNFOLDED * settle, self._clock() + settle)

    async def _look(self, context: RunContext, incident: str) -> Next:
        # By a clock that nobody can set, and anew in each life: time in which nothing was executed is not spent.
        until_s = asyncio.get_running_loop().time() + self._settings.deadline_s
        plan = await context.step(
            "plan", lambda: self._plan(context, incident), returns=Plan, timeout_s=_PLAN_TIMEOUT_S, attempts=2
        )
        await self._flush()
        readings = await read_all(context, plan=plan, readers=self._readers, settings=self._settings, until_s=until_s)
        surveyed = await self._step(context, "survey", lambda: self._survey(plan, readings.answers), _Surveyed)
        found = await asyncio.to_thread(survey_of_wire, surveyed.survey)
        diagnosed = await self._step(context, "diagnose", lambda: self._diagnose(found, plan), _Diagnosed)
        diagnosis = diagnosed.diagnosis
        if readings.is_late:
            diagnosis = _cut_short(diagnosis, deadline_s=self._settings.deadline_s)
        briefed = await self._step(context, "brief", lambda: self._brief(found, plan), _Briefed)
        drawn = await self._draw(context, plan, diagnosis, found)
        compared = await self._step(context, "similar", lambda: self._compare(incident, diagnosis, plan), _Compared)
        cpu_s = surveyed.cpu_s + diagnosed.cpu_s + briefed.cpu_s

        async def report() -> _Reported:
            page = await asyncio.to_thread(self._book.get_page, incident)
            case = build_case(
                incident=page.incident,
                plan=plan,
                survey=found,
                diagnosis=diagnosis,
                briefing=briefed.briefing,
                curves=drawn,
                similar=compared.similar,
                cost=await self._cost_of(context.run.id, cpu_s),
                run=context.run.id,
                version=context.run.version,
            )
            await asyncio.to_thread(self._book.conclude, case, at=self._clock())
            return _Reported(outcome=diagnosis.finding.outcome, steps=case.cost.steps if case.cost else 0)

        await self._step(context, "report", report, _Reported)
        await self._tell(context, incident, diagnosis)
        await self._flush()
        return Done(result=_result(incident, diagnosis))

    async def _step(self, context: RunContext, name: str, work: Callable[[], Awaitable[T]], returns: type[T]) -> T:
        return await context.step(name, work, returns=returns, timeout_s=_STEP_TIMEOUT_S)

    # -- the work of the steps ---------------------------------------------------------------------------------------

    async def _plan(self, context: RunContext, incident: str) -> Plan:
        at = self._clock()
        page = await asyncio.to_thread(self._book.get_page, incident)
        await asyncio.to_thread(self._book.begin, incident, run=context.run.id, at=at)
        alerts = await asyncio.to_thread(self._book.alerts_of, incident)
        since_s = context.arguments.get("since_s")
        reading = Reading(services=page.incident.services, symptom=Symptom.OTHER, since_s=None, notes=())
        if page.request:
            reading = await self._understand(page.request, named=page.incident.services, at=at)
            alerts = tuple(_understood(alert, reading) for alert in alerts)
        length_s = float(since_s) if isinstance(since_s, int | float) else reading.since_s
        others = await asyncio.to_thread(self._book.trouble_before, at, incident=incident)
        elsewhere = [alert for other in others for alert in other]
        window, said = choose_window(alerts, at=at, settings=self._settings, since_s=length_s, elsewhere=elsewhere)
        trouble = [stretch for other in others if (stretch := trouble_of(other, at=at))]
        first = await self._first_told(reach_of(window, settings=self._settings))
        baseline, also_said = choose_baseline(window, trouble=trouble, first=first, settings=self._settings)
        return Plan(
            question=page.request or f"What is behind {page.incident.title}?",
            focus=reading.services,
            window=window,
            baseline=baseline,
            alerts=alerts,
            planned_at=at,
            notes=(*reading.notes, *said, *also_said),
        )

    async def _first_told(self, reach: Window) -> datetime | None:
        """Return when telemetry begins within a stretch, if anybody can tell."""
        if self._begins_at is None:
            return None
        try:
            return await self._begins_at(reach)
        except QuellError:
            return None

    async def _understand(self, question: str, *, named: tuple[str, ...], at: datetime) -> Reading:
        """Read a question with the names that telemetry knows now."""
        window = Window(start=at - _NAMES_WINDOW, end=at)
        baseline = window.before(length=_NAMES_WINDOW)
        asked = [
            ask_once(
                reader,
                Question(kind=kind, window=window, baseline=baseline, rows_max=1000),
                timeout_s=self._settings.read_timeout_s,
            )
            for reader in self._readers
            for kind in (QuestionKind.ERROR_RATES, QuestionKind.EDGE_GAPS)
        ]
        services, operations = names_of(await asyncio.gather(*asked))
        graph = await asyncio.to_thread(self._book.graph)
        services |= {name for edge in graph.edges for name in edge}
        reading = read_question(question, services=services, operations=operations)
        if not named:
            return reading
        strangers = tuple(
            f"Telemetry of the last hour knows no service called {name!r}." for name in named if name not in services
        )
        return replace(reading, services=named, notes=strangers)

    async def _survey(self, plan: Plan, answers: tuple[Answer | Gap, ...]) -> _Surveyed:
        await asyncio.to_thread(self._book.learn_calls, edges_of(answers), at=plan.planned_at)

        def work() -> _Surveyed:
            began = time.thread_time()
            found = survey(answers, scope=Scope(), window=plan.window, baseline=plan.baseline)
            return _Surveyed(survey=survey_to_wire(found), cpu_s=time.thread_time() - began)

        return await asyncio.to_thread(work)

    async def _diagnose(self, found: Survey, plan: Plan) -> _Diagnosed:
        def work() -> _Diagnosed:
            began = time.thread_time()
            diagnosis = diagnose(found, alerts=plan.alerts)
            return _Diagnosed(diagnosis=diagnosis, cpu_s=time.thread_time() - began)

        return await asyncio.to_thread(work)

    async def _brief(self, found: Survey, plan: Plan) -> _Briefed:
        def work() -> _Briefed:
            began = time.thread_time()
            briefing = pack(found, budget_tokens=self._settings.budget_tokens, anchor=plan.window.end)
            return _Briefed(briefing=briefing, cpu_s=time.thread_time() - began)

        return await asyncio.to_thread(work)

    async def _draw(self, context: RunContext, plan: Plan, diagnosis: Diagnosis, found: Survey) -> tuple[Curve, ...]:
        """Fetch the curves of the report; a report without charts is better than none."""
        source = self._curves
        if source is None:
            return ()

        async def draw() -> _Drawn:
            return _Drawn(curves=await source(wanted_curves(plan, diagnosis, found)))

        try:
            drawn = await context.step("series", draw, returns=_Drawn, timeout_s=self._settings.read_timeout_s)
        except StepError:
            return ()
        return drawn.curves

    async def _compare(self, incident: str, diagnosis: Diagnosis, plan: Plan) -> _Compared:
        page = await asyncio.to_thread(self._book.get_page, incident)
        opened_at = page.incident.opened_at
        earlier = await asyncio.to_thread(self._book.earlier_cases, before=plan.planned_at, incident=incident)
        services = page.incident.services or plan.focus
        return _Compared(
            similar=find_similar(diagnosis.finding, services=services, opened_at=opened_at, earlier=earlier)
        )

    async def _tell(self, context: RunContext, incident: str, diagnosis: Diagnosis) -> None:
        finding = diagnosis.finding
        await context.emit(
            "finding.made",
            key="finding",
            incident=incident,
            outcome=finding.outcome.value,
            category=finding.category.value if finding.category else None,
            subject=f"{finding.subject.kind} {finding.subject.name}" if finding.subject else None,
            confidence=finding.confidence.value,
            statement=finding.statement,
        )


def _understood(alert: Alert, reading: Reading) -> Alert:
    """Return a person's alert with what was read out of the question; other alerts stay as they are."""
    if alert.source != "person":
        return alert
    service = reading.services[0] if len(reading.services) == 1 else alert.service
    return replace(alert, service=service, symptom=reading.symptom)


def _cut_short(diagnosis: Diagnosis, *, deadline_s: float) -> Diagnosis:
    """Turn a diagnosis from incomplete readings into what it is: inconclusive, with the leading hypothesis named."""
    finding = diagnosis.finding
    lead = f" So far the evidence points to this: {finding.statement}" if finding.outcome is Outcome.CAUSE_FOUND else ""
    late = replace(
        finding,
        outcome=Outcome.INCONCLUSIVE,
        statement=f"The deadline of {deadline_s:g} s passed before every source had answered.{lead}",
        confidence=min(finding.confidence, Confidence.LOW, key=list(Confidence).index),
        cap="the deadline passed before every source had answered",
        category=None,
        subject=None,
    )
    return replace(diagnosis, finding=late)


def _result(incident: str, diagnosis: Diagnosis) -> dict[str, object]:
    finding = diagnosis.finding
    return {
        "incident": incident,
        "outcome": finding.outcome.value,
        "statement": finding.statement,
        "category": finding.category.value if finding.category else None,
        "subject": {"kind": finding.subject.kind, "name": finding.subject.name} if finding.subject else None,
        "since": finding.since.isoformat() if finding.since else None,
        "confidence": finding.confidence.value,
    }
