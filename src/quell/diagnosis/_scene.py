"""The survey, indexed: services, edges and stores as they were and as they are."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, TypeVar

from quell.diagnosis._metrics import MetricFact, resource_of
from quell.diagnosis._vocabulary import STATEMENT, Nature, nature_of, symptoms_in
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import (
    Alert,
    AttributeDiff,
    ChangeKind,
    EdgeShift,
    Fact,
    FlowBreak,
    MetricShift,
    ObservedChange,
    OperationShift,
    PatternShift,
    Subject,
    Survey,
    Symptom,
)

T = TypeVar("T")
StoreKind: TypeAlias = Literal["database", "queue", "external"]
_FAILING: Final = frozenset({Symptom.ERRORS, Symptom.NEW_ERRORS})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFact:
    """One operation, compared with itself."""

    id: str
    row: OperationShift
    alerted: bool = False
    """Whether an alert says that calls fail."""

    @property
    def errors_added(self) -> float:
        """Failed calls beyond what the baseline's share predicts; 0 below the floors."""
        row = self.row
        return excess_errors(
            Tally(row.errors, row.calls),
            Tally(row.errors_before, row.calls_before),
            late=_late(row.errors_since, row.calls_since),
            alerted=self.alerted,
        )

    @property
    def failing(self) -> Tally:
        """The calls since the onset where they were counted, else those of the window."""
        row = self.row
        late = _late(row.errors_since, row.calls_since)
        return late if late and late.failed else Tally(row.errors, row.calls)

    @property
    def ms_added(self) -> float:
        """Milliseconds that all calls of the window took longer than the baseline's mean predicts; 0 below the floors."""
        row = self.row
        if min(row.calls, row.calls_before) < THRESHOLDS.calls_min:
            return 0.0
        mean, mean_before = row.total_ms / row.calls, row.total_ms_before / row.calls_before
        if is_slower(mean, mean_before) or is_tail_slower(row.p95_ms, row.p95_ms_before):
            return max(0.0, mean - mean_before) * row.calls
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeFact:
    """One caller -> callee edge, compared with itself."""

    id: str
    row: EdgeShift
    alerted: bool = False
    """Whether an alert says that calls fail."""

    @property
    def name(self) -> str:
        """`caller->callee`."""
        return f"{self.row.caller}->{self.row.callee}"

    @property
    def nature(self) -> Nature:
        """Where its failing calls fail, as far as their error types tell."""
        return nature_of(self.row.error_types)

    @property
    def subject(self) -> Subject:
        """The edge as an object at fault."""
        return Subject(kind="edge", name=self.name)

    @property
    def known(self) -> bool:
        """Whether both windows hold enough calls to compare durations."""
        return min(self.row.calls, self.row.calls_before) >= THRESHOLDS.calls_min

    @property
    def is_new(self) -> bool:
        """Whether nobody called this callee from here in the baseline: then the call itself is the caller's doing."""
        return self.row.calls_before == 0 and self.row.calls >= THRESHOLDS.calls_min

    @property
    def lost(self) -> float:
        """Calls beyond the baseline's share that nobody answers and that the caller feels; else 0.

        A callee that keeps one span in ten, or that stopped to send any, leaves calls unanswered that nobody misses.
        """
        row = self.row
        failed = _added(row.errors, row.calls, row.errors_before, row.calls_before)
        missing = _added(row.unanswered, row.calls, row.unanswered_before, row.calls_before)
        return missing if failed >= THRESHOLDS.self_share_min * missing else 0.0

    @property
    def raw_errors_added(self) -> float:
        """Failed or lost calls beyond the baseline's share, without floors: for explaining callers away."""
        row = self.row
        return max(_added(row.errors, row.calls, row.errors_before, row.calls_before), self.lost)

    @property
    def errors_added(self) -> float:
        """The same, 0 below the floors."""
        row = self.row
        late = _late(row.failed_since, row.calls_since)
        failed, failed_before = Tally(row.errors, row.calls), Tally(row.errors_before, row.calls_before)
        added = excess_errors(failed, failed_before, late=late, alerted=self.alerted)
        if not self.lost:
            return added
        lost, lost_before = Tally(row.unanswered, row.calls), Tally(row.unanswered_before, row.calls_before)
        return max(added, excess_errors(lost, lost_before, late=late, alerted=self.alerted))

    @property
    def raw_ms_added(self) -> float:
        """Milliseconds added as the caller saw them, without floors."""
        row = self.row
        if not row.calls_before:
            return row.client_ms * row.calls
        return max(0.0, row.client_ms - row.client_ms_before) * row.calls

    @property
    def own_ms(self) -> float | None:
        """Mean milliseconds of a call now that the callee does not account for; None when that cannot be told."""
        row = self.row
        if row.callee_kind == "queue":
            return None
        if row.gap_ms is not None and not self.lost:
            return max(0.0, row.gap_ms)
        return max(0.0, row.client_ms - (row.server_ms or 0.0) * (1 - self.lost_share))

    @property
    def own_ms_before(self) -> float:
        """The same in the baseline."""
        row = self.row
        if row.gap_ms_before is not None and not row.unanswered_before:
            return max(0.0, row.gap_ms_before)
        return max(0.0, row.client_ms_before - (row.server_ms_before or 0.0))

    @property
    def lost_share(self) -> float:
        """Part of the calls that get lost on the way."""
        return min(1.0, self.lost / self.row.calls) if self.row.calls else 0.0

    @property
    def own_ms_added(self) -> float:
        """Milliseconds that all calls of the window lost between caller and callee; 0 below the floors."""
        own = self.own_ms
        if own is None or not self.known:
            return 0.0
        added = own - self.own_ms_before
        if added < THRESHOLDS.gap_floor_ms or own < THRESHOLDS.gap_ratio * self.own_ms_before:
            return 0.0
        return added * self.row.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternFact:
    """One log template that appeared or changed its frequency."""

    id: str
    row: PatternShift
    symptoms: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFact:
    """One change, with everything that reports it."""

    ids: tuple[str, ...]
    row: ObservedChange
    at: datetime
    """The earliest report."""
    rank: int = 0

    @property
    def text(self) -> str:
        """All words of it, lower case."""
        return f"{self.row.subject} {self.row.before} {self.row.after} {self.row.detail}".casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffFact:
    """One attribute value among bad records."""

    id: str
    row: AttributeDiff


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFact:
    """One step that is followed by something else."""

    id: str
    row: FlowBreak

    @property
    def strength(self) -> float:
        """How clear the break is, 0..1: the part of the steps that goes elsewhere, where enough of them were seen."""
        return min(1.0, abs(self.row.share - self.row.share_before)) * min(
            1.0, self.row.support / THRESHOLDS.flow_support
        )


