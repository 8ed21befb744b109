"""What it costs to begin, execute and follow many short runs: the direct way against the queue, in the same minute.

python -m bench.bench_runs_direct [--json]

Everything runs on SQLite, next to plain fsynced commits of one row. A run has two steps and tells four events of its own.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from bench._shown import show
from bench.bench_step import PAYLOAD, Floor
from quell.config import JournalSettings
from quell.runs import Done, Next, RunContext, Runs, system_clock

ONE_BY_ONE = 100
PER_S = 100
SECONDS = 5
MANY = 1000
BY_QUEUE = 60
TELLS = 4


class Work:
    """Two steps and four events; notes when each run came to its first line."""

    def __init__(self) -> None:
        self.began_s: dict[str, float] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, context: RunContext) -> Next:
        self.began_s[context.run.subject] = time.perf_counter()

        async def step() -> str:
            await self.gate.wait()
            return PAYLOAD

        for number in range(2):
            await context.step(f"s{number}", step, returns=str, timeout_s=120)
            for tell in range(TELLS // 2):
                await context.emit("bench.told", key=f"{number}.{tell}", text=PAYLOAD)
        return Done(result={})


@asynccontextmanager
async def _runs(directory: Path, work: Work, *, way: Literal["queue", "direct"]) -> AsyncIterator[Runs]:
    runs = await Runs.open(
        JournalSettings(), state_dir=directory / way, clock=system_clock, entropy=os.urandom, version="bench"
    )
    runs.register("bench", work, way=way)
    await runs.launch()
    try:
        yield runs
    finally:
        await runs.close()


async def _one(runs: Runs, work: Work, name: str) -> tuple[float, str]:
    """Start a run and wait for its end; return how long its first line took, in milliseconds."""
    asked_s = time.perf_counter()
    run = await runs.start("bench", subject=name, arguments={})
    await runs.wait(run.id, timeout_s=120)
    return (work.began_s[name] - asked_s) * 1000, run.id


def _spread(name: str, values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"{name}_p50_ms": round(statistics.median(ordered), 3),
        f"{name}_p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 3),
    }


async def _latency(directory: Path) -> dict[str, float]:
    """Start runs one at a time by either way, with a plain commit after each, then a hundred a second directly."""
    floor, floors = Floor(directory), []
    direct, queue = Work(), Work()
    figures: dict[str, float] = {}
    async with _runs(directory, direct, way="direct") as runs:
        await _one(runs, direct, "warm")
        firsts = []
        for number in range(ONE_BY_ONE):
            firsts.append((await _one(runs, direct, f"a{number}"))[0])
            floors.append(floor.commit_ms())
        figures |= _spread("direct_first_line", firsts)
        began_s, tasks = time.perf_counter(), []
        for number in range(PER_S * SECONDS):
            await asyncio.sleep(max(0.0, began_s + number / PER_S - time.perf_counter()))
            tasks.append(asyncio.create_task(_one(runs, direct, f"b{number}")))
        figures |= _spread(f"direct_first_line_at_{PER_S}_per_s", [first for first, _ in await asyncio.gather(*tasks)])
    async with _runs(directory, queue, way="queue") as runs:
        await _one(runs, queue, "warm")
        figures |= _spread("queue_first_line", [(await _one(runs, queue, f"c{n}"))[0] for n in range(BY_QUEUE)])
    floor.close()
    return figures | {"fsynced_commit_ms": round(statistics.median(floors), 3)}


async def _cpu(directory: Path, *, way: Literal["queue", "direct"], runs_max: int) -> dict[str, float]:
    """Start many at once, nobody following, and take what one costs."""
    work = Work()
    async with _runs(directory, work, way=way) as runs:
        await _one(runs, work, "warm")
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await asyncio.gather(*(_one(runs, work, f"d{number}") for number in range(runs_max)))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return {
        f"{way}_cpu_ms_per_run": round(cpu_s * 1000 / runs_max, 3),
        f"{way}_runs_per_s": round(runs_max / wall_s, 1),
    }


async def _followers(directory: Path) -> dict[str, float]:
    """Hold many runs in their first step, each with a follower; then let all go, and count what is delivered."""
    work = Work()
    work.gate.clear()
    async with _runs(directory, work, way="direct") as runs:
        started = await asyncio.gather(
            *(runs.start("bench", subject=f"e{number}", arguments={}) for number in range(MANY))
        )
        while len(work.began_s) < MANY:
            await asyncio.sleep(0.01)
        # What is waited for stands still: three events have been told, the fourth will come with the gate.
        seen = [0] * MANY
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()

        async def follow(number: int) -> None:
            async for _ in runs.follow(run=started[number].id):
                seen[number] += 1

        tasks = [asyncio.create_task(follow(number)) for number in range(MANY)]
        while min(seen) < 3:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        idle_s = time.process_time()
        await asyncio.sleep(3.0)
        idle_s = time.process_time() - idle_s
        waiting, cpu_s, wall_s = sum(seen), time.process_time(), time.perf_counter()
        work.gate.set()
        await asyncio.gather(*tasks)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return {
        "followers": MANY,
        "bytes_per_waiting_follower": round((after - before) / MANY),
        "idle_cpu_percent": round(idle_s / 3.0 * 100, 2),
        "events_delivered": sum(seen) - waiting,
        "cpu_ms_per_event_written_and_delivered": round(cpu_s * 1000 / (sum(seen) - waiting), 4),
        "events_per_s": round((sum(seen) - waiting) / wall_s, 1),
    }


def measure() -> dict[str, float]:
    """Return the figures, and their ratios to the queue and to one fsynced commit of the same run."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        figures |= asyncio.run(_latency(Path(directory)))
    with tempfile.TemporaryDirectory() as directory:
        figures |= asyncio.run(_cpu(Path(directory), way="direct", runs_max=MANY))
        figures |= asyncio.run(_cpu(Path(directory), way="queue", runs_max=BY_QUEUE))
    with tempfile.TemporaryDirectory() as directory:
        figures |= asyncio.run(_followers(Path(directory)))
    return figures | {
        "first_line_vs_queue": round(figures["queue_first_line_p50_ms"] / figures["direct_first_line_p50_ms"], 1),
        "first_line_vs_commit": round(figures["direct_first_line_p50_ms"] / figures["fsynced_commit_ms"], 2),
        "cpu_vs_queue": round(figures["queue_cpu_ms_per_run"] / figures["direct_cpu_ms_per_run"], 1),
    }


if __name__ == "__main__":
    show(measure(), form="10.3f")
