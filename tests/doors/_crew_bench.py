"""A crew with scripted models on real durable runs: each mind says what its script says, and the small world is behind them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from quell.agent import AgentAnswer, Crew, Live, Role, WorkerSpec
from quell.app import open_authority
from quell.config import JournalSettings, OrchestrationSettings, Secret, Settings, StoreSettings
from quell.domain import CallWanted, Message, ModelRequest, Parked, Run
from quell.models import ScriptedModel
from quell.models._scripted import Turn, wants
from quell.runs import Done, Next, RunContext, Runs, WaitUntil, system_clock
from tests import _canaries
from tests.doors._agent_bench import Ground, caller_of
from tests.doors._hand_bench import SmallWorld

Script = Iterable[Turn] | Callable[[ModelRequest], Turn]


def call(name: str, **given: object) -> CallWanted:
    return CallWanted(id="x", name=name, arguments=json.dumps(given))


def search(query: str = "error", service: str = "web", **more: object) -> CallWanted:
    return call("logs_search", service=service, query=query, **more)


def responds(text: str, **more: object) -> Turn:
    return wants(call("respond_directly", response=text, routing_rationale="known"), **more)  # type: ignore[arg-type]  # usage


def plans(*steps: Mapping[str, object], goal: str = "find out", **more: object) -> Turn:
    given = {"goal": goal, "steps": list(steps), "routing_rationale": "look", "planning_summary": "looking"}
    return wants(call("create_plan", **given), **more)  # type: ignore[arg-type]  # usage


def asks(question: str, *options: str) -> Turn:
    return wants(call("request_clarification", question=question, options=list(options), routing_rationale="unclear"))


def step(text: str, worker: str = "reader") -> dict[str, object]:
    return {"type": "task", "task": text, "worker": worker}


def submits(result: str, *, confidence: str = "high", summary: str = "done", **more: object) -> Turn:
    return wants(call("submit_result", summary=summary, result=result, confidence=confidence), **more)  # type: ignore[arg-type]  # usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Mind:
    """A worker and its script."""

    script: Script
    tools: tuple[str, ...] | None = ("logs_search",)
    turns_max: int = 8
    evidence: str = "mark"
    description: str = "reads logs"


@dataclass(slots=True, kw_only=True)
class CrewRoom(Ground):
    """A crew and what it stands on."""

    coordinator: ScriptedModel
    workers: Mapping[str, ScriptedModel]
    pauses: list[float] = field(default_factory=list)

    async def ask(self, question: str, *, session: str = "s1", timeout_s: float = 15.0) -> AgentAnswer:
        return await self.answer(await self.start(question, session=session), timeout_s=timeout_s)

    async def start(self, question: str, *, session: str = "s1", tenant: str = "local", user: str = "owner") -> Run:
        arguments = {"question": question, "session": session, "tenant": tenant, "user": user}
        return await self.runs.start("crew", subject=question, arguments=arguments)

    async def names(self, run: Run) -> list[str]:
        """Return the names of what happened, without steps, turns and calls."""
        left_out = ("step.", "run.", "effect.", "agent.turn", "agent.call", "tool.")
        return [event.name for event in await self.runs.events(run=run.id) if not event.name.startswith(left_out)]

    async def parked(self, run: Run, *, timeout_s: float = 8.0) -> Parked:
        """Wait until the run waits for people, and return what it waits for."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while loop.time() < ends_at:
            found = await self.told(run, "agent.call_parked")
            stored = await self.runs.get(run.id)
            if found and stored.status == "waiting":
                return msgspec.convert(found[-1], type=Parked)
            await asyncio.sleep(0.02)
        raise AssertionError("the run does not wait for people")


@asynccontextmanager
async def crew_room(
    state_dir: Path,
    coordinator: Script | ScriptedModel,
    workers: Mapping[str, Mind],
    *,
    settings: OrchestrationSettings | None = None,
    role: Role | None = None,
    memory: Path | None = None,
    world: SmallWorld | None = None,
    models: Mapping[str, ScriptedModel] | None = None,
    chance: float = 0.0,
    **options: object,
) -> AsyncIterator[CrewRoom]:
    """Open everything, register the work `crew`, and launch."""
    kept = Settings(
        state_dir=state_dir,
        journal=JournalSettings(url=Secret(""), lease_s=2.0),
        store=StoreSettings(password=Secret(_canaries.IN_SETTINGS)),
    )
    runs = await Runs.open(kept.journal, state_dir=state_dir, clock=system_clock, entropy=os.urandom, version="v1")
    world, live, pauses = world or SmallWorld(), Live(), []
    model = coordinator if isinstance(coordinator, ScriptedModel) else ScriptedModel(coordinator)
    scripted = dict(models or {name: ScriptedModel(mind.script, name=name) for name, mind in workers.items()})
    try:
        authority = await open_authority(
            runs, kept, clock=system_clock, entropy=os.urandom, env=_canaries.ENVIRONMENT, builtin=world.hands()
        )
        try:
            specs = {
                name: WorkerSpec(
                    role=Role(
                        name=name,
                        preamble=f"You are {name}.",
                        tools=mind.tools,
                        turns_max=mind.turns_max,
                        evidence="off" if mind.evidence == "off" else "mark",
                    ),
                    model=scripted[name],
                    description=mind.description,
                )
                for name, mind in workers.items()
            }

            async def pause(seconds: float) -> None:
                pauses.append(seconds)

            async def work(context: RunContext) -> Next:
                crew = Crew(
                    role or Role(name="lead", preamble="You look after a small shop.", tools=()),
                    model=model,
                    workers=specs,
                    toolbox=authority.toolbox,
                    settings=settings or OrchestrationSettings(enabled=True),
                    monotonic=time.monotonic,
                    live=live,
                    memory_dir=str(memory) if memory else "",
                    session=str(context.arguments["session"]),
                    pause=pause,
                    chance=lambda: chance,
                    **options,  # type: ignore[arg-type]  # options of a crew
                )
                caller = caller_of(context)
                tenant, user = str(context.arguments["tenant"]), str(context.arguments["user"])
                caller = replace(caller, principal=replace(caller.principal, tenant=tenant, user=user))
                if context.state:
                    ended = await crew.go_on(context, context.state, caller=caller)
                else:
                    question = Message(role="user", text=str(context.arguments["question"]))
                    ended = await crew.begin(context, (question,), caller=caller)
                return ended if isinstance(ended, WaitUntil) else Done(result={"stop": ended.stop.value})

            runs.register("crew", work)
            await runs.launch()
            yield CrewRoom(
                runs=runs,
                authority=authority,
                world=world,
                coordinator=model,
                workers=scripted,
                live=live,
                pauses=pauses,
            )
        finally:
            await runs.close()
            await authority.close()
    finally:
        await runs.close()


def manifest_in(memory: Path, run: Run, *, session: str = "s1") -> dict[str, object]:
    found: dict[str, object] = json.loads((memory / session / run.id / "manifest.json").read_text(encoding="utf-8"))
    return found


def texts(requests: Sequence[ModelRequest]) -> list[str]:
    """Return what was asked each time, as one text."""
    return ["\n".join(message.text for message in request.messages) for request in requests]
