"""A bounded queue and one thread between the code that tells something and one place that it goes to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.trace import ReadableSpan

from quell.telemetry._active import Exporter, Signal, quiet

T = TypeVar("T")
OnDrop: TypeAlias = Callable[[Signal, int, str], None]

_QUEUE_MAX = 4096
_BATCH_MAX = 512
_PERIOD_S = 2.0
_METRICS_PERIOD_S = 15.0
_TELL_DROP_S = 60.0
_DELIVERY_S = 10.0


class Destination(Protocol):
    """Somewhere that batches go; raises when it did not take one."""

    def spans(self, batch: Sequence[ReadableSpan]) -> None:
        """Take spans."""

    def logs(self, batch: Sequence[ReadableLogRecord]) -> None:
        """Take log records."""

    def metrics(self, batch: MetricsData) -> None:
        """Take the state of all metrics."""


class OwnStore:
    """Hands OTLP bytes to a callable of the event loop that it was attached in."""

    def __init__(self, export: Exporter, *, loop: asyncio.AbstractEventLoop | None) -> None:
        self._export = export
        self._loop = loop

    def spans(self, batch: Sequence[ReadableSpan]) -> None:
        """Take spans."""
        self._deliver("traces", encode_spans(batch).SerializeToString())

    def logs(self, batch: Sequence[ReadableLogRecord]) -> None:
        """Take log records."""
        self._deliver("logs", encode_logs(batch).SerializeToString())

    def metrics(self, batch: MetricsData) -> None:
        """Take the state of all metrics."""
        self._deliver("metrics", encode_metrics(batch).SerializeToString())

    def _deliver(self, signal: Signal, payload: bytes) -> None:
        if self._loop is None:
            asyncio.run(self._export_quietly(signal, payload))
            return
        if self._loop.is_closed():
            raise ConnectionError("the event loop of the store is closed")
        coroutine = self._export_quietly(signal, payload)
        try:
            sent = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise
        try:
            sent.result(timeout=_DELIVERY_S)
        except TimeoutError:
            sent.cancel()
            raise

    async def _export_quietly(self, signal: Signal, payload: bytes) -> None:
        with quiet():
            outcome = self._export(signal, payload)
            if outcome is not None:
                await outcome


class Pump:
    """Queues up to `_QUEUE_MAX` items per signal; what does not fit or does not arrive is counted."""

    def __init__(self, name: str, destination: Destination, *, reader: InMemoryMetricReader, on_drop: OnDrop) -> None:
        self._destination = destination
        self._reader = reader
        self._on_drop = on_drop
        self._spans: deque[ReadableSpan] = deque()
        self._logs: deque[ReadableLogRecord] = deque()
        self._wake = threading.Event()
        self._is_flushing = False
        self._flushed = threading.Event()
        self._is_stopping = False
        self._is_abandoned = False
        self._told_at: dict[str, float] = {}
        self.dropped = {"traces": 0, "logs": 0, "metrics": 0}
        self._thread = threading.Thread(target=self._work, name=f"quell-telemetry-{name}", daemon=True)
        self._thread.start()

    def put_span(self, span: ReadableSpan) -> None:
        """Queue a finished span, or count it as dropped."""
        if len(self._spans) >= _QUEUE_MAX:
            self._drop("traces", 1, "queue full")
            return
        self._spans.append(span)
        self._wake_when_full(len(self._spans))

    def put_log(self, record: ReadableLogRecord) -> None:
        """Queue a log record, or count it as dropped."""
        if len(self._logs) >= _QUEUE_MAX:
            self._drop("logs", 1, "queue full")
            return
        self._logs.append(record)
        self._wake_when_full(len(self._logs))

    def flush(self, *, timeout_s: float) -> None:
        """Send what is queued now, metrics too, and wait for it up to `timeout_s`."""
        self._flushed.clear()
        self._is_flushing = True
        self._wake.set()
        self._flushed.wait(timeout=timeout_s)

    def stop(self, *, timeout_s: float) -> None:
        """Send what is queued, wait for it up to `timeout_s`, and end the thread."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(timeout=timeout_s)

    def abandon(self) -> None:
        """End the thread without sending anything more."""
        self._is_abandoned = True
        self._is_stopping = True
        self._wake.set()

    def _wake_when_full(self, queued: int) -> None:
        if queued >= _BATCH_MAX:
            self._wake.set()

    def _work(self) -> None:
        # Everything in this thread is about sending telemetry: nothing of it may become telemetry again.
        with quiet():
            metrics_at = time.monotonic() + _METRICS_PERIOD_S
            while not self._is_stopping:
                self._wake.wait(_PERIOD_S)
                self._wake.clear()
                # Looked at before sending: a flush that is asked for meanwhile is served by the next turn.
                is_flush = self._is_flushing
                self._send_queued()
                if time.monotonic() >= metrics_at or is_flush:
                    metrics_at = time.monotonic() + _METRICS_PERIOD_S
                    self._send_metrics()
                if is_flush:
                    self._is_flushing = False
                    self._flushed.set()
            self._send_queued()
            self._send_metrics()
            self._flushed.set()

    def _send_queued(self) -> None:
        for _ in range(_QUEUE_MAX // _BATCH_MAX + 1):
            if self._is_abandoned or not (self._spans or self._logs):
                return
            if spans := _take(self._spans):
                self._attempt("traces", len(spans), partial(self._destination.spans, spans))
            if logs := _take(self._logs):
                self._attempt("logs", len(logs), partial(self._destination.logs, logs))

    def _send_metrics(self) -> None:
        if self._is_abandoned:
            return
        state = self._reader.get_metrics_data()
        if state is not None and state.resource_metrics:
            self._attempt("metrics", 1, partial(self._destination.metrics, state))

    def _attempt(self, signal: Signal, records: int, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever the destination does, the program goes on; the loss is counted
            self._drop(signal, records, f"{type(error).__name__}: {error}")

    def _drop(self, signal: Signal, records: int, reason: str) -> None:
        self.dropped[signal] += records
        now = time.monotonic()
        if now - self._told_at.get(signal, -_TELL_DROP_S) >= _TELL_DROP_S:
            self._told_at[signal] = now
            self._on_drop(signal, self.dropped[signal], reason)


def _take(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(len(queue), _BATCH_MAX))]
