"""A tiny OTLP/HTTP receiver for the tests of the lab: keeps what it was sent, decoded."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


def attributes_of(pairs: list[KeyValue]) -> dict[str, object]:
    """Return attributes as plain values."""
    found: dict[str, object] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind) if kind else None
    return found


class Sink:
    """Listens on a free port and keeps spans, logs and metric points as dictionaries."""

    def __init__(self) -> None:
        self.spans: list[dict[str, object]] = []
        self.logs: list[dict[str, object]] = []
        self.points: list[dict[str, object]] = []
        self.requests: Counter[str] = Counter()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                sink.requests[self.path] += 1
                sink.take(self.path, body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        """Decode one export request."""
        {"/v1/traces": self._take_traces, "/v1/logs": self._take_logs}.get(path, self._take_metrics)(body)

    def _take_traces(self, body: bytes) -> None:
        traces = ExportTraceServiceRequest.FromString(body)
        for group in traces.resource_spans:
            resource = attributes_of(list(group.resource.attributes))
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "resource": resource,
                            "name": span.name,
                            "kind": span.kind,
                            "status": span.status.code,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
                            "attributes": attributes_of(list(span.attributes)),
                            "events": [event.name for event in span.events],
                        }
                    )

    def _take_logs(self, body: bytes) -> None:
        logs = ExportLogsServiceRequest.FromString(body)
        for log_group in logs.resource_logs:
            resource = attributes_of(list(log_group.resource.attributes))
            for log_scope in log_group.scope_logs:
                for record in log_scope.log_records:
                    self.logs.append(
                        {
                            "resource": resource,
                            "event": record.event_name,
                            "severity": record.severity_text,
                            "body": record.body.string_value,
                            "trace": record.trace_id.hex(),
                            "attributes": attributes_of(list(record.attributes)),
                        }
                    )

    def _take_metrics(self, body: bytes) -> None:
        metrics = ExportMetricsServiceRequest.FromString(body)
        for metric_group in metrics.resource_metrics:
            resource = attributes_of(list(metric_group.resource.attributes))
            for metric_scope in metric_group.scope_metrics:
                for metric in metric_scope.metrics:
                    kind = metric.WhichOneof("data")
                    assert kind is not None
                    for point in getattr(metric, kind).data_points:
                        value = point.sum if kind == "histogram" else (point.as_double or point.as_int)
                        self.points.append(
                            {
                                "resource": resource,
                                "name": metric.name,
                                "unit": metric.unit,
                                "kind": kind,
                                "value": value,
                                "attributes": attributes_of(list(point.attributes)),
                            }
                        )

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
