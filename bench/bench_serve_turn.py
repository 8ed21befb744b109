"""What Quell itself takes for one question with two model calls and one tool: processor time, durable and guarded.

python -m bench.bench_serve_turn [--json]

The model is scripted and the tool does nothing, so that all of it is ours: the run, its steps and events on SQLite, the
guard, the ledger of calls and the audit.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.doors._agent_bench import agent_room

from quell.domain import CallWanted
from quell.models._scripted import Turn, says, wants

WARM = 5
ROUNDS = 40
_SEARCH = CallWanted(id="x", name="logs_search", arguments='{"service": "web", "query": "timeout"}')


async def _take(directory: Path) -> tuple[list[float], list[float]]:
    def turns(request: object, *_: object) -> Turn:
        last = request.messages[-1]  # type: ignore[attr-defined]  # a ModelRequest
        return says("The web shop waits for its database [e1].") if last.role == "tool" else wants(_SEARCH)

    cpu_ms: list[float] = []
    wall_ms: list[float] = []
    async with agent_room(directory, turns, way="direct") as room:
        for number in range(WARM + ROUNDS):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            answer = await room.ask(f"Why is the web shop slow ({number})?")
            cpu_ms.append((time.process_time() - began_cpu_s) * 1000)
            wall_ms.append((time.perf_counter() - began_s) * 1000)
            assert (answer.turns, answer.calls, answer.failed) == (2, 1, 0), answer
    return cpu_ms[WARM:], wall_ms[WARM:]


def measure() -> dict[str, float]:
    """Return the medians in milliseconds."""
    with tempfile.TemporaryDirectory() as directory:
        cpu_ms, wall_ms = asyncio.run(_take(Path(directory)))
    return {
        "cpu_p50_ms": round(statistics.median(cpu_ms), 2),
        "cpu_p90_ms": round(statistics.quantiles(cpu_ms, n=10)[-1], 2),
        "wall_p50_ms": round(statistics.median(wall_ms), 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print the figures."""
    figures = measure()
    print(json.dumps(figures) if "--json" in sys.argv[1:] else "\n".join(f"{k:16} {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
