"""How the engine reads raw OTLP protobuf: an inline schema, a Null table, and views into the exporter's tables.

A request body is one message; bodies of many requests laid end to end are one message too (protobuf merges repeated
fields), so a batch is one insert and no record passes through Python.
"""

from __future__ import annotations

from dataclasses import dataclass

from quell.signals._schema_views import change_key, literal

BODY_MAX_BYTES = 256 * 1024
"""A log body is cut to this; the cut says how long it was."""

_ANY_VALUE = """
message AnyValue { oneof value { string string_value = 1; bool bool_value = 2; int64 int_value = 3; double double_value = 4; } }
message KeyValue { string key = 1; AnyValue value = 2; }
message Resource { repeated KeyValue attributes = 1; }
message Scope { string name = 1; string version = 2; repeated KeyValue attributes = 3; uint32 dropped_attributes_count = 4; }
"""

_LOGS = f"""syntax = "proto3";{_ANY_VALUE}
message LogRecord {{
  fixed64 time_unix_nano = 1; fixed64 observed_time_unix_nano = 11; int32 severity_number = 2; string severity_text = 3;
  AnyValue body = 5; repeated KeyValue attributes = 6; fixed32 flags = 8; bytes trace_id = 9; bytes span_id = 10; string event_name = 12;
}}
message ScopeLogs {{ Scope scope = 1; repeated LogRecord log_records = 2; string schema_url = 3; }}
message ResourceLogs {{ Resource resource = 1; repeated ScopeLogs scope_logs = 2; string schema_url = 3; }}
message Export {{ repeated ResourceLogs resource_logs = 1; }}
"""

_TRACES = f"""syntax = "proto3";{_ANY_VALUE}
message Event {{ fixed64 time_unix_nano = 1; string name = 2; repeated KeyValue attributes = 3; }}
message Link {{ bytes trace_id = 1; bytes span_id = 2; string trace_state = 3; repeated KeyValue attributes = 4; }}
message Status {{ string message = 2; int32 code = 3; }}
message Span {{
  bytes trace_id = 1; bytes span_id = 2; string trace_state = 3; bytes parent_span_id = 4; string name = 5; int32 kind = 6;
  fixed64 start_time_unix_nano = 7; fixed64 end_time_unix_nano = 8; repeated KeyValue attributes = 9;
  repeated Event events = 11; repeated Link links = 13; Status status = 15;
}}
message ScopeSpans {{ Scope scope = 1; repeated Span spans = 2; string schema_url = 3; }}
message ResourceSpans {{ Resource resource = 1; repeated ScopeSpans scope_spans = 2; string schema_url = 3; }}
message Export {{ repeated ResourceSpans resource_spans = 1; }}
"""

_METRICS = f"""syntax = "proto3";{_ANY_VALUE}
message Exemplar {{
  repeated KeyValue filtered_attributes = 7; fixed64 time_unix_nano = 2; oneof value {{ double as_double = 3; sfixed64 as_int = 6; }}
  bytes span_id = 4; bytes trace_id = 5;
}}
message NumberPoint {{
  repeated KeyValue attributes = 7; fixed64 start_time_unix_nano = 2; fixed64 time_unix_nano = 3;
  oneof value {{ double as_double = 4; sfixed64 as_int = 6; }}
  repeated Exemplar exemplars = 5; uint32 flags = 8;
}}
message HistogramPoint {{
  repeated KeyValue attributes = 9; fixed64 start_time_unix_nano = 2; fixed64 time_unix_nano = 3; fixed64 count = 4; double sum = 5;
  repeated fixed64 bucket_counts = 6; repeated double explicit_bounds = 7; repeated Exemplar exemplars = 8; uint32 flags = 10;
  double min = 11; double max = 12;
}}
message Gauge {{ repeated NumberPoint data_points = 1; }}
message Sum {{ repeated NumberPoint data_points = 1; int32 aggregation_temporality = 2; bool is_monotonic = 3; }}
message Histogram {{ repeated HistogramPoint data_points = 1; int32 aggregation_temporality = 2; }}
message Metric {{ string name = 1; string description = 2; string unit = 3; Gauge gauge = 5; Sum sum = 7; Histogram histogram = 9; }}
message ScopeMetrics {{ Scope scope = 1; repeated Metric metrics = 2; string schema_url = 3; }}
message ResourceMetrics {{ Resource resource = 1; repeated ScopeMetrics scope_metrics = 2; string schema_url = 3; }}
message Export {{ repeated ResourceMetrics resource_metrics = 1; }}
"""

