"""Put a case file together from what an investigation learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from quell.diagnosis import next_steps
from quell.domain import (
    Briefing,
    ChangeKind,
    Citation,
    Diagnosis,
    EdgeShift,
    Evidence,
    Fact,
    Incident,
    MetricShift,
    ObservedChange,
    OperationShift,
    Outcome,
    PatternShift,
    Step,
    Survey,
    TimelineEntry,
    Window,
)
from quell.incidents._model import CaseFile, Cost, Curve, CurveAsk, Explained, Plan, Similar, StageTime

_EXTRA_EVIDENCE_MAX = 12
_CURVE_SERVICES_MAX = 4
_CURVE_EDGES_MAX = 2
_CURVE_METRICS_MAX = 4
_CURVE_LEAD = timedelta(minutes=5)
_MOMENTS_MAX = 24
_SHOWN_KINDS = {
    ChangeKind.DEPLOY,
    ChangeKind.FLAG,
    ChangeKind.CONFIG,
    ChangeKind.RESTART,
    ChangeKind.EXIT,
    ChangeKind.SCALE,
}
_STAGE_OF = re.compile(r"^(read):")
_WAIT_MIN_S = 1.0


def build_case(
    *,
    incident: Incident,
    plan: Plan,
    survey: Survey,
    diagnosis: Diagnosis,
    briefing: Briefing,
    curves: Sequence[Curve],
    similar: Sequence[Similar],
    cost: Cost,
    run: str,
    version: str,
) -> CaseFile:
    """Return the case file of an investigation that reached its finding."""
    victims = tuple(each for pair in diagnosis.victims if (each := _explained(pair, survey.facts)).evidence)
    cited = cited_ids(diagnosis) | {identifier for each in victims for identifier in each.evidence}
    return CaseFile(
        incident=incident,
        alerts=plan.alerts,
        plan=plan,
        finding=diagnosis.finding,
        hypotheses=diagnosis.hypotheses,
        impact=diagnosis.impact,
        victims=victims,
        next_steps=next_steps(diagnosis),
        evidence=_shown_evidence(survey.facts, cited),
        evidence_total=len(survey.facts),
        gaps=survey.gaps,
        timeline=moments_of(survey.facts, said=said_of(diagnosis)),
        briefing=briefing,
        similar=tuple(similar),
        curves=tuple(curves),
        cost=cost,
        run=run,
        version=version,
    )


def cited_ids(diagnosis: Diagnosis) -> frozenset[str]:
    """Return every evidence id that a claim rests on."""
    cited: list[Citation] = [*diagnosis.finding.citations, *diagnosis.impact]
    for hypothesis in diagnosis.hypotheses:
        cited += [*hypothesis.support, *hypothesis.against]
    return frozenset(citation.evidence for citation in cited)


def said_of(diagnosis: Diagnosis) -> dict[str, str]:
    """Return what each cited piece of evidence means, in the words of the claim that matters most."""
    said: dict[str, str] = {}
    finding = diagnosis.finding
    for citation in [*diagnosis.impact, *(finding.citations if finding.outcome is Outcome.CAUSE_FOUND else ())]:
        said.setdefault(citation.evidence, citation.says)
    return said


def _explained(pair: tuple[str, str], facts: Sequence[Fact]) -> Explained:
    """Find the evidence that a service suffers from another: its calls there first, then its own shifts."""
    service, source = pair
    names = {source, *(part.strip() for part in source.split("->"))}
    calls = [
        fact.evidence.id
        for fact in facts
        if isinstance(fact.observation, EdgeShift)
        and fact.observation.caller == service
        and fact.observation.callee in names
    ]
    own = [
        fact.evidence.id
        for fact in facts
        if isinstance(fact.observation, OperationShift) and fact.observation.service == service
    ]
    return Explained(service=service, suffers_from=source, evidence=(*calls[:1], *own[:1]))


def _shown_evidence(facts: Sequence[Fact], cited: frozenset[str]) -> tuple[Evidence, ...]:
    """Return what is cited and the most relevant of the rest, in the order of the ids."""
    rest = [fact.evidence for fact in facts if fact.evidence.id not in cited][:_EXTRA_EVIDENCE_MAX]
    shown = [fact.evidence for fact in facts if fact.evidence.id in cited]
    return tuple(sorted([*shown, *rest], key=lambda evidence: (int(evidence.id[1:] or 0), evidence.id)))


def moments_of(facts: Iterable[Fact], *, said: Mapping[str, str]) -> tuple[TimelineEntry, ...]:
    """Return the moments that evidence tells: changes of production, and when what is cited began."""
    moments: list[TimelineEntry] = []
    for fact in facts:
        row, evidence = fact.observation, fact.evidence
        if isinstance(row, ObservedChange):
            if row.change in _SHOWN_KINDS:
                moments.append(TimelineEntry(at=row.at, kind="change", text=_change_words(row), evidence=evidence.id))
        elif evidence.id in said and (at := _onset(fact)):
            text = f"Began: {said[evidence.id]}"
            moments.append(TimelineEntry(at=at, kind="evidence", text=text, evidence=evidence.id))
    return tuple(sorted(moments[:_MOMENTS_MAX], key=lambda m: (m.at, m.kind, m.evidence or "")))


def _change_words(row: ObservedChange) -> str:
    if row.change is ChangeKind.EXIT:
        return f"Exit of {row.service}: process {row.subject} {row.before} {row.after}".rstrip()
    what = f"{row.change.value.capitalize()} of {row.service or 'all services'}: {row.subject}"
    if row.before and row.after:
        return f"{what} {row.before} -> {row.after}"
    value = row.after or row.before
    return what if value in {"", row.subject} else f"{what} {value}"


def _onset(fact: Fact) -> datetime | None:
    row = fact.observation
    if isinstance(row, OperationShift | EdgeShift | MetricShift):
        return row.since
    if isinstance(row, PatternShift) and row.is_new:
        return row.first_seen
    return None


def wanted_curves(plan: Plan, diagnosis: Diagnosis, survey: Survey) -> CurveAsk:
    """Choose the few curves that show what the finding says: the object at fault, the services in trouble, the metrics cited."""
    cited = cited_ids(diagnosis)
    services: dict[str, None] = {}
    edges: dict[tuple[str, str], None] = {}
    for hypothesis in diagnosis.hypotheses[:1]:
        caller, arrow, callee = hypothesis.subject.name.partition("->")
        if arrow:
            edges[(caller.strip(), callee.strip())] = None
        elif hypothesis.subject.kind == "service":
            services[hypothesis.subject.name] = None
    metrics: dict[tuple[str, str, tuple[tuple[str, str], ...]], None] = {}
    cited_facts = [fact for fact in survey.facts if fact.evidence.id in cited]
    for fact in cited_facts:
        row = fact.observation
        if isinstance(row, MetricShift):
            metrics[(row.service, row.metric, row.attributes)] = None
        elif isinstance(row, EdgeShift):
            edges[(row.caller, row.callee)] = None
        elif isinstance(row, OperationShift) and row.span_kind in {"server", "consumer"}:
            services[row.service] = None
    for name in plan.focus:
        services[name] = None
    span = Window(start=max(plan.baseline.start, plan.window.start - _CURVE_LEAD), end=plan.window.end)
    return CurveAsk(
        services=tuple(services)[:_CURVE_SERVICES_MAX],
        edges=tuple(edges)[:_CURVE_EDGES_MAX],
        metrics=tuple(metrics)[:_CURVE_METRICS_MAX],
        window=span,
    )


def cost_of_steps(steps: Sequence[Step], *, created_at: datetime, cpu_s: float | None) -> Cost:
    """Add up what the steps of a run took; time between segments, or in which nobody executed the run, is waiting."""
    ordered = sorted(steps, key=lambda step: step.index)
    times: dict[str, StageTime] = {}
    for step in ordered:
        match = _STAGE_OF.match(step.name)
        stage = match[1] if match else step.name
        before = times.get(stage, StageTime(stage=stage, steps=0, seconds=0.0))
        seconds = before.seconds + max(0.0, (step.ended_at - step.started_at).total_seconds())
        times[stage] = StageTime(stage=stage, steps=before.steps + 1, seconds=round(seconds, 3))
    began = ordered[0].started_at if ordered else created_at
    waited_s = max(0.0, (began - created_at).total_seconds())
    return Cost(
        seconds=round(_worked_s(ordered), 3),
        waited_s=round(waited_s if waited_s >= _WAIT_MIN_S else 0.0, 3),
        steps=len(ordered),
        reads=sum(step.name.startswith("read:") for step in ordered),
        cpu_s=None if cpu_s is None else round(cpu_s, 4),
        stages=tuple(times.values()),
        model_tokens=0,
        money_usd=0.0,
    )


def _worked_s(steps: Sequence[Step]) -> float:
    """Return the time from the first step to the last, without the pauses of a run that was interrupted and resumed."""
    worked = timedelta(0)
    until: datetime | None = None
    for step in sorted(steps, key=lambda step: step.started_at):
        if until is not None and (step.started_at - until).total_seconds() < _WAIT_MIN_S:
            worked += max(step.ended_at - until, timedelta(0))
        else:
            worked += step.ended_at - step.started_at
        until = step.ended_at if until is None else max(until, step.ended_at)
    return worked.total_seconds()
