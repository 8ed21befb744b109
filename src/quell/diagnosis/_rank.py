"""Candidates against each other: what explains what, who moved first, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from quell.diagnosis._blame import Ledger
from quell.diagnosis._candidate import Candidate
from quell.diagnosis._changes import suspect_changes
from quell.diagnosis._load import suspect_certificates, suspect_clocks, suspect_traffic, suspect_unknown
from quell.diagnosis._network import suspect_network
from quell.diagnosis._processes import suspect_processes
from quell.diagnosis._resources import suspect_resources
from quell.diagnosis._scene import EdgeFact, Scene
from quell.diagnosis._stores import consumers_of, suspect_databases, suspect_queues
from quell.diagnosis._weights import SAME_CALLS, THRESHOLDS
from quell.domain import Category

_MADE = {Category.BAD_RELEASE, Category.BAD_CONFIG, Category.BAD_FLAG}
_RESOURCES = {
    Category.CPU_SATURATION,
    Category.MEMORY_EXHAUSTION,
    Category.POOL_EXHAUSTION,
    Category.DISK_FULL,
    Category.DESCRIPTOR_EXHAUSTION,
}
_WIRE = {Category.NETWORK_LATENCY, Category.NETWORK_LOSS}
_NEVER_BY_CHANGE = {*_MADE, Category.TRAFFIC_SPIKE, Category.CERTIFICATE_EXPIRED, Category.CLOCK_SKEW}
_NEVER_BY_LOAD = {*_NEVER_BY_CHANGE, Category.CRASH_LOOP, Category.DEPENDENCY_DOWN}
_SUSPECTING = (
    suspect_changes,
    suspect_processes,
    suspect_resources,
    suspect_network,
    suspect_databases,
    suspect_queues,
    suspect_traffic,
    suspect_clocks,
    suspect_certificates,
    suspect_unknown,
)


def rank_candidates(scene: Scene, ledger: Ledger) -> list[Candidate]:
    """Gather every candidate, weigh them against each other, and return them best first."""
    found = [c for suspecting in _SUSPECTING for c in suspecting(scene, ledger)]
    for candidate in found:
        candidate.scale(SAME_CALLS, candidate.strength("locus") / THRESHOLDS.locus_full)
    _weigh_changes(scene, found)
    _weigh_traffic(found)
    _weigh_stores(scene, ledger, found)
    _weigh_queues(scene, found)
    _weigh_wires(found)
    _weigh_order(ledger, found)
    _weigh_alerts(scene, found)
    found = [c for c in found if c.support and (c.score > 0 or c.against)]
    _weigh_first_mover(found)
    return _distinct(sorted(found, key=order_of))


def order_of(candidate: Candidate) -> tuple[float, float, str, str, str]:
    """Return the total order of candidates: score, then onset, then names."""
    moment = candidate.since.timestamp() if candidate.since else float("inf")
    return (-round(candidate.score, 6), moment, candidate.category, candidate.subject.kind, candidate.subject.name)


def _ids(candidate: Candidate, *names: str) -> tuple[str, ...]:
    return tuple(i for c in candidate.contributions if c.name in names for i in c.ids)


def _weigh_changes(scene: Scene, found: Sequence[Candidate]) -> None:
    """Let a change take what its service would else be blamed for."""
    for made in found:
        if made.category not in _MADE or not made.has("locus", "exit_repeated", "exit_once"):
            continue
        near = max(made.strength("change_precedes"), 0.8 * made.strength("change_for_all"))
        for other in found:
            if other.category in _NEVER_BY_CHANGE or not _is_of(scene, other, made.at):
                continue
            if made.has("exit_repeated", "exit_once") or made.strength("locus") >= 0.6 * other.strength("locus"):
                ids = _ids(made, "change_precedes", "change_for_all")
                other.add(
                    "explained_by_change",
                    ids=ids,
                    strength=near,
                    says=f"a change of {made.at} came just before: {made.detail}",
                )


def _is_of(scene: Scene, other: Candidate, service: str) -> bool:
    """Tell whether a candidate is about a service, its edges, or a store that it alone makes slow."""
    if other.at == service:
        return True
    if "->" in other.at and service in other.at.split("->"):
        return True
    if other.at in scene.stores:
        slow = [e for e in scene.into(other.at) if e.own_ms_added or e.errors_added]
        return bool(slow) and all(e.row.caller == service for e in slow)
    return False


def _weigh_traffic(found: Sequence[Candidate]) -> None:
    """Let a rise of calls take the saturation that followed it."""
    for spike in found:
        if spike.category is not Category.TRAFFIC_SPIKE or not spike.has("locus"):
            continue
        for other in found:
            if other.category in _NEVER_BY_LOAD or other.category in _WIRE:
                continue
            if spike.since and other.since and other.since < spike.since - timedelta(seconds=2 * THRESHOLDS.bucket_s):
                continue
            other.add("explained_by_traffic", ids=_ids(spike, "traffic_rise"), strength=spike.strength("traffic_rise"))


def _weigh_stores(scene: Scene, ledger: Ledger, found: Sequence[Candidate]) -> None:
    """Let a slow callee take the pool that filled up waiting for it, and locks take the statements that waited."""
    locked = {c.at: c for c in found if c.category is Category.LOCK_CONTENTION and c.has("lock_waits", "lock_errors")}
    for candidate in found:
        if candidate.category is Category.POOL_EXHAUSTION:
            slow = [e for e in scene.out_of(candidate.at) if _holds_up(scene, ledger, e)]
            if slow:
                candidate.add(
                    "explained_by_store",
                    ids=(e.id for e in slow),
                    says=f"{slow[0].row.callee} got slow for {candidate.at}",
                )
        lock = locked.get(candidate.at)
        if candidate.category is Category.SLOW_QUERY and lock is not None and not candidate.has("rows_scanned"):
            ids = _ids(lock, "lock_waits", "lock_errors")
            candidate.add("explained_by_statement", ids=ids, says="statements wait for locks rather than work")


def _holds_up(scene: Scene, ledger: Ledger, edge: EdgeFact) -> bool:
    """Tell whether calls on an edge take so long for a reason beyond the caller that they fill its pool.

    Time spent waiting for a connection may be counted into the call itself, so a slow edge alone does not clear the caller.
    """
    store = ledger.share(scene.subject_of(edge.row.callee))
    if store + ledger.share(edge.subject) < 0.3 or edge.nature == "pool":
        return False
    told = any(m.rises for m in scene.moved(edge.row.callee, "locks", "scan", "query_time"))
    return told or store >= 0.3 or edge.nature in {"way", "statement"} or edge.row.callee not in scene.stores


def _weigh_queues(scene: Scene, found: Sequence[Candidate]) -> None:
    """Let the trouble of a consumer, or of what it waits for, take the queue that grew behind it."""
    for backlog in found:
        if backlog.category is not Category.QUEUE_BACKLOG:
            continue
        consumers = set(consumers_of(scene, backlog.at))
        below = {e.row.callee for c in consumers for e in scene.out_of(c)} | {
            e.name for c in consumers for e in scene.out_of(c)
        }
        below -= {backlog.at}
        for other in found:
            if other.category in {Category.QUEUE_BACKLOG, Category.NOVEL, Category.TRAFFIC_SPIKE}:
                continue
            if other.at in consumers and other.hard_score >= THRESHOLDS.medium_score:
                backlog.add("explained_by_consumer", ids=[c.evidence for c in other.support][:3])
            elif other.at in below and other.has("locus") and other.hard_score >= THRESHOLDS.high_score:
                backlog.add(
                    "explained_by_consumer",
                    ids=[c.evidence for c in other.support][:3],
                    says="what the consumer waits for has a trouble",
                )


def _weigh_wires(found: Sequence[Candidate]) -> None:
    """Let a service that ran out of something take the calls that fail to and from it, and its own silence."""
    full = {
        c.at: c
        for c in found
        if c.category in _RESOURCES and c.has("resource_full") and c.has("locus") and not c.has("explained_by_store")
    }
    for wire in found:
        is_silent = wire.category is Category.DEPENDENCY_DOWN and not wire.has("exit_final")
        if wire.category not in _WIRE and not is_silent:
            continue
        for end in wire.at.split("->"):
            if end in full:
                wire.add(
                    "explained_by_resource", ids=_ids(full[end], "resource_full"), says=f"{end} ran out of something"
                )


def _weigh_order(ledger: Ledger, found: Sequence[Candidate]) -> None:
    """Doubt a resource that moved only well after the trouble began."""
    for candidate in found:
        if candidate.category not in _RESOURCES or not candidate.since or not ledger.onset:
            continue
        if candidate.since > ledger.onset + timedelta(seconds=6 * THRESHOLDS.bucket_s):
            candidate.add(
                "moved_later", ids=_ids(candidate, "resource_full", "resource_near", "resource_rise", "waiting")[:1]
            )


def _weigh_alerts(scene: Scene, found: Sequence[Candidate]) -> None:
    """Prefer, a little, what lies at or below a service that an alert names."""
    named = {a.service for a in scene.alerts if a.service and a.status == "firing"}
    if not named:
        return
    reached = set(named)
    for _ in range(len(scene.edges)):
        more = {e.row.callee for e in scene.edges if e.row.caller in reached} - reached
        if not more:
            break
        reached |= more
    for candidate in found:
        if set(candidate.at.split("->")) & reached:
            candidate.add("alerted")


def _weigh_first_mover(found: Sequence[Candidate]) -> None:
    """Prefer the earliest among equal suspects at different places."""
    if not found:
        return
    top = max(c.hard_score for c in found)
    equal = [c for c in found if c.hard_score >= top - THRESHOLDS.tie and c.since is not None]
    moments = [c.since for c in equal if c.since is not None]
    if len({c.at for c in equal}) < 2 or not moments:
        return
    first = min(moments) + timedelta(seconds=THRESHOLDS.bucket_s)
    if max(moments) <= first:
        return
    for candidate in equal:
        if candidate.since is not None and candidate.since <= first:
            candidate.add("first_mover", ids=[c.evidence for c in candidate.support][:1])


def _distinct(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Keep one candidate per category and subject, and no unknown kind where a known one is better."""
    kept: list[Candidate] = []
    seen: set[tuple[str, str, str]] = set()
    for candidate in ranked:
        key = (candidate.category, candidate.subject.kind, candidate.subject.name)
        known = any(k.at in {candidate.at, *candidate.at.split("->")} and k.has("locus") for k in kept)
        if key in seen or (candidate.category is Category.NOVEL and known):
            continue
        seen.add(key)
        kept.append(candidate)
    return kept
