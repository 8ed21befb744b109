"""What is to be done next about an effect: pure rules, no I/O. The ledger does what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from quell.domain import Effect, EffectState, Ending, FrozenCall, Happened, Intent, NotHappened, Recovery, Unclear

Move: TypeAlias = Literal["send", "look", "give up", "stop"]
"""Send it (again), look whether it happened, leave it to people, or nothing: what is known stays."""

RESULT_KEPT_MAX_BYTES = 256_000
DETAIL_MAX = 2000

_SETTLED = frozenset({EffectState.DONE, EffectState.FAILED, EffectState.REVERTED})


def key_of(call: FrozenCall) -> str:
    """Return the idempotency key of a call: run, call id and digest, so that no other call can have it."""
    named = msgspec.json.encode([call.run, call.id, call.digest])
    return hashlib.sha256(named).hexdigest()


def next_move(effect: Effect, *, intent: Intent, now: datetime, can_look: bool) -> Move:
    """Say what may be done about an effect by its class, when no attempt of it is under way."""
    if effect.state in _SETTLED:
        return "stop"
    if effect.state is EffectState.INTENT:
        return "send"
    can_look = can_look and effect.recovery is not Recovery.BLIND
    if effect.state is EffectState.UNKNOWN:
        return "look" if can_look else "stop"
    may_resend: Mapping[Recovery, bool] = {
        Recovery.KEYED: _is_key_valid(effect, now=now, valid_s=intent.key_valid_s),
        Recovery.NATURAL: True,
        Recovery.PROBEABLE: False,
        Recovery.BLIND: False,
    }
    if may_resend[effect.recovery] and effect.attempts < intent.attempts_max:
        return "send"
    return "look" if can_look else "give up"


def after_attempt(effect: Effect, ending: Ending) -> EffectState | None:
    """Say where an attempt leaves its effect; None when that has to be found out by its class.

    That an attempt did nothing settles it only if no attempt before may have done something.
    """
    match ending:
        case Happened():
            return EffectState.DONE
        case NotHappened() if not effect.is_in_doubt:
            return EffectState.FAILED
        case _:
            return None


def after_look(effect: Effect, seen: Ending, *, intent: Intent) -> EffectState | None:
    """Say where a look leaves an effect; None when it certainly did not happen and may be sent again."""
    match seen:
        case Happened():
            return EffectState.DONE
        case Unclear():
            return EffectState.UNKNOWN
        case NotHappened():
            is_to_be_sent = (
                effect.recovery is Recovery.PROBEABLE
                and effect.state is EffectState.STARTED
                and effect.attempts < intent.attempts_max
            )
            return None if is_to_be_sent else EffectState.FAILED


def quiet_left_s(effect: Effect, *, intent: Intent, now: datetime) -> float:
    """Return how long a request of the last attempt may still arrive; a clock set back gives the whole time."""
    quiet_s = intent.timeout_s + intent.quiet_s
    gone_s = _gone_s(effect.sent_at, now=now)
    return quiet_s if gone_s < 0 else max(0.0, quiet_s - gone_s)


def is_too_late(effect: Effect, *, intent: Intent, now: datetime) -> bool:
    """Whether the start took so long that others may soon believe that nothing is on its way."""
    return not 0 <= _gone_s(effect.sent_at, now=now) <= intent.quiet_s / 2


def _gone_s(since: datetime | None, *, now: datetime) -> float:
    assert since is not None, "it was sent"
    return (now - since).total_seconds()


def _is_key_valid(effect: Effect, *, now: datetime, valid_s: float) -> bool:
    """Whether the other side still remembers the key; not believed of a clock that was set back."""
    return 0 <= _gone_s(effect.started_at, now=now) < valid_s
