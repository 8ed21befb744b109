"""Nouns are frozen, slotted and keyword-only; ids sort by time; a window refuses nonsense."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell import domain
from quell.domain import QuellError, Window, fingerprint_of, new_id, time_of_id

NOUNS = [noun for noun in vars(domain).values() if inspect.isclass(noun) and dataclasses.is_dataclass(noun)]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)
def test_a_noun_is_frozen_slotted_and_keyword_only(noun: type) -> None:
    assert noun.__dataclass_params__.frozen  # type: ignore[attr-defined]  # set by the decorator
    assert "__slots__" in vars(noun)
    assert all(field.kw_only for field in dataclasses.fields(noun))
    assert noun.__doc__


MOMENTS = st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(one=MOMENTS, other=MOMENTS, entropy=st.binary(min_size=10, max_size=10))
def test_ids_of_one_kind_sort_by_time(one: datetime, other: datetime, entropy: bytes) -> None:
    early, late = sorted([one, other])
    first, second = new_id("inc", at=early, entropy=entropy), new_id("inc", at=late, entropy=entropy)
    assert first <= second
    assert abs(time_of_id(first) - early) < timedelta(milliseconds=1.1)


@pytest.mark.parametrize("text", ["", "inc", "inc_", "inc_01", "inc_" + "u" * 26, "x" * 30])
def test_what_is_not_an_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        time_of_id(text)


def test_a_window_is_half_open_and_aware() -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    window = Window(start=noon, end=noon + timedelta(minutes=5))
    before = window.before(length=timedelta(minutes=10), guard=timedelta(seconds=30))
    assert window.seconds == 300
    assert (before.end, before.seconds) == (noon - timedelta(seconds=30), 600)
    with pytest.raises(ValueError, match="end after"):
        Window(start=noon, end=noon)
    with pytest.raises(ValueError, match="aware"):
        Window(start=noon.replace(tzinfo=None), end=noon)


def test_a_fingerprint_does_not_depend_on_the_order_of_labels() -> None:
    one = fingerprint_of(source="detector", service="a", symptom="errors", labels={"x": "1", "y": "2"})
    assert one == fingerprint_of(source="detector", service="a", symptom="errors", labels={"y": "2", "x": "1"})
    assert one != fingerprint_of(source="detector", service="a", symptom="errors", labels={"x": "12"})
    assert len(one) == 16


def test_the_drawn_error_tree_is_the_real_one() -> None:
    drawn = {line.strip("│├└─ ").split()[0] for line in (QuellError.__doc__ or "").splitlines() if "──" in line}
    real: set[str] = set()
    waiting = QuellError.__subclasses__()
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if error.__module__.startswith("quell.domain"):
            real.add(error.__name__)
    assert drawn == real


def test_the_language_imports_no_third_party_module() -> None:
    code = "import sys; import quell, quell.domain; print(sorted(m for m in sys.modules if m.split('.')[0] in {'msgspec','pydantic','sqlalchemy','httpx2','click','opentelemetry','numpy','asyncio'}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
