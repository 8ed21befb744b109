"""The ladder of autonomy as a pure function of its records: whoever holds them computes the same level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from quell.domain import (
    AutonomyRecord,
    AutonomyScope,
    AutonomyView,
    Confirmation,
    JournalError,
    Level,
    Standing,
    Tally,
    TrialOutcome,
    TrialSource,
)
from quell.governance._evidence import refutes, trials_needed
from quell.governance._plan import person

CLAIMS: Mapping[Level, float | None] = {
    Level.PROPOSE: None,
    Level.APPROVE_EACH: 0.80,
    Level.REVERSIBLE: 0.90,
    Level.REVIEWED: 0.95,
    Level.CLOSED_LOOP: 0.99,
}
"""Share of successes that has to be proved before a level; None: proposing changes nothing, a person's word is enough."""

QUORUM: Mapping[Level, int] = {
    Level.PROPOSE: 1,
    Level.APPROVE_EACH: 1,
    Level.REVERSIBLE: 1,
    Level.REVIEWED: 2,
    Level.CLOSED_LOOP: 2,
}
"""People who have to confirm; at least one of them does not own the agent."""

FLOOR = 0.90
WATCHED_MAX = 200
"""The floor begins anew after so many live trials, or else a long good record would hide what goes wrong today."""
RECENT_MAX = 10
REVERTS_MAX = 2
CONFIRMATION_LASTS = timedelta(hours=72)
_NO_TALLY = Tally()


def recompute(records: Iterable[AutonomyRecord]) -> Standing:
    """Return what the records of one scope add up to. Raises JournalError when one is missing among them."""
    standing = Standing()
    histories: dict[str, list[AutonomyRecord]] = defaultdict(list)
    for record in records:
        if record.seq != standing.seq + 1:
            raise JournalError(
                f"records of autonomy are missing: {record.seq} follows {standing.seq}",
                hint="compare the records with the audit log",
            )
        history = histories[record.ref] if record.ref else []
        standing = follow(standing, record, history=history)
        history.append(record)
    return standing


def follow(standing: Standing, record: AutonomyRecord, *, history: Sequence[AutonomyRecord] = ()) -> Standing:
    """Return the standing after one more record; `history` holds the earlier records about the same `ref`.

    A record that may not stand where it stands, such as a confirmation without evidence, changes nothing.
    """
    held = replace(standing, seq=record.seq)
    if record.kind == "confirmation":
        return _confirmed(held, record)
    if record.kind == "demotion":
        return _demoted(held, record)
    if not is_next(record, history=history):
        return held
    return _judged(_counted(held, record, history=history), record)


def is_next(record: AutonomyRecord, *, history: Sequence[AutonomyRecord]) -> bool:
    """Tell whether a trial is the first record of its `ref`, or a review says worse of it, or agrees with it."""
    if record.kind == "trial":
        return not history
    return bool(history) and _rank(record) > _rank(history[-1])


def blockers(standing: Standing, *, to: Level) -> tuple[str, ...]:
    """Say what stands against a level now, apart from people's words; nothing when it can be confirmed."""
    if to != standing.level + 1:
        return (f"from level {standing.level} only level {standing.level + 1} can be reached",)
    found = []
    if needed := needed_for(standing, to=to):
        kind = "live trials" if to > Level.APPROVE_EACH else "trials"
        found.append(f"{needed} more agreed successes in a row must prove a share above {CLAIMS[to]:.2f} of {kind}")
    if to > Level.APPROVE_EACH and _reverts(standing) >= REVERTS_MAX:
        found.append(f"{_reverts(standing)} of the last {RECENT_MAX} live outcomes were reverted")
    return tuple(found)


def needed_for(standing: Standing, *, to: Level) -> int:
    """Count the agreed successes in a row that are still needed for a level."""
    claim = CLAIMS[to]
    if claim is None:
        return 0
    # Both must prove it. All trials of the version: or else every demotion would buy another chance of luck.
    # Those since the last demotion: or else an old record would outweigh what has just gone wrong.
    is_live = to > Level.APPROVE_EACH
    both = (standing.live, standing.live_since) if is_live else (standing.every, standing.every_since)
    return max(trials_needed(tally, claim=claim) for tally in both)


def view(scope: AutonomyScope, standing: Standing) -> AutonomyView:
    """Show a standing to people."""
    if standing.level == Level.CLOSED_LOOP:
        return AutonomyView(
            scope=scope,
            standing=standing,
            next_level=None,
            claim=None,
            trials_needed=0,
            confirmations_needed=0,
            blockers=("there is no level above",),
        )
    to = Level(standing.level + 1)
    return AutonomyView(
        scope=scope,
        standing=standing,
        next_level=to,
        claim=CLAIMS[to],
        trials_needed=needed_for(standing, to=to),
        confirmations_needed=QUORUM[to],
        blockers=blockers(standing, to=to),
    )


