"""The one place that waits, retries, sheds and gives up: every call to something outside goes through `Resilience.call`.

It never judges a call, never sends an effect twice, and knows an answer only by its typed outcome.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from quell.domain import (
    DependencyHealth,
    Entropy,
    OutcomeKind,
    OverloadError,
    Priority,
    ResilienceLimits,
    ToolOutcome,
    WorldError,
)
from quell.tools._breaker import Breaker, Throttle, Ticket
from quell.tools._bulkhead import Bulkhead
from quell.tools._deadline import Scope, current, holder_of, scope_until
from quell.tools._retry import RetryBudget, backoff_s, fraction_of

_FAILURES = frozenset({OutcomeKind.TRANSPORT_ERROR, OutcomeKind.TIMEOUT})
_DEPENDENCIES_MAX = 1024
_SHED_RETRY_S = 1.0

Work = Callable[[], Awaitable[ToolOutcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """All that is known of one dependency."""

    name: str
    limits: ResilienceLimits
    budget: RetryBudget
    breaker: Breaker
    throttle: Throttle
    bulkhead: Bulkhead

    @property
    def is_idle(self) -> bool:
        return self.bulkhead.in_flight == 0 and self.bulkhead.waiting == 0 and self.breaker.state == "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One call as it was asked for."""

    work: Work
    scope: Scope
    priority: Priority
    attempts_max: int
    holder: Scope | None
    """Call around it that was already let in at this dependency: a second place could be one that waits for itself."""
    call: str
    tool: str


