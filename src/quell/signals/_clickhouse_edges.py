"""edge_gaps: every edge of the call graph from both ends; what the caller waited and the callee did not work is the wire's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from quell.domain import EdgeShift, Question
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_sources import Stretch, calls_source, step_of, stretch_of
from quell.signals._reader_onset import find_onset, sum_since
from quell.signals._reader_text import escape_line
from quell.signals._schema_views import literal
from quell.signals._survey_score import error_score, late_error_score, latency_score

CalleeKind = Literal["service", "database", "queue", "external"]
_KINDS: dict[str, CalleeKind] = {"service": "service", "database": "database", "queue": "queue"}
_SETTLE_S = 12
"""The callee's half of a call may arrive this much later than the caller's."""
_ERROR_TYPES_MAX = 5


class _Name(msgspec.Struct):
    caller: str
    hint: str
    callee: str
    n: int


class _Row(msgspec.Struct):
    caller: str
    callee: str
    kind: str
    calls: int
    errors: int
    unanswered: int
    matched: int
    client_ms: float
    client_p95_ms: float
    server_ms: float
    matched_client_ms: float
    calls_before: int
    errors_before: int
    unanswered_before: int
    matched_before: int
    client_ms_before: float
    client_p95_ms_before: float
    server_ms_before: float
    matched_client_ms_before: float
    error_types: dict[str, int]
    series: tuple[list[int], list[int], list[int], list[int], list[float]]
    """Bucket, calls, errors, unanswered, milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Onset:
    """Since when an edge is not as before, and what came since."""

    since: datetime | None = None
    calls: int | None = None
    failed: int | None = None
    score: float = 0.0
    """Weight of failures that only the time since then holds."""


async def edge_shifts(asking: Asking, question: Question) -> Asked:
    """Return every edge that was used, those that moved first: the graph itself is evidence."""
    shape = asking.shape
    table, step_s = step_of(question, shape=shape, short="quell_calls", long="quell_edges_1m", now=asking.now)
    stretch = stretch_of(question, step_s=step_s, now=asking.now, hidden=asking.hidden)
    if table == "quell_edges_1m":
        sql = _rolled(stretch)
    else:
        calls = calls_source(shape, table=table, stretch=stretch)
        names = await asking.rows(
            f"SELECT caller, hint, callee, toUInt32(count()) AS n FROM ({calls}) WHERE callee != '' AND kind != 'queue' "
            "GROUP BY caller, hint, callee ORDER BY caller, hint, n, callee",
            row=_Name,
        )
        sql = _query(calls, names=names, stretch=stretch)
    found = await asking.rows(sql, row=_Row)
    if not found:
        raise asking.empty("no calls between anybody that was asked about", sql)
    scored = [(row, _score(row), _onset(row, stretch=stretch)) for row in found]
    scored.sort(key=lambda item: (-max(item[1], item[2].score), item[0].caller, item[0].callee, item[0].kind))
    rows = tuple(_edge(row, onset=onset if score or onset.score else _Onset()) for row, score, onset in scored)
    return Asked(rows=rows, query=sql)


def _rolled(stretch: Stretch) -> str:
    """Ask the edges by minute, which reach back farther than single calls."""
    sums = ", ".join(
        f"""toUInt32(sumIf(n, {when})) AS calls{suffix}, toUInt32(sumIf(e, {when})) AS errors{suffix},
    toUInt32(sumIf(u, {when})) AS unanswered{suffix}, toUInt32(sumIf(m, {when})) AS matched{suffix},
    sumIf(client, {when}) AS client_ms{suffix}, ifNotFinite(quantilesTDigestMergeIf(0.5, 0.95)(q, {when})[2], 0) AS client_p95_ms{suffix},
    sumIf(server, {when}) AS server_ms{suffix}, sumIf(paired, {when}) AS matched_client_ms{suffix}"""
        for suffix, when in (("", stretch.within), ("_before", stretch.before))
    )
    scope = (
        f"{stretch.scoped('caller')} OR {stretch.scoped('callee')}" if stretch.services else stretch.scoped("caller")
    )
    return f"""SELECT from_name AS caller, to_name AS callee, max(sort) AS kind, {sums},
    sumMapIf(mapFromArrays(types, arrayMap(t -> toUInt64(e), types)), {stretch.within}) AS error_types,
    sumMapIf([b], [toUInt32(n)], [toUInt32(e)], [toUInt32(u)], [client], {stretch.charted}) AS series
FROM (
    SELECT toString(caller) AS from_name, toString(callee) AS to_name, toString(callee_kind) AS sort, toUnixTimestamp(bucket) AS b,
        calls AS n, errors AS e, unanswered AS u, matched AS m, client_ns / 1e6 AS client, server_ns / 1e6 AS server,
        matched_client_ns / 1e6 AS paired, client_quantiles AS q, error_types AS types
    FROM quell_edges_1m FINAL
    WHERE bucket >= toDateTime({stretch.before_from}) AND bucket < toDateTime({stretch.end}) AND ({scope}) AND callee != ''
)
GROUP BY caller, callee
ORDER BY caller, callee
SETTINGS max_threads = 1"""


