"""An agent with a scripted model on real durable runs, with the guard and the small world of tools behind it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from quell.agent import Accounts, Agent, AgentAnswer, Live, Role
from quell.app import Authority, open_authority
from quell.config import JournalSettings, Secret, Settings, StoreSettings
from quell.domain import Level, Message, Parked, Principal, Run, ToolCaller
from quell.models import Model
from quell.models._scripted import ScriptedModel, Turn
from quell.runs import Done, Next, RunContext, Runs, WaitUntil, system_clock
from tests import _canaries
from tests.doors._hand_bench import SmallWorld


@dataclass(slots=True, kw_only=True)
class Ground:
    """What agents stand on, and what is seen of them there."""

    runs: Runs
    authority: Authority
    world: SmallWorld
    live: Live

    async def told(self, run: Run, name: str) -> list[dict[str, object]]:
        """Return the bodies of all events of a name."""
        events = await self.runs.events(run=run.id)
        return [msgspec.json.decode(event.body) for event in events if event.name == name]

    async def answer(self, run: Run, *, timeout_s: float = 15.0) -> AgentAnswer:
        ended = await self.runs.wait(run.id, timeout_s=timeout_s)
        assert ended.status == "succeeded", ended
        (told,) = await self.told(run, "agent.answered")
        return msgspec.convert(told, type=AgentAnswer)

    async def approve(self, parked: Parked, run: Run) -> None:
        with self.runs.database.writing() as connection:
            self.authority.guard.approvals.decide(
                connection,
                parked.approval,
                by=Principal(user="bob", roles=("approver",)),
                verdict="approve",
                digest_seen=parked.digest,
                reason="",
            )
        assert await self.runs.wake(run.id)


@dataclass(slots=True, kw_only=True)
class AgentRoom(Ground):
    """An agent and what it stands on."""

    model: Model
    answers: dict[str, AgentAnswer] = field(default_factory=dict)

    async def ask(self, question: str, *, timeout_s: float = 10.0) -> AgentAnswer:
        run = await self.start(question)
        return await self.answer(run, timeout_s=timeout_s)

    async def start(self, question: str, *, past: Sequence[Message] = ()) -> Run:
        said = [msgspec.to_builtins(message) for message in past]
        return await self.runs.start("chat", subject=question, arguments={"question": question, "past": said})

    async def parked(self, run: Run, *, timeout_s: float = 5.0) -> Parked:
        """Wait until the run waits for people, and return what it waits for."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while loop.time() < ends_at:
            for event in await self.runs.events(run=run.id):
                if event.name == "agent.call_parked":
                    return msgspec.json.decode(event.body, type=Parked)
            await asyncio.sleep(0.02)
        raise AssertionError("the run does not wait for people")


@asynccontextmanager
async def agent_room(
    state_dir: Path,
    turns: Iterable[Turn] | Callable[..., Turn] | Model,
    *,
    role: Role | None = None,
    accounts: Accounts | None = None,
    window: int | None = None,
    way: Literal["queue", "direct"] = "queue",
    world: SmallWorld | None = None,
) -> AsyncIterator[AgentRoom]:
    """Open everything, register the work `chat`, and launch."""
    settings = Settings(
        state_dir=state_dir,
        journal=JournalSettings(url=Secret(""), lease_s=2.0),
        store=StoreSettings(password=Secret(_canaries.IN_SETTINGS)),
    )
    runs = await Runs.open(settings.journal, state_dir=state_dir, clock=system_clock, entropy=os.urandom, version="v1")
    world, live = world or SmallWorld(), Live()
    model = turns if hasattr(turns, "stream") else ScriptedModel(turns, window=window)
    try:
        authority = await open_authority(
            runs, settings, clock=system_clock, entropy=os.urandom, env=_canaries.ENVIRONMENT, builtin=world.hands()
        )
        try:
            agent = Agent(
                role or Role(name="sre", preamble="You look after a small shop."),
                model=model,  # type: ignore[arg-type]  # a model by now
                toolbox=authority.toolbox,
                live=live,
                accounts=accounts,
                monotonic=time.monotonic,
            )

            async def chat(context: RunContext) -> Next:
                question = str(context.arguments["question"])
                caller = caller_of(context)
                if context.state:
                    ended = await agent.go_on(context, context.state, caller=caller)
                else:
                    past = msgspec.convert(context.arguments.get("past", ()), type=tuple[Message, ...])
                    said = (*past, Message(role="user", text=question))
                    ended = await agent.begin(context, said, caller=caller)
                return ended if isinstance(ended, WaitUntil) else Done(result={"stop": ended.stop.value})

            runs.register("chat", chat, way=way)
            await runs.launch()
            yield AgentRoom(runs=runs, authority=authority, world=world, model=model, live=live)  # type: ignore[arg-type]  # as above
        finally:
            await runs.close()
            await authority.close()
    finally:
        await runs.close()


def caller_of(context: RunContext) -> ToolCaller:
    principal = Principal(
        user="ann",
        roles=("operator",),
        agent="sre",
        agent_tools=("*",),
        workflow="chat",
        workflow_digest="w1",
        workflow_tools=("*",),
        level=Level.APPROVE_EACH,
    )
    return ToolCaller(principal=principal, run=context.run.id, fence=context.fence)


__all__ = ["AgentRoom", "agent_room", "caller_of"]
