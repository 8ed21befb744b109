"""What the owner does by itself: half-edges to edges, sightings to changes, retention by age and by size."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass

from quell.signals._owner_engine import Engine, EngineError, Limits
from quell.signals._schema import RAW_TABLES, SHORT_ROLLUP_HOURS

_TICK_S = 5.0
_EDGES_EVERY_S = 20.0
_LATE_EVERY_S = 300.0
_SPACE_EVERY_S = 60.0
_SHORT_TABLES = ("quell_patterns_5s", "quell_red_5s", "quell_calls")
_PARTS_MANY = 300
_RAW_PARTITION_S = 6 * 3600

# One row per call, from whichever half-edges have arrived; a caller is needed to speak of an edge.
_CALLS_OF_MINUTES = """
SELECT key, min(bucket) AS at, max(caller) AS caller_name, max(callee_hint) AS hint, max(callee) AS callee_name,
    max(client_ns) AS client, max(server_ns) AS server, max(client_error) AS failed, max(callee_kind) AS kind, max(error_type) AS error
FROM quell_calls
WHERE bucket >= toStartOfMinute(now() - {back_s}) - 60 AND bucket < toStartOfMinute(now() - 60) + 60
GROUP BY key
HAVING caller_name != '' AND at >= toStartOfMinute(now() - {back_s}) AND at < toStartOfMinute(now() - 60)
"""

ROLL_EDGES = f"""
INSERT INTO quell_edges_1m
WITH (SELECT groupUniqArray(service) FROM quell_red_5s WHERE span_kind IN ('server', 'consumer')) AS emitters
SELECT toStartOfMinute(at) AS bucket, caller_name AS caller, if(callee_name != '', callee_name, hint) AS callee,
    max(kind) AS callee_kind,
    count() AS calls, sum(failed) AS errors,
    countIf(callee_name = '' AND has(emitters, hint)) AS unanswered,
    countIf(callee_name != '') AS matched,
    sum(client) AS client_ns,
    sumIf(client, callee_name != '') AS matched_client_ns,
    sumIf(server, callee_name != '') AS server_ns,
    toInt64(sumIf(client, callee_name != '')) - toInt64(sumIf(server, callee_name != '')) AS gap_ns,
    quantilesTDigestState(0.5, 0.95)(client / 1e6) AS client_quantiles,
    arrayFilter(e -> e != '', topK(5)(error)) AS error_types,
    now64(3) AS rolled_at
FROM ({_CALLS_OF_MINUTES})
GROUP BY bucket, caller, callee
"""

# Consecutive sightings of one service: another version is a deploy, another instance a restart; the very first is neither.
# They wait ten seconds for an event that says the same with more detail, and are written once.
DERIVE_CHANGES = """
INSERT INTO quell_changes
SELECT first AS at, what.1 AS change, service, what.2 AS subject, what.3 AS before, what.4 AS after, what.5 AS detail, 'telemetry' AS source,
    sipHash64(change, service, subject, before, after, toUnixTimestamp64Nano(at)) AS key
