"""The engine's one verb: from a survey to a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from quell.diagnosis._blame import Ledger, settle_blame, unplanned_exits
from quell.diagnosis._candidate import Candidate
from quell.diagnosis._catalogue import CATALOGUE
from quell.diagnosis._changes import shown
from quell.diagnosis._confidence import Judgement, are_calls_read, healthy_judgement, is_cause, judge
from quell.diagnosis._rank import rank_candidates
from quell.diagnosis._scene import Scene, build_scene
from quell.diagnosis._stores import suspect_queues
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import (
    Alert,
    Category,
    ChangeKind,
    Citation,
    Confidence,
    Diagnosis,
    Finding,
    Hypothesis,
    Outcome,
    Subject,
    Survey,
    Symptom,
    one_line,
)

Status: TypeAlias = Literal["open", "supported", "weakened", "refuted", "confirmed"]


def diagnose(survey: Survey, *, alerts: Sequence[Alert] = ()) -> Diagnosis:
    """Rank what may have caused the trouble of a survey, with evidence for and against each.

    Pure and deterministic: the same facts, gaps and alerts in any order give the same diagnosis.
    """
    scene = build_scene(survey, alerts)
    ledger = settle_blame(scene)
    ranked = rank_candidates(scene, ledger)
    impact = _impact(scene, ledger)
    causes = [c for c in ranked if is_cause(scene, c)]
    calm = not ledger.of and not causes and (not ledger.symptoms or bool(ledger.blips))
    calm = calm and (bool(ledger.blips) or not _contradicting(scene))
    ordered = [*causes, *(c for c in ranked if c not in causes)][: THRESHOLDS.hypotheses_max]
    if causes:
        finding = _found(scene, causes[0], ranked)
    elif (
        calm and (healthy := healthy_judgement(scene)).confidence is not Confidence.NONE and not _unknown_service(scene)
    ):
        finding = _healthy(scene, ledger, healthy)
        ordered = []
    else:
        finding = _inconclusive(scene, impact, ordered)
    return Diagnosis(
        finding=finding,
        hypotheses=tuple(_hypothesis(scene, c, ranked, number) for number, c in enumerate(ordered, start=1)),
        impact=impact,
        victims=tuple(sorted(ledger.victims.items())),
    )


def contributions_of(survey: Survey, alerts: Sequence[Alert]) -> tuple[Scene, Ledger, list[Candidate]]:
    """Return what the engine sees inside, for explaining it."""
    scene = build_scene(survey, alerts)
    ledger = settle_blame(scene)
    return scene, ledger, rank_candidates(scene, ledger)


def _found(scene: Scene, top: Candidate, ranked: Sequence[Candidate]) -> Finding:
    judgement = judge(scene, top, ranked)
    return Finding(
        outcome=Outcome.CAUSE_FOUND,
        statement=statement_of(top),
        category=top.category,
        subject=top.subject,
        since=top.since,
        confidence=judgement.confidence,
        cap=judgement.cap,
        citations=top.support[: THRESHOLDS.citations_max],
    )


def _healthy(scene: Scene, ledger: Ledger, judgement: Judgement) -> Finding:
    made = scene.changes_of(ChangeKind.DEPLOY, ChangeKind.CONFIG, ChangeKind.FLAG)
    cited = [Citation(evidence=i, says="changed, and nothing got worse after it") for c in made for i in c.ids[:1]]
    cited.extend(_steady(scene))
    names = sorted({c.row.service or "all services" for c in made})
    extra = f" Changes of {', '.join(shown(n) for n in names[:3])} in this time did no harm." if names else ""
    statement = "Nothing that users feel got worse: errors and latency of every service are within their baseline."
    if ledger.blips:
        restarted = ", ".join(sorted({shown(service) for service, _ in ledger.blips}))
        statement = (
            f"Some calls failed while {restarted} was restarted on purpose; that is over, and it answers as before."
        )
        cited[:0] = [Citation(evidence=e.id, says="failed only around the restart") for _, e in ledger.blips]
    return Finding(
        outcome=Outcome.HEALTHY,
        statement=f"{statement}{extra}",
        category=None,
        subject=None,
        since=None,
        confidence=judgement.confidence,
        cap=judgement.cap,
        citations=tuple(cited[: THRESHOLDS.citations_max]),
    )


def _steady(scene: Scene) -> list[Citation]:
    """Cite what shows best that calls are well: the busiest operations, or edges, that neither fail more nor take longer."""
    operations = sorted((o for ops in scene.operations.values() for o in ops), key=lambda o: (-o.row.calls, o.id))
    well = [o.id for o in operations if not o.errors_added and not o.ms_added]
    edges = sorted(scene.edges, key=lambda e: (-e.row.calls, e.id))
    if not well:
        well = [e.id for e in edges if not e.errors_added and not e.own_ms_added]
    return [Citation(evidence=i, says="its calls neither fail more nor take longer than before") for i in well[:3]]


def _inconclusive(scene: Scene, impact: tuple[Citation, ...], ordered: Sequence[Candidate]) -> Finding:
    unknown = _unknown_service(scene)
    if not scene.survey.facts:
        statement = "There is no telemetry for this window, so nothing can be said about it."
    elif unknown:
        statement = f"Nothing is known about {shown(unknown)}: no telemetry names it in this window."
    elif not are_calls_read(scene) and not scene.edges:
        statement = "Calls of services could not be seen, so it is not known whether anything is wrong."
    elif ordered:
        statement = f"Something is wrong, but no cause passes the bar; the nearest is: {statement_of(ordered[0])}"
    elif not impact and (contradicting := _contradicting(scene)):
        alert = contradicting[0]
        place, what = shown(alert.service) or "the system", alert.symptom.value.replace("_", " ")
        statement = f"An alert about {place} is firing ({what}), and nothing that was read shows why."
    else:
        statement = "Something is wrong, but nothing that was seen explains it."
    missing = sorted({g.question.value.replace("_", " ") for g in scene.survey.gaps})
    cap = f"could not read: {', '.join(missing)}" if missing else "the evidence carries no claim"
    return Finding(
        outcome=Outcome.INCONCLUSIVE,
        statement=statement,
        category=None,
        subject=None,
        since=None,
        confidence=Confidence.NONE,
        cap=cap,
        citations=impact[: THRESHOLDS.citations_max],
    )


def _contradicting(scene: Scene) -> list[Alert]:
    """Return the alerts that forbid to call the system healthy: users or machines suffer; a new log line is no suffering."""
    return [
        a for a in scene.alerts if a.status == "firing" and a.source != "person" and a.symptom is not Symptom.NEW_ERRORS
    ]


def _unknown_service(scene: Scene) -> str:
    """Return the service that every firing alert names and no fact knows, or nothing."""
    named = sorted({a.service for a in scene.alerts if a.service and a.status == "firing"})
    known = {*scene.services, *scene.stores}
    return named[0] if named and not known & set(named) else ""


def _hypothesis(scene: Scene, candidate: Candidate, ranked: Sequence[Candidate], number: int) -> Hypothesis:
    return Hypothesis(
        id=f"H{number}",
        category=candidate.category,
        subject=candidate.subject,
        statement=statement_of(candidate),
        since=candidate.since,
        status=_status(scene, candidate),
        confidence=judge(scene, candidate, ranked).confidence,
        score=round(candidate.score, 3),
        support=candidate.support,
        against=candidate.against,
    )


def _status(scene: Scene, candidate: Candidate) -> Status:
    doubt = -sum(c.points for c in candidate.contributions if c.points < 0)
    if candidate.has("no_self_badness", "explained_by_exit", "explained_by_memory") or doubt >= 0.6 * (
        candidate.score + doubt
    ):
        return "refuted" if doubt >= 0.6 * (candidate.score + doubt) else "weakened"
    if doubt > 0:
        return "weakened"
    return "supported" if is_cause(scene, candidate) else "open"


def statement_of(candidate: Candidate) -> str:
    """Say a candidate in one sentence: what, where, since when."""
    since = f", since {_clock(candidate.since)}" if candidate.since else ""
    detail = f" ({candidate.detail})" if candidate.detail else ""
    return one_line(f"{CATALOGUE[candidate.category].title} {_place(candidate.subject)}{detail}{since}.", chars_max=300)


def _place(subject: Subject) -> str:
    name = shown(subject.name)
    caller, arrow, callee = name.partition("->")
    if subject.kind == "edge" and arrow:
        return f"between {caller} and {callee}"
    return f"of {name}" if subject.kind == "unknown" else f"of {subject.kind} {name}"


def _clock(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S UTC")


def _impact(scene: Scene, ledger: Ledger) -> tuple[Citation, ...]:
    """Say what is going on: every shifted operation, what grew, what ended; worst first."""
    lines: list[tuple[float, Citation]] = []
    for service in sorted(ledger.symptoms):
        for operation in scene.operations.get(service, []):
            row = operation.row
            if operation.errors_added:
                part = operation.failing
                before = row.errors_before / max(1, row.calls_before)
                says = f"{shown(service)} {shown(row.operation)}: {part.share:.0%} of calls fail ({before:.1%} before)"
                lines.append((operation.errors_added * 10, Citation(evidence=operation.id, says=says)))
            elif operation.ms_added:
                mean, before = row.total_ms / row.calls, row.total_ms_before / row.calls_before
                says = f"{shown(service)} {shown(row.operation)}: {mean:.0f} ms on average ({before:.0f} ms before)"
                lines.append((operation.ms_added / max(before, 1.0), Citation(evidence=operation.id, says=says)))
            elif not row.calls and row.calls_before:
                says = f"{shown(service)} {shown(row.operation)}: no calls any more"
                lines.append((row.calls_before * scene.pace * 10, Citation(evidence=operation.id, says=says)))
    for edge in scene.edges:
        if edge.errors_added and edge.row.caller not in ledger.symptoms:
            says = f"{shown(edge.name)}: {edge.errors_added:.0f} of {edge.row.calls} calls fail"
            lines.append((edge.errors_added * 5, Citation(evidence=edge.id, says=says)))
    for service in scene.services:
        lines.extend(
            (50.0, Citation(evidence=c.ids[0], says=f"{shown(service)}: the process ended unplanned"))
            for c in unplanned_exits(scene, service)[:2]
        )
    for backlog in suspect_queues(scene, ledger):
        lines.extend(
            (20.0, Citation(evidence=i, says=f"{shown(backlog.subject.name)}: more waits in the queue"))
            for i in _grown(backlog)
        )
    ordered = sorted(lines, key=lambda line: (-line[0], line[1].evidence))
    unique = {c.evidence: c for _, c in reversed(ordered)}
    return tuple(
        sorted(unique.values(), key=lambda c: next(i for i, (_, o) in enumerate(ordered) if o.evidence == c.evidence))
    )[:12]


def _grown(backlog: Candidate) -> tuple[str, ...]:
    assert backlog.category is Category.QUEUE_BACKLOG
    return next((c.ids[:1] for c in backlog.contributions if c.name == "queue_growth"), ())
