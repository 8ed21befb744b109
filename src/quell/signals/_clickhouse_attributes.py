"""attribute_diff: which attribute values bad records have that good ones do not, and did not have before."""

from __future__ import annotations

import msgspec

from quell.domain import AttributeDiff, Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_sources import IS_ERROR, SHORT_STEP_S, SPAN_KIND, Stretch, stretch_of
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_text import escape_line
from quell.signals._schema_views import literal, severity_of

_BAD_MIN = 5
_SHARE_OF_BAD_MIN = 0.2
_LIFT_MIN = 0.2
_RISK_RATIO_MIN = 1.5
_BAD_BEFORE_MIN = 20
_PER_SERVICE_MAX = 6
_PAIRS_MAX = 5000
_DEFINING = (
    r"^(error|exception|log|logger|thread|code|severity|level|otel|telemetry|event)(\.|$)|status|outcome|stacktrace|"
    r"^(process\.(pid|command|parent)|service\.name$|http\.response|network\.peer\.port|client\.port)|(^|\.)(trace|span)_?id$"
)
"""Attributes that say that a record is bad, or which line of code wrote it: trivially different, so no evidence."""


class _Row(msgspec.Struct):
    service: str
    key: str
    value: str
    bad: int
    bad_total: int
    good: int
    good_total: int
    bad_before: int
    bad_total_before: int


async def attribute_diffs(asking: Asking, question: Question) -> Asked:
    """Compare failed with good incoming spans, and warning and error logs with others, attribute by attribute."""
    stretch = stretch_of(question, step_s=SHORT_STEP_S, now=asking.now, hidden=asking.hidden)
    queries: list[str] = []
    rows: list[AttributeDiff] = []
    missing: list[str] = []
    for table, source in (("otel_traces", _spans), ("otel_logs", _logs)):
        try:
            asking.shape.require(table)
        except CannotAnswerError as error:
            missing.append(error.detail)
            continue
        sql = _query(source(asking, stretch), stretch)
        queries.append(sql)
        rows.extend(_kept(await asking.rows(sql, row=_Row)))
    query = ";\n".join(queries)
    if not queries:
        raise CannotAnswerError("unsupported", "; ".join(missing))
    if not rows and not await _any(asking, stretch):
        raise asking.empty("no spans and no logs from anybody that was asked about", query)
    rows = sorted(set(rows), key=_order)
    return Asked(rows=tuple(rows), query=query, partial="; ".join(missing))


def _spans(asking: Asking, stretch: Stretch) -> str:
    time = asking.shape.raw_time("otel_traces", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    return f"""SELECT ServiceName AS service, {IS_ERROR} AS is_bad, toUnixTimestamp(Timestamp) AS b,
    mapUpdate(ResourceAttributes, SpanAttributes) AS attributes
FROM otel_traces WHERE {time} AND {stretch.scoped("ServiceName")} AND {SPAN_KIND} IN ('server', 'consumer')"""


def _logs(asking: Asking, stretch: Stretch) -> str:
    time = asking.shape.raw_time("otel_logs", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    severity = severity_of("toString(SeverityText)", "SeverityNumber")
    return f"""SELECT ServiceName AS service, {severity} IN ('warn', 'error', 'fatal') AS is_bad, toUnixTimestamp(Timestamp) AS b,
    mapUpdate(ResourceAttributes, LogAttributes) AS attributes
FROM otel_logs WHERE {time} AND {stretch.scoped("ServiceName")}"""


def _query(records: str, stretch: Stretch) -> str:
    # Totals come from one pass of their own; only services with enough bad records are taken apart.
    return f"""WITH records AS ({records}),
    totals AS (SELECT service, toUInt32(countIf(is_bad AND {stretch.within})) AS bad_total, toUInt32(countIf(NOT is_bad AND {stretch.within})) AS good_total,
        toUInt32(countIf(is_bad AND {stretch.before})) AS bad_total_before FROM records GROUP BY service HAVING bad_total >= {_BAD_MIN} AND good_total > 0)
SELECT pairs.service AS service, key, value, bad, bad_total, good, good_total, bad_before, bad_total_before
FROM (
    SELECT service, toString(pair.1) AS key, substringUTF8(pair.2, 1, 200) AS value,
        toUInt32(countIf(is_bad AND {stretch.within})) AS bad, toUInt32(countIf(NOT is_bad AND {stretch.within})) AS good,
        toUInt32(countIf(is_bad AND {stretch.before})) AS bad_before
    FROM records ARRAY JOIN CAST(attributes, 'Array(Tuple(String, String))') AS pair
    WHERE service IN (SELECT service FROM totals) AND NOT match(pair.1, {literal(_DEFINING)})
    GROUP BY service, key, value
    HAVING bad >= {_BAD_MIN}
) AS pairs INNER JOIN totals ON pairs.service = totals.service
WHERE bad / bad_total >= {_SHARE_OF_BAD_MIN} AND bad / bad_total >= good / good_total + {_LIFT_MIN}
ORDER BY bad / bad_total - good / good_total DESC, service, key, value
LIMIT {_PAIRS_MAX}"""


def _kept(rows: list[_Row]) -> list[AttributeDiff]:
    kept: list[AttributeDiff] = []
    taken: dict[str, int] = {}
    for row in rows:
        bad, good = row.bad / row.bad_total, row.good / row.good_total
        before = row.bad_before / row.bad_total_before if row.bad_total_before else 0.0
        # What was typical of bad records all along explains nothing about now.
        stale = row.bad_total_before >= _BAD_BEFORE_MIN and bad - before < _LIFT_MIN
        if bad < _RISK_RATIO_MIN * good or stale or taken.get(row.service, 0) >= _PER_SERVICE_MAX:
            continue
        taken[row.service] = taken.get(row.service, 0) + 1
        kept.append(
            AttributeDiff(
                service=row.service,
                key=escape_line(row.key, chars_max=100),
                value=escape_line(row.value, chars_max=200),
                bad=row.bad,
                bad_total=row.bad_total,
                good=row.good,
                good_total=row.good_total,
                bad_share_before=round(before, 4),
            )
        )
    return kept


async def _any(asking: Asking, stretch: Stretch) -> bool:
    for table in ("otel_traces", "otel_logs"):
        if asking.shape.has(table) and await has_rows(asking, stretch, table=table, column="Timestamp"):
            return True
    return False


class _Count(msgspec.Struct):
    n: int


async def has_rows(asking: Asking, stretch: Stretch, *, table: str, column: str) -> bool:
    """Tell whether a raw table holds anything at all of the asked services and times."""
    time = asking.shape.raw_time(table, column=column, begin=stretch.before_from, end=stretch.end)
    sql = f"SELECT toUInt32(count()) AS n FROM (SELECT 1 FROM {table} WHERE {time} AND {stretch.scoped('ServiceName')} LIMIT 1)"
    return (await asking.rows(sql, row=_Count))[0].n > 0


def _order(row: AttributeDiff) -> tuple[float, str, str, str, int, int]:
    return (-(row.bad / row.bad_total - row.good / row.good_total), row.service, row.key, row.value, row.bad, row.good)