@dataclass(slots=True, kw_only=True)
class Scene:
    """Everything of one survey by what it is about."""

    survey: Survey
    alerts: tuple[Alert, ...]
    operations: dict[str, list[OperationFact]] = field(default_factory=dict)
    """Server and consumer operations by service."""
    requests: dict[str, list[OperationFact]] = field(default_factory=dict)
    """Client operations by the service that makes them."""
    produced: dict[str, list[OperationFact]] = field(default_factory=dict)
    edges: list[EdgeFact] = field(default_factory=list)
    loops: dict[str, int] = field(default_factory=dict)
    """Calls of both windows that a service makes to itself."""
    metrics: dict[str, list[MetricFact]] = field(default_factory=dict)
    patterns: dict[str, list[PatternFact]] = field(default_factory=dict)
    changes: list[ChangeFact] = field(default_factory=list)
    diffs: dict[str, list[DiffFact]] = field(default_factory=dict)
    flows: dict[str, list[FlowFact]] = field(default_factory=dict)
    stores: dict[str, StoreKind] = field(default_factory=dict)
    """Callees that report no calls themselves."""

    @property
    def services(self) -> tuple[str, ...]:
        """Every service that any fact names, stores excepted."""
        named = {*self.operations, *self.requests, *self.metrics, *self.patterns, *self.flows, *self.diffs}
        named |= {e.row.caller for e in self.edges} | {e.row.callee for e in self.edges}
        named |= {c.row.service for c in self.changes}
        return tuple(sorted(n for n in named if n and n not in self.stores))

    @property
    def pace(self) -> float:
        """Length of the window as a part of the baseline's."""
        return self.survey.window.seconds / self.survey.baseline.seconds

    def into(self, callee: str) -> list[EdgeFact]:
        """Return the edges that end here."""
        return [e for e in self.edges if e.row.callee == callee]

    def out_of(self, caller: str) -> list[EdgeFact]:
        """Return the edges that start here."""
        return [e for e in self.edges if e.row.caller == caller]

    def is_entry(self, service: str) -> bool:
        """Tell whether users or messages come in here: many of its calls are made by no service that is seen.

        To be called by another service now and then, or back by one that it calls itself, makes it no inner service.
        """
        rows = [o.row for o in self.operations.get(service, [])]
        callers = [e.row for e in self.into(service) if e.row.callee_kind != "queue"]
        if not rows or not any(r.caller in self.operations for r in callers):
            return bool(rows)
        taken = sum(self.taken_by(service))
        inner = sum(r.calls + r.calls_before for r in callers) + self.loops.get(service, 0)
        return taken - inner >= max(THRESHOLDS.calls_min, THRESHOLDS.entry_share_min * taken)

    def subject_of(self, name: str) -> Subject:
        """Return the object that a node's name stands for."""
        return Subject(kind=self.stores.get(name, "service"), name=name)

    def calls_of(self, service: str) -> tuple[int, float]:
        """Return calls taken in the window, and what the baseline's rate predicts for it."""
        calls, before = self.taken_by(service)
        return calls, before * self.pace

    def taken_by(self, service: str) -> tuple[int, int]:
        """Return calls taken in the window and in the baseline: over all operations where that was counted."""
        rows = [o.row for o in self.operations.get(service, [])]
        counted = [r for r in rows if r.service_calls is not None and r.service_calls_before is not None]
        calls, before = sum(r.calls for r in rows), sum(r.calls_before for r in rows)
        return (
            max([calls, *(r.service_calls or 0 for r in counted)]),
            max([before, *(r.service_calls_before or 0 for r in counted)]),
        )

    def changes_of(self, *kinds: ChangeKind, service: str | None = None) -> list[ChangeFact]:
        """Return the changes of some kinds, of one service or of all."""
        return [c for c in self.changes if c.row.change in kinds and (service is None or c.row.service == service)]

    def moved(self, service: str, *resources: str) -> list[MetricFact]:
        """Return the moved series of a service that measure one of these."""
        return [m for m in self.metrics.get(service, []) if m.resource in resources]

    def breaks(self, service: str) -> tuple[float, list[FlowFact]]:
        """Return how clearly the flow inside a service broke, and where; half as clear when a callee's flow broke too."""
        found = sorted(self.flows.get(service, []), key=lambda f: (-f.strength, f.id))
        if not found:
            return 0.0, []
        below = max((f.strength for e in self.out_of(service) for f in self.flows.get(e.row.callee, [])), default=0.0)
        return found[0].strength * (0.5 if below >= 0.5 * found[0].strength else 1.0), found[:2]

    def words(self, service: str, symptom: str) -> list[PatternFact]:
        """Return the new or more frequent log templates of a service that speak of a failure mode."""
        return [p for p in self.patterns.get(service, []) if symptom in p.symptoms]


