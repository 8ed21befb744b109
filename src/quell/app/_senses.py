"""The senses: tools of our own with which every agent, one without a model too, sees the live system."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec

from quell.app._authority import Authority
from quell.app._own_answers import Work, answering, as_json
from quell.app._senses_advice import Desired, proposals
from quell.app._senses_lines import (
    alert_line,
    case_sensed,
    change_lines,
    counted,
    fitted,
    gap_lines,
    incident_line,
    moment,
    plain,
    shift_lines,
)
from quell.app._senses_look import NAMING, Look, Names, exact, look, names_of
from quell.app._senses_tools import sense_tools
from quell.config import InvestigationSettings
from quell.diagnosis import diagnose
from quell.domain import (
    CallRequest,
    Clock,
    Diagnosis,
    Incident,
    Outcome,
    Principal,
    QuestionKind,
    RunStatus,
    Sensed,
    SenseState,
    Stage,
    Tool,
    UsageError,
    Window,
)
from quell.incidents import Desk, Request
from quell.runs import Runs
from quell.signals import Reader, pack
from quell.tools import LocalHand

_CHANGED_MINUTES = 30
_LISTED_MAX = 200
_ALERTS_MAX = 1_000
_LISTED = 10
_SHIFTS_MAX = 8
_FRESH = timedelta(minutes=5)
"""So old may a finding be and still be the answer to the same question."""
_LOOK_MAX_S, _NAMING_MAX_S = 40.0, 8.0
_SLACK_S = 5.0
"""What is left of a call's time for telling how it stands."""
_OPEN = tuple(stage for stage in Stage if stage is not Stage.RESOLVED)
_NOT_NAMED = "Telemetry names no service in that time"

