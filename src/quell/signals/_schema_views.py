"""Materialized views that keep the rollups, from whichever way rows arrive in the exporter's tables."""

from __future__ import annotations

_WORD = r"""[^\s,;:=()\[\]{}"'<>|]*"""
VARIABLE = rf"(?:{_WORD}[0-9]{_WORD}|\b[a-fA-F]{{8,}}\b)"
"""A token with a digit, or eight and more hexadecimal letters: what changes from line to line."""
SKELETON = rf"{VARIABLE}(?:[,;\s]+{VARIABLE})*"
"""A run of such tokens; a list of twenty numbers masks like a list of two."""
CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}\x{200b}-\x{200f}\x{2028}-\x{202e}\x{2066}-\x{2069}\x{feff}]+"
"""Control codes and the invisible characters that reorder or hide text."""
BODY_SCANNED = 1024
TEMPLATE_CHARS = 400
TEMPLATE_WORDS = 24
EXAMPLE_CHARS = 300


def literal(text: str) -> str:
    """Quote a text as a SQL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def masked_of(body: str) -> str:
    """Write the SQL that replaces what varies in a log body: one regex."""
    return f"replaceRegexpAll(substring({body}, 1, {BODY_SCANNED}), {literal(SKELETON)}, '<*>')"


def skeleton_of(masked: str) -> str:
    """Write the SQL that cuts and cleans a masked body; only long ones and dirty ones pay for it."""
    words = f"arrayStringConcat(arraySlice(splitByWhitespace({masked}), 1, {TEMPLATE_WORDS}), ' ')"
    clean = f"trim(replaceRegexpAll(substringUTF8({words}, 1, {TEMPLATE_CHARS}), {literal(CONTROL)}, ' '))"
    return f"if(length({masked}) > 120 OR match({masked}, {literal(CONTROL)}), {clean}, {masked})"


def example_of(body: str) -> str:
    """Write the SQL that cuts a log body to one line that is safe to store as an example."""
    return f"replaceRegexpAll(substringUTF8(substring({body}, 1, {4 * EXAMPLE_CHARS}), 1, {EXAMPLE_CHARS}), {literal(CONTROL)}, ' ')"


def severity_of(text: str, number: str) -> str:
    """Write the SQL that names one of six severities: by text, else by number, else `info`."""
    by_text = (
        f"multiIf(match({text}, '(?i)^(fatal|crit|alert|emerg|panic)'), 'fatal', match({text}, '(?i)^(err|severe)'), 'error', "
        f"match({text}, '(?i)^warn'), 'warn', match({text}, '(?i)^(info|notice)'), 'info', "
        f"match({text}, '(?i)^(debug|fine|verbose)'), 'debug', match({text}, '(?i)^trace'), 'trace', '')"
    )
    by_number = (
        f"multiIf({number} >= 21, 'fatal', {number} >= 17, 'error', {number} >= 13, 'warn', {number} >= 9, 'info', "
        f"{number} >= 5, 'debug', {number} >= 1, 'trace', 'info')"
    )
    return f"if({text} != '' AND {by_text} != '', {by_text}, {by_number})"


def _view(name: str, target: str, select: str) -> str:
    return f"CREATE MATERIALIZED VIEW IF NOT EXISTS {name} TO {target} AS {select}"


# The coarse rollups are made from the rows that go into the fine ones: a short query, because the engine analyses every
# view again at every insert.
_PATTERNS = f"""
SELECT bucket, service, severity, cityHash64(template) AS template_id, template, count, first_seen, last_seen, example
FROM (
    SELECT bucket, service,
        {severity_of("severity_text", "severity_number")} AS severity,
        {skeleton_of("masked")} AS template,
        count, first_seen, last_seen,
        {example_of("least_body")} AS example
    FROM (
        SELECT toStartOfInterval(toDateTime(Timestamp), INTERVAL 5 SECOND) AS bucket,
            ServiceName AS service,
            toString(SeverityText) AS severity_text,
            SeverityNumber AS severity_number,
            {masked_of("Body")} AS masked,
            count() AS count,
            min(Timestamp) AS first_seen,
            max(Timestamp) AS last_seen,
            min(Body) AS least_body
        FROM otel_logs
        WHERE Body != ''
        GROUP BY bucket, service, SeverityText, SeverityNumber, masked
    )
)"""
_PATTERNS_1M = """
SELECT toStartOfMinute(bucket) AS bucket, service, severity, template_id, template, count, first_seen, last_seen, example
FROM quell_patterns_5s"""


PEER = """multiIf(
        SpanKind NOT IN ('Client', 'Producer', 'SPAN_KIND_CLIENT', 'SPAN_KIND_PRODUCER'), '',
        SpanAttributes['service.peer.name'] != '', SpanAttributes['service.peer.name'],
        SpanAttributes['peer.service'] != '', SpanAttributes['peer.service'],
        SpanAttributes['db.system.name'] != '', SpanAttributes['db.system.name'],
        SpanAttributes['db.system'] != '', SpanAttributes['db.system'],
        SpanAttributes['messaging.destination.name'] != '', SpanAttributes['messaging.destination.name'],
        SpanAttributes['server.address'] = '', '',
        SpanAttributes['server.port'] = '', SpanAttributes['server.address'],
        concat(SpanAttributes['server.address'], ':', SpanAttributes['server.port']))"""
"""The name of the callee as the caller's span tells it."""
_CALLEE_KIND = """multiIf(
        SpanAttributes['db.system.name'] != '' OR SpanAttributes['db.system'] != '', 'database',
        SpanAttributes['messaging.system'] != '', 'queue',
        SpanAttributes['service.peer.name'] != '' OR SpanAttributes['peer.service'] != '', 'service',
        'external')"""
