"""The built-in model with its senses on a real desk and real durable runs, over a system that a reader tells of."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from quell.agent import Agent, AgentAnswer, Role
from quell.app import Authority, open_authority
from quell.app._senses import Senses, desired_of
from quell.app._senses_tools import sense_tools
from quell.config import InvestigationSettings, JournalSettings, Secret, Settings, StoreSettings
from quell.domain import (
    Answer,
    CallWanted,
    EdgeShift,
    Gap,
    Level,
    Message,
    ModelReply,
    ModelRequest,
    Observation,
    Principal,
    Question,
    QuestionKind,
    Sensed,
    ToolCaller,
    ToolSpec,
)
from quell.incidents import Desk
from quell.models import ask
from quell.models._builtin import BuiltinModel
from quell.runs import Done, Next, RunContext, Runs, WaitUntil
from quell.signals import Reader
from tests import _canaries
from tests._story import NOON, RecordedReader, operation
from tests.conftest import FakeClock
from tests.doors._hand_bench import SmallWorld

SPECS = tuple(
    ToolSpec(name=tool.name, description=tool.description, parameters=tool.input_schema) for tool in sense_tools()
)
ROLE = Role(name="builtin", preamble="", turns_max=6)


@dataclass(kw_only=True)
class ChangingReader:
    """A reader whose rows may be exchanged while it is asked; it keeps to what it is told."""

    name: str = "made"
    rows: Mapping[QuestionKind, Sequence[Observation]] = field(default_factory=dict)
    gaps: frozenset[QuestionKind] = frozenset()
    held: frozenset[QuestionKind] = frozenset()
    """Answered only when it is let go."""
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        assert timeout_s > 0
        if question.kind in self.held:
            await self.go.wait()
        if question.kind in self.gaps:
            return Gap(question=question.kind, source=self.name, query="", reason="timeout", detail="too late")
        return Answer(question=question, source=self.name, query="", rows=tuple(self.rows.get(question.kind, ())))

    async def check(self) -> list[str]:
        return []


def calm() -> dict[QuestionKind, tuple[Observation, ...]]:
    """Return what a store says of a system where nothing happens."""
    services = ("web", "checkout", "payment", "catalogue", "order-worker")
    # As many calls a second in five minutes as in the fifteen before.
    steady = tuple(
        replace(
            operation(name, f"GET /{name}", errors=0, p95_ms=38.0, before=0),
            total_ms=12_000.0,
            p50_ms=18.0,
            calls_before=1_800,
            total_ms_before=36_000.0,
        )
        for name in services
    )
    return {
        QuestionKind.ERROR_RATES: steady,
        QuestionKind.EDGE_GAPS: (
            _edge("web", "checkout", "service"),
            _edge("checkout", "payment", "service"),
            _edge("payment", "orders-db", "database"),
        ),
    }


def _edge(caller: str, callee: str, kind: str) -> EdgeShift:
    return EdgeShift(
        caller=caller, callee=callee, callee_kind="database" if kind == "database" else "service", calls=600, errors=0,
        unanswered=0, client_ms=23.0, client_p95_ms=41.0, server_ms=None, gap_ms=None, calls_before=1800,
        errors_before=0, unanswered_before=0, client_ms_before=23.0, client_p95_ms_before=41.0, server_ms_before=None,
        gap_ms_before=None,
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class House:
    """A desk, an agent without a language model, and what they stand on."""

    desk: Desk
    runs: Runs
    clock: FakeClock
    authority: Authority
    reader: Reader

    async def ask(self, *said: str) -> AgentAnswer:
        """Ask the last of these after the others, questions and answers in turn, as a chat client sends them."""
        run = await self.runs.start("chat", subject=said[-1], arguments={"said": list(said)})
        return await self.answer(run.id)

    async def answer(self, run: str) -> AgentAnswer:
        """Wait for the answer of a run."""
        ended = await self.runs.wait(run, timeout_s=20)
        assert ended.status == "succeeded", ended
        events = await self.runs.events(run=run, limit=1_000)
        (told,) = [event.body for event in events if event.name == "agent.answered"]
        return msgspec.json.decode(told, type=AgentAnswer)

    async def calls(self, subject: str) -> list[tuple[str, dict[str, object]]]:
        """Return the calls that the run of a question made."""
        (run,) = [run for run in await self.runs.list(limit=50, kind="chat") if run.subject == subject]
        bodies = [json.loads(e.body) for e in await self.runs.events(run=run.id) if e.name == "agent.call_asked"]
        return [(body["tool"], json.loads(body["arguments"])) for body in bodies]


@asynccontextmanager
async def house(
    state_dir: Path,
    *,
    reader: Reader | None = None,
    at: datetime = NOON + timedelta(seconds=60),
    deadline_s: float = 60.0,
    role: Role = ROLE,
    read_timeout_s: float = 0.5,
) -> AsyncIterator[House]:
    """Open everything; the work `chat` answers with the built-in model."""
    settings = Settings(
        state_dir=state_dir,
        store=StoreSettings(password=Secret(_canaries.IN_SETTINGS)),
        journal=JournalSettings(url=Secret(""), lease_s=2.0),
        investigation=InvestigationSettings(settle_s=0.0, read_timeout_s=read_timeout_s),
    )
    clock = FakeClock()
    clock.at = at
    runs = await Runs.open(settings.journal, state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    seeing = reader or RecordedReader()
    held: list[Authority] = []
    try:
        desk = Desk(runs=runs, readers=[seeing], settings=settings.investigation, clock=clock, entropy=os.urandom)
        senses = Senses(
            desk=desk,
            runs=runs,
            readers=[seeing],
            settings=settings.investigation,
            clock=clock,
            desired=desired_of(lambda: held[0], environment="production"),
        )
        builtin = [*senses.hands(), *SmallWorld().hands()]
        authority = await open_authority(
            runs, settings, clock=clock, entropy=os.urandom, env=_canaries.ENVIRONMENT, builtin=builtin
        )
        held.append(authority)
        agent = Agent(role, model=BuiltinModel(), toolbox=authority.toolbox, monotonic=time.monotonic)

        async def chat(context: RunContext) -> Next:
            said = context.arguments["said"]
            assert isinstance(said, list)
            caller = _caller(context, deadline_s=deadline_s)
            if context.state:
                ended = await agent.go_on(context, context.state, caller=caller)
            else:
                ended = await agent.begin(context, conversation(*said), caller=caller)
            return ended if isinstance(ended, WaitUntil) else Done(result={"stop": ended.stop.value})

        runs.register("chat", chat)
        await runs.launch()
        yield House(desk=desk, runs=runs, clock=clock, authority=authority, reader=seeing)
    finally:
        await runs.close()
        for each in held:
            await each.close()


def _caller(context: RunContext, *, deadline_s: float) -> ToolCaller:
    principal = Principal(
        user="ann",
        roles=("operator",),
        agent="builtin",
        agent_tools=("*",),
        workflow="chat",
        workflow_digest="w1",
        workflow_tools=("*",),
        level=Level.APPROVE_EACH,
    )
    return ToolCaller(principal=principal, run=context.run.id, fence=context.fence, deadline_s=deadline_s)


def conversation(*said: str) -> tuple[Message, ...]:
    """Return questions and answers in turn, the first one a question."""
    return tuple(Message(role="assistant" if place % 2 else "user", text=str(text)) for place, text in enumerate(said))


Answering = Callable[[str, Mapping[str, object]], Sensed | str]
"""Says what a sense brings: what it sensed, or the outcome with which it failed."""


def replied(request: ModelRequest) -> ModelReply:
    return asyncio.run(ask(BuiltinModel(), request, deadline_s=5))


def talked(
    *said: str, answering: Answering, tools: tuple[ToolSpec, ...] = SPECS
) -> tuple[str, list[tuple[str, dict[str, object]]], list[tuple[str, str]]]:
    """Have a question answered with made results; return the text, the calls, and the exhibits by id."""
    messages: list[Message] = [Message(role="system", text="You are an agent."), *conversation(*said)]
    calls: list[tuple[str, dict[str, object]]] = []
    exhibits: list[tuple[str, str]] = []
    for turn in range(6):
        reply = replied(ModelRequest(messages=tuple(messages), tools=tools))
        if not reply.calls:
            return reply.text, calls, exhibits
        wanted = tuple(replace(call, id=f"{turn}.{place}") for place, call in enumerate(reply.calls))
        messages.append(Message(role="assistant", calls=wanted))
        messages.extend(_result(call, answering, calls, exhibits) for call in wanted)
    raise AssertionError(f"the model calls without an end: {calls}")


def _result(
    call: CallWanted,
    answering: Answering,
    calls: list[tuple[str, dict[str, object]]],
    exhibits: list[tuple[str, str]],
) -> Message:
    arguments = json.loads(call.arguments)
    calls.append((call.name, arguments))
    brought = answering(call.name, arguments)
    outcome, body = (
        (brought, "(it failed)") if isinstance(brought, str) else ("ok", msgspec.json.encode(brought).decode())
    )
    identifier = f"e{len(exhibits) + 1}"
    exhibits.append((identifier, body if outcome == "ok" else ""))
    text = f'<result id="{identifier}" outcome="{outcome}">\n{body}\n</result>\nOnly 2 turns remain. Wrap up.'
    return Message(role="tool", call=call.id, tool=call.name, text=text)
