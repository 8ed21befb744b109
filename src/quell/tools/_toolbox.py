"""The one path: whoever wants anything of the world, and whatever it is, it goes through `Toolbox.call`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import msgspec

from quell import telemetry
from quell.domain import (
    BoundExceededError,
    CallRequest,
    Clock,
    Effect,
    EffectState,
    Ending,
    Happened,
    NeedsPeople,
    NotHappened,
    OutcomeKind,
    OverloadError,
    PadOwner,
    Parked,
    QuellError,
    Recovery,
    RefusedError,
    Tool,
    ToolCall,
    ToolCaller,
    ToolOutcome,
    Unclear,
    Verdict,
)
from quell.governance import Guard, Passage, Redactor, freeze
from quell.runs import Connection, Database, Ledger
from quell.tools._asks import NeedsPeopleError, ServerAsks, is_round, next_round, replies_of
from quell.tools._registry import Entry, Registry
from quell.tools._resilience import Resilience
from quell.tools._scratchpad import Scratchpad

_TOLD_MAX_CHARS = 4_000
_WITHIN_SHARE = 0.95
"""Of the time that is left, for the hand: whoever is cut off cannot say any more whether anything was sent."""
_WITHIN_MIN_S = 0.001
_ID_MAX_CHARS = 256
_CAME = frozenset({OutcomeKind.OK, OutcomeKind.EMPTY, OutcomeKind.TRUNCATED, OutcomeKind.STALE})
"""Answers that say that an effect happened, whatever else they lack."""


class Toolbox:
    """Every effect and every outside read of a process."""

    TABLES = ServerAsks.TABLES
    """What `Connection.make_tables` makes."""

    def __init__(
        self,
        *,
        registry: Registry,
        database: Database,
        clock: Clock,
        guard: Guard,
        ledger: Ledger,
        resilience: Resilience,
        scratchpad: Scratchpad,
        redactor: Redactor,
        monotonic: Callable[[], float],
        environment: str,
    ) -> None:
        """Join the organs; `environment` is that of calls whose arguments name none."""
        self._registry = registry
        self._database = database
        self._asks = ServerAsks(clock=clock)
        self._guard = guard
        self._ledger = ledger
        self._resilience = resilience
        self._scratchpad = scratchpad
        self._redactor = redactor
        self._monotonic = monotonic
        self._environment = environment

    def catalog(self) -> tuple[Tool, ...]:
        """Return the tools that may be asked for; whether a call may happen is decided call by call."""
        return self._registry.tools

    async def call(
        self,
        wanted: ToolCall,
        *,
        caller: ToolCaller,
        diff: str = "",
        revert: str = "[]",
        explanation: str = "",
        facts: tuple[tuple[str, str], ...] = (),
    ) -> ToolOutcome | Parked:
        """Do what is wanted if it may be done, once; say how it ended, or that people are asked.

        Pin, schema and frozen bytes; then the verdict; then, for an effect, the ledger, in whose transactions it is
        decided again, approvals are used up, budgets reserved and the account kept. The same call again after a crash
        or an approval goes on where it stood. The outcome is typed; nothing raises for what the world or policy does.

        Raises JournalError when the account cannot be kept: then nothing was done.
        """
        try:
            _check_id(wanted.id)
            entry = self._registry.find(wanted.tool)
            frozen = freeze(
                entry.tool,
                run=caller.run,
                call=wanted.id,
                arguments=wanted.arguments,
                environment=self._environment,
            )
            self._refuse_secrets(wanted.id, frozen.arguments, revert)
        except RefusedError as refusal:
            return await self._turned_away(wanted, caller, refusal)
        request = CallRequest(
            call=frozen,
            tool=entry.tool,
            caller=caller,
            diff=self._redactor.text(diff),
            revert=revert,
            explanation=self._redactor.text(explanation),
            facts=tuple((name, self._redactor.text(told)) for name, told in facts),
        )
        with telemetry.span("execute_tool", {"gen_ai.tool.name": entry.tool.name, "quell.run": caller.run}):
            ended = await self._decided(request, entry)
        _tell(request, ended)
        return ended

    async def _decided(self, request: CallRequest, entry: Entry) -> ToolOutcome | Parked:
        """Have it decided, and done if it may be."""
        try:
            if is_round(request.call.id):
                request = await asyncio.to_thread(self._continued, request)
            way = await asyncio.to_thread(self._guard.enter, request)
            match way:
                case Parked():
                    return way
                case Verdict():
                    return _denied(request, way)
            effect = entry.tool.tool_class.is_effect
            try:
                outcome = await (self._act(request, entry) if effect else self._read(request, entry, way))
            except NeedsPeopleError as asked:
                # Inside: that people can not be asked is a refusal like any other.
                return await asyncio.to_thread(self._ask_people, request, asked.needs)
            return await self._handed_over(request, outcome)
        except (RefusedError, BoundExceededError) as refusal:
            return self._outcome(request, OutcomeKind.DENIED, refusal)
        except OverloadError as shed:
            return self._outcome(request, OutcomeKind.TRANSPORT_ERROR, shed)

    # -- questions of servers ---------------------------------------------------------------------------------------

    def _continued(self, request: CallRequest) -> CallRequest:
        """Take up what a server asked about this call before."""
        with self._database.reading() as connection:
            needs = self._asks.find(connection, run=request.call.run, call=request.call.id)
        return replace(request, needs=needs)

    def _ask_people(self, request: CallRequest, needs: NeedsPeople) -> ToolOutcome | Parked:
        """Ask people what a server asks, about the same call under an id of its own; their approval is the answer."""
        # The words only: by everything else the server knows its own question again.
        asks = tuple(replace(ask, message=self._redactor.text(ask.message)) for ask in needs.asks)
        needs = replace(needs, asks=asks)
        identifier = next_round(request.call.id)
        if identifier is None or replies_of(needs.asks) is None:
            asked = "; ".join(ask.message for ask in needs.asks)
            told = f"the server asks what no approval can answer; nothing was done: {asked[:500]!a}"
            return self._outcome(request, OutcomeKind.DENIED, None, detail=told)
        again = replace(request, call=replace(request.call, id=identifier), needs=needs)
        with self._database.writing() as connection:
            self._asks.keep(connection, again, needs)
        way = self._guard.enter(again)
        assert not isinstance(way, Passage), "a server's question is answered by people only"
        return way if isinstance(way, Parked) else _denied(again, way)

    # -- reads --------------------------------------------------------------------------------------------------------

    async def _read(self, request: CallRequest, entry: Entry, passage: Passage) -> ToolOutcome:
        outcome = self._outcome(request, OutcomeKind.TRANSPORT_ERROR, None, detail="it was given up")
        try:
            outcome = await self._sent(request, entry, key="", retryable="read")
        except QuellError as error:
            outcome = self._outcome(request, OutcomeKind.TRANSPORT_ERROR, error)
        except NeedsPeopleError as asked:
            outcome = self._outcome(request, OutcomeKind.DENIED, None, detail=str(asked))
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(self._guard.end_read, request, passage, outcome))
        return replace(outcome, evidence={**outcome.evidence, **passage.ids})

    async def _sent(self, request: CallRequest, entry: Entry, *, key: str, retryable: str) -> ToolOutcome:
        """Have the hand do it, under the limits of what it rests on; what comes back holds no secret from here on.

        Raises OverloadError and RefusedError when nothing was sent, and NeedsPeopleError when the server asks first;
        whatever else a hand raises is an outcome.
        """
        began_s = self._monotonic()
        deadline_s = min(request.caller.deadline_s, request.tool.timeout_s)

        async def work() -> ToolOutcome:
            left_s = deadline_s - (self._monotonic() - began_s)
            return await entry.hand.use(request, key=key, within_s=max(_WITHIN_MIN_S, left_s * _WITHIN_SHARE))

        try:
            outcome = await self._resilience.call(
                entry.hand.dependency,
                work,
                deadline_s=deadline_s,
                retryable="read" if retryable == "read" else "effect",
                priority=request.caller.priority,
                call=request.call.id,
                tool=request.call.tool,
            )
        except (OverloadError, RefusedError, NeedsPeopleError):
            raise
        except Exception as error:  # noqa: BLE001 - a hand may be anybody's; its words must not pass uncleaned
            outcome = ToolOutcome(
                call=request.call.id,
                tool=request.call.tool,
                kind=OutcomeKind.TRANSPORT_ERROR,
                detail=f"{type(error).__name__}: {error}",
            )
        return replace(
            outcome,
            content=self._redactor.text(outcome.content),
            detail=self._redactor.text(outcome.detail)[:_TOLD_MAX_CHARS],
            elapsed_ms=(self._monotonic() - began_s) * 1000,
        )

    # -- effects ------------------------------------------------------------------------------------------------------

    async def _act(self, request: CallRequest, entry: Entry) -> ToolOutcome:
        fence = request.caller.fence
        if fence is None:
            raise RefusedError("only a run may change something", hint="start a run; a person's command is one too")
        last: list[ToolOutcome] = []
        asked: list[NeedsPeopleError] = []

        async def send(key: str, attempt: int) -> Ending:
            try:
                outcome = await self._sent(request, entry, key=key, retryable="effect")
            except NeedsPeopleError as error:
                asked.append(error)
                return NotHappened(detail=str(error))
            except (OverloadError, RefusedError) as error:
                return NotHappened(detail=self._redactor.text(str(error)))
            last[:] = [replace(outcome, attempts=attempt)]
            return _ending(request, outcome)

        def on_intent(connection: Connection, _effect: Effect) -> None:
            self._guard.on_intent(connection, request)

        def on_start(connection: Connection, effect: Effect) -> None:
            self._guard.on_start(connection, request, effect)

        def on_end(connection: Connection, effect: Effect) -> None:
            self._guard.on_end(connection, request, effect, last[0] if last else None)

        with self._guard.approvals.voiding():
            effect = await self._ledger.perform(
                await asyncio.to_thread(self._guard.intent, request),
                send=send,
                probe=self._probe(request),
                fence=fence,
                on_intent=on_intent,
                on_start=on_start,
                on_end=on_end,
            )
        if asked:
            raise asked[-1]
        return _outcome_of(request, effect, last[0] if last else None)

    def _probe(self, request: CallRequest) -> Callable[[], Awaitable[Ending]] | None:
        """Return what looks whether an effect happened: a read through this same path, named by the tool's terms."""
        tool = request.tool
        if tool.recovery is not Recovery.PROBEABLE or not tool.probe:
            return None
        looks = 0

        async def look() -> Ending:
            nonlocal looks
            looks += 1
            asked = ToolCall(id=f"{request.call.id}.look{looks}", tool=tool.probe, arguments=request.call.arguments)
            seen = await self.call(asked, caller=request.caller)
            if isinstance(seen, Parked) or not seen.is_citable:
                return Unclear(detail="the look itself brought nothing that can be believed")
            return _seen(seen)

        return look

    # -- what the caller gets -----------------------------------------------------------------------------------------

    async def _handed_over(self, request: CallRequest, outcome: ToolOutcome) -> ToolOutcome:
        """Put aside what is too large to be given whole."""
        content = outcome.content
        digest = outcome.digest or hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()
        clean = replace(outcome, digest=digest)
        if request.tool.server == "" or not self._scratchpad.is_large(content):
            return clean
        caller = request.caller
        owner = PadOwner(session=caller.session or caller.run, tenant=caller.principal.tenant)
        try:
            spilled = await self._scratchpad.put(owner, content)
        except QuellError as error:
            return replace(clean, kind=OutcomeKind.TRUNCATED, content="", detail=f"the result was not kept: {error}")
        return replace(clean, content=spilled.head, is_json=False, handle=spilled.handle)

    async def _turned_away(self, wanted: ToolCall, caller: ToolCaller, refusal: RefusedError) -> ToolOutcome:
        told = self._redactor.text(f"{refusal}; {refusal.hint}" if refusal.hint else str(refusal))[:_TOLD_MAX_CHARS]
        tool = self._redactor.text(wanted.tool)
        await asyncio.to_thread(
            self._guard.turn_away,
            run=caller.run,
            principal=caller.principal.user,
            tool=tool,
            reason=told,
        )
        call = self._redactor.text(wanted.id) if self._redactor.held_in(wanted.id) else wanted.id
        return ToolOutcome(call=call[:_ID_MAX_CHARS], tool=tool[:200], kind=OutcomeKind.DENIED, detail=told, attempts=0)

    def _refuse_secrets(self, *texts: str) -> None:
        """Refuse a call that holds a secret of ours: its bytes are kept, shown and sent as they are."""
        for text in texts:
            if name := self._redactor.held_in(text):
                raise RefusedError(
                    f"the call itself holds a secret ({name})",
                    hint="leave it out: tools have their credentials from the settings",
                )

    def _outcome(
        self, request: CallRequest, kind: OutcomeKind, error: QuellError | None, *, detail: str = ""
    ) -> ToolOutcome:
        told = detail if error is None else f"{error}; {error.hint}" if error.hint else str(error)
        told = self._redactor.text(told)[:_TOLD_MAX_CHARS]
        return ToolOutcome(call=request.call.id, tool=request.call.tool, kind=kind, detail=told, attempts=0)


