"""OTLP payloads on the slow path: JSON, and values that the engine's flat schema cannot hold, rewritten as flat protobuf."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from google.protobuf import json_format  # it ships no types
from google.protobuf.message import DecodeError  # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    ScopeMetrics,
)

from quell.signals._otlp_probe import SignalName

ExportRequest: TypeAlias = ExportLogsServiceRequest | ExportTraceServiceRequest | ExportMetricsServiceRequest
_REQUESTS: dict[SignalName, type[ExportRequest]] = {
    "logs": ExportLogsServiceRequest,
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
_REJECTED = {"logs": "rejected_log_records", "traces": "rejected_spans", "metrics": "rejected_data_points"}
_ID_KEYS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_DEPTH_MAX = 64
_TEXT_DEPTH_MAX = 16


def from_protobuf(signal: SignalName, payload: bytes) -> ExportRequest:
    """Parse a payload with the full schema. Raises ValueError when it is not one."""
    try:
        request: ExportRequest = _REQUESTS[signal].FromString(payload)
    except DecodeError as error:
        raise ValueError(f"not OTLP protobuf of {signal}: {error}") from error
    return request


def from_json(signal: SignalName, payload: bytes) -> ExportRequest:
    """Parse OTLP/JSON, where ids are hexadecimal and not base64. Raises ValueError when it is not that."""
    try:
        tree = msgspec.json.decode(payload, type=dict[str, object])
        request: ExportRequest = json_format.ParseDict(
            _ids_as_base64(tree, depth=0), _REQUESTS[signal](), ignore_unknown_fields=True
        )
    except (msgspec.DecodeError, json_format.ParseError, RecursionError, UnicodeError, binascii.Error) as error:
        raise ValueError(f"not OTLP/JSON of {signal}: {error}") from error
    return request


def _ids_as_base64(tree: object, *, depth: int) -> object:
    if depth > _DEPTH_MAX:
        raise ValueError(f"nested deeper than {_DEPTH_MAX}")
    if isinstance(tree, list):
        return [_ids_as_base64(item, depth=depth + 1) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: base64.b64encode(binascii.unhexlify(value)).decode()
        if key in _ID_KEYS and isinstance(value, str)
        else _ids_as_base64(value, depth=depth + 1)
        for key, value in tree.items()
    }


def flatten(request: ExportRequest) -> int:
    """Rewrite in place what the flat schema cannot hold: structured values as JSON text, other histograms as plain ones.

    Returns the number of records.
    """
    if isinstance(request, ExportLogsServiceRequest):
        return _flatten_logs(request)
    if isinstance(request, ExportTraceServiceRequest):
        return _flatten_traces(request)
    return _flatten_metrics(request)


def _flatten_logs(request: ExportLogsServiceRequest) -> int:
    count = 0
    for resource in request.resource_logs:
        _flatten_attributes(resource.resource.attributes)
        for scope in resource.scope_logs:
            _flatten_attributes(scope.scope.attributes)
            count += len(scope.log_records)
            for record in scope.log_records:
                _flatten_value(record.body)
                _flatten_attributes(record.attributes)
    return count


def _flatten_traces(request: ExportTraceServiceRequest) -> int:
    count = 0
    for resource in request.resource_spans:
        _flatten_attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            _flatten_attributes(scope.scope.attributes)
            count += len(scope.spans)
            for span in scope.spans:
                _flatten_attributes(span.attributes)
                for part in (*span.events, *span.links):
                    _flatten_attributes(part.attributes)
    return count


def _flatten_metrics(request: ExportMetricsServiceRequest) -> int:
    count = 0
    for resource in request.resource_metrics:
        _flatten_attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            _flatten_attributes(scope.scope.attributes)
            _replace_other_kinds(scope)
            for metric in scope.metrics:
                points = (*metric.gauge.data_points, *metric.sum.data_points, *metric.histogram.data_points)
                count += len(points)
                for point in points:
                    _flatten_attributes(point.attributes)
                    for exemplar in point.exemplars:
                        _flatten_attributes(exemplar.filtered_attributes)
    return count


def _flatten_attributes(attributes: Iterable[KeyValue]) -> None:
    for attribute in attributes:
        _flatten_value(attribute.value)


def _flatten_value(value: AnyValue) -> None:
    if value.WhichOneof("value") in {"array_value", "kvlist_value", "bytes_value"}:
        value.string_value = msgspec.json.encode(_plain(value, depth=0)).decode()


def _plain(value: AnyValue, *, depth: int) -> object:
    """Turn a value into what JSON can say; bytes become base64, depth is bounded."""
    if depth > _TEXT_DEPTH_MAX:
        return "…"
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item, depth=depth + 1) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value, depth=depth + 1) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "double_value" and not math.isfinite(value.double_value):
        return str(value.double_value)
    plain: object = getattr(value, kind) if kind else None
    return plain


def _replace_other_kinds(scope: ScopeMetrics) -> None:
    """Exponential histograms become plain ones; a summary becomes a gauge per quantile, a sum and a count."""
    for metric in list(scope.metrics):
        kind = metric.WhichOneof("data")
        if kind == "exponential_histogram":
            points = list(metric.exponential_histogram.data_points)
            temporality = metric.exponential_histogram.aggregation_temporality
            metric.histogram.aggregation_temporality = temporality  # sets the oneof; the old member is gone
            metric.histogram.data_points.extend(_plain_histogram(point) for point in points)
        elif kind == "summary":
            _spread_summary(scope, metric)


def _plain_histogram(point: ExponentialHistogramDataPoint) -> HistogramDataPoint:
    # (upper bound, count), ascending: negative, zero, positive.
    negative, positive = point.negative, point.positive
    pieces = [
        (-_bound(point.scale, negative.offset + index), negative.bucket_counts[index])
        for index in reversed(range(len(negative.bucket_counts)))
    ]
    pieces.append((point.zero_threshold, point.zero_count))
    pieces += [
        (_bound(point.scale, positive.offset + index + 1), count) for index, count in enumerate(positive.bucket_counts)
    ]
    plain = HistogramDataPoint(
        attributes=point.attributes,
        start_time_unix_nano=point.start_time_unix_nano,
        time_unix_nano=point.time_unix_nano,
        count=point.count,
        sum=point.sum,
        exemplars=point.exemplars,
        flags=point.flags,
        bucket_counts=[count for _, count in pieces] + [0],
        explicit_bounds=[bound for bound, _ in pieces],
    )
    if point.HasField("min"):
        plain.min = point.min
    if point.HasField("max"):
        plain.max = point.max
    return plain


def _bound(scale: int, index: int) -> float:
    """Return base ** index, where base is 2 ** (2 ** -scale): a coarse scale has bases that no float holds."""
    try:
        return float(2.0 ** math.ldexp(index, -scale))
    except OverflowError:
        return math.inf if index > 0 else 0.0


def _spread_summary(scope: ScopeMetrics, metric: Metric) -> None:
    points = list(metric.summary.data_points)
    count, total = scope.metrics.add(), scope.metrics.add()
    count.name, total.name = f"{metric.name}.count", f"{metric.name}.sum"
    count.sum.is_monotonic = total.sum.is_monotonic = True
    count.sum.aggregation_temporality = total.sum.aggregation_temporality = 2
    metric.gauge.SetInParent()  # sets the oneof; the summary is gone
    for point in points:
        times = {"time_unix_nano": point.time_unix_nano, "start_time_unix_nano": point.start_time_unix_nano}
        count.sum.data_points.add(attributes=point.attributes, as_int=point.count, **times)
        total.sum.data_points.add(attributes=point.attributes, as_double=point.sum, **times)
        for quantile in point.quantile_values:
            number = metric.gauge.data_points.add(attributes=point.attributes, as_double=quantile.value, **times)
            number.attributes.add(key="quantile").value.double_value = quantile.quantile


_RESPONSES: dict[
    SignalName, type[ExportLogsServiceResponse | ExportTraceServiceResponse | ExportMetricsServiceResponse]
] = {
    "logs": ExportLogsServiceResponse,
    "traces": ExportTraceServiceResponse,
    "metrics": ExportMetricsServiceResponse,
}


def response_to(signal: SignalName, *, rejected: int, message: str, as_json: bool) -> bytes:
    """Write the export response, with a partial success when something was rejected or needs a word."""
    response = _RESPONSES[signal]()
    if rejected or message:
        setattr(response.partial_success, _REJECTED[signal], rejected)
        response.partial_success.error_message = message
    written: bytes = (
        json_format.MessageToJson(response, indent=None).encode() if as_json else response.SerializeToString()
    )
    return written
