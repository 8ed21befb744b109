"""Gauges of one service process, and its counters in Prometheus' format."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quell_lab._clock import epoch_s
from quell_lab.kit._certificate import not_after
from quell_lab.kit._pool import Pool
from quell_lab.kit._spec import ProcessSpec
from quell_lab.kit._spool import Spool
from quell_lab.kit._telemetry import Reading, Signals

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1_048_576


class CpuMeter:
    """Share of one core that this process used since the last reading."""

    def __init__(self) -> None:
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._last = 0.0

    def read(self) -> float:
        wall_s, cpu_s = time.monotonic(), time.process_time()
        if wall_s - self._wall_s >= 0.5:
            self._last = (cpu_s - self._cpu_s) / (wall_s - self._wall_s)
            self._wall_s, self._cpu_s = wall_s, cpu_s
        return self._last


def memory_used() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Figures:
    """Registers every gauge once, for OTLP and for /metrics alike."""

    def __init__(self, spec: ProcessSpec, *, signals: Signals, spool: Spool, clock_offset: Callable[[], float]) -> None:
        self.active = 0
        self.registry = CollectorRegistry()
        self._spec = spec
        self._signals = signals
        self._descriptors = 0
        self.requests = Counter(
            "http_server_requests",
            "Requests answered.",
            ("service", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "http_server_request_duration_seconds",
            "Time to answer.",
            ("service", "route"),
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        cpu = CpuMeter()
        self._gauge("process.cpu.utilization", "1", cpu.read)
        self._gauge("process.memory.usage", "By", memory_used)
        self._gauge("process.memory.limit", "By", lambda: spec.memory_limit_mb * MIB)
        self._gauge("process.open_file_descriptor.count", "{file_descriptor}", self._descriptor_count)
        self._gauge("process.open_file_descriptor.limit", "{file_descriptor}", lambda: spec.descriptor_limit)
        self._gauge("system.filesystem.usage", "By", spool.used, {"system.filesystem.mountpoint": "/var/spool/journal"})
        self._gauge(
            "system.filesystem.limit", "By", lambda: spool.limit, {"system.filesystem.mountpoint": "/var/spool/journal"}
        )
        self._gauge("http.server.active_requests", "{request}", lambda: self.active)
        self._gauge("process.clock.offset", "s", clock_offset)
        if spec.certificate:
            self._gauge("tls.certificate.expiry", "s", lambda: not_after(spec.certificate).timestamp() - epoch_s())

    def watch_pool(self, pool: Pool) -> None:
        """Report the connections of a pool."""
        name = {"db.client.connection.pool.name": "postgres"}
        self._gauge("db.client.connection.max", "{connection}", lambda: pool.size, name)
        self._gauge("db.client.connection.pending_requests", "{request}", lambda: pool.waiting, name)

        def connections() -> Iterable[Reading]:
            return [
                (pool.used, {**name, "db.client.connection.state": "used", "state": "used"}),
                (pool.idle, {**name, "db.client.connection.state": "idle", "state": "idle"}),
            ]

        self._signals.gauge("db.client.connection.count", "{connection}", connections)

    def _gauge(
        self,
        name: str,
        unit: str,
        read: Callable[[], float],
        attributes: dict[str, str] | None = None,
    ) -> None:
        labels = attributes or {}
        self._signals.gauge(name, unit, lambda: [(read(), labels)])
        exported = Gauge(name.replace(".", "_"), name, ("service",), registry=self.registry)
        exported.labels(self._spec.service).set_function(read)

    def _descriptor_count(self) -> int:
        try:
            self._descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        except OSError as error:
            # No descriptor left to look with: all of them are in use.
            if error.errno == errno.EMFILE:
                self._descriptors = self._spec.descriptor_limit
        return self._descriptors
