"""The shop as a whole: it runs, tells, breaks, heals, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from quell_lab import DISTURBANCES, FAULTS, Lab
from quell_lab._plan import SERVICES
from tests.flows._otlp_sink import Sink

pytestmark = pytest.mark.flow
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
ERROR = 2
TELLTALES = ("fault", "chaos", "inject", "sabot", "quell", *sorted(FAULTS), *sorted(DISTURBANCES))


@contextlib.contextmanager
def running(root: Path, *, rate_per_s: float = 20.0) -> Iterator[tuple[Lab, Sink]]:
    sink = Sink()
    try:
        lab = Lab.start(root, endpoint=sink.url, rate_per_s=rate_per_s, seed=1, tied="test")
        try:
            yield lab, sink
        finally:
            lab.stop()
    finally:
        sink.close()


def children_of(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


def wait_gone(processes: list[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=timeout_s)[1]
    return alive


def texts_of(sink: Sink) -> list[str]:
    """Return every text that the shop sent: bodies, names, attribute keys and values."""
    found: list[str] = []
    for record in [*sink.spans, *sink.logs, *sink.points]:
        found += [str(record.get("name", "")), str(record.get("body", "")), str(record.get("event", ""))]
        attributes, resource = record["attributes"], record["resource"]
        assert isinstance(attributes, dict)
        assert isinstance(resource, dict)
        # Where the code lies on this machine may be called anything; it is in no attribute.
        found += [f"{key}={value}" for key, value in {**attributes, **resource}.items() if key != "host.name"]
    return found


@pytest.mark.timeout(150)
def test_the_shop_tells_what_it_does_in_semantic_conventions(tmp_path: Path) -> None:
    with running(tmp_path / "lab") as (lab, sink):
        time.sleep(9)
        lab.put_in("bad_flag", seed=1)
        time.sleep(3)
        lab.heal()
        assert json.loads(lab.layout.truth.read_text()) == {}
        time.sleep(2)
    services = {str(span["resource"]["service.name"]) for span in sink.spans}  # type: ignore[index]  # decoded
    assert services == set(SERVICES)
    by_id = {(span["trace"], span["id"]): span for span in sink.spans}
    calls = {"http": 0, "database": 0, "queue": 0}
    for span in sink.spans:
        attributes = span["attributes"]
        assert isinstance(attributes, dict)
        if span["kind"] == SERVER:
            assert {"http.request.method", "http.route", "http.response.status_code"} <= attributes.keys()
            assert (span["status"] == ERROR) == (attributes["http.response.status_code"] >= 500)
        elif span["kind"] == CLIENT and "db.system.name" in attributes:
            assert attributes["db.system.name"] == "postgresql"
            assert {"db.namespace", "db.query.summary", "server.address", "server.port"} <= attributes.keys()
            assert attributes["peer.service"] == "postgres"
            calls["database"] += 1
        elif span["kind"] == CLIENT:
            assert attributes["peer.service"] in SERVICES
            assert {"server.address", "server.port", "http.request.method"} <= attributes.keys()
            assert (span["status"] == ERROR) == ("error.type" in attributes)
        elif span["kind"] in {PRODUCER, CONSUMER}:
            assert attributes["messaging.destination.name"] == "shipments"
        parent = by_id.get((span["trace"], span["parent"]))
        if parent is not None and span["kind"] == SERVER:
            assert parent["kind"] == CLIENT
            assert parent["attributes"]["peer.service"] == span["resource"]["service.name"]  # type: ignore[index]  # decoded
            calls["http"] += 1
        if parent is not None and span["kind"] == CONSUMER:
            assert parent["kind"] == PRODUCER
            calls["queue"] += 1
    assert min(calls.values()) > 0, calls
    assert {name for name, _ in names_of(sink)} >= METRICS
    flags = [log for log in sink.logs if log["event"] == "feature_flag.changed"]
    assert [log["attributes"]["feature_flag.result.variant"] for log in flags] == ["on", "off"]  # type: ignore[index]  # decoded
    assert {str(log["event"]) for log in sink.logs} >= {"process.started", "feature_flag.changed", ""}
    telling = [text for text in texts_of(sink) if any(word in text.lower() for word in TELLTALES)]
    assert telling == []


METRICS = {
    "process.cpu.utilization",
    "process.memory.usage",
    "process.memory.limit",
    "process.open_file_descriptor.count",
    "process.open_file_descriptor.limit",
    "system.filesystem.usage",
    "system.filesystem.limit",
    "db.client.connection.count",
    "db.client.connection.max",
    "db.client.connection.pending_requests",
    "db.client.connection.wait_time",
    "queue.depth",
    "queue.oldest_age",
    "http.server.active_requests",
    "process.clock.offset",
    "tls.certificate.expiry",
    "postgresql.backends",
    "postgresql.locks.waiting",
    "postgresql.rows_scanned",
    "postgresql.query.duration",
}


def names_of(sink: Sink) -> set[tuple[str, str]]:
    return {(str(point["name"]), str(point["unit"])) for point in sink.points}


@pytest.mark.timeout(120)
def test_a_planned_release_costs_no_user_an_error(tmp_path: Path) -> None:
    with running(tmp_path / "lab") as (lab, sink):
        time.sleep(3)
        lab.put_in("planned_deploy", seed=2)
        time.sleep(2)
        lab.heal()
        time.sleep(2)
    assert [span for span in sink.spans if span["status"] == ERROR] == []
    assert sum(log["event"] == "deployment.finished" for log in sink.logs) == 2


@pytest.mark.timeout(120)
def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    sink = Sink()
    try:
        lab = Lab.start(tmp_path / "lab", endpoint=sink.url, rate_per_s=5, seed=1)
        processes = children_of(lab.pid)
        assert len(processes) >= len(SERVICES) + 3
        os.kill(lab.pid, signal.SIGKILL)
        assert lab.child is not None
        assert lab.child.wait(10) == -signal.SIGKILL
        assert wait_gone(processes, timeout_s=10) == []
        assert Lab.find(tmp_path / "lab") is None
        # Its files cannot be removed by anybody who was killed; the next lab of the directory does.
        left = Path((tmp_path / "lab" / "database_directory").read_text())
        assert left.exists()
        again = Lab.start(tmp_path / "lab", endpoint=sink.url, rate_per_s=5, seed=1, tied="test")
        again.stop()
        assert not left.exists()
    finally:
        sink.close()


@pytest.mark.timeout(120)
def test_down_leaves_no_process_and_no_database_files(tmp_path: Path) -> None:
    with running(tmp_path / "lab", rate_per_s=5) as (lab, _sink):
        processes = children_of(lab.pid)
        database = next(process for process in processes if process.name() == "postgres")
        files = Path(database.cmdline()[database.cmdline().index("-D") + 1])
        assert files.exists()
    assert wait_gone(processes, timeout_s=5) == []
    assert not files.exists()


class Feeling:
    """What users felt: failures and slow answers at the gateway, and what waits for them behind it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.usual_ms = {name: statistics.median(took) for name, took in self.took().items()}

    def took(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for span in list(self.sink.spans):
            if span["kind"] == SERVER and span["resource"]["service.name"] == "gateway":  # type: ignore[index]  # decoded
                found[str(span["name"])].append(float(str(span["ms"])))
        return found

    def pain(self) -> str:
        """Say what hurts; empty when nothing does."""
        failed = sum(
            span["kind"] == SERVER and span["status"] == ERROR and span["resource"]["service.name"] == "gateway"  # type: ignore[index]  # decoded
            for span in list(self.sink.spans)
        )
        if failed >= 3:
            return f"{failed} failed"
        for name, took in self.took().items():
            usual_ms = self.usual_ms.get(name, 10.0)
            if len(took) >= 3 and statistics.median(took) > max(3 * usual_ms, usual_ms + 80):
                return f"{name} takes {statistics.median(took):.0f} ms instead of {usual_ms:.0f} ms"
        return ""

    def forget(self) -> None:
        self.sink.spans.clear()
        self.sink.logs.clear()
        self.sink.points.clear()


@pytest.mark.timeout(480)
def test_users_feel_every_fault_within_seconds_and_none_after_it_is_healed(tmp_path: Path) -> None:
    problems: list[str] = []
    with running(tmp_path / "lab") as (lab, sink):
        time.sleep(9)
        feeling = Feeling(sink)
        assert feeling.pain() == "", "a healthy shop hurts nobody"
        for name in FAULTS:
            feeling.forget()
            truth = lab.put_in(name, seed=1)
            assert json.loads(lab.layout.truth.read_text())["name"] == name
            until_s = time.monotonic() + 15
            while not (pain := feeling.pain()) and time.monotonic() < until_s:
                time.sleep(0.5)
            if not pain:
                problems.append(f"nobody feels {name} ({truth.subject}: {truth.detail})")
            lab.heal()
            # What was under way may still fail, and a backlog takes a moment: but it must end.
            for _ in range(6):
                feeling.forget()
                time.sleep(2.5)
                if not (after := feeling.pain()):
                    break
            else:
                problems.append(f"{name} still hurts after it was healed: {after}")
    assert problems == []
