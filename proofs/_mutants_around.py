"""Guards with a hole in what goes on around calls: pins, emergencies, plans, workers, questions of servers, levels."""

# ruff: noqa: SLF001 - a hole is made where the protection is, inside

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from quell.domain import (
    AutonomyScope,
    BreakGlass,
    FrozenCall,
    Level,
    Principal,
    RefusedError,
    Reply,
    Spender,
    StepState,
    Tool,
)
from quell.governance import Budgets, Guard, PolicySet
from quell.governance import _approval_account as account
from quell.governance import _approval_rows as rows
from quell.governance import _approvals as approvals
from quell.governance import _break_glass as glass
from quell.governance import _form as form
from quell.governance import _guard as guard
from quell.governance import _plan as plan
from quell.governance import _policy as policy
from quell.governance._autonomy import Autonomy
from quell.runs import Connection
from quell.runs import _effect_table as table
from quell.tools import _asks as asking
from quell.tools import _registry as registry

Patch = tuple[object, str, object]


def _pinned_once() -> list[Patch]:
    unbound = policy._unbound

    def is_of_old(call: FrozenCall, tool: Tool, known: Tool | None) -> tuple[str, str] | None:
        return unbound(call, tool, known and replace(known, pin=call.pin))

    return [(policy, "_unbound", is_of_old)]


def _policy_of_the_start() -> list[Patch]:
    def write(self: Guard, new: PolicySet) -> None:
        # The second is what is pinned when a story begins.
        vars(self)["seen"] = (*vars(self).get("seen", ()), new)[:2]

    return [(Guard, "policy", property(lambda self: vars(self)["seen"][-1], write))]


def _anybody_breaks() -> list[Patch]:
    opens = glass.BreakGlassRows.open

    def opened(self: Any, connection: Connection, *, by: Principal, reason: str, run: str = "") -> BreakGlass:
        return opens(self, connection, by=replace(by, roles=(*by.roles, glass.OPEN_ROLE)), reason=reason, run=run)

    return [(glass.BreakGlassRows, "open", opened)]


def _agents_break() -> list[Patch]:
    return [(glass, "check_person", lambda _by, **_named: None)]


def _covers(where: str) -> list[Patch]:
    def covers(self: Any, connection: Connection, principal: Principal, *, run: str) -> str:
        row = connection.first(
            f"SELECT id FROM quell_break_glass WHERE tenant = :tenant AND user_name = :user AND {where}",
            tenant=principal.tenant,
            user=principal.user,
            run=run,
            now=rows.stamp(self._clock()),
        )
        return "" if row is None else str(row.id)

    return [(glass.BreakGlassRows, "covers", covers)]


def _in_any_order() -> list[Patch]:
    check = plan.check_turn

    def alone(terms: Any, steps: Any, *, position: int) -> None:
        before: list[StepState] = ["done"] * position
        check(terms, [*before, *steps[position:]], position=position)

    # The log knows of the order as well, for rows that were set back.
    return [(plan, "check_turn", alone), (account, "check", lambda *_all, **_named: None)]


def _after_a_failure() -> list[Patch]:
    check = plan.check_turn

    def easy(terms: Any, steps: Any, *, position: int) -> None:
        passed: list[StepState] = ["done" if step == "failed" else step for step in steps]
        check(terms, passed, position=position)

    ended = approvals.Approvals.step_ended

    def went_well(self: Any, connection: Connection, used: Any, **_named: Any) -> Any:
        return ended(self, connection, used, ended="done")

    return [(plan, "check_turn", easy), (approvals.Approvals, "step_ended", went_well)]


def _left_behind() -> list[Patch]:
    return [(rows, "live_of_run", lambda *_all: ())]


def _any_holder() -> list[Patch]:
    return [(table, "hold", lambda _connection, _fence, *, is_postgres: is_postgres and None)]


def _answered_by_policy() -> list[Patch]:
    answers = approvals.Approvals.answers

    def said(self: Any, connection: Connection, call: FrozenCall, **named: Any) -> str:
        with suppress(RefusedError):
            return answers(self, connection, call, **named)
        return ""

    return [(guard, "needs_people", lambda _request: False), (approvals.Approvals, "answers", said)]


