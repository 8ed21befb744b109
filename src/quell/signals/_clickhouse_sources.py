"""Where a question reads: our rollups where they exist and reach back far enough, the exporter's raw tables otherwise.

Every source is an inner query with the same columns whichever table it reads, so that a question is written once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quell.domain import Question
from quell.signals._client import Schema
from quell.signals._reader import CannotAnswerError
from quell.signals._schema_views import (
    _CALLS_FROM_CALLEES,
    _CALLS_FROM_CALLERS,
    example_of,
    literal,
    masked_of,
    severity_of,
    skeleton_of,
)

SHORT_STEP_S = 5
LONG_STEP_S = 60
_SHORT_REACH_S = 110 * 60
_GUARD_MIN_BUCKETS = 6
IS_ERROR = "StatusCode IN ('Error', 'STATUS_CODE_ERROR')"
SPAN_KIND = "replaceOne(replaceOne(lower(SpanKind), 'span_kind_', ''), 'unspecified', 'internal')"


@dataclass(frozen=True, slots=True)
class Shape:
    """Which tables a ClickHouse has, and how they must be asked."""

    tables: Schema

    def has(self, table: str) -> bool:
        """Tell whether a table exists."""
        return table in self.tables

    def require(self, table: str) -> None:
        """Raise CannotAnswerError unless the table exists in a form that can be read."""
        if table not in self.tables:
            raise CannotAnswerError(
                "unsupported", f"there is no table {table}: this kind of telemetry is not stored here"
            )
        if self.tables[table].attributes == "json":
            raise CannotAnswerError("unsupported", f"{table} keeps attributes as JSON; only Map columns can be read")

    def columns(self, table: str) -> Mapping[str, str]:
        """Return column name -> type; empty when the table does not exist."""
        return self.tables[table].columns if table in self.tables else {}

    def raw_time(self, table: str, *, column: str, begin: int, end: int) -> str:
        """Write the time predicate that the table's own sort key can use, for each of the known generations."""
        exact = f"{column} >= fromUnixTimestamp64Milli({begin * 1000}) AND {column} < fromUnixTimestamp64Milli({end * 1000})"
        sorting = self.tables[table].sorting_key if table in self.tables else ""
        if "TimestampTime" in self.columns(table) and column == "Timestamp":
            return f"TimestampTime >= toDateTime({begin}) AND TimestampTime < toDateTime({end}) AND {exact}"
        if f"toStartOfFiveMinutes({column})" in sorting:
            return f"toStartOfFiveMinutes({column}) >= toStartOfFiveMinutes(toDateTime({begin})) AND {exact}"
        if f"toDateTime({column})" in sorting:
            return (
                f"toDateTime({column}) >= toDateTime({begin}) AND toDateTime({column}) <= toDateTime({end}) AND {exact}"
            )
        return exact


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A question's two windows on bucket edges, in epoch seconds."""

    step_s: int
    before_from: int
    before_until: int
    begin: int
    end: int
    now: int
    """The store's own clock."""
    services: tuple[str, ...]
    hidden: tuple[str, ...]

    @property
    def within(self) -> str:
        """Write the predicate for buckets of the window."""
        return f"b >= {self.begin}"

    @property
    def before(self) -> str:
        """Write the predicate for buckets of the baseline."""
        return f"b < {self.before_until}"

    @property
    def has_gap(self) -> bool:
        """Whether more than the guard bucket lies between baseline and window: earlier trouble, which is left out."""
        return self.begin - self.before_until > 2 * self.step_s

    @property
    def charted(self) -> str:
        """Write the predicate for buckets of which a course is made: what lies in a gap must not be taken for an onset."""
        return f"({self.before} OR {self.within})" if self.has_gap else "1"

    def is_charted(self, bucket: int) -> bool:
        """Tell the same of one bucket."""
        return not self.has_gap or bucket < self.before_until or bucket >= self.begin

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return float(self.end - self.begin)

    @property
    def seconds_before(self) -> float:
        """Length of the baseline."""
        return float(self.before_until - self.before_from)

    def scoped(self, column: str) -> str:
        """Write the predicate for the services that are meant."""
        if self.services:
            return f"{column} IN ({_listed(self.services)})"
        return f"{column} NOT IN ({_listed(self.hidden)})" if self.hidden else "1"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(literal(name) for name in names)


def stretch_of(question: Question, *, step_s: int, now: int, hidden: tuple[str, ...]) -> Stretch:
    """Align both windows to buckets; one guard bucket keeps what straddles the start out of the baseline."""
    begin = math.floor(question.window.start.timestamp() / step_s) * step_s
    end = max(begin + step_s, math.ceil(question.window.end.timestamp() / step_s) * step_s)
    until = min(begin, math.floor(question.baseline.end.timestamp() / step_s) * step_s)
    start = math.ceil(question.baseline.start.timestamp() / step_s) * step_s
    if until == begin and until - start >= _GUARD_MIN_BUCKETS * step_s:
        until -= step_s
    if until <= start:
        start = until - step_s
    return Stretch(
        step_s=step_s,
        before_from=start,
        before_until=until,
        begin=begin,
        end=end,
        now=now,
        services=question.scope.services,
        hidden=hidden,
    )


