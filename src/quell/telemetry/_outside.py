"""Export to an OpenTelemetry collector over OTLP, each signal to where the environment sends it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from importlib import import_module
from typing import Protocol, cast

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from quell.telemetry._env import Out, endpoint_of, headers_of, names_of, protocol_of

_TIMEOUT_S = 5.0
_HTTP = "http/protobuf"
_PACKAGES: Mapping[str, str] = {
    _HTTP: "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}
_EXPORTERS: Mapping[Out, tuple[str, str]] = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}


class _Exporter(Protocol):
    def export(self, batch: object) -> Enum:
        """Send a batch; the member `SUCCESS` says that it was taken."""


class Outside:
    """Collectors, one per signal: mostly the same, and none for what nobody sends anywhere."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        """Where what was asked for cannot be done, and what is done instead."""
        self._names = Resource(names_of(env)) if names_of(env) else None
        self._spans = self._exporter(env, "traces")
        self._logs = self._exporter(env, "logs")
        self._metrics = self._exporter(env, "metrics")

    def _exporter(self, env: Mapping[str, str], signal: Out) -> _Exporter | None:
        endpoint = endpoint_of(env, signal)
        if not endpoint:
            return None
        asked = protocol_of(env, signal) or _HTTP
        module, name = _EXPORTERS[signal]
        package = _PACKAGES.get(asked)
        try:
            found = import_module(f"{package or _PACKAGES[_HTTP]}.{module}")
        except ImportError:
            found, package = import_module(f"{_PACKAGES[_HTTP]}.{module}"), None
        if package is None:
            self.problems.append(f"{signal} go by {_HTTP}, not {asked}: {_why(asked)}")
        made = getattr(found, name)(endpoint=endpoint, headers=headers_of(env, signal), timeout=_TIMEOUT_S)
        return cast("_Exporter", made)

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


def _why(asked: str) -> str:
    if asked in _PACKAGES:
        return f"install opentelemetry-exporter-otlp-proto-{asked}"
    return f"known are {' and '.join(sorted(_PACKAGES))}"
