"""The guard: one verdict per call, and one transaction that binds it to everything that rests on it.

What is decided before an effect is decided again in the transaction that writes its intent, and once more in the one that
lets it go: between a verdict and its use nothing can change unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from quell.audit import Audit
from quell.domain import (
    AskedCall,
    AuditEntry,
    AuditKind,
    AutonomyScope,
    BoundExceededError,
    CallRequest,
    Charge,
    Clock,
    Consumption,
    Effect,
    EffectState,
    Entropy,
    Facts,
    Intent,
    Parked,
    Principal,
    RefusedError,
    Reservation,
    Spender,
    Standing,
    SwitchState,
    ToolOutcome,
    UsageError,
    Verdict,
)
from quell.governance import _approval_rows as approval_rows
from quell.governance._approval_account import use_of
from quell.governance._approvals import Approvals
from quell.governance._asking import (
    Asking,
    Ruling,
    asked_anyway,
    flat,
    is_plain_read,
    needs_people,
    plan_of,
    presented_of,
    reasons,
)
from quell.governance._autonomy import Autonomy
from quell.governance._budgets import Budgets
from quell.governance._policy import PolicySet
from quell.governance._policy_schema import effective_class
from quell.governance._switches import Switches
from quell.runs import Connection, Database, Ledger

_HISTORY = timedelta(hours=1)
_GRACE_S = 600.0
_UNEARNED = Standing().level
"""How far everybody may go of whom nothing is known."""
_QUIET_MIN_S = 1.0
"""What is on its way in a network does not hurry because its tool is quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A call that was let through: what it holds until it has ended."""

    spender: Spender
    reservation: Reservation | None = None
    """Of a read; an effect reserves with its intent."""
    used: Consumption | None = None
    """The approval that a read used up."""
    ids: Mapping[str, str] = field(default_factory=dict)


class Guard:
    """Decides about every call of a process, and keeps the account of each."""

    def __init__(
        self,
        database: Database,
        *,
        policy: PolicySet,
        approvals: Approvals,
        switches: Switches,
        budgets: Budgets,
        audit: Audit,
        ledger: Ledger,
        autonomy: Autonomy,
        clock: Clock,
        entropy: Entropy,
        services: Callable[[], int] = lambda: 0,
    ) -> None:
        """Join the organs; `services` tells how many services are known, for the share that a call touches."""
        self._database = database
        self.policy = policy
        """The policies in force; a change of pins replaces them whole."""
        self.approvals = approvals
        self.switches = switches
        self.budgets = budgets
        self.audit = audit
        self.ledger = ledger
        self.autonomy = autonomy
        self._clock = clock
        self._entropy = entropy
        self._services = services
        self.people = Asking(database, approvals=approvals, audit=audit, judge=self._decide, entry=self._entry)
        """Who asks people: about a call, a plan, or what they made of one."""

    def enter(self, request: CallRequest) -> Passage | Parked | Verdict:
        """Decide about a call: let it through, ask people, or say no; each is on record before this returns.

        An effect that the ledger knows already was let through once: it goes on from there, where every attempt is
        decided again.

        Raises:
            RefusedError: people rejected exactly this, an approval can not be used, or the id is of another effect.
            BoundExceededError: a cap would be passed.
            JournalError: the account cannot be kept; then nothing is let through.
        """
        if is_plain_read(request):
            ruling = self._read_ruling(request)
            if ruling.verdict.decision == "permit":
                return self._begin_read(request, ruling)
        with self._database.reading() as connection:
            if self._is_known(connection, request):
                return Passage(spender=_spender(request))
            ruling = self._decide(connection, request, lock="none")
            # A twin may have used the approval up between the two looks; then people have nothing left to decide.
            if ruling.verdict.decision != "permit" and self._is_known(connection, request):
                return Passage(spender=_spender(request))
        match ruling.verdict.decision:
            case "ask":
                stands_in_one = request.caller.approval or request.edited
                return (self.people.go_on if stands_in_one else self.people.park)(request, ruling)
            case "permit":
                is_effect = request.tool.tool_class.is_effect
                return Passage(spender=_spender(request)) if is_effect else self._begin_read(request, ruling)
            case "deny":
                self.audit.note(self._entry(AuditKind.DECISION, request, reasons(ruling)))
                return ruling.verdict

    def outlook(self, request: CallRequest) -> AskedCall | Literal["new", "none"]:
        """Say whether people will be asked about a call: what they were shown, `new` when nothing yet, `none` when not.

        It decides nothing and is not on record. Raises as `enter` does.
        """
        with self._database.reading() as connection:
            if self._is_known(connection, request):
                return "none"
            if self._decide(connection, request, lock="none").verdict.decision != "ask":
                return "none"
            call = request.call
            identifier = approval_rows.find_of_call(connection, run=call.run, call=call.id)
            tenant = request.caller.principal.tenant
            approval = self.approvals.find(connection, identifier, tenant=tenant) if identifier else None
            if approval is None or approval.status not in approval_rows.LIVE:
                return "new"
            return next((asked for asked in approval.terms.calls if asked.call == call), "new")

    def refused(self, request: CallRequest, *, reason: str) -> None:
        """Keep the account of a call that was refused after its verdict: by people, a cap, or what changed meanwhile."""
        call = request.call
        body = {
            "call": call.id,
            "tool": call.tool,
            "digest": call.digest,
            "reason": reason[:2000],
            "origin": request.caller.origin.value,
        }
        principal = request.caller.principal.user
        self.audit.note(self.audit.entry(AuditKind.REFUSAL, run=call.run, principal=principal, body=body))

    is_plain = staticmethod(is_plain_read)
    """Tells whether a call can neither change anything, nor carry anything out, nor answer a server for people."""

    def turn_away(self, *, run: str, principal: str, tool: str, reason: str) -> None:
        """Keep the account of input that never became a call: an unknown tool, arguments that no schema allows."""
        digest = hashlib.sha256(tool.encode("utf-8", "replace")).hexdigest()
        body = {"tool": tool[:200], "tool_digest": digest, "reason": reason[:2000]}
        self.audit.note(self.audit.entry(AuditKind.REFUSAL, run=run, principal=principal, body=body))

    # -- reads: let through, and counted when they have ended ------------------------------------------------------

    def _begin_read(self, request: CallRequest, ruling: Ruling) -> Passage:
        """Let a read through: use its approval up if it needed one, reserve, and keep the account, together."""
        needs_people = ruling.presented is not None
        entry = self._entry(AuditKind.DECISION, request, reasons(ruling))
        with self._database.writing(durability="flushed" if needs_people else "written") as connection:
            if not is_plain_read(request):
                ruling = self._decide(connection, request, lock="share")
            used = self._use(connection, request, ruling)
            if used is not None:
                entry = self._entry(AuditKind.DECISION, request, {**reasons(ruling), **use_of(used)})
            # A key of its own each time: a read that comes again under its old id is done again, and costs again.
            reservation = self._reserve(connection, request, key=f"{request.call.id}.{self._entropy(8).hex()}")
            (record,) = self.audit.append(connection, entry)
        ids = {"audit": str(record.number)} | ({"approval": used.approval} if used else {})
        return Passage(reservation=reservation, spender=_spender(request), used=used, ids=ids)

    def end_read(self, request: CallRequest, passage: Passage, outcome: ToolOutcome) -> None:
        """Settle what a read reserved, and keep the account of how it ended."""
        assert passage.reservation is not None, "a read reserves"
        used = passage.used
        body = _outcome_body(outcome) | ({"approval": used.approval} if used is not None else {})
        entry = self._ended(request, body)
        ended: Literal["done", "failed"] = "done" if outcome.kind.is_answer else "failed"
        with self._database.writing(durability="written") as connection:
            also = self.approvals.step_ended(connection, used, ended=ended) if used is not None else ()
            self.budgets.settle(connection, passage.reservation, _spent(request, outcome), spender=passage.spender)
            self.audit.append(connection, *also, entry)

    # -- effects: joined into the three transactions of the ledger -------------------------------------------------

    def intent(self, request: CallRequest) -> Intent:
        """Return what the ledger is to bring about, with the approval that it will use up if there is one."""
        call, caller = request.call, request.caller
        # What waits to be recorded is written before the effect, whose flush covers it.
        self.audit.flush()
        with self._database.reading() as connection:
            ruling = self._decide(connection, request, lock="none")
            approval = self._approval_of(connection, request) if ruling.presented is not None else ""
        return Intent(
            call=call,
            recovery=request.tool.recovery,
            user=caller.principal.user,
            tenant=caller.principal.tenant,
            workflow_digest=caller.principal.workflow_digest,
            revert=plan_of(request),
            approval=approval,
            timeout_s=request.tool.timeout_s,
            quiet_s=max(_QUIET_MIN_S, request.tool.timeout_s),
        )

    def on_intent(self, connection: Connection, request: CallRequest) -> None:
        """Decide again, use the approval up, reserve and keep the account, all with the intent or not at all."""
        ruling = self._decide(connection, request, lock="share")
        used = self._use(connection, request, ruling)
        self._reserve(connection, request, key=request.call.id)
        body = {**reasons(ruling), "revert": plan_of(request), **use_of(used)}
        self.audit.append(connection, self._entry(AuditKind.EFFECT, request, body))

    def on_start(self, connection: Connection, request: CallRequest, effect: Effect) -> None:
        """Decide a last time, in the transaction that lets it go. Raises RefusedError when it may not."""
        stops = self.switches.state(connection, lock="share")
        facts = self._facts(connection, request, stops)
        people = self._people_of(connection, effect) if effect.approval else 0
        verdict = self._verdict(request, self._acting(connection, request), replace(facts, approvals=people))
        if verdict.decision != "permit":
            raise RefusedError(f"it may not go now: {verdict.reason}", hint="nothing was sent by this attempt")

    def on_end(self, connection: Connection, request: CallRequest, effect: Effect, outcome: ToolOutcome | None) -> None:
        """Settle and keep the account, in the transaction that writes what became of it."""
        also: tuple[AuditEntry, ...] = ()
        if effect.approval and (used := self._used_of(connection, effect)) is not None:
            ended: Literal["done", "failed"] = "done" if effect.state is EffectState.DONE else "failed"
            also = self.approvals.step_ended(connection, used, ended=ended)
        with suppress(
            RefusedError, BoundExceededError, UsageError
        ):  # what cannot be settled is charged as reserved when its time is over
            reservation = self._reserve(connection, request, key=request.call.id)
            spent = _spent(request, outcome) if outcome is not None else None
            self.budgets.settle(connection, reservation, spent, spender=_spender(request))
        body: dict[str, object] = {
            "state": effect.state.value,
            "reason": effect.reason,
            "detail": effect.detail,
            "effect": effect.key,
        }
        body |= {"attempts": effect.attempts, "result_digest": effect.result_digest}
        body |= {"approval": effect.approval} if effect.approval else {}
        self.audit.append(connection, *also, self._ended(request, body))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _read_ruling(self, request: CallRequest) -> Ruling:
        """Decide about a plain read from memory: it has no history, takes nothing out, and stops are known well enough."""
        stops = self.switches.glance()
        facts, acting = _stop_facts(request, stops, is_emergency=False), request.caller.principal
        if acting.level > _UNEARNED:
            # What was earned stands in the journal: who needs more than anybody has is decided about there.
            acting = replace(acting, level=_UNEARNED)
        return Ruling(verdict=self._verdict(request, acting, facts), facts=facts, acting=acting)

    def _is_known(self, connection: Connection, request: CallRequest) -> bool:
        """Tell whether it is an effect that the ledger has. Raises RefusedError when it has another under the same id."""
        call = request.call
        if not request.tool.tool_class.is_effect:
            return False
        known = self.ledger.find_call(connection, run=call.run, call=call.id)
        if known is None or known.call.digest == call.digest:
            return known is not None
        raise RefusedError(
            f"call {call.id} stands in the ledger with other arguments", hint="give another call another id"
        )

    def _decide(self, connection: Connection, request: CallRequest, *, lock: Literal["share", "none"]) -> Ruling:
        """Decide in a transaction: without people first, then with those who approved exactly this."""
        stops = self.switches.state(connection, lock=lock)
        facts = self._facts(connection, request, stops)
        acting = self._acting(connection, request)
        verdict = self._verdict(request, acting, facts)
        is_extra = verdict.decision == "permit" and needs_people(request)
        if is_extra:
            verdict = asked_anyway(request, verdict)
        if verdict.decision != "ask":
            return Ruling(verdict=verdict, facts=facts, acting=acting)
        presented = presented_of(request, verdict)
        people = self.approvals.valid(connection, presented)
        if people and (not (is_extra or request.needs) or people >= verdict.quorum):
            counted = replace(facts, approvals=people)
            again = self._verdict(request, acting, counted)
            if again.decision == "permit":
                return Ruling(verdict=again, facts=counted, acting=acting, presented=presented)
        return Ruling(verdict=verdict, facts=facts, acting=acting)

    def _acting(self, connection: Connection, request: CallRequest) -> Principal:
        """Return who acts. How far a workflow may go by itself is what it has earned, never what a caller says.

        It earns by the class that policies judge by, so that what nothing undoes never rides on what could be undone;
        what has no version can earn nothing.
        """
        principal = request.caller.principal
        earned = _UNEARNED
        if principal.workflow_digest:
            scope = AutonomyScope(
                tenant=principal.tenant,
                workflow_digest=principal.workflow_digest,
                action_class=effective_class(request.tool),
                environment=request.call.resource.environment,
            )
            earned = self.autonomy.level(connection, scope)
        return principal if principal.level <= earned else replace(principal, level=earned)

    def _verdict(self, request: CallRequest, acting: Principal, facts: Facts) -> Verdict:
        return self.policy.admit(request.call, tool=request.tool, principal=acting, facts=facts)

    def _use(self, connection: Connection, request: CallRequest, ruling: Ruling) -> Consumption | None:
        """Use up what made it a permit. Raises RefusedError when it is none."""
        if ruling.verdict.decision != "permit":
            raise RefusedError(
                f"`{request.call.tool}` is not permitted now: {ruling.verdict.reason}",
                hint="things changed since it was admitted; nothing was done",
            )
        return None if ruling.presented is None else self.approvals.consume(connection, ruling.presented)

    def _facts(self, connection: Connection, request: CallRequest, stops: SwitchState) -> Facts:
        call, principal = request.call, request.caller.principal
        emergency = self.approvals.break_glass.covers(connection, principal, run=call.run)
        stopped = _stop_facts(request, stops, is_emergency=bool(emergency))
        if not request.tool.tool_class.is_effect:
            return stopped
        past = self.ledger.facts(
            connection,
            call=call,
            workflow_digest=principal.workflow_digest,
            tenant=principal.tenant,
            since=self._clock() - _HISTORY,
        )
        known = self._services()
        return replace(
            stopped,
            calls_1h=past.calls,
            services_1h=past.resources,
            units_1h=past.units,
            failures_1h=past.failures,
            in_flight=past.in_flight,
            blast_percent=min(100, -(-100 // known)) if known else 0,
        )

    def _reserve(self, connection: Connection, request: CallRequest, *, key: str) -> Reservation:
        """Reserve the most that a call can take; the same key again takes nothing more."""
        tool, call = request.tool, request.call
        charge = Charge(
            calls=1,
            wall_ms=int(tool.timeout_s * 1000),
            size_bytes=tool.result_max_bytes,
            blast_units=call.resource.units if tool.tool_class.is_effect else 0,
        )
        return self.budgets.reserve(
            connection, charge, spender=_spender(request), key=key, lifetime_s=tool.timeout_s + _GRACE_S
        )

    def _approval_of(self, connection: Connection, request: CallRequest) -> str:
        call = request.call
        return (
            request.edited
            or request.caller.approval
            or approval_rows.find_of_call(connection, run=call.run, call=call.id, digest=call.digest)
            or ""
        )

    def _people_of(self, connection: Connection, effect: Effect) -> int:
        """Count who approved an effect. Raises RefusedError when its time is over: a crash makes no old yes a new one."""
        approval = self.approvals.find(connection, effect.approval, tenant=effect.tenant)
        if approval is None:
            return 0
        if self._clock() >= approval.terms.expires_at:
            raise RefusedError(f"approval {approval.id} has expired by now", hint="ask people again, in a new call")
        return len(approval_rows.approvers(approval.votes))

    def _used_of(self, connection: Connection, effect: Effect) -> Consumption | None:
        """Find which call of its approval an effect was; after a crash nobody remembers."""
        approval = self.approvals.find(connection, effect.approval, tenant=effect.tenant)
        if approval is None:
            return None
        ids = [asked.call.id for asked in approval.terms.calls]
        if effect.call.id not in ids:
            return None
        return Consumption(
            approval=approval.id,
            digest=approval.digest,
            position=ids.index(effect.call.id),
            of=len(ids),
            voters=approval_rows.approvers(approval.votes),
        )

    def _entry(self, kind: AuditKind, request: CallRequest, body: Mapping[str, object]) -> AuditEntry:
        """Write down a call whole, so that the decision can be taken again from its record."""
        call, principal = request.call, request.caller.principal
        told = {
            "call": call.id,
            "tool": call.tool,
            "pin": call.pin,
            "digest": call.digest,
            "arguments": call.arguments,
            "resource": flat(call.resource),
            "evidence_digest": request.caller.evidence_digest,
            "principal": flat(principal),
        }
        return self.audit.entry(kind, run=call.run, principal=principal.user, body={**told, **body})

    def _ended(self, request: CallRequest, body: Mapping[str, object]) -> AuditEntry:
        """Write down how a call ended; what it was stands in its decision, under the same digest."""
        call = request.call
        told = {"call": call.id, "tool": call.tool, "digest": call.digest}
        return self.audit.entry(
            AuditKind.OUTCOME, run=call.run, principal=request.caller.principal.user, body={**told, **body}
        )


def _stop_facts(request: CallRequest, stops: SwitchState, *, is_emergency: bool) -> Facts:
    covering = stops.stops(request.call, principal=request.caller.principal, also=request.tool.also)
    return Facts(
        is_killed=any(switch.kind == "kill" for switch in covering),
        is_frozen=any(switch.kind == "freeze" for switch in covering),
        is_break_glass=is_emergency,
        origin=request.caller.origin,
    )


def _spender(request: CallRequest) -> Spender:
    principal = request.caller.principal
    return Spender(run=request.call.run, agent=principal.agent, feature=request.caller.feature, tenant=principal.tenant)


def _spent(request: CallRequest, outcome: ToolOutcome) -> Charge:
    return Charge(
        calls=1,
        wall_ms=max(0, int(outcome.elapsed_ms)),
        size_bytes=outcome.size_bytes,
        blast_units=request.call.resource.units if request.tool.tool_class.is_effect else 0,
    )


def _outcome_body(outcome: ToolOutcome) -> dict[str, object]:
    return {
        "kind": outcome.kind.value,
        "detail": outcome.detail,
        "result_digest": outcome.digest,
        "size_bytes": outcome.size_bytes,
        "attempts": outcome.attempts,
    }