class Resilience:
    """The state of all dependencies of this process; one object, used from one event loop."""

    budget_class: ClassVar[type[RetryBudget]] = RetryBudget
    breaker_class: ClassVar[type[Breaker]] = Breaker
    throttle_class: ClassVar[type[Throttle]] = Throttle

    def __init__(
        self,
        *,
        limits: ResilienceLimits | None = None,
        by_dependency: Mapping[str, ResilienceLimits] | None = None,
        entropy: Entropy = os.urandom,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limits = limits or ResilienceLimits()
        self._by_dependency = dict(by_dependency or {})
        self._entropy = entropy
        self._monotonic = monotonic
        self._sleep = sleep
        self._gates: dict[str, _Gate] = {}

    async def call(
        self,
        dependency: str,
        work: Work,
        *,
        deadline_s: float,
        retryable: Literal["read", "effect"],
        priority: Priority = "normal",
        call: str = "",
        tool: str = "",
    ) -> ToolOutcome:
        """Do the work under the dependency's limits; the outcome says how often it was tried, 0 when nothing was sent.

        `deadline_s` counts from now, waiting and retries included, and never reaches beyond the deadline of a call
        around this one. A read that failed on its way is tried again, unless a call around this one does that already;
        an effect never is: after a timeout the ledger decides. When the time is up the outcome is `timeout`, made of
        `call` and `tool`. Exceptions of the work pass through.

        Raises OverloadError when the call was shed: then nothing was sent.
        """
        assert dependency, "a dependency has a name"
        around = current()
        is_inner = around is not None and around.is_attempt
        holder = holder_of(dependency) if is_inner else None
        gate = self._gate(dependency)
        with scope_until(self._monotonic() + deadline_s, dependency=dependency) as scope:
            asked = _Asked(
                work=work,
                scope=scope,
                priority=priority,
                attempts_max=gate.limits.attempts_max if retryable == "read" and not is_inner else 1,
                holder=holder,
                call=call,
                tool=tool,
            )
            return await self._attempts(gate, asked)

    def within(self, deadline_s: float) -> AbstractContextManager[object]:
        """Give everything called inside one common deadline, counted from now."""
        return scope_until(self._monotonic() + deadline_s)

    def remaining_s(self) -> float | None:
        """Say how much time the deadline around this leaves, never below zero; None when there is none."""
        scope = current()
        return None if scope is None else max(0.0, scope.until_s - self._monotonic())

    def health(self) -> tuple[DependencyHealth, ...]:
        """Say how each dependency fares that was called, by name."""
        now_s = self._monotonic()
        return tuple(
            DependencyHealth(
                dependency=name,
                breaker=gate.breaker.state,
                in_flight=gate.bulkhead.in_flight,
                waiting=gate.bulkhead.waiting,
                shed_share=gate.throttle.shed_share(at_s=now_s),
                retries_left=gate.budget.left(at_s=now_s),
            )
            for name, gate in sorted(self._gates.items())
        )

    async def _attempts(self, gate: _Gate, asked: _Asked) -> ToolOutcome:
        last: ToolOutcome | None = None
        for attempt in range(1, asked.attempts_max + 1):
            if self._monotonic() >= asked.scope.until_s:
                return last or _cut(asked, attempts=0)
            try:
                outcome = await self._attempt(gate, asked, attempt=attempt)
            except OverloadError:
                if last is None:
                    raise
                return last  # the retry was shed; what is known is how the try before it ended
            last = outcome if outcome.attempts == attempt else replace(outcome, attempts=attempt)
            if outcome.kind not in _FAILURES or attempt == asked.attempts_max:
                break
            pause_s = backoff_s(attempt, limits=gate.limits, entropy=self._entropy)
            now_s = self._monotonic()
            if now_s + pause_s >= asked.scope.until_s or not gate.budget.take(at_s=now_s):
                break
            await self._sleep(pause_s)
        assert last is not None, "at least one attempt"
        return last

    async def _attempt(self, gate: _Gate, asked: _Asked, *, attempt: int) -> ToolOutcome:
        """Go once through throttle, queue and breaker, and do the work. Raises OverloadError when nothing was sent."""
        if asked.holder is not None:
            work = partial(_in_turn, asked.holder.turn, asked.work)
            return await self._cut_off(replace(asked, work=work), left_s=asked.scope.until_s - self._monotonic())
        self._refuse_while_open(gate)
        self._shed_some(gate, asked.priority)
        await gate.bulkhead.enter(priority=asked.priority, wait_s=asked.scope.until_s - self._monotonic())
        try:
            self._refuse_while_open(gate)  # it may have opened while this call waited
            now_s = self._monotonic()
            if attempt == 1:
                gate.budget.tried(at_s=now_s)
            return await self._send(
                gate, asked, ticket=gate.breaker.admit(at_s=now_s), left_s=asked.scope.until_s - now_s
            )
        finally:
            gate.bulkhead.leave()

    async def _send(self, gate: _Gate, asked: _Asked, *, ticket: Ticket, left_s: float) -> ToolOutcome:
        ending: Literal["well", "failed", "unknown"] = "unknown"
        try:
            outcome = await self._cut_off(asked, left_s=left_s)
            ending = "failed" if outcome.kind in _FAILURES else "well"
        except (OSError, WorldError):
            ending = "failed"
            raise
        finally:
            self._settle(gate, ticket, ending)
        return outcome

    async def _cut_off(self, asked: _Asked, *, left_s: float) -> ToolOutcome:
        try:
            async with asyncio.timeout(left_s) as limit:
                return await asked.work()
        except TimeoutError:
            if not limit.expired():
                raise
            return _cut(asked, attempts=1)

    def _settle(self, gate: _Gate, ticket: Ticket, ending: Literal["well", "failed", "unknown"]) -> None:
        now_s = self._monotonic()
        was = gate.breaker.state
        jitter = fraction_of(self._entropy) if ending == "failed" else 0.0
        gate.breaker.settle(ticket, ending=ending, at_s=now_s, jitter=jitter)
        if ending != "unknown":
            gate.throttle.answered(is_accepted=ending == "well", at_s=now_s)
        if was == "half_open" and gate.breaker.state == "closed":
            gate.throttle.forget()

    def _refuse_while_open(self, gate: _Gate) -> None:
        wait_s = gate.breaker.retry_after_s(at_s=self._monotonic())
        if wait_s > 0:
            raise OverloadError(
                f"`{gate.name}` was not called: it failed too often just now",
                retry_after_s=wait_s,
                hint="nothing was sent; it is probed, and calls go through again once it answers",
            )

    def _shed_some(self, gate: _Gate, priority: Priority) -> None:
        if priority == "critical":
            return
        now_s = self._monotonic()
        share = gate.throttle.shed_share(at_s=now_s)
        if share > 0 and gate.breaker.state == "closed" and fraction_of(self._entropy) < share:
            gate.throttle.shed(at_s=now_s)
            raise OverloadError(
                f"`{gate.name}` was not called: most of what it gets fails, so {share:.0%} of the calls are held back",
                retry_after_s=_SHED_RETRY_S,
                hint="nothing was sent; ask again later",
            )

    def _gate(self, dependency: str) -> _Gate:
        gate = self._gates.get(dependency)
        if gate is None:
            if len(self._gates) >= _DEPENDENCIES_MAX:
                self._forget_an_idle_one()
            limits = self._by_dependency.get(dependency, self._limits)
            gate = self._gates[dependency] = _Gate(
                name=dependency,
                limits=limits,
                budget=self.budget_class(limits=limits),
                breaker=self.breaker_class(limits=limits),
                throttle=self.throttle_class(limits=limits),
                bulkhead=Bulkhead(
                    dependency=dependency, concurrent_max=limits.concurrent_max, queue_max=limits.queue_max
                ),
            )
        return gate

    def _forget_an_idle_one(self) -> None:
        idle = next((name for name, gate in self._gates.items() if gate.is_idle), None)
        if idle is None:
            raise OverloadError(
                f"{_DEPENDENCIES_MAX} dependencies are in use at once",
                retry_after_s=_SHED_RETRY_S,
                hint="nothing was sent; name dependencies by server, not by call",
            )
        del self._gates[idle]


async def _in_turn(turn: asyncio.Lock, work: Work) -> ToolOutcome:
    """Use the place of the call around this one: many inside one call take turns, and stay within its bound."""
    async with turn:
        return await work()


def _cut(asked: _Asked, *, attempts: int) -> ToolOutcome:
    """Say that the time was up, and whether anything had been sent by then."""
    sent = "it was cut off, and may have been carried out" if attempts else "nothing was sent"
    return ToolOutcome(
        call=asked.call, tool=asked.tool, kind=OutcomeKind.TIMEOUT, detail=f"the time was up: {sent}", attempts=attempts
    )