_ERROR = "StatusCode IN ('Error', 'STATUS_CODE_ERROR')"
_ERROR_TYPE = """multiIf(
        SpanAttributes['error.type'] != '', SpanAttributes['error.type'],
        SpanAttributes['http.response.status_code'] != '', SpanAttributes['http.response.status_code'],
        SpanAttributes['exception.type'] != '', SpanAttributes['exception.type'],
        StatusMessage != '', substringUTF8(StatusMessage, 1, 80),
        'error')"""
_KINDS = ("server", "client", "producer", "consumer")
_SPAN_KIND = f"transform(toString(SpanKind), {[kind.capitalize() for kind in _KINDS] + ['SPAN_KIND_' + kind.upper() for kind in _KINDS]}, {list(_KINDS) * 2}, 'internal')"


_RED = f"""
SELECT toStartOfInterval(toDateTime(Timestamp), INTERVAL 5 SECOND) AS bucket,
    ServiceName AS service,
    substringUTF8(SpanName, 1, 200) AS operation,
    {_SPAN_KIND} AS span_kind,
    {PEER} AS peer,
    count() AS calls,
    countIf({_ERROR}) AS errors,
    sum(Duration) AS duration_ns,
    quantilesTDigestState(0.5, 0.95)(Duration / 1e6) AS quantiles
FROM otel_traces
GROUP BY bucket, service, operation, span_kind, peer"""
_RED_1M = """
SELECT toStartOfMinute(bucket) AS bucket, service, operation, span_kind, peer, calls, errors, duration_ns, quantiles
FROM quell_red_5s"""


_CALLS_FROM_CALLERS = f"""
SELECT sipHash64(TraceId, SpanId) AS key,
    toStartOfInterval(toDateTime(Timestamp), INTERVAL 5 SECOND) AS bucket,
    ServiceName AS caller,
    {PEER} AS callee_hint,
    '' AS callee,
    Duration AS client_ns,
    toUInt64(0) AS server_ns,
    toUInt8({_ERROR}) AS client_error,
    {_CALLEE_KIND} AS callee_kind,
    if({_ERROR}, {_ERROR_TYPE}, '') AS error_type
FROM otel_traces
WHERE SpanKind IN ('Client', 'Producer', 'SPAN_KIND_CLIENT', 'SPAN_KIND_PRODUCER')"""

_CALLS_FROM_CALLEES = """
SELECT if(ParentSpanId != '', sipHash64(TraceId, ParentSpanId), sipHash64(Links.TraceId[1], Links.SpanId[1])) AS key,
    toStartOfInterval(toDateTime(Timestamp), INTERVAL 5 SECOND) AS bucket,
    '' AS caller,
    '' AS callee_hint,
    ServiceName AS callee,
    toUInt64(0) AS client_ns,
    Duration AS server_ns,
    toUInt8(0) AS client_error,
    '' AS callee_kind,
    '' AS error_type
FROM otel_traces
WHERE SpanKind IN ('Server', 'Consumer', 'SPAN_KIND_SERVER', 'SPAN_KIND_CONSUMER')
    AND (ParentSpanId != '' OR notEmpty(Links.SpanId))"""