_VALUE_T = (
    "Tuple(string_value String, bool_value Bool, int_value Int64, double_value Float64, "
    "value Enum8('no' = 0, 'string_value' = 1, 'bool_value' = 2, 'int_value' = 3, 'double_value' = 4))"
)
_ATTRIBUTES_T = f"Array(Tuple(key String, value {_VALUE_T}))"
_RESOURCE_T = f"Tuple(attributes {_ATTRIBUTES_T})"
_SCOPE_T = f"Tuple(name String, version String, attributes {_ATTRIBUTES_T}, dropped_attributes_count UInt32)"

_LOG_T = (
    "Tuple(time_unix_nano UInt64, observed_time_unix_nano UInt64, severity_number Int32, severity_text String, "
    f"body {_VALUE_T}, attributes {_ATTRIBUTES_T}, flags UInt32, trace_id String, span_id String, event_name String)"
)
_EVENT_T = f"Tuple(time_unix_nano UInt64, name String, attributes {_ATTRIBUTES_T})"
_LINK_T = f"Tuple(trace_id String, span_id String, trace_state String, attributes {_ATTRIBUTES_T})"
_SPAN_T = (
    "Tuple(trace_id String, span_id String, trace_state String, parent_span_id String, name String, kind Int32, "
    f"start_time_unix_nano UInt64, end_time_unix_nano UInt64, attributes {_ATTRIBUTES_T}, "
    f"events Array({_EVENT_T}), links Array({_LINK_T}), status Tuple(message String, code Int32))"
)
_EXEMPLAR_T = (
    f"Tuple(filtered_attributes {_ATTRIBUTES_T}, time_unix_nano UInt64, as_double Float64, as_int Int64, "
    "span_id String, trace_id String, value Enum8('no' = 0, 'as_double' = 3, 'as_int' = 6))"
)
_NUMBER_T = (
    f"Tuple(attributes {_ATTRIBUTES_T}, start_time_unix_nano UInt64, time_unix_nano UInt64, as_double Float64, as_int Int64, "
    f"value Enum8('no' = 0, 'as_double' = 4, 'as_int' = 6), exemplars Array({_EXEMPLAR_T}), flags UInt32)"
)
_HISTOGRAM_T = (
    f"Tuple(attributes {_ATTRIBUTES_T}, start_time_unix_nano UInt64, time_unix_nano UInt64, count UInt64, sum Float64, "
    f"bucket_counts Array(UInt64), explicit_bounds Array(Float64), exemplars Array({_EXEMPLAR_T}), flags UInt32, min Float64, max Float64)"
)
_METRIC_T = (
    f"Tuple(name String, description String, unit String, gauge Tuple(data_points Array({_NUMBER_T})), "
    f"sum Tuple(data_points Array({_NUMBER_T}), aggregation_temporality Int32, is_monotonic Bool), "
    f"histogram Tuple(data_points Array({_HISTOGRAM_T}), aggregation_temporality Int32))"
)


def _envelope(resources: str, scopes: str, items: str, item_type: str) -> str:
    scope_type = f"Tuple(scope {_SCOPE_T}, {items} Array({item_type}), schema_url String)"
    return f"{resources} Array(Tuple(resource {_RESOURCE_T}, {scopes} Array({scope_type}), schema_url String))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One kind of OTLP payload, as the engine takes it."""

    raw_table: str
    columns: str
    protobuf: str