DesiredSource = Callable[[Principal, str], Desired | None]
"""Tells who would act by which rules, for a principal and a run; None while nothing that decides is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Senses:
    """What the senses see with."""

    desk: Desk
    runs: Runs
    readers: Sequence[Reader]
    settings: InvestigationSettings
    clock: Clock
    desired: DesiredSource

    def hands(self) -> Iterable[tuple[Tool, LocalHand]]:
        """Return the senses as tools, for the registry."""
        works: Mapping[str, Callable[[CallRequest, Mapping[str, object]], Awaitable[Sensed]]] = {
            "system_overview": self._overview,
            "what_changed": self._changed,
            "investigate": self._investigate,
            "incidents": self._incidents,
            "incident": self._incident,
            "brief": self._brief,
            "advise": self._advise,
        }
        return [(tool, LocalHand(tool.name, answering(_sensing(works[tool.name])))) for tool in sense_tools()]

    # -- telemetry ----------------------------------------------------------------------------------------------------

    async def _overview(self, _request: CallRequest, given: Mapping[str, object]) -> Sensed:
        wanted = _text(given, "service")
        minutes = _number(given, "minutes", max(1, round(self.settings.window_minutes)))
        seen = await self._look(minutes, wanted)
        opened = await self.desk.incidents(limit=_LISTED_MAX, stages=_OPEN)
        names = _with(seen.names, opened)
        service = exact(wanted, names) or (wanted if seen.is_blind else "")
        if wanted and not service:
            return _unknown(wanted, names)
        firing = [alert for alert in await self.desk.firing() if alert.source != "person"]
        alerts = [alert for alert in firing if not service or alert.service == service]
        diagnosis = await asyncio.to_thread(diagnose, seen.survey, alerts=firing)
        symptoms = shift_lines(seen, service, only={citation.evidence for citation in diagnosis.impact})
        real = await self._real([one for one in opened if not service or service in _services_of(one)])
        gaps, span = gap_lines(seen.gaps), f"in the last {minutes} minutes"
        where = f" with {service}" if service else ""
        if not (real or alerts or symptoms):
            return _calm(seen, diagnosis, service=service, span=span, names=names)
        counts = ((len(real), "open incident"), (len(alerts), "firing alert"), (len(symptoms), "symptom"))
        head = f"Something is wrong{where}: {', '.join(counted(number, word) for number, word in counts if number)}"
        lines = [head, *(incident_line(one) for one in real[:5]), *map(alert_line, alerts[:5])]
        if symptoms:
            lines += [*_cause(diagnosis, service), *symptoms[:_SHIFTS_MAX]]
        elif diagnosis.finding.outcome is Outcome.HEALTHY:
            lines.append(f"Errors and latency are as before {span}: it may be over")
        return _sensed("wrong", lines, more=symptoms[_SHIFTS_MAX:], gaps=gaps, about=real, names=names)

    async def _real(self, opened: Sequence[Incident]) -> list[Incident]:
        """Return the incidents that tell of trouble: a person's question does where a cause of its own was found."""
        asked = {alert.id for alert in await self.desk.alerts(limit=_ALERTS_MAX) if alert.source == "person"}
        noticed = [one for one in opened if set(one.alerts) - asked]
        seen = {(one.category, one.subject) for one in noticed}
        for one in opened:
            if one not in noticed and one.category is not None and (one.category, one.subject) not in seen:
                seen.add((one.category, one.subject))
                noticed.append(one)
        return noticed

    async def _changed(self, _request: CallRequest, given: Mapping[str, object]) -> Sensed:
        wanted, minutes = _text(given, "service"), _number(given, "minutes", _CHANGED_MINUTES)
        seen = await self._look(minutes, wanted)
        service = exact(wanted, seen.names) or (wanted if seen.is_blind else "")
        if wanted and not service:
            return _unknown(wanted, seen.names)
        changes, moved = change_lines(seen, service), shift_lines(seen, service)
        gaps = gap_lines(seen.gaps)
        where, span = f" about {service}" if service else "", f"in the last {minutes} minutes"
        is_partial = any(gap.question is QuestionKind.CHANGES for gap in seen.gaps)
        if changes:
            head = f"{counted(len(changes), 'change')}{where} {span}"
        else:
            head = f"No change{where} was {'seen, as far as could be read,' if is_partial else 'recorded'} {span}"
        lines = [head, *changes[:_SHIFTS_MAX]]
        lines += [f"{counted(len(moved), 'signal')} moved"] if moved else []
        lines += moved[:_SHIFTS_MAX]
        if not moved and not gaps:
            lines.append("No signal moved")
        more = (*changes[_SHIFTS_MAX:], *moved[_SHIFTS_MAX:])
        state: SenseState = "told" if changes or moved else "unclear" if gaps else "nothing"
        return _sensed(state, lines, more=more, gaps=gaps, names=seen.names)

    async def _brief(self, _request: CallRequest, given: Mapping[str, object]) -> Sensed:
        wanted = _text(given, "service")
        minutes = _number(given, "minutes", max(1, round(self.settings.window_minutes)))
        seen = await self._look(minutes, wanted)
        service = exact(wanted, seen.names) or (wanted if seen.is_blind else "")
        if wanted and not service:
            return _unknown(wanted, seen.names)
        facts = seen.facts(service)
        tokens = _number(given, "tokens", min(self.settings.budget_tokens, 1_500))
        survey = replace(seen.survey, facts=facts)
        briefing = await asyncio.to_thread(pack, survey, budget_tokens=tokens, anchor=survey.window.end)
        lines = [line for line in briefing.text.splitlines() if line.strip()]
        return _sensed("told" if facts else "nothing", lines or [_NOT_NAMED], gaps=gap_lines(seen.gaps))

    async def _look(self, minutes: float, service: str, *, naming: bool = False) -> Look:
        at = self.clock()
        window = Window(start=at - timedelta(minutes=minutes), end=at)
        return await look(
            self.readers,
            window=window,
            baseline=window.before(length=timedelta(minutes=self.settings.baseline_minutes)),
            timeout_s=self.settings.read_timeout_s,
            within_s=_NAMING_MAX_S if naming else _LOOK_MAX_S,
            service=service,
            kinds=NAMING if naming else QuestionKind,
        )

    # -- incidents ----------------------------------------------------------------------------------------------------

    async def _incidents(self, _request: CallRequest, given: Mapping[str, object]) -> Sensed:
        everyone = await self.desk.incidents(limit=_LISTED_MAX)
        found = await self.desk.incidents(limit=_LISTED_MAX, stages=_OPEN) if given.get("state") == "open" else everyone
        word, where, wanted = (
            "open incident" if given.get("state") == "open" else "incident",
            "",
            _text(given, "service"),
        )
        if wanted:
            names = names_of((), more=(name for one in everyone for name in _services_of(one)))
            service = exact(wanted, names)
            if names and not service:
                return _unknown(wanted, names, told="No incident is about")
            where = f" of {service or plain(wanted, chars_max=120)}"
            found = [one for one in found if service in _services_of(one)]
        if not found:
            return _sensed("nothing", [f"There is no {word}{where}"])
        shown = found[: _number(given, "limit", _LISTED)]
        total = f"at least {len(found)} {word}s" if len(found) == _LISTED_MAX else counted(len(found), word)
        order = f"the newest {len(shown)} of them" if len(shown) < len(found) else "newest first"
        number = {one.id: place for place, one in enumerate(everyone, start=1)}
        lines = [f"{total}{where}, {order}", *(incident_line(one, number=number.get(one.id, 0)) for one in shown)]
        return _sensed("told", lines, about=shown)

    async def _incident(self, _request: CallRequest, given: Mapping[str, object]) -> Sensed:
        found = await self._find(_text(given, "incident"))
        return found if isinstance(found, Sensed) else case_sensed(await self.desk.case_file(found.id))

    async def _advise(self, request: CallRequest, given: Mapping[str, object]) -> Sensed:
        wanted = _text(given, "incident")
        found = await self._find(wanted) if wanted else await self._newest_cause()
        if isinstance(found, Sensed):
            return found
        case = await self.desk.case_file(found.id)
        sensed = case_sensed(case)
        calls: tuple[str, ...] = ()
        if case.finding is not None and case.finding.outcome is Outcome.CAUSE_FOUND:
            desired = self.desired(request.caller.principal, request.call.run)
            calls = proposals(case.finding, desired) if desired is not None else ()
            calls = calls or ("No pinned tool does this by itself: the steps are for people",)
        return replace(sensed, lines=(*sensed.lines[:3], *map(plain, calls)), more=())

    async def _newest_cause(self) -> Incident | Sensed:
        for stages in (_OPEN, ()):
            for one in await self.desk.incidents(limit=_LISTED_MAX, stages=stages):
                if one.category is not None:
                    return one
        return _sensed("nothing", ["No cause was found so far, so there is nothing to advise"])

    async def _find(self, wanted: str) -> Incident | Sensed:
        """Return an incident by its id, its number among the newest, or a service of it, or say that there is none."""
        none = _sensed("nothing", [f"There is no incident {plain(wanted, chars_max=120)}"])
        number = wanted.lstrip("#").strip()
        if number.isdecimal() and len(number) <= 3:
            newest = await self.desk.incidents(limit=max(1, int(number)))
            return newest[-1] if newest and len(newest) == int(number) else none
        if wanted.startswith("inc_"):
            try:
                return await self.desk.incident(wanted)
            except UsageError as error:
                if "several" in str(error):
                    raise
                return none
        listed = await self.desk.incidents(limit=_LISTED_MAX)
        names = names_of((), more=(name for one in listed for name in _services_of(one)))
        service = exact(wanted, names)
        about = next((one for one in listed if service and service in _services_of(one)), None)
        if about is not None or not names:
            return about or none
        return _unknown(wanted, names, told="No incident is about")

    # -- investigations -----------------------------------------------------------------------------------------------

    async def _investigate(self, request: CallRequest, given: Mapping[str, object]) -> Sensed:
        wanted, question = _text(given, "service"), _text(given, "question")
        longest_s = min(request.caller.deadline_s, request.tool.timeout_s) - _SLACK_S
        ends_at = asyncio.get_running_loop().time() + longest_s
        named = await self._look(self.settings.window_minutes, wanted, naming=True)
        opened = await self.desk.incidents(limit=_LISTED_MAX, stages=_OPEN)
        names = _with(named.names, opened)
        service = exact(wanted, names)
        if wanted and not service and names:
            return _unknown(wanted, names)
        minutes = _number(given, "minutes", 0)
        asks_for_a_time = minutes > 0
        joined = None if asks_for_a_time else self._joinable(opened, service, question)
        if joined is not None and joined.stage is not Stage.INVESTIGATING:
            case = await self.desk.case_file(joined.id)
            if case.finding is not None:
                head = f"This was investigated already, in {joined.id}, last at {moment(joined.updated_at)}"
                return case_sensed(case, head=[head], service=service)
        run = await self._run_of(joined)
        if not run:
            words = question or (
                f"What is going on with {service or wanted}?" if service or wanted else "Is anything wrong?"
            )
            asked = Request(
                text=words, services=(service,) if service else (), since_s=minutes * 60.0 if minutes else None
            )
            run = (await self.desk.investigate(asked)).id
        return await self._concluded(run, service=service, ends_at=ends_at)

    async def _run_of(self, joined: Incident | None) -> str:
        """Return the run of an incident that is being looked into; whoever opened one may have ended before it began."""
        if joined is None or joined.stage not in {Stage.DETECTED, Stage.INVESTIGATING}:
            return ""
        begun = await self.desk.begun(joined.id)
        return begun.id if begun is not None else ""

    def _joinable(self, opened: Sequence[Incident], service: str, question: str) -> Incident | None:
        """Return the open incident that this is about: one that is being looked into, or whose finding is fresh."""
        at: datetime = self.clock()
        for one in opened:
            is_same = service in _services_of(one) if service else one.title == plain(question, chars_max=300)
            is_running = one.stage is Stage.INVESTIGATING and one.run is not None
            if is_same and (is_running or at - one.updated_at <= _FRESH):
                return one
        return None

    async def _concluded(self, run: str, *, service: str, ends_at: float) -> Sensed:
        """Wait for the end of an investigation as long as the call may, and say what came of it, or how it stands."""
        left_s = ends_at - asyncio.get_running_loop().time()
        ended = await self.runs.wait(run, timeout_s=max(0.5, left_s))
        if ended.status is RunStatus.SUCCEEDED:
            return case_sensed(await self.desk.case_file(run), service=service)
        if ended.status in {RunStatus.FAILED, RunStatus.CANCELLED}:
            told = f"The investigation {run} of {ended.subject} ended without a finding: {ended.error or ended.status.value}"
            return Sensed(state="inconclusive", lines=(plain(told),), incidents=(ended.subject,))
        told = f"The investigation {run} of {ended.subject} goes on; it has no finding yet"
        return Sensed(state="running", lines=(told,), incidents=(ended.subject,))


