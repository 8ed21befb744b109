"""What a durable step costs: a step of a run on SQLite against one fsynced SQLite commit, in the same minute.

python -m bench.bench_step [--json]
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from bench._shown import show
from quell.config import JournalSettings
from quell.runs import Done, Next, RunContext, Runs, system_clock

STEPS = 200
ROUNDS = 5
PAYLOAD = "x" * 200


class Floor:
    """One small row per commit, WAL and synchronous=FULL: each is flushed to the disk, and nothing else is done."""

    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "floor.db", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)")

    def commit_ms(self) -> float:
        """Time one commit."""
        began = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO t (body) VALUES (?)", (PAYLOAD,))
        self._connection.execute("COMMIT")
        return (time.perf_counter() - began) * 1000

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


async def take(directory: Path) -> tuple[list[float], list[float], float]:
    """Time steps and plain commits in turn, so that both meet the same disk; return both and the CPU of a step."""
    steps: list[float] = []
    floors: list[float] = []
    floor = Floor(directory)
    cpu_s = 0.0

    async def work(context: RunContext) -> Next:
        nonlocal cpu_s

        async def nothing() -> str:
            return PAYLOAD

        for number in range(STEPS):
            began, began_cpu_s = time.perf_counter(), time.process_time()
            await context.step(f"s{number}", nothing, returns=str, timeout_s=5)
            steps.append((time.perf_counter() - began) * 1000)
            cpu_s += time.process_time() - began_cpu_s
            floors.append(floor.commit_ms())
        return Done(result={})

    runs = await Runs.open(
        JournalSettings(), state_dir=directory, clock=system_clock, entropy=os.urandom, version="bench"
    )
    runs.register("bench", work)
    await runs.launch()
    try:
        for _ in range(ROUNDS):
            run = await runs.start("bench", subject="bench", arguments={})
            await runs.wait(run.id, timeout_s=60)
    finally:
        await runs.close()
        floor.close()
    # The first round grows both files; what is told is the steady state.
    return steps[STEPS:], floors[STEPS:], cpu_s * 1000 / (ROUNDS * STEPS)


def measure() -> dict[str, float]:
    """Return the medians in milliseconds, their ratio, and the CPU that a step takes."""
    with tempfile.TemporaryDirectory() as directory:
        steps, floors, cpu_ms = asyncio.run(take(Path(directory)))
    step_ms, commit_ms = statistics.median(steps), statistics.median(floors)
    return {
        "durable_step_ms": round(step_ms, 3),
        "fsynced_commit_ms": round(commit_ms, 3),
        "ratio": round(step_ms / commit_ms, 2),
        "cpu_ms_per_step": round(cpu_ms, 3),
    }


if __name__ == "__main__":
    show(measure(), form="8.3f")