def _sightings(table: str, time: str) -> str:
    return f"""
SELECT ServiceName AS service,
    ResourceAttributes['service.version'] AS version,
    ResourceAttributes['service.instance.id'] AS instance,
    min({time}) AS first_seen,
    max({time}) AS last_seen
FROM {table}
WHERE ServiceName != ''
GROUP BY service, version, instance
HAVING version != '' OR instance != ''"""


EVENTS = {
    "deployment.finished": "deploy",
    "feature_flag.changed": "flag",
    "config.changed": "config",
    "process.exited": "exit",
    "process.started": "restart",
    "service.scaled": "scale",
}
"""Names of log events that say that something was changed, and the kind of change."""


_SUBJECT_KEYS = {
    "flag": "feature_flag.key",
    "config": "config.key",
    "exit": "process.pid",
    "restart": "service.instance.id",
}
_BEFORE_KEYS = {
    "deploy": "service.version.previous",
    "flag": "feature_flag.result.variant.previous",
    "config": "config.value.previous",
    "scale": "service.replicas.previous",
}
_AFTER_KEYS = {
    "deploy": "service.version",
    "flag": "feature_flag.result.variant",
    "config": "config.value",
    "exit": "process.exit.reason",
    "restart": "service.instance.id",
    "scale": "service.replicas",
}


def _attribute_by_change(keys: dict[str, str]) -> str:
    return f"LogAttributes[transform(change, {list(keys)}, {list(keys.values())}, '')]"


def _changes() -> str:
    names = list(EVENTS)
    return f"""
SELECT at, change, service, if(change IN ('deploy', 'scale'), if(change = 'deploy', 'service.version', 'service.replicas'), named) AS subject,
    substringUTF8({_attribute_by_change(_BEFORE_KEYS)}, 1, 300) AS before,
    substringUTF8(trim(concat({_attribute_by_change(_AFTER_KEYS)}, ' ', LogAttributes['process.exit.code'])), 1, 300) AS after,
    trim(concat(LogAttributes['vcs.ref.head.revision'], ' ', {example_of("Body")})) AS detail,
    'events' AS source,
    {change_key("toUnixTimestamp64Nano(at)")} AS key
FROM (
    SELECT Timestamp AS at, transform(EventName, {names}, {list(EVENTS.values())}, 'other') AS change,
        if(LogAttributes['service.name'] != '', LogAttributes['service.name'], if(change = 'flag', '', toString(ServiceName))) AS service,
        {_attribute_by_change(_SUBJECT_KEYS)} AS named, LogAttributes, Body
    FROM otel_logs
    WHERE EventName IN ({", ".join(map(literal, names))})
)"""


def change_key(nanos: str) -> str:
    """Write the SQL that identifies a change, so that the same one arrives once."""
    return f"sipHash64(change, service, subject, before, after, {nanos})"


def views_of() -> tuple[str, ...]:
    """Write every CREATE MATERIALIZED VIEW of the rollups."""
    return (
        _view("quell_patterns_5s_mv", "quell_patterns_5s", _PATTERNS),
        _view("quell_patterns_1m_mv", "quell_patterns_1m", _PATTERNS_1M),
        _view("quell_red_5s_mv", "quell_red_5s", _RED),
        _view("quell_red_1m_mv", "quell_red_1m", _RED_1M),
        _view("quell_calls_from_callers_mv", "quell_calls", _CALLS_FROM_CALLERS),
        _view("quell_calls_from_callees_mv", "quell_calls", _CALLS_FROM_CALLEES),
        _view("quell_sightings_logs_mv", "quell_sightings", _sightings("otel_logs", "Timestamp")),
        _view("quell_sightings_traces_mv", "quell_sightings", _sightings("otel_traces", "Timestamp")),
        _view("quell_sightings_gauge_mv", "quell_sightings", _sightings("otel_metrics_gauge", "TimeUnix")),
        _view("quell_changes_mv", "quell_changes", _changes()),
    )
