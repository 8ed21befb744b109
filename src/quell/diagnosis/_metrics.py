"""What a metric measures, told from its name as conventions spell it, and how near it is to its limit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from quell.diagnosis._weights import THRESHOLDS
from quell.domain import MetricShift, seconds_of

Resource: TypeAlias = Literal[
    "clock",
    "certificate",
    "queue_depth",
    "queue_age",
    "locks",
    "scan",
    "query_time",
    "backends",
    "pool_waiting",
    "pool",
    "descriptors",
    "disk",
    "memory",
    "cpu",
    "active",
]

_NAMES: Final[Mapping[Resource, re.Pattern[str]]] = MappingProxyType(
    {
        "clock": re.compile(r"clock.*(?:offset|skew|drift)|ntp.*offset|timex.*offset|time.*offset"),
        "certificate": re.compile(r"(?:cert|tls|ssl|x509).*(?:expir|not.?after|valid|left)"),
        "queue_age": re.compile(
            r"(?:queue|messag|broker|consumer|topic).*(?:(?<![a-z])age(?![a-z])|oldest)|consumer.*lag.*(?:sec|time)"
        ),
        "queue_depth": re.compile(
            r"(?:queue|messag|broker|topic).*(?:depth|length|size|ready|backlog|unacked|pending|messages$)|consumer.?(?:group.)?lag"
        ),
        "locks": re.compile(
            r"(?<![bc])lock.*(?:wait|count|blocked|total)|(?:wait|blocked).*(?<![bc])lock|(?<![bc])locks$|deadlocks?$"
        ),
        "scan": re.compile(
            r"rows?.?(?:scanned|read|examined|fetched|returned)|seq.?(?:scan|tup)|tup.?(?:returned|fetched)|full.?scan"
        ),
        "query_time": re.compile(
            r"(?:query|statement|transaction).*(?:duration|time|latency)|longest.*(?:query|transaction)"
        ),
        "backends": re.compile(
            r"(?:postgresql|mysql|pg_stat|pg|mongodb|redis).*(?:backends|numbackends|connections|clients|threads.connected)"
        ),
        "pool_waiting": re.compile(
            r"(?:connection|pool).*(?:pending|wait|queue|timeouts?|checkout.*time|acquire)|(?:pending|waiting).*connection"
        ),
        "pool": re.compile(
            r"(?:client.connections?|(?<!memory\.)(?<!heap\.)(?<!buffer\.)pool|hikari|connections?.(?:used|active|in.?use|checked)).*|connection.?count"
        ),
        "descriptors": re.compile(r"(?:file.?descriptor|open.?f(?:d|ile)s?|fds?\b|filefd).*"),
        "disk": re.compile(r"(?:filesystem|disk|volume|inode).*(?:us(?:age|ed)|util|free|avail|space|inodes)|pvc.*us"),
        "memory": re.compile(r"(?:memory|\brss\b|heap|working.?set|resident).*"),
        "cpu": re.compile(r"\bcpu\b.*|.*_cpu(?:_|$).*|.*\.cpu\..*|cpu.*(?:util|usage|time|seconds|percent|load)"),
        "active": re.compile(r"active.?requests|in.?flight|concurren|inprogress"),
    }
)
"""First match wins, so narrow names stand before wide ones."""

_CAPACITY: Final = re.compile(r"(?:[._](?:limit|max|size|capacity|quota|total_?bytes))$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFact:
    """One moved series, with what it measures."""

    id: str
    row: MetricShift
    resource: Resource | None

    @property
    def service(self) -> str:
        """The service that the series belongs to."""
        return self.row.service

    @property
    def rises(self) -> bool:
        """Whether the level went up."""
        return self.row.after > self.row.before

    @property
    def level(self) -> float:
        """The level reached: the peak when it rises, the median of the shifted part otherwise."""
        return max(self.row.after, self.row.peak) if self.rises else self.row.after

    @property
    def since(self) -> datetime | None:
        """First moment of the shift."""
        return self.row.since

    def in_seconds(self, value: float) -> float:
        """Return a time of this series in seconds; a number without a unit counts seconds."""
        return value * seconds_of(self.row.unit)

    def attribute(self, suffix: str) -> str:
        """Return the value of the attribute whose key ends so, or nothing."""
        return next((v for k, v in sorted(self.row.attributes) if k.endswith(suffix)), "")


def resource_of(metric: str) -> Resource | None:
    """Name what a metric measures; None when no convention tells, or when it is a capacity rather than a use."""
    name = metric.casefold()
    if _CAPACITY.search(name) and not name.endswith(("queue.size", "queue_size")):
        return None
    spelled = re.sub(r"[_.\-/ ]+", ".", name)
    return next((resource for resource, words in _NAMES.items() if words.search(spelled)), None)


def fullness(fact: MetricFact) -> float:
    """Return how much of the limit is used, 0 when no limit is known and none follows from the unit."""
    row = fact.row
    if row.limit is not None and row.limit > 0 and not (fact.resource == "cpu" and row.limit == 1):
        return fact.level / row.limit
    if fact.resource == "cpu" and _is_ratio(row):
        return fact.level / THRESHOLDS.cpu_full * THRESHOLDS.full_share
    if fact.resource == "cpu" and _is_percent(row):
        return fact.level / 100 / THRESHOLDS.cpu_full * THRESHOLDS.full_share
    if fact.resource in {"memory", "disk"} and _is_ratio(row) and "util" in row.metric:
        return fact.level
    return 0.0


def is_rise(fact: MetricFact) -> bool:
    """Tell whether the use of a resource grew enough to matter."""
    row = fact.row
    if not fact.rises or row.shape == "gone":
        return False
    if row.shape == "appeared":
        # A process that is new did not rise from nothing.
        return fullness(fact) >= THRESHOLDS.near_share
    if fact.resource == "cpu" and _is_ratio(row):
        return fact.level - row.before >= THRESHOLDS.cpu_rise
    return fact.level >= row.before * THRESHOLDS.metric_rise_ratio or fullness(fact) >= THRESHOLDS.near_share


def _is_ratio(row: MetricShift) -> bool:
    return row.unit in {"1", "ratio", ""} and 0 <= row.before <= 1.5 and row.peak <= 64


def _is_percent(row: MetricShift) -> bool:
    return row.unit in {"%", "percent"} or "percent" in row.metric
