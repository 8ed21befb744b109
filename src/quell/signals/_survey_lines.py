"""One line for people per kind of row: units, before and after, times as offsets; strangers' text only as quoted data."""

from __future__ import annotations

from datetime import datetime

from quell.domain import (
    AttributeDiff,
    EdgeShift,
    Exemplar,
    FlowBreak,
    MetricShift,
    Observation,
    ObservedChange,
    OperationShift,
    PatternShift,
)
from quell.signals._reader_text import escape_line, quote

_NAME_CHARS = 60
_TEMPLATE_CHARS = 120
_VALUE_CHARS = 40


def service_of(row: Observation) -> str:
    """Name the service that a row is told under: of an edge, the caller."""
    return row.caller if isinstance(row, EdgeShift) else row.service


def offset(at: datetime, *, anchor: datetime) -> str:
    """Write a time as the distance from the anchor, such as `-3m10s`."""
    seconds = round((at - anchor).total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("+", seconds)
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{sign}{hours}h{minutes:02d}m"
    return f"{sign}{minutes}m{left:02d}s" if minutes else f"{sign}{left}s"


def line_of(row: Observation, *, anchor: datetime) -> str:
    """Write a row as one line, without its service."""
    if isinstance(row, OperationShift):
        return _operation(row, anchor=anchor)
    if isinstance(row, EdgeShift):
        return _edge(row, anchor=anchor)
    if isinstance(row, PatternShift):
        return _pattern(row, anchor=anchor)
    if isinstance(row, MetricShift):
        return _metric(row, anchor=anchor)
    if isinstance(row, ObservedChange):
        return _change(row, anchor=anchor)
    return _rest(row, anchor=anchor)


def _rest(row: AttributeDiff | FlowBreak | Exemplar, *, anchor: datetime) -> str:
    if isinstance(row, AttributeDiff):
        bad, good = _percent(row.bad, row.bad_total), _percent(row.good, row.good_total)
        return (
            f"{_name(row.key)}={quote(row.value, chars_max=_VALUE_CHARS)} on {bad} of {row.bad_total} failed, "
            f"{good} of {row.good_total} good, {row.bad_share_before * 100:.3g}% of failed before"
        )
    if isinstance(row, FlowBreak):
        return (
            f"after {quote(row.before, chars_max=80)} comes {quote(row.after, chars_max=80)} in "
            f"{row.share * 100:.3g}% of {row.support}, was {row.share_before * 100:.3g}%"
        )
    return f"{row.severity} at {offset(row.at, anchor=anchor)}: {quote(row.text, chars_max=_TEMPLATE_CHARS)}"


def _operation(row: OperationShift, *, anchor: datetime) -> str:
    text = f"{row.span_kind} {_name(row.operation)}"
    text += f" errors {_percent(row.errors, row.calls)} of {row.calls} calls, was {_percent(row.errors_before, row.calls_before)}"
    text += f" of {row.calls_before}; p95 {_number(row.p95_ms)} ms, was {_number(row.p95_ms_before)}"
    return text + _since(row.since, anchor=anchor) + _counted(row.errors_since, row.calls_since, of=row.calls)


def _edge(row: EdgeShift, *, anchor: datetime) -> str:
    text = (
        f"calls {row.callee_kind} {_name(row.callee)}: {_number(row.client_ms)} ms, was {_number(row.client_ms_before)}"
    )
    if row.server_ms is not None and row.gap_ms is not None:
        text += f"; callee took {_number(row.server_ms)} ms, was {_maybe(row.server_ms_before)}"
        text += f"; gap {_number(row.gap_ms)} ms, was {_maybe(row.gap_ms_before)}"
    text += f"; errors {_percent(row.errors, row.calls)} of {row.calls}, was {_percent(row.errors_before, row.calls_before)}"
    if row.unanswered:
        text += f"; unanswered {_percent(row.unanswered, row.calls)}, was {_percent(row.unanswered_before, row.calls_before)}"
    if row.error_types:
        text += f" ({', '.join(escape_line(kind, chars_max=_VALUE_CHARS) for kind in row.error_types[:3])})"
    return text + _since(row.since, anchor=anchor) + _counted(row.failed_since, row.calls_since, of=row.calls)


def _pattern(row: PatternShift, *, anchor: datetime) -> str:
    text = f"new {row.severity} log" if row.is_new else f"{row.severity} log"
    text += f" x{row.count}" if row.is_new else f" x{row.count}, was x{row.count_before}"
    first = f" first {offset(row.first_seen, anchor=anchor)}" if row.is_new else ""
    return f"{text}{first}: {quote(row.template, chars_max=_TEMPLATE_CHARS)}"


def _metric(row: MetricShift, *, anchor: datetime) -> str:
    text = f"metric {_name(row.metric)}"
    if row.attributes:
        text += (
            "{"
            + ",".join(
                f"{_name(key)}={escape_line(value, chars_max=_VALUE_CHARS)}" for key, value in row.attributes[:3]
            )
            + "}"
        )
    text += f" {row.shape}: {amount(row.before, unit=row.unit)} -> {amount(row.after, unit=row.unit)}"
    if abs(row.peak - row.after) > 0.2 * abs(row.after):
        text += f", peak {amount(row.peak, unit=row.unit)}"
    if row.limit is not None:
        text += f", limit {amount(row.limit, unit=row.unit)}"
    return text + _since(row.since, anchor=anchor)


def _change(row: ObservedChange, *, anchor: datetime) -> str:
    subject = "" if row.subject in {row.service, row.after} else f" {_name(row.subject)}"
    before, after = (escape_line(value, chars_max=_VALUE_CHARS) for value in (row.before, row.after))
    values = f" {before} -> {after or 'none'}" if before else f" {after}" if after else ""
    text = f"{row.change.value}{subject}{values}"
    text += f" at {offset(row.at, anchor=anchor)}"
    return text + (f": {quote(row.detail, chars_max=80)}" if row.detail else "")


def _counted(failed: int | None, calls: int | None, *, of: int) -> str:
    """Say how many failed since the onset, where that tells more than the whole window."""
    return f" ({failed} of {calls} failed)" if failed and calls and calls < of else ""


def _since(since: datetime | None, *, anchor: datetime) -> str:
    return f", since {offset(since, anchor=anchor)}" if since else ""


def _name(text: str) -> str:
    return escape_line(text, chars_max=_NAME_CHARS)


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return "0%" if share == 0 else f"{share:.2g}%" if share < 99.5 else "100%" if part >= whole else "99%"


def _maybe(value: float | None) -> str:
    return "unknown" if value is None else _number(value)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return digits if "e" not in digits else f"{value:.1e}"


def amount(value: float, *, unit: str) -> str:
    """Write a metric value with its UCUM unit, three digits at most."""
    if unit == "By" or unit.startswith("By/"):
        step = 0
        while abs(value) >= 1024 and step < 4:
            value, step = value / 1024, step + 1
        return f"{_number(value)} {('', 'Ki', 'Mi', 'Gi', 'Ti')[step]}B{unit[2:]}"
    if unit in {"", "1"} or unit.startswith("{"):
        return _number(value)
    return f"{_number(value)} {escape_line(unit, chars_max=12)}"
