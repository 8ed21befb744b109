"""Table definitions of the telemetry store: the OpenTelemetry exporter's tables and the rollups beside them."""

from __future__ import annotations

from dataclasses import dataclass

from quell.signals._schema_views import views_of

RAW_TABLES = ("otel_logs", "otel_traces", "otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram")
ROLLUP_TABLES = (
    "quell_patterns_5s",
    "quell_patterns_1m",
    "quell_red_5s",
    "quell_red_1m",
    "quell_calls",
    "quell_edges_1m",
    "quell_sightings",
    "quell_changes",
)
SHORT_ROLLUP_HOURS = 2
"""How long 5-second buckets and half-edges are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long rows stay."""

    raw_hours: float
    rollup_days: float


_DURABLE = "fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000"
# Two small parts are not worth a merge: waiting for a few saves rewriting the same rows again and again.
# And a part that an insert makes is a dozen files, not a hundred, each of which has to reach the disk.
_MERGES = "min_parts_to_merge_at_once = 6, min_bytes_for_wide_part = 134217728"
_RAW_SETTINGS = f"SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, {_MERGES}, {_DURABLE}"
_ROLLUP_SETTINGS = f"SETTINGS ttl_only_drop_parts = 1, {_MERGES}, {_DURABLE}"

_LOGS = """
CREATE TABLE IF NOT EXISTS otel_logs (
    Timestamp DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TimestampTime DateTime DEFAULT toDateTime(Timestamp),
    TraceId String CODEC(ZSTD(1)),
    SpanId String CODEC(ZSTD(1)),
    TraceFlags UInt8,
    SeverityText LowCardinality(String) CODEC(ZSTD(1)),
    SeverityNumber UInt8,
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    Body String CODEC(ZSTD(1)),
    ResourceSchemaUrl LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeSchemaUrl LowCardinality(String) CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion LowCardinality(String) CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    LogAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    EventName String CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_key mapKeys(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_value mapValues(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_body Body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8
) ENGINE = MergeTree
PARTITION BY toStartOfInterval(TimestampTime, INTERVAL 6 HOUR)
PRIMARY KEY (ServiceName, TimestampTime)
ORDER BY (ServiceName, TimestampTime, Timestamp)
TTL TimestampTime + toIntervalSecond({raw_seconds})
{raw_settings}
"""

_TRACES = """
CREATE TABLE IF NOT EXISTS otel_traces (
    Timestamp DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TraceId String CODEC(ZSTD(1)),
    SpanId String CODEC(ZSTD(1)),
    ParentSpanId String CODEC(ZSTD(1)),
    TraceState String CODEC(ZSTD(1)),
    SpanName LowCardinality(String) CODEC(ZSTD(1)),
    SpanKind LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    SpanAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Duration UInt64 CODEC(ZSTD(1)),
    StatusCode LowCardinality(String) CODEC(ZSTD(1)),
    StatusMessage String CODEC(ZSTD(1)),
    Events Nested (
        Timestamp DateTime64(9),
        Name LowCardinality(String),
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    Links Nested (
        TraceId String,
        SpanId String,
        TraceState String,
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_value mapValues(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_duration Duration TYPE minmax GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toStartOfInterval(toDateTime(Timestamp), INTERVAL 6 HOUR)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp), Timestamp)
TTL toDateTime(Timestamp) + toIntervalSecond({raw_seconds})
{raw_settings}
"""

_METRIC_HEAD = """
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    MetricName String CODEC(ZSTD(1)),
    MetricDescription String CODEC(ZSTD(1)),
    MetricUnit String CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    StartTimeUnix DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TimeUnix DateTime64(9) CODEC(Delta(8), ZSTD(1)),
"""

_METRIC_TAIL = """
    Flags UInt32 CODEC(ZSTD(1)),
    Exemplars Nested (
        FilteredAttributes Map(LowCardinality(String), String),
        TimeUnix DateTime64(9),
        Value Float64,
        SpanId String,
        TraceId String
    ) CODEC(ZSTD(1)),
"""

_METRIC_ENGINE = """
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_key mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_attr_value mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toStartOfInterval(toDateTime(TimeUnix), INTERVAL 6 HOUR)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
TTL toDateTime(TimeUnix) + toIntervalSecond({raw_seconds})
{raw_settings}
"""

_GAUGE = f"CREATE TABLE IF NOT EXISTS otel_metrics_gauge ({_METRIC_HEAD}    Value Float64 CODEC(ZSTD(1)),{_METRIC_TAIL}{_METRIC_ENGINE}"
_SUM = (
    f"CREATE TABLE IF NOT EXISTS otel_metrics_sum ({_METRIC_HEAD}    Value Float64 CODEC(ZSTD(1)),{_METRIC_TAIL}"
    "    AggregationTemporality Int32 CODEC(ZSTD(1)),\n"
    f"    IsMonotonic Boolean CODEC(Delta(1), ZSTD(1)),{_METRIC_ENGINE}"
)
_HISTOGRAM = (
    f"CREATE TABLE IF NOT EXISTS otel_metrics_histogram ({_METRIC_HEAD}"
    "    Count UInt64 CODEC(Delta(8), ZSTD(1)),\n    Sum Float64 CODEC(ZSTD(1)),\n"
    "    BucketCounts Array(UInt64) CODEC(ZSTD(1)),\n    ExplicitBounds Array(Float64) CODEC(ZSTD(1)),"
    f"{_METRIC_TAIL}    Min Float64 CODEC(ZSTD(1)),\n    Max Float64 CODEC(ZSTD(1)),\n"
    f"    AggregationTemporality Int32 CODEC(ZSTD(1)),{_METRIC_ENGINE}"
)

