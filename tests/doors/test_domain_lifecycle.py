"""The life-cycle tables: nothing leaves them, every end is an end."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.domain import (
    APPROVAL_NEXT,
    CHANGE_NEXT,
    EFFECT_NEXT,
    INCIDENT_NEXT,
    RUN_NEXT,
    ApprovalStatus,
    ChangeStatus,
    EffectState,
    RefusedError,
    RunStatus,
    Stage,
    step_to,
)

TABLES: list[tuple[type[StrEnum], Mapping[StrEnum, frozenset[StrEnum]], StrEnum]] = [
    (Stage, INCIDENT_NEXT, Stage.DETECTED),  # type: ignore[list-item]  # Mapping is invariant in its key
    (RunStatus, RUN_NEXT, RunStatus.QUEUED),  # type: ignore[list-item]
    (ApprovalStatus, APPROVAL_NEXT, ApprovalStatus.REQUESTED),  # type: ignore[list-item]
    (EffectState, EFFECT_NEXT, EffectState.INTENT),  # type: ignore[list-item]
    (ChangeStatus, CHANGE_NEXT, ChangeStatus.INTENDED),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("states", "table", "first"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_state_has_a_row_and_can_be_reached_from_the_first(
    states: type[StrEnum], table: Mapping[StrEnum, frozenset[StrEnum]], first: StrEnum
) -> None:
    assert set(table) == set(states)
    reached = {first}
    while more := {then for now in reached for then in table[now]} - reached:
        reached |= more
    assert reached == set(states)
    assert any(not table[state] for state in states), "a life must be able to end"


@given(wishes=st.lists(st.sampled_from(list(Stage)), max_size=20))
def test_no_sequence_of_wishes_leaves_the_table_of_an_incident(wishes: list[Stage]) -> None:
    now = Stage.DETECTED
    for wish in wishes:
        if wish in INCIDENT_NEXT[now]:
            assert step_to(INCIDENT_NEXT, now, wish) == wish
            now = wish
        else:
            with pytest.raises(RefusedError) as refusal:
                step_to(INCIDENT_NEXT, now, wish)
            assert str(now) in str(refusal.value)
            assert refusal.value.hint


def test_a_resolved_incident_stays_resolved() -> None:
    with pytest.raises(RefusedError, match="resolved"):
        step_to(INCIDENT_NEXT, Stage.RESOLVED, Stage.INVESTIGATING)