FROM (
    SELECT service, version, instance, first,
        lagInFrame(version) OVER w AS version_before, lagInFrame(instance) OVER w AS instance_before, row_number() OVER w AS place
    FROM (
        SELECT toString(service) AS service, version, instance, min(first_seen) AS first
        FROM quell_sightings GROUP BY service, version, instance
    )
    WINDOW w AS (PARTITION BY service ORDER BY first, version, instance ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
)
ARRAY JOIN arrayFilter(c -> c.1 != '', [
    (if(version != version_before, 'deploy', ''), 'service.version', version_before, version, 'another version was first seen in telemetry'),
    (if(instance != instance_before AND instance != '', 'restart', ''), instance, instance_before, instance, 'another instance was first seen in telemetry')
]) AS what
WHERE place > 1 AND first < now64(9) - INTERVAL 10 SECOND
    AND (change, service, after) NOT IN (SELECT change, service, after FROM quell_changes WHERE source != 'telemetry')
    AND key NOT IN (SELECT key FROM quell_changes)
"""

# A row that claims to be of the future is as old as its arrival: no clock that runs ahead keeps its rows for ever.
_PARTITIONS = """
SELECT table, partition_id, toUnixTimestamp(least(max(max_time), max(modification_time))) AS newest, sum(bytes_on_disk) AS bytes, count() AS parts
FROM system.parts
WHERE active AND database = currentDatabase() AND (startsWith(table, 'otel_') OR startsWith(table, 'quell_'))
GROUP BY table, partition_id
ORDER BY newest, table, partition_id
FORMAT JSONCompactEachRow
"""


@dataclass(frozen=True, slots=True)
class _Partition:
    table: str
    name: str
    newest_s: int
    size_bytes: int
    parts: int


@dataclass(slots=True)
class _Due:
    changes: float = 0.0
    edges: float = 0.0
    late: float = 0.0
    space: float = 0.0


class Upkeep:
    """A thread that keeps the store in order until it is told to stop."""

    def __init__(self, engine: Engine, *, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep")
        self._due = _Due()
        self._sightings = b""
        self._failures: dict[str, str] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after what runs now."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            for name, chore in (
                ("changes", self._derive_changes),
                ("edges", self._roll_edges),
                ("space", self._keep_space),
            ):
                try:  # each by itself: what one cannot do on a bad day keeps no other from its work
                    chore()
                except EngineError as error:
                    self._note(name, str(error))
                except Exception as error:  # noqa: BLE001 - upkeep must outlive whatever the engine throws
                    self._note(name, repr(error))
                else:
                    self._failures.pop(name, None)

    def _note(self, chore: str, failure: str) -> None:
        """Write a failure to the owner's log, once as long as it stays the same; a log that takes nothing stops nobody."""
        if failure != self._failures.get(chore):
            with contextlib.suppress(OSError):
                sys.stderr.write(f"upkeep: {chore}: {failure}\n")
                sys.stderr.flush()
        self._failures[chore] = failure

    def _derive_changes(self) -> None:
        seen = self._engine.run(
            "SELECT count(), groupBitXor(cityHash64(service, version, instance)) FROM quell_sightings FINAL"
        )
        if seen != self._sightings or time.monotonic() >= self._due.changes:
            self._due.changes = time.monotonic() + _EDGES_EVERY_S
            self._engine.run(DERIVE_CHANGES)
            self._sightings = seen

    def _roll_edges(self) -> None:
        now = time.monotonic()
        if now >= self._due.late:
            back_s = (SHORT_ROLLUP_HOURS * 60 - 20) * 60 if self._due.late == 0.0 else 720
            self._due.late = now + _LATE_EVERY_S
        elif now >= self._due.edges:
            back_s = 240
        else:
            return
        self._due.edges = now + _EDGES_EVERY_S
        self._engine.run(ROLL_EDGES.replace("{back_s}", str(back_s)))

    def _keep_space(self) -> None:
        now = time.monotonic()
        if now >= self._due.space:
            self._due.space = now + _SPACE_EVERY_S
            self.make_space()

    def make_space(self) -> None:
        """Drop partitions that are too old, then the oldest until the disk is within its bound, of which rollups get half."""
        now_s = int(self._engine.run("SELECT toUnixTimestamp(now())"))
        kept = [partition for partition in self._partitions() if not self._drop_if_old(partition, now_s)]
        bound = self._limits.disk_max_mb << 20
        rollups = [partition for partition in kept if partition.table not in RAW_TABLES and partition.newest_s]
        gone = self._drop_oldest(rollups, excess=sum(partition.size_bytes for partition in rollups) - bound // 2)
        # Of the same age the largest first: a flood of one signal costs the others nothing.
        raw = [partition for partition in kept if partition.table in RAW_TABLES]
        raw.sort(key=lambda partition: (partition.newest_s // _RAW_PARTITION_S, -partition.size_bytes))
        left = [partition for partition in kept if partition not in gone]
        gone += self._drop_oldest(raw, excess=sum(partition.size_bytes for partition in left) - bound)
        for partition in (partition for partition in kept if partition not in gone):
            if partition.parts > _PARTS_MANY:
                self._engine.run(f"OPTIMIZE TABLE {partition.table} PARTITION ID '{partition.name}'")

    def _partitions(self) -> list[_Partition]:
        lines = self._engine.run(_PARTITIONS).splitlines()
        return [_Partition(row[0], row[1], int(row[2]), int(row[3]), int(row[4])) for row in map(json.loads, lines)]

    def _drop_if_old(self, partition: _Partition, now_s: int) -> bool:
        if partition.table in _SHORT_TABLES:
            keep_s = SHORT_ROLLUP_HOURS * 3600.0
        elif partition.table in RAW_TABLES:
            keep_s = self._limits.retention_hours * 3600
        else:
            return False  # the engine's own TTL drops them
        if partition.newest_s == 0 or partition.newest_s > now_s - keep_s:
            return False
        self._drop(partition)
        return True

    def _drop_oldest(self, partitions: list[_Partition], *, excess: int) -> list[_Partition]:
        gone: list[_Partition] = []
        for partition in partitions:
            if excess <= 0:
                break
            self._drop(partition)
            gone.append(partition)
            excess -= partition.size_bytes
        return gone

    def _drop(self, partition: _Partition) -> None:
        self._engine.run(
            f"ALTER TABLE {partition.table} DROP PARTITION ID '{partition.name}' SETTINGS max_partition_size_to_drop = 0"
        )
