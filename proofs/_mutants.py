"""Guards with a hole: each leaves out one protection, by a small patch of the real thing, so that a proof must see it.

Where one layer covers for another, both are left out together, and the name says so: `this + that`.
"""

# ruff: noqa: SLF001 - a hole is made where the protection is, inside

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from proofs import _mutants_around
from quell.domain import (
    Approval,
    CallRequest,
    EffectFacts,
    FrozenCall,
    PadOwner,
    Presented,
    Recovery,
    RefusedError,
    Resource,
    SwitchState,
    Tool,
    ToolCall,
    Verdict,
)
from quell.governance import Budgets, Guard, PolicySet, Switches
from quell.governance import _approval_account as account
from quell.governance import _approval_rows as rows
from quell.governance import _approvals as approvals
from quell.governance import _arguments as arguments
from quell.governance import _guard as guard
from quell.governance import _plan as plan
from quell.governance import _policy as policy
from quell.governance import _policy_engine as engine
from quell.governance._schema import ArgumentSchema
from quell.runs import Connection, Ledger
from quell.runs import _effect as rules
from quell.runs import _effect_table as table
from quell.runs import _ledger as ledger
from quell.tools import Registry, Scratchpad, Toolbox
from quell.tools._registry import Entry

Patch = tuple[object, str, object]
_LIVE: ContextVar[object] = ContextVar("live", default=None)


def _lax_schema() -> list[Patch]:
    return [(ArgumentSchema, "mistakes", lambda _self, _value: ())]


def _unknown_tools() -> list[Patch]:
    find, admit = Registry.find, PolicySet.admit

    def found(self: Registry, name: str, **rest: Any) -> Entry:
        try:
            return find(self, name, **rest)
        except RefusedError:
            like = find(self, "restart")
            return replace(like, tool=replace(like.tool, name=name, original=name))

    def admitted(self: PolicySet, call: FrozenCall, **rest: Any) -> Verdict:
        if call.tool not in self._tools:
            return Verdict(decision="permit", policies=("default",), reason="nobody forbids it")
        return admit(self, call, **rest)

    return [(Registry, "find", found), (PolicySet, "admit", admitted)]


def _intent() -> list[Patch]:
    decide = Guard._decide

    def decided(self: Guard, connection: Connection, request: CallRequest, *, lock: Any) -> Any:
        """Believe, once written, what was decided before: only stops and facts of then count."""
        ruling = decide(self, connection, request, lock=lock)
        if lock == "share" and request.tool.tool_class.is_effect and ruling.verdict.decision == "deny":
            return replace(ruling, verdict=replace(ruling.verdict, decision="permit"))
        return ruling

    return [(Guard, "_decide", decided)]


def _start() -> list[Patch]:
    return [(Guard, "on_start", lambda _self, _connection, _request, _effect: None)]


def _drifts(*names: str) -> list[Patch]:
    """Bind approvals to all but some fields of the call."""
    drifted = plan.drifted

    def lax(terms: Any, presented: Presented, *, position: int, digest: str) -> tuple[str, ...]:
        asked = terms.calls[position].call
        call = replace(presented.call, **{name: getattr(asked, name) for name in names})
        revert = terms.calls[position].revert_plan
        return drifted(terms, replace(presented, call=call, revert_plan=revert), position=position, digest=digest)

    return [(plan, "drifted", lax)]


def _any_run() -> list[Patch]:
    """Find the approval of a call by its id alone, whichever run asked."""
    standing = approvals.Approvals._standing

    def of_any(self: Any, connection: Connection, presented: Presented, *, lock: str) -> tuple[Approval, int]:
        query = (
            "SELECT a.id, a.run, a.body FROM quell_approval_calls c JOIN quell_approvals a ON a.id = c.approval"
            " WHERE c.call = :call AND a.status = 'approved'"
        )
        for row in connection.all(query, call=presented.call.id):
            approval = self._load(connection, row.id, lock=lock)
            asked = approval.terms.calls[0].call
            if (asked.tool, asked.arguments) == (presented.call.tool, presented.call.arguments):
                return approval, 0
        return standing(self, connection, presented, lock=lock)

    def named(_self: Guard, connection: Connection, request: CallRequest) -> str:
        row = connection.first(
            "SELECT approval FROM quell_approval_calls WHERE call = :call ORDER BY approval DESC LIMIT 1",
            call=request.call.id,
        )
        return "" if row is None else str(row.approval)

    return [(approvals.Approvals, "_standing", of_any), (Guard, "_approval_of", named)]