def _query(calls: str, *, names: Sequence[_Name], stretch: Stretch) -> str:
    # A caller may name its callee by address; the pairs that matched tell which service that is. A queue keeps its own
    # name for the producer, and each consumer that takes from it is an edge of its own.
    known = {f"{name.caller}\x1f{name.hint}": name.callee for name in names if name.hint}
    pairs = ", ".join(f"{literal(hint)}, {literal(callee)}" for hint, callee in sorted(known.items()))
    resolved = f"map({pairs})[concat(caller, '\x1f', hint)]" if pairs else "''"
    speaking = ", ".join(literal(callee) for callee in sorted({name.callee for name in names})) or "''"
    sums = ", ".join(
        f"""toUInt32(countIf({when})) AS calls{suffix}, toUInt32(countIf(failed AND {when})) AS errors{suffix},
    toUInt32(countIf(lost AND {when})) AS unanswered{suffix}, toUInt32(countIf(paired AND {when})) AS matched{suffix},
    sumIf(client, {when}) AS client_ms{suffix}, quantileExactIf(0.95)(client, {when}) AS client_p95_ms{suffix},
    sumIf(server, paired AND {when}) AS server_ms{suffix}, sumIf(client, paired AND {when}) AS matched_client_ms{suffix}"""
        for suffix, when in (("", stretch.within), ("_before", stretch.before))
    )
    return f"""SELECT edge.1 AS caller, edge.2 AS callee, max(edge.3) AS kind, {sums},
    sumMapIf(map(error, toUInt64(1)), failed AND error != '' AND {stretch.within}) AS error_types,
    sumMapIf([toUInt32(b)], [toUInt32(1)], [toUInt32(failed)], [toUInt32(lost)], [client], {stretch.charted}) AS series
FROM (
    SELECT b, edge, edge.4 AS client, server_ms AS server, edge.5 AS failed, edge.6 AS error, edge.7 AS paired, edge.8 AS lost
    FROM (
        SELECT b, server AS server_ms,
            multiIf(kind = 'queue', hint, callee != '', callee, {resolved} != '', {resolved}, hint) AS name,
            toUInt8(callee != '' AND kind != 'queue') AS answered,
            toUInt8(callee = '' AND kind != 'queue' AND b < {stretch.now - _SETTLE_S} AND name IN ({speaking})) AS silent,
            arrayConcat(
                [(caller, name, kind, client, toUInt8(failed), error, answered, silent)],
                if(kind = 'queue' AND callee != '' AND hint != '',
                    [(hint, callee, 'service', server, toUInt8(0), '', toUInt8(1), toUInt8(0))], [])
            ) AS edges
        FROM ({calls})
    ) ARRAY JOIN edges AS edge
)
WHERE callee != ''
GROUP BY caller, callee
ORDER BY caller, callee"""


def _mean(total: float, count: int) -> float:
    return round(total / count, 2) if count else 0.0


def _score(row: _Row) -> float:
    calls, before = row.calls, row.calls_before
    return max(
        latency_score(
            _mean(row.client_ms, calls), _mean(row.client_ms_before, before), calls=calls, calls_before=before
        ),
        error_score(row.errors, calls, row.errors_before, before),
        error_score(row.unanswered, calls, row.unanswered_before, before),
    )


def _edge(row: _Row, *, onset: _Onset) -> EdgeShift:
    matched, matched_before = row.matched, row.matched_before
    kinds = sorted(row.error_types.items(), key=lambda item: (-item[1], item[0]))
    return EdgeShift(
        caller=row.caller,
        callee=row.callee,
        callee_kind=_KINDS.get(row.kind, "service" if matched or matched_before else "external"),
        calls=row.calls,
        errors=row.errors,
        unanswered=row.unanswered,
        client_ms=_mean(row.client_ms, row.calls),
        client_p95_ms=round(row.client_p95_ms, 2) if row.calls else 0.0,
        server_ms=_mean(row.server_ms, matched) if matched else None,
        gap_ms=_mean(row.matched_client_ms - row.server_ms, matched) if matched else None,
        calls_before=row.calls_before,
        errors_before=row.errors_before,
        unanswered_before=row.unanswered_before,
        client_ms_before=_mean(row.client_ms_before, row.calls_before),
        client_p95_ms_before=round(row.client_p95_ms_before, 2) if row.calls_before else 0.0,
        server_ms_before=_mean(row.server_ms_before, matched_before) if matched_before else None,
        gap_ms_before=_mean(row.matched_client_ms_before - row.server_ms_before, matched_before)
        if matched_before
        else None,
        error_types=tuple(escape_line(kind, chars_max=80) for kind, _ in kinds[:_ERROR_TYPES_MAX]),
        since=onset.since,
        calls_since=onset.calls,
        failed_since=onset.failed,
    )


def _onset(row: _Row, *, stretch: Stretch) -> _Onset:
    """Find since when an edge is not as before: by its failures when they grew, else by its durations."""
    starts, calls, errors, lost, client = row.series
    weights = [float(n) for n in calls]
    for failed, total, before in (
        (errors, row.errors, row.errors_before),
        (lost, row.unanswered, row.unanswered_before),
    ):
        if not total:
            continue
        amounts = [float(n) for n in failed]
        since = find_onset(starts, amounts, weights, window_start=stretch.begin, step_s=stretch.step_s)
        taken, bad = sum_since(starts, calls, since), sum_since(starts, failed, since)
        late = late_error_score(bad, taken, before, row.calls_before)
        if late or error_score(total, row.calls, before, row.calls_before) > 0:
            return _Onset(since=since, calls=taken, failed=bad, score=late)
    since = find_onset(starts, client, weights, window_start=stretch.begin, step_s=stretch.step_s)
    return _Onset(since=since, calls=sum_since(starts, calls, since), failed=sum_since(starts, errors, since))