SIGNALS = {
    "logs": Signal(
        raw_table="quell_raw_logs",
        columns=_envelope("resource_logs", "scope_logs", "log_records", _LOG_T),
        protobuf=_LOGS,
    ),
    "traces": Signal(
        raw_table="quell_raw_traces",
        columns=_envelope("resource_spans", "scope_spans", "spans", _SPAN_T),
        protobuf=_TRACES,
    ),
    "metrics": Signal(
        raw_table="quell_raw_metrics",
        columns=_envelope("resource_metrics", "scope_metrics", "metrics", _METRIC_T),
        protobuf=_METRICS,
    ),
}


def insert_settings(signal: str) -> dict[str, str]:
    """Name the settings that an insert of raw payloads of one signal needs."""
    return {
        "format_schema_source": "string",
        "format_schema": SIGNALS[signal].protobuf,
        "format_schema_message_name": "Export",
        "input_format_protobuf_oneof_presence": "1",
    }


def _choose(value: str, *, text: str, whole: str, real: str, truth: str) -> str:
    """Write the SQL that picks the member that the sender set and writes it as text."""
    return (
        f"multiIf({value} = 'string_value', {text}, {value} = 'int_value', toString({whole}), "
        f"{value} = 'double_value', toString({real}), {value} = 'bool_value', if({truth}, 'true', 'false'), '')"
    )


def _map(attributes: str) -> str:
    """Write the SQL of a list of attributes as a Map."""
    names = ("value", "string_value", "bool_value", "int_value", "double_value")
    values = f"arrayMap((v, s, b, i, d) -> {_choose('v', text='s', whole='i', real='d', truth='b')}, {', '.join(f'{attributes}.value.{n}' for n in names)})"
    return f"CAST(({attributes}.key, {values}), 'Map(LowCardinality(String), String)')"


def _maps(attributes: str) -> str:
    """Write the SQL of a list of lists of attributes as a list of Maps."""
    value = _choose("kv.2.5", text="kv.2.1", whole="kv.2.3", real="kv.2.4", truth="kv.2.2")
    return f"CAST(arrayMap(a -> arrayMap(kv -> (kv.1, {value}), a), {attributes}), 'Array(Map(LowCardinality(String), String))')"


def _join(source: str, pieces: dict[str, str]) -> str:
    """Write an ARRAY JOIN of named pieces; joining whole tuples costs the analyzer ten times as much."""
    return "ARRAY JOIN " + ", ".join(f"{source}.{path} AS {alias}" for alias, path in pieces.items())


def _outer_levels(resources: str, scopes: str, items: str, table: str) -> str:
    """Write the subquery that opens the two outer levels; their maps are built once, before rows multiply."""
    of_resource = _join(
        resources, {"resource_list": "resource.attributes", "ResourceSchemaUrl": "schema_url", "scopes": scopes}
    )
    of_scope = _join(
        "scopes",
        {
            "ScopeName": "scope.name",
            "ScopeVersion": "scope.version",
            "scope_list": "scope.attributes",
            "ScopeDroppedAttrCount": "scope.dropped_attributes_count",
            "ScopeSchemaUrl": "schema_url",
            "items": items,
        },
    )
    return f"""
    SELECT ResourceAttributes, ResourceSchemaUrl, ServiceName, ScopeName, ScopeVersion, ScopeSchemaUrl,
        {_map("scope_list")} AS ScopeAttributes, ScopeDroppedAttrCount, items
    FROM (
        SELECT {_map("resource_list")} AS ResourceAttributes, ResourceSchemaUrl,
            ResourceAttributes['service.name'] AS ServiceName, scopes
        FROM {table} {of_resource}
    ) {of_scope}"""


def _time(nanos: str) -> str:
    return f"fromUnixTimestamp64Nano(toInt64({nanos}))"


