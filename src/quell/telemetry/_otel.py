"""The OpenTelemetry side: loaded only when there is somewhere to send to."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, UpDownCounter, _Gauge
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quell.telemetry._active import Attribute, Exporter, Kind, Parent
from quell.telemetry._catalogue import Level, Scalar
from quell.telemetry._lines import Cell, tail_of
from quell.telemetry._metrics import find_metric
from quell.telemetry._pump import OnDrop, OwnStore, Pump

_SEVERITY: Mapping[Level, SeverityNumber] = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
}
_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
_SCOPE = "quell"
_ATTRIBUTES_MAX = 1024
"""Of one span: a recorded conversation has several for each of its messages."""
_CLOSE_S = 5.0


class OpenTelemetry:
    """Tracer, meter and logger of Quell itself, and the pumps that carry what they say away."""

    def __init__(
        self, *, resource: Mapping[str, str], env: Mapping[str, str], on_drop: OnDrop, redact: Callable[[str], str]
    ) -> None:
        self._on_drop = on_drop
        self._redact = redact
        self._pumps: list[Pump] = []
        self._readers = {"store": InMemoryMetricReader(), "collector": InMemoryMetricReader()}
        about = Resource({**_named(env.get("OTEL_RESOURCE_ATTRIBUTES", "")), **resource})
        # Providers of our own, not the global ones: what libraries in this process trace is theirs.
        limits = SpanLimits(
            max_span_attributes=_ATTRIBUTES_MAX,
            max_span_attribute_length=_whole(env, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
        )
        tracers = TracerProvider(resource=about, shutdown_on_exit=False, span_limits=limits)
        tracers.add_span_processor(_SpanTap(self._pumps))
        self._tracer = tracers.get_tracer(_SCOPE)
        loggers = LoggerProvider(resource=about, shutdown_on_exit=False)
        loggers.add_log_record_processor(_LogTap(self._pumps))
        self._logger = loggers.get_logger(_SCOPE)
        meters = MeterProvider(metric_readers=list(self._readers.values()), resource=about, shutdown_on_exit=False)
        self._meter = meters.get_meter(_SCOPE)
        self._instruments: dict[str, Counter | UpDownCounter | Histogram | _Gauge] = {}
        self._propagator = TraceContextTextMapPropagator()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Spans, logs and metric states lost so far, over all destinations."""
        return {
            "spans": sum(pump.dropped["traces"] for pump in self._pumps),
            "logs": sum(pump.dropped["logs"] for pump in self._pumps),
            "metrics": sum(pump.dropped["metrics"] for pump in self._pumps),
        }

    def attach(self, export: Exporter) -> None:
        """Carry everything to `export`, in the running event loop if there is one."""
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        destination = OwnStore(export, loop=loop)
        self._pumps.append(Pump("store", destination, reader=self._readers["store"], on_drop=self._on_drop))

    def send_out(self, env: Mapping[str, str]) -> Sequence[str]:
        """Carry everything to the collectors that `env` names; return what cannot be as it wants it."""
        # The http exporter brings a whole HTTP client; most processes have no collector.
        from quell.telemetry._outside import Outside  # noqa: PLC0415

        outside = Outside(env)
        self._pumps.append(Pump("collector", outside, reader=self._readers["collector"], on_drop=self._on_drop))
        return outside.problems

    async def flush(self) -> None:
        """Send what is queued."""
        await asyncio.gather(*(asyncio.to_thread(pump.flush, timeout_s=_CLOSE_S) for pump in self._pumps))

    async def close(self) -> None:
        """Send what is queued and end the threads."""
        await asyncio.gather(*(asyncio.to_thread(pump.stop, timeout_s=_CLOSE_S) for pump in self._pumps))

    def abandon(self) -> None:
        """End the threads at once."""
        for pump in self._pumps:
            pump.abandon()

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, Attribute], *, parent: Parent | None, kind: Kind
    ) -> Iterator[_OpenSpan]:
        """Time a piece of work; an exception that leaves the block is recorded and marks the span as failed."""
        context: Context | None = None
        if parent is not None:
            carrier = {"traceparent": parent.traceparent, "tracestate": parent.tracestate}
            context = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=_KINDS[kind],
            attributes=dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _OpenSpan(span)
            except BaseException as error:
                # OpenTelemetry would write message and stack as they are; a secret may be in both.
                told = self._redact(f"{error}")
                span.set_status(Status(StatusCode.ERROR, told))
                span.add_event("exception", {"exception.type": type(error).__qualname__, "exception.message": told})
                raise

    def count(self, name: str, n: float, attributes: Mapping[str, Scalar]) -> None:
        """Add to a counter or a level."""
        instrument = self._instrument(name)
        assert isinstance(instrument, Counter | UpDownCounter), f"{name} is measured, not counted"
        instrument.add(n, dict(attributes))

    def measure(self, name: str, value: float, attributes: Mapping[str, Scalar]) -> None:
        """Take one value into a histogram, or set a gauge."""
        instrument = self._instrument(name)
        if isinstance(instrument, Histogram):
            instrument.record(value, dict(attributes))
        else:
            assert isinstance(instrument, _Gauge), f"{name} is counted, not measured"
            instrument.set(value, dict(attributes))

    def _instrument(self, name: str) -> Counter | UpDownCounter | Histogram | _Gauge:
        known = self._instruments.get(name)
        if known is not None:
            return known
        full, spec = find_metric(name)
        made: Counter | UpDownCounter | Histogram | _Gauge
        match spec.kind:
            case "counter":
                made = self._meter.create_counter(full, spec.unit, spec.meaning)
            case "level":
                made = self._meter.create_up_down_counter(full, spec.unit, spec.meaning)
            case "gauge":
                made = self._meter.create_gauge(full, spec.unit, spec.meaning)
            case "histogram":
                made = self._meter.create_histogram(
                    full, spec.unit, spec.meaning, explicit_bucket_boundaries_advisory=spec.bounds or None
                )
        self._instruments[name] = made
        return made

    def log(self, name: str, level: Level, *, run: str, body: Mapping[str, Cell]) -> None:
        """Write one event as a log record of the current span, and count it."""
        attributes: dict[str, str | int | float | bool | list[str]] = {
            f"quell.{key}": value for key, value in body.items() if value is not None and value != ""
        }
        if run:
            attributes["quell.run"] = run
        self.count("events", 1, {"event": name})
        self._logger.emit(
            severity_number=_SEVERITY[level],
            severity_text=level.upper(),
            body=f"{name} {tail_of(body)}".rstrip(),
            attributes=attributes,
            event_name=name,
        )

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Write the current place in the trace into headers."""
        self._propagator.inject(headers)


class _OpenSpan:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def put(self, key: str, value: Attribute) -> None:
        """Add an attribute."""
        self._span.set_attribute(key, value)


class _SpanTap(SpanProcessor):
    """Passes finished spans to every pump."""

    def __init__(self, pumps: list[Pump]) -> None:
        self._pumps = pumps

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it everywhere."""
        for pump in self._pumps:
            pump.put_span(span)


class _LogTap(LogRecordProcessor):
    """Passes log records to every pump."""

    def __init__(self, pumps: list[Pump]) -> None:
        self._pumps = pumps

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Queue a copy that no longer holds on to the context it came from."""
        record = copy.copy(log_record.log_record)
        record.context = Context()
        readable = ReadableLogRecord(
            log_record=record,
            resource=log_record.resource or Resource({}),
            instrumentation_scope=log_record.instrumentation_scope,
            limits=log_record.limits,
        )
        for pump in self._pumps:
            pump.put_log(readable)

    def shutdown(self) -> None:
        """Nothing is held here."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the name is OpenTelemetry's
        """Nothing is held here."""
        return True


def _named(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _whole(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isdigit() else None
