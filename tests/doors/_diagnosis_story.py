"""A small model of a shop that is computed twice, healthy and in trouble, and told as a survey."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from quell.domain import (
    Alert,
    AttributeDiff,
    ChangeKind,
    EdgeShift,
    Evidence,
    Fact,
    FlowBreak,
    Gap,
    GapReason,
    MetricShift,
    Observation,
    ObservedChange,
    OperationShift,
    PatternShift,
    QuestionKind,
    Scope,
    Severity,
    Survey,
    Symptom,
    Window,
)

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
"""Start of the window; the onset of a story lies ten seconds later."""
ONSET = START + timedelta(seconds=10)
WINDOW = Window(start=START, end=START + timedelta(seconds=90))
BASELINE = Window(start=START - timedelta(seconds=320), end=START - timedelta(seconds=20))

Shape = Literal["step", "spike", "trend", "gone", "appeared"]
Level = Literal["trace", "debug", "info", "warn", "error", "fatal"]


@dataclass
class World:
    """How every service and every edge behaves in one of the two windows."""

    rate: float = 12.0
    own_ms: dict[str, float] = field(
        default_factory=lambda: {"web": 6.0, "api": 9.0, "search": 7.0, "stock": 5.0, "bill": 8.0, "worker": 12.0}
    )
    own_errors: dict[str, float] = field(default_factory=dict)
    gap_ms: dict[tuple[str, str], float] = field(default_factory=dict)
    """Added on top of the usual millisecond; for stores the whole duration of a call."""
    lost: dict[tuple[str, str], float] = field(default_factory=dict)
    """Part of the calls that fail on the way; the callee never sees them."""
    rejected: dict[tuple[str, str], float] = field(default_factory=dict)
    """Part of the calls that the caller counts as failed although the callee answered without an error."""
    loss_ms: float = 1000.0
    """How long the caller waits for a lost call."""
    fanout: dict[tuple[str, str], float] = field(
        default_factory=lambda: {
            ("web", "api"): 1.0,
            ("web", "search"): 0.6,
            ("api", "stock"): 1.0,
            ("api", "bill"): 0.7,
            ("search", "maindb"): 1.0,
            ("stock", "maindb"): 2.0,
            ("bill", "maindb"): 1.0,
            ("bill", "bank"): 0.6,
            ("search", "stock"): 0.5,
            ("worker", "maindb"): 1.0,
        }
    )
    worker_rate: float = 3.0

    def calls(self, service: str) -> float:
        """Calls per second that reach a service."""
        if service == "web":
            return self.rate
        if service == "worker":
            return self.worker_rate
        return sum(
            self.calls(a) * n * (1 - self.lost.get((a, b), 0)) for (a, b), n in self.fanout.items() if b == service
        )

    def server_ms(self, service: str) -> float:
        """Mean duration inside a service."""
        return self.own_ms[service] + sum(n * self.client_ms(a, b) for (a, b), n in self.fanout.items() if a == service)

    def server_errors(self, service: str) -> float:
        """Part of the calls that a service fails."""
        below = sum(min(1.0, n) * self.client_errors(a, b) for (a, b), n in self.fanout.items() if a == service)
        return min(1.0, self.own_errors.get(service, 0.0) + below)

    def client_errors(self, caller: str, callee: str) -> float:
        """Part of the calls that a caller sees fail."""
        lost = self.lost.get((caller, callee), 0.0)
        inside = self.server_errors(callee) if callee in self.own_ms else 0.0
        return min(1.0, lost + (1 - lost) * inside + self.rejected.get((caller, callee), 0.0))

    def client_ms(self, caller: str, callee: str) -> float:
        """Mean duration of a call as its caller sees it."""
        lost = self.lost.get((caller, callee), 0.0)
        return lost * self.loss_ms + (1 - lost) * (
            self.gap(caller, callee) + (self.server_ms(callee) if callee in self.own_ms else 0.0)
        )

    def gap(self, caller: str, callee: str) -> float:
        """Mean time between the two ends."""
        usual = {"maindb": 2.5, "bank": 30.0}.get(callee, 1.2)
        return usual + self.gap_ms.get((caller, callee), 0.0)


class Story:
    """Two worlds, what was changed and logged and measured, and the survey that tells it."""

    def __init__(self, seed: int = 1) -> None:
        self.before, self.now = World(), World()
        self.random = random.Random(seed)
        self.rows: list[tuple[QuestionKind, Observation]] = []
        self.gaps: list[Gap] = []
        self.types: dict[tuple[str, str], tuple[str, ...]] = {}
        self.databases: set[str] = {"maindb"}
        self.silent_pairs: set[tuple[str, str]] = set()

    # -- what happens beside the calls

    def change(
        self,
        kind: ChangeKind,
        service: str,
        *,
        at_s: float,
        subject: str = "service.version",
        before: str = "",
        after: str = "",
        detail: str = "",
    ) -> None:
        """Record a change, in seconds from the onset."""
        row = ObservedChange(
            at=ONSET + timedelta(seconds=at_s),
            change=kind,
            service=service,
            subject=subject,
            before=before,
            after=after,
            detail=detail,
        )
        self.rows.append((QuestionKind.CHANGES, row))

    def metric(
        self,
        service: str,
        metric: str,
        before: float,
        after: float,
        *,
        limit: float | None = None,
        unit: str = "1",
        shape: Shape = "step",
        at_s: float | None = 2,
        peak: float | None = None,
        **attributes: str,
    ) -> None:
        """Record a moved series."""
        row = MetricShift(
            service=service,
            metric=metric,
            unit=unit,
            attributes=tuple(sorted((k.replace("__", "."), v) for k, v in attributes.items())),
            shape=shape,
            before=before,
            after=after,
            peak=after if peak is None else peak,
            limit=limit,
            since=None if at_s is None else ONSET + timedelta(seconds=at_s),
            score=6.0,
        )
        self.rows.append((QuestionKind.METRIC_SHIFTS, row))

    def log(
        self,
        service: str,
        template: str,
        *,
        count: int = 40,
        count_before: int = 0,
        severity: Level = "error",
        at_s: float = 1,
    ) -> None:
        """Record a log template that is new or more frequent."""
        first = ONSET + timedelta(seconds=at_s)
        row = PatternShift(
            service=service,
            severity=severity,
            template_id=hashlib.sha256(template.encode()).hexdigest()[:16],
            template=template,
            count=count,
            count_before=count_before,
            first_seen=first if not count_before else BASELINE.start,
            last_seen=WINDOW.end - timedelta(seconds=1),
            example=template[:200],
            is_new=not count_before,
        )
        self.rows.append((QuestionKind.NEW_PATTERNS if row.is_new else QuestionKind.CHANGED_PATTERNS, row))

    def statement(self, service: str, name: str, before_ms: float, now_ms: float, *, share: float = 0.5) -> None:
        """Record one database statement of a service."""
        self._operation(
            service,
            name,
            "client",
            self.now.calls(service) * share,
            self.before.calls(service) * share,
            now_ms,
            before_ms,
            0,
            0,
        )

    def diff(self, service: str, key: str, value: str) -> None:
        """Record an attribute value that bad records carry."""
        row = AttributeDiff(
            service=service, key=key, value=value, bad=95, bad_total=100, good=20, good_total=400, bad_share_before=0.05
        )
        self.rows.append((QuestionKind.ATTRIBUTE_DIFF, row))

    def flow(self, service: str, before: str, after: str) -> None:
        """Record a step that is followed by something else."""
        row = FlowBreak(service=service, before=before, after=after, share=0.1, share_before=0.99, support=80)
        self.rows.append((QuestionKind.FLOW_BREAKS, row))

    def gap(self, question: QuestionKind, *, reason: GapReason = "timeout", source: str = "clickhouse") -> None:
        """Record something that could not be learned."""
        self.gaps.append(Gap(question=question, source=source, query="q", reason=reason, detail=f"{question} {reason}"))

    def noise(self) -> None:
        """Add what every real survey holds beside the point."""
        self.metric("web", "process.cpu.utilization", 0.11, 0.16, at_s=14)
        self.metric("search", "process.memory.usage", 81e6, 90e6, unit="By", limit=500e6, at_s=30, shape="trend")
        self.metric("worker", "http.server.active_requests", 1.0, 2.0, at_s=None)
        self.log("search", "cache refreshed in <*> ms", severity="info", count=14, count_before=9)
        self.log("web", "client closed the connection early", severity="warn", count=3, count_before=6)
        self.change(ChangeKind.DEPLOY, "search", at_s=-900, before="v6", after="v7")
        self.change(ChangeKind.CONFIG, "worker", at_s=-700, subject="batch", before="10", after="20")

    # -- the survey

    def survey(self) -> Survey:
        """Tell the story."""
        rows = [*self._calls(), *self.rows]
        facts = []
        for number, (question, row) in enumerate(rows, start=1):
            evidence = Evidence(
                id=f"E{number}",
                source="clickhouse",
                question=question,
                query="select",
                window=WINDOW,
                excerpt="row",
                digest=hashlib.sha256(repr(row).encode()).hexdigest(),
            )
            facts.append(Fact(evidence=evidence, observation=row, score=1.0))
        return Survey(scope=Scope(), window=WINDOW, baseline=BASELINE, facts=tuple(facts), gaps=tuple(self.gaps))

    def _calls(self) -> list[tuple[QuestionKind, Observation]]:
        kept, self.rows = self.rows, []
        for service in self.now.own_ms:
            kind: Literal["server", "consumer"] = "consumer" if service == "worker" else "server"
            names = {"web": ("GET /", "POST /order"), "worker": ("process parcels",)}.get(
                service, (f"POST /{service}",)
            )
            for name in names:
                part = 1 / len(names)
                self._operation(
                    service,
                    name,
                    kind,
                    self.now.calls(service) * part,
                    self.before.calls(service) * part,
                    self.now.server_ms(service),
                    self.before.server_ms(service),
                    self.now.server_errors(service),
                    self.before.server_errors(service),
                )
        self._operation(
            "api",
            "publish parcels",
            "producer",
            self.before.worker_rate * self.now.rate / 12,
            self.before.worker_rate,
            2,
            2,
            0,
            0,
        )
        for pair in self.now.fanout:
            self._edge(*pair)
        self._queue("parcels", producer="api", consumer="worker")
        made, self.rows = self.rows, kept
        return made

    def _wobble(self, value: float) -> float:
        return value * self.random.uniform(0.95, 1.05)

    def _operation(  # noqa: PLR0917 - a row of a table, told in order
        self,
        service: str,
        name: str,
        kind: Literal["server", "client", "consumer", "producer"],
        rate: float,
        rate_before: float,
        ms: float,
        ms_before: float,
        errors: float,
        errors_before: float,
    ) -> None:
        calls, calls_before = round(rate * WINDOW.seconds), round(rate_before * BASELINE.seconds)
        ms, ms_before = self._wobble(ms), self._wobble(ms_before)
        shifted = (
            ms > 1.3 * ms_before
            or errors > errors_before + 0.01
            or rate > 1.5 * rate_before
            or rate < 0.2 * rate_before
        )
        row = OperationShift(
            service=service,
            operation=name,
            span_kind=kind,
            calls=calls,
            errors=round(calls * errors),
            total_ms=ms * calls,
            p50_ms=0.8 * ms,
            p95_ms=2 * ms,
            calls_before=calls_before,
            errors_before=round(calls_before * errors_before),
            total_ms_before=ms_before * calls_before,
            p50_ms_before=0.8 * ms_before,
            p95_ms_before=2 * ms_before,
            since=ONSET + timedelta(seconds=self.random.choice((0, 5))) if shifted else None,
        )
        self.rows.append((QuestionKind.SLOW_OPERATIONS if ms > ms_before else QuestionKind.ERROR_RATES, row))

    def _edge(self, caller: str, callee: str) -> None:
        now, before = self.now, self.before
        calls = round(now.calls(caller) * now.fanout[caller, callee] * WINDOW.seconds)
        calls_before = round(before.calls(caller) * before.fanout[caller, callee] * BASELINE.seconds)
        answers = callee in now.own_ms
        lost = now.lost.get((caller, callee), 0.0)
        errors = now.client_errors(caller, callee)
        types = self.types.get((caller, callee), ("500",) if errors else ())
        kind: Literal["service", "database", "external"] = (
            "service" if answers else "database" if callee in self.databases else "external"
        )
        client, client_before = (
            self._wobble(now.client_ms(caller, callee)),
            self._wobble(before.client_ms(caller, callee)),
        )
        server = now.server_ms(callee) if answers and lost < 1 else None
        row = EdgeShift(
            caller=caller,
            callee=callee,
            callee_kind=kind,
            calls=calls,
            errors=round(calls * errors),
            unanswered=round(calls * lost) if answers else 0,
            client_ms=client,
            client_p95_ms=2 * client,
            server_ms=server,
            gap_ms=now.gap(caller, callee) if server is not None else None,
            calls_before=calls_before,
            errors_before=0,
            unanswered_before=0,
            client_ms_before=client_before,
            client_p95_ms_before=2 * client_before,
            server_ms_before=before.server_ms(callee) if answers else None,
            gap_ms_before=before.gap(caller, callee) if answers else None,
            error_types=types,
            since=ONSET if client > 1.3 * client_before or errors > 0.01 else None,
        )
        self.rows.append((QuestionKind.EDGE_GAPS, row))

    def _queue(self, name: str, *, producer: str, consumer: str) -> None:
        """Record the two edges of a queue: what puts into it, and what it feeds."""
        put, put_before = (
            round(3 * r / 12 * w.seconds) for r, w in ((self.now.rate, WINDOW), (self.before.rate, BASELINE))
        )
        took = round(self.now.calls(consumer) * WINDOW.seconds), round(self.before.calls(consumer) * BASELINE.seconds)
        ms, ms_before = self.now.server_ms(consumer), self.before.server_ms(consumer)
        for caller, callee, calls, calls_before, now_ms, was_ms in (
            (producer, name, put, put_before, 2.0, 2.0),
            (name, consumer, *took, ms, ms_before),
        ):
            row = EdgeShift(
                caller=caller,
                callee=callee,
                callee_kind="queue" if callee == name else "service",
                calls=calls,
                errors=0,
                unanswered=0,
                client_ms=now_ms,
                client_p95_ms=2 * now_ms,
                server_ms=None if callee == name else now_ms,
                gap_ms=None if callee == name else 0.0,
                calls_before=calls_before,
                errors_before=0,
                unanswered_before=0,
                client_ms_before=was_ms,
                client_p95_ms_before=2 * was_ms,
                server_ms_before=None if callee == name else was_ms,
                gap_ms_before=None if callee == name else 0.0,
            )
            self.rows.append((QuestionKind.EDGE_GAPS, row))

    def fail_into(self, callee: str, part: float, *types: str, wait_ms: float = 5.0) -> None:
        """Let every caller of a service fail to reach it."""
        self.now.loss_ms = wait_ms
        for pair in self.now.fanout:
            if pair[1] == callee:
                self.now.lost[pair] = part
                self.types[pair] = types

    def exit(self, service: str, reason: str, *, at_s: float = 0) -> None:
        """Record the end of a process."""
        self.change(ChangeKind.EXIT, service, at_s=at_s, subject="4711", after=reason)

    def start(self, service: str, *, at_s: float) -> None:
        """Record a process that started."""
        self.change(ChangeKind.RESTART, service, at_s=at_s, subject=f"instance-{at_s}")


def alert(service: str, symptom: Symptom = Symptom.ERRORS, *, at_s: float = 10) -> Alert:
    """Make an alert that fired some seconds after the onset."""
    return Alert(
        id=f"alr_{service}_{symptom}",
        fingerprint="0" * 16,
        source="detector",
        name=f"{service} {symptom}",
        service=service,
        symptom=symptom,
        severity=Severity.CRITICAL,
        status="firing",
        summary="something",
        starts_at=ONSET + timedelta(seconds=at_s),
        ends_at=None,
        received_at=ONSET + timedelta(seconds=at_s),
        labels=(),
    )
