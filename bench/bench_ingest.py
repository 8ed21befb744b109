"""OTLP logs per CPU-second into the store with rollups: decoded by the engine, against decoded in Python.

Both sides store the same records in the same tables with the same rollups, in batches of the same size; CPU is that of
the owner process and of this one together.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import psutil
import pyarrow as pa  # type: ignore[import-untyped] # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from quell.config import StoreSettings
from quell.runs import system_clock
from quell.signals import Receiver, Store

RECORDS = 1000
REQUESTS = 200
ROUNDS = 5
_PATIENCE_S = 60.0
_FILES_GONE_S = 6.0
"""For five seconds after many files were deleted, ext4 searches long for a place of a new one; either side would pay."""
_SETTINGS = {"max_threads": "1", "max_insert_threads": "1", "parallel_view_processing": "0"}
"""As the receiver inserts; more threads cost more CPU."""
_WORDS = [
    "payment",
    "order",
    "cart",
    "failed",
    "retry",
    "connection",
    "timeout",
    "user",
    "session",
    "request",
    "completed",
    "started",
    "cache",
    "miss",
    "database",
]
_MAP = pa.map_(pa.string(), pa.string())
_SCHEMA = pa.schema(
    [
        ("Timestamp", pa.timestamp("ns")),
        ("TraceId", pa.string()),
        ("SpanId", pa.string()),
        ("TraceFlags", pa.uint8()),
        ("SeverityText", pa.string()),
        ("SeverityNumber", pa.uint8()),
        ("ServiceName", pa.string()),
        ("Body", pa.string()),
        ("ResourceAttributes", _MAP),
        ("ScopeName", pa.string()),
        ("ScopeVersion", pa.string()),
        ("ScopeAttributes", _MAP),
        ("LogAttributes", _MAP),
        ("EventName", pa.string()),
    ]
)


def payloads(count: int, *, seed: int) -> list[bytes]:
    """Make export requests as services send them: ten resource attributes, three log attributes, 300 templates."""
    rng = random.Random(seed)
    templates = [" ".join(rng.choices(_WORDS, k=6)) for _ in range(300)]
    now_ns = time.time_ns()
    return [
        _payload(rng, templates, at_ns=now_ns + number, service=f"service-{number % 24}") for number in range(count)
    ]


def _payload(rng: random.Random, templates: list[str], *, at_ns: int, service: str) -> bytes:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    resource.resource.attributes.add(key="service.version").value.string_value = "1.4.2"
    for number in range(8):
        resource.resource.attributes.add(
            key=f"k8s.attribute.{number}"
        ).value.string_value = f"value-{number}-of-{service}"
    scope = resource.scope_logs.add()
    scope.scope.name = "app.logger"
    for number in range(RECORDS):
        record = scope.log_records.add(
            time_unix_nano=at_ns + number * 1000,
            observed_time_unix_nano=at_ns + number * 1000,
            severity_number=9,
            severity_text="INFO",
            trace_id=rng.randbytes(16),
            span_id=rng.randbytes(8),
        )
        record.body.string_value = f"{rng.choice(templates)} id={rng.randrange(10**6)} took {rng.randrange(500)}ms"
        record.attributes.add(key="http.response.status_code").value.int_value = 200
        record.attributes.add(key="thread.name").value.string_value = f"worker-{rng.randrange(8)}"
        record.attributes.add(key="code.function").value.string_value = "handle"
    written: bytes = request.SerializeToString()
    return written


def _text(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined] # a protobuf message
    return "" if kind is None else str(getattr(value, kind))


def flattened(batch: list[bytes]) -> bytes:
    """Decode in Python, as ingest pipelines do: parsed in C, flattened by a loop, handed over as Arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_batches(map(_record_batch, batch)).combine_chunks())
    return bytes(sink.getvalue())


def _record_batch(payload: bytes) -> object:
    columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
    for resource in ExportLogsServiceRequest.FromString(payload).resource_logs:
        resource_attributes = [(a.key, _text(a.value)) for a in resource.resource.attributes]
        service = dict(resource_attributes).get("service.name", "")
        for scope in resource.scope_logs:
            records = scope.log_records
            scope_attributes = [(a.key, _text(a.value)) for a in scope.scope.attributes]
            columns["Timestamp"] += [r.time_unix_nano or r.observed_time_unix_nano for r in records]
            columns["TraceId"] += [r.trace_id.hex() for r in records]
            columns["SpanId"] += [r.span_id.hex() for r in records]
            columns["TraceFlags"] += [r.flags & 0xFF for r in records]
            columns["SeverityText"] += [r.severity_text for r in records]
            columns["SeverityNumber"] += [r.severity_number for r in records]
            columns["Body"] += [_text(r.body) for r in records]
            columns["LogAttributes"] += [[(a.key, _text(a.value)) for a in r.attributes] for r in records]
            columns["EventName"] += [r.event_name for r in records]
            count = len(records)
            columns["ServiceName"] += [service] * count
            columns["ResourceAttributes"] += [resource_attributes] * count
            columns["ScopeName"] += [scope.scope.name] * count
            columns["ScopeVersion"] += [scope.scope.version] * count
            columns["ScopeAttributes"] += [scope_attributes] * count
    return pa.record_batch([pa.array(columns[field.name], type=field.type) for field in _SCHEMA], schema=_SCHEMA)


