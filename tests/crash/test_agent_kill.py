"""A process in which an agent answers is killed after every single step: nothing that was kept is asked or called again."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.doors._model_bench import delta, end, provider, sse, usage

ROOT = Path(__file__).parents[2]
STEPS = ("model.0", "tool.1.1", "tool.1.2", "model.1")


@pytest.mark.crash
@pytest.mark.timeout(120)
def test_killed_after_every_step_an_agent_gives_the_same_answer(tmp_path: Path) -> None:
    looks = [
        {"index": at, "id": f"c{at}", "function": {"name": "logs_search", "arguments": json.dumps(given)}}
        for at, given in enumerate(({"service": "web", "query": "a"}, {"service": "api", "query": "b"}))
    ]
    turns = (
        sse(delta(tool_calls=looks), end("tool_calls"), usage(100, 9)),
        sse(delta("There were 17 errors [e1]."), end(), usage(100, 9)),
    )

    async def story() -> tuple[list[int], str, int]:
        codes: list[int] = []
        async with provider(*turns) as server:
            for kill_after in (*STEPS, ""):
                command = (sys.executable, "-m", "tests.crash._agent_worker", str(tmp_path), server.url, kill_after)
                process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
                out, _ = await asyncio.wait_for(process.communicate(), 60)
                codes.append(process.returncode or 0)
            return codes, out.decode(), len(server.bodies)

    codes, out, asked = asyncio.run(story())
    assert codes == [-signal.SIGKILL] * len(STEPS) + [0], "every step is one at which a life ends"
    assert asked == 2, "each turn of the model was asked for once"
    made = Counter(line.split()[0] for line in (tmp_path / "calls").read_text().splitlines())
    # The second was under way when the first was kept: it may be read once more, as reads may.
    assert (made["1.1"], made["1.2"] <= 2, set(made)) == (1, True, {"1.1", "1.2"})
    assert json.loads(out)["result"] == {"text": "There were 17 errors [e1].", "stop": "answered"}
