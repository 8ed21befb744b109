"""How long after a client left a tool's server hears that its call is cancelled.

python -m bench.bench_serve_disconnect

The whole way: a client of chat completions on a real port, the run, the guard, and an MCP server whose tool never answers.
Today's protocol cancels by closing the answer's stream, the one before by `notifications/cancelled`: both are measured.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests._mcp_bench import ERAS, Era
from tests._mcp_rogue import rogue
from tests.doors._agent_tools_bench import server_table
from tests.doors._chat_bench import calls
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import provider
from tests.doors._wire_bench import CHAT, Wire, a_wire, settings_of

from quell.config import AuraSettings

ROUNDS = 10
_MORE = '[quell]\nreads = ["hang"]\non_disconnect = "cancel"\nevidence = "off"\n'
_WAIT_S = 20.0


async def _take(place: Path, era: Era) -> list[float]:
    late_ms: list[float] = []
    async with provider(calls("hang", n=1)) as model, rogue(era) as server:
        file = file_of("sre", model.url, more=server_table("bad", server.url) + _MORE)
        settings = settings_of(place / "state", aura=AuraSettings())
        async with a_wire(settings, agents_of(place / "agents", file)) as wire:
            for _ in range(ROUNDS):
                before, told = len(server.calls), len(server.cancelled) + len(server.gone)
                asking = asyncio.create_task(_ask(wire))
                await _until(lambda before=before: len(server.calls) > before)
                await asyncio.sleep(0.05)
                asking.cancel()
                began_s = time.perf_counter()
                await _until(lambda told=told: len(server.cancelled) + len(server.gone) > told)
                late_ms.append((time.perf_counter() - began_s) * 1000)
                await asyncio.wait({asking})
    return late_ms


async def _ask(wire: Wire) -> None:
    body = {"messages": [{"role": "user", "content": "Hang, please."}], "stream": True}
    async with wire.http.stream("POST", CHAT, json=body) as response:
        async for _ in response.aiter_lines():
            pass


async def _until(happened: object) -> None:
    async with asyncio.timeout(_WAIT_S):
        while not happened():  # type: ignore[operator]  # a lambda
            await asyncio.sleep(0.001)


def measure() -> dict[str, float]:
    """Return the median and the longest time of each protocol, in milliseconds."""
    found: dict[str, float] = {}
    for era in ERAS:
        with tempfile.TemporaryDirectory() as directory:
            late_ms = asyncio.run(_take(Path(directory), era))
        found |= {f"{era}_p50_ms": round(statistics.median(late_ms), 1), f"{era}_max_ms": round(max(late_ms), 1)}
    return found


if __name__ == "__main__":
    print(measure())