class _Count(msgspec.Struct, frozen=True):
    rows: int
    rolled: int


async def _stored(store: Store) -> _Count:
    sql = "SELECT (SELECT count() FROM otel_logs) AS rows, (SELECT sum(count) FROM quell_patterns_1m) AS rolled"
    return (await store.client.rows(sql, row=_Count, timeout_s=10))[0]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _cpu_of(work: Callable[[], Awaitable[None]], store: Store) -> float:
    """Run it until every record can be asked for; return the CPU seconds of both processes."""
    owner = psutil.Process((await store.status()).pid)
    for table in ("otel_logs", "quell_patterns_5s", "quell_patterns_1m", "quell_sightings"):
        await store.client.command(f"TRUNCATE TABLE {table}", timeout_s=30)  # both sides begin alike
    await asyncio.sleep(_FILES_GONE_S)
    own_s, owner_s = time.process_time(), _cpu_s(owner)
    await work()
    want = REQUESTS * RECORDS
    assert (now := await _stored(store)) == _Count(rows=want, rolled=want), f"{now} stored, {want} sent"
    while (await store.client.rows("SELECT count() AS rows, 0 AS rolled FROM system.merges", row=_Count, timeout_s=10))[
        0
    ].rows:
        await asyncio.sleep(0.2)  # each side pays for the merges of its own parts
    if os.environ.get("QUELL_BENCH_VERBOSE"):
        print(f"own {time.process_time() - own_s:.2f} s, owner {_cpu_s(owner) - owner_s:.2f} s")
    return time.process_time() - own_s + _cpu_s(owner) - owner_s


async def _by_engine(receiver: Receiver, batch: list[bytes]) -> None:
    for payload in batch:
        await receiver.receive("logs", payload, content_type="application/x-protobuf")
    deadline = time.monotonic() + _PATIENCE_S
    while receiver.status().spool_bytes:  # asking the store instead would be counted as work of the store
        assert time.monotonic() < deadline, "the spool was not emptied"
        await asyncio.sleep(0.05)


async def _by_python(store: Store, batch: list[bytes], *, per_insert: int) -> None:
    for start in range(0, len(batch), per_insert):
        rows = flattened(batch[start : start + per_insert])
        columns = ", ".join(_SCHEMA.names)
        await store.client.insert(
            f"otel_logs ({columns})", rows, input_format="ArrowStream", settings=_SETTINGS, timeout_s=60
        )


async def _measure() -> dict[str, float]:
    ratios, engine_rates, python_rates = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        store = await Store.open(StoreSettings(), state_dir=state_dir, clock=system_clock)
        receiver = await Receiver.open(store, state_dir=state_dir, clock=system_clock, entropy=os.urandom)
        try:
            warm = payloads(REQUESTS, seed=99)  # both ways load code at first
            await _cpu_of(partial(_by_engine, receiver, warm), store)
            await _cpu_of(partial(_by_python, store, warm, per_insert=REQUESTS // 2), store)
            for number in range(ROUNDS):
                batch = payloads(REQUESTS, seed=number)
                batches = receiver.status().batches
                engine_s = await _cpu_of(partial(_by_engine, receiver, batch), store)
                per_insert = max(1, REQUESTS // (receiver.status().batches - batches))
                python_s = await _cpu_of(partial(_by_python, store, batch, per_insert=per_insert), store)
                if os.environ.get("QUELL_BENCH_VERBOSE"):
                    print(f"engine {engine_s:.2f} s, python {python_s:.2f} s, {per_insert} requests an insert")
                ratios.append(python_s / engine_s)
                engine_rates.append(REQUESTS * RECORDS / engine_s)
                python_rates.append(REQUESTS * RECORDS / python_s)
        finally:
            await receiver.close()
            await store.close()
    return {
        "logs_per_cpu_s": round(statistics.median(engine_rates)),
        "logs_per_cpu_s_decoded_in_python": round(statistics.median(python_rates)),
        "ratio": round(statistics.median(ratios), 2),
        "records": REQUESTS * RECORDS,
        "rounds": ROUNDS,
    }


def measure() -> dict[str, float]:
    """Measure both sides in alternation and return rates and their median ratio."""
    return asyncio.run(_measure())


if __name__ == "__main__":
    print(measure())
