"""Candidates that somebody made: a release, a configuration, a flag, shortly before the trouble."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from quell.diagnosis._blame import Ledger, unplanned_exits
from quell.diagnosis._candidate import Candidate, with_locus
from quell.diagnosis._scene import ChangeFact, Scene, earliest
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category, ChangeKind, Subject, one_line

_CATEGORY = {
    ChangeKind.DEPLOY: Category.BAD_RELEASE,
    ChangeKind.CONFIG: Category.BAD_CONFIG,
    ChangeKind.FLAG: Category.BAD_FLAG,
}


def suspect_changes(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield one candidate per change and service that it may have hurt."""
    for change in scene.changes:
        if change.row.change not in _CATEGORY:
            continue
        for target in _targets(scene, ledger, change):
            if (candidate := _suspect(scene, ledger, change, target)) is not None:
                yield candidate


def _targets(scene: Scene, ledger: Ledger, change: ChangeFact) -> tuple[str, ...]:
    """Return the service of a change; of a change for all, the ones where the trouble arises."""
    if change.row.service:
        return (change.row.service,)
    hurt = [s for s in scene.services if account_of(scene, ledger, s)[0]]
    return tuple(sorted(hurt, key=lambda s: (-_weight(scene, ledger, s), s))[:3])


def _weight(scene: Scene, ledger: Ledger, service: str) -> float:
    return sum(ledger.share(subject) * factor for subject, factor in account_of(scene, ledger, service)[0])


def account_of(scene: Scene, ledger: Ledger, target: str) -> tuple[list[tuple[Subject, float]], datetime | None]:
    """Return the objects whose trouble a change of `target` would account for, and since when they have it.

    Beside its own trouble these are: calls that fail on its way to healthy callees (a wrong address, a deadline too short), a store that
    it alone makes slow, and, less, callers that cannot reach it any more.
    """
    parts: list[tuple[Subject, float]] = []
    seen = [(scene.subject_of(target), 1.0)]
    for edge in scene.out_of(target):
        failing = ledger.get(edge.subject).errors > 0
        seen.append((edge.subject, 0.9 if failing else 0.4))
        if edge.row.callee in scene.stores and edge.own_ms_added:
            slow = [e for e in scene.into(edge.row.callee) if e.own_ms_added]
            seen.append((scene.subject_of(edge.row.callee), 0.8 / len(slow)))
    seen.extend((edge.subject, 0.6) for edge in scene.into(target))
    parts = [(subject, factor) for subject, factor in seen if ledger.share(subject) > 0]
    return parts, earliest(ledger.get(subject).since for subject, _ in parts)


def closeness(change_at: datetime, onset: datetime | None) -> float:
    """Return 1 for a change right before the onset, falling with the time between, 0 when it cannot be the cause."""
    if onset is None:
        return 0.5
    lead = (onset - change_at).total_seconds()
    if lead < -THRESHOLDS.change_late_s or lead > THRESHOLDS.change_last_s:
        return 0.0
    if lead <= THRESHOLDS.change_full_s:
        return 1.0
    return float(0.5 ** ((lead - THRESHOLDS.change_full_s) / THRESHOLDS.change_half_s))


def _suspect(scene: Scene, ledger: Ledger, change: ChangeFact, target: str) -> Candidate | None:
    parts, since = account_of(scene, ledger, target)
    exits = [c for c in unplanned_exits(scene, target) if c.at >= change.at - timedelta(seconds=THRESHOLDS.bucket_s)]
    onset = earliest((since, *(c.at for c in exits[:1]))) or ledger.onset
    near = closeness(change.at, onset)
    if near <= 0:
        return None
    category = _CATEGORY[change.row.change]
    subject = (
        Subject(kind="flag", name=change.row.subject)
        if category is Category.BAD_FLAG and change.row.subject
        else scene.subject_of(target)
    )
    candidate = Candidate(
        category=category, subject=subject, at=target, since=change.at, detail=_wording_of(change, target)
    )
    with_locus(candidate, ledger, parts)
    candidate.since = change.at
    says = f"{_what(change)}, {_lead(change.at, onset)}"
    candidate.add(
        "change_precedes" if change.row.service else "change_for_all", ids=change.ids, strength=near, says=says
    )
    if exits:
        candidate.add(
            "exit_repeated" if len(exits) >= THRESHOLDS.exits_loop_min else "exit_once",
            ids=(i for c in exits for i in c.ids),
        )
    elif candidate.strength("locus") < THRESHOLDS.locus_min:
        healthy = tuple(o.id for o in scene.operations.get(target, []))
        candidate.add(
            "no_self_badness", ids=healthy or change.ids, says=f"{target} shows no trouble of its own after it"
        )
    _add_marks(scene, candidate, change, target)
    fanout = ledger.get(scene.subject_of(target)).fanout
    if fanout >= THRESHOLDS.fanout_ratio:
        ids = (e.id for e in scene.out_of(target))
        candidate.add("fanout", ids=ids, says=f"{target} makes {fanout:.1f}x the calls per incoming call")
    return candidate


def _add_marks(scene: Scene, candidate: Candidate, change: ChangeFact, target: str) -> None:
    """Weigh in attributes, log lines and flows that fit the change."""
    for diff in scene.diffs.get(target, []):
        row = diff.row
        marks = (change.row.after and row.value == change.row.after) or (
            change.row.subject and change.row.subject in row.key
        )
        if marks and row.bad_total and row.good_total and row.bad / row.bad_total > row.good / row.good_total:
            candidate.add("change_marks_bad", ids=(diff.id,), says=f"bad records carry {row.key}={row.value}")
    fresh = [p for p in scene.patterns.get(target, []) if p.row.is_new and p.row.severity in {"error", "fatal", "warn"}]
    after = [p for p in fresh if p.row.first_seen >= change.at - timedelta(seconds=THRESHOLDS.bucket_s)]
    if after:
        candidate.add("new_errors", ids=(p.id for p in after[:3]), says="new kinds of error lines since the change")
    if change.row.change is ChangeKind.CONFIG and (words := scene.words(target, "config")):
        candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of the configuration")
    clear, flows = scene.breaks(target)
    candidate.add("flow", ids=(f.id for f in flows), strength=clear)


def _what(change: ChangeFact) -> str:
    row = change.row
    if row.change is ChangeKind.DEPLOY:
        moved = (
            f"{shown(row.before)} -> {shown(row.after)}" if row.before and row.after else shown(row.after or row.before)
        )
        return f"release {moved}".strip()
    name = "flag" if row.change is ChangeKind.FLAG else "configuration"
    moved = f" {shown(row.before)} -> {shown(row.after)}" if row.before or row.after else ""
    return f"{name} {shown(row.subject)}{moved}"


def shown(text: str) -> str:
    """Return text that somebody else wrote, safe for one line: printable and short."""
    return one_line(text, chars_max=60)


def _lead(at: datetime, onset: datetime | None) -> str:
    if onset is None:
        return "at an unknown distance from the onset"
    lead = (onset - at).total_seconds()
    return f"{lead:.0f} s before the trouble began" if lead > 0 else "as the trouble began"


def _wording_of(change: ChangeFact, target: str) -> str:
    what = _what(change)
    return f"{what} on {shown(target)}" if target else what
