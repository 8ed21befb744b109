"""Quell's own spans, metrics and logs go to its own store and to a collector, bounded, and never about themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from quell import telemetry
from quell.config import PrometheusSettings, Secret, Settings, StoreSettings, TelemetrySettings
from quell.domain import StoreError
from quell.signals import PrometheusReader
from quell.signals._client import Endpoint, StoreClient
from quell.telemetry import Exporter, Telemetry, open_telemetry

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECRET = "hunter2-correct-horse"


class Sent:
    """An exporter that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, bytes]] = []

    async def export(self, signal: str, payload: bytes) -> None:
        self.batches.append((signal, payload))

    def spans(self) -> list[tuple[str, dict[str, str]]]:
        found: list[tuple[str, dict[str, str]]] = []
        for payload in self._of("traces"):
            for resource in ExportTraceServiceRequest.FromString(payload).resource_spans:
                for scope in resource.scope_spans:
                    found += [
                        (span.name, {a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes})
                        for span in scope.spans
                    ]
        return found

    def logs(self) -> list[tuple[str, str, bytes]]:
        return [
            (record.event_name, record.body.string_value, record.trace_id)
            for payload in self._of("logs")
            for resource in ExportLogsServiceRequest.FromString(payload).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def counters(self) -> dict[str, float]:
        return {
            metric.name: sum(point.as_double or point.as_int for point in metric.sum.data_points)
            for payload in self._of("metrics")
            for resource in ExportMetricsServiceRequest.FromString(payload).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def resource(self) -> dict[str, str]:
        (payload, *_) = self._of("traces")
        (first, *_) = ExportTraceServiceRequest.FromString(payload).resource_spans
        return {attribute.key: attribute.value.string_value for attribute in first.resource.attributes}

    def _of(self, signal: str) -> list[bytes]:
        return [payload for kind, payload in self.batches if kind == signal]


def _settings(tmp_path: Path, *, is_on: bool = True) -> Settings:
    said = TelemetrySettings(level="error", enabled=is_on)
    return Settings(state_dir=tmp_path, telemetry=said, store=StoreSettings(password=Secret(SECRET)))


def _run(
    tmp_path: Path,
    work: Callable[[Telemetry], Awaitable[None]],
    *,
    export: Exporter | None,
    env: dict[str, str] | None = None,
    is_on: bool = True,
) -> Telemetry:
    made: list[Telemetry] = []

    async def use() -> None:
        opened = open_telemetry(
            _settings(tmp_path, is_on=is_on),
            role="serve",
            service_version="1.2",
            instance="here",
            clock=lambda: NOON,
            env=env or {},
        )
        made.append(opened)
        if export is not None:
            opened.attach(export)
        try:
            await work(opened)
        finally:
            await opened.close()

    asyncio.run(use())
    return made[0]


def test_spans_metrics_and_logs_arrive_as_otlp(tmp_path: Path) -> None:
    sent = Sent()

    async def work(_: Telemetry) -> None:
        with telemetry.span("quell.step", {"name": "plan"}) as span:
            span.put("rows", 3)
            telemetry.event("step.finished", run="run_1", name="plan", elapsed_ms=4)
        telemetry.count("receiver.records", 5, signal="logs")
        telemetry.count("receiver.records", 2, signal="traces")

    _run(tmp_path, work, export=sent.export, env={"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"})
    assert sent.spans() == [("quell.step", {"name": "plan", "rows": "3"})]
    ((name, body, trace_id),) = sent.logs()
    assert (name, body) == ("step.finished", "step.finished name=plan elapsed_ms=4")
    assert any(trace_id), "a log knows the span it was written in"
    assert sent.counters() == {"quell.receiver.records": 7, "quell.events": 1}
    assert sent.resource() == {
        "service.name": "quell",
        "service.version": "1.2",
        "service.instance.id": "here",
        "deployment.environment.name": "test",
    }


def test_switched_off_nothing_goes_to_the_own_store(tmp_path: Path) -> None:
    sent = Sent()

    async def work(_: Telemetry) -> None:
        with telemetry.span("a"):
            telemetry.event("run.started", run="run_1")

    _run(tmp_path, work, export=sent.export, is_on=False)
    assert sent.batches == []
    assert (tmp_path / "logs" / "quell.log").exists(), "the log file is kept all the same"


@pytest.mark.timeout(20)
def test_storing_telemetry_makes_no_telemetry_about_storing_it(tmp_path: Path) -> None:
    sent = Sent()

    async def export(signal: str, payload: bytes) -> None:
        await sent.export(signal, payload)
        with telemetry.span("quell.receive"):
            await asyncio.sleep(0)
            telemetry.count("receiver.records")
            telemetry.event("receiver.spooled", signal=signal)
        headers: dict[str, str] = {}
        telemetry.inject(headers)
        assert headers == {}

    async def work(_: Telemetry) -> None:
        with telemetry.span("first"):
            pass
        await asyncio.sleep(2.5)

    _run(tmp_path, work, export=export)
    assert [name for name, _ in sent.spans()] == ["first"]
    assert sent.logs() == []
    assert "quell.receiver.records" not in sent.counters()


def test_a_flush_sends_what_is_queued_before_its_store_closes(tmp_path: Path) -> None:
    sent = Sent()

    async def work(opened: Telemetry) -> None:
        with telemetry.span("before"):
            telemetry.count("n")
        await opened.flush()
        assert [name for name, _ in sent.spans()] == ["before"]
        assert sent.counters() == {"quell.n": 1}

    _run(tmp_path, work, export=sent.export)
    assert [name for name, _ in sent.spans()] == ["before"], "and only once"


def test_what_does_not_fit_or_does_not_arrive_is_counted_and_told_once(tmp_path: Path) -> None:
    gate = threading.Event()

    def stuck(_signal: str, _payload: bytes) -> None:
        gate.wait(3)
        raise ConnectionError("the store is away")

    def fill() -> None:
        for _ in range(6000):
            with telemetry.span("s"):
                pass

    opened = open_telemetry(
        _settings(tmp_path), role="serve", service_version="1", instance="i", clock=lambda: NOON, env={}
    )
    opened.attach(stuck)
    began = time.process_time()
    fill()
    assert opened.dropped["spans"] >= 6000 - 4096 - 512, "the queue is bounded"
    assert time.process_time() - began < 3
    gate.set()
    asyncio.run(opened.close())
    assert opened.dropped["spans"] == 6000, "and what was in it is not called delivered"
    told = (tmp_path / "logs" / "quell.log").read_text()
    assert told.count("telemetry.dropped") <= 3


def test_a_trace_goes_through_from_caller_to_callee(tmp_path: Path) -> None:
    sent = Sent()
    incoming = {"TraceParent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    outgoing: dict[str, str] = {}

    async def work(_: Telemetry) -> None:
        with telemetry.span("quell.request", parent=telemetry.extract(incoming)):
            telemetry.inject(outgoing)
        with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": "nonsense"})):
            pass

    _run(tmp_path, work, export=sent.export)
    assert outgoing["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert outgoing["traceparent"].split("-")[2] != "b7ad6b7169203331", "our span is the parent of the next"
    assert outgoing["tracestate"] == "a=b"
    assert len(sent.spans()) == 2, "a broken header begins a trace of its own"
    assert telemetry.extract({}) is None


def test_the_sources_that_are_asked_learn_of_the_trace(tmp_path: Path) -> None:
    told: list[str] = []
    incoming = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

    async def ask(_: Telemetry) -> None:
        with heard(told) as url:
            reader = PrometheusReader(PrometheusSettings(name="p", url=url))
            client = StoreClient(Endpoint(url=url), client_id="test")
            with telemetry.span("quell.read", parent=telemetry.extract(incoming)):
                await reader.check()
                await client.ping(timeout_s=2)
                with suppress(StoreError):
                    await client.command("SELECT 1", timeout_s=2)
            await reader.close()
            await client.aclose()

    _run(tmp_path, ask, export=Sent().export)
    assert len(told) >= 2
    assert {header.split("-")[1] for header in told if header} == {"0af7651916cd43dd8448eb211c80319c"}, told


@contextmanager
def heard(told: list[str]) -> Iterator[str]:
    """Answer nothing of use, and keep the trace context of each request but pings."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/ping":
                told.append(self.headers.get("traceparent", ""))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_secret_reaches_no_span_and_no_log(tmp_path: Path) -> None:
    sent = Sent()

    async def work(_: Telemetry) -> None:
        def fail() -> None:
            with telemetry.span("s", {"url": f"http://x/{SECRET}"}) as span:
                span.put("more", SECRET)
                telemetry.event("store.failed", error=SECRET)
                raise RuntimeError(f"with {SECRET} inside")

        with pytest.raises(RuntimeError):
            fail()

    _run(tmp_path, work, export=sent.export)
    assert sent.batches
    for _, payload in sent.batches:
        assert SECRET.encode() not in payload
    request = ExportTraceServiceRequest.FromString(next(p for kind, p in sent.batches if kind == "traces"))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    assert span.status.code == 2
    assert span.events[0].name == "exception"


@contextmanager
def collector() -> Iterator[tuple[str, Sent, list[str]]]:
    """A real HTTP endpoint that speaks as much OTLP as is needed."""
    sent, types = Sent(), []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["content-length"]))
            sent.batches.append((self.path.removeprefix("/v1/"), payload))
            types.append(f"{self.headers['content-type']} {self.headers['x-key']}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent, types
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.timeout(20)
def test_a_collector_gets_everything_as_well_when_the_environment_names_one(tmp_path: Path) -> None:
    own = Sent()

    async def work(_: Telemetry) -> None:
        with telemetry.span("a"):
            telemetry.event("run.started", run="run_1")
        telemetry.count("n")

    with collector() as (url, sent, types):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url + "/", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b"}
        _run(tmp_path, work, export=own.export, env=env)
        assert sent.spans() == own.spans() == [("a", {})]
        assert [name for name, *_ in sent.logs()] == ["run.started"]
        assert sent.counters() == own.counters() == {"quell.n": 1, "quell.events": 1}
        assert set(types) == {"application/x-protobuf a b"}


@pytest.mark.timeout(30)
def test_a_collector_that_is_away_holds_up_neither_the_program_nor_the_own_store(tmp_path: Path) -> None:
    own = Sent()

    async def work(_: Telemetry) -> None:
        with telemetry.span("a"):
            pass

    opened = _run(tmp_path, work, export=own.export, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert [name for name, _ in own.spans()] == ["a"]
    assert telemetry.extract({}) is None
    assert opened.dropped["spans"] in {0, 1}