def _reusable() -> list[Patch]:
    def used(connection: Connection, approval: str, **_rest: Any) -> bool:
        del connection, approval
        return True

    settle = approvals.Approvals._settle

    def settled(self: Any, connection: Connection, approval: Approval, *, to: Any, by: str, reason: str) -> None:
        if to != "consumed":
            settle(self, connection, approval, to=to, by=by, reason=reason)

    # The account in the audit log would tell by itself.
    return [
        (rows, "use_step", used),
        (approvals.Approvals, "_settle", settled),
        (account, "check", lambda *_rest, **_more: None),
    ]


def _timeless() -> list[Patch]:
    load = rows.load

    def loaded(connection: Connection, identifier: str, *, at: datetime, signers: Any, lock: str = "") -> Any:
        return load(connection, identifier, at=at - timedelta(days=30), signers=signers, lock=lock)

    def people(self: Guard, connection: Connection, effect: Any) -> int:
        approval = self.approvals.find(connection, effect.approval, tenant=effect.tenant)
        return 0 if approval is None else len(rows.approvers(approval.votes))

    return [(rows, "load", loaded), (Guard, "_people_of", people)]


def _self_approval() -> list[Patch]:
    init = approvals.Approvals._terms

    def nobody_barred(self: Any, request: Any, *, expires_s: Any, barred: Any, supersedes: str) -> Any:
        del barred
        return init(self, request, expires_s=expires_s, barred=(), supersedes=supersedes)

    return [(approvals.Approvals, "_terms", nobody_barred)]


def _counts_double() -> list[Patch]:
    """Count each person twice, so that one is a quorum of two."""
    once = rows.approvers

    def twice(votes: Any) -> tuple[str, ...]:
        return once(votes) * 2

    return [(rows, "approvers", twice), (approvals, "approvers", twice)]


def _named_resource() -> list[Patch]:
    resource_of = arguments.resource_of

    def lies(tool: Tool, value: Any, *, environment: str) -> Resource:
        named = value.get("note") if isinstance(value, dict) else None
        return resource_of(tool, {**value, "service": named} if named else value, environment=environment)

    return [(arguments, "resource_of", lies), (policy, "resource_of", lies)]


def _unstopped() -> list[Patch]:
    state = Switches.state

    def none(self: Switches, connection: Connection, *, lock: Any) -> SwitchState:
        read = state(self, connection, lock=lock)
        return replace(read, switches=()) if lock == "share" else read

    return [(Switches, "state", none)]


def _unstopped_reads() -> list[Patch]:
    glance = Switches.glance
    return [(Switches, "glance", lambda self: replace(glance(self), switches=()))]


def _egress_by_memory() -> list[Patch]:
    return [(guard, "is_plain_read", lambda request: not request.tool.tool_class.is_effect)]


def _budget_in_flight() -> list[Patch]:
    balance = Budgets._balance
    return [(Budgets, "_balance", lambda *all_: replace(balance(*all_), in_flight=0))]


def _free_again() -> list[Patch]:
    """Let a key that was paid for once be free for ever: what the harness found in the guard's reads."""
    reserve = Guard._reserve

    def free(self: Guard, connection: Connection, request: CallRequest, *, key: str) -> Any:
        del key
        return reserve(self, connection, request, key=request.call.id)

    return [(Guard, "_reserve", free)]


def _history_in_flight() -> list[Patch]:
    facts = Ledger.facts

    def ended(self: Ledger, connection: Connection, *, call: FrozenCall, **rest: Any) -> EffectFacts:
        return replace(facts(self, connection, call=call, **rest), in_flight=0)

    return [(Ledger, "facts", ended)]


