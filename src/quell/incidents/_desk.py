"""The desk: alerts and questions come in, incidents and investigations come out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from quell.config import InvestigationSettings
from quell.domain import (
    Alert,
    Clock,
    Entropy,
    Incident,
    Outcome,
    Question,
    QuestionKind,
    Resource,
    Run,
    RunStatus,
    Severity,
    Stage,
    Symptom,
    UsageError,
    Window,
    fingerprint_of,
    new_id,
    one_line,
)
from quell.incidents._answers import edges_of
from quell.incidents._book import Book
from quell.incidents._case import cost_of_steps
from quell.incidents._inventory import facts_of
from quell.incidents._investigation import KIND, CurveSource, Extent, Investigator
from quell.incidents._model import CaseFile, Cost, Request
from quell.incidents._reading import ask_once
from quell.incidents._rows import Page
from quell.runs import Runs
from quell.signals import Reader

_ROUNDS_MAX = 3
"""Investigations of one incident that begin by themselves; a person may ask for more."""
_GRAPH_WINDOW = timedelta(minutes=5)
_GRAPH_TIMEOUT_S = 2.0
_GRAPH_AGE_S = 30.0
_OPEN_MAX = 200
_QUESTION_MAX = 300
_FINAL = {RunStatus.FAILED, RunStatus.CANCELLED}


class Desk:
    """Turns alerts and questions into incidents, and has each of them investigated."""

    def __init__(
        self,
        *,
        runs: Runs,
        readers: Sequence[Reader],
        settings: InvestigationSettings,
        clock: Clock,
        entropy: Entropy,
        curves: CurveSource | None = None,
        begins_at: Extent | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Join the parts; registers the investigation, so build it before runs are launched.

        Args:
            runs: The journal.
            readers: The sources that every investigation asks.
            settings: Bounds of an investigation.
            clock: Tells the time.
            entropy: Gives random bytes for ids.
            curves: Draws the charts' curves; None leaves charts out.
            begins_at: Tells since when there is telemetry; None takes every baseline as it is.
            ready: Awaited before a run is started, so that a process that only looks never takes a lease.
            clean: Takes secrets out of what people and alerts say.
        """
        self._runs = runs
        self._readers = readers
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._ready = ready
        self._clean = clean
        self._book = Book(runs.engine)
        self._turn = asyncio.Lock()
        self._graph_read_at = clock() - timedelta(seconds=_GRAPH_AGE_S)
        investigator = Investigator(
            book=self._book,
            readers=readers,
            settings=settings,
            clock=clock,
            curves=curves,
            begins_at=begins_at,
            cost_of=self._cost_of,
            flush=self._flush,
        )
        runs.register(KIND, investigator.work)

    # -- coming in ---------------------------------------------------------------------------------------------------

    async def handle(self, alerts: Sequence[Alert]) -> list[Incident]:
        """Take alerts in, each once, and return the incidents they belong to; every new one gets an investigation.

        The same alert twice, a resolution before its firing, and an alert for a service that nobody knows are all fine.
        """
        if not alerts:
            return []
        alerts = [self._cleaned(alert) for alert in alerts]
        async with self._turn:
            await self._learn_graph(alerts)
            graph = await asyncio.to_thread(self._book.graph)
            touched = await asyncio.to_thread(
                self._book.admit,
                alerts,
                graph=graph,
                group_window_s=self._settings.group_window_s,
                at=self._clock(),
                new_id=self._new_incident_id,
            )
            await self._flush()
            for incident in touched:
                await self._pursue(await asyncio.to_thread(self._book.get_page, incident))
        return [(await asyncio.to_thread(self._book.get_page, incident)).incident for incident in touched]

    async def investigate(self, request: Request) -> Run:
        """Start the investigation that a person asks for.

        Raises UsageError when the request holds neither words, services nor alerts.
        """
        request = replace(request, text=self._clean(request.text))
        if request.alerts:
            return await self._investigate_alerts(request)
        if not request.text.strip() and not request.services:
            raise UsageError(
                "nothing was asked", hint='quell investigate "checkout is slow", --service S or --alert FILE'
            )
        at = self._clock()
        incident = self._new_incident_id()
        question = (
            one_line(request.text, chars_max=_QUESTION_MAX) or f"What is going on with {', '.join(request.services)}?"
        )
        asked = [self._question(question, service, incident=incident) for service in request.services or ("",)]
        await asyncio.to_thread(self._book.open_question, asked, incident=incident, question=question, at=at)
        await self._flush()
        return await self._begin(await asyncio.to_thread(self._book.get_page, incident), since_s=request.since_s)

    async def begun(self, prefix: str) -> Run | None:
        """Return the run of an incident, begun now if whoever opened it ended before; None when it waits for none.

        Raises UsageError when there is no such incident.
        """
        page = await self._page(prefix)
        if page.incident.stage is Stage.DETECTED:
            return await self._begin(page, since_s=None)
        return await self._runs.get(page.incident.run) if page.incident.run else None

    def _cleaned(self, alert: Alert) -> Alert:
        """Return an alert without secrets in its words; its service is a name, and its fingerprint stays."""
        labels = tuple((key, value if value == alert.service else self._clean(value)) for key, value in alert.labels)
        return replace(alert, name=self._clean(alert.name), summary=self._clean(alert.summary), labels=labels)

    async def tend(self) -> None:
        """Bring incidents forward: begin what was not begun, give up what died, look again, close what is quiet."""
        async with self._turn:
            open_stages = [stage for stage in Stage if stage is not Stage.RESOLVED]
            for page in await asyncio.to_thread(self._book.pages, limit=_OPEN_MAX, stages=open_stages):
                await self._give_up_if_dead(page)
                await self._pursue(await asyncio.to_thread(self._book.get_page, page.incident.id))
            quiet_s = self._settings.group_window_s
            await asyncio.to_thread(self._book.close_quiet, quiet_s=quiet_s, at=self._clock())
            await self._flush()

    async def close(self, prefix: str, *, by: str, reason: str) -> Incident:
        """End an incident in a person's name. Raises UsageError when there is none, RefusedError when it may not end."""
        page = await self._page(prefix)
        await asyncio.to_thread(self._book.close, page.incident.id, by=by, reason=self._clean(reason), at=self._clock())
        await self._flush()
        return (await self._page(page.incident.id)).incident

    # -- looking -----------------------------------------------------------------------------------------------------

    async def incidents(self, *, limit: int = 50, stages: Sequence[Stage] = ()) -> list[Incident]:
        """List incidents, newest first."""
        pages = await asyncio.to_thread(self._book.pages, limit=limit, stages=stages)
        return [page.incident for page in pages]

    async def incident(self, prefix: str) -> Incident:
        """Return one incident by its id or a unique beginning of it. Raises UsageError when there is none."""
        return (await self._page(prefix)).incident

    async def inventory(self, resource: Resource) -> tuple[tuple[str, str], ...]:
        """Return what is known of a resource that somebody wants to touch, and what is not, for people who decide."""
        return await facts_of(resource, book=self._book, readers=self._readers, clock=self._clock)

    async def alerts(self, *, limit: int = 100) -> list[Alert]:
        """List alerts, newest first."""
        return await asyncio.to_thread(self._book.alerts, limit=limit)

    async def firing(self) -> list[Alert]:
        """Return the alerts of open incidents that still fire, oldest first."""
        return await asyncio.to_thread(self._book.firing)

    async def case_file(self, prefix: str) -> CaseFile:
        """Return what is known of an incident, by its id or by the id of one of its runs; beginnings of ids will do."""
        case: CaseFile | None = None
        if prefix.startswith("run_"):
            run = await self._runs.get(prefix)
            page = await self._page(run.subject)
            case = await asyncio.to_thread(self._book.case_of_run, run.id)
        else:
            page = await self._page(prefix)
            case = await asyncio.to_thread(self._book.case_of, page.incident.id)
        log = await asyncio.to_thread(self._book.timeline_of, page.incident.id)
        if case is None:
            alerts = await asyncio.to_thread(self._book.alerts_of, page.incident.id)
            state = await self._state_of(page)
            return CaseFile(
                incident=page.incident,
                alerts=alerts,
                plan=None,
                finding=None,
                timeline=log,
                run=page.incident.run,
                state=state,
            )
        moments = sorted([*case.timeline, *log], key=lambda m: (m.at, m.kind, m.text))
        alerts = case.alerts if page.request else await asyncio.to_thread(self._book.alerts_of, page.incident.id)
        return replace(case, incident=page.incident, alerts=alerts, timeline=tuple(moments))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _investigate_alerts(self, request: Request) -> Run:
        touched = await self.handle(request.alerts)
        if not touched:
            raise UsageError("every alert given had ended before it was known", hint="give alerts that fire")
        page = await self._page(touched[0].id)
        if page.incident.stage is Stage.INVESTIGATING and page.incident.run:
            return await self._runs.get(page.incident.run)
        if page.incident.stage is Stage.RESOLVED:
            question = request.text or page.incident.title
            services = page.incident.services
            return await self.investigate(Request(text=question, services=services, since_s=request.since_s))
        return await self._begin(page, since_s=request.since_s)

    async def _pursue(self, page: Page) -> None:
        """Begin the investigation that an incident is due: its first, or another one when new alerts may tell more."""
        if page.incident.stage is Stage.DETECTED:
            await self._begin(page, since_s=None)
        elif page.incident.stage is Stage.ESCALATED and page.rounds < _ROUNDS_MAX and not page.request:
            case = await asyncio.to_thread(self._book.case_of, page.incident.id)
            is_open = case is None or case.finding is None or case.finding.outcome is not Outcome.CAUSE_FOUND
            seen = {alert.id for alert in case.alerts} if case else set(page.incident.alerts)
            if is_open and set(page.incident.alerts) - seen:
                await self._begin(page, since_s=None)

    async def _begin(self, page: Page, *, since_s: float | None) -> Run:
        """Start the next run of an incident, once per round."""
        if self._ready is not None:
            await self._ready()
        incident = page.incident.id
        arguments: dict[str, object] = {"incident": incident, "since_s": since_s}
        run = await self._runs.start(
            KIND, subject=incident, arguments=arguments, key=f"{KIND}:{incident}:{page.rounds + 1}"
        )
        await asyncio.to_thread(self._book.begin, incident, run=run.id, at=self._clock())
        await self._flush()
        return run

    async def _give_up_if_dead(self, page: Page) -> None:
        if page.incident.stage is not Stage.INVESTIGATING or page.incident.run is None:
            return
        run = await self._find_run(page.incident.run)
        if run is None or run.status in _FINAL:
            said = "it is gone" if run is None else run.error or run.status.value
            reason = f"the investigation ended without a finding: {said}"
            await asyncio.to_thread(
                self._book.give_up, page.incident.id, run=page.incident.run, reason=reason, at=self._clock()
            )

    async def _learn_graph(self, alerts: Sequence[Alert]) -> None:
        """Ask who calls whom, when that may decide where an alert belongs and is not known yet."""
        graph = await asyncio.to_thread(self._book.graph)
        known = {name for edge in graph.edges for name in edge}
        strangers = {alert.service for alert in alerts if alert.service} - known
        at = self._clock()
        if not strangers or abs((at - self._graph_read_at).total_seconds()) < _GRAPH_AGE_S:
            return
        open_stages = [stage for stage in Stage if stage is not Stage.RESOLVED]
        is_alone = len({alert.service for alert in alerts}) == 1
        if is_alone and not await asyncio.to_thread(self._book.pages, limit=1, stages=open_stages):
            return
        self._graph_read_at = at
        window = Window(start=at - _GRAPH_WINDOW, end=at)
        question = Question(kind=QuestionKind.EDGE_GAPS, window=window, baseline=window.before(length=_GRAPH_WINDOW))
        answers = await asyncio.gather(*(ask_once(r, question, timeout_s=_GRAPH_TIMEOUT_S) for r in self._readers))
        await asyncio.to_thread(self._book.learn_calls, edges_of(answers), at=at)

    async def _flush(self) -> None:
        """Let the event log say what the book says; a line whose event is out already changes nothing."""
        lines = await asyncio.to_thread(self._book.untold)
        for incident, line in lines:
            if line.event != "finding.made":  # the run itself says so, in its own stream
                await self._runs.emit(incident, line.event, key=line.key, body=line.body)
        if lines:
            await asyncio.to_thread(self._book.mark_told, lines)

    async def _state_of(self, page: Page) -> str:
        stage = page.incident.stage
        if page.incident.run is None:
            return (
                "No investigation has begun." if stage is not Stage.RESOLVED else "It ended without an investigation."
            )
        run = await self._find_run(page.incident.run)
        if run is None:
            return f"The investigation {page.incident.run} is past its retention."
        if run.status in _FINAL:
            return f"The investigation {run.id} ended without a finding: {run.error or run.status.value}"
        return f"The investigation {run.id} is {run.status.value}; it has no finding yet."

    async def _find_run(self, run_id: str) -> Run | None:
        try:
            return await self._runs.get(run_id)
        except UsageError:
            return None

    async def _cost_of(self, run_id: str, cpu_s: float) -> Cost:
        run = await self._runs.get(run_id)
        return cost_of_steps(await self._runs.steps(run_id), created_at=run.created_at, cpu_s=cpu_s)

    async def _page(self, prefix: str) -> Page:
        page = await asyncio.to_thread(self._book.find_page, prefix) if prefix else None
        if page is None:
            raise UsageError(f"there is no incident {prefix!r}", hint="quell incident list shows what there is")
        return page

    def _new_incident_id(self) -> str:
        return new_id("inc", at=self._clock(), entropy=self._entropy(10))

    def _question(self, question: str, service: str, *, incident: str) -> Alert:
        at = self._clock()
        labels = {"incident": incident}
        symptom = Symptom.OTHER
        return Alert(
            id=new_id("alr", at=at, entropy=self._entropy(10)),
            fingerprint=fingerprint_of(source="person", service=service, symptom=symptom.value, labels=labels),
            source="person",
            name="question",
            service=service,
            symptom=symptom,
            severity=Severity.INFO,
            status="firing",
            summary=question,
            starts_at=at,
            ends_at=None,
            received_at=at,
            labels=tuple(sorted(labels.items())),
        )
