"""Candidates of a service that ran out of something: processor, memory, disk, descriptors, connections."""

from __future__ import annotations

from collections.abc import Iterator

from quell.diagnosis._blame import Ledger, is_oom, unplanned_exits
from quell.diagnosis._candidate import Candidate, at_locus, with_locus
from quell.diagnosis._metrics import MetricFact, fullness, is_rise
from quell.diagnosis._scene import Scene, earliest
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category

_RESOURCES = (
    (Category.CPU_SATURATION, "cpu", ""),
    (Category.MEMORY_EXHAUSTION, "memory", "memory"),
    (Category.DISK_FULL, "disk", "disk"),
    (Category.DESCRIPTOR_EXHAUSTION, "descriptors", "descriptors"),
    (Category.POOL_EXHAUSTION, "pool", "pool"),
)


def suspect_resources(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield one candidate per service and resource that some evidence speaks of."""
    for name in (*scene.services, *sorted(scene.stores)):
        for category, resource, symptom in _RESOURCES:
            candidate = at_locus(scene, ledger, category, name)
            _add_use(scene, candidate, resource)
            if candidate.has("resource_full", "resource_near"):
                _widen(scene, ledger, candidate)
            if symptom and (words := scene.words(name, symptom)):
                candidate.add("wording", ids=(p.id for p in words[:3]), says=f"log lines speak of {symptom}")
            if category is Category.MEMORY_EXHAUSTION:
                _add_oom(scene, candidate)
            if category is Category.POOL_EXHAUSTION:
                _add_waiting(scene, candidate)
            if not candidate.has("resource_full", "resource_near", "resource_rise", "exit_oom", "waiting", "wording"):
                continue
            if not candidate.has("locus", "exit_oom"):
                _add_health(scene, candidate)
            yield candidate


def _add_use(scene: Scene, candidate: Candidate, resource: str) -> None:
    resources = (resource, "backends") if resource == "pool" and candidate.at in scene.stores else (resource,)
    series = [m for m in scene.moved(candidate.at, *resources) if _is_use(m)]
    best = max(series, key=lambda m: (fullness(m), m.row.score, m.id), default=None)
    if best is None:
        return
    full = fullness(best)
    ids = [best.id, *(m.id for m in series if m is not best and fullness(m) >= THRESHOLDS.near_share)]
    name = _level(best)
    if full >= THRESHOLDS.full_share:
        candidate.add("resource_full", ids=ids, says=f"{name}: at its limit")
    elif full >= THRESHOLDS.near_share:
        candidate.add("resource_near", ids=ids, says=f"{name}: near its limit")
    elif is_rise(best):
        candidate.add("resource_rise", ids=ids, says=f"{name}: rose")
    else:
        return
    candidate.since = earliest((candidate.since, best.since))


def _widen(scene: Scene, ledger: Ledger, candidate: Candidate) -> None:
    """A service out of something also fails on its way out, and its callers on their way in."""
    parts = [(scene.subject_of(candidate.at), 1.0)]
    parts.extend((e.subject, 0.8) for e in scene.out_of(candidate.at))
    parts.extend((e.subject, 0.8) for e in scene.into(candidate.at))
    with_locus(candidate, ledger, parts)


def _is_use(fact: MetricFact) -> bool:
    """Tell whether a series counts what is taken rather than what is free."""
    state = fact.attribute("state")
    free = state in {"idle", "free", "available"} or any(w in fact.row.metric for w in ("idle", "free", "avail"))
    return not free and (fact.rises or fullness(fact) >= THRESHOLDS.near_share) and fact.row.shape != "gone"


def _level(fact: MetricFact) -> str:
    row = fact.row
    limit = f" of {row.limit:.3g}" if row.limit else ""
    return f"{row.metric} {row.before:.3g} -> {fact.level:.3g}{limit}"


def _add_oom(scene: Scene, candidate: Candidate) -> None:
    killed = [c for c in unplanned_exits(scene, candidate.at) if is_oom(c)]
    if killed:
        candidate.add("exit_oom", ids=(i for c in killed for i in c.ids), says=f"killed for memory {len(killed)} times")
        candidate.since = earliest((candidate.since, killed[0].at))


def _add_waiting(scene: Scene, candidate: Candidate) -> None:
    waiting = [m for m in scene.moved(candidate.at, "pool_waiting") if is_rise(m) or (m.rises and m.row.before == 0)]
    if waiting:
        candidate.add(
            "waiting", ids=(m.id for m in waiting[:3]), says=f"{_level(waiting[0])}: calls wait for a connection"
        )
        candidate.since = earliest((candidate.since, *(m.since for m in waiting)))


def _add_health(scene: Scene, candidate: Candidate) -> None:
    operations = scene.operations.get(candidate.at, [])
    if operations:
        candidate.add("not_hurt", ids=(o.id for o in operations[:3]), says=f"calls of {candidate.at} are as before")