@dataclass(frozen=True, slots=True)
class Tally:
    """Calls, and how many of them failed."""

    failed: int
    calls: int

    @property
    def share(self) -> float:
        """Part of the calls that failed; 0 of none."""
        return min(1.0, self.failed / self.calls) if self.calls else 0.0


def excess_errors(now: Tally, before: Tally, *, late: Tally | None, alerted: bool) -> float:
    """Return failed calls beyond the baseline's share, or 0 when they may be chance.

    They are no chance when the whole window differs clearly from the baseline; or when what came since the onset
    (`late`) does: trouble that has just begun is a small part of the window. The onset was chosen to differ, so it has
    to differ more. Where an alert already says that calls fail, less is enough.
    """
    needed = THRESHOLDS.error_z_alerted_min if alerted else THRESHOLDS.error_z_min
    if _differs(now, before, z_min=needed) or (late and _differs(late, before, z_min=THRESHOLDS.error_z_onset_min)):
        return max(0.0, now.failed - now.calls * before.share)
    return 0.0


def _added(part: int, whole: int, part_before: int, whole_before: int) -> float:
    return max(0.0, part - whole * (part_before / whole_before if whole_before else 0.0))


def _differs(now: Tally, before: Tally, *, z_min: float) -> bool:
    """Compare two shares by the pooled z test, after floors."""
    if not now.calls or now.failed < THRESHOLDS.errors_min:
        return False
    if now.share - before.share < THRESHOLDS.error_share_floor:
        return False
    pooled = min(1.0, (now.failed + before.failed) / (now.calls + before.calls))
    if pooled >= 1:
        return True
    spread = math.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / now.calls + 1 / max(before.calls, 1)))
    return (now.share - before.share) / spread >= z_min


