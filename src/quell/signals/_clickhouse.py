"""The reader of a ClickHouse that holds OpenTelemetry tables: the embedded store, or anybody's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from quell.domain import Answer, Gap, GapReason, Question, QuestionKind, StoreError
from quell.signals._clickhouse_ask import Asked, Asking
from quell.signals._clickhouse_attributes import attribute_diffs
from quell.signals._clickhouse_changes import exemplars, observed_changes
from quell.signals._clickhouse_edges import edge_shifts
from quell.signals._clickhouse_flow import flow_breaks
from quell.signals._clickhouse_metrics import metric_shifts
from quell.signals._clickhouse_patterns import pattern_shifts
from quell.signals._clickhouse_red import operation_shifts
from quell.signals._clickhouse_sources import Shape
from quell.signals._client import StoreClient
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_text import escape_line

OWN_SERVICES = ("quell",)
"""What Quell tells about itself is no evidence about production, unless it is asked for by name."""
_TIMEOUT_CODES = frozenset({159, 160, 209})
_REFUSED_CODES = frozenset({164, 192, 193, 194, 497, 516})
_UNSUPPORTED_CODES = frozenset({46, 47, 60, 81})
_DETAIL_CHARS = 200
_CHECK_TIMEOUT_S = 5.0
_NEEDED = ("otel_logs", "otel_traces")

_QUESTIONS: Mapping[QuestionKind, Callable[[Asking, Question], Awaitable[Asked]]] = {
    QuestionKind.ERROR_RATES: operation_shifts,
    QuestionKind.SLOW_OPERATIONS: operation_shifts,
    QuestionKind.EDGE_GAPS: edge_shifts,
    QuestionKind.NEW_PATTERNS: pattern_shifts,
    QuestionKind.CHANGED_PATTERNS: pattern_shifts,
    QuestionKind.ATTRIBUTE_DIFF: attribute_diffs,
    QuestionKind.FLOW_BREAKS: flow_breaks,
    QuestionKind.METRIC_SHIFTS: metric_shifts,
    QuestionKind.CHANGES: observed_changes,
    QuestionKind.EXEMPLARS: exemplars,
}


class _Now(msgspec.Struct):
    now: int


class ClickHouseReader:
    """Answers every typed question by SQL that the engine works off: on our rollups, or on the exporter's tables."""

    def __init__(
        self, client: StoreClient, *, name: str = "clickhouse", hidden: tuple[str, ...] = OWN_SERVICES
    ) -> None:
        self.name = name
        self._client = client
        self._hidden = hidden

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question within the deadline; whatever goes wrong is a Gap with its reason."""
        deadline = time.monotonic() + timeout_s
        asking: Asking | None = None
        try:
            async with asyncio.timeout(timeout_s):
                asking = await self._begin(deadline=deadline)
                asked = await _QUESTIONS[question.kind](asking, question)
        except CannotAnswerError as error:
            return self._gap(
                question, error.reason, error.detail, query=error.query or (asking.query if asking else "")
            )
        except TimeoutError:
            return self._gap(
                question, "timeout", f"no answer within {timeout_s:g} s", query=asking.query if asking else ""
            )
        except StoreError as error:
            return self._gap(question, _reason_of(error), str(error), query=asking.query if asking else "")
        return Answer(
            question=question,
            source=self.name,
            query=asked.query,
            rows=asked.rows[: question.rows_max],
            truncated=len(asked.rows) > question.rows_max,
            partial=asked.partial,
        )

    async def check(self) -> list[str]:
        """Return what keeps this store from answering, one line each."""
        try:
            schema = await self._client.load_schema(timeout_s=_CHECK_TIMEOUT_S)
        except StoreError as error:
            return [f"{self.name}: {error}" + (f" ({error.hint})" if error.hint else "")]
        missing = [f"{self.name}: there is no table {table}" for table in _NEEDED if table not in schema]
        odd = [
            f"{self.name}: {table} keeps attributes as JSON; only Map columns can be read"
            for table, shape in sorted(schema.items())
            if shape.attributes == "json"
        ]
        return missing + odd

    async def _begin(self, *, deadline: float) -> Asking:
        left_s = max(0.1, deadline - time.monotonic())
        schema = self._client.schema or await self._client.load_schema(timeout_s=left_s)
        if not schema:
            raise CannotAnswerError("unsupported", "this ClickHouse has none of the OpenTelemetry tables")
        now = await self._client.rows("SELECT toUnixTimestamp(now()) AS now", row=_Now, timeout_s=left_s)
        if len(now) != 1:
            raise CannotAnswerError("nonsense", "the store could not even tell the time")
        return Asking(client=self._client, shape=Shape(schema), now=now[0].now, hidden=self._hidden, deadline=deadline)

    def _gap(self, question: Question, reason: GapReason, detail: str, *, query: str) -> Gap:
        return Gap(
            question=question.kind,
            source=self.name,
            query=query,
            reason=reason,
            detail=escape_line(detail, chars_max=_DETAIL_CHARS),
        )


def _reason_of(error: StoreError) -> GapReason:
    if error.code in _TIMEOUT_CODES:
        return "timeout"
    if error.code in _REFUSED_CODES:
        return "refused"
    if error.code in _UNSUPPORTED_CODES:
        return "unsupported"
    return (
        "nonsense"
        if isinstance(error.__cause__, (msgspec.DecodeError, UnicodeDecodeError, RecursionError))
        else "failed"
    )
