"""What the environment says of exporting, in OpenTelemetry's names and in those of tools that agents are watched with."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest

from quell import telemetry
from quell.config import Settings, TelemetrySettings
from quell.telemetry import Telemetry, open_telemetry
from tests.doors._trace_bench import NOON, Collector, collector


def _tell(tmp_path: Path, env: Mapping[str, str], *, own: list[bytes] | None = None) -> Telemetry:
    async def use() -> Telemetry:
        settings = Settings(state_dir=tmp_path, telemetry=TelemetrySettings(level="error"))
        opened = open_telemetry(
            settings, role="serve", service_version="1", instance="i", clock=lambda: NOON, env=env, console="off"
        )
        if own is not None:
            opened.attach(lambda _signal, body: own.append(body))
        with telemetry.span("work"):
            telemetry.event("run.started", run="run_1")
        telemetry.count("agent.requests")
        await opened.close()
        return opened

    return asyncio.run(use())


def _paths(kept: Collector) -> set[str]:
    return {path for path, _ in kept.bodies}


def test_an_endpoint_of_one_signal_is_taken_as_it_stands_and_sends_nothing_else(tmp_path: Path) -> None:
    with collector() as kept:
        _tell(tmp_path, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{kept.url}/somewhere/traces"})
        assert _paths(kept) == {"/somewhere/traces"}
        assert [span.name for span in kept.spans()] == ["work"]


def test_an_endpoint_and_headers_of_a_signal_win_over_the_common_ones(tmp_path: Path) -> None:
    with collector() as common, collector() as own:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": common.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=common,x-more=1",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{own.url}/v1/metrics",
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x-key=own",
        }
        _tell(tmp_path, env)
    assert (_paths(common), _paths(own)) == ({"/v1/traces", "/v1/logs"}, {"/v1/metrics"})
    assert {(each["x-key"], each["x-more"]) for each in common.headers} == {("common", "1")}
    assert {(each["x-key"], each["x-more"]) for each in own.headers} == {("own", "1")}


@pytest.mark.parametrize(
    ("more", "paths"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, set()),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, {"/v1/traces"}),
    ],
)
def test_signals_can_be_switched_off(tmp_path: Path, more: Mapping[str, str], paths: set[str]) -> None:
    with collector() as kept:
        _tell(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, **more})
        assert _paths(kept) == paths


def test_a_collector_knows_the_service_by_the_name_that_it_was_given_and_the_own_store_by_ours(tmp_path: Path) -> None:
    own: list[bytes] = []
    with collector() as kept:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": kept.url,
            "OTEL_SERVICE_NAME": "shop-agent",
            "PHOENIX_PROJECT_NAME": "the-shop",
        }
        _tell(tmp_path, env, own=own)
        (span,) = kept.spans()
    assert span.resource["service.name"] == "shop-agent"
    assert span.resource["openinference.project.name"] == "the-shop"
    bodies = [body for _, body in kept.bodies]
    assert len(bodies) == 3
    assert all(b"shop-agent" in body and b"the-shop" in body for body in bodies), "logs and metrics too"
    assert own
    assert not any(b"shop-agent" in body or b"the-shop" in body for body in own)


@pytest.mark.parametrize("protocol", ["grpc", "carrier pigeon"])
def test_a_protocol_that_cannot_be_spoken_is_told_and_another_is_used(tmp_path: Path, protocol: str) -> None:
    if protocol == "grpc" and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc"):
        pytest.skip("the exporter for gRPC is installed: it is used")
    with collector() as kept:
        _tell(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
        assert [span.name for span in kept.spans()] == ["work"]
    log = (tmp_path / "logs" / "quell.log").read_text()
    assert log.count("telemetry.rerouted") == 3
    assert protocol in log


def test_a_protocol_that_can_be_spoken_is_not_told_about(tmp_path: Path) -> None:
    with collector() as kept:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
        _tell(tmp_path, env)
        assert [span.name for span in kept.spans()] == ["work"]
    assert "telemetry.rerouted" not in (tmp_path / "logs" / "quell.log").read_text()


def test_long_attributes_are_cut_where_the_environment_says(tmp_path: Path) -> None:
    async def use(env: Mapping[str, str]) -> None:
        opened = open_telemetry(
            Settings(state_dir=tmp_path), role="command", service_version="1", instance="i", clock=lambda: NOON, env=env
        )
        with telemetry.span("work", {"long": "x" * 100}):
            pass
        await opened.close()

    with collector() as kept:
        asyncio.run(use({"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "10"}))
        assert kept.span_of("work").attributes["long"] == "x" * 10
