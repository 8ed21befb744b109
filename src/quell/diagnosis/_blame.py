"""Where errors and time arise: every caller explained away by what it waits for, every edge by its two ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from quell.diagnosis._metrics import fullness, is_rise
from quell.diagnosis._scene import ChangeFact, EdgeFact, OperationFact, Scene, earliest
from quell.diagnosis._vocabulary import REFUSED_TYPES
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import ChangeKind, Subject, is_asked_for, is_starved


@dataclass(slots=True, kw_only=True)
class Blame:
    """What one object adds to the trouble by itself."""

    errors: float = 0.0
    """Failed calls."""
    lost_ms: float = 0.0
    """Milliseconds over all calls."""
    fanout: float = 0.0
    """Of a caller: how much more it calls per incoming call; 0 when it does not."""
    since: datetime | None = None
    ids: list[str] = field(default_factory=list)
    share: float = 0.0
    """Part of the whole trouble, 0..1."""

    def add(self, *, errors: float = 0.0, lost_ms: float = 0.0, since: datetime | None, ids: tuple[str, ...]) -> None:
        """Take on some errors or time."""
        self.errors += errors
        self.lost_ms += lost_ms
        self.since = earliest((self.since, since))
        self.ids.extend(i for i in ids if i not in self.ids)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Blame of every object, and who suffers from whom."""

    of: dict[Subject, Blame] = field(default_factory=dict)
    victims: dict[str, str] = field(default_factory=dict)
    """Service -> the service, store or edge it suffers from most."""
    symptoms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Service -> (added errors, added milliseconds) of its own calls, whoever caused them."""
    blips: list[tuple[str, EdgeFact]] = field(default_factory=list)
    """(service, edge): calls that failed while the service was restarted on purpose, and that is over."""
    onset: datetime | None = None
    """First moment at which calls got worse."""

    def get(self, subject: Subject) -> Blame:
        """Return the blame of an object; empty blame when it has none."""
        return self.of.get(subject) or Blame()

    def share(self, subject: Subject) -> float:
        """Return the part of the whole trouble that an object carries."""
        return self.get(subject).share

    @property
    def total(self) -> float:
        """Sum of all shares: 1 when there is trouble at all, else 0."""
        return sum(b.share for b in self.of.values())


def settle_blame(scene: Scene) -> Ledger:
    """Distribute all added errors and all added time over services, edges and stores."""
    ledger = Ledger()
    for service in scene.services:
        _blame_service(scene, ledger, service)
    for edge in scene.edges:
        _blame_edge(scene, ledger, edge)
    for service in scene.services:
        _blame_silence(scene, ledger, service)
    _forget_the_unfelt(scene, ledger)
    _share_out(scene, ledger)
    ledger.onset = earliest(b.since for b in ledger.of.values())
    for service in scene.services:
        _find_victim(scene, ledger, service)
    return ledger


def _entry(ledger: Ledger, subject: Subject) -> Blame:
    return ledger.of.setdefault(subject, Blame())


def _blame_service(scene: Scene, ledger: Ledger, service: str) -> None:
    operations = scene.operations.get(service, [])
    errors = sum(o.errors_added for o in operations)
    added = sum(o.ms_added for o in operations)
    if not errors and not added:
        return
    ledger.symptoms[service] = (errors, added)
    shifted = [o for o in operations if o.errors_added or o.ms_added]
    since = earliest(o.row.since for o in shifted)
    ids = tuple(o.id for o in sorted(shifted, key=lambda o: (-o.errors_added, -o.ms_added, o.id)))
    down = [e for e in scene.out_of(service) if not e.is_new]
    own_errors = errors - sum(e.raw_errors_added for e in down)
    own_ms = added - sum(_explained_ms(scene, e) for e in down)
    if own_errors >= max(THRESHOLDS.errors_min, THRESHOLDS.self_share_min * errors):
        _entry(ledger, scene.subject_of(service)).add(errors=own_errors, since=since, ids=ids)
    if own_ms > THRESHOLDS.self_share_min * added:
        _entry(ledger, scene.subject_of(service)).add(lost_ms=own_ms, since=since, ids=ids)
        _entry(ledger, scene.subject_of(service)).fanout = max((fanout_of(scene, e) for e in down), default=0.0)


def _explained_ms(scene: Scene, edge: EdgeFact) -> float:
    """Return what waiting for this callee added, at the number of calls per incoming call that was usual."""
    growth = fanout_of(scene, edge)
    return edge.raw_ms_added / growth if growth >= THRESHOLDS.fanout_ratio else edge.raw_ms_added


def fanout_of(scene: Scene, edge: EdgeFact) -> float:
    """Return calls on an edge per incoming call of its caller, relative to the baseline; 0 when unknown."""
    taken, taken_before = scene.taken_by(edge.row.caller)
    if not taken or not taken_before or not edge.row.calls_before:
        return 0.0
    return (edge.row.calls / taken) / (edge.row.calls_before / taken_before)


def _blame_edge(scene: Scene, ledger: Ledger, edge: EdgeFact) -> None:
    left = leftover_errors(scene, edge)
    if edge.is_new and edge.row.caller in ledger.symptoms:
        return
    if left:
        if is_blip(scene, edge, left):
            ledger.blips.append((edge.row.callee, edge))
            return
        owner = owner_of_failures(scene, edge)
        _entry(ledger, owner).add(errors=left, since=edge.row.since, ids=(edge.id,))
    if edge.own_ms_added:
        owner = (
            owner_of_failures(scene, edge)
            if left or edge.lost_share > THRESHOLDS.error_share_floor
            else owner_of_gap(scene, edge)
        )
        _entry(ledger, owner).add(lost_ms=edge.own_ms_added, since=edge.row.since, ids=(edge.id,))


def is_blip(scene: Scene, edge: EdgeFact, left: float) -> bool:
    """Tell whether calls failed only while their callee was restarted on purpose, and whether that is over."""
    callee, end = edge.row.callee, scene.survey.window.end
    restarts = scene.changes_of(ChangeKind.DEPLOY, ChangeKind.RESTART, service=callee)
    if not restarts or unplanned_exits(scene, callee) or left > THRESHOLDS.blip_share * edge.row.calls:
        return False
    if (end - max(c.at for c in restarts)).total_seconds() < THRESHOLDS.settled_s or len(
        restarts
    ) > THRESHOLDS.blip_restarts_max:
        return False
    calls, expected = scene.calls_of(callee)
    if calls < THRESHOLDS.serving_ratio * expected or any(
        o.errors_added or o.ms_added for o in scene.operations.get(callee, [])
    ):
        return False
    recent = end - timedelta(seconds=THRESHOLDS.settled_s)
    lines = (p.row for name in (callee, edge.row.caller) for p in scene.patterns.get(name, []))
    return not any(r.is_new and r.severity in {"error", "fatal"} and r.last_seen > recent for r in lines)


def leftover_errors(scene: Scene, edge: EdgeFact) -> float:
    """Return failed calls of an edge that no failure inside the callee accounts for."""
    if not edge.errors_added:
        return 0.0
    callee = edge.row.callee
    inside = sum(o.errors_added for o in scene.operations.get(callee, []))
    seen = sum(e.raw_errors_added for e in scene.into(callee))
    left = max(edge.errors_added * (1 - min(1.0, inside / seen)) if seen else 0.0, min(edge.lost, edge.errors_added))
    return left if left >= THRESHOLDS.errors_min and left >= THRESHOLDS.self_share_min * edge.errors_added else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _others(edges: list[EdgeFact], edge: EdgeFact) -> list[EdgeFact]:
    return [e for e in edges if e is not edge and e.row.calls >= THRESHOLDS.calls_min and e.row.callee_kind != "queue"]


def owner_of_failures(scene: Scene, edge: EdgeFact) -> Subject:
    """Say who owns calls that fail on the way: the callee, the caller, or what lies between."""
    callee, caller = edge.row.callee, edge.row.caller
    if (edge.is_new and caller in scene.operations) or edge.nature in {"exhausted", "pool"}:
        return scene.subject_of(caller)
    if edge.nature == "statement":
        return scene.subject_of(callee)
    beside, along = _others(scene.into(callee), edge), _others(scene.out_of(caller), edge)
    if is_gone(scene, callee) or (_fail_together(scene, beside) if beside else _is_callee_only(scene, edge)):
        return scene.subject_of(callee)
    if beside and _fail_together(scene, along):
        return scene.subject_of(caller)
    return edge.subject


def _fail_together(scene: Scene, others: list[EdgeFact]) -> bool:
    failing = [e for e in others if leftover_errors(scene, e)]
    return bool(others) and len(failing) >= THRESHOLDS.all_share * len(others)


def _is_callee_only(scene: Scene, edge: EdgeFact) -> bool:
    """Tell whether calls of an only caller fail at the callee rather than on the wire."""
    if edge.nature in {"certificate", "inside"} or REFUSED_TYPES.search(" ".join(edge.row.error_types)):
        return True
    return edge.row.callee in scene.stores or is_stuck(scene, edge.row.callee) or _is_slow_inside(scene, edge)


def _is_slow_inside(scene: Scene, edge: EdgeFact) -> bool:
    return any(o.ms_added for o in scene.operations.get(edge.row.callee, []))


def owner_of_gap(scene: Scene, edge: EdgeFact) -> Subject:
    """Say who owns time that neither end accounts for: all in-edges slow, the callee; all out-edges slow, the caller."""
    callee, caller = edge.row.callee, edge.row.caller
    beside, along = _others(scene.into(callee), edge), _others(scene.out_of(caller), edge)
    if beside and _are_slow_together(edge, beside):
        return scene.subject_of(callee)
    if along and _are_slow_together(edge, along):
        return scene.subject_of(caller)
    if not beside and callee in scene.stores:
        return scene.subject_of(callee)
    for end in (callee, caller):
        if end not in scene.stores and any(
            fullness(m) >= THRESHOLDS.full_share and is_rise(m) for m in scene.moved(end, "cpu")
        ):
            return scene.subject_of(end)
    return edge.subject


def _are_slow_together(edge: EdgeFact, others: list[EdgeFact]) -> bool:
    per_call = edge.own_ms_added / edge.row.calls
    slow = [e for e in others if e.own_ms_added / e.row.calls >= THRESHOLDS.together_ratio * per_call]
    return len(slow) >= THRESHOLDS.all_share * len(others)


def is_stuck(scene: Scene, service: str) -> bool:
    """Tell whether a service holds more open requests than before, so that it hears its callers and does not answer."""
    return any(is_rise(m) for m in scene.moved(service, "active"))


def is_gone(scene: Scene, service: str) -> bool:
    """Tell whether a process ended unplanned, or its metrics stopped while nobody reaches it."""
    if unplanned_exits(scene, service):
        return True
    return any(m.row.shape == "gone" for m in scene.metrics.get(service, []) if m.resource in {"cpu", "memory"})


def unplanned_exits(scene: Scene, service: str) -> list[ChangeFact]:
    """Return ends of the process that no deploy and no orderly restart accounts for."""
    exits = scene.changes_of(ChangeKind.EXIT, service=service)
    starts = scene.changes_of(ChangeKind.RESTART, service=service)
    deploys = scene.changes_of(ChangeKind.DEPLOY, service=service)
    found: list[ChangeFact] = []
    for exit_ in exits:
        if exit_.at < scene.survey.window.start - timedelta(seconds=THRESHOLDS.deploy_restart_s):
            continue
        if is_orderly(exit_) and (
            any(abs((d.at - exit_.at).total_seconds()) <= THRESHOLDS.deploy_restart_s for d in deploys)
            or any(
                -THRESHOLDS.overlap_s <= (s.at - exit_.at).total_seconds() <= THRESHOLDS.deploy_restart_s
                for s in starts
            )
        ):
            continue
        found.append(exit_)
    return found


def is_orderly(change: ChangeFact) -> bool:
    """Tell whether an exit was asked for: by the reason that is given, and by the line about it only where there is none."""
    return is_asked_for(change.row.after or change.text) and not is_oom(change)


def is_oom(change: ChangeFact) -> bool:
    """Tell whether an exit was for want of memory."""
    return is_starved(change.text)


def _blame_silence(scene: Scene, ledger: Ledger, service: str) -> None:
    """Blame a service that nobody visible calls and that takes no calls any more for the calls that are missing."""
    calls, expected = scene.calls_of(service)
    subject = scene.subject_of(service)
    if expected < THRESHOLDS.silent_calls_min or calls > THRESHOLDS.silent_ratio * expected or scene.into(service):
        return
    operations = scene.operations[service]
    since = earliest((*(o.row.since for o in operations), *(c.at for c in unplanned_exits(scene, service))))
    _entry(ledger, subject).add(errors=expected - calls, since=since, ids=tuple(o.id for o in operations))
    ledger.symptoms[service] = (expected - calls, ledger.symptoms.get(service, (0.0, 0.0))[1])


def _ends(scene: Scene) -> set[str]:
    """Return the services where users, and messages, wait."""
    return {service for service in scene.operations if scene.is_entry(service)}


def _felt(scene: Scene) -> tuple[float, float]:
    """Return calls and milliseconds that users, and messages, wait for."""
    rows = [o.row for service in sorted(_ends(scene)) for o in scene.operations[service]]
    return float(sum(r.calls for r in rows)), sum(r.total_ms for r in rows)


def _anybody_waits_longer(scene: Scene) -> bool:
    """Tell whether an operation got slow where users or messages wait, or got slower where an alert says that it hurts."""
    firing = {a.service for a in scene.alerts if a.status == "firing"}
    ends = _ends(scene)
    alerted = firing | (ends if "" in firing else set())
    slow = any(o.ms_added for service in ends | alerted for o in scene.operations.get(service, []))
    return slow or any(_slower(o) for service in alerted for o in scene.operations.get(service, []))


def _slower(operation: OperationFact) -> bool:
    row = operation.row
    if min(row.calls, row.calls_before) < THRESHOLDS.calls_min:
        return False
    mean, mean_before = row.total_ms / row.calls, row.total_ms_before / row.calls_before
    ratio = THRESHOLDS.alerted_slow_ratio
    return mean >= ratio * mean_before or row.p95_ms >= ratio * row.p95_ms_before > 0


def _forget_the_unfelt(scene: Scene, ledger: Ledger) -> None:
    """Drop added time that is lost in all the time that users, and messages, wait anyway."""
    waited = _felt(scene)[1]
    lost = sum(b.lost_ms for b in ledger.of.values())
    harmless = lost < THRESHOLDS.harm_share * (waited - lost) or not _anybody_waits_longer(scene)
    least = float("inf") if harmless else THRESHOLDS.relevant_share * waited
    for subject in [s for s, b in ledger.of.items() if b.lost_ms < least]:
        ledger.of[subject].lost_ms = 0.0
        if not ledger.of[subject].errors:
            del ledger.of[subject]
    waiting = _ends_that_wait(scene, ledger, waited=waited)
    for service, (errors, added) in list(ledger.symptoms.items()):
        if not errors and added < least and service not in waiting:
            del ledger.symptoms[service]


def _ends_that_wait(scene: Scene, ledger: Ledger, *, waited: float) -> set[str]:
    """Return where users clearly wait longer, whether or not it was seen why: unexplained is not harmless."""
    added = {service: ledger.symptoms[service][1] for service in _ends(scene) if service in ledger.symptoms}
    felt = sum(added.values())
    return {s for s in added if added[s]} if felt >= THRESHOLDS.harm_share * (waited - felt) else set()


def _share_out(scene: Scene, ledger: Ledger) -> None:
    """Turn errors and milliseconds into parts of the whole; each of both weighs as much as it hurts."""
    errors, lost = sum(b.errors for b in ledger.of.values()), sum(b.lost_ms for b in ledger.of.values())
    by_errors, by_time = _severities(scene, errors=errors, lost_ms=lost)
    by_errors, by_time = (by_errors if errors else 0.0), (by_time if lost else 0.0)
    whole = by_errors + by_time
    for blame in ledger.of.values():
        blame.share = _share(by_errors * _share(blame.errors, errors) + by_time * _share(blame.lost_ms, lost), whole)


def _severities(scene: Scene, *, errors: float, lost_ms: float) -> tuple[float, float]:
    """Return how much errors hurt and how much time hurts, each 0..1, measured at what users and messages feel."""
    calls, waited = _felt(scene)
    by_errors = min(1.0, _share(errors, max(calls, 1.0)) / THRESHOLDS.errors_hurt_share)
    by_time = min(1.0, _share(lost_ms, max(waited - lost_ms, 0.1 * waited, 1.0)) / THRESHOLDS.time_hurt_share)
    return max(0.01, by_errors), max(0.01, by_time)


def _find_victim(scene: Scene, ledger: Ledger, service: str) -> None:
    """Record what a service suffers from when most of its badness comes from below."""
    if service not in ledger.symptoms:
        return
    errors, added = ledger.symptoms[service]
    own = ledger.get(scene.subject_of(service))
    if own.errors > 0.5 * errors or (own.lost_ms > 0.5 * added and not errors):
        return
    down = [(_suffered(ledger, e, errors=errors, added=added), e) for e in scene.out_of(service)]
    worst = max(down, key=lambda pair: (pair[0], pair[1].name), default=None)
    if worst is None or worst[0] <= 0:
        return
    edge = worst[1]
    ledger.victims[service] = edge.name if ledger.share(edge.subject) >= THRESHOLDS.locus_min else edge.row.callee


def _suffered(ledger: Ledger, edge: EdgeFact, *, errors: float, added: float) -> float:
    return _share(edge.raw_errors_added, errors) + _share(edge.raw_ms_added, added) + ledger.share(edge.subject)
