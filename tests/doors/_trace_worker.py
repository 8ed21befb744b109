"""An agent in a process of its own, which kills itself in the second turn of its first life: `_trace_worker.py DIR URL LIFE`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from quell import telemetry
from quell.domain import CallWanted, ModelRequest
from quell.models._scripted import Pause, Turn, says, wants
from tests.doors._agent_bench import agent_room
from tests.doors._trace_bench import CALLER, told

SEARCH = CallWanted(id="x", name="logs_search", arguments=json.dumps({"service": "web", "query": "error"}))


async def live(state_dir: Path, url: str, life: str) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
    async with told(state_dir, env, instance=life) as opened:

        def first(request: ModelRequest) -> Turn:
            if request.messages[-1].role == "user":
                return wants(SEARCH)
            asyncio.get_running_loop().create_task(die())
            return (Pause(seconds=30),)

        async def die() -> None:
            await opened.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        async with agent_room(state_dir, first if life == "first" else [says("Fine.")]) as room:
            if life == "first":
                with telemetry.span("quell.request", parent=telemetry.extract({"traceparent": CALLER})):
                    run = await room.runs.start("chat", subject="web", arguments={"question": "Why?"})
            else:
                (run,) = await room.runs.list(limit=1)
            await room.answer(run, timeout_s=30)


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