def _no_history() -> list[Patch]:
    facts = Ledger.facts

    def new(self: Ledger, connection: Connection, *, call: FrozenCall, **rest: Any) -> EffectFacts:
        seen = facts(self, connection, call=call, **rest)
        return replace(seen, calls=0, resources=1, units=call.resource.units, failures=0)

    return [(Ledger, "facts", new)]


def _key_by_id() -> list[Patch]:
    def key_of(call: FrozenCall) -> str:
        return f"{call.run} {call.id}"

    def is_known(self: Guard, connection: Connection, request: CallRequest) -> bool:
        found = self.ledger.find_call(connection, run=request.call.run, call=request.call.id)
        return request.tool.tool_class.is_effect and found is not None

    return [
        (ledger, "key_of", key_of),
        (table, "key_of", key_of),
        (Ledger, "key_of", staticmethod(key_of)),
        (table, "refuse_another", lambda _effect, _intent: None),
        (Guard, "_is_known", is_known),
    ]


def _live_arguments() -> list[Patch]:
    call, sent = Toolbox.call, Toolbox._sent

    async def called(self: Toolbox, wanted: ToolCall, **rest: Any) -> Any:
        token = _LIVE.set(wanted.arguments)
        try:
            return await call(self, wanted, **rest)
        finally:
            _LIVE.reset(token)

    async def sends(self: Toolbox, request: CallRequest, entry: Entry, **rest: Any) -> Any:
        live = _LIVE.get()
        if isinstance(live, dict):
            text = json.dumps(live, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            request = replace(request, call=replace(request.call, arguments=text))
        return await sent(self, request, entry, **rest)

    return [(Toolbox, "call", called), (Toolbox, "_sent", sends)]


def _blind_alone() -> list[Patch]:
    floor = policy._floor
    return [(policy, "_floor", lambda tool: floor(replace(tool, recovery=Recovery.NATURAL)))]


def _foreign_voters() -> list[Patch]:
    sound, held = rows._is_sound, approvals.Approvals._held

    def is_sound(vote: Any, terms: Any, *, digest: str) -> bool:
        return sound(replace(vote, tenant=terms.tenant), terms, digest=digest)

    def holds(self: Any, connection: Connection, identifier: str, *, tenant: str) -> Approval:
        with suppress(RefusedError):
            return held(self, connection, identifier, tenant=tenant)
        other = "umbra" if tenant == "acme" else "acme"
        return held(self, connection, identifier, tenant=other)

    return [(rows, "_is_sound", is_sound), (approvals.Approvals, "_held", holds)]


def _naive_host() -> list[Patch]:
    def host_of(text: str) -> str:
        rest = text.partition("//")[2] or text
        return rest.replace("@", "/").replace(":", "/").split("/")[0]

    return [(arguments, "host_of", host_of)]


def _common_pad() -> list[Patch]:
    put, answer = Scratchpad._put, Scratchpad._answer
    everybody = PadOwner(session="all", tenant="all")

    def kept(self: Scratchpad, _owner: PadOwner, content: Any, **bounds: Any) -> Any:
        return put(self, everybody, content, **bounds)

    def read(self: Scratchpad, tool: str, _owner: PadOwner, given: Mapping[str, object], **bounds: Any) -> Any:
        return answer(self, tool, everybody, given, **bounds)

    return [(Scratchpad, "_put", kept), (Scratchpad, "_answer", read)]


def _no_grants() -> list[Patch]:
    return [(policy, "_beyond_authority", lambda _tool, _principal: None)]


def _blind_again() -> list[Patch]:
    move = rules.next_move

    def again(effect: Any, *, intent: Any, now: datetime, can_look: bool) -> Any:
        safe = replace(effect, recovery=Recovery.NATURAL)
        return move(safe, intent=intent, now=now, can_look=can_look)

    return [(ledger, "next_move", again)]


def _untold() -> list[Patch]:
    on_intent = Guard.on_intent

    def silent(self: Guard, connection: Connection, request: CallRequest) -> None:
        with patch.object(self.audit, "append", lambda *_all: []):
            on_intent(self, connection, request)

    return [(Guard, "on_intent", silent)]


def _ask_as_permit() -> list[Patch]:
    admit = PolicySet.admit

    def easy(self: PolicySet, call: FrozenCall, **rest: Any) -> Verdict:
        verdict = admit(self, call, **rest)
        return replace(verdict, decision="permit") if verdict.decision == "ask" else verdict

    return [(PolicySet, "admit", easy)]


def _tainted_alone() -> list[Patch]:
    run = engine._run

    def clean(uid: dict[str, str], principal: Any) -> Any:
        return run(uid, replace(principal, is_tainted=False))

    return [(engine, "_run", clean)]


def _both(*parts: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
    return lambda: [each for part in parts for each in part()]


MUTANTS: Mapping[str, Callable[[], list[Patch]]] = {
    "schemas judge nothing": _lax_schema,
    "unknown tools are allowed": _unknown_tools,
    "an ask is a permit": _ask_as_permit,
    "not decided again at the intent + not at the start": _both(_intent, _start),
    "stops are not read by what writes": _unstopped,
    "stops are not read by reads": _unstopped_reads,
    "what reaches out is decided from memory": _egress_by_memory,
    "approvals bind no arguments": lambda: _drifts("arguments", "resource", "digest"),
    "approvals bind no tool": lambda: _drifts("tool", "pin", "digest"),
    "approvals bind no run": _any_run,
    "approvals can be used again": _reusable,
    "approvals never expire": _timeless,
    "who asks may approve": _self_approval,
    "one person is a quorum of two": _counts_double,
    "people of another tenant approve": _foreign_voters,
    "the resource stands in a field of its own": _named_resource,
    "budgets ignore what is in flight": _budget_in_flight,
    "what was paid once is free for ever": _free_again,
    "history ignores what is in flight": _history_in_flight,
    "history is not counted": _no_history,
    "the ledger's key has no digest + entries are not compared": _key_by_id,
    "what is sent is the live object": _live_arguments,
    "blind tools go by themselves": _blind_alone,
    "blind effects are sent again": _blind_again,
    "hosts are read naively": _naive_host,
    "results are everybody's": _common_pad,
    "grants of agents are not read": _no_grants,
    "taint is not told to policies": _tainted_alone,
    "effects are not audited": _untold,
    **_mutants_around.MUTANTS,
}
"""What each leaves out, and the patches that do it."""

SUITS: Mapping[str, str] = {
    "not decided again at the intent + not at the start": "storm",
    "stops are not read by what writes": "storm",
    "stops are not read by reads": "watch",
    "what reaches out is decided from memory": "still",
    "results are everybody's": "watch",
    "the resource stands in a field of its own": "storm",
    "taint is not told to policies": "storm",
    "approvals bind no arguments": "asks",
    "approvals bind no tool": "asks",
    "approvals bind no run": "asks",
    "approvals can be used again": "asks",
    "approvals never expire": "asks",
    "who asks may approve": "asks",
    "one person is a quorum of two": "asks",
    "people of another tenant approve": "asks",
    "budgets ignore what is in flight": "siege",
    "what was paid once is free for ever": "siege",
    "history ignores what is in flight": "storm",
    "history is not counted": "storm",
    "the ledger's key has no digest + entries are not compared": "cuts",
    "blind tools go by themselves": "asks",
    "blind effects are sent again": "asks",
    "effects are not audited": "storm",
    **_mutants_around.SUITS,
}
"""The mood in which a hole shows soon; the others show in any."""


@contextmanager
def holed(name: str) -> Iterator[None]:
    """Have a hole in the guard for a while."""
    with ExitStack() as stack:
        for target, attribute, replacement in MUTANTS[name]():
            is_new = not hasattr(target, attribute)
            stack.enter_context(patch.object(target, attribute, replacement, create=is_new))
        yield