def desired_of(authority: Callable[[], Authority | None], *, environment: str) -> DesiredSource:
    """Return what tells who would act by which rules, as they are when it is asked."""

    def desired(principal: Principal, run: str) -> Desired | None:
        now = authority()
        if now is None:
            return None
        return Desired(
            tools=now.toolbox.catalog(),
            policy=now.guard.policy,
            principal=principal,
            run=run,
            environment=environment,
        )

    return desired


def _sensing(work: Callable[[CallRequest, Mapping[str, object]], Awaitable[Sensed]]) -> Work:
    async def told(request: CallRequest, given: Mapping[str, object]) -> tuple[str, bool]:
        return as_json(_written(await work(request, given))), True

    return told


def _written(sensed: Sensed) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(sensed)
    return {name: value for name, value in found.items() if value}


def _sensed(
    state: SenseState,
    lines: Sequence[str],
    *,
    more: Sequence[str] = (),
    gaps: Sequence[str] = (),
    about: Sequence[Incident] = (),
    names: Names | None = None,
) -> Sensed:
    return fitted(
        Sensed(
            state=state,
            lines=tuple(lines),
            more=tuple(more),
            gaps=tuple(gaps),
            incidents=tuple(one.id for one in about),
            names=names or {},
        )
    )


def _unknown(wanted: str, names: Names, *, told: str = "Telemetry knows nothing called") -> Sensed:
    """Say that nothing is called so, and what there is, the likest names first: who asked may mean one of them."""
    if not any(names.values()):
        return _sensed("unknown_service", [_NOT_NAMED])

    def unlike(name: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, wanted.lower(), name.lower()).ratio(), name

    ranked = {kind: tuple(sorted(each, key=unlike)) for kind, each in names.items()}
    return _sensed("unknown_service", [f"{told} {plain(wanted, chars_max=120)}"], names=ranked)


