"""Candidates of processes that end: again and again, or once and for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from quell.diagnosis._blame import Ledger, is_gone, is_oom, leftover_errors, unplanned_exits
from quell.diagnosis._candidate import Candidate, at_locus
from quell.diagnosis._scene import ChangeFact, EdgeFact, Scene, earliest
from quell.diagnosis._vocabulary import REFUSED_TYPES
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category, ChangeKind


def suspect_processes(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield crash loops and dead dependencies."""
    for name in (*scene.services, *sorted(scene.stores)):
        exits = unplanned_exits(scene, name)
        if exits:
            yield from _of_exits(scene, ledger, name, exits)
        if (down := _down(scene, ledger, name, exits)) is not None:
            yield down


def comes_back(scene: Scene, name: str, exits: Sequence[ChangeFact]) -> bool:
    """Tell whether the process started again after its last end."""
    starts = scene.changes_of(ChangeKind.RESTART, service=name)
    return any(s.at > exits[-1].at for s in starts)


def _of_exits(scene: Scene, ledger: Ledger, name: str, exits: list[ChangeFact]) -> Iterator[Candidate]:
    candidate = at_locus(scene, ledger, Category.CRASH_LOOP, name)
    ids = [i for c in exits for i in c.ids]
    starts = [i for c in scene.changes_of(ChangeKind.RESTART, service=name) if c.at >= exits[0].at for i in c.ids]
    if len(exits) >= THRESHOLDS.exits_loop_min:
        candidate.add("exit_repeated", ids=[*ids, *starts], says=f"ended unplanned {len(exits)} times")
    elif comes_back(scene, name, exits):
        candidate.add("exit_once", ids=[*ids, *starts], says="ended unplanned once and came back")
    else:
        return
    candidate.since = earliest((candidate.since, exits[0].at))
    if words := scene.words(name, "crash"):
        candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of a crash")
    killed = [c for c in exits if is_oom(c)]
    if killed:
        candidate.add("explained_by_memory", ids=(i for c in killed for i in c.ids), says="was killed for memory")
    yield candidate


def _down(scene: Scene, ledger: Ledger, name: str, exits: list[ChangeFact]) -> Candidate | None:
    candidate = at_locus(scene, ledger, Category.DEPENDENCY_DOWN, name)
    failing = [e for e in scene.into(name) if leftover_errors(scene, e)]
    if failing and _all_refused(scene, name, failing):
        types = ", ".join(sorted({t for e in failing for t in e.row.error_types})[:3])
        candidate.add(
            "callee_refused",
            ids=(e.id for e in failing),
            says=f"every caller fails to reach {name} ({types or 'no answer'})",
        )
    looping = len(exits) >= THRESHOLDS.exits_loop_min
    if exits and not looping and not comes_back(scene, name, exits) and not is_oom(exits[-1]):
        candidate.add("exit_final", ids=exits[-1].ids, says="the process ended and did not start again")
        candidate.since = earliest((candidate.since, exits[-1].at))
    _add_silence(scene, candidate)
    if not candidate.has("callee_refused", "exit_final", "metrics_gone"):
        return None
    if not candidate.has("locus", "callee_refused", "exit_final"):
        return None
    for symptom in ("refused", "network"):
        words = [p for e in failing for p in scene.words(e.row.caller, symptom)]
        if words:
            candidate.add("wording", ids=(p.id for p in words[:2]), says="callers log that they cannot reach it")
    if exits and not candidate.has("exit_final"):
        candidate.add("comes_back", ids=(i for c in exits for i in c.ids))
    return candidate


def _all_refused(scene: Scene, name: str, failing: Sequence[EdgeFact]) -> bool:
    """Tell whether every caller with enough calls fails on the way, and most of its calls do."""
    callers = [e for e in scene.into(name) if e.row.calls >= THRESHOLDS.calls_min]
    if len(failing) < THRESHOLDS.all_share * len(callers):
        return False
    types = " ".join(t for e in failing for t in e.row.error_types)
    if any(e.nature in {"certificate", "exhausted", "pool", "statement"} for e in failing):
        return False
    refused = REFUSED_TYPES.search(types) is not None
    heavy = sum(leftover_errors(scene, e) for e in failing) >= 0.3 * sum(e.row.calls for e in failing)
    on_the_way = any(e.nature == "way" for e in failing)
    kind = scene.stores.get(name)
    return refused or (heavy and (kind == "external" or (on_the_way and (kind is not None or is_gone(scene, name)))))


def _add_silence(scene: Scene, candidate: Candidate) -> None:
    calls, expected = scene.calls_of(candidate.at)
    if expected >= THRESHOLDS.calls_min and calls <= THRESHOLDS.silent_ratio * expected:
        ids = (o.id for o in scene.operations[candidate.at])
        candidate.add("callee_silent", ids=ids, says=f"took {calls} calls where {expected:.0f} were expected")
    gone = [
        m
        for m in scene.metrics.get(candidate.at, [])
        if m.row.shape == "gone" and m.resource in {"cpu", "memory", "descriptors"}
    ]
    if gone:
        candidate.add("metrics_gone", ids=(m.id for m in gone[:3]), says="metrics of the process stopped")
        late = scene.survey.window.end - timedelta(seconds=THRESHOLDS.bucket_s)
        candidate.since = earliest((candidate.since, *(m.since for m in gone if m.since and m.since < late)))
