"""The one path: whoever wants anything of the world, and whatever it is, it goes through `Toolbox.call`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from quell import telemetry
from quell.audit import Redactor
from quell.domain import (
    Approval,
    AskedCall,
    BoundExceededError,
    CallOrigin,
    CallProgress,
    CallRequest,
    ClientTools,
    Clock,
    Effect,
    Ending,
    Inventory,
    NeedsPeople,
    NotHappened,
    OutcomeKind,
    OverloadError,
    Parked,
    PlannedCall,
    Principal,
    QuellError,
    Recovery,
    RefusedError,
    Tool,
    ToolCall,
    ToolCaller,
    ToolOutcome,
    Unclear,
    UsageError,
    Verdict,
)
from quell.governance import Guard, Passage, freeze
from quell.runs import Connection, Database, Ledger
from quell.tools._asks import NeedsPeopleError, ServerAsks, base_of, is_round, next_round
from quell.tools._beside import diff_of, facts_of, no_dry_run
from quell.tools._endings import denied, ending, outcome_of, seen, tell, with_edit
from quell.tools._registry import Entry, Registry, pad_owner_of
from quell.tools._resilience import Resilience
from quell.tools._scratchpad import Scratchpad

P = ParamSpec("P")
T = TypeVar("T")
_TOLD_MAX_CHARS = 4_000
_ID_MAX_CHARS = 256
_OURS, _OWN_MAX_CHARS = frozenset({CallOrigin.PROBE, CallOrigin.DRY_RUN}), 16
"""Calls that the path makes itself about another one: their ids are a little longer than its."""
_PROGRESS_MAX_CHARS = 1_000
"""Less than what a connection passes on: a secret that was cut in two there is not told by halves."""
_HEAD_MIN_TOKENS, _HEAD_SHARE_CHARS = 60, 16
"""At least what names handle, size and tools; otherwise about a quarter of a result (a token has about four letters)."""
_WITHIN_SHARE = 0.95
"""Of the time that is left, for the hand: whoever is cut off cannot say any more whether anything was sent."""
_WITHIN_MIN_S = 0.001


class Toolbox:
    """Every effect and every outside read of a process."""

    TABLES = ServerAsks.TABLES
    """What `Connection.make_tables` makes."""

    def __init__(
        self,
        *,
        registry: Registry,
        renew: Callable[[], None],
        database: Database,
        clock: Clock,
        guard: Guard,
        ledger: Ledger,
        resilience: Resilience,
        scratchpad: Scratchpad,
        redactor: Redactor,
        monotonic: Callable[[], float],
        environment: str,
        inventory: Inventory | None = None,
    ) -> None:
        """Join the organs; `environment` is that of calls whose arguments name none.

        `renew` takes the pins as people left them a moment ago into the registry; it costs one look where nothing changed.
        `inventory` tells what is known of a resource, for people who decide about a call.
        """
        self._inventory = inventory
        self._registry = registry
        self._renew = renew
        self._database = database
        self._asks = ServerAsks(clock=clock)
        self._guard = guard
        self._ledger = ledger
        self._resilience = resilience
        self._scratchpad = scratchpad
        self._redactor = redactor
        self._monotonic = monotonic
        self._environment = environment

    def catalog(self, client: ClientTools | None = None) -> tuple[Tool, ...]:
        """Return the tools that may be asked for, of this client too; whether a call may happen is decided call by call."""
        return self._registry.there_for(client)

    async def renew(self) -> None:
        """Take the pins as people left them a moment ago, so that the catalog has what a call would find."""
        await asyncio.to_thread(self._renew)

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

        Raises JournalError when the account cannot be kept: then nothing was changed that the ledger does not know of.
        """
        planned = PlannedCall(wanted=wanted, diff=diff, revert=revert, facts=facts)
        try:
            await self._take_pins(wanted.tool)
            request, entry = self._requested(planned, caller=caller, explanation=explanation)
        except RefusedError as refusal:
            return await self._turned_away(wanted, caller, refusal)
        with telemetry.genai.execute_tool(entry.tool, wanted, run=caller.run) as used:
            ended = await self._decided(request, entry)
            used.ended(ended)
        tell(request, ended)
        return ended

    def retain(self, connection: Connection, *, before: datetime) -> int:
        """Delete what servers asked before then about calls of runs that are gone; return how many."""
        return self._asks.retain(connection, before=before)

    async def propose(
        self, plan: Sequence[PlannedCall], *, caller: ToolCaller, explanation: str = ""
    ) -> Parked | ToolOutcome:
        """Ask people about a whole plan as one; nothing of it is done yet.

        When they have approved it, make its calls in their order by `call`, each with `approval` of the caller set to
        the plan's. Any other call under it voids what is left. A plan that cannot be asked about is a denied outcome.
        Raises JournalError when the account cannot be kept.
        """
        requests = []
        for planned in plan:
            try:
                await self._take_pins(planned.wanted.tool)
                requests.append(self._requested(planned, caller=caller, explanation=explanation)[0])
            except RefusedError as refusal:
                return await self._turned_away(planned.wanted, caller, refusal)
        first = ToolCall(id="plan", tool="plan", arguments="{}") if not plan else plan[0].wanted
        try:
            ended = await asyncio.to_thread(self._guard.people.propose, requests)
        except (RefusedError, BoundExceededError, UsageError) as refusal:
            return await self._turned_away(first, caller, refusal)
        tell(requests[0], ended)
        return ended

    async def edit(
        self, approval: str, *, arguments: str, by: Principal, digest_seen: str, way: Literal["cli", "api"]
    ) -> Approval:
        """Put other arguments in the place of those that people were asked about; the call that waits runs with these.

        Raises:
            RefusedError: as `Approvals.edit` does; or the arguments are refused, or policy denies them.
            UsageError: the edit changes nothing, or it is no request that can be edited.
        """
        return await asyncio.to_thread(
            self._edit, approval, arguments=arguments, by=by, digest_seen=digest_seen, way=way
        )

    def _edit(self, approval: str, *, arguments: str, by: Principal, digest_seen: str, way: str) -> Approval:
        try:
            self._renew()
            old, request = self._rewritten(approval, arguments=arguments, by=by, digest_seen=digest_seen)
        except (RefusedError, UsageError) as error:
            self._guard.people.refuse(approval, by=by, way=way, error=error)
            raise
        return self._guard.people.edit(old, request, by=by, digest_seen=digest_seen, way=way)

    def _rewritten(
        self, approval: str, *, arguments: str, by: Principal, digest_seen: str
    ) -> tuple[Approval, CallRequest]:
        """Freeze what somebody wants instead, for whoever asked at first."""
        approvals = self._guard.approvals
        with self._database.reading() as connection:
            old = approvals.find(connection, approval, tenant=by.tenant)
            if old is None:
                raise RefusedError(f"there is no approval {approval[:100]!r}", hint="list them", code="unknown")
            whose = approvals.editable(connection, old, by=by, digest_seen=digest_seen)
        (asked, *others) = old.terms.calls
        if others or is_round(asked.call.id):
            what = "a plan" if others else "a call that its server asked about"
            raise UsageError(f"{what} can not be edited", hint="reject it with a reason; the run asks anew")
        told = (("edited by", by.user), ("arguments before the edit", asked.call.arguments))
        kept = tuple(fact for fact in asked.facts if fact[0] not in dict(told))
        # No dry run and no way back that the caller prepared: they are of the old arguments.
        planned = PlannedCall(
            wanted=ToolCall(id=asked.call.id, tool=asked.call.tool, arguments=arguments), facts=(*kept, *told)
        )
        caller = ToolCaller(principal=whose, run=old.terms.run, evidence_digest=old.terms.evidence_digest)
        request, _ = self._requested(planned, caller=caller, explanation="")
        if self._guard.is_plain(request):
            # Reads are let through from memory: nothing would look for the edit when the call comes again.
            raise UsageError(
                "a call that only reads can not be edited", hint="reject it; the run asks for what it needs"
            )
        return old, replace(request, edited=old.id)

    async def _take_pins(self, tool: str) -> None:
        """Take the pins as people left them a moment ago, where they have a say in this tool."""
        if not self._registry.is_builtin(tool):
            await self.renew()

    def _requested(self, planned: PlannedCall, *, caller: ToolCaller, explanation: str) -> tuple[CallRequest, Entry]:
        """Freeze a call under the pinned definition of its tool. Raises RefusedError."""
        wanted = planned.wanted
        if caller.headers:
            # A server that they are passed on to may repeat them.
            self._redactor.hold_shown(caller.headers.items())
        _refuse_odd_id(wanted.id, chars_max=_ID_MAX_CHARS + (_OWN_MAX_CHARS if caller.origin in _OURS else 0))
        entry = self._registry.find(wanted.tool, client=caller.client)
        frozen = freeze(
            entry.tool, run=caller.run, call=wanted.id, arguments=wanted.arguments, environment=self._environment
        )
        self._refuse_secrets(wanted.id, frozen.arguments, planned.revert)
        request = CallRequest(
            call=frozen,
            tool=entry.tool,
            caller=caller
            if caller.on_progress is None
            else replace(caller, on_progress=self._cleaned(caller.on_progress)),
            diff=self._redactor.text(planned.diff),
            revert=planned.revert,
            explanation=self._redactor.text(explanation),
            facts=tuple((name, self._redactor.text(told)) for name, told in planned.facts),
        )
        return request, entry

    async def _decided(self, request: CallRequest, entry: Entry) -> ToolOutcome | Parked:
        """Have it decided, and done if it may be; whatever is refused on the way is on record."""
        try:
            if is_round(request.call.id) or not self._guard.is_plain(request):
                request = await asyncio.to_thread(self._taken_up, request)
            while True:
                try:
                    return await self._on_its_way(request, entry)
                except NeedsPeopleError as asked:
                    # Under the id of the next round: people are asked, or their answer is there and the call goes on.
                    request = await asyncio.to_thread(self._next_round, request, asked.needs)
        except (RefusedError, BoundExceededError, UsageError) as refusal:
            outcome = self._outcome(request, OutcomeKind.DENIED, refusal)
            await asyncio.to_thread(self._guard.refused, request, reason=outcome.detail)
            return outcome
        except OverloadError as shed:
            return self._outcome(request, OutcomeKind.TRANSPORT_ERROR, shed)

    async def _on_its_way(self, request: CallRequest, entry: Entry) -> ToolOutcome | Parked:
        request = await self._prepared(request)
        way = await self._entered(request)
        match way:
            case Parked():
                return way
            case Verdict():
                return denied(request, way)
        effect = entry.tool.tool_class.is_effect
        outcome = await (self._act(request, entry) if effect else self._read(request, entry, way))
        return await self._handed_over(request, with_edit(request, outcome))

    async def _entered(self, request: CallRequest) -> Passage | Parked | Verdict:
        """Enter the guard. A read that is given up meanwhile leaves its account whole: it holds nothing of a budget."""
        entering = _in_thread(self._guard.enter, request)
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            with suppress(QuellError):
                way = await entering
                if isinstance(way, Passage) and way.reservation is not None:
                    unsent = self._outcome(request, OutcomeKind.TRANSPORT_ERROR, None, detail="it was given up unsent")
                    await asyncio.shield(asyncio.to_thread(self._guard.end_read, request, way, unsent))
            raise

    # -- what people are shown --------------------------------------------------------------------------------------

    async def _prepared(self, request: CallRequest) -> CallRequest:
        """Gather what people are shown beside a call that they will be asked about: its dry run, what is known.

        Both are bound into their decision. The dry run is made again before the effect, and another outcome of it is
        another request. What the inventory knows stays as it was when they were asked.
        """
        tool, is_planned = request.tool, bool(request.caller.approval or request.edited)
        if not (tool.tool_class.is_effect or tool.resource.destination) or is_planned:
            return request
        if not tool.dry_run and self._inventory is None:
            return request
        asked = await asyncio.to_thread(self._guard.outlook, request)
        if asked == "none":
            return request
        diff = request.diff or (await self._dry_run(request) if tool.dry_run else "")
        facts = request.facts
        if not facts and isinstance(asked, AskedCall) and asked.diff == diff:
            facts = asked.facts[: len(asked.facts) - (len(request.needs.asks) if request.needs else 0)]
        elif not facts and self._inventory is not None:
            facts = await facts_of(request.call.resource, inventory=self._inventory, clean=self._redactor.text)
        return replace(request, diff=diff, facts=facts)

    async def _dry_run(self, request: CallRequest) -> str:
        """Ask the tool that the operator named what would change, with the same arguments, through this same path."""
        name = request.tool.dry_run
        if not self._only_reads(name):
            return no_dry_run(name)
        asked = ToolCall(id=f"{request.call.id}.dry", tool=name, arguments=request.call.arguments)
        return diff_of(name, await self.call(asked, caller=replace(request.caller, origin=CallOrigin.DRY_RUN)))

    def _only_reads(self, name: str) -> bool:
        return any(tool.name == name and not tool.tool_class.is_effect for tool in self._registry.tools)

    # -- questions of servers ---------------------------------------------------------------------------------------

    def _taken_up(self, request: CallRequest) -> CallRequest:
        """Take up what people or a server said about this call before: other arguments, or a question.

        Raises RefusedError when people edited it and their edit is void: the call as it was is not done instead.
        """
        call, needs = request.call, None
        with self._database.reading() as connection:
            if is_round(call.id):
                needs = self._asks.find(connection, run=call.run, call=call.id)
            tenant, base = request.caller.principal.tenant, base_of(call.id)
            edit = self._guard.approvals.edited(connection, replace(call, id=base), tenant=tenant)
        request = replace(request, needs=needs)
        if edit is None:
            return request
        approval, arguments = edit
        frozen = freeze(request.tool, run=call.run, call=call.id, arguments=arguments, environment=self._environment)
        return replace(
            request,
            call=frozen,
            edited=approval.id if base == call.id else "",
            editors=approval.terms.barred,
            diff="",
            revert="[]",
            explanation="",
        )

    def _answered(self, request: CallRequest, *, approval: str) -> CallRequest:
        """Take up what people filled into the server's form. Raises RefusedError when they do not say the same."""
        tenant = request.caller.principal.tenant
        with self._database.reading() as connection:
            said = self._guard.approvals.answers(connection, request.call, approval=approval, tenant=tenant)
        return replace(request, answers=said)

    def _next_round(self, request: CallRequest, needs: NeedsPeople) -> CallRequest:
        """Return the same call under an id of its own, with what its server asks: approving it is the answer.

        Raises RefusedError when no approval can be one.
        """
        # The words only: by everything else the server knows its own question again.
        asks = tuple(replace(ask, message=self._redactor.text(ask.message)) for ask in needs.asks)
        needs = replace(needs, asks=asks)
        identifier = next_round(request.call.id)
        if identifier is None or self._guard.approvals.form_of(needs.asks) is None:
            asked = "; ".join(ask.message for ask in needs.asks)
            raise RefusedError(f"the server asks what no approval can answer; nothing was done: {asked[:500]!a}")
        again = replace(request, call=replace(request.call, id=identifier), needs=needs, edited="")
        with self._database.writing() as connection:
            self._asks.keep(connection, again, needs)
        return again

    # -- reads --------------------------------------------------------------------------------------------------------

    async def _read(self, request: CallRequest, entry: Entry, passage: Passage) -> ToolOutcome:
        outcome = self._outcome(request, OutcomeKind.TRANSPORT_ERROR, None, detail="it was given up")
        try:
            approval = passage.ids.get("approval", "")
            outcome = await self._sent(request, entry, key="", retryable="read", approval=approval)
        except QuellError as error:
            outcome = self._outcome(request, OutcomeKind.TRANSPORT_ERROR, error)
        except NeedsPeopleError as asked:
            outcome = self._outcome(request, OutcomeKind.DENIED, None, detail=str(asked))
            raise
        finally:
            await asyncio.shield(_in_thread(self._guard.end_read, request, passage, outcome))
        return replace(outcome, evidence={**outcome.evidence, **passage.ids})

    async def _sent(
        self, request: CallRequest, entry: Entry, *, key: str, retryable: str, approval: str
    ) -> ToolOutcome:
        """Have the hand do it, under the limits of what it rests on; what comes back holds no secret from here on.

        Raises OverloadError and RefusedError when nothing was sent, and NeedsPeopleError when the server asks first;
        whatever else a hand raises is an outcome.
        """
        if request.needs is not None:
            request = await asyncio.to_thread(self._answered, request, approval=approval)
        if request.caller.on_start is not None and request.caller.origin not in _OURS:
            request.caller.on_start()
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
        used: list[str] = [""]

        async def send(key: str, attempt: int) -> Ending:
            try:
                outcome = await self._sent(request, entry, key=key, retryable="effect", approval=used[-1])
            except NeedsPeopleError as error:
                asked.append(error)
                return NotHappened(detail=str(error))
            except (OverloadError, RefusedError) as error:
                return NotHappened(detail=self._redactor.text(str(error)))
            last[:] = [replace(outcome, attempts=attempt)]
            return ending(request, outcome)

        def on_intent(connection: Connection, _effect: Effect) -> None:
            self._guard.on_intent(connection, request)

        def on_start(connection: Connection, effect: Effect) -> None:
            self._guard.on_start(connection, request, effect)
            used[:] = [effect.approval]

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
        return outcome_of(request, effect, last[0] if last else None)

    def _probe(self, request: CallRequest) -> Callable[[], Awaitable[Ending]] | None:
        """Return what looks whether an effect happened: a read through this same path, named by the tool's terms."""
        tool = request.tool
        if tool.recovery is not Recovery.PROBEABLE or not tool.probe:
            return None
        looks = 0

        async def look() -> Ending:
            nonlocal looks
            looks += 1
            if not self._only_reads(tool.probe):
                return Unclear(detail=f"`{tool.probe}` stands as the look and is no tool that only reads")
            asked = ToolCall(id=f"{request.call.id}.look{looks}", tool=tool.probe, arguments=request.call.arguments)
            found = await self.call(asked, caller=replace(request.caller, origin=CallOrigin.PROBE))
            if isinstance(found, Parked) or not found.is_citable:
                return Unclear(detail="the look itself brought nothing that can be believed")
            return seen(found)

        return look

    # -- what the caller gets -----------------------------------------------------------------------------------------

    async def _handed_over(self, request: CallRequest, outcome: ToolOutcome) -> ToolOutcome:
        """Put aside what is too large to be given whole."""
        content = outcome.content
        digest = outcome.digest or hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()
        clean = replace(outcome, digest=digest)
        caller = request.caller
        min_tokens = caller.spill.min_tokens_of(request.tool) if caller.spill is not None else None
        if request.tool.server == "" or not self._scratchpad.is_large(content, min_tokens=min_tokens):
            return clean
        # A small result that is put aside is told in less: a head as long as itself would save nothing.
        head_tokens = None if min_tokens is None else max(_HEAD_MIN_TOKENS, len(content) // _HEAD_SHARE_CHARS)
        owner = pad_owner_of(caller)
        try:
            spilled = await self._scratchpad.put(owner, content, head_tokens=head_tokens)
        except QuellError as error:
            return replace(clean, kind=OutcomeKind.TRUNCATED, content="", detail=f"the result was not kept: {error}")
        return replace(clean, content=spilled.head, is_json=False, handle=spilled.handle)

    async def _turned_away(self, wanted: ToolCall, caller: ToolCaller, refusal: QuellError) -> ToolOutcome:
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
        # Not every text of a model can be written down: what cannot is named.
        call, tool = (text[:_ID_MAX_CHARS].encode("utf-8", "backslashreplace").decode() for text in (call, tool))
        outcome = ToolOutcome(call=call, tool=tool, kind=OutcomeKind.DENIED, detail=told, attempts=0)
        is_known = not (isinstance(refusal, RefusedError) and refusal.code == "unknown")
        telemetry.genai.turned_away(outcome, run=caller.run, known_as=tool if is_known else "")
        return outcome

    def _cleaned(self, listener: Callable[[CallProgress], None]) -> Callable[[CallProgress], None]:
        """Return a listener to progress that hears no secret of ours."""

        def tell(progress: CallProgress) -> None:
            listener(replace(progress, message=self._redactor.text(progress.message)[:_PROGRESS_MAX_CHARS]))

        return tell

    def _refuse_secrets(self, *texts: str) -> None:
        """Refuse a call that holds a secret of ours: its bytes are kept, shown and sent as they are."""
        if name := self._redactor.held_in("\0".join(texts)):
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


def _in_thread(work: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> asyncio.Future[T]:
    """Do as `asyncio.to_thread` does, without a task around it: every read pays for this twice."""
    return asyncio.get_running_loop().run_in_executor(None, partial(copy_context().run, partial(work, *args, **named)))


def _refuse_odd_id(identifier: str, *, chars_max: int) -> None:
    """Refuse the id of a call that no record, key or database can carry; models write ids too."""
    if not identifier.isprintable() or not 0 < len(identifier) <= chars_max:
        raise RefusedError(
            "the id of a call holds what no id holds",
            hint=f"use up to {_ID_MAX_CHARS} letters, digits, `_`, `-`",
        )
