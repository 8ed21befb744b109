"""What readers said, on its way through the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import get_args

import msgspec

from quell.domain import (
    Answer,
    EdgeShift,
    Evidence,
    Fact,
    Gap,
    Observation,
    OperationShift,
    Scope,
    Survey,
    Window,
)

OWN_SERVICE = "quell"
"""What Quell calls itself in its own telemetry; left out of an investigation that does not ask for it."""

_KINDS: Mapping[str, type[Observation]] = {
    str(field.default): shape for shape in get_args(Observation) for field in fields(shape) if field.name == "kind"
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _FactWire:
    evidence: Evidence
    score: float
    kind: str
    row: msgspec.Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyWire:
    """A survey as the journal keeps it."""

    scope: Scope
    window: Window
    baseline: Window
    facts: tuple[_FactWire, ...]
    gaps: tuple[Gap, ...]


def survey_to_wire(survey: Survey) -> SurveyWire:
    """Write a survey so that it can be read back with its typed rows."""
    facts = tuple(
        _FactWire(
            evidence=fact.evidence,
            score=fact.score,
            kind=fact.observation.kind,
            row=msgspec.Raw(msgspec.json.encode(fact.observation)),
        )
        for fact in survey.facts
    )
    return SurveyWire(scope=survey.scope, window=survey.window, baseline=survey.baseline, facts=facts, gaps=survey.gaps)


def survey_of_wire(wire: SurveyWire) -> Survey:
    """Read a survey back."""
    facts = tuple(
        Fact(
            evidence=fact.evidence, score=fact.score, observation=msgspec.json.decode(fact.row, type=_KINDS[fact.kind])
        )
        for fact in wire.facts
    )
    return Survey(scope=wire.scope, window=wire.window, baseline=wire.baseline, facts=facts, gaps=wire.gaps)


def edges_of(answers: Iterable[Answer | Gap]) -> set[tuple[str, str]]:
    """Return who calls whom, as the answers tell."""
    return {
        (row.caller, row.callee)
        for answer in answers
        if isinstance(answer, Answer)
        for row in answer.rows
        if isinstance(row, EdgeShift) and row.caller and row.callee
    }


def names_of(answers: Iterable[Answer | Gap]) -> tuple[set[str], dict[str, str]]:
    """Return the services that the answers name, and which service serves which operation."""
    services: set[str] = set()
    operations: dict[str, str] = {}
    for answer in answers:
        for row in answer.rows if isinstance(answer, Answer) else ():
            if isinstance(row, OperationShift):
                services.add(row.service)
                if row.span_kind in {"server", "consumer"}:
                    operations[row.operation] = row.service
            elif isinstance(row, EdgeShift):
                services |= {row.caller, row.callee}
    return services - {"", OWN_SERVICE}, operations


def without_own(answer: Answer | Gap, *, focus: Sequence[str]) -> Answer | Gap:
    """Leave out what Quell tells about itself, unless it is what was asked about."""
    if isinstance(answer, Gap) or OWN_SERVICE in focus:
        return answer
    rows = tuple(row for row in answer.rows if OWN_SERVICE not in _services_of(row))
    return answer if len(rows) == len(answer.rows) else replace(answer, rows=rows)


def _services_of(row: Observation) -> tuple[str, ...]:
    return (row.caller, row.callee) if isinstance(row, EdgeShift) else (row.service,)
