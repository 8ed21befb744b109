"""Read a person's question, or a file of alerts: words in, typed request out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec

from quell.domain import Alert, Symptom, UsageError
from quell.incidents._model import Reading, Request
from quell.signals import parse_alertmanager

Entropy = Callable[[int], bytes]

_UNIT_S: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_WORDS: Mapping[str, float] = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "sixty": 60, "ninety": 90,
    "half": 0.5, "half a": 0.5, "half an": 0.5, "a few": 3, "few": 3, "a couple of": 2, "couple of": 2,
}  # fmt: skip
_UNIT = r"(seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|[smhd])(?![^\W\d_])"
_AMOUNT = rf"(\d+(?:[.,]\d+)?|(?:{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})\b)"
_SPAN = re.compile(rf"(?<![\w.,])(?:{_AMOUNT}\s*)?{_UNIT}", re.IGNORECASE)
_SPAN_MORE = re.compile(rf"\s*(?:and\s+)?{_AMOUNT}\s*{_UNIT}", re.IGNORECASE)
_SPAN_CUE = re.compile(r"\b(since|last|past|for|within|ago)\b", re.IGNORECASE)
_SYMPTOM_WORDS: tuple[tuple[Symptom, frozenset[str]], ...] = (
    (Symptom.SILENCE, frozenset({"down", "dead", "silent", "gone", "unreachable", "offline", "missing"})),
    (Symptom.ERRORS, frozenset({"error", "errors", "failing", "fails", "fail", "failed", "broken", "500", "502", "503", "5xx", "crash", "crashing", "crashes", "exception", "exceptions"})),
    (Symptom.LATENCY, frozenset({"slow", "slower", "latency", "lag", "lagging", "timeout", "timeouts", "hanging", "hangs", "stuck", "delayed", "delay"})),
    (Symptom.SATURATION, frozenset({"cpu", "memory", "disk", "full", "saturated", "overloaded", "exhausted", "oom"})),
    (Symptom.TRAFFIC, frozenset({"traffic", "spike", "load", "busy", "requests"})),
)  # fmt: skip
_WORD = re.compile(r"[^\W_]+")
_NOT_A_NAME = frozenset(
    _WORD.findall(
        "why what is are was the a an and or of in on to for with from since last past minutes minute hours hour days "
        "day ago our my it its there so very too all everything service services system users customers please check "
        "look at happening get post put delete patch head happened wrong problem problems issue issues how when who does do did has have been being"
    )
)
_SUFFIXES = frozenset({"service", "svc", "server", "api", "app"})
_CLOSE_ENOUGH = 0.84
_FUZZY_LETTERS_MIN = 5
_SINCE_MAX_S = 7 * 86400.0
_YEAR_FIRST, _YEAR_LAST = 1970, 9998


def read_question(text: str, *, services: Iterable[str], operations: Mapping[str, str]) -> Reading:
    """Understand a question, given the names that telemetry knows.

    Args:
        text: The question as typed.
        services: Every known service name.
        operations: Operation name -> the service that serves it.
    """
    known = sorted(set(services))
    words = _WORD.findall(text.lower())
    found = _named(words, known)
    notes: list[str] = []
    if not found:
        found, notes = _guessed(words, known, operations)
    if not found and known:
        notes.append(f"The question names no service that telemetry knows; all {len(known)} were looked at.")
    elif not found:
        notes.append("Telemetry knows no service yet, so the question could not be narrowed to one.")
    symptom = next((symptom for symptom, cues in _SYMPTOM_WORDS if cues & set(words)), Symptom.OTHER)
    return Reading(services=tuple(found), symptom=symptom, since_s=_span_s(text), notes=tuple(notes))


def _named(words: list[str], known: Iterable[str]) -> list[str]:
    """Return the services whose name stands in the words, whole; longer names first, overlaps dropped."""
    spans: list[tuple[int, int, str]] = []
    for name in known:
        parts = _WORD.findall(name.lower())
        bare = [part for part in parts if part not in _SUFFIXES] or parts
        for wanted in (parts, bare):
            starts = [i for i in range(len(words) - len(wanted) + 1) if wanted and words[i : i + len(wanted)] == wanted]
            if starts:
                spans.append((starts[0], starts[0] + len(wanted), name))
                break
    spans.sort(key=lambda s: (-(s[1] - s[0]), s))
    kept: list[tuple[int, int, str]] = []
    for span in spans:
        inside = any(k[0] <= span[0] and span[1] <= k[1] and (k[1] - k[0]) > (span[1] - span[0]) for k in kept)
        if not inside:
            kept.append(span)
    return sorted(name for _, _, name in kept)


def _guessed(words: list[str], known: list[str], operations: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Try the words as parts of operation names, then as misspelt service names; say what was assumed."""
    content = [word for word in words if word not in _NOT_A_NAME and len(word) > 2]
    by_word: dict[str, dict[str, str]] = {}
    for operation in sorted(operations):
        for word in set(content) & set(_WORD.findall(operation.lower())):
            by_word.setdefault(word, {}).setdefault(operations[operation], operation)
    if by_word:
        telling = min(by_word.values(), key=lambda served: (len(served), sorted(served)))
        notes = [f"Took {service} to be meant, because it serves {telling[service]!r}." for service in sorted(telling)]
        return sorted(telling), notes
    bare = {"".join(p for p in _WORD.findall(name.lower()) if p not in _SUFFIXES): name for name in known}
    for word in content:
        close = difflib.get_close_matches(word, list(bare), n=1, cutoff=_CLOSE_ENOUGH)
        if len(word) >= _FUZZY_LETTERS_MIN and close:
            return [bare[close[0]]], [f"Took {word!r} to mean the service {bare[close[0]]}."]
    return [], []


