"""Candidates between two services: time or calls that are lost on the way."""

from __future__ import annotations

from collections.abc import Iterator

from quell.diagnosis._blame import Ledger, is_gone, is_stuck, leftover_errors
from quell.diagnosis._candidate import Candidate, with_locus
from quell.diagnosis._scene import EdgeFact, Scene, earliest
from quell.diagnosis._stores import added_by_statement
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category


def suspect_network(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield latency and loss for every edge that lost time or calls beyond what its ends account for."""
    for edge in scene.edges:
        left = leftover_errors(scene, edge)
        if left and edge.nature in {"exhausted", "pool", "statement", "certificate"}:
            continue
        if edge.own_ms_added:
            yield _latency(scene, ledger, edge)
        if left and (edge.nature == "way" or edge.lost_share >= THRESHOLDS.error_share_floor):
            yield _loss(scene, ledger, edge, left)


def _begin(scene: Scene, ledger: Ledger, edge: EdgeFact, category: Category) -> Candidate:
    candidate = Candidate(category=category, subject=edge.subject, at=edge.name)
    with_locus(candidate, ledger, ((edge.subject, 1.0),))
    candidate.since = earliest((candidate.since, edge.row.since))
    callee, operations = edge.row.callee, scene.operations.get(edge.row.callee, [])
    if operations and not any(o.ms_added or o.errors_added for o in operations):
        candidate.add("callee_steady", ids=(o.id for o in operations[:3]), says=f"{callee} itself answers as before")
    beside = [e for e in scene.into(callee) if e is not edge and e.row.calls >= THRESHOLDS.calls_min]
    if beside and not any(leftover_errors(scene, e) or e.own_ms_added for e in beside):
        candidate.add("one_edge_only", ids=(e.id for e in beside[:3]), says=f"other callers of {callee} are well")
    return candidate


def _latency(scene: Scene, ledger: Ledger, edge: EdgeFact) -> Candidate:
    candidate = _begin(scene, ledger, edge, Category.NETWORK_LATENCY)
    own, before = edge.own_ms or 0.0, edge.own_ms_before
    candidate.detail = f"+{own - before:.0f} ms per call between the two"
    candidate.add(
        "edge_gap",
        ids=(edge.id,),
        strength=_answered_part(edge),
        says=f"time that the callee does not account for: {before:.0f} -> {own:.0f} ms",
    )
    if edge.row.callee in scene.stores:
        _weigh_statements(scene, candidate, edge)
    return candidate


def _answered_part(edge: EdgeFact) -> float:
    """Return the part of the lost time that answered calls lost: waiting for calls that get lost is no slow wire."""
    row = edge.row
    if not edge.errors_added:
        return 1.0
    if row.gap_ms is None or row.gap_ms_before is None:
        return 0.4 if edge.nature == "way" else 1.0
    answered = row.calls * (1 - edge.lost_share)
    return min(1.0, max(0.0, row.gap_ms - row.gap_ms_before) * answered / edge.own_ms_added)


def _weigh_statements(scene: Scene, candidate: Candidate, edge: EdgeFact) -> None:
    """Tell a slow wire from a slow statement: a wire slows every statement alike."""
    spread = added_by_statement(scene, edge.row.caller)
    if len(spread) > 1:
        per_call = [added for added, _, _ in spread]
        ids = [op.id for _, _, op in spread][:3]
        if min(per_call) >= THRESHOLDS.together_ratio * max(per_call):
            candidate.add("callee_steady", ids=ids, says="every statement got slower alike, as on a slow wire")
        else:
            candidate.add("uneven", ids=ids)
    told = [m for m in scene.moved(edge.row.callee, "locks", "scan", "query_time") if m.rises]
    if told:
        candidate.add("explained_by_statement", ids=(m.id for m in told[:3]))


def _loss(scene: Scene, ledger: Ledger, edge: EdgeFact, left: float) -> Candidate:
    candidate = _begin(scene, ledger, edge, Category.NETWORK_LOSS)
    callee = edge.row.callee
    types = ", ".join(edge.row.error_types[:3]) or "no answer"
    candidate.detail = f"{left:.0f} of {edge.row.calls} calls fail on the way ({types})"
    candidate.add("edge_failing", ids=(edge.id,), says=f"{left:.0f} of {edge.row.calls} calls fail on the way: {types}")
    if is_gone(scene, callee):
        ids = [i for c in scene.changes if c.row.service == callee for i in c.ids]
        ids.extend(m.id for m in scene.metrics.get(callee, []) if m.row.shape == "gone")
        candidate.add("explained_by_exit", ids=ids, says=f"the process of {callee} ended")
    if is_stuck(scene, callee):
        candidate.add("callee_stuck", ids=(m.id for m in scene.moved(callee, "active")[:2]))
    words = scene.words(edge.row.caller, "network")
    if words:
        candidate.add("wording", ids=(p.id for p in words[:2]), says="the caller logs timeouts or resets")
    return candidate
