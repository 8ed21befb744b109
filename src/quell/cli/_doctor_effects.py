"""What `quell doctor` says of effects: those whose end nobody saw, and those that nothing here brings to an end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from quell.cli._check import Check

if TYPE_CHECKING:
    from quell.app import Office

_ROWS_MAX = 1_000
_LONG_AGO = timedelta(minutes=15)
"""Longer than any attempt, its quiet time and the look of a server at effects whose run is over."""


def effects(office: Office) -> Check:
    """Tell of effects that wait for people, of all tenants, and of those that were sent long ago and are open."""
    from quell.domain import EffectState

    with office.runs.database.reading() as connection:
        unknown = office.ledger.entries(connection, state=EffectState.UNKNOWN, rows_max=_ROWS_MAX)
        started = office.ledger.entries(connection, state=EffectState.STARTED, rows_max=_ROWS_MAX)
    before = office.clock() - _LONG_AGO
    open_ = [each for each in started if each.sent_at is not None and each.sent_at < before]
    if unknown:
        count = f"{_ROWS_MAX} or more" if len(unknown) == _ROWS_MAX else str(len(unknown))
        detail = f"nobody saw how {count} effects ended; the newest is {unknown[0].key[:16]} of {unknown[0].call.tool}"
        hint = "look, then `quell effect settle`; `quell effect list --unknown` names them"
        return Check(name="effects", status="warn", detail=detail, hint=hint)
    if open_:
        detail = f"{len(open_)} effects were sent more than 15 minutes ago and are open: whoever sent them is gone"
        hint = "`quell serve` goes on with their runs, or leaves them to people"
        return Check(name="effects", status="warn", detail=detail, hint=hint)
    return Check(name="effects", status="ok", detail="every effect that was sent has a known end, or is under way")
