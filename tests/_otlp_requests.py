"""Export requests as services send them, for tests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def attributes(values: Mapping[str, str | bool | int | float]) -> list[KeyValue]:
    found = []
    for key, value in values.items():
        attribute = KeyValue(key=key)
        if isinstance(value, bool):
            attribute.value.bool_value = value
        elif isinstance(value, int):
            attribute.value.int_value = value
        elif isinstance(value, float):
            attribute.value.double_value = value
        else:
            attribute.value.string_value = value
        found.append(attribute)
    return found


def logs(
    service: str,
    bodies: Sequence[str],
    *,
    severity: str = "INFO",
    number: int = 9,
    event: str = "",
    of_record: Mapping[str, str | bool | int | float] | None = None,
    of_resource: Mapping[str, str | bool | int | float] | None = None,
    at_ns: int | None = None,
    apart_ns: int = 1,
) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(attributes({"service.name": service, **(of_resource or {})}))
    scope = resource.scope_logs.add()
    scope.scope.name = "test"
    start = time.time_ns() if at_ns is None else at_ns
    for index, body in enumerate(bodies):
        record = scope.log_records.add(
            time_unix_nano=start + index * apart_ns, severity_text=severity, severity_number=number, event_name=event
        )
        record.body.string_value = body
        record.attributes.extend(attributes(of_record or {}))
    return request


def call(
    caller: str,
    callee: str,
    *,
    at_ns: int,
    key: int,
    client_ms: int = 50,
    server_ms: int | None = 30,
    error_type: str = "",
) -> ExportTraceServiceRequest:
    """Make one call: the caller's span, and the callee's unless the call never arrived."""
    request = ExportTraceServiceRequest()
    trace, client, server = key.to_bytes(16, "big"), key.to_bytes(8, "big"), (key + 1).to_bytes(8, "big")
    spans = request.resource_spans.add()
    spans.resource.attributes.extend(attributes({"service.name": caller}))
    span = spans.scope_spans.add().spans.add(
        trace_id=trace,
        span_id=client,
        name="GET",
        kind=3,
        start_time_unix_nano=at_ns,
        end_time_unix_nano=at_ns + client_ms * 10**6,
    )
    span.attributes.extend(attributes({"peer.service": callee, "server.port": 80}))
    if error_type:
        span.status.code = 2
        span.attributes.extend(attributes({"error.type": error_type}))
    if server_ms is not None:
        spans = request.resource_spans.add()
        spans.resource.attributes.extend(attributes({"service.name": callee}))
        spans.scope_spans.add().spans.add(
            trace_id=trace,
            span_id=server,
            parent_span_id=client,
            name="GET /x",
            kind=2,
            start_time_unix_nano=at_ns + 10**6,
            end_time_unix_nano=at_ns + 10**6 + server_ms * 10**6,
        )
    return request


def metrics(service: str) -> ExportMetricsServiceRequest:
    """Make one request with a point of every kind."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(attributes({"service.name": service}))
    scope = resource.scope_metrics.add()
    now = time.time_ns()
    gauge = scope.metrics.add(name="queue.depth", unit="{message}")
    gauge.gauge.data_points.add(time_unix_nano=now, as_int=-7, attributes=attributes({"n": 0, "on": False}))
    gauge.gauge.data_points.add(time_unix_nano=now, as_double=0.25)
    total = scope.metrics.add(name="requests")
    total.sum.is_monotonic = True
    total.sum.aggregation_temporality = 2
    point = total.sum.data_points.add(time_unix_nano=now, start_time_unix_nano=now - 5, as_double=3.5)
    point.exemplars.add(as_int=9, time_unix_nano=now, span_id=b"12345678", filtered_attributes=attributes({"f": "v"}))
    latency = scope.metrics.add(name="latency", unit="s")
    latency.histogram.aggregation_temporality = 2
    latency.histogram.data_points.add(
        time_unix_nano=now, count=3, sum=4.5, bucket_counts=[1, 2, 0], explicit_bounds=[0.1, 0.2], min=0.05, max=2.0
    )
    exponential = scope.metrics.add(name="latency.exponential")
    exponential.exponential_histogram.aggregation_temporality = 2
    bins = exponential.exponential_histogram.data_points.add(
        time_unix_nano=now, count=6, sum=10.0, scale=0, zero_count=1
    )
    bins.positive.offset = 0
    bins.positive.bucket_counts.extend([2, 3])
    summary = scope.metrics.add(name="gc.pause")
    old = summary.summary.data_points.add(time_unix_nano=now, count=8, sum=2.0)
    old.quantile_values.add(quantile=0.5, value=0.2)
    return request
