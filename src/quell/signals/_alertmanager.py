"""Alertmanager's webhook (version 4) as alerts of ours: strict about shape, helpful about mistakes, careful with text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from quell.domain import Alert, Severity, Symptom, UsageError, fingerprint_of, new_id
from quell.signals._reader_text import escape_line

Entropy = Callable[[int], bytes]

_VERSION = "4"
_ALERTS_MAX = 1000
_LABELS_MAX = 64
_KEY_CHARS = 100
_VALUE_CHARS = 200
_SUMMARY_CHARS = 300
_PROBLEMS_SHOWN = 20
_ENTROPY_BYTES = 10
_ZERO_YEAR = 1
_SERVICE_LABELS = (
    "service",
    "service_name",
    "service.name",
    "app",
    "app_kubernetes_io_name",
    "application",
    "deployment",
    "statefulset",
    "daemonset",
    "container",
    "job",
)
_SUMMARY_KEYS = ("summary", "description", "message")
_SYMPTOMS: tuple[tuple[Symptom, re.Pattern[str]], ...] = tuple(
    (symptom, re.compile(pattern))
    for symptom, pattern in (
        (Symptom.SILENCE, r"\b(down|absent|missing|unreachable|dead|silen|heartbeat|deadman|not ?ready|crash)"),
        (Symptom.NEW_ERRORS, r"\bnew (error|exception)"),
        (Symptom.ERRORS, r"\b(error|fail|5xx|4xx|exception|availability|success rate|budget)"),
        (Symptom.LATENCY, r"\b(latency|slow|duration|response time|p9\d|apdex|lag time)"),
        (
            Symptom.SATURATION,
            r"\b(saturat|full|memory|cpu|disk|oom|pool|queue|backlog|descriptor|fds|capacity|exhaust|throttl|lag|connections|limit)",
        ),
        (Symptom.TRAFFIC, r"\b(traffic|requests? rate|rps|qps|spike|drop)"),
    )
)
_SEVERITIES = {
    "critical": Severity.CRITICAL,
    "page": Severity.CRITICAL,
    "emergency": Severity.CRITICAL,
    "error": Severity.CRITICAL,
    "major": Severity.CRITICAL,
    "high": Severity.CRITICAL,
    "info": Severity.INFO,
    "informational": Severity.INFO,
    "none": Severity.INFO,
    "low": Severity.INFO,
}


@dataclass(slots=True)
class _Problems:
    """Every mistake of a body, with its path."""

    lines: list[str] = field(default_factory=list)

    def add(self, path: str, what: str) -> None:
        self.lines.append(f"{path}: {what}")

    def text(self, value: object, path: str) -> str:
        """Return a text, or note that it is none."""
        if isinstance(value, str):
            return value
        self.add(path, f"expected text, found {_kind(value)}")
        return ""

    def table(self, value: object, path: str) -> dict[str, str]:
        """Return texts by name, or note what is wrong with them."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.add(path, f"expected an object of texts, found {_kind(value)}")
            return {}
        if len(value) > _LABELS_MAX:
            self.add(path, f"more than {_LABELS_MAX} entries")
        return {str(key): self.text(one, f"{path}.{escape_line(str(key), chars_max=40)}") for key, one in value.items()}

    def moment(self, value: object, path: str) -> datetime | None:
        """Return a time; None for the zero time that stands for none."""
        text = self.text(value, path)
        try:
            moment = msgspec.convert(text, datetime) if text else None
        except msgspec.ValidationError:
            self.add(path, f"not an RFC 3339 time: {escape_line(text, chars_max=40)}")
            return None
        if moment is None or moment.year <= _ZERO_YEAR:
            return None
        if moment.tzinfo is None:
            self.add(path, f"no time zone: {escape_line(text, chars_max=40)}")
            return None
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            self.add(path, f"no time of this calendar: {escape_line(text, chars_max=40)}")
            return None