_LOG_PIECES = {
    "at": "time_unix_nano",
    "observed": "observed_time_unix_nano",
    "number": "severity_number",
    "severity": "severity_text",
    "body_set": "body.value",
    "body_text": "body.string_value",
    "body_whole": "body.int_value",
    "body_real": "body.double_value",
    "body_truth": "body.bool_value",
    "list": "attributes",
    "flag_bits": "flags",
    "trace": "trace_id",
    "span": "span_id",
    "event": "event_name",
}
_LOGS_VIEW = f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS quell_raw_logs_mv TO otel_logs AS
SELECT
    Timestamp, toDateTime(Timestamp) AS TimestampTime, TraceId, SpanId, TraceFlags, SeverityText, SeverityNumber, ServiceName,
    if(length(whole) > {BODY_MAX_BYTES},
        concat(toValidUTF8(substring(whole, 1, {BODY_MAX_BYTES})), ' [cut, was ', toString(length(whole)), ' bytes]'), whole) AS Body,
    ResourceSchemaUrl, ResourceAttributes, ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, LogAttributes,
    if(event != '', event, LogAttributes['event.name']) AS EventName
FROM (
    SELECT
        {_time("multiIf(at != 0, at, observed != 0, observed, toUInt64(toUnixTimestamp64Nano(now64(9))))")} AS Timestamp,
        lower(hex(trace)) AS TraceId, lower(hex(span)) AS SpanId, toUInt8(flag_bits) AS TraceFlags,
        severity AS SeverityText, toUInt8(number) AS SeverityNumber, ServiceName,
        toValidUTF8({_choose("body_set", text="body_text", whole="body_whole", real="body_real", truth="body_truth")}) AS whole,
        ResourceSchemaUrl, ResourceAttributes, ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes,
        {_map("list")} AS LogAttributes, event
    FROM ({_outer_levels("resource_logs", "scope_logs", "log_records", "quell_raw_logs")})
    {_join("items", _LOG_PIECES)}
)"""

_SPAN_PIECES = {
    "began": "start_time_unix_nano",
    "ended": "end_time_unix_nano",
    "trace": "trace_id",
    "span": "span_id",
    "parent": "parent_span_id",
    "state": "trace_state",
    "title": "name",
    "kind_number": "kind",
    "list": "attributes",
    "status_code": "status.code",
    "status_message": "status.message",
    "event_times": "events.time_unix_nano",
    "event_names": "events.name",
    "event_lists": "events.attributes",
    "link_traces": "links.trace_id",
    "link_spans": "links.span_id",
    "link_states": "links.trace_state",
    "link_lists": "links.attributes",
}
_TRACES_VIEW = f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS quell_raw_traces_mv TO otel_traces AS
SELECT
    {_time("began")} AS Timestamp,
    lower(hex(trace)) AS TraceId, lower(hex(span)) AS SpanId, lower(hex(parent)) AS ParentSpanId, state AS TraceState, title AS SpanName,
    transform(kind_number, [1, 2, 3, 4, 5], ['Internal', 'Server', 'Client', 'Producer', 'Consumer'], 'Unspecified') AS SpanKind,
    ServiceName, ResourceAttributes, ScopeName, ScopeVersion,
    {_map("list")} AS SpanAttributes,
    if(ended > began, ended - began, 0) AS Duration,
    transform(status_code, [1, 2], ['Ok', 'Error'], 'Unset') AS StatusCode,
    status_message AS StatusMessage,
    arrayMap(t -> {_time("t")}, event_times) AS `Events.Timestamp`,
    event_names AS `Events.Name`,
    {_maps("event_lists")} AS `Events.Attributes`,
    arrayMap(t -> lower(hex(t)), link_traces) AS `Links.TraceId`,
    arrayMap(t -> lower(hex(t)), link_spans) AS `Links.SpanId`,
    link_states AS `Links.TraceState`,
    {_maps("link_lists")} AS `Links.Attributes`
FROM ({_outer_levels("resource_spans", "scope_spans", "spans", "quell_raw_traces")})
{_join("items", _SPAN_PIECES)}"""

_POINT_PIECES = {
    "list": "attributes",
    "began": "start_time_unix_nano",
    "at": "time_unix_nano",
    "Flags": "flags",
    "exemplar_lists": "exemplars.filtered_attributes",
    "exemplar_times": "exemplars.time_unix_nano",
    "exemplar_sets": "exemplars.value",
    "exemplar_reals": "exemplars.as_double",
    "exemplar_wholes": "exemplars.as_int",
    "exemplar_spans": "exemplars.span_id",
    "exemplar_traces": "exemplars.trace_id",
}
_NUMBER_PIECES = {**_POINT_PIECES, "value_set": "value", "real": "as_double", "integer": "as_int"}
_HISTOGRAM_PIECES = {
    **_POINT_PIECES,
    "Count": "count",
    "Sum": "sum",
    "BucketCounts": "bucket_counts",
    "ExplicitBounds": "explicit_bounds",
    "Min": "min",
    "Max": "max",
}