def _span_s(text: str) -> float | None:
    """Read a length of time such as `since 30m`, `last hour`, `for 1h30m`, `two hours ago`."""
    for match in _SPAN.finditer(text):
        amount, unit = match[1], match[2].lower()
        cue = _SPAN_CUE.search(text[max(0, match.start() - 12) : match.end() + 4])
        if cue is None or (amount is None and (len(unit) == 1 or unit.endswith("s"))):
            continue  # the last hour is one; the last hours are nobody knows how many
        seconds, end = _length_s(amount or "a", unit), match.end()
        while more := _SPAN_MORE.match(text, end):
            seconds, end = seconds + _length_s(more[1], more[2].lower()), more.end()
        if 0 < seconds <= _SINCE_MAX_S:
            return seconds
    return None


def _length_s(amount: str, unit: str) -> float:
    known = _NUMBER_WORDS.get(" ".join(amount.lower().split()))
    return (float(amount.replace(",", ".")) if known is None else known) * _UNIT_S[unit[0]]


def request_of_alerts(body: bytes, *, received_at: datetime, entropy: Entropy) -> Request:
    """Read a file of alerts: what Alertmanager sends, or one or many Alerts as Quell prints them.

    Raises UsageError with every problem that was found.
    """
    ours = _our_alerts(body)
    found = ours if ours is not None else parse_alertmanager(body, received_at=received_at, entropy=entropy)
    if not found:
        raise UsageError(
            "the file holds no alert", hint="give what Alertmanager's webhook sends, or `quell incident show --json`"
        )
    return Request(alerts=tuple(found), text=found[0].summary or found[0].name)


def _our_alerts(body: bytes) -> list[Alert] | None:
    """Return alerts in our own form, None when the file is of another form."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the file is not JSON: {error}", hint="give a JSON file of alerts") from error
    found = raw.get("alerts") if isinstance(raw, dict) else raw
    many = found if isinstance(found, list) else [raw]
    if not all(isinstance(each, dict) and "starts_at" in each and "fingerprint" in each for each in many):
        return None
    try:
        alerts = msgspec.convert(many, type=list[Alert], strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"an alert of the file is incomplete: {error}", hint="see docs/reference/http.md for its fields"
        ) from error
    for alert in alerts:
        for at in (alert.starts_at, alert.ends_at or alert.starts_at, alert.received_at):
            if at.tzinfo is None or not _YEAR_FIRST <= at.year <= _YEAR_LAST:
                raise UsageError(
                    f"alert {alert.id!r} of the file has the time {at.isoformat()}",
                    hint="write RFC 3339 times of this age with their zone, such as 2026-11-20T12:00:00Z",
                )
    return alerts