def step_of(question: Question, *, shape: Shape, short: str, long: str, now: int) -> tuple[str, int]:
    """Choose the finest rollup that reaches back to the baseline; an empty name means the raw table."""
    oldest = question.baseline.start.timestamp()
    if shape.has(short) and oldest >= now - _SHORT_REACH_S:
        return short, SHORT_STEP_S
    if long and shape.has(long):
        return long, LONG_STEP_S
    return "", SHORT_STEP_S


def red_source(shape: Shape, *, table: str, stretch: Stretch) -> str:
    """Write: service, operation, span_kind, b, c (calls), e (errors), d (ms), q (quantile state)."""
    if table:
        return f"""SELECT service, operation, span_kind, toUnixTimestamp(bucket) AS b, sum(calls) AS c, sum(errors) AS e,
    sum(duration_ns) / 1e6 AS d, quantilesTDigestMergeState(0.5, 0.95)(quantiles) AS q
FROM {table}
WHERE bucket >= toDateTime({stretch.before_from}) AND bucket < toDateTime({stretch.end}) AND {stretch.scoped("service")}
GROUP BY service, operation, span_kind, b"""
    shape.require("otel_traces")
    time = shape.raw_time("otel_traces", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    return f"""SELECT ServiceName AS service, substringUTF8(SpanName, 1, 200) AS operation,
    if({SPAN_KIND} = '', 'internal', {SPAN_KIND}) AS span_kind,
    toUnixTimestamp(toStartOfInterval(Timestamp, INTERVAL {stretch.step_s} SECOND)) AS b,
    count() AS c, countIf({IS_ERROR}) AS e, sum(Duration) / 1e6 AS d, quantilesTDigestState(0.5, 0.95)(Duration / 1e6) AS q
FROM otel_traces
WHERE {time} AND {stretch.scoped("ServiceName")}
GROUP BY service, operation, span_kind, b"""


def calls_source(shape: Shape, *, table: str, stretch: Stretch) -> str:
    """Write one row per call: b, caller, hint, callee, client (ms), server (ms), failed, kind, error."""
    if table:
        halves = f"SELECT * FROM {table} WHERE bucket >= toDateTime({stretch.before_from}) AND bucket < toDateTime({stretch.end})"
    else:
        shape.require("otel_traces")
        time = shape.raw_time("otel_traces", column="Timestamp", begin=stretch.before_from, end=stretch.end)
        halves = f"{_CALLS_FROM_CALLERS} AND {time} UNION ALL {_CALLS_FROM_CALLEES} AND {time}"
    scope = (
        f" AND ({stretch.scoped('caller_name')} OR {stretch.scoped('callee_name')})"
        if stretch.services
        else f" AND {stretch.scoped('caller_name')}"
    )
    return f"""SELECT b, caller_name AS caller, hint, callee_name AS callee, client_ms AS client, server_ms AS server, failed, kind, error
FROM (
    SELECT toUnixTimestamp(min(bucket)) AS b, toString(max(caller)) AS caller_name, toString(max(callee_hint)) AS hint,
        toString(max(callee)) AS callee_name, max(client_ns) / 1e6 AS client_ms, max(server_ns) / 1e6 AS server_ms,
        max(client_error) AS failed, toString(max(callee_kind)) AS kind, toString(max(error_type)) AS error
    FROM ({halves})
    GROUP BY key
)
WHERE caller_name != ''{scope}"""


def patterns_source(shape: Shape, *, table: str, stretch: Stretch) -> str:
    """Write: service, severity, template_id, template, b, n, first_seen, last_seen, example."""
    if table:
        return f"""SELECT service, severity, template_id, template, toUnixTimestamp(bucket) AS b, count AS n, first_seen, last_seen, example
FROM {table}
WHERE bucket >= toDateTime({stretch.before_from}) AND bucket < toDateTime({stretch.end}) AND {stretch.scoped("service")}"""
    shape.require("otel_logs")
    time = shape.raw_time("otel_logs", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    return f"""SELECT service, severity, cityHash64(template) AS template_id, template, b, n, first_seen, last_seen, example
FROM (
    SELECT ServiceName AS service, {severity_of("toString(SeverityText)", "SeverityNumber")} AS severity,
        {skeleton_of("masked")} AS template, {masked_of("Body")} AS masked,
        toUnixTimestamp(toStartOfInterval(Timestamp, INTERVAL {stretch.step_s} SECOND)) AS b,
        count() AS n, min(Timestamp) AS first_seen, max(Timestamp) AS last_seen, {example_of("min(Body)")} AS example
    FROM otel_logs
    WHERE Body != '' AND {time} AND {stretch.scoped("ServiceName")}
    GROUP BY service, severity, masked, b
)"""
