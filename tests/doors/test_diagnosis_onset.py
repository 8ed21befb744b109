"""Trouble that has just begun, that is rare, or that an alert insists on: it is never called healthy."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate

import pytest

from quell.diagnosis import assert_cited, diagnose, explain
from quell.domain import (
    Category,
    ChangeKind,
    EdgeShift,
    Fact,
    OperationShift,
    Outcome,
    Survey,
    Symptom,
)
from tests.doors._diagnosis_story import ONSET, Story, alert

PART_FAILING = 0.5


def _thin(fact: Fact, *, now: float, before: float, begun: float) -> Fact:
    """Make the calls few, and let the trouble fill only the last part of the window; `begun` tells which."""
    row = fact.observation
    if not isinstance(row, OperationShift | EdgeShift):
        return fact
    calls, calls_before = round(row.calls * now), round(row.calls_before * before)
    late = round(calls * begun)
    failed = round(late * min(1.0, row.errors / max(1, row.calls)))
    if isinstance(row, EdgeShift):
        thin: OperationShift | EdgeShift = replace(
            row, calls=calls, calls_before=calls_before, errors=failed, calls_since=late, failed_since=failed
        )
    else:
        thin = replace(
            row,
            calls=calls,
            calls_before=calls_before,
            errors=failed,
            errors_before=0,
            calls_since=late,
            errors_since=failed,
            total_ms=row.total_ms * now,
            total_ms_before=row.total_ms_before * before,
            since=ONSET if failed else row.since,
        )
    return replace(fact, observation=thin)


def _flag_story(*, begun: float = 1 / 3, counted: bool = True) -> Survey:
    """A flag makes half of the calls of bill fail; a hundred calls of the window, forty of the baseline."""
    story = Story(3)
    story.change(ChangeKind.FLAG, "", at_s=-1, subject="round-totals", before="off", after="on")
    story.now.own_errors["bill"] = PART_FAILING
    story.log("bill", "flag round-totals: cannot charge half a cent", count=17)
    survey = story.survey()
    short = replace(survey.baseline, start=survey.baseline.end - timedelta(seconds=40))
    before = 0.13 * short.seconds / survey.baseline.seconds
    facts = tuple(_thin(f, now=0.13, before=before, begun=begun) for f in survey.facts)
    if not counted:
        facts = tuple(_uncounted(f) for f in facts)
    return replace(survey, baseline=short, facts=facts)


def _uncounted(fact: Fact) -> Fact:
    row = fact.observation
    if isinstance(row, OperationShift):
        return replace(fact, observation=replace(row, calls_since=None, errors_since=None))
    if isinstance(row, EdgeShift):
        return replace(fact, observation=replace(row, calls_since=None, failed_since=None))
    return fact


def test_a_fault_that_fills_a_third_of_the_window_is_judged_from_its_onset_on() -> None:
    survey = _flag_story()
    bill = next(
        f.observation
        for f in survey.facts
        if isinstance(f.observation, OperationShift) and f.observation.service == "bill"
    )
    assert bill.errors < 0.2 * bill.calls < bill.calls
    diagnosis = diagnose(survey, alerts=[alert("bill"), alert("web")])
    assert_cited(diagnosis, survey)
    finding = diagnosis.finding
    assert finding.outcome is Outcome.CAUSE_FOUND, explain(diagnosis, survey)
    assert (finding.category, finding.subject and finding.subject.name) == (Category.BAD_FLAG, "round-totals")
    assert any("bill POST /bill: 48% of calls fail" in line.says for line in diagnosis.impact), diagnosis.impact


def test_nobody_has_to_raise_an_alert_for_that() -> None:
    finding = diagnose(_flag_story()).finding
    assert (finding.outcome, finding.category) == (Outcome.CAUSE_FOUND, Category.BAD_FLAG)


@pytest.mark.parametrize("begun", [0.05, 0.1, 0.2])
def test_whatever_part_of_the_window_it_fills_it_is_never_called_healthy(begun: float) -> None:
    survey = _flag_story(begun=begun)
    failed = max(f.observation.errors for f in survey.facts if isinstance(f.observation, OperationShift))
    outcome = diagnose(survey).finding.outcome
    assert (outcome is Outcome.HEALTHY) == (failed < 4), (failed, outcome)


def test_a_source_that_cannot_count_since_the_onset_is_helped_by_the_alert() -> None:
    survey = _flag_story(begun=0.25, counted=False)
    finding = diagnose(survey, alerts=[alert("web")]).finding
    assert (finding.outcome, finding.category) == (Outcome.CAUSE_FOUND, Category.BAD_FLAG)


@pytest.mark.parametrize("symptom", [s for s in Symptom if s is not Symptom.NEW_ERRORS])
def test_a_firing_alert_is_never_answered_with_healthy(symptom: Symptom) -> None:
    survey = Story(1).survey()
    assert diagnose(survey).finding.outcome is Outcome.HEALTHY
    finding = diagnose(survey, alerts=[alert("bill", symptom)]).finding
    assert finding.outcome is Outcome.INCONCLUSIVE
    assert "bill" in finding.statement
    assert symptom.value in finding.statement


def test_an_alert_that_is_over_a_question_and_a_new_line_are_no_suffering() -> None:
    survey = Story(1).survey()
    over = replace(alert("bill"), status="resolved", ends_at=ONSET)
    asked = replace(alert("bill", Symptom.OTHER), source="person")
    for harmless in (over, asked, alert("bill", Symptom.NEW_ERRORS)):
        assert diagnose(survey, alerts=[harmless]).finding.outcome is Outcome.HEALTHY


def test_failures_that_come_as_often_as_ever_are_not_taken_for_an_onset() -> None:
    """Two of a hundred calls fail, now as before; the worst end of the window is picked as the onset every time."""
    taken_for_trouble = []
    for seed in range(60):
        rng = random.Random(seed)
        survey = Story(seed).survey()
        facts = tuple(_noisy(f, rng) for f in survey.facts)
        if diagnose(replace(survey, facts=facts)).finding.outcome is not Outcome.HEALTHY:
            taken_for_trouble.append(seed)
    assert len(taken_for_trouble) <= 1, taken_for_trouble


def _noisy(fact: Fact, rng: random.Random) -> Fact:
    row = fact.observation
    if not isinstance(row, OperationShift) or row.span_kind != "server":
        return fact
    buckets = [round(row.calls / 18)] * 18
    failed = [sum(rng.random() < 0.02 for _ in range(calls)) for calls in buckets]
    before = sum(rng.random() < 0.02 for _ in range(row.calls_before))
    ends = list(zip(accumulate(reversed(buckets)), accumulate(reversed(failed)), strict=True))
    calls_since, errors_since = max(ends, key=lambda end: end[1] / end[0])
    return replace(
        fact,
        observation=replace(
            row,
            calls=sum(buckets),
            errors=sum(failed),
            errors_before=before,
            calls_since=calls_since,
            errors_since=errors_since,
        ),
    )
