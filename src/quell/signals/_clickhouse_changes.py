"""changes and exemplars: what somebody changed, and concrete records that show trouble."""

from __future__ import annotations

from datetime import datetime

import msgspec

from quell.domain import ChangeKind, Exemplar, ObservedChange, Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_attributes import has_rows
from quell.signals._clickhouse_sources import IS_ERROR, SHORT_STEP_S, Stretch, stretch_of
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_text import escape_line
from quell.signals._schema_views import _changes, example_of, masked_of, severity_of

_TEXT_CHARS = 200
_PER_SERVICE_MAX = 6
_RECORDS_MAX = 400
_KINDS = {kind.value: kind for kind in ChangeKind}


class _Change(msgspec.Struct):
    at: datetime
    change: str
    service: str
    subject: str
    before: str
    after: str
    detail: str


class _Record(msgspec.Struct):
    service: str
    at: datetime
    severity: str
    trace_id: str
    text: str


async def observed_changes(asking: Asking, question: Question) -> Asked:
    """List every change of baseline and window, oldest first; those that concern everybody are always in scope."""
    stretch = stretch_of(question, step_s=SHORT_STEP_S, now=asking.now, hidden=asking.hidden)
    scope = f"({stretch.scoped('service')} OR service = '')"
    begin, end = question.baseline.start.timestamp(), question.window.end.timestamp()
    when = f"at >= fromUnixTimestamp64Milli({int(begin * 1000)}) AND at < fromUnixTimestamp64Milli({int(end * 1000)})"
    if asking.shape.has("quell_changes"):
        source, partial = "quell_changes", ""
    else:
        asking.shape.require("otel_logs")
        source, partial = (
            f"({_from_logs(asking, stretch)})",
            "deploys and restarts are known from events only: this store has no changes table",
        )
    sql = f"""SELECT first_at AS at, toString(change) AS change, toString(service) AS service, subject, before, after, text AS detail
FROM (
    SELECT min(at) AS first_at, change, service, subject, before, after, min(detail) AS text, key
    FROM (SELECT * FROM {source} WHERE {when} AND {scope})
    GROUP BY change, service, subject, before, after, key
)
ORDER BY at, change, service, subject, after, key"""
    found = await asking.rows(sql, row=_Change)
    if not found and not await _speaks(asking, stretch):
        raise asking.empty("nothing at all was recorded, so that changes would not have been seen either", sql)
    return Asked(rows=tuple(_change(row) for row in found), query=sql, partial=partial)


def _from_logs(asking: Asking, stretch: Stretch) -> str:
    time = asking.shape.raw_time("otel_logs", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    named = "raw.LogAttributes['event.name']"
    if "EventName" in asking.shape.columns("otel_logs"):
        named = f"if(raw.EventName != '', raw.EventName, {named})"
    logs = f"""(SELECT raw.Timestamp AS Timestamp, raw.ServiceName AS ServiceName, raw.ResourceAttributes AS ResourceAttributes,
    raw.LogAttributes AS LogAttributes, raw.Body AS Body, {named} AS EventName FROM otel_logs AS raw WHERE {time})"""
    source = _changes()
    assert source.count("FROM otel_logs") == 1, "the view reads the logs once"
    return source.replace("FROM otel_logs", f"FROM {logs}")


def _change(row: _Change) -> ObservedChange:
    return ObservedChange(
        at=row.at,
        change=_KINDS.get(row.change, ChangeKind.OTHER),
        service=row.service,
        subject=escape_line(row.subject, chars_max=_TEXT_CHARS),
        before=escape_line(row.before, chars_max=_TEXT_CHARS),
        after=escape_line(row.after, chars_max=_TEXT_CHARS),
        detail=escape_line(row.detail, chars_max=_TEXT_CHARS),
    )


async def _speaks(asking: Asking, stretch: Stretch) -> bool:
    for table, column in (("otel_logs", "Timestamp"), ("otel_traces", "Timestamp"), ("otel_metrics_gauge", "TimeUnix")):
        if asking.shape.has(table) and await has_rows(asking, stretch, table=table, column=column):
            return True
    return False


async def exemplars(asking: Asking, question: Question) -> Asked:
    """Show the first warning, error or fatal log of each template, and the first failed span of each operation and reason."""
    stretch = stretch_of(question, step_s=SHORT_STEP_S, now=asking.now, hidden=asking.hidden)
    parts = []
    if asking.shape.has("otel_logs"):
        asking.shape.require("otel_logs")
        parts.append(_logs(asking, stretch))
    if asking.shape.has("otel_traces"):
        asking.shape.require("otel_traces")
        parts.append(_spans(asking, stretch))
    if not parts:
        raise CannotAnswerError("unsupported", "there are neither logs nor traces here")
    sql = f"""SELECT service, at, severity, trace_id, text FROM ({" UNION ALL ".join(parts)})
ORDER BY service, severity IN ('error', 'fatal') DESC, n DESC, at, trace_id, text
LIMIT {_PER_SERVICE_MAX} BY service LIMIT {_RECORDS_MAX}"""
    found = await asking.rows(sql, row=_Record)
    if not found and not await _speaks(asking, stretch):
        raise asking.empty("no logs and no spans from anybody that was asked about", sql)
    return Asked(rows=tuple(_exemplar(row) for row in found), query=sql)


def _logs(asking: Asking, stretch: Stretch) -> str:
    time = asking.shape.raw_time("otel_logs", column="Timestamp", begin=stretch.begin, end=stretch.end)
    severity = severity_of("toString(SeverityText)", "SeverityNumber")
    return f"""SELECT toString(ServiceName) AS service, {severity} AS severity, min((Timestamp, TraceId, {example_of("Body")})) AS first,
    first.1 AS at, first.2 AS trace_id, first.3 AS text, count() AS n
FROM otel_logs WHERE Body != '' AND {time} AND {stretch.scoped("ServiceName")}
GROUP BY service, severity, {masked_of("Body")}
HAVING severity IN ('warn', 'error', 'fatal')"""


def _spans(asking: Asking, stretch: Stretch) -> str:
    time = asking.shape.raw_time("otel_traces", column="Timestamp", begin=stretch.begin, end=stretch.end)
    why = "multiIf(StatusMessage != '', StatusMessage, SpanAttributes['error.type'])"
    return f"""SELECT toString(ServiceName) AS service, 'error' AS severity,
    min((Timestamp, TraceId, concat(SpanName, ' failed: ', {why}))) AS first, first.1 AS at, first.2 AS trace_id, first.3 AS text, count() AS n
FROM otel_traces WHERE {IS_ERROR} AND {time} AND {stretch.scoped("ServiceName")}
GROUP BY service, SpanName, {why}"""


def _exemplar(row: _Record) -> Exemplar:
    return Exemplar(
        service=row.service,
        at=row.at,
        severity=row.severity,
        trace_id=escape_line(row.trace_id, chars_max=64),
        text=escape_line(row.text, chars_max=_TEXT_CHARS),
    )
