"""kill -9 of the store owner while telemetry flows: how many acknowledged records are lost, how many stored twice."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import msgspec
from tests.crash._kills import LINES, SERVICE, Sender, storm

from quell.config import StoreSettings
from quell.runs import system_clock
from quell.signals import Receiver, Store

_PATIENCE_S = 120.0


class _Stored(msgspec.Struct):
    request: int
    lines: int


async def _stored(state_dir: Path) -> tuple[dict[int, int], int, int]:
    """Take up what is spooled; count the lines of each request, those of the rollup, and payloads put aside."""
    store = await Store.open(StoreSettings(), state_dir=state_dir, clock=system_clock)
    receiver = await Receiver.open(store, state_dir=state_dir, clock=system_clock, entropy=os.urandom)
    deadline = time.monotonic() + _PATIENCE_S
    while receiver.status().spool_bytes and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    sql = f"SELECT toUInt32(LogAttributes['request']) AS request, count() AS lines FROM otel_logs WHERE ServiceName = '{SERVICE}' GROUP BY request"
    rows = await store.client.rows(sql, row=_Stored, timeout_s=60)
    sql = f"SELECT 0 AS request, sum(count) AS lines FROM quell_patterns_1m WHERE service = '{SERVICE}'"
    rolled = (await store.client.rows(sql, row=_Stored, timeout_s=60))[0].lines
    quarantined = receiver.status().quarantined
    await receiver.close()
    await store.close()
    return {row.request: row.lines for row in rows}, rolled, quarantined


def measure(kills: int = 100, seed: int = 1) -> dict[str, int | float]:
    """Kill the owner `kills` times, and the receiving process with every tenth; count what the store has in the end."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        sender = Sender(Path(directory))
        try:
            done = storm(sender, kills=kills, seed=seed, every_s=(0.1, 1.2), receiver_every=10)
        finally:
            sender.kill()
        stored, rolled, quarantined = asyncio.run(_stored(sender.state_dir))
    lost = sum(LINES - min(LINES, stored.get(number, 0)) for number in sender.acknowledged)
    doubled = sum(max(0, lines - LINES) for lines in stored.values())
    return {
        "kills": done,
        "acknowledged_records": len(sender.acknowledged) * LINES,
        "lost_records": lost,
        "doubled_records": doubled,
        "stored_records": sum(stored.values()),
        "rolled_up_records": rolled,
        "quarantined_payloads": quarantined,
        "elapsed_s": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    print(measure())