_PATTERNS = """
CREATE TABLE IF NOT EXISTS quell_patterns_{grain} (
    bucket DateTime,
    service LowCardinality(String),
    severity LowCardinality(String),
    template_id UInt64,
    template SimpleAggregateFunction(min, String) CODEC(ZSTD(1)),
    count SimpleAggregateFunction(sum, UInt64),
    first_seen SimpleAggregateFunction(min, DateTime64(9)),
    last_seen SimpleAggregateFunction(max, DateTime64(9)),
    example SimpleAggregateFunction(min, String) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY {partition}
ORDER BY (bucket, service, severity, template_id)
TTL bucket + toIntervalSecond({seconds})
{rollup_settings}
"""

_RED = """
CREATE TABLE IF NOT EXISTS quell_red_{grain} (
    bucket DateTime,
    service LowCardinality(String),
    operation LowCardinality(String),
    span_kind LowCardinality(String),
    peer LowCardinality(String),
    calls SimpleAggregateFunction(sum, UInt64),
    errors SimpleAggregateFunction(sum, UInt64),
    duration_ns SimpleAggregateFunction(sum, UInt64),
    quantiles AggregateFunction(quantilesTDigest(0.5, 0.95), Float64)
) ENGINE = AggregatingMergeTree
PARTITION BY {partition}
ORDER BY (bucket, service, operation, span_kind, peer)
TTL bucket + toIntervalSecond({seconds})
{rollup_settings}
"""

_CALLS = """
CREATE TABLE IF NOT EXISTS quell_calls (
    key UInt64,
    bucket SimpleAggregateFunction(min, DateTime),
    caller SimpleAggregateFunction(max, LowCardinality(String)),
    callee_hint SimpleAggregateFunction(max, LowCardinality(String)),
    callee SimpleAggregateFunction(max, LowCardinality(String)),
    client_ns SimpleAggregateFunction(max, UInt64),
    server_ns SimpleAggregateFunction(max, UInt64),
    client_error SimpleAggregateFunction(max, UInt8),
    callee_kind SimpleAggregateFunction(max, LowCardinality(String)),
    error_type SimpleAggregateFunction(max, LowCardinality(String)),
    INDEX idx_bucket bucket TYPE minmax GRANULARITY 1
) ENGINE = AggregatingMergeTree
PARTITION BY toStartOfInterval(bucket, INTERVAL 20 MINUTE)
ORDER BY key
TTL bucket + toIntervalSecond({short_seconds})
{rollup_settings}
"""

_EDGES = """
CREATE TABLE IF NOT EXISTS quell_edges_1m (
    bucket DateTime,
    caller LowCardinality(String),
    callee LowCardinality(String),
    callee_kind LowCardinality(String),
    calls UInt64,
    errors UInt64,
    unanswered UInt64,
    matched UInt64,
    client_ns UInt64,
    matched_client_ns UInt64,
    server_ns UInt64,
    gap_ns Int64,
    client_quantiles AggregateFunction(quantilesTDigest(0.5, 0.95), Float64),
    error_types Array(String),
    rolled_at DateTime64(3)
) ENGINE = ReplacingMergeTree(rolled_at)
PARTITION BY toDate(bucket)
ORDER BY (bucket, caller, callee, callee_kind)
TTL bucket + toIntervalSecond({rollup_seconds})
{rollup_settings}
"""

_SIGHTINGS = """
CREATE TABLE IF NOT EXISTS quell_sightings (
    service LowCardinality(String),
    version String,
    instance String,
    first_seen SimpleAggregateFunction(min, DateTime64(9)),
    last_seen SimpleAggregateFunction(max, DateTime64(9))
) ENGINE = AggregatingMergeTree
ORDER BY (service, version, instance)
TTL toDateTime(last_seen) + toIntervalSecond({rollup_seconds})
SETTINGS {durable}
"""

_CHANGES = """
CREATE TABLE IF NOT EXISTS quell_changes (
    at DateTime64(9),
    change LowCardinality(String),
    service LowCardinality(String),
    subject String,
    before String,
    after String,
    detail String,
    source LowCardinality(String),
    key UInt64
) ENGINE = ReplacingMergeTree
ORDER BY key
TTL toDateTime(at) + toIntervalSecond({rollup_seconds})
SETTINGS {durable}
"""

_GRAINS = {
    "5s": ("toStartOfHour(bucket)", SHORT_ROLLUP_HOURS * 3600),
    "1m": ("toDate(bucket)", 0),
}


def tables_of(retention: Retention) -> tuple[str, ...]:
    """Write every CREATE TABLE statement, in an order that works, with the retention asked for."""
    raw_seconds = max(60, int(retention.raw_hours * 3600))
    rollup_seconds = max(3600, int(retention.rollup_days * 86400))
    words = {
        "raw_seconds": raw_seconds,
        "rollup_seconds": rollup_seconds,
        "short_seconds": SHORT_ROLLUP_HOURS * 3600,
        "raw_settings": _RAW_SETTINGS,
        "rollup_settings": _ROLLUP_SETTINGS,
        "durable": _DURABLE,
    }
    raw = [statement.format(**words) for statement in (_LOGS, _TRACES, _GAUGE, _SUM, _HISTOGRAM)]
    bucketed = [
        statement.format(**words, grain=grain, partition=partition, seconds=seconds or rollup_seconds)
        for statement in (_PATTERNS, _RED)
        for grain, (partition, seconds) in _GRAINS.items()
    ]
    rest = [statement.format(**words) for statement in (_CALLS, _EDGES, _SIGHTINGS, _CHANGES)]
    return (*raw, *bucketed, *rest)


def statements_of(retention: Retention) -> tuple[str, ...]:
    """Write all that the embedded store creates: tables first, then the views that fill the rollups."""
    return (*tables_of(retention), *views_of())