def _late(failed: int | None, calls: int | None) -> Tally | None:
    return None if failed is None or calls is None else Tally(failed, calls)


def is_slower(mean_ms: float, before_ms: float) -> bool:
    """Tell whether a mean grew by both ratio and floor."""
    return mean_ms - before_ms >= THRESHOLDS.slow_floor_ms and mean_ms >= THRESHOLDS.slow_ratio * before_ms


def is_tail_slower(p95_ms: float, before_ms: float) -> bool:
    """Tell whether a 95th percentile grew by both ratio and floor."""
    return p95_ms - before_ms >= THRESHOLDS.tail_floor_ms and p95_ms >= THRESHOLDS.tail_ratio * before_ms


def earliest(moments: Iterable[datetime | None]) -> datetime | None:
    """Return the first of the known moments."""
    return min((m for m in moments if m is not None), default=None)


def is_statement(operation: str) -> bool:
    """Tell whether a client span's name is a statement for a database."""
    return STATEMENT.match(operation) is not None


def _natural(evidence_id: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"(\D*)(\d{1,9})", evidence_id)
    return (match[1], int(match[2]), "") if match else (evidence_id, -1, evidence_id)


def build_scene(survey: Survey, alerts: Sequence[Alert]) -> Scene:
    """Index a survey; the order of its facts does not matter."""
    facts = sorted(survey.facts, key=lambda f: (_natural(f.evidence.id), f.evidence.digest, repr(f.observation)))
    scene = Scene(survey=survey, alerts=tuple(sorted(alerts, key=lambda a: (a.starts_at, a.id))))
    alerted = any(a.status == "firing" and a.symptom in _FAILING for a in scene.alerts)
    _index_operations(scene, facts, alerted=alerted)
    scene.edges = _unique_edges(facts, alerted=alerted)
    scene.loops = _loops(facts)
    scene.metrics = _grouped(
        (
            f.observation.service,
            MetricFact(id=f.evidence.id, row=f.observation, resource=resource_of(f.observation.metric)),
        )
        for f in facts
        if isinstance(f.observation, MetricShift)
    )
    scene.patterns = _grouped(
        _pattern(f, f.observation, pace=scene.pace) for f in facts if isinstance(f.observation, PatternShift)
    )
    scene.diffs = _grouped(
        (f.observation.service, DiffFact(id=f.evidence.id, row=f.observation))
        for f in facts
        if isinstance(f.observation, AttributeDiff)
    )
    scene.flows = _grouped(
        (f.observation.service, FlowFact(id=f.evidence.id, row=f.observation))
        for f in facts
        if isinstance(f.observation, FlowBreak)
    )
    scene.changes = _merged_changes(facts)
    _find_stores(scene)
    _house_store_metrics(scene)
    return scene


def _index_operations(scene: Scene, facts: Sequence[Fact], *, alerted: bool) -> None:
    seen: set[tuple[str, str, str]] = set()
    targets = {
        "server": scene.operations,
        "consumer": scene.operations,
        "client": scene.requests,
        "producer": scene.produced,
    }
    for fact in sorted(facts, key=_least_calls_last):
        row = fact.observation
        if not isinstance(row, OperationShift) or row.span_kind not in targets:
            continue
        if (key := (row.service, row.operation, row.span_kind)) in seen:
            continue
        seen.add(key)
        targets[row.span_kind].setdefault(row.service, []).append(
            OperationFact(id=fact.evidence.id, row=row, alerted=alerted)
        )


