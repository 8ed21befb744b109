"""A collector on loopback that speaks OTLP, and what it was sent in a form that tests can ask."""

from __future__ import annotations

import gzip
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from quell.audit import Redactor
from quell.config import Secret, Settings, StoreSettings, TelemetrySettings
from quell.telemetry import Telemetry, open_telemetry
from tests import _canaries

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "hunter2-correct-horse"
"""Held by telemetry in these rooms, and by nothing else of them."""
TRACE = CALLER.split("-")[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A span as it arrived."""

    name: str
    trace: str
    id: str
    parent: str
    began_ns: int
    ended_ns: int
    kind: int
    is_failed: bool
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


@dataclass(slots=True)
class Collector:
    """What was sent."""

    url: str = ""
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def spans(self) -> list[Seen]:
        found = []
        for path, body in self.bodies:
            if not path.endswith("/traces"):
                continue
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = _values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    found += [
                        Seen(
                            name=span.name,
                            trace=span.trace_id.hex(),
                            id=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            began_ns=span.start_time_unix_nano,
                            ended_ns=span.end_time_unix_nano,
                            kind=span.kind,
                            is_failed=span.status.code == 2,
                            attributes=_values(span.attributes),
                            resource=about,
                        )
                        for span in scope.spans
                    ]
        return found

    def spans_of(self, first_word: str) -> list[Seen]:
        return [span for span in self.spans() if span.name.split(" ")[0] == first_word]

    def span_of(self, first_word: str) -> Seen:
        (one,) = self.spans_of(first_word)
        return one

    def path_to(self, span: Seen) -> list[str]:
        """Return the first words of the names from the outermost span to this one."""
        by_id = {each.id: each for each in self.spans()}
        path = [span]
        while path[0].parent in by_id:
            path.insert(0, by_id[path[0].parent])
        return [each.name.split(" ")[0] for each in path]

    def metric_names(self) -> set[str]:
        return {metric.name for metric in self._metrics()}

    def _metrics(self) -> Iterator[Any]:
        for path, body in self.bodies:
            if path.endswith("/metrics"):
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        yield from scope.metrics

    def points(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """Return the newest state of a metric: attributes, and the sum, the last value, or the number of values."""
        newest: dict[str, tuple[dict[str, Any], float]] = {}
        for metric in self._metrics():
            if metric.name != name:
                continue
            for point in (*metric.sum.data_points, *metric.gauge.data_points):
                labels = _values(point.attributes)
                newest[repr(sorted(labels.items()))] = (labels, point.as_double or point.as_int)
            for bars in metric.histogram.data_points:
                labels = _values(bars.attributes)
                newest[repr(sorted(labels.items()))] = (labels, bars.count)
        return list(newest.values())

    def total(self, name: str, **labels: object) -> float:
        """Return the sum over the points of a metric that have these labels, `__` for dots."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        return sum(value for found, value in self.points(name) if wanted.items() <= found.items())

    def holds(self, text: str) -> bool:
        return any(text.encode() in body for _, body in self.bodies)


def _values(pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind == "array_value":
            found[pair.key] = [each.string_value for each in pair.value.array_value.values]
        else:
            found[pair.key] = getattr(pair.value, kind) if kind else None
    return found


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a real HTTP endpoint that takes whatever it is sent."""
    kept = Collector()

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            kept.bodies.append((self.path, body))
            kept.headers.append({key.lower(): value for key, value in self.headers.items()})
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def told(
    state_dir: Path, env: Mapping[str, str], *, record: bool = False, instance: str = "here"
) -> AsyncIterator[Telemetry]:
    """Open telemetry for a block, and send what is left at its end."""
    settings = Settings(
        state_dir=state_dir,
        telemetry=TelemetrySettings(level="error", record_content=record),
        store=StoreSettings(password=Secret(_canaries.IN_SETTINGS)),
    )
    env = {**_canaries.ENVIRONMENT, "SHOP_TOKEN": SECRET, **env}
    opened = open_telemetry(
        settings,
        role="serve",
        service_version="1.2",
        instance=instance,
        clock=lambda: NOON,
        env=env,
        clean=Redactor.of(settings, environment=env).text,
    )
    try:
        yield opened
    finally:
        await opened.close()
