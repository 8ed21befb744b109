"""What a durable step costs: a step of a run on SQLite against one fsynced SQLite commit, in the same minute.

python -m bench.bench_step [--json]
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from quell.config import JournalSettings
from quell.runs import Done, Next, RunContext, Runs, system_clock

STEPS = 200
ROUNDS = 5
PAYLOAD = "x" * 200


def commit_ms(directory: Path) -> list[float]:
    """Time commits of one small row, WAL and synchronous=FULL: each is flushed to the disk."""
    connection = sqlite3.connect(directory / "floor.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, body TEXT)")
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (body) VALUES (?)", (PAYLOAD,))
            connection.execute("COMMIT")
            times.append((time.perf_counter() - began) * 1000)
        return times
    finally:
        connection.close()


async def step_ms(directory: Path) -> tuple[list[list[float]], list[list[float]], float]:
    """Time steps of runs, with a flushed commit of the plain kind after each round; return both and CPU per step."""
    steps: list[list[float]] = []
    floors: list[list[float]] = []

    async def work(context: RunContext) -> Next:
        async def nothing() -> str:
            return PAYLOAD

        times = []
        for number in range(STEPS):
            began = time.perf_counter()
            await context.step(f"s{number}", nothing, returns=str, timeout_s=5)
            times.append((time.perf_counter() - began) * 1000)
        steps.append(times)
        return Done(result={})

    runs = await Runs.open(
        JournalSettings(), state_dir=directory, clock=system_clock, entropy=os.urandom, version="bench"
    )
    runs.register("bench", work)
    await runs.launch()
    cpu_s = 0.0
    try:
        for _ in range(ROUNDS):
            began_s = time.process_time()
            run = await runs.start("bench", subject="bench", arguments={})
            await runs.wait(run.id, timeout_s=60)
            cpu_s += time.process_time() - began_s
            floors.append(commit_ms(directory))
    finally:
        await runs.close()
    return steps, floors, cpu_s * 1000 / (ROUNDS * STEPS)


def measure() -> dict[str, float]:
    """Return the medians in milliseconds, their ratio, and the CPU that a step takes."""
    with tempfile.TemporaryDirectory() as directory:
        steps, floors, cpu_ms = asyncio.run(step_ms(Path(directory)))
    ratios = [statistics.median(s) / statistics.median(f) for s, f in zip(steps, floors, strict=True)]
    return {
        "durable_step_ms": round(statistics.median(t for times in steps for t in times), 3),
        "fsynced_commit_ms": round(statistics.median(t for times in floors for t in times), 3),
        "ratio": round(statistics.median(ratios), 2),
        "cpu_ms_per_step": round(cpu_ms, 3),
    }


def main() -> None:
    """Print the figures."""
    figures = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:8.3f}")


if __name__ == "__main__":
    main()