def _yes_to_words() -> list[Patch]:
    filled = form.filled

    def easy(calls: Any, answers: Mapping[str, object]) -> str:
        return filled(calls, answers) if answers else "{}"

    def replies(asks: Any, **_named: Any) -> Any:
        return {ask.key: Reply(action="accept", content="{}") for ask in asks}

    return [(form, "filled", easy), (registry, "replies_of", replies), (asking, "replies_of", replies)]


def _level_by_word() -> list[Patch]:
    return [(Guard, "_acting", lambda _self, _connection, request: request.caller.principal)]


def _levels_kept() -> list[Patch]:
    level = Autonomy.level
    kept: dict[tuple[int, AutonomyScope], Level] = {}

    def remembered(self: Autonomy, connection: Connection, scope: AutonomyScope) -> Level:
        return kept.setdefault((id(self), scope), level(self, connection, scope))

    return [(Autonomy, "level", remembered)]


def _own_books() -> list[Patch]:
    reserve, settle = Budgets.reserve, Budgets.settle

    def own(self: Budgets, spender: Spender) -> Spender:
        return replace(spender, run=f"{spender.run}@{id(self)}")

    def reserved(self: Budgets, connection: Connection, charge: Any, *, spender: Spender, **rest: Any) -> Any:
        return reserve(self, connection, charge, spender=own(self, spender), **rest)

    def settled(self: Budgets, connection: Connection, taken: Any, actual: Any, *, spender: Spender) -> Any:
        return settle(self, connection, taken, actual, spender=own(self, spender))

    return [(Budgets, "reserve", reserved), (Budgets, "settle", settled)]


def _ever_young() -> list[Patch]:
    load = rows.load

    def loaded(connection: Connection, identifier: str, *, at: Any, **rest: Any) -> Any:
        found = load(connection, identifier, at=at - timedelta(days=30), **rest)
        young = {"requested_at": at, "expires_at": at + timedelta(minutes=15)}
        return found and replace(found, terms=replace(found.terms, **young))

    return [(rows, "load", loaded), (plan, "drifted", lambda *_all, **_named: ())]


_NOW = "opened_at <= :now AND expires_at > :now"
_HERE = "((run = :run AND run <> '') OR :run = '')"
MUTANTS: Mapping[str, Callable[[], list[Patch]]] = {
    "pins are compared at the beginning only": _pinned_once,
    "policies and pins are those of the start": _policy_of_the_start,
    "anybody breaks the glass": _anybody_breaks,
    "agents break the glass": _agents_break,
    "emergencies never end": lambda: _covers(f"{_HERE} AND :now <> ''"),
    "an emergency is of every run of its person": lambda: _covers(f"{_NOW} AND :run <> ''"),
    "plans have no order + the log is not asked": _in_any_order,
    "plans go on after a failure": _after_a_failure,
    "plans that were left go on": _left_behind,
    "whoever held a run may go on": _any_holder,
    "policy answers what servers ask + nobody has to have": _answered_by_policy,
    "a yes answers every form": _yes_to_words,
    "levels are what callers say": _level_by_word,
    "levels are read once": _levels_kept,
    "each process keeps its own budgets": _own_books,
    "approvals are ever young": _ever_young,
}
"""What each leaves out, and the patches that do it."""

SUITS: Mapping[str, str] = {
    "pins are compared at the beginning only": "pins",
    "policies and pins are those of the start": "pins",
    "anybody breaks the glass": "emergency",
    "agents break the glass": "emergency",
    "emergencies never end": "emergency",
    "an emergency is of every run of its person": "emergency",
    "plans have no order + the log is not asked": "plans",
    "plans go on after a failure": "plans",
    "plans that were left go on": "plans",
    "whoever held a run may go on": "workers",
    "policy answers what servers ask + nobody has to have": "questions",
    "a yes answers every form": "questions",
    "levels are what callers say": "ladder",
    "levels are read once": "ladder",
    "each process keeps its own budgets": "shifts",
    "approvals are ever young": "asks",
}
"""The mood in which a hole shows soon."""
