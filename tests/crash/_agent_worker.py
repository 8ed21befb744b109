"""A real process in which an agent answers, asking a model at the address that it is given; the test kills it.

Writes a line for every tool call into `calls`, and prints how the run ended. With the name of a step it dies itself, right
after that step was kept and before anything else can happen.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from quell.agent import Agent, Role
from quell.app import open_authority
from quell.config import JournalSettings, Secret, Settings
from quell.domain import CallRequest, Message, OutcomeKind, ToolOutcome
from quell.models._openai import Endpoint, OpenAIModel
from quell.runs import Done, Next, RunContext, Runs, WaitUntil, system_clock
from quell.tools import LocalHand
from tests.doors._agent_bench import caller_of
from tests.doors._hand_bench import TOOLS

T = TypeVar("T")


async def life(directory: Path, url: str, kill_after: str = "") -> None:
    """Answer the one question of this directory, or go on with it."""
    settings = Settings(state_dir=directory, journal=JournalSettings(url=Secret(""), executor="the-one", lease_s=2.0))
    runs = await Runs.open(settings.journal, state_dir=directory, clock=system_clock, entropy=os.urandom, version="v1")

    async def use(request: CallRequest, _key: str) -> ToolOutcome:
        with (directory / "calls").open("a") as log:
            log.write(f"{request.call.id} {request.call.arguments}\n")
        content = json.dumps({"errors": 17})
        return ToolOutcome(call=request.call.id, tool=request.call.tool, kind=OutcomeKind.OK, content=content)

    hands = [(tool, LocalHand(tool.name, use)) for tool in TOOLS]
    authority = await open_authority(runs, settings, clock=system_clock, entropy=os.urandom, env={}, builtin=hands)
    endpoint = Endpoint(provider="openai", base_url=url, headers={"Authorization": "Bearer key-of-the-test"})
    model = OpenAIModel(endpoint, name="m", clock=lambda: datetime.now(UTC))  # noqa: TID251 - a process of its own
    role = Role(name="sre", preamble="You look after a small shop.")
    agent = Agent(role, model=model, toolbox=authority.toolbox, monotonic=time.monotonic)

    async def chat(context: RunContext) -> Next:
        keep = context.step

        async def step(
            name: str, work: Callable[[], Awaitable[T]], *, returns: type[T], timeout_s: float, attempts: int = 1
        ) -> T:
            value = await keep(name, work, returns=returns, timeout_s=timeout_s, attempts=attempts)
            if name == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        context.step = step  # type: ignore[method-assign]  # the one place where a test may cut the power
        ended = await agent.begin(context, [Message(role="user", text="Why?")], caller=caller_of(context))
        assert not isinstance(ended, WaitUntil)
        return Done(result={"text": ended.text, "stop": ended.stop.value})

    runs.register("chat", chat)
    await runs.launch()
    try:
        run = await runs.start("chat", subject="Why?", arguments={}, key="the-question")
        ended = await runs.wait(run.id, timeout_s=30)
        print(json.dumps({"status": ended.status, "result": json.loads(ended.result or "{}")}), flush=True)
    finally:
        await runs.close()
        await model.close()
        await authority.close()


if __name__ == "__main__":
    asyncio.run(life(Path(sys.argv[1]), *sys.argv[2:]))
