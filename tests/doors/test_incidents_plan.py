"""Where an investigation looks: the window in trouble, and a baseline that is healthy."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.config import InvestigationSettings
from quell.domain import Window
from quell.incidents._plan import choose_baseline, choose_window, trouble_of
from tests._story import NOON, ONSET, alert

SETTINGS = InvestigationSettings()


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_the_window_begins_a_little_before_the_first_alert_and_ends_now() -> None:
    window, notes = choose_window(
        [alert(at=after(60)), alert("web", at=ONSET)], at=after(90), settings=SETTINGS, since_s=None
    )
    assert window == Window(start=ONSET - timedelta(seconds=30), end=after(90))
    assert notes == []


def test_old_trouble_is_looked_at_around_its_beginning() -> None:
    window, notes = choose_window([alert(at=ONSET)], at=after(7200), settings=SETTINGS, since_s=None)
    assert window.start < ONSET
    assert window.seconds == SETTINGS.window_minutes * 60
    assert "beginning" in notes[0]


def test_a_person_who_names_no_time_is_answered_about_what_is_firing_now() -> None:
    asked = replace(alert(at=after(90)), source="person")
    fires, is_over = alert("web", at=after(60)), alert("stock", at=after(-200), ends_at=after(-100))
    window, notes = choose_window([asked], at=after(90), settings=SETTINGS, since_s=None, elsewhere=[is_over, fires])
    assert window == Window(start=after(30), end=after(90))
    assert "firing" in notes[0]
    quiet, notes = choose_window([asked], at=after(90), settings=SETTINGS, since_s=None, elsewhere=[is_over])
    assert quiet.seconds == SETTINGS.window_minutes * 60
    assert "last 5 minutes" in notes[0]


def test_a_length_that_was_asked_for_is_taken_as_it_is() -> None:
    window, _ = choose_window([alert()], at=after(90), settings=SETTINGS, since_s=1800)
    assert window == Window(start=after(90 - 1800), end=after(90))


def test_an_alert_from_the_future_does_not_turn_the_window_around() -> None:
    window, _ = choose_window([alert(at=after(600))], at=after(90), settings=SETTINGS, since_s=None)
    assert window.end == after(90)


def test_the_baseline_leaves_earlier_incidents_out() -> None:
    window = Window(start=after(0), end=after(60))
    trouble = trouble_of([alert(at=after(-300), ends_at=after(-200))], at=after(60))
    assert trouble is not None
    baseline, notes = choose_baseline(window, trouble=[trouble], first=None, settings=SETTINGS)
    assert baseline.start >= trouble.end
    assert baseline.end <= window.start
    assert notes


def test_without_a_healthy_stretch_the_baseline_says_so() -> None:
    window = Window(start=after(0), end=after(60))
    always = Window(start=after(-360000), end=after(60))
    baseline, notes = choose_baseline(window, trouble=[always], first=None, settings=SETTINGS)
    assert baseline.end <= window.start
    assert "overlaps" in notes[0]


def test_the_time_before_there_was_telemetry_is_no_baseline() -> None:
    window = Window(start=after(0), end=after(60))
    baseline, notes = choose_baseline(window, trouble=[], first=after(-100), settings=SETTINGS)
    assert baseline.start == after(-100)
    assert "begins" in notes[0]


def test_a_short_healthy_stretch_is_better_than_one_in_trouble() -> None:
    window = Window(start=after(0), end=after(60))
    trouble = Window(start=after(-70), end=after(-10))
    baseline, _ = choose_baseline(window, trouble=[trouble], first=after(-110), settings=SETTINGS)
    assert baseline == Window(start=after(-110), end=after(-70))


@given(
    stretches=st.lists(st.tuples(st.integers(-5000, 200), st.integers(1, 900)), max_size=8),
    minutes=st.floats(1, 60, allow_nan=False),
)
def test_a_baseline_never_touches_the_window_nor_trouble_when_it_can_help_it(
    stretches: list[tuple[int, int]], minutes: float
) -> None:
    window = Window(start=after(0), end=after(60))
    trouble = [Window(start=after(start), end=after(start + length)) for start, length in stretches]
    settings = replace(SETTINGS, baseline_minutes=minutes)
    baseline, notes = choose_baseline(window, trouble=trouble, first=None, settings=settings)
    assert baseline.end <= window.start
    assert baseline.seconds <= minutes * 60 + 0.001
    if not any("overlaps" in note for note in notes):
        assert all(each.end <= baseline.start or baseline.end <= each.start for each in trouble)


@pytest.mark.parametrize("ends_at", [None, after(20)])
def test_trouble_lasts_until_its_alerts_ended_and_things_settled(ends_at: datetime | None) -> None:
    stretch = trouble_of([alert(ends_at=ends_at)], at=after(100))
    assert stretch is not None
    assert stretch.start < ONSET
    assert stretch.end > (ends_at or after(100))