def _counted(held: Standing, record: AutonomyRecord, *, history: Sequence[AutonomyRecord]) -> Standing:
    first = history[0] if history else record
    last = history[-1] if history else None
    was, now = _worth(last), _worth(record)
    is_live = first.source is TrialSource.LIVE
    is_since = first.seq > held.since_seq

    def moved(tally: Tally, *, counts: bool) -> Tally:
        return _moved(tally, was=was, now=now) if counts else tally

    if is_live and not history and held.watched.successes + held.watched.failures >= WATCHED_MAX:
        held = replace(held, watched=_NO_TALLY, watch_seq=held.seq - 1)
    is_watched = is_live and first.seq > held.watch_seq
    return replace(
        held,
        live=moved(held.live, counts=is_live),
        live_since=moved(held.live_since, counts=is_live and is_since),
        every=moved(held.every, counts=True),
        every_since=moved(held.every_since, counts=is_since),
        watched=_moved(held.watched, was=_end(last), now=_end(record)) if is_watched else held.watched,
        unagreed=held.unagreed + _is_unagreed(record) - _is_unagreed(last),
        recent=(*held.recent, first.outcome)[-RECENT_MAX:]
        if is_live and not history and first.outcome
        else held.recent,
        # Whoever confirmed did so before they could know of this failure.
        pending=() if now < 0 <= was else held.pending,
    )


def _judged(held: Standing, record: AutonomyRecord) -> Standing:
    """Demote at once when a rule says so."""
    if record.outcome is TrialOutcome.VIOLATION:
        return _fallen(held, to=Level.PROPOSE, at=record.at, why=f"{record.ref} broke a policy")
    if record.is_severe:
        why = f"{record.ref} caused an incident of the highest severity"
        return _fallen(held, to=Level.PROPOSE, at=record.at, why=why)
    if held.level <= Level.APPROVE_EACH:
        return held
    if _reverts(held) >= REVERTS_MAX:
        why = f"{_reverts(held)} of the last {RECENT_MAX} live outcomes were reverted"
        return _fallen(held, to=Level.APPROVE_EACH, at=record.at, why=why)
    if refutes(held.watched, floor=FLOOR):
        why = f"the share of successes is proved to be below {FLOOR:.2f}"
        return _fallen(held, to=Level.APPROVE_EACH, at=record.at, why=why)
    return held


def _fallen(held: Standing, *, to: Level, at: datetime, why: str) -> Standing:
    level = min(held.level, to)
    moved = _at(held, level, at=at if level != held.level else held.level_at, why=why)
    return replace(moved, since_seq=held.seq, live_since=_NO_TALLY, every_since=_NO_TALLY)


def _at(held: Standing, level: Level, *, at: datetime | None, why: str) -> Standing:
    """Stand on a level from now on."""
    return replace(held, level=level, level_at=at, why=why, watched=_NO_TALLY, watch_seq=held.seq, pending=())


def _confirmed(held: Standing, record: AutonomyRecord) -> Standing:
    if record.to is None or not record.by or not record.is_approver or blockers(held, to=record.to):
        return held
    word = Confirmation(by=record.by, to=record.to, at=record.at, is_owner=record.is_owner)
    others = tuple(
        other
        for other in held.pending
        if person(other.by) != person(word.by) and abs(word.at - other.at) <= CONFIRMATION_LASTS
    )
    words = (*others, word)
    if len(words) < QUORUM[record.to] or all(each.is_owner for each in words):
        return replace(held, pending=words)
    why = f"confirmed by {', '.join(each.by for each in words)}: {record.reason}"
    return _at(held, record.to, at=record.at, why=why)


def _demoted(held: Standing, record: AutonomyRecord) -> Standing:
    """Follow a person's word; the evidence stands, for a person who is careful proves nothing against the agent."""
    if record.to is None or not record.by or record.to >= held.level:
        return held
    return _at(held, record.to, at=record.at, why=f"demoted by {record.by}: {record.reason}")


def _moved(tally: Tally, *, was: int, now: int) -> Tally:
    return Tally(
        successes=tally.successes + (now > 0) - (was > 0),
        failures=tally.failures + (now < 0) - (was < 0),
    )


def _worth(record: AutonomyRecord | None) -> int:
    """Weigh a trial for a promotion: a success counts when a person agreed with it, anything else always."""
    return 0 if _is_unagreed(record) else _end(record)


def _end(record: AutonomyRecord | None) -> int:
    if record is None:
        return 0
    return 1 if record.outcome is TrialOutcome.VERIFIED_OK and not record.is_severe else -1


def _is_unagreed(record: AutonomyRecord | None) -> bool:
    return record is not None and _end(record) > 0 and not record.by


def _rank(record: AutonomyRecord) -> int:
    """Order what can be said of a trial; each may only be followed by a higher one."""
    if record.outcome is TrialOutcome.VIOLATION or record.is_severe:
        return 4
    if record.outcome is TrialOutcome.HUMAN_DISAGREED:
        return 3
    if _end(record) < 0:
        return 2
    return 1 if record.by else 0


def _reverts(standing: Standing) -> int:
    return standing.recent.count(TrialOutcome.REVERTED)
