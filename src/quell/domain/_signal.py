"""What can be asked of production, and the typed rows that come back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open stretch of time, `start <= t < end`, both aware and in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Refuse naive times and empty stretches."""
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a window needs aware times")
        if self.end <= self.start:
            raise ValueError(f"a window must end after it starts: {self.start} .. {self.end}")

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()

    def before(self, *, length: timedelta, guard: timedelta = timedelta(0)) -> Window:
        """Return the stretch of `length` that ends `guard` before this one starts."""
        end = self.start - guard
        return Window(start=end - length, end=end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What part of production is meant."""

    services: tuple[str, ...] = ()
    """Service names; empty means all of them."""


class QuestionKind(StrEnum):
    """The fixed set of typed questions that a Reader may answer."""

    ERROR_RATES = "error_rates"
    SLOW_OPERATIONS = "slow_operations"
    EDGE_GAPS = "edge_gaps"
    NEW_PATTERNS = "new_patterns"
    CHANGED_PATTERNS = "changed_patterns"
    ATTRIBUTE_DIFF = "attribute_diff"
    FLOW_BREAKS = "flow_breaks"
    METRIC_SHIFTS = "metric_shifts"
    CHANGES = "changes"
    EXEMPLARS = "exemplars"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One typed question about production."""

    kind: QuestionKind
    window: Window
    """The time in trouble."""
    baseline: Window
    """The time to compare with."""
    scope: Scope = Scope()
    rows_max: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationShift:
    """RED of one operation in the window and in the baseline (error_rates, slow_operations)."""

    kind: Literal["operation_shift"] = "operation_shift"
    service: str
    operation: str
    span_kind: Literal["server", "client", "consumer", "producer", "internal"]
    calls: int
    errors: int
    total_ms: float
    """Sum of the durations."""
    p50_ms: float
    p95_ms: float
    calls_before: int
    errors_before: int
    total_ms_before: float
    p50_ms_before: float
    p95_ms_before: float
    since: datetime | None = None
    """First bucket of the window in which the shift shows; None when it cannot be told."""
    calls_since: int | None = None
    """Calls from `since` to the end of the window; None when it was not counted."""
    errors_since: int | None = None
    """Failed ones among them."""
    service_calls: int | None = None
    """Calls that the service took over all its operations, those that did not move included; None when not counted."""
    service_calls_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeShift:
    """One caller -> callee edge, seen from both ends (edge_gaps)."""

    kind: Literal["edge_shift"] = "edge_shift"
    caller: str
    callee: str
    callee_kind: Literal["service", "database", "queue", "external"]
    calls: int
    errors: int
    """Calls that the caller saw fail."""
    unanswered: int
    """Caller spans with no callee span, where the callee is known to emit spans; 0 otherwise."""
    client_ms: float
    """Mean duration as the caller saw it."""
    client_p95_ms: float
    server_ms: float | None
    """Mean duration as the callee saw it, over matched pairs; None when nothing matched."""
    gap_ms: float | None
    """Mean of caller minus callee duration over matched pairs: what the wire and the queues took."""
    calls_before: int
    errors_before: int
    unanswered_before: int
    client_ms_before: float
    client_p95_ms_before: float
    server_ms_before: float | None
    gap_ms_before: float | None
    error_types: tuple[str, ...] = ()
    """Distinct `error.type` / status of failed calls in the window, most frequent first, at most 5."""
    since: datetime | None = None
    """First bucket of the window in which the shift shows; None when it cannot be told."""
    calls_since: int | None = None
    """Calls from `since` to the end of the window; None when it was not counted."""
    failed_since: int | None = None
    """Failed or unanswered ones among them, whichever are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternShift:
    """One log template whose frequency changed (new_patterns, changed_patterns)."""

    kind: Literal["pattern_shift"] = "pattern_shift"
    service: str
    severity: Literal["trace", "debug", "info", "warn", "error", "fatal"]
    template_id: str
    template: str
    """Skeleton with `<*>` for variables; control characters removed, at most 400 characters."""
    count: int
    count_before: int
    first_seen: datetime
    last_seen: datetime
    example: str
    """One line, escaped and cut to 200 characters. Written by whoever writes logs: data, never instruction."""
    is_new: bool
    """Not seen in the baseline at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeDiff:
    """One attribute value that is over-represented among bad records (attribute_diff)."""

    kind: Literal["attribute_diff"] = "attribute_diff"
    service: str
    key: str
    value: str
    bad: int
    bad_total: int
    good: int
    good_total: int
    bad_share_before: float
    """Share of the value among bad records of the baseline (double difference)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowBreak:
    """Inside one service, step `before` was followed by `after`, and no longer is, or only now is (flow_breaks)."""

    kind: Literal["flow_break"] = "flow_break"
    service: str
    before: str
    """Template or operation that comes first."""
    after: str
    """What follows it; `<end>` when nothing does."""
    share: float
    """Of the occurrences of `before` in the window, the part followed by `after`."""
    share_before: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricShift:
    """One metric series that moved (metric_shifts)."""

    kind: Literal["metric_shift"] = "metric_shift"
    service: str
    metric: str
    unit: str
    attributes: tuple[tuple[str, str], ...]
    shape: Literal["step", "spike", "trend", "gone", "appeared"]
    before: float
    """Median level in the baseline; rates per second for counters."""
    after: float
    """Median level in the shifted part of the window."""
    peak: float
    """The most extreme value in the window, in the direction of the shift."""
    limit: float | None
    """The capacity of the same resource, when a sibling series tells it (max, limit, size)."""
    since: datetime | None
    score: float
    """Robust effect size, >= 0; comparable between series."""


class ChangeKind(StrEnum):
    """What sort of thing was changed in production."""

    DEPLOY = "deploy"
    FLAG = "flag"
    CONFIG = "config"
    RESTART = "restart"
    EXIT = "exit"
    SCALE = "scale"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedChange:
    """Something that somebody or something changed in production (changes)."""

    kind: Literal["observed_change"] = "observed_change"
    at: datetime
    change: ChangeKind
    service: str
    """The service it concerns; empty when it concerns all."""
    subject: str
    """What was changed: a flag key, a config key, `service.version`, an instance id."""
    before: str
    after: str
    detail: str
    """One line, escaped and cut to 200 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One concrete record that shows a fact (exemplars)."""

    kind: Literal["exemplar"] = "exemplar"
    service: str
    at: datetime
    severity: str
    trace_id: str
    text: str
    """Escaped and cut to 200 characters."""


Observation: TypeAlias = (
    OperationShift | EdgeShift | PatternShift | AttributeDiff | FlowBreak | MetricShift | ObservedChange | Exemplar
)


GapReason: TypeAlias = Literal["failed", "timeout", "empty", "partial", "nonsense", "unsupported", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that we tried to learn and could not: a value, never an exception."""

    question: QuestionKind
    source: str
    """Name of the reader."""
    query: str
    """Exactly what was asked, as far as it got; may be empty when nothing was sent."""
    reason: GapReason
    detail: str
    """One line for people: what happened and what it means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one reader said to one question."""

    question: Question
    source: str
    """Name of the reader."""
    query: str
    """Exactly what was asked, so that a person can ask it again."""
    rows: tuple[Observation, ...]
    """In a total, deterministic order. Empty means: looked, and nothing is there."""
    truncated: bool = False
    """More rows existed than `rows_max`."""
    partial: str = ""
    """Not empty when part of the answer is missing: says which part and why; it becomes a Gap beside the rows."""
