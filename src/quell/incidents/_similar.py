"""Earlier incidents that resemble this one, and what differed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from quell.domain import Finding, Outcome, Stage, Subject
from quell.incidents._model import CaseFile, Similar

_CATEGORY_WEIGHT = 0.5
_SUBJECT_WEIGHT = 0.3
_SERVICES_WEIGHT = 0.2
_SCORE_MIN = 0.25
_SHOWN_MAX = 3


def find_similar(
    finding: Finding, *, services: Iterable[str], opened_at: datetime, earlier: Iterable[CaseFile]
) -> tuple[Similar, ...]:
    """Return the earlier incidents most like this one, best first; none when nothing is like it."""
    ours = frozenset(services)
    found = [one for case in earlier if case.incident.opened_at < opened_at for one in [_compare(finding, ours, case)]]
    kept = [one for one in found if one.score >= _SCORE_MIN]
    kept.sort(key=lambda one: (-one.score, -one.opened_at.timestamp(), one.incident))
    return tuple(kept[:_SHOWN_MAX])


def _compare(finding: Finding, services: frozenset[str], case: CaseFile) -> Similar:
    theirs = case.finding
    assert theirs is not None, "only cases with a finding are kept"
    same: list[str] = []
    differed: list[str] = []
    score = 0.0
    if finding.outcome is theirs.outcome is Outcome.CAUSE_FOUND:
        for weight, word, now, then in (
            (_CATEGORY_WEIGHT, "cause", finding.category, theirs.category),
            (_SUBJECT_WEIGHT, "object", _said(finding.subject), _said(theirs.subject)),
        ):
            if now == then:
                same.append(f"{word}: {now}")
                score += weight
            else:
                differed.append(f"{word}: {then} then, {now} now")
    elif finding.outcome is not theirs.outcome:
        differed.append(f"outcome: {theirs.outcome} then")
    others = frozenset(case.incident.services)
    union = services | others
    overlap = len(services & others) / len(union) if union else 0.0
    score += _SERVICES_WEIGHT * overlap
    if services & others:
        same.append(f"services: {', '.join(sorted(services & others))}")
    if others - services:
        differed.append(f"then also {', '.join(sorted(others - services))}")
    if services - others:
        differed.append(f"now also {', '.join(sorted(services - others))}")
    return Similar(
        incident=case.incident.id,
        title=case.incident.title,
        opened_at=case.incident.opened_at,
        outcome=theirs.outcome,
        category=theirs.category,
        subject=theirs.subject,
        score=round(score, 3),
        same=tuple(same),
        differed=tuple(differed),
        ending=_ending(case),
    )


def _said(subject: Subject | None) -> str | None:
    return f"{subject.kind} {subject.name}" if subject else None


def _ending(case: CaseFile) -> str:
    incident = case.incident
    if incident.stage is Stage.RESOLVED and incident.closed_at:
        minutes = (incident.closed_at - incident.opened_at).total_seconds() / 60
        return f"resolved after {minutes:.0f} min"
    return f"{incident.stage}"