def _metric_view(kind: str, pieces: dict[str, str], *, own: str, of_metric: dict[str, str]) -> str:
    metric = {
        "MetricName": "name",
        "MetricDescription": "description",
        "MetricUnit": "unit",
        "points": f"{kind}.data_points",
        **{alias: f"{kind}.{path}" for alias, path in of_metric.items()},
    }
    carried = "".join(f", {alias}" for alias in of_metric)
    outer = "ResourceAttributes, ResourceSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, ScopeDroppedAttrCount, ScopeSchemaUrl, ServiceName"
    return f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS quell_raw_{kind}_mv TO otel_metrics_{kind} AS
SELECT {outer}, MetricName, MetricDescription, MetricUnit,
    {_map("list")} AS Attributes,
    {_time("began")} AS StartTimeUnix, {_time("at")} AS TimeUnix,
    {own}{carried}, Flags,
    {_maps("exemplar_lists")} AS `Exemplars.FilteredAttributes`,
    arrayMap(t -> {_time("t")}, exemplar_times) AS `Exemplars.TimeUnix`,
    arrayMap((v, i, d) -> if(v = 'as_int', toFloat64(i), d), exemplar_sets, exemplar_wholes, exemplar_reals) AS `Exemplars.Value`,
    arrayMap(t -> lower(hex(t)), exemplar_spans) AS `Exemplars.SpanId`,
    arrayMap(t -> lower(hex(t)), exemplar_traces) AS `Exemplars.TraceId`
FROM (
    SELECT {outer}, MetricName, MetricDescription, MetricUnit, points{carried}
    FROM ({_outer_levels("resource_metrics", "scope_metrics", "metrics", "quell_raw_metrics")})
    {_join("items", metric)}
)
{_join("points", pieces)}"""


_NUMBER = "if(value_set = 'as_int', toFloat64(integer), real) AS Value"
_BUCKETS = "Count, Sum, BucketCounts, ExplicitBounds, Min, Max"
_TEMPORALITY = {"AggregationTemporality": "aggregation_temporality"}


CHANGES_RAW_TABLE = "quell_raw_changes"
_CHANGE_COLUMNS = "at DateTime64(9), change String, service String, subject String, before String, after String, detail String, source String"
_CHANGES_VIEW = f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS quell_raw_changes_mv TO quell_changes AS
SELECT at, change, service, subject, before, after, detail, source, {change_key("toUnixTimestamp64Nano(at)")} AS key
FROM {CHANGES_RAW_TABLE}"""


def receivers_of() -> tuple[str, ...]:
    """Write the Null tables that take raw payloads and the views that decode them; made after the rollups' views."""
    nulls = tuple(f"CREATE TABLE IF NOT EXISTS {s.raw_table} ({s.columns}) ENGINE = Null" for s in SIGNALS.values())
    return (
        *nulls,
        f"CREATE TABLE IF NOT EXISTS {CHANGES_RAW_TABLE} ({_CHANGE_COLUMNS}) ENGINE = Null",
        _CHANGES_VIEW,
        _LOGS_VIEW,
        _TRACES_VIEW,
        _metric_view("gauge", _NUMBER_PIECES, own=_NUMBER, of_metric={}),
        _metric_view("sum", _NUMBER_PIECES, own=_NUMBER, of_metric={**_TEMPORALITY, "IsMonotonic": "is_monotonic"}),
        _metric_view("histogram", _HISTOGRAM_PIECES, own=_BUCKETS, of_metric=_TEMPORALITY),
    )


def schema_clause(signal: str) -> str:
    """Write the same settings as a SETTINGS clause, for an engine without a query string."""
    return ", ".join(f"{name} = {literal(value)}" for name, value in insert_settings(signal).items())
