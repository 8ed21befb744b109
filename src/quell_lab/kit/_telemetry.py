"""OpenTelemetry of one process: traces, logs and metrics over OTLP/HTTP protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry import context as otel_context
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | bool]
Reading = tuple[float, Attributes]

SPAN_DELAY_MS = 800
LOG_DELAY_MS = 900
METRIC_INTERVAL_MS = 2500
EXPORT_TIMEOUT_S = 5.0

PROPAGATOR = TraceContextTextMapPropagator()

_SEVERITY = {
    "INFO": SeverityNumber.INFO,
    "WARN": SeverityNumber.WARN,
    "ERROR": SeverityNumber.ERROR,
    "FATAL": SeverityNumber.FATAL,
}


class Log:
    """Writes log records and events with the trace context of the caller."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def info(self, body: str, **attributes: str | float | bool) -> None:
        self._write("INFO", body, attributes)

    def warn(self, body: str, **attributes: str | float | bool) -> None:
        self._write("WARN", body, attributes)

    def error(self, body: str, *, cause: BaseException | None = None, **attributes: str | float | bool) -> None:
        self._write("ERROR", body, {**attributes, **_exception(cause)})

    def fatal(self, body: str, *, cause: BaseException | None = None) -> None:
        self._write("FATAL", body, _exception(cause))

    def event(self, name: str, body: str, attributes: Attributes) -> None:
        """Write an event: a log record with an event name, at INFO."""
        self._logger.emit(
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body=body,
            attributes=dict(attributes),
            event_name=name,
        )

    def _write(self, severity: str, body: str, attributes: Attributes) -> None:
        self._logger.emit(
            context=otel_context.get_current(),
            severity_number=_SEVERITY[severity],
            severity_text=severity,
            body=body,
            attributes=dict(attributes),
        )


def _exception(cause: BaseException | None) -> dict[str, str]:
    if cause is None:
        return {}
    return {"exception.type": type(cause).__name__, "exception.message": str(cause)[:500]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What one process emits with."""

    tracer: Tracer
    meter: Meter
    report: Log
    flush: Callable[[], None]
    """Send what is waiting; bounded."""
    close: Callable[[], None]

    def gauge(self, name: str, unit: str, read: Callable[[], Iterable[Reading]]) -> None:
        """Register a gauge whose readings are taken at each export."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        self.meter.create_observable_gauge(name, callbacks=[observe], unit=unit)

    def total(self, name: str, unit: str, read: Callable[[], Iterable[Reading]]) -> None:
        """Register a monotonic sum that is read at each export."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        self.meter.create_observable_counter(name, callbacks=[observe], unit=unit)


def open_signals(*, service: str, version: str, instance: str, host: str, endpoint: str) -> Signals:
    """Set up the SDK for one service; an empty endpoint exports nothing."""
    resource = Resource(
        {
            "service.name": service,
            "service.version": version,
            "service.instance.id": instance,
            "deployment.environment.name": "production",
            "host.name": host,
        },
    )
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
    metrics = MeterProvider(
        resource=resource,
        metric_readers=_export(traces, logs, endpoint) if endpoint else [],
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOffExemplarFilter(),
    )

    def flush() -> None:
        logs.force_flush(1500)
        traces.force_flush(1500)

    def close() -> None:
        flush()
        traces.shutdown()
        logs.shutdown()
        metrics.shutdown(timeout_millis=1500)

    return Signals(
        tracer=traces.get_tracer("shop"),
        meter=metrics.get_meter("shop"),
        report=Log(logs.get_logger("shop")),
        flush=flush,
        close=close,
    )


def _export(traces: TracerProvider, logs: LoggerProvider, endpoint: str) -> list[PeriodicExportingMetricReader]:
    """Send spans and logs soon, and return the reader that sends metrics."""
    traces.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S),
            schedule_delay_millis=SPAN_DELAY_MS,
            max_export_batch_size=1024,
            max_queue_size=8192,
        ),
    )
    logs.add_log_record_processor(
        BatchLogRecordProcessor(
            OTLPLogExporter(f"{endpoint}/v1/logs", timeout=EXPORT_TIMEOUT_S),
            schedule_delay_millis=LOG_DELAY_MS,
            max_export_batch_size=1024,
            max_queue_size=8192,
        ),
    )
    return [
        PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=EXPORT_TIMEOUT_S),
            export_interval_millis=METRIC_INTERVAL_MS,
            export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
        ),
    ]
