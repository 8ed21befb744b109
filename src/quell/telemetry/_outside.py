"""Export to an OpenTelemetry collector over OTLP http/protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from urllib.parse import unquote

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import ReadableSpan

_TIMEOUT_S = 5.0


class Outside:
    """The collector at `OTEL_EXPORTER_OTLP_ENDPOINT`; `OTEL_EXPORTER_OTLP_HEADERS` go along."""

    def __init__(self, env: Mapping[str, str]) -> None:
        url = env["OTEL_EXPORTER_OTLP_ENDPOINT"].rstrip("/")
        headers = _pairs(env.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
        self._spans = OTLPSpanExporter(endpoint=f"{url}/v1/traces", headers=headers, timeout=_TIMEOUT_S)
        self._logs = OTLPLogExporter(endpoint=f"{url}/v1/logs", headers=headers, timeout=_TIMEOUT_S)
        self._metrics = OTLPMetricExporter(endpoint=f"{url}/v1/metrics", headers=headers, timeout=_TIMEOUT_S)

    def spans(self, batch: Sequence[ReadableSpan]) -> None:
        """Take spans."""
        _require(self._spans.export(batch))

    def logs(self, batch: Sequence[ReadableLogRecord]) -> None:
        """Take log records."""
        _require(self._logs.export(batch))

    def metrics(self, batch: MetricsData) -> None:
        """Take the state of all metrics."""
        _require(self._metrics.export(batch))


def _require(result: Enum) -> None:
    if result.name != "SUCCESS":
        raise ConnectionError("the collector did not take it")


def _pairs(text: str) -> dict[str, str]:
    """Read `key=value,key=value` with percent-encoded values, as OpenTelemetry writes headers."""
    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {key.strip().lower(): unquote(value.strip()) for key, _, value in pairs}
