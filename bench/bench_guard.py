"""What the guard costs: a permitted read through the one path beside the same tool called bare, on SQLite.

python -m bench.bench_guard [--json]
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.doors._hand_bench import Room, hand_room

from bench._shown import show
from quell.config import BudgetSettings
from quell.domain import CallRequest, Facts, OutcomeKind, ToolCall, ToolOutcome
from quell.governance import freeze

ROUNDS = 5
CALLS = 200
ARGUMENTS = json.dumps({"service": "web", "query": "timeout"})
CONTENT = json.dumps({"ok": True, "lines": ["checkout answered in 12 ms", "checkout answered in 14 ms"]})
PLAIN = ToolOutcome(
    call="one", tool="logs_search", kind=OutcomeKind.OK, content=CONTENT, is_json=True, size_bytes=len(CONTENT)
)


async def take(room: Room, *, round_number: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of processor time of guarded and of bare calls, taken in turn."""
    toolbox = room.authority.toolbox
    tool = next(tool for tool in toolbox.catalog() if tool.name == "logs_search")
    guarded, bare = [], []
    for number in range(CALLS):
        wanted = ToolCall(id=f"r{round_number}.{number}", tool=tool.name, arguments=ARGUMENTS)
        # The tools of the suite plant secrets in what they say; an ordinary answer holds none.
        room.world.says += [PLAIN, PLAIN]
        began_s = time.process_time()
        outcome = await toolbox.call(wanted, caller=room.caller())
        guarded.append((time.process_time() - began_s) * 1000)
        assert getattr(outcome, "is_citable", False), outcome
        call = freeze(tool, run=room.run, call="bare", arguments=ARGUMENTS, environment="production")
        request = CallRequest(call=call, tool=tool, caller=room.caller())
        began_s = time.process_time()
        await room.world.use(request, "")
        bare.append((time.process_time() - began_s) * 1000)
    return guarded, bare


def decisions_per_s(room: Room) -> float:
    """Return how many calls the policies decide in one second of one core."""
    tool = next(tool for tool in room.authority.toolbox.catalog() if tool.name == "logs_search")
    call = freeze(tool, run=room.run, call="one", arguments=ARGUMENTS, environment="production")
    request = CallRequest(call=call, tool=tool, caller=room.caller())
    policy, facts = room.authority.guard.policy, Facts()
    began_s, count = time.process_time(), 0
    while time.process_time() - began_s < 1.0:
        policy.admit(call, tool=tool, principal=request.caller.principal, facts=facts)
        count += 1
    return count / (time.process_time() - began_s)


async def _measured() -> dict[str, float]:
    free = BudgetSettings(run_calls=1_000_000, run_minutes=100_000.0, run_bytes=10**12, day_calls=10**9)
    guarded: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="quell-bench-guard-") as directory:
        async with hand_room(Path(directory), budgets=free) as room:
            await take(room, round_number=-1)
            for number in range(ROUNDS):
                one, other = await take(room, round_number=number)
                guarded += one
                bare += other
            rate = decisions_per_s(room)
    added = statistics.median(guarded) - statistics.median(bare)
    return {
        "guarded_p50_ms": round(statistics.median(guarded), 3),
        "bare_p50_ms": round(statistics.median(bare), 4),
        "added_p50_ms": round(added, 3),
        "calls": len(guarded),
        "decisions_per_s": round(rate),
    }


def measure() -> dict[str, float]:
    """Return the processor time of a guarded and of a bare call, and decisions per second of one core."""
    return asyncio.run(_measured())


if __name__ == "__main__":
    show(measure(), form="10.3f")
