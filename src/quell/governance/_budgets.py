"""Budgets: take from every account at once before something is done, settle after it, and let nothing go free in between.

What is reserved counts as spent until it is settled, so that work in parallel cannot pass a cap together. A reservation
whose owner died is settled at what it reserved. All of it happens in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import ClassVar, Literal

from quell.domain import (
    AMOUNT_MAX,
    Balance,
    BoundExceededError,
    BudgetKind,
    BudgetScope,
    Cap,
    Charge,
    Clock,
    ConfigError,
    Price,
    Problem,
    RefusedError,
    Reservation,
    Settlement,
    Spender,
    TokenUsage,
    UsageError,
)
from quell.governance._prices import Prices
from quell.runs import Connection

_KINDS = tuple(BudgetKind)
_SCOPES = tuple(BudgetScope)
_NOTHING: Mapping[BudgetKind, int] = dict.fromkeys(_KINDS, 0)
_WORDS = {
    BudgetKind.MONEY: "money",
    BudgetKind.WALL: "milliseconds",
    BudgetKind.BYTES: "bytes",
    BudgetKind.BLAST: "units of blast radius",
}
_MICRO = 1_000_000
_LIMIT_MAX = 10**15
_KEPT_S = 600.0
_IDLE = " AND ".join(f"{kind}_held = 0" for kind in _KINDS)
_HINT = "wait until what is in flight has ended, raise the cap, or narrow the task"
_UNPRICED = "set a price for this model, or a pessimistic price for models that nobody knows"

TABLES: tuple[str, ...] = (
    "CREATE TABLE IF NOT EXISTS quell_budgets (account TEXT PRIMARY KEY, "
    + ", ".join(f"{kind}_{side} BIGINT NOT NULL DEFAULT 0" for kind in _KINDS for side in ("spent", "held"))
    + ")",
    """CREATE TABLE IF NOT EXISTS quell_reservations (
        run TEXT NOT NULL,
        key TEXT NOT NULL,
        fence BIGINT NOT NULL,
        status TEXT NOT NULL,
        charge TEXT NOT NULL,
        accounts TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        charged TEXT NOT NULL DEFAULT '',
        flags TEXT NOT NULL DEFAULT '[]',
        PRIMARY KEY (run, key)
    )""",
    "CREATE INDEX IF NOT EXISTS quell_reservations_due ON quell_reservations (status, expires_at)",
)
"""An account is told by its text; a reservation is open, settled or expired, and remembers what it took from whom."""

Amounts = Mapping[BudgetKind, int]


class Budgets:
    """The caps of one deployment, over accounts in the journal's database."""

    tables: ClassVar[tuple[str, ...]] = TABLES
    """What the journal has to make before anything is reserved."""

    def __init__(
        self,
        caps: Sequence[Cap],
        *,
        clock: Clock,
        prices: Sequence[Price] = (),
        pessimistic: Price | Literal["dearest"] | None = None,
    ) -> None:
        self._keep(caps)
        self._clock = clock
        self._prices = Prices(prices, pessimistic=pessimistic)

    def also(self, caps: Sequence[Cap]) -> Budgets:
        """Return the same accounts under further caps, for those who have them. Raises ConfigError for one that cannot be."""
        more = copy(self)
        more._keep((*self._caps, *caps))  # noqa: SLF001 - another of ourselves
        return more

    def _keep(self, caps: Sequence[Cap]) -> None:
        problems = tuple(_problems(caps))
        if problems:
            raise ConfigError("these budgets cannot be kept", problems=problems)
        self._caps = tuple(caps)

    def find_price(self, provider: str, model: str) -> Price | None:
        """Return what a model costs and where that stands; None when nobody knows."""
        return self._prices.find_price(provider, model)

    def price_of(self, provider: str, model: str, usage: TokenUsage) -> int | None:
        """Return the micro-USD of a usage that was reported; None when unknown, which is never zero."""
        return self._prices.price_of(provider, model, usage)

    def price_at_most(self, provider: str, model: str, *, input_tokens: int, output_tokens: int) -> int | None:
        """Return the micro-USD to reserve for at most so many tokens; None when unknown, which is never zero."""
        return self._prices.price_at_most(provider, model, input_tokens=input_tokens, output_tokens=output_tokens)

    def reserve(
        self,
        connection: Connection,
        charge: Charge,
        *,
        spender: Spender,
        key: str,
        fence: int = 0,
        lifetime_s: float = _KEPT_S,
    ) -> Reservation:
        """Take a charge from every account that it touches, or from none.

        A key names one spending of its run: the same key again, as after a crash, takes nothing more. After its
        lifetime an open reservation is settled at what it reserved.

        Raises:
            BoundExceededError: a cap would be passed; nothing was taken, and the transaction may go on.
            RefusedError: the price is unknown under a money cap, the charge is no charge, a newer owner has the key,
                or the key stands for another charge.
        """
        now = self._clock()
        amounts = self._amounts(charge, spender=spender)
        touched = self._touched(spender, now)
        if not touched:
            return Reservation(key=key, fence=fence, charge=charge, accounts=(), is_new=True)
        accounts = tuple(sorted(touched))
        is_new = connection.run(
            "INSERT INTO quell_reservations (run, key, fence, status, charge, accounts, expires_at)"
            " VALUES (:run, :key, :fence, 'open', :charge, :accounts, :expires_at) ON CONFLICT (run, key) DO NOTHING",
            run=spender.run,
            key=key,
            fence=fence,
            charge=_text(charge),
            accounts=json.dumps(accounts),
            expires_at=_time(now + timedelta(seconds=lifetime_s)),
        )
        if not is_new:
            return _take_over(connection, charge, run=spender.run, key=key, fence=fence, until=now, kept_s=lifetime_s)
        balances = self._hold(connection, amounts, touched=touched, accounts=accounts)
        passed = next((balance for balance in balances if _passes(balance)), None)
        if passed is not None:
            _move(connection, accounts, spent=_NOTHING, held=_minus(amounts))
            connection.run("DELETE FROM quell_reservations WHERE run = :run AND key = :key", run=spender.run, key=key)
            raise _refusal(passed, asked=amounts[passed.cap.kind])
        near = tuple(balance for balance in balances if balance.is_near)
        return Reservation(key=key, fence=fence, charge=charge, accounts=accounts, is_new=True, near=near)

    def settle(
        self,
        connection: Connection,
        reservation: Reservation,
        actual: Charge | None,
        *,
        spender: Spender,
        seen: Charge | None = None,
    ) -> Settlement:
        """Charge what was really spent, and give back the rest.

        What was reported is believed within limits: an amount that is unknown, negative or absurd, or less than our
        own side has `seen`, is charged as reserved. More than reserved is charged whole. Both are flagged. Settling
        again changes nothing; an owner that was replaced, or comes after its time, can only add.

        Raises UsageError when there is no such reservation.
        """
        charged, flags = self._believed(reservation.charge, actual or _UNKNOWN, seen=seen or Charge())
        if not reservation.accounts:
            return Settlement(key=reservation.key, charged=_charge(charged), flags=flags)
        is_ours = connection.run(
            "UPDATE quell_reservations SET status = 'settled', charged = :charged, flags = :flags"
            " WHERE run = :run AND key = :key AND status = 'open' AND fence = :fence AND charge = :charge",
            run=spender.run,
            key=reservation.key,
            fence=reservation.fence,
            charge=_text(reservation.charge),
            charged=_text(_charge(charged)),
            flags=json.dumps(flags),
        )
        if not is_ours:
            return _settle_late(connection, reservation, charged, flags=flags, run=spender.run)
        _move(connection, reservation.accounts, spent=charged, held=_minus(_reserved(reservation.charge)))
        return Settlement(key=reservation.key, charged=_charge(charged), flags=flags)

    def expire(self, connection: Connection, *, rows_max: int = 500) -> tuple[Settlement, ...]:
        """Settle reservations past their lifetime at what they reserved: their owners died, and nobody knows better."""
        due = connection.all(
            "SELECT run, key, charge, accounts FROM quell_reservations"
            " WHERE status = 'open' AND expires_at <= :now ORDER BY run, key LIMIT :rows_max",
            now=_time(self._clock()),
            rows_max=rows_max,
        )
        flags = ("never settled by its owner, charged as reserved",)
        totals: dict[str, dict[BudgetKind, int]] = {}
        expired = []
        for row in due:
            is_ours = connection.run(
                "UPDATE quell_reservations SET status = 'expired', charged = charge, flags = :flags"
                " WHERE run = :run AND key = :key AND status = 'open' AND expires_at <= :now",
                run=row.run,
                key=row.key,
                flags=json.dumps(flags),
                now=_time(self._clock()),
            )
            if is_ours:
                charge = Charge(**json.loads(row.charge))
                for account in json.loads(row.accounts):
                    total = totals.setdefault(account, dict(_NOTHING))
                    for kind, amount in self._expired(charge).items():
                        total[kind] += amount
                expired.append(Settlement(key=row.key, charged=charge, flags=flags))
        for account in sorted(totals):
            _move(connection, (account,), spent=totals[account], held=_minus(totals[account]))
        return tuple(expired)

    def balances(self, connection: Connection, spender: Spender) -> tuple[Balance, ...]:
        """Return how the accounts of a spender stand today against each of their caps."""
        touched = self._touched(spender, self._clock())
        found = []
        for account in sorted(touched):
            row = connection.first("SELECT * FROM quell_budgets WHERE account = :account", account=account)
            columns: dict[str, int] = {} if row is None else vars(row)
            found += [self._balance(cap, account, columns) for cap in touched[account]]
        return tuple(found)

    def retain(self, connection: Connection, *, before: datetime) -> int:
        """Delete what ended before a time, accounts of days and reservations; return how many. What is in flight stays."""
        accounts = connection.run(
            f"DELETE FROM quell_budgets WHERE substr(account, 1, 2) = '[\"' AND substr(account, 3, 10) < :day AND {_IDLE}",
            day=before.astimezone(UTC).date().isoformat(),
        )
        return accounts + connection.run(
            "DELETE FROM quell_reservations WHERE status <> 'open' AND expires_at < :before", before=_time(before)
        )

    def runs(self, connection: Connection) -> list[str]:
        """Return the runs that have accounts of their own."""
        rows = connection.all("SELECT account FROM quell_budgets WHERE substr(account, 1, 7) = '[null,\"'")
        return sorted({json.loads(row.account)[1] for row in rows})

    def forget(self, connection: Connection, runs: Iterable[str]) -> None:
        """Delete the accounts of runs that are deleted themselves. What is in flight stays."""
        for run in runs:
            prefix = f"[null,{json.dumps(run)},"
            connection.run(
                f"DELETE FROM quell_budgets WHERE substr(account, 1, :length) = :prefix AND {_IDLE}",
                length=len(prefix),
                prefix=prefix,
            )

    def _amounts(self, charge: Charge, *, spender: Spender) -> Amounts:
        """Return what to hold. An unknown price is refused where it is capped, and nothing else may be unknown."""
        for kind in _KINDS:
            amount = getattr(charge, kind)
            if amount is None and kind is BudgetKind.MONEY:
                if any(cap.kind is kind and cap.limit is not None and _covers(cap, spender) for cap in self._caps):
                    raise RefusedError("the price of this call is unknown and a cap on money applies", hint=_UNPRICED)
            elif not _is_amount(amount):
                raise RefusedError(
                    f"a charge of {amount!r} {_word(kind)} is no charge", hint="reserve what is at most used"
                )
        return _reserved(charge)

    def _touched(self, spender: Spender, now: datetime) -> dict[str, list[Cap]]:
        """Return the caps that apply, by account."""
        names = {
            BudgetScope.DAY: now.astimezone(UTC).date().isoformat(),
            BudgetScope.RUN: spender.run,
            BudgetScope.TENANT: spender.tenant,
            BudgetScope.FEATURE: spender.feature,
            BudgetScope.AGENT: spender.agent,
        }
        touched: dict[str, list[Cap]] = {}
        for cap in self._caps:
            if _covers(cap, spender):
                touched.setdefault(
                    _account(tuple(names[each] if each in cap.per else None for each in _SCOPES)), []
                ).append(cap)
        return touched

    def _hold(
        self, connection: Connection, amounts: Amounts, *, touched: dict[str, list[Cap]], accounts: tuple[str, ...]
    ) -> list[Balance]:
        """Hold the amounts, and return the balances of the caps on what was taken."""
        rows = _move(connection, accounts, spent=_NOTHING, held=amounts)
        return [
            self._balance(cap, account, rows[account])
            for account in accounts
            for cap in touched[account]
            if amounts[cap.kind]
        ]

    def _balance(self, cap: Cap, account: str, columns: Mapping[str, int]) -> Balance:
        return Balance(
            cap=cap,
            account=_describe(account),
            spent=columns.get(f"{cap.kind}_spent", 0),
            in_flight=columns.get(f"{cap.kind}_held", 0),
        )

    def _believed(
        self, reserved: Charge, actual: Charge, *, seen: Charge
    ) -> tuple[dict[BudgetKind, int], tuple[str, ...]]:
        """Return what to charge for what was reported, and what was wrong with it."""
        charged: dict[BudgetKind, int] = {}
        flags = []
        for kind, held in _reserved(reserved).items():
            told = getattr(actual, kind)
            least = getattr(seen, kind) or 0
            if not _is_amount(told) or told < least:
                charged[kind] = max(held, least)
                why = "unknown" if told is None else "below what was seen" if _is_amount(told) else "no amount"
                flags.append(f"{_word(kind)}: {why}, charged as reserved")
            else:
                charged[kind] = told
                if told > held:
                    flags.append(f"{_word(kind)}: more than reserved, charged whole")
        return charged, tuple(flags)

    def _expired(self, charge: Charge) -> Amounts:
        """Return what an abandoned reservation costs."""
        return _reserved(charge)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A reservation as it stands in the table."""

    fence: int
    status: str
    charge: str
    accounts: tuple[str, ...]
    charged: str
    flags: tuple[str, ...]


def _locked(connection: Connection, *, run: str, key: str) -> _Kept | None:
    """Read a reservation and keep others from changing it; an update that changes nothing locks in either dialect."""
    row = connection.first(
        "UPDATE quell_reservations SET fence = fence WHERE run = :run AND key = :key"
        " RETURNING fence, status, charge, accounts, charged, flags",
        run=run,
        key=key,
    )
    if row is None:
        return None
    return _Kept(
        fence=row.fence,
        status=row.status,
        charge=row.charge,
        accounts=tuple(json.loads(row.accounts)),
        charged=row.charged,
        flags=tuple(json.loads(row.flags)),
    )


def _take_over(
    connection: Connection, charge: Charge, *, run: str, key: str, fence: int, until: datetime, kept_s: float
) -> Reservation:
    """Go on with what the same call reserved before."""
    kept = _locked(connection, run=run, key=key)
    assert kept is not None, "the row that was in the way is there: reservations that are open are not deleted"
    if kept.charge != _text(charge):
        raise RefusedError(
            f"the key {key!r} stands for another charge", hint="reserve under a key of its own what is spent anew"
        )
    if fence < kept.fence:
        raise RefusedError(f"a newer owner holds the reservation {key!r}", hint="stop: this run goes on elsewhere")
    is_open = connection.run(
        "UPDATE quell_reservations SET fence = :fence, expires_at = :expires_at"
        " WHERE run = :run AND key = :key AND status = 'open'",
        run=run,
        key=key,
        fence=fence,
        expires_at=_time(until + timedelta(seconds=kept_s)),
    )
    return Reservation(key=key, fence=fence, charge=charge, accounts=kept.accounts, is_new=False, is_open=bool(is_open))


def _settle_late(
    connection: Connection, reservation: Reservation, charged: Amounts, *, flags: tuple[str, ...], run: str
) -> Settlement:
    """Settle what is settled or expired already, or has a newer owner: only what is more than charged is added."""
    kept = _locked(connection, run=run, key=reservation.key)
    if kept is None:
        raise UsageError(f"there is no reservation {reservation.key!r}", hint="reserve first, or settle in time")
    before = Charge(**json.loads(kept.charged or kept.charge))
    if kept.status == "settled" and kept.fence == reservation.fence:
        return Settlement(key=reservation.key, charged=before, flags=kept.flags)
    known = _reserved(before)
    more = {kind: max(0, charged[kind] - known[kind]) for kind in _KINDS}
    if any(more.values()):
        _move(connection, kept.accounts, spent=more, held=_NOTHING)
    after = _charge({kind: known[kind] + more[kind] for kind in _KINDS})
    flags = (*kept.flags, *flags, "settled late: nothing was given back")
    if kept.status != "open":
        connection.run(
            "UPDATE quell_reservations SET charged = :charged, flags = :flags WHERE run = :run AND key = :key",
            charged=_text(after),
            flags=json.dumps(flags),
            run=run,
            key=reservation.key,
        )
    return Settlement(key=reservation.key, charged=after, flags=flags)


def _move(
    connection: Connection, accounts: Sequence[str], *, spent: Amounts, held: Amounts
) -> dict[str, Mapping[str, int]]:
    """Add to accounts and return them as they stand. Rows are locked in the order of `accounts`, which is sorted."""
    places = {f"account_{_letter(index)}": account for index, account in enumerate(accounts)}
    amounts = {f"{kind}_spent": spent[kind] for kind in _KINDS} | {f"{kind}_held": held[kind] for kind in _KINDS}
    rows = connection.all(_upsert(len(accounts)), **places, **amounts)
    return {row.account: vars(row) for row in rows}


@lru_cache(maxsize=64)
def _upsert(count: int) -> str:
    columns = [f"{kind}_{side}" for side in ("spent", "held") for kind in _KINDS]
    amounts = ", ".join(f":{column}" for column in columns)
    rows = ", ".join(f"(:account_{_letter(index)}, {amounts})" for index in range(count))
    sums = ", ".join(f"{column} = quell_budgets.{column} + excluded.{column}" for column in columns)
    return (
        f"INSERT INTO quell_budgets (account, {', '.join(columns)}) VALUES {rows}"
        f" ON CONFLICT (account) DO UPDATE SET {sums} RETURNING *"
    )


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _passes(balance: Balance) -> bool:
    return balance.cap.limit is not None and balance.spent + balance.in_flight > balance.cap.limit


def _refusal(balance: Balance, *, asked: int) -> BoundExceededError:
    cap, kind = balance.cap, balance.cap.kind
    assert cap.limit is not None
    said = (
        f"{_word(kind)} of {balance.account}: {_amount(kind, balance.spent)} spent,"
        f" {_amount(kind, balance.in_flight - asked)} in flight and {_amount(kind, asked)} asked,"
        f" of {_amount(kind, cap.limit)};"
        " the sum"
    )
    return BoundExceededError(said, limit=cap.limit / _MICRO if kind is BudgetKind.MONEY else cap.limit, hint=_HINT)


def _covers(cap: Cap, spender: Spender) -> bool:
    return all(fnmatchcase(getattr(spender, scope), glob) for scope, glob in cap.only)


def _problems(caps: Sequence[Cap]) -> Iterable[Problem]:
    places = {cap.per for cap in caps}
    if len(places) > 26:
        yield Problem(
            path="budgets", reason=f"{len(places)} kinds of accounts", hint="26 are the most", source="budgets"
        )
    for number, cap in enumerate(caps):
        path = f"budgets.caps.{number}"
        if cap.limit is not None and not 0 <= cap.limit <= _LIMIT_MAX:
            yield Problem(path=f"{path}.limit", reason=f"{cap.limit} is no amount", hint="0 or more", source="budgets")
        if not 0 < cap.near_percent <= 100:
            reason = f"{cap.near_percent} is no share"
            yield Problem(path=f"{path}.near_percent", reason=reason, hint="1 to 100", source="budgets")
        if any(scope is BudgetScope.DAY for scope, _ in cap.only):
            yield Problem(path=f"{path}.only", reason="a day is no spender", hint="name it in per", source="budgets")


def _is_amount(told: object) -> bool:
    """Whether this is a number of something: reports of usage carry anything, so bools and floats are none."""
    return type(told) is int and 0 <= told <= AMOUNT_MAX


def _reserved(charge: Charge) -> dict[BudgetKind, int]:
    return {kind: getattr(charge, kind) or 0 for kind in _KINDS}


def _minus(amounts: Amounts) -> Amounts:
    return {kind: -amount for kind, amount in amounts.items()}


def _charge(amounts: Amounts) -> Charge:
    return Charge(**{kind.value: amount for kind, amount in amounts.items()})


@lru_cache(maxsize=512)
def _text(charge: Charge) -> str:
    return json.dumps({kind.value: getattr(charge, kind) for kind in _KINDS}, separators=(",", ":"))


def _time(at: datetime) -> str:
    """Write a time so that texts sort as times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


@lru_cache(maxsize=1024)
def _account(place: tuple[str | None, ...]) -> str:
    return json.dumps(place, separators=(",", ":"))


@lru_cache(maxsize=1024)
def _describe(account: str) -> str:
    day, *others = json.loads(account)
    named = ", ".join(
        f"{scope} {name or '(none)'}" for scope, name in zip(_SCOPES[1:], others, strict=True) if name is not None
    )
    return f"{named or 'all'}{f' on {day}' if day else ''}"


def _word(kind: BudgetKind) -> str:
    return _WORDS.get(kind, kind.value)


def _amount(kind: BudgetKind, amount: int) -> str:
    return f"{amount / _MICRO:,.6f} USD" if kind is BudgetKind.MONEY else f"{amount:,}"


_UNKNOWN = Charge(**{kind.value: None for kind in _KINDS})
