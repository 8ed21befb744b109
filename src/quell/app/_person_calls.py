"""Tool calls that a person makes by hand: durable runs, through the one path like every other call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from quell.app._held_headers import HeldHeaders
from quell.domain import (
    CallOrigin,
    CallState,
    Entropy,
    Parked,
    Principal,
    QuellError,
    RefusedError,
    Run,
    ToolCall,
    ToolCaller,
    ToolOutcome,
)
from quell.runs import Done, Next, RunContext, WaitUntil

if TYPE_CHECKING:
    from quell.app._warden import Warden

KIND = "tool_call"
_CALL_S = 300.0
_STEP_SLACK_S = 30.0
_LOOK_AGAIN_S = 30.0
"""Who waits for people looks this often by itself; who decides wakes it."""
_CALL_ID = "1.1"
_TICKET_BYTES = 12
_MAY_SEE_OTHERS = frozenset({"operator", "admin"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a run was started with: everything that it needs after a crash."""

    tool: str
    arguments: str
    by: Principal
    ticket: str = ""
    """Of the request, under which its headers are held; empty: it had none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Acted:
    outcome: ToolOutcome | None = None
    parked: Parked | None = None


class PersonCalls:
    """Takes calls of people; what they may is decided as for anybody, and what happened is on record."""

    def __init__(self, warden: Warden, *, entropy: Entropy) -> None:
        """Name the work; nothing is opened before somebody calls."""
        self._warden = warden
        self._entropy = entropy
        self._headers = HeldHeaders()
        warden.runs.register(KIND, self._work, way="direct")

    async def start(
        self, tool: str, *, arguments: str, by: Principal, headers: Mapping[str, str] | None = None, key: str = ""
    ) -> Run:
        """Begin a call: the run goes on whatever becomes of who called.

        `headers` are those of the request, for servers that are told to pass some on; `key` makes the same call of the
        same person the same run. Raises RefusedError (`mismatch`) when that key stands for another call, and
        JournalError.
        """
        clean, runs = self._warden.redactor.text, self._warden.runs
        ticket = self._entropy(_TICKET_BYTES).hex() if headers else ""
        wanted = _Wanted(tool=tool, arguments=arguments, by=by, ticket=ticket)
        body: Mapping[str, object] = msgspec.to_builtins(wanted)
        place = msgspec.json.encode([KIND, by.tenant, by.user, key]).decode() if key else None
        if headers:
            self._headers.hold(ticket, headers)
        try:
            run = await runs.start(KIND, subject=clean(f"{tool} {arguments}")[:200], arguments=body, key=place)
            if key:
                await self._same(run.id, wanted, key)
        except BaseException:
            self._headers.forget(ticket)
            raise
        return run

    async def until(self, run: str, *, after: int = 0, by: Principal, timeout_s: float | None = None) -> CallState:
        """Wait until a call has ended, or people are asked past the event `after`; return how far it is, at last when time is up.

        Raises RefusedError (`unknown`) for what is no call that `by` may see.
        """
        run, seq, parked = await self._seen(run, by), after, None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self._warden.runs.follow(run=run, after=after)) as events:
                async for event in events:
                    seq = event.seq
                    if event.name == "agent.call_parked":
                        parked = msgspec.json.decode(event.body, type=Parked)
                        break
        found = await self._warden.runs.get(run)
        outcome = _outcome_of(found)
        return CallState(run=run, status=found.status, seq=seq, parked=parked, outcome=outcome, error=found.error)

    async def cancel(self, run: str, *, by: Principal) -> None:
        """Stop a call; one that has ended stays as it is. Raises RefusedError (`unknown`) as `until` does."""
        run = await self._seen(run, by)
        if not (await self._warden.runs.get(run)).status.is_final:
            await self._warden.runs.cancel(run)

    async def is_of(self, run: str, *, tenant: str) -> bool:
        """Tell whether a run is a call that somebody of a tenant made."""
        with suppress(QuellError, msgspec.ValidationError):
            return (await self._warden.runs.get(run)).kind == KIND and (await self._wanted(run)).by.tenant == tenant
        return False

    async def _seen(self, run: str, by: Principal) -> str:
        """Return the whole id of a call that somebody may see: their own, and of their tenant to whom it is entrusted."""
        with suppress(QuellError):
            found = await self._warden.runs.get(run)
            if found.kind == KIND:
                made_by = (await self._wanted(found.id)).by
                is_theirs = made_by.user == by.user or not _MAY_SEE_OTHERS.isdisjoint(by.roles)
                if made_by.tenant == by.tenant and is_theirs:
                    return found.id
        raise RefusedError(f"there is no call {run[:100]!r}", hint="its run is told when it begins", code="unknown")

    async def _same(self, run: str, wanted: _Wanted, key: str) -> None:
        """Check that a run began with this very call. Raises RefusedError (`mismatch`)."""
        began = await self._wanted(run)
        if began.ticket != wanted.ticket:
            self._headers.forget(wanted.ticket)
        if (began.tool, began.arguments) != (wanted.tool, wanted.arguments):
            told = f"the Idempotency-Key {key[:40]!r} stands for another call"
            raise RefusedError(told, hint="give every call a key of its own", code="mismatch")

    async def _wanted(self, run: str) -> _Wanted:
        return msgspec.convert(await self._warden.runs.arguments(run), type=_Wanted)

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
            headers=self._headers.of(wanted.ticket),
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
        self._headers.forget(wanted.ticket)
        await context.emit("agent.call_ended", key="ended", **msgspec.to_builtins(acted.outcome))
        return Done(result=msgspec.to_builtins(acted.outcome))


def _outcome_of(run: Run) -> ToolOutcome | None:
    """Return how a call ended; None while it has not."""
    return msgspec.json.decode(run.result, type=ToolOutcome) if run.result else None