def _check_id(call: str) -> None:
    """Refuse an id that no journal could keep: models write them too. Raises RefusedError."""
    if not call.isprintable() or not 0 < len(call) <= _ID_MAX_CHARS:
        raise RefusedError(
            "the id of the call holds what no id holds, nothing, or too much",
            hint=f"use 1 to {_ID_MAX_CHARS} letters, digits, `_`, `-`",
        )


def _tell(request: CallRequest, ended: ToolOutcome | Parked) -> None:
    call = request.call
    if isinstance(ended, Parked):
        telemetry.event(
            "tool.parked",
            run=call.run,
            call=call.id,
            tool=call.tool,
            approval=ended.approval,
            quorum=ended.quorum,
            expires_at=ended.expires_at.isoformat(),
        )
        return
    if ended.kind is OutcomeKind.DENIED:
        telemetry.event("tool.denied", run=call.run, call=call.id, tool=call.tool, reason=ended.detail)
    telemetry.count("quell.tool.calls", outcome=ended.kind.value, tool=call.tool)
    telemetry.event(
        "tool.called",
        run=call.run,
        call=call.id,
        tool=call.tool,
        outcome=ended.kind.value,
        attempts=ended.attempts,
        elapsed_ms=round(ended.elapsed_ms, 1),
        size_bytes=ended.size_bytes,
    )