def _least_calls_last(fact: Fact) -> int:
    row = fact.observation
    return -(row.calls + row.calls_before) if isinstance(row, OperationShift | EdgeShift) else 0


def _unique_edges(facts: Sequence[Fact], *, alerted: bool) -> list[EdgeFact]:
    found: dict[tuple[str, str], EdgeFact] = {}
    for fact in sorted(facts, key=_least_calls_last):
        row = fact.observation
        if isinstance(row, EdgeShift) and row.caller != row.callee:
            found.setdefault((row.caller, row.callee), EdgeFact(id=fact.evidence.id, row=row, alerted=alerted))
    return [found[key] for key in sorted(found)]


def _loops(facts: Sequence[Fact]) -> dict[str, int]:
    rows = [f.observation for f in facts if isinstance(f.observation, EdgeShift)]
    own = sorted((r.caller, r.calls + r.calls_before) for r in rows if r.caller == r.callee)
    return dict(own)


def _pattern(fact: Fact, row: PatternShift, *, pace: float) -> tuple[str, PatternFact]:
    grew = row.is_new or row.count > row.count_before * pace
    symptoms = symptoms_in(row.template) if grew and row.severity in {"warn", "error", "fatal"} else frozenset[str]()
    return row.service, PatternFact(id=fact.evidence.id, row=row, symptoms=symptoms)


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for service, item in pairs:
        groups[service].append(item)
    return dict(groups)


def _merged_changes(facts: Sequence[Fact]) -> list[ChangeFact]:
    """Join reports of the same change: same kind, service and (but for deploys) subject, close in time."""
    found: list[ChangeFact] = []
    rows = [(f.evidence.id, f.observation) for f in facts if isinstance(f.observation, ObservedChange)]
    for evidence_id, row in sorted(rows, key=lambda pair: (pair[1].at, _natural(pair[0]))):
        same = next((i for i, c in enumerate(found) if _is_same(c, row)), None)
        if same is None:
            found.append(ChangeFact(ids=(evidence_id,), row=row, at=row.at))
        else:
            old = found[same]
            fuller = max((old.row, row), key=lambda r: (bool(r.before), bool(r.after), len(r.detail)))
            found[same] = ChangeFact(ids=(*old.ids, evidence_id), row=fuller, at=old.at)
    return found


def _is_same(known: ChangeFact, row: ObservedChange) -> bool:
    if known.row.change is not row.change or known.row.service != row.service:
        return False
    near = row.at - known.at <= timedelta(seconds=THRESHOLDS.deploy_restart_s)
    if row.change is ChangeKind.DEPLOY:
        return near and (known.row.after == row.after or not known.row.after or not row.after)
    return (
        near
        and row.change in {ChangeKind.FLAG, ChangeKind.CONFIG}
        and (known.row.subject, known.row.after) == (row.subject, row.after)
    )


def _find_stores(scene: Scene) -> None:
    callers = {e.row.caller for e in scene.edges}
    for edge in scene.edges:
        row = edge.row
        if row.callee in scene.operations:
            continue
        if row.callee_kind == "queue":
            # A queue is also the caller of what consumes from it.
            scene.stores[row.callee] = "queue"
            continue
        if row.callee in callers:
            continue
        if row.callee_kind != "service":
            scene.stores[row.callee] = row.callee_kind
        elif (
            row.server_ms is None
            and row.server_ms_before is None
            and not row.unanswered
            and row.callee not in scene.metrics
        ):
            scene.stores.setdefault(row.callee, "external")


def _house_store_metrics(scene: Scene) -> None:
    """Give series of a store that an exporter reports under its own name to the one store they can belong to."""
    databases = [name for name, kind in scene.stores.items() if kind == "database"]
    if len(databases) != 1:
        return
    strays = [
        m
        for service in sorted(scene.metrics)
        if service not in scene.stores
        for m in scene.metrics[service]
        if m.resource in {"locks", "scan", "query_time", "backends"}
    ]
    if strays:
        scene.metrics.setdefault(databases[0], []).extend(strays)
