"""new_patterns and changed_patterns: log templates that appeared, and those whose frequency moved."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from quell.domain import PatternShift, Question, QuestionKind
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_sources import Stretch, patterns_source, red_source, step_of, stretch_of
from quell.signals._reader_patterns import Template, merge_templates
from quell.signals._reader_text import escape_line
from quell.signals._survey_score import certainty

SeverityName = Literal["trace", "debug", "info", "warn", "error", "fatal"]
_SEVERITIES: dict[str, SeverityName] = {
    "trace": "trace",
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "error": "error",
    "fatal": "fatal",
}
_WEIGHT = {"fatal": 5, "error": 4, "warn": 3, "info": 2, "debug": 1, "trace": 0}
_TEMPLATES_MAX = 20_000
_NEW_COUNT_MIN = 2
_DOUBLINGS_MIN = 1.0
_NOISE_MIN = 3.0
_TEMPLATE_CHARS = 400
_EXAMPLE_CHARS = 200


class _Row(msgspec.Struct):
    service: str
    severity: str
    template_id: str
    template: str
    count: int
    count_between: int
    count_before: int
    first_seen: datetime
    last_seen: datetime
    example: str


class _Load(msgspec.Struct):
    service: str
    calls: int
    calls_before: int


async def pattern_shifts(asking: Asking, question: Question) -> Asked:
    """Compare how often each template was logged, per second and per incoming call of its service."""
    shape = asking.shape
    table, step_s = step_of(question, shape=shape, short="quell_patterns_5s", long="quell_patterns_1m", now=asking.now)
    stretch = stretch_of(question, step_s=step_s, now=asking.now, hidden=asking.hidden)
    between = f"b >= {stretch.before_until} AND b < {stretch.begin}"
    sql = f"""SELECT service, severity, template_id, text AS template, count, count_between, count_before,
    first_at AS first_seen, last_at AS last_seen, sample AS example
FROM (
    SELECT service, severity, lower(hex(template_id)) AS template_id, min(template) AS text,
        toUInt32(sumIf(n, {stretch.within})) AS count, toUInt32(sumIf(n, {between})) AS count_between,
        toUInt32(sumIf(n, {stretch.before})) AS count_before,
        if(count > 0, minIf(first_seen, {stretch.within}), min(first_seen)) AS first_at, max(last_seen) AS last_at, min(example) AS sample
    FROM ({patterns_source(shape, table=table, stretch=stretch)})
    GROUP BY service, severity, template_id
)
ORDER BY count + count_before DESC, service, severity, template_id
LIMIT {_TEMPLATES_MAX + 1}"""
    found = await asking.rows(sql, row=_Row)
    if not found:
        raise asking.empty("no logs from anybody that was asked about", sql)
    partial = f"only the {_TEMPLATES_MAX} most frequent templates were compared" if len(found) > _TEMPLATES_MAX else ""
    between_ids = {row.template_id for row in found if row.count_between and not row.count_before}
    merged = merge_templates([_template(row) for row in found[:_TEMPLATES_MAX]])
    if question.kind is QuestionKind.NEW_PATTERNS:
        rows = [_shift(one) for one in merged if _is_new(one, onset=between_ids)]
    else:
        loads = {load.service: load for load in await _loads(asking, question)}
        rows = [_shift(one) for one in merged if _is_changed(one, loads.get(one.service), stretch=stretch)]
    rows.sort(key=_order)
    return Asked(rows=tuple(rows), query=sql, partial=partial)


async def _loads(asking: Asking, question: Question) -> list[_Load]:
    """Count incoming calls, so that more traffic alone does not look like more of every template."""
    shape = asking.shape
    if not shape.has("otel_traces"):
        return []
    table, step_s = step_of(question, shape=shape, short="quell_red_5s", long="quell_red_1m", now=asking.now)
    stretch = stretch_of(question, step_s=step_s, now=asking.now, hidden=asking.hidden)
    return await asking.rows(
        f"""SELECT service, toUInt32(sumIf(c, {stretch.within})) AS calls, toUInt32(sumIf(c, {stretch.before})) AS calls_before
FROM ({red_source(shape, table=table, stretch=stretch)})
WHERE span_kind IN ('server', 'consumer') GROUP BY service ORDER BY service""",
        row=_Load,
    )


def _template(row: _Row) -> Template:
    return Template(
        service=row.service,
        severity=row.severity,
        template_id=row.template_id,
        template=escape_line(row.template, chars_max=_TEMPLATE_CHARS),
        count=row.count,
        count_before=row.count_before,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        example=escape_line(row.example, chars_max=_EXAMPLE_CHARS),
    )


def _is_new(one: Template, *, onset: set[str]) -> bool:
    if one.count == 0 or one.count_before > 0:
        return False
    return one.count >= _NEW_COUNT_MIN or one.severity in {"error", "fatal"} or one.template_id in onset


def _is_changed(one: Template, load: _Load | None, *, stretch: Stretch) -> bool:
    """Tell whether a template moved by a factor of two both per second and per call, beyond chance."""
    if one.count_before == 0:
        return False
    ratios = [stretch.seconds / stretch.seconds_before]
    if load is not None and load.calls_before > 0 and load.calls > 0:
        ratios.append(load.calls / load.calls_before)
    for ratio in ratios:
        expected = one.count_before * ratio
        factor = (one.count + 1) / (expected + 1)
        noise = abs(one.count - expected) / (one.count + expected * (1 + ratio) + 1) ** 0.5
        if (
            not (factor >= 2**_DOUBLINGS_MIN or factor <= 2**-_DOUBLINGS_MIN)
            or noise < _NOISE_MIN
            or certainty(noise) == 0
        ):
            return False
    ups = {one.count > one.count_before * ratio for ratio in ratios}
    return len(ups) == 1


def _shift(one: Template) -> PatternShift:
    return PatternShift(
        service=one.service,
        severity=_SEVERITIES.get(one.severity, "info"),
        template_id=one.template_id,
        template=one.template,
        count=one.count,
        count_before=one.count_before,
        first_seen=one.first_seen,
        last_seen=one.last_seen,
        example=one.example,
        is_new=one.count_before == 0,
    )


def _order(row: PatternShift) -> tuple[int, int, str, str, str]:
    return (-_WEIGHT[row.severity], -abs(row.count - row.count_before), row.service, row.template, row.template_id)
