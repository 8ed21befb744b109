"""The hands of an agent: the calls of a turn are made, each as a step of the run, and what they bring is put into the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from quell.agent._live import Live, Moved
from quell.agent._render import SKILLS, Source, exhibit_of, result_text
from quell.agent._repeats import counted, judged
from quell.agent._route import unasked
from quell.agent._schemas import as_meant
from quell.agent._seat import Closing, Seat
from quell.agent._talk import Role, Talk
from quell.domain import (
    CallOrigin,
    CallProgress,
    CallWanted,
    Message,
    OutcomeKind,
    Parked,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.runs import RunContext
from quell.tools import Toolbox

STEP_SLACK_S = 30.0
_READS_AT_ONCE = 8

_NUDGE_LAST = "FINAL TURN: no tool can be called after this. Answer now from what you have."
_NUDGE_REMAINING = "Only {n} turns remain. Wrap up."
_NUDGE_REPEAT = "This call has brought the same result {n} times. Do something else, or answer with what you have."


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """A tool call that was made: its outcome, or that it waits for people."""

    outcome: ToolOutcome | None = None
    parked: Parked | None = None
    closing: Closing | None = None


class Hands:
    """Makes the calls of one agent; it keeps nothing of a conversation itself."""

    def __init__(self, role: Role, *, toolbox: Toolbox, seat: Seat, live: Live) -> None:
        """Take what calls are made with."""
        self._role = role
        self._toolbox = toolbox
        self._seat = seat
        self._live = live

    async def act(
        self, context: RunContext, talk: Talk, caller: ToolCaller
    ) -> tuple[Talk, list[Parked], Closing | None]:
        """Make the calls that wait, and return the conversation with what they brought: all at once when all of them only read, one after the other otherwise."""
        classes = {tool.name: tool.tool_class for tool in self._toolbox.catalog()}
        natives = {spec.name for spec in self._seat.specs}
        reads = all(classes.get(wanted.name) is ToolClass.READ for wanted in talk.waiting)
        principal = replace(caller.principal, is_tainted=caller.principal.is_tainted or talk.is_tainted)
        caller = replace(caller, principal=principal)
        acted: dict[str, Acted] = {}
        if reads and natives.isdisjoint(wanted.name for wanted in talk.waiting):
            gate = asyncio.Semaphore(_READS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                tasks = {
                    wanted.id: group.create_task(self._call(context, wanted, caller, gate)) for wanted in talk.waiting
                }
            return await self._heard(context, talk, {identifier: task.result() for identifier, task in tasks.items()})
        gate = asyncio.Semaphore(1)
        for wanted in talk.waiting:
            if wanted.name in natives:
                acted[wanted.id] = await self._own(context, wanted, caller)
            else:
                acted[wanted.id] = await self._call(context, wanted, caller, gate)
            if acted[wanted.id].outcome is None:
                break  # what comes after it may rest on it, or comes too late
        return await self._heard(context, talk, acted)

    async def _own(self, context: RunContext, wanted: CallWanted, caller: ToolCaller) -> Acted:
        await self._tell_asked(context, wanted)
        ended = await self._seat.use(context, wanted, caller=caller)
        return Acted(closing=ended) if isinstance(ended, Closing) else Acted(outcome=ended)

    async def _tell_asked(self, context: RunContext, wanted: CallWanted, *, intent: str = "") -> None:
        await context.emit(
            "agent.call_asked",
            key=f"{wanted.id}.asked",
            call=wanted.id,
            tool=wanted.name,
            arguments=wanted.arguments,
            intent=intent,
            agent=self._role.name,
            task=self._seat.tag,
        )

    async def _tell_started(self, context: RunContext, wanted: CallWanted) -> None:
        whose = {"agent": self._role.name, "task": self._seat.tag}
        await context.emit("agent.call_started", key=f"{wanted.id}.started", call=wanted.id, tool=wanted.name, **whose)

    async def _call(
        self, context: RunContext, wanted: CallWanted, caller: ToolCaller, gate: asyncio.Semaphore
    ) -> Acted:
        wanted, intent = self._plain(wanted)
        call = ToolCall(id=wanted.id, tool=wanted.name, arguments=wanted.arguments)

        def tell(progress: CallProgress) -> None:
            told = Moved(
                caller.run,
                wanted.id,
                wanted.name,
                progress.message,
                progress.done,
                progress.total,
                agent=self._role.name,
                task=self._seat.tag,
            )
            self._live.say(told)

        origin = CallOrigin.TEXT if wanted.form == "text" else caller.origin

        async def work() -> Acted:
            if self._role.asks == "person" and (refused := unasked(wanted)) is not None:
                return Acted(outcome=refused)
            told: list[asyncio.Task[None]] = []

            def started() -> None:
                if not told:
                    told.append(asyncio.create_task(self._tell_started(context, wanted)))

            heard = replace(caller, origin=origin, on_progress=tell, on_start=started)
            try:
                ended = await self._toolbox.call(call, caller=heard, explanation=intent)
            finally:
                await asyncio.gather(*told)
            return Acted(parked=ended) if isinstance(ended, Parked) else Acted(outcome=ended)

        async with gate:
            await self._tell_asked(context, wanted, intent=intent)
            return await context.step(
                f"tool.{wanted.id}", work, returns=Acted, timeout_s=caller.deadline_s + STEP_SLACK_S
            )

    async def _heard(
        self, context: RunContext, talk: Talk, acted: Mapping[str, Acted]
    ) -> tuple[Talk, list[Parked], Closing | None]:
        """Put what came into the conversation, in the order in which it was wanted."""
        parked: list[Parked] = []
        left: list[CallWanted] = []
        closing: Closing | None = None
        whose = {"agent": self._role.name, "task": self._seat.tag}
        for wanted in talk.waiting:
            ended = acted.get(wanted.id)
            if ended is None and closing is not None:
                ended = Acted(outcome=_too_late(wanted, closing))
                await self._tell_asked(context, wanted)
            if ended is None:
                left.append(wanted)
            elif ended.closing is not None:
                closing = ended.closing
                done = ToolOutcome(call=wanted.id, tool=wanted.name, kind=OutcomeKind.OK)
                await context.emit("agent.call_ended", key=f"{wanted.id}.ended", **as_told(done), **whose)
            elif ended.parked is not None:
                left.append(wanted)
                parked.append(ended.parked)
                await context.emit("agent.call_parked", key=f"{wanted.id}.parked", **as_told(ended.parked), **whose)
            elif ended.outcome is not None:
                talk = await self._with_outcome(talk, wanted, ended.outcome)
                told = {**as_told(ended.outcome), "evidence": talk.exhibits[-1].id, **whose}
                await context.emit("agent.call_ended", key=f"{wanted.id}.ended", **told)
        return replace(talk, waiting=tuple(left)), parked, closing

    async def _with_outcome(self, talk: Talk, wanted: CallWanted, outcome: ToolOutcome) -> Talk:
        wanted, intent = self._plain(wanted)
        source = self._source(wanted, outcome)
        number = len(talk.exhibits) + 1
        exhibit = exhibit_of(f"{self._seat.tag}e{number}", outcome, call=wanted.id, tool=wanted.name, source=source)
        if self._seat.witness is not None:
            await self._seat.witness.saw(wanted, outcome, exhibit, reason=intent)
        repeats, count = counted(talk.repeats, wanted, outcome)
        # That there is nothing is an answer, and no failure; nor does it end a row of them.
        is_failed = outcome.kind.counts_as_failed
        failures = 0 if outcome.is_citable else talk.failures + is_failed
        notice = ""
        if judged(count, failures, nudge=self._role.repeats_nudge, most=self._role.repeats_max) != "fine":
            notice = _NUDGE_REPEAT.format(n=max(count, failures))
        notice = notice or self._turns_notice(talk)
        message = Message(
            role="tool",
            call=wanted.id,
            tool=wanted.name,
            text=result_text(exhibit, outcome, key=talk.fence, notice=notice, source=source),
        )
        return replace(
            talk,
            messages=(*talk.messages, message),
            exhibits=(*talk.exhibits, exhibit),
            repeats=repeats,
            failures=failures,
            calls=talk.calls + 1,
            failed=talk.failed + is_failed,
            is_tainted=True,
        )

    def _plain(self, wanted: CallWanted) -> tuple[CallWanted, str]:
        """Return a call as it is sent, and the reason that it gives."""
        wanted, intent = self._seat.plain(wanted)
        tool = next((tool for tool in self._toolbox.catalog() if tool.name == wanted.name), None)
        return as_meant(wanted, tool, self._role), intent

    def _source(self, wanted: CallWanted, outcome: ToolOutcome) -> Source:
        """Say who wrote a result: a skill is the operator's, where a tool of ours brought it."""
        if wanted.name not in SKILLS or not outcome.is_citable:
            return ""
        is_own = any(tool.name == wanted.name and not tool.server for tool in self._toolbox.catalog())
        return "operator" if is_own else ""

    def _turns_notice(self, talk: Talk) -> str:
        left = self._role.turns_max - talk.turn
        if left <= 0 and self._role.nudge_last:
            return _NUDGE_LAST
        if self._role.nudge_remaining is not None and left <= self._role.nudge_remaining:
            return _NUDGE_REMAINING.format(n=max(left, 0))
        return ""


def as_told(value: object) -> dict[str, object]:
    """Return a value as the journal tells it."""
    found: dict[str, object] = msgspec.to_builtins(value)
    return found


def _too_late(wanted: CallWanted, closing: Closing) -> ToolOutcome:
    return ToolOutcome(
        call=wanted.id,
        tool=wanted.name,
        kind=OutcomeKind.DENIED,
        detail=f"not carried out: {closing.tool} came first, and ended this conversation",
    )
