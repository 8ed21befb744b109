"""Near-identical templates merge whatever their order, and words that mean a state do not."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from quell.signals._reader_patterns import Template, merge_templates

AT = datetime(2026, 11, 20, tzinfo=UTC)


def _template(text: str, *, count: int = 3, before: int = 0, service: str = "s", severity: str = "info") -> Template:
    return Template(
        service=service,
        severity=severity,
        template_id=text[:8],
        template=text,
        count=count,
        count_before=before,
        first_seen=AT,
        last_seen=AT,
        example=text,
    )


def test_a_word_with_many_values_becomes_a_hole_and_counts_add_up() -> None:
    merged = merge_templates(
        [
            _template(f"user {name} logged in")
            for name in ["ann", "bob", "cid", "dee", "eve", "fay", "gil", "hal", "ian"]
        ]
    )
    assert [(one.template, one.count) for one in merged] == [("user <*> logged in", 27)]


def test_states_stay_apart() -> None:
    states = [_template(f"VM {state} on host", count=500) for state in ("Started", "Paused", "Resumed", "Stopped")]
    assert len(merge_templates(states)) == 4


def test_many_values_with_huge_support_are_an_enumeration() -> None:
    verbs = [_template(f"did {verb} thing", count=100_000) for verb in "abcdefghijklmnop"]
    assert len(merge_templates(verbs)) == 16


def test_services_and_severities_never_merge() -> None:
    templates = [
        _template(f"user {name} in", service=service, severity=severity)
        for name in "abcdefghij"
        for service in ("x", "y")
        for severity in ("info", "error")
    ]
    assert len(merge_templates(templates)) == 4


words = st.sampled_from(["open", "close", "file", "user", "ann", "bob", "cid", "dee", "eve", "<*>"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(words, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=60, unique=True), st.integers()
)
def test_any_order_gives_the_same_templates_and_loses_no_count(texts: list[str], seed: int) -> None:
    templates = [_template(text, count=1 + len(text)) for text in texts]
    shuffled = list(templates)
    random.Random(seed).shuffle(shuffled)
    merged = merge_templates(templates)
    assert merge_templates(shuffled) == merged
    assert sum(one.count for one in merged) == sum(one.count for one in templates)
