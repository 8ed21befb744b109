"""Candidates of databases and queues, which report no calls themselves."""

from __future__ import annotations

from collections.abc import Iterator

from quell.diagnosis._blame import Ledger
from quell.diagnosis._candidate import Candidate, with_locus
from quell.diagnosis._metrics import MetricFact, is_rise
from quell.diagnosis._scene import EdgeFact, OperationFact, Scene, earliest, is_statement
from quell.diagnosis._vocabulary import LOCK_TYPES
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category, Subject


def added_by_statement(scene: Scene, caller: str) -> list[tuple[float, float, OperationFact]]:
    """Return (added ms per call, added ms in all, operation) for the statements of one caller, most added first."""
    found: list[tuple[float, float, OperationFact]] = []
    for operation in scene.requests.get(caller, []):
        row = operation.row
        if not is_statement(row.operation) or min(row.calls, row.calls_before) < THRESHOLDS.calls_min:
            continue
        added = max(0.0, row.total_ms / row.calls - row.total_ms_before / row.calls_before)
        found.append((added, added * row.calls, operation))
    return sorted(found, key=lambda item: (-item[1], item[2].row.operation))


def suspect_databases(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield slow statements and lock contention for every database."""
    for name in sorted(scene.stores):
        if scene.stores[name] != "database":
            continue
        slow = [e for e in scene.into(name) if e.own_ms_added or e.errors_added]
        if slow or scene.moved(name, "locks"):
            yield from (
                c for c in (_slow_query(scene, ledger, name, slow), _locks(scene, ledger, name, slow)) if c is not None
            )


def _begin(scene: Scene, ledger: Ledger, category: Category, name: str, slow: list[EdgeFact]) -> Candidate:
    subject = scene.subject_of(name)
    candidate = Candidate(category=category, subject=subject, at=name)
    with_locus(candidate, ledger, ((subject, 1.0), *((e.subject, 0.9) for e in slow)))
    candidate.since = earliest((candidate.since, *(e.row.since for e in slow)))
    callers = [e for e in scene.into(name) if e.row.calls >= THRESHOLDS.calls_min]
    if len(callers) > 1 and len(slow) >= THRESHOLDS.all_share * len(callers):
        candidate.add("all_callers", ids=(e.id for e in slow), says=f"{len(slow)} of {len(callers)} callers see it")
    return candidate


def _slow_query(scene: Scene, ledger: Ledger, name: str, slow: list[EdgeFact]) -> Candidate | None:
    if not any(e.own_ms_added for e in slow):
        return None
    candidate = _begin(scene, ledger, Category.SLOW_QUERY, name, slow)
    _add_metric(scene, candidate, "scan", "rows_scanned")
    _add_metric(scene, candidate, "query_time", "query_time")
    spread = sorted(
        (s for e in slow for s in added_by_statement(scene, e.row.caller)), key=lambda s: (-s[1], s[2].row.operation)
    )
    whole = sum(s[1] for s in spread)
    if (
        spread
        and whole > 0
        and spread[0][1] >= 0.6 * whole
        and (len(spread) > 1 or candidate.has("rows_scanned", "query_time"))
    ):
        row = spread[0][2].row
        candidate.add(
            "one_query",
            ids=(spread[0][2].id,),
            says=f"{spread[0][1] / whole:.0%} of the added time is one statement of {row.service}",
        )
    given_up = [
        e
        for e in slow
        if e.errors_added and e.nature == "statement" and not LOCK_TYPES.search(" ".join(e.row.error_types))
    ]
    candidate.add("statement_errors", ids=(e.id for e in given_up), strength=1.0 if given_up else 0.0)
    if not candidate.has("rows_scanned", "query_time", "one_query"):
        candidate.add("store_default", ids=(e.id for e in slow))
    if words := [p for n in (name, *(e.row.caller for e in slow)) for p in scene.words(n, "slow_query")]:
        candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of slow statements")
    return candidate


def _locks(scene: Scene, ledger: Ledger, name: str, slow: list[EdgeFact]) -> Candidate | None:
    candidate = _begin(scene, ledger, Category.LOCK_CONTENTION, name, slow)
    _add_metric(scene, candidate, "locks", "lock_waits")
    given_up = [e for e in slow if e.errors_added and LOCK_TYPES.search(" ".join(e.row.error_types))]
    candidate.add("lock_errors", ids=(e.id for e in given_up), strength=1.0 if given_up else 0.0)
    if words := [p for n in (name, *(e.row.caller for e in slow)) for p in scene.words(n, "lock")]:
        candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of locks")
    _add_metric(scene, candidate, "query_time", "query_time")
    return candidate if candidate.has("lock_waits", "lock_errors", "wording") else None


def _add_metric(scene: Scene, candidate: Candidate, resource: str, name: str) -> None:
    moved = [m for m in scene.moved(candidate.at, resource) if is_rise(m) or (m.rises and m.row.before == 0)]
    if moved:
        best = max(moved, key=lambda m: (m.row.score, m.id))
        candidate.add(
            name,
            ids=(best.id, *(m.id for m in moved if m is not best)),
            says=f"{best.row.metric} {best.row.before:.3g} -> {best.level:.3g}",
        )
        if name == "lock_waits":
            candidate.since = earliest((candidate.since, *(m.since for m in moved)))


def suspect_queues(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield a backlog for every queue that grows."""
    growing: dict[str, list[MetricFact]] = {}
    for service in sorted(scene.metrics):
        for moved in scene.moved(service, "queue_depth", "queue_age"):
            if _grows(moved):
                growing.setdefault(queue_of(moved, service), []).append(moved)
    for name in sorted(growing):
        candidate = Candidate(category=Category.QUEUE_BACKLOG, subject=Subject(kind="queue", name=name), at=name)
        candidate.since = earliest(m.since for m in growing[name])
        for moved in growing[name]:
            kind = "queue_growth" if moved.resource == "queue_depth" else "queue_age"
            candidate.add(kind, ids=(moved.id,), says=f"{moved.row.metric} {moved.row.before:.3g} -> {moved.level:.3g}")
        _weigh_consumers(scene, ledger, candidate, name)
        if words := [p for s in scene.services for p in scene.words(s, "queue")]:
            candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of a backlog")
        yield candidate


def queue_of(moved: MetricFact, service: str) -> str:
    """Return the queue a series is about."""
    return (
        moved.attribute("destination.name")
        or moved.attribute("destination")
        or moved.attribute("queue")
        or moved.attribute("topic")
        or service
    )


def _grows(moved: MetricFact) -> bool:
    row = moved.row
    if row.unit.startswith("By"):
        return False  # larger messages are not more of them
    if moved.resource == "queue_depth":
        far = moved.level - row.before >= THRESHOLDS.queue_depth_floor
    else:
        far = moved.in_seconds(moved.level - row.before) >= THRESHOLDS.queue_age_floor_s
    return moved.rises and far and moved.level >= THRESHOLDS.queue_growth_ratio * row.before


def consumers_of(scene: Scene, queue: str) -> list[str]:
    """Return the services that take from a queue."""
    fed = sorted(e.row.callee for e in scene.out_of(queue) if e.row.callee in scene.operations)
    if fed:
        return fed
    consuming = {s: [o for o in ops if o.row.span_kind == "consumer"] for s, ops in scene.operations.items()}
    named = sorted(s for s, ops in consuming.items() if any(queue in o.row.operation for o in ops))
    return named or sorted(s for s, ops in consuming.items() if ops)


def _weigh_consumers(scene: Scene, ledger: Ledger, candidate: Candidate, queue: str) -> None:
    consumers = consumers_of(scene, queue)
    parts = [(scene.subject_of(c), 0.8) for c in consumers]
    # A full queue pushes back: what its producers refuse is part of it.
    parts.extend(
        (scene.subject_of(s), 0.6)
        for s, ops in sorted(scene.produced.items())
        if any(queue in o.row.operation for o in ops)
    )
    since = candidate.since
    with_locus(candidate, ledger, (*parts, (scene.subject_of(queue), 1.0)))
    candidate.since = earliest((since, candidate.since))
    taken = [o for c in consumers for o in scene.operations[c] if o.row.span_kind == "consumer"]
    put = [o for s in sorted(scene.produced) for o in scene.produced[s] if queue in o.row.operation] or [
        o for s in sorted(scene.produced) for o in scene.produced[s]
    ]
    took, puts = sum(o.row.calls for o in taken), sum(o.row.calls for o in put)
    if puts >= THRESHOLDS.calls_min and took < 0.9 * puts:
        ids = (*(o.id for o in taken[:3]), *(o.id for o in put[:3]))
        candidate.add("consumer_behind", ids=ids, says=f"{puts} put, {took} taken")
        return
    expected = sum(o.row.calls_before for o in taken) * scene.pace
    if expected >= THRESHOLDS.calls_min and took < 0.8 * expected:
        candidate.add(
            "consumer_behind", ids=(o.id for o in taken[:3]), says=f"{took} taken where {expected:.0f} were expected"
        )
    elif any(o.ms_added for o in taken):
        candidate.add("consumer_behind", ids=(o.id for o in taken if o.ms_added), says="each message takes longer")