def _denied(request: CallRequest, verdict: Verdict) -> ToolOutcome:
    told = f"denied by {', '.join(verdict.policies) or 'default'}: {verdict.reason}"
    return ToolOutcome(call=request.call.id, tool=request.call.tool, kind=OutcomeKind.DENIED, detail=told, attempts=0)


def _ending(request: CallRequest, outcome: ToolOutcome) -> Ending:
    """Say what an answer tells about an effect: whether it happened, did not, or nobody knows."""
    kept = msgspec.json.encode(replace(outcome, evidence={})).decode()
    match outcome.kind:
        case kind if kind in _CAME:
            return Happened(result=kept)
        case OutcomeKind.DENIED:
            return NotHappened(detail=outcome.detail)
        case OutcomeKind.TRANSPORT_ERROR | OutcomeKind.TIMEOUT if _was_not_sent(outcome):
            return NotHappened(detail=outcome.detail)
        case OutcomeKind.TOOL_ERROR if request.tool.recovery is not Recovery.PROBEABLE:
            return NotHappened(detail=f"the tool said that it failed: {outcome.detail}")
        case _:
            return Unclear(detail=f"{outcome.kind}: {outcome.detail}")


def _was_not_sent(outcome: ToolOutcome) -> bool:
    return outcome.attempts == 0 or outcome.evidence.get("sent") == "no"


