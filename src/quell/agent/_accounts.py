"""Money and tokens of model calls: the most is taken before a call, and what was reported is charged after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from quell.agent._asking import Accounts
from quell.agent._talk import NOTHING
from quell.domain import BoundExceededError, Charge, ModelRequest, Reservation, Spender, TokenUsage
from quell.governance import Budgets
from quell.models import Bill, Model, bills_of
from quell.runs import Database
from quell.telemetry import genai

_LIFETIME_S = 900.0
"""Longer than any call may take: what is not settled by then is charged as reserved."""
_TRIES_MAX = 100
_BELIEVED_SHARE = 3
"""A report of less than a third of what we sent, or of what came, is no report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A call in flight."""

    reservation: Reservation
    bills: tuple[Bill, ...]


class BudgetAccounts(Accounts):
    """The accounts of one conversation: one spender, on the caps of the deployment.

    A key names one try of one turn. The same key again means that a process died in it: what that try cost nobody
    knows, so it stays charged as reserved, and the new try is reserved beside it.
    """

    def __init__(
        self,
        budgets: Budgets,
        database: Database,
        *,
        spender: Spender,
        place: str = "",
        write: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Charge this spender; `place` tells conversations of one run apart, such as the tasks of a plan.

        `write` does a blocking write off the loop, and returns once it is kept: `Runs.write`, to share its flush.
        """
        self._write = write
        self._budgets = budgets
        self._database = database
        self._spender = spender
        self._place = place
        self._open: dict[str, _Open] = {}

    async def reserve(self, request: ModelRequest, model: Model, *, key: str) -> None:
        """Reserve the most that a call can take.

        Raises:
            BoundExceededError: a cap would be passed.
            RefusedError: nobody knows the price, and money is capped.
        """
        bills = bills_of(model, request)
        charge = Charge(money_micro_usd=self._at_most(bills), tokens=max(_tokens(bill) for bill in bills))
        reservation: Reservation = await self._write(self._take, charge, self._place + key)
        self._open[key] = _Open(reservation=reservation, bills=bills)

    async def settle(self, model: Model, usage: TokenUsage | None, *, key: str, said_tokens: int = 0) -> None:
        """Charge what it took: by its report, as far as that can be true, and as reserved otherwise."""
        del model  # its bills were made when it was reserved
        call = self._open.pop(key, None)
        if call is None:
            return
        await self._write(self._charge, call, usage, said_tokens)

    def _take(self, charge: Charge, key: str) -> Reservation:
        # A key stands for one charge: the digest keeps apart what is counted otherwise after a crash.
        digest = sha256(f"{charge.money_micro_usd}:{charge.tokens}".encode()).hexdigest()[:8]
        with self._database.writing() as connection:
            for number in range(1, _TRIES_MAX + 1):
                name = f"{key}.{digest}" + (f"~{number}" if number > 1 else "")
                taken = self._budgets.reserve(
                    connection, charge, spender=self._spender, key=name, lifetime_s=_LIFETIME_S
                )
                if taken.is_new:
                    return taken
                if taken.is_open:
                    self._budgets.settle(connection, taken, None, spender=self._spender)
        raise BoundExceededError("the tries of one model call", limit=_TRIES_MAX)

    def _charge(self, call: _Open, usage: TokenUsage | None, said_tokens: int) -> None:
        actual = self._actual(call.bills, usage, said_tokens=said_tokens)
        with self._database.writing() as connection:
            settled = self._budgets.settle(connection, call.reservation, actual, spender=self._spender)
        genai.spent(
            settled.charged.money_micro_usd or 0,
            agent=self._spender.agent,
            model=call.bills[0].model,
            basis="reserved" if actual is None or actual.money_micro_usd is None else "reported",
        )

    def _actual(self, bills: Sequence[Bill], usage: TokenUsage | None, *, said_tokens: int) -> Charge | None:
        """Return what to charge; None: as reserved."""
        if usage is NOTHING:
            # Not a report: the call did not reach anybody who could charge for it.
            return Charge()
        if usage is None or not _is_likely(usage, bills, said_tokens=said_tokens):
            return None
        prices = [self._budgets.price_of(bill.provider, bill.model, usage) for bill in bills]
        known = [price for price in prices if price is not None]
        money = max(known) if len(known) == len(prices) else None
        return Charge(money_micro_usd=money, tokens=usage.input_tokens + usage.output_tokens)

    def _at_most(self, bills: Sequence[Bill]) -> int | None:
        """Return the money of the dearest of them; None when the price of one is unknown."""
        dearest = 0
        for bill in bills:
            price = self._budgets.price_at_most(
                bill.provider, bill.model, input_tokens=bill.input_tokens, output_tokens=bill.output_tokens
            )
            if price is None:
                return None
            dearest = max(dearest, price)
        return dearest


def _tokens(bill: Bill) -> int:
    return bill.input_tokens + bill.output_tokens


def _is_likely(usage: TokenUsage, bills: Sequence[Bill], *, said_tokens: int) -> bool:
    """Tell whether a report can be true, as far as our own side knows."""
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.written_tokens)
    if any(type(count) is not int or count < 0 for count in counts):
        return False
    if usage.output_tokens * _BELIEVED_SHARE < said_tokens:
        return False
    return usage.input_tokens * _BELIEVED_SHARE >= min(bill.counted_tokens for bill in bills)