def _calm(seen: Look, diagnosis: Diagnosis, *, service: str, span: str, names: Names) -> Sensed:
    """Say of a time without incidents, alerts and symptoms whether that means that nothing is wrong."""
    finding, gaps, where = diagnosis.finding, gap_lines(seen.gaps), f" with {service}" if service else ""
    moved = shift_lines(seen, service)
    quiet = f"no incident is open and no alert fires{where}"
    cap = f", because {finding.cap}" if finding.cap else ""
    if finding.outcome is Outcome.HEALTHY:
        read = ", as far as could be read" if gaps else ""
        lines = [f"Nothing is wrong{where}{read}: {quiet}, and errors and latency are as before {span}"]
        lines.append(f"Confidence: {finding.confidence.value}{cap}")
        return _sensed("healthy", lines, more=moved, gaps=gaps, names=names)
    if finding.outcome is Outcome.CAUSE_FOUND:
        elsewhere = f"Elsewhere something is wrong, confidence {finding.confidence.value}: {finding.statement}"
        lines = [f"Nothing is wrong{where} itself: {quiet}, and it shows no symptom {span}", elsewhere]
        return _sensed("unclear" if gaps else "healthy", lines, more=moved, gaps=gaps, names=names)
    lines = [f"{quiet[0].upper()}{quiet[1:]}, but whether anything is wrong cannot be told", finding.statement]
    return _sensed("unclear", lines, more=moved, gaps=gaps, names=names)


def _cause(diagnosis: Diagnosis, service: str) -> list[str]:
    finding = diagnosis.finding
    if finding.outcome is not Outcome.CAUSE_FOUND or (
        service and (finding.subject is None or service not in finding.subject.name)
    ):
        return []
    return [plain(f"Likely cause, confidence {finding.confidence.value}: {finding.statement}")]


def _services_of(incident: Incident) -> tuple[str, ...]:
    subject = (incident.subject.name,) if incident.subject is not None else ()
    return (*incident.services, *subject)


def _with(names: Names, incidents: Sequence[Incident]) -> Names:
    """Add the services of incidents to what telemetry names: one that is gone may be what is asked about."""
    known = {name for each in names.values() for name in each}
    missing = sorted({name for one in incidents for name in one.services} - known)
    return names if not missing else {**names, "service": (*names.get("service", ()), *missing)}


def _text(given: Mapping[str, object], name: str) -> str:
    return str(given.get(name) or "").strip()


def _number(given: Mapping[str, object], name: str, otherwise: int) -> int:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
