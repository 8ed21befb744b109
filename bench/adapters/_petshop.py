"""Latency and availability per node of a call graph, in five-minute steps."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.adapters._survey import alert_of, moment, survey_of
from quell.domain import Alert, EdgeShift, Observation, OperationShift, QuestionKind, Survey, Symptom, Window

_STEP_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What one node did over some steps."""

    calls: int = 0
    errors: int = 0
    total_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0

    @property
    def mean_ms(self) -> float:
        """Mean duration of a call."""
        return self.total_ms / self.calls if self.calls else 0.0


def load(folder: Path) -> Iterator[tuple[str, Survey, Alert]]:
    """Yield every case with its survey: the steps from the alert on against the normal days of the same scenario."""
    pandas: Any = importlib.import_module("pandas")
    issues = dict(list(pandas.read_parquet(folder / "issues.parquet").groupby("case_id")))
    normals = {}
    for case in json.loads((folder / "cases.json").read_text()):
        if case["normal"] not in normals:
            normals[case["normal"]] = pandas.read_parquet(folder / case["normal"])
        normal, rows = normals[case["normal"]], issues[case["case_id"]]
        graph = json.loads((folder / case["graph"]).read_text())
        late = rows[rows.timestamp >= case["alert_timestamp"] - _STEP_S / 2]
        start = float(case["alert_timestamp"])
        window = Window(start=moment(start), end=moment(start + _STEP_S * late.timestamp.nunique()))
        baseline = Window(start=moment(start - _STEP_S * (1 + normal.timestamp.nunique())), end=moment(start - _STEP_S))
        now, before = _levels(late), _levels(normal)
        observations = [*_operations(now, before), *_edges(graph["edges"], now, before)]
        unread = (QuestionKind.CHANGES, QuestionKind.METRIC_SHIFTS, QuestionKind.NEW_PATTERNS)
        symptom = Symptom.LATENCY if case["target_metric"] == "latency" else Symptom.ERRORS
        alert = alert_of(case["target_node"], symptom, moment(start))
        yield case["case_id"], survey_of(observations, window=window, baseline=baseline, unread=unread), alert


def _levels(rows: Any) -> dict[str, Level]:
    """Add up the steps of every node, each weighed by its calls."""
    table = rows.pivot_table(index=["node", "timestamp"], columns=["metric", "statistic"], values="value")
    found: dict[str, Level] = {}
    for node, steps in table.groupby(level=0):
        calls = steps["requests", "Sum"].fillna(0)
        available = steps["availability", "Average"].fillna(100)
        weight = max(1.0, float(calls.sum()))
        mean, p50, p95 = (
            float((steps["latency", name].fillna(0) * calls).sum()) * 1000 for name in ("Average", "p50", "p95")
        )
        found[str(node)] = Level(
            calls=round(float(calls.sum())),
            errors=round(float((calls * (1 - available / 100)).sum())),
            total_ms=mean,
            p50_ms=p50 / weight,
            p95_ms=p95 / weight,
        )
    return found


def _operations(now: dict[str, Level], before: dict[str, Level]) -> Iterator[Observation]:
    for node in sorted({*now, *before}):
        a, b = now.get(node, Level()), before.get(node, Level())
        yield OperationShift(
            service=node,
            operation="all",
            span_kind="server",
            calls=a.calls,
            errors=a.errors,
            total_ms=a.total_ms,
            p50_ms=a.p50_ms,
            p95_ms=a.p95_ms,
            calls_before=b.calls,
            errors_before=b.errors,
            total_ms_before=b.total_ms,
            p50_ms_before=b.p50_ms,
            p95_ms_before=b.p95_ms,
        )


def _edges(pairs: list[list[str]], now: dict[str, Level], before: dict[str, Level]) -> Iterator[Observation]:
    """The set tells nodes only: an edge carries the figures of its callee."""
    for caller, callee in sorted(pairs):
        a, b = now.get(callee, Level()), before.get(callee, Level())
        yield EdgeShift(
            caller=caller,
            callee=callee,
            callee_kind="service",
            calls=a.calls,
            errors=a.errors,
            unanswered=0,
            client_ms=a.mean_ms,
            client_p95_ms=a.p95_ms,
            server_ms=a.mean_ms,
            gap_ms=0.0,
            calls_before=b.calls,
            errors_before=b.errors,
            unanswered_before=0,
            client_ms_before=b.mean_ms,
            client_p95_ms_before=b.p95_ms,
            server_ms_before=b.mean_ms,
            gap_ms_before=0.0,
        )