def parse_alertmanager(body: bytes, *, received_at: datetime, entropy: Entropy) -> list[Alert]:
    """Read a webhook body; the newest word on each condition counts, oldest condition first.

    Raises UsageError that lists every problem of the body.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}", hint="send what Alertmanager's webhook_config sends") from error
    problems = _Problems()
    alerts = _alerts(raw, problems=problems, received_at=received_at, entropy=entropy)
    if problems.lines:
        more = len(problems.lines) - _PROBLEMS_SHOWN
        shown = problems.lines[:_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise UsageError(
            f"not an Alertmanager webhook of version {_VERSION}:\n" + "\n".join(f"  {line}" for line in shown),
            hint="see https://prometheus.io/docs/alerting/latest/configuration/#webhook_config",
        )
    return alerts


def _alerts(raw: object, *, problems: _Problems, received_at: datetime, entropy: Entropy) -> list[Alert]:
    if not isinstance(raw, dict):
        problems.add("body", f"expected an object, found {_kind(raw)}")
        return []
    if raw.get("version") != _VERSION:
        problems.add("version", f"expected {_VERSION!r}, found {escape_line(repr(raw.get('version')), chars_max=40)}")
    common = problems.table(raw.get("commonLabels"), "commonLabels")
    annotations = problems.table(raw.get("commonAnnotations"), "commonAnnotations")
    members = raw.get("alerts")
    if not isinstance(members, list):
        problems.add("alerts", f"expected a list, found {_kind(members)}")
        return []
    if len(members) > _ALERTS_MAX:
        problems.add("alerts", f"more than {_ALERTS_MAX} alerts in one body")
    newest: dict[str, Alert] = {}
    for place, member in enumerate(members[:_ALERTS_MAX]):
        alert = _alert(
            member, f"alerts[{place}]", common, annotations, problems=problems, received_at=received_at, entropy=entropy
        )
        if alert is not None:
            known = newest.get(alert.fingerprint)
            if known is None or _age(known) <= _age(alert):
                newest[alert.fingerprint] = alert
    return sorted(newest.values(), key=lambda alert: (alert.starts_at, alert.fingerprint))


def _age(alert: Alert) -> tuple[datetime, bool]:
    """Order two words on one condition: a later start is a later episode, and resolved comes after firing."""
    return (alert.starts_at, alert.status == "resolved")


def _alert(
    raw: object,
    path: str,
    common: Mapping[str, str],
    common_annotations: Mapping[str, str],
    *,
    problems: _Problems,
    received_at: datetime,
    entropy: Entropy,
) -> Alert | None:
    if not isinstance(raw, dict):
        problems.add(path, f"expected an object, found {_kind(raw)}")
        return None
    status = raw.get("status")
    if status not in ("firing", "resolved"):
        problems.add(f"{path}.status", f"expected firing or resolved, found {escape_line(repr(status), chars_max=40)}")
        return None
    labels = {**common, **problems.table(raw.get("labels"), f"{path}.labels")}
    annotations = {**common_annotations, **problems.table(raw.get("annotations"), f"{path}.annotations")}
    if not labels.get("alertname"):
        problems.add(f"{path}.labels.alertname", "missing")
    starts_at = problems.moment(raw.get("startsAt", ""), f"{path}.startsAt") or received_at
    ends_at = problems.moment(raw.get("endsAt", ""), f"{path}.endsAt")
    name = escape_line(labels.get("alertname", ""), chars_max=_VALUE_CHARS)
    service, symptom = _service(labels), _symptom(labels, annotations)
    told = next((annotations[key] for key in _SUMMARY_KEYS if annotations.get(key)), name)
    return Alert(
        id=new_id("alr", at=received_at, entropy=entropy(_ENTROPY_BYTES)),
        fingerprint=fingerprint_of(source="alertmanager", service=service, symptom=symptom.value, labels=labels),
        source="alertmanager",
        name=name,
        service=service,
        symptom=symptom,
        severity=_SEVERITIES.get(labels.get("severity", "").lower(), Severity.WARNING),
        status="firing" if status == "firing" else "resolved",
        summary=escape_line(told, chars_max=_SUMMARY_CHARS),
        starts_at=starts_at,
        ends_at=_end(status, starts_at, ends_at, received_at),
        received_at=received_at,
        labels=tuple(
            sorted(
                (escape_line(key, chars_max=_KEY_CHARS), escape_line(value, chars_max=_VALUE_CHARS))
                for key, value in labels.items()
            )
        ),
    )


def _end(status: str, starts_at: datetime, ends_at: datetime | None, received_at: datetime) -> datetime | None:
    """Choose when it ended: a firing alert's end is only a guess of the sender, and no end comes before its start."""
    if status == "firing":
        return None
    return max(starts_at, ends_at or received_at)


def _service(labels: Mapping[str, str]) -> str:
    for key in _SERVICE_LABELS:
        value = labels.get(key, "").strip()
        if value:
            return escape_line(value, chars_max=_VALUE_CHARS)
    return ""


def _symptom(labels: Mapping[str, str], annotations: Mapping[str, str]) -> Symptom:
    """Read the symptom from words: the alert's own label first, then its name, then what it says."""
    told = labels.get("symptom", "").lower()
    if told in {symptom.value for symptom in Symptom}:
        return Symptom(told)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-.]+", " ", labels.get("alertname", "")).lower()
    for text in (name, " ".join(annotations.get(key, "") for key in _SUMMARY_KEYS).lower()[:_SUMMARY_CHARS]):
        for symptom, pattern in _SYMPTOMS:
            if pattern.search(text):
                return symptom
    return Symptom.OTHER


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
