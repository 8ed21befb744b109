"""Traces, logs and metrics of a fault against one fault-free minute of the same day."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from bench.adapters._survey import alert_of, moment, survey_of
from quell.domain import (
    Alert,
    EdgeShift,
    FlowBreak,
    MetricShift,
    Observation,
    OperationShift,
    PatternShift,
    QuestionKind,
    Survey,
    Symptom,
    Window,
)

_STATEMENT = re.compile(r"^(?:SELECT|INSERT|UPDATE|DELETE)\b")
_REQUEST = re.compile(r"^HTTP (?:GET|POST|PUT|DELETE|PATCH)$")
_POD = re.compile(r"-[a-f0-9]{8,10}-[a-z0-9]{5}$")
_STAMP = re.compile(r"^\S+\s+(?P<level>[A-Z]+)\s+(?P<place>\S+#\d+)")


@dataclass
class Calls:
    """Durations and failures of one operation or edge."""

    durations: list[float] = field(default_factory=list)
    servers: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def mean(self) -> float:
        return sum(self.durations) / len(self.durations) if self.durations else 0.0

    @property
    def server_mean(self) -> float | None:
        return sum(self.servers) / len(self.servers) if self.servers else None

    def quantile(self, part: float) -> float:
        ordered = sorted(self.durations)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


@dataclass
class Minute:
    """What one phase holds."""

    operations: dict[tuple[str, str, str], Calls] = field(default_factory=lambda: defaultdict(Calls))
    edges: dict[tuple[str, str, str], Calls] = field(default_factory=lambda: defaultdict(Calls))
    steps: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    patterns: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seen: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)


def load(folder: Path) -> Iterator[tuple[str, Survey, Alert]]:
    """Yield every case with its survey."""
    pandas: Any = importlib.import_module("pandas")
    cases = json.loads((folder / "cases.json").read_text())
    traces, logs = (pandas.read_parquet(folder / f"{name}.parquet") for name in ("traces", "logs"))
    metrics = pandas.read_parquet(folder / "metrics.parquet")
    spans = dict(list(traces.groupby("case_id")))
    lines = dict(list(logs.groupby("case_id")))
    series = dict(list(metrics.groupby("case_id")))
    for case in cases:
        normal, name = case["normal_ref"], case["case_id"]
        now, before = _minute(spans[name], lines.get(name)), _minute(spans[normal], lines.get(normal))
        start, end = float(spans[name].t_ns.min()) / 1e9, float(spans[name].t_ns.max()) / 1e9 + 1
        window = Window(start=moment(start), end=moment(end))
        # The fault-free minute was recorded at another load, so its length is stretched until the rates agree.
        length = (end - start) * spans[normal].trace.nunique() / spans[name].trace.nunique()
        baseline = Window(start=moment(start - length - 60), end=moment(start - 60))
        rows = [*_shifts(now, before, window), *_metrics(series.get(name), start)]
        unread = (QuestionKind.CHANGES, QuestionKind.ATTRIBUTE_DIFF)
        alert = alert_of("", Symptom.OTHER, moment(float(case["alert_time"])))
        yield name, survey_of(rows, window=window, baseline=baseline, unread=unread), alert


def _minute(spans: Any, lines: Any) -> Minute:
    minute = Minute()
    rows = list(zip(spans.trace, spans.span, spans.parent, spans.pod, spans.operation, spans.duration_us, strict=True))
    by_span = {(row[0], row[1]): row for row in rows}
    failed = {(row[0], _POD.sub("", row[3])) for row in rows if row[4] == "BasicErrorController.error"}
    for trace, _, parent, pod, operation, duration in rows:
        service, above = _POD.sub("", pod), by_span.get((trace, parent))
        caller = _POD.sub("", above[3]) if above else ""
        ms = duration / 1000
        if above is None or caller != service:
            calls = minute.operations[service, operation, "server"]
            calls.durations.append(ms)
            calls.errors += (trace, service) in failed
            if above is not None:
                edge = minute.edges[caller, service, "service"]
                edge.durations.append(above[5] / 1000)
                edge.servers.append(ms)
                edge.errors += (trace, service) in failed
        elif _STATEMENT.match(operation) and not _STATEMENT.match(above[4]):
            minute.operations[service, operation, "client"].durations.append(ms)
            minute.edges[service, f"{service} store", "database"].durations.append(ms)
    if lines is not None:
        _read_lines(minute, lines)
    return minute


def _read_lines(minute: Minute, lines: Any) -> None:
    last: dict[tuple[int, int], str] = {}
    for trace, span, pod, message, t_ns in zip(
        lines.trace, lines.span, lines.pod, lines.message, lines.t_ns, strict=True
    ):
        match = _STAMP.match(message)
        if not match:
            continue
        service, place = _POD.sub("", pod), match["place"]
        key = (service, match["level"].lower(), place)
        minute.patterns[key] += 1
        moments = minute.seen.setdefault(key, [t_ns / 1e9, t_ns / 1e9])
        moments[0], moments[1] = min(moments[0], t_ns / 1e9), max(moments[1], t_ns / 1e9)
        if (before := last.get((trace, span))) is not None:
            minute.steps[service, before, place] += 1
            minute.places[service, before] += 1
        last[trace, span] = place


def _shifts(now: Minute, before: Minute, window: Window) -> Iterator[Observation]:
    for key in sorted({*now.operations, *before.operations}):
        a, b = now.operations.get(key, Calls()), before.operations.get(key, Calls())
        kind: Literal["server", "client"] = "server" if key[2] == "server" else "client"
        yield OperationShift(
            service=key[0],
            operation=key[1],
            span_kind=kind,
            calls=len(a.durations),
            errors=a.errors,
            total_ms=sum(a.durations),
            p50_ms=a.quantile(0.5),
            p95_ms=a.quantile(0.95),
            calls_before=len(b.durations),
            errors_before=b.errors,
            total_ms_before=sum(b.durations),
            p50_ms_before=b.quantile(0.5),
            p95_ms_before=b.quantile(0.95),
            since=None,
        )
    yield from _edge_shifts(now, before)
    yield from _flow_breaks(now, before)
    for pattern, count in sorted(now.patterns.items()):
        if pattern[1] in {"warn", "error"} and not before.patterns.get(pattern):
            first, last = now.seen[pattern]
            yield PatternShift(
                service=pattern[0],
                severity="error" if pattern[1] == "error" else "warn",
                template_id=pattern[2],
                template=pattern[2],
                count=count,
                count_before=0,
                first_seen=max(window.start, moment(first)),
                last_seen=moment(last),
                example="",
                is_new=True,
            )


def _edge_shifts(now: Minute, before: Minute) -> Iterator[EdgeShift]:
    for key in sorted({*now.edges, *before.edges}):
        a, b = now.edges.get(key, Calls()), before.edges.get(key, Calls())
        kind: Literal["service", "database"] = "service" if key[2] == "service" else "database"
        yield EdgeShift(
            caller=key[0],
            callee=key[1],
            callee_kind=kind,
            calls=len(a.durations),
            errors=a.errors,
            unanswered=0,
            client_ms=a.mean,
            client_p95_ms=a.quantile(0.95),
            server_ms=a.server_mean,
            gap_ms=None if a.server_mean is None else a.mean - a.server_mean,
            calls_before=len(b.durations),
            errors_before=b.errors,
            unanswered_before=0,
            client_ms_before=b.mean,
            client_p95_ms_before=b.quantile(0.95),
            server_ms_before=b.server_mean,
            gap_ms_before=None if b.server_mean is None else b.mean - b.server_mean,
        )


def _flow_breaks(now: Minute, before: Minute) -> Iterator[FlowBreak]:
    for service, first, then in sorted({*now.steps, *before.steps}):
        support, support_before = now.places[service, first], before.places[service, first]
        if min(support, support_before) < 10:
            continue
        share, share_before = (
            now.steps[service, first, then] / support,
            before.steps[service, first, then] / support_before,
        )
        if abs(share - share_before) >= 0.15:
            yield FlowBreak(
                service=service, before=first, after=then, share=share, share_before=share_before, support=support
            )


def _metrics(series: Any, start: float) -> Iterator[MetricShift]:
    if series is None:
        return
    for pod, rows in sorted(series.groupby("pod"), key=lambda pair: str(pair[0])):
        for column, metric, unit, scale in (
            ("CpuUsageRate(%)", "cpu.utilization", "1", 100.0),
            ("MemoryUsageRate(%)", "memory.utilization", "1", 100.0),
        ):
            early = [float(v) / scale for v, t in zip(rows[column], rows.t, strict=True) if t < start]
            late = [float(v) / scale for v, t in zip(rows[column], rows.t, strict=True) if t >= start]
            if len(early) < 3 or not late or max(late) < 1.5 * median(early) or max(late) - median(early) < 0.1:
                continue
            yield MetricShift(
                service=_POD.sub("", str(pod)),
                metric=metric,
                unit=unit,
                attributes=(),
                shape="step",
                before=median(early),
                after=median(late),
                peak=max(late),
                limit=1.0,
                since=None,
                score=max(late) / max(median(early), 0.01),
            )
