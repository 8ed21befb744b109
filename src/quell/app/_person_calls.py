"""Tool calls that a person makes by hand: durable runs, through the one path like every other call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from quell.domain import CallOrigin, Parked, Principal, Run, ToolCall, ToolCaller, ToolOutcome
from quell.runs import Done, Next, RunContext, WaitUntil

if TYPE_CHECKING:
    from quell.app._warden import Warden

KIND = "tool_call"
_CALL_S = 300.0
_STEP_SLACK_S = 30.0
_LOOK_AGAIN_S = 30.0
"""Who waits for people looks this often by itself; who decides wakes it."""
_CALL_ID = "1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a run was started with: everything that it needs after a crash."""

    tool: str
    arguments: str
    by: Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Acted:
    outcome: ToolOutcome | None = None
    parked: Parked | None = None


class PersonCalls:
    """Takes calls of people; what they may is decided as for anybody, and what happened is on record."""

    def __init__(self, warden: Warden) -> None:
        """Name the work; nothing is opened before somebody calls."""
        self._warden = warden
        warden.runs.register(KIND, self._work, way="direct")

    async def start(self, tool: str, *, arguments: str, by: Principal) -> Run:
        """Begin a call; the run goes on whatever becomes of who called. Raises JournalError."""
        clean = self._warden.redactor.text
        wanted = _Wanted(tool=tool, arguments=arguments, by=by)
        body: Mapping[str, object] = msgspec.to_builtins(wanted)
        return await self._warden.runs.start(KIND, subject=clean(f"{tool} {arguments}")[:200], arguments=body)

    @staticmethod
    def outcome_of(run: Run) -> ToolOutcome | None:
        """Return how a call ended; None while it has not."""
        return msgspec.json.decode(run.result, type=ToolOutcome) if run.result else None

    async def _work(self, context: RunContext) -> Next:
        """Make the call, or look again whether people have decided about it."""
        wanted = msgspec.convert(context.arguments, type=_Wanted)
        authority = await self._warden.open()
        call = ToolCall(id=_CALL_ID, tool=wanted.tool, arguments=wanted.arguments)
        caller = ToolCaller(
            principal=wanted.by,
            run=context.run.id,
            fence=context.fence,
            origin=CallOrigin.PERSON,
            deadline_s=_CALL_S,
            feature=KIND,
        )

        async def work() -> _Acted:
            ended = await authority.toolbox.call(call, caller=caller)
            return _Acted(parked=ended) if isinstance(ended, Parked) else _Acted(outcome=ended)

        told = {"call": call.id, "tool": call.tool, "arguments": call.arguments, "agent": "", "task": ""}
        await context.emit("agent.call_asked", key="asked", **told)
        acted = await context.step(f"tool.{call.id}", work, returns=_Acted, timeout_s=_CALL_S + _STEP_SLACK_S)
        if acted.parked is not None:
            # One event for each question: an edited call is asked about anew.
            key = hashlib.sha256(acted.parked.approval.encode()).hexdigest()[:16]
            await context.emit("agent.call_parked", key=f"parked.{key}", **msgspec.to_builtins(acted.parked))
            at = min(await context.now() + timedelta(seconds=_LOOK_AGAIN_S), acted.parked.expires_at)
            return WaitUntil(at=at, state={"waits": acted.parked.approval})
        assert acted.outcome is not None, "a call ends or waits"
        await context.emit("agent.call_ended", key="ended", **msgspec.to_builtins(acted.outcome))
        return Done(result=msgspec.to_builtins(acted.outcome))
