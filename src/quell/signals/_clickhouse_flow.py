"""flow_breaks: inside a service and a trace, what used to follow a step and no longer does, or only now does.

Shares are conditional on the step itself, so that more or less traffic changes nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict

import msgspec

from quell.domain import FlowBreak, Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_attributes import has_rows
from quell.signals._clickhouse_sources import SHORT_STEP_S, SPAN_KIND, Stretch, stretch_of
from quell.signals._reader_text import escape_line
from quell.signals._schema_views import masked_of, skeleton_of

END = "<end>"
_TRACES_MAX = 20_000
_EVENTS_MAX = 60
_SUPPORT_MIN = 10
_SHARE_MIN = 0.15
_Z_MIN = 4.0
_UNFINISHED_S = 5
"""Traces that began this close to the window's end may still be under way."""
_STEP_CHARS = 160


class _Row(msgspec.Struct):
    service: str
    step: str
    following: str
    n: int
    n_before: int


async def flow_breaks(asking: Asking, question: Question) -> Asked:
    """Count transitions between log templates and operations within service and trace, now and before."""
    asking.shape.require("otel_logs")
    asking.shape.require("otel_traces")
    stretch = stretch_of(question, step_s=SHORT_STEP_S, now=asking.now, hidden=asking.hidden)
    # By the question's own end, not by the clock: the same question gets the same answer.
    settled = min(stretch.end, int(question.window.end.timestamp())) - _UNFINISHED_S
    sql = _query(asking, stretch, settled=settled)
    found = await asking.rows(sql, row=_Row)
    if not found and not await has_rows(asking, stretch, table="otel_traces", column="Timestamp"):
        raise asking.empty("no traces from anybody that was asked about", sql)
    breaks = sorted(_breaks(found), key=_order)
    return Asked(rows=tuple(breaks), query=sql)


def _query(asking: Asking, stretch: Stretch, *, settled: int) -> str:
    log_time = asking.shape.raw_time("otel_logs", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    span_time = asking.shape.raw_time("otel_traces", column="Timestamp", begin=stretch.before_from, end=stretch.end)
    # The sample is by hash of the trace, hence the same one each time.
    return f"""SELECT service, pair.1 AS step, pair.2 AS following, toUInt32(countIf(began >= {stretch.begin})) AS n,
    toUInt32(countIf(began < {stretch.before_until})) AS n_before
FROM (
    SELECT service, toUnixTimestamp(min(at)) AS began, arrayMap(e -> e.2, arraySlice(arraySort(groupArray((at, text))), 1, {_EVENTS_MAX})) AS steps,
        arrayZip(steps, arrayPushBack(arrayPopFront(steps), '{END}')) AS pairs
    FROM (
        SELECT ServiceName AS service, TraceId, Timestamp AS at, {skeleton_of("masked")} AS text, {masked_of("Body")} AS masked
        FROM otel_logs WHERE TraceId != '' AND Body != '' AND {log_time} AND {stretch.scoped("ServiceName")}
        UNION ALL
        SELECT ServiceName AS service, TraceId, Timestamp AS at, concat({SPAN_KIND}, ' ', SpanName) AS text, '' AS masked
        FROM otel_traces WHERE {span_time} AND {stretch.scoped("ServiceName")}
    )
    GROUP BY service, TraceId
    HAVING began < {settled}
    ORDER BY cityHash64(TraceId), service
    LIMIT {_TRACES_MAX}
)
ARRAY JOIN pairs AS pair
GROUP BY service, step, following
ORDER BY service, step, following"""


def _breaks(rows: list[_Row]) -> list[FlowBreak]:
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        total = totals[row.service, row.step]
        total[0] += row.n
        total[1] += row.n_before
    breaks = []
    for row in rows:
        now, before = totals[row.service, row.step]
        if min(now, before) < _SUPPORT_MIN:
            continue
        share, share_before = row.n / now, row.n_before / before
        if abs(share - share_before) >= _SHARE_MIN and _z(share, now, share_before, before) >= _Z_MIN:
            breaks.append(
                FlowBreak(
                    service=row.service,
                    before=escape_line(row.step, chars_max=_STEP_CHARS),
                    after=escape_line(row.following, chars_max=_STEP_CHARS),
                    share=round(share, 4),
                    share_before=round(share_before, 4),
                    support=now,
                )
            )
    return breaks


def _z(share: float, now: int, share_before: float, before: int) -> float:
    pooled = (share * now + share_before * before + 1) / (now + before + 2)
    return abs(share - share_before) / math.sqrt(pooled * (1 - pooled) * (1 / now + 1 / before))


def _order(row: FlowBreak) -> tuple[float, str, str, str]:
    strength = abs(row.share - row.share_before) * math.sqrt(row.support)
    return (-round(strength, 6), row.service, row.before, row.after)
