"""Every kind of fault is named first, with its object, from a survey full of noise and victims."""

from __future__ import annotations

from datetime import timedelta

import pytest

from quell.diagnosis import assert_cited, diagnose, next_steps
from quell.domain import Alert, Category, ChangeKind, Confidence, Diagnosis, Outcome, Symptom
from tests.doors._diagnosis_faults import FAULTS, tell
from tests.doors._diagnosis_story import ONSET, Story, alert


def diagnosed(story: Story, *alerts: Alert) -> Diagnosis:
    survey = story.survey()
    diagnosis = diagnose(survey, alerts=alerts)
    assert_cited(diagnosis, survey)
    return diagnosis


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fault_is_named_first_with_its_object_and_its_onset(name: str, seed: int) -> None:
    _, category, (kind, subject) = FAULTS[name]
    diagnosis = diagnosed(tell(name, seed=seed))
    finding = diagnosis.finding
    assert finding.outcome is Outcome.CAUSE_FOUND
    assert finding.subject is not None
    assert (finding.category, finding.subject.kind, finding.subject.name) == (category, kind, subject)
    assert finding.confidence in {Confidence.MEDIUM, Confidence.HIGH}
    assert finding.since is not None
    assert abs(finding.since - ONSET) <= timedelta(seconds=15)
    assert diagnosis.hypotheses[0].status in {"supported", "weakened"}
    assert diagnosis.impact, "what is going on must be said"
    assert subject.split("->", maxsplit=1)[0] in finding.statement


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_is_blamed_on_a_change_long_ago_or_on_a_bystander(name: str) -> None:
    diagnosis = diagnosed(tell(name), alert("web"))
    for hypothesis in diagnosis.hypotheses[1:]:
        assert hypothesis.score <= diagnosis.hypotheses[0].score
    bystanders = {"search", "worker"} - {FAULTS[name][2][1]}
    blamed = [
        h
        for h in diagnosis.hypotheses
        if h.category in {Category.BAD_RELEASE, Category.BAD_CONFIG} and h.subject.name in bystanders
    ]
    assert not blamed


@pytest.mark.parametrize("name", FAULTS)
def test_every_cause_comes_with_steps_that_name_its_object_and_end_with_a_verification(name: str) -> None:
    steps = next_steps(diagnosed(tell(name)))
    assert len(steps) >= 3
    assert any(FAULTS[name][2][1] in step for step in steps)
    assert steps[-1].startswith("Verify")


def test_callers_two_hops_away_are_victims_of_what_they_wait_for() -> None:
    victims = dict(diagnosed(tell("cpu_hog")).victims)
    assert victims["web"] == "api"
    assert victims["api"] == "stock"
    assert "stock" not in victims


def test_a_victim_of_a_slow_wire_suffers_from_the_edge() -> None:
    victims = dict(diagnosed(tell("latency_between")).victims)
    assert victims["api"] == "api->bill"


def test_a_pool_that_fills_because_its_database_got_slow_is_explained_by_the_database() -> None:
    diagnosis = diagnosed(tell("slow_query"))
    pool = next(h for h in diagnosis.hypotheses if h.category is Category.POOL_EXHAUSTION)
    assert pool.against
    assert pool.score < diagnosis.hypotheses[0].score


def test_a_change_of_a_service_without_trouble_of_its_own_is_not_to_blame() -> None:
    story = tell("cpu_hog")
    story.change(ChangeKind.DEPLOY, "bill", at_s=-2, before="v3", after="v4")
    diagnosis = diagnosed(story)
    assert diagnosis.finding.category is Category.CPU_SATURATION
    release = next(h for h in diagnosis.hypotheses if h.category is Category.BAD_RELEASE)
    assert release.status == "refuted"
    assert release.against


def test_all_edges_into_a_service_slow_together_blame_the_service_and_not_the_wires() -> None:
    story = Story()
    story.now.gap_ms["api", "stock"] = story.now.gap_ms["search", "stock"] = 150
    finding = diagnosed(story).finding
    assert finding.subject is not None
    assert finding.subject.name == "stock"


def test_all_edges_out_of_a_service_slow_together_blame_the_service_and_not_the_wires() -> None:
    story = Story()
    for pair in (("bill", "maindb"), ("bill", "bank")):
        story.now.gap_ms[pair] = 150
    finding = diagnosed(story).finding
    assert finding.subject is not None
    assert finding.subject.name == "bill"


def test_a_clear_place_without_a_known_kind_is_novel_and_never_sure() -> None:
    story = Story()
    story.noise()
    story.now.own_ms["bill"] = 200
    finding = diagnosed(story).finding
    assert (finding.category, finding.subject and finding.subject.name) == (Category.NOVEL, "bill")
    assert finding.confidence in {Confidence.LOW, Confidence.MEDIUM}
    assert finding.cap


def test_the_entry_that_takes_no_calls_any_more_is_down() -> None:
    story = Story()
    story.now.rate = 0.0
    story.exit("web", "crashed (1)")
    finding = diagnosed(story, alert("web", Symptom.SILENCE)).finding
    assert (finding.category, finding.subject and finding.subject.name) == (Category.DEPENDENCY_DOWN, "web")


def test_among_equal_suspects_the_first_mover_wins() -> None:
    early, late = Story(), Story()
    for story, (first, second) in ((early, ("search", "bill")), (late, ("bill", "search"))):
        story.now.own_ms["search"], story.now.own_ms["bill"] = 147, 125
        story.metric(first, "process.cpu.utilization", 0.2, 0.98, at_s=-20)
        story.metric(second, "process.cpu.utilization", 0.2, 0.98, at_s=25)
    named = [diagnosed(story).finding.subject for story in (early, late)]
    assert [s.name for s in named if s is not None] == ["search", "bill"]