def _seen(outcome: ToolOutcome) -> Ending:
    """Read what a look found: an object with `happened` true or false, and perhaps `result`."""
    found: object = None
    with suppress(ValueError):
        found = json.loads(outcome.content)
    happened = found.get("happened") if isinstance(found, dict) else None
    if happened is True:
        assert isinstance(found, dict)
        return Happened(result=json.dumps(found.get("result")))
    if happened is False:
        return NotHappened(detail="a look found that it did not happen")
    return Unclear(detail="the look does not say whether it happened")


def _outcome_of(request: CallRequest, effect: Effect, last: ToolOutcome | None) -> ToolOutcome:
    """Say what the ledger knows of an effect, in the words of an outcome."""
    ids = {"effect": effect.key} | ({"approval": effect.approval} if effect.approval else {})
    if effect.state is EffectState.DONE:
        kept = last or _kept(request, effect)
        return replace(kept, call=request.call.id, evidence={**kept.evidence, **ids})
    failed = OutcomeKind.TOOL_ERROR if last is None else last.kind
    kind = {
        EffectState.FAILED: OutcomeKind.DENIED if effect.reason == "refused" else failed,
        EffectState.UNKNOWN: OutcomeKind.TIMEOUT,
    }.get(effect.state, OutcomeKind.TRANSPORT_ERROR)
    told = effect.detail
    if effect.state is EffectState.UNKNOWN:
        told = f"nobody knows whether it happened; a person decides: {effect.detail}"
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=kind,
        detail=told,
        attempts=effect.attempts,
        evidence=ids,
    )


def _kept(request: CallRequest, effect: Effect) -> ToolOutcome:
    """Return the outcome as the ledger kept it, from this or an earlier life."""
    with suppress(msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode(effect.result, type=ToolOutcome)
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=OutcomeKind.OK,
        content=effect.result,
        digest=effect.result_digest,
        size_bytes=effect.result_bytes,
        attempts=effect.attempts,
    )
