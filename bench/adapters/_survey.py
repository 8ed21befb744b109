"""Make a survey from bare observations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from quell.domain import Alert, Evidence, Fact, Gap, Observation, QuestionKind, Scope, Severity, Survey, Symptom, Window

QUESTIONS: Mapping[str, QuestionKind] = {
    "operation_shift": QuestionKind.ERROR_RATES,
    "edge_shift": QuestionKind.EDGE_GAPS,
    "pattern_shift": QuestionKind.NEW_PATTERNS,
    "flow_break": QuestionKind.FLOW_BREAKS,
    "metric_shift": QuestionKind.METRIC_SHIFTS,
    "observed_change": QuestionKind.CHANGES,
}


def moment(seconds: float) -> datetime:
    """Turn unix seconds into an aware moment."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def survey_of(
    rows: Iterable[Observation], *, window: Window, baseline: Window, unread: Iterable[QuestionKind]
) -> Survey:
    """Number the rows and note what the set does not hold."""
    facts = []
    for number, row in enumerate(rows, start=1):
        evidence = Evidence(
            id=f"E{number}",
            source="set",
            question=QUESTIONS[row.kind],
            query="file",
            window=window,
            excerpt=repr(row)[:200],
            digest=hashlib.sha256(repr(row).encode()).hexdigest(),
        )
        facts.append(Fact(evidence=evidence, observation=row, score=0.0))
    gaps = tuple(
        Gap(question=kind, source="set", query="", reason="unsupported", detail="not in the set") for kind in unread
    )
    return Survey(scope=Scope(), window=window, baseline=baseline, facts=tuple(facts), gaps=gaps)


def alert_of(service: str, symptom: Symptom, at: datetime) -> Alert:
    """Make the alert that a set says fired; an empty service means that it names none."""
    return Alert(
        id="alr_set",
        fingerprint="0" * 16,
        source="alertmanager",
        name=symptom.value,
        service=service,
        symptom=symptom,
        severity=Severity.CRITICAL,
        status="firing",
        summary="",
        starts_at=at,
        ends_at=None,
        received_at=at,
        labels=(),
    )
