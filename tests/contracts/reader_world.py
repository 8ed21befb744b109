"""A small made-up shop in the exporter's tables: a healthy past, then one thing that breaks at a known moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from quell.domain import Window
from quell.signals._client import StoreClient

Row = dict[str, object]
TABLES = ("otel_logs", "otel_traces", "otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram")
BASELINE_S = 600
WINDOW_S = 120
RESOURCE = {"service.version": "1.0.0", "service.instance.id": "i-1", "host.name": "h1"}


@dataclass(slots=True)
class World:
    """Rows to insert, and the truth about them."""

    fault_at: datetime
    rows: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in TABLES})

    @property
    def window(self) -> Window:
        return Window(start=self.fault_at - timedelta(seconds=30), end=self.fault_at + timedelta(seconds=WINDOW_S))

    @property
    def baseline(self) -> Window:
        return self.window.before(length=timedelta(seconds=BASELINE_S))

    async def insert(self, client: StoreClient, *, tables: Sequence[str] = TABLES) -> None:
        for table in tables:
            if self.rows[table]:
                payload = "\n".join(json.dumps(row) for row in self.rows[table]).encode()
                settings = {"date_time_input_format": "best_effort"}
                await client.insert(table, payload, input_format="JSONEachRow", settings=settings, timeout_s=20)

    def span(
        self,
        at: datetime,
        *,
        service: str,
        name: str,
        kind: str,
        ms: float,
        ids: tuple[str, str, str],
        error: str = "",
        attributes: dict[str, str] | None = None,
        resource: dict[str, str] | None = None,
    ) -> None:
        trace, span, parent = ids
        self.rows["otel_traces"].append(
            {
                "Timestamp": _time(at),
                "TraceId": trace,
                "SpanId": span,
                "ParentSpanId": parent,
                "SpanName": name,
                "SpanKind": kind,
                "ServiceName": service,
                "ResourceAttributes": resource or RESOURCE,
                "SpanAttributes": {**(attributes or {}), **({"error.type": error} if error else {})},
                "Duration": round(ms * 1e6),
                "StatusCode": "Error" if error else "Unset",
                "StatusMessage": error,
            }
        )

    def log(
        self,
        at: datetime,
        *,
        service: str,
        body: str,
        severity: str = "INFO",
        ids: tuple[str, str] = ("", ""),
        event: str = "",
        attributes: dict[str, str] | None = None,
    ) -> None:
        self.rows["otel_logs"].append(
            {
                "Timestamp": _time(at),
                "TraceId": ids[0],
                "SpanId": ids[1],
                "SeverityText": severity,
                "SeverityNumber": {"INFO": 9, "WARN": 13, "ERROR": 17}.get(severity, 0),
                "ServiceName": service,
                "Body": body,
                "ResourceAttributes": RESOURCE,
                "LogAttributes": attributes or {},
                "EventName": event,
            }
        )

    def metric(
        self,
        at: datetime,
        *,
        service: str,
        name: str,
        value: float,
        unit: str = "",
        table: str = "otel_metrics_gauge",
        attributes: dict[str, str] | None = None,
        instance: str = "i-1",
        count: int = 0,
        delta_s: float = 0.0,
    ) -> None:
        """Add one point; with `delta_s` it tells what was added since so many seconds, else the sum so far."""
        row: Row = {
            "ResourceAttributes": {**RESOURCE, "service.instance.id": instance},
            "ServiceName": service,
            "MetricName": name,
            "MetricUnit": unit,
            "Attributes": attributes or {},
            "StartTimeUnix": _time(self.fault_at - timedelta(seconds=BASELINE_S + 60)),
            "TimeUnix": _time(at),
        }
        if table == "otel_metrics_histogram":
            row |= {"Count": count, "Sum": value, "AggregationTemporality": 2}
        else:
            row["Value"] = value
        if table == "otel_metrics_sum":
            row |= {"AggregationTemporality": 2, "IsMonotonic": True}
        if delta_s:
            row |= {"AggregationTemporality": 1, "StartTimeUnix": _time(at - timedelta(seconds=delta_s))}
        self.rows[table].append(row)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


Twist = Callable[[World, datetime, random.Random], dict[str, float | str]]
"""What is different about the request at this moment: `error`, `gap_ms`, `work_ms`, `lost`, `version`."""


def steady(_world: World, _at: datetime, _rng: random.Random) -> dict[str, float | str]:
    return {}


def build(fault_at: datetime, *, twist: Twist = steady, seed: int = 1, per_second: int = 4) -> World:
    """Make `front` call `stock`, which asks a database, for the whole baseline and window."""
    world, rng = World(fault_at=fault_at), random.Random(seed)
    at = fault_at - timedelta(seconds=BASELINE_S + 60)
    number = 0
    while at < fault_at + timedelta(seconds=WINDOW_S):
        for _ in range(per_second):
            number += 1
            moment = at + timedelta(seconds=rng.random())
            _request(world, moment, rng, number=number, twist=twist(world, moment, rng) if moment >= fault_at else {})
        at += timedelta(seconds=1)
    return world


def _request(world: World, at: datetime, rng: random.Random, *, number: int, twist: dict[str, float | str]) -> None:
    trace = f"{rng.getrandbits(128):032x}"
    front, call, stock, query = (f"{rng.getrandbits(64):016x}" for _ in range(4))
    error, gap = str(twist.get("error", "")), float(twist.get("gap_ms", rng.uniform(0.5, 1.5)))
    db, work = rng.uniform(1, 3), float(twist.get("work_ms", rng.uniform(4, 8)))
    resource = {**RESOURCE, "service.version": str(twist.get("version", "1.0.0"))}
    region = rng.choice(["eu", "us"])
    ms = timedelta(milliseconds=1)
    world.span(
        at, service="front", name="GET /item", kind="Server", ms=work + db + gap + 2, ids=(trace, front, ""),
        error="500" if error else "", attributes={"http.route": "/item", "region": region},
    )  # fmt: skip
    world.log(at + ms, service="front", body=f"request {number} received", ids=(trace, front))
    world.span(
        at + 2 * ms, service="front", name="GET stock", kind="Client", ms=work + db + gap, ids=(trace, call, front),
        error=error, attributes={"server.address": "10.0.0.7", "server.port": "8080"},
    )  # fmt: skip
    if twist.get("lost"):
        return
    begun = at + (2 + gap / 2) * ms
    world.span(
        begun, service="stock", name="GET /stock", kind="Server", ms=work + db, ids=(trace, stock, call),
        error=error, attributes={"http.route": "/stock", "tenant": "acme" if error else rng.choice(["acme", "b", "c"])},
        resource=resource,
    )  # fmt: skip
    world.log(begun + ms, service="stock", body=f"look up item {number}", ids=(trace, stock))
    world.span(
        begun + 2 * ms, service="stock", name="SELECT items", kind="Client", ms=db, ids=(trace, query, stock),
        attributes={"db.system.name": "postgresql", "peer.service": "items-db"},
    )  # fmt: skip
    if error:
        world.log(
            begun + 5 * ms, service="stock", severity="ERROR", body=f"no stock level for item {number}: {error}",
            ids=(trace, stock),
        )  # fmt: skip
    else:
        world.log(begun + 5 * ms, service="stock", body=f"item {number} found", ids=(trace, stock))
