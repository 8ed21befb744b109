"""Export to an OpenTelemetry collector over OTLP, each signal to where the environment sends it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from quell.telemetry._env import endpoint_of, headers_of, names_of

_TIMEOUT_S = 5.0


class Outside:
    """Collectors, one per signal: mostly the same, and none for what nobody sends anywhere."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._names = Resource(names_of(env)) if names_of(env) else None
        self._spans, self._logs, self._metrics = None, None, None
        if endpoint := endpoint_of(env, "traces"):
            self._spans = OTLPSpanExporter(endpoint=endpoint, headers=headers_of(env, "traces"), timeout=_TIMEOUT_S)
        if endpoint := endpoint_of(env, "logs"):
            self._logs = OTLPLogExporter(endpoint=endpoint, headers=headers_of(env, "logs"), timeout=_TIMEOUT_S)
        if endpoint := endpoint_of(env, "metrics"):
            self._metrics = OTLPMetricExporter(
                endpoint=endpoint, headers=headers_of(env, "metrics"), timeout=_TIMEOUT_S
            )

    def spans(self, batch: Sequence[ReadableSpan]) -> None:
        """Take spans."""
        if self._spans is not None:
            _require(self._spans.export([self._renamed(span) for span in batch]))

    def logs(self, batch: Sequence[ReadableLogRecord]) -> None:
        """Take log records."""
        if self._logs is not None:
            _require(self._logs.export([replace(each, resource=self._named(each.resource)) for each in batch]))

    def metrics(self, batch: MetricsData) -> None:
        """Take the state of all metrics."""
        if self._metrics is not None:
            named = [replace(each, resource=self._named(each.resource)) for each in batch.resource_metrics]
            _require(self._metrics.export(MetricsData(resource_metrics=named)))

    def _named(self, resource: Resource) -> Resource:
        return resource if self._names is None else resource.merge(self._names)

    def _renamed(self, span: ReadableSpan) -> ReadableSpan:
        if self._names is None:
            return span
        # The span itself is in the queue of the own store too, which knows this service by its own name.
        renamed = copy.copy(span)
        renamed._resource = self._named(span.resource)  # noqa: SLF001 - there is no other way to give a span another resource
        return renamed


def _require(result: Enum) -> None:
    if result.name != "SUCCESS":
        raise ConnectionError("the collector did not take it")
