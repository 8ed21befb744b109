"""What a metric's name and unit say about it: which moves are too small to matter, and which series is its capacity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quell.domain import seconds_of

_MIB = 1024.0 * 1024.0
_LIMIT_WORDS = frozenset({"limit", "max", "maximum", "size", "capacity", "quota"})
_USAGE_WORDS = frozenset(
    {"usage", "used", "use", "open", "count", "current", "active", "allocated", "spec", "working", "set"}
)
_WATERMARK_WORDS = frozenset({"usage", "used", "use", "current", "observed", "recorded"})
"""With `max` these name the most that was ever seen, which is no capacity."""
_TIME_WORDS = frozenset({"seconds", "milliseconds", "duration", "latency", "time"})
"""The longest of some durations is no capacity either."""
_ALL_FREE = frozenset({"idle", "free", "available", "unused"})
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric series of a service over time; counters are rates already."""

    service: str
    metric: str
    unit: str
    attributes: tuple[tuple[str, str], ...]
    times: tuple[float, ...]
    """Epoch seconds, growing."""
    values: tuple[float, ...]

    @property
    def order(self) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
        """Sort key that tells every two series apart."""
        return (self.service, self.metric, self.attributes, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """A move below both is nothing, however steady the series was."""

    absolute: float
    relative: float


_FLOORS: tuple[tuple[re.Pattern[str], Floor], ...] = tuple(
    (re.compile(pattern), Floor(absolute=absolute, relative=relative))
    for pattern, absolute, relative in (
        (r"clock.*(offset|skew|drift)", 0.5, 0.5),
        (r"cert.*(expir|not\.after)", 6 * 3600.0, 0.0),
        (r"cpu.*(utili[sz]ation|usage|time|seconds)", 0.15, 0.3),
        (r"utili[sz]ation|ratio|percent", 0.1, 0.2),
        (r"memory|heap|rss|resident", 16 * _MIB, 0.15),
        (r"filesystem|disk.*(usage|used|free|avail)", 32 * _MIB, 0.1),
        (r"file\.descriptor|fds", 10.0, 0.25),
        (r"(oldest|max)\.(.*\.)?age(\.|$)|age\.of\.oldest|age\.seconds", 5.0, 0.5),
        (r"(duration|latency|wait)(\.time)?$|response\.time", 0.01, 0.5),
        (r"pending|waiting|blocked|queue|backlog|lag|depth", 3.0, 0.5),
        (r"connection|backends|active|threads|goroutines", 2.0, 0.4),
    )
)
_BY_UNIT = {
    "s": Floor(absolute=0.01, relative=0.5),
    "ms": Floor(absolute=10.0, relative=0.5),
    "By": Floor(absolute=4 * _MIB, relative=0.3),
    "By/s": Floor(absolute=16 * 1024.0, relative=0.6),
}
_DEFAULT = Floor(absolute=0.5, relative=0.5)
_LIMIT_PART = 0.1
_CLOCKWORK = re.compile(
    r"uptime|start\.time|timestamp|last\..*(time|seconds)$|created$|build\.info|^up$|scrape\.|scripts\.info"
)


def is_clockwork(metric: str) -> bool:
    """Tell whether a series says when something began, not how it is doing."""
    return _CLOCKWORK.search(_dotted(metric)) is not None


def floor_of(series: Series, *, limit: float | None = None) -> Floor:
    """Choose the floors by name, then by unit; a tenth of a known capacity is a move, however small the resource is."""
    floor = _usual_floor(series)
    if limit is None or series.unit == "1":
        return floor
    return Floor(absolute=min(floor.absolute, _LIMIT_PART * limit), relative=floor.relative)


def _usual_floor(series: Series) -> Floor:
    name = _dotted(series.metric)
    for pattern, floor in _FLOORS:
        if pattern.search(name):
            # A duration in milliseconds is a thousand times the number that it is in seconds.
            return Floor(absolute=floor.absolute / seconds_of(series.unit), relative=floor.relative)
    return _BY_UNIT.get(series.unit, _DEFAULT)


@dataclass(slots=True)
class Limits:
    """Capacities, found by name: `memory.usage` and `memory.limit`, `open_fds` and `max_fds`, `count` and `max`."""

    _known: dict[tuple[str, frozenset[str]], list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, series: Sequence[Series]) -> Limits:
        """Collect every series that is a capacity, at its newest value."""
        limits = cls()
        for one in sorted(series, key=lambda known: known.order):
            words = _words(one.metric)
            if _is_capacity(words) and one.values and one.values[-1] > 0:
                stem = frozenset(words - _LIMIT_WORDS - _USAGE_WORDS)
                limits._known.setdefault((one.service, stem), []).append((dict(one.attributes), one.values[-1]))
        return limits

    def find(self, service: str, metric: str, attributes: Mapping[str, str], *, unit: str) -> float | None:
        """Return the capacity of the same resource: its labels must not contradict, the closest match wins."""
        words = _words(metric)
        if words & _LIMIT_WORDS or _ALL_FREE & set(attributes.values()):
            return None
        stem = frozenset(words - _USAGE_WORDS)
        fitting = [
            (-len(labels), value)
            for labels, value in self._known.get((service, stem), [])
            if all(attributes.get(key) == label for key, label in labels.items())
        ]
        if fitting:
            return min(fitting)[1]
        for key in ("limit", "max", "capacity"):
            if _is_number(attributes.get(key, "")):
                return float(attributes[key])
        return 1.0 if unit == "1" and re.search(r"utili[sz]ation", metric) else None


def _is_capacity(words: frozenset[str]) -> bool:
    told = words & _LIMIT_WORDS
    if told <= {"max", "maximum"} and words & (_WATERMARK_WORDS | _TIME_WORDS):
        return False
    return bool(told)


def _words(metric: str) -> frozenset[str]:
    return frozenset(_WORD.findall(metric.lower()))


def _dotted(metric: str) -> str:
    return metric.lower().replace("_", ".").replace(":", ".")


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
