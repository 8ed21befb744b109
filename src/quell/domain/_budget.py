"""The words of budgets: what is spent, on whose account, up to which cap, and what became of a reservation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AMOUNT_MAX = 10**12
"""No single charge is more than this, in any kind: a million US dollars, a terabyte, 31 years; what says so lies."""


class BudgetKind(StrEnum):
    """What is counted. The values are the names of the fields of a charge."""

    MONEY = "money_micro_usd"
    TOKENS = "tokens"
    CALLS = "calls"
    STEPS = "steps"
    WALL = "wall_ms"
    BYTES = "size_bytes"
    BLAST = "blast_units"


class BudgetScope(StrEnum):
    """By what an account is told from others; an account may be told by several."""

    DAY = "day"
    """Day in UTC."""
    RUN = "run"
    TENANT = "tenant"
    FEATURE = "feature"
    AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """An amount of each kind; None is an amount that nobody knows."""

    money_micro_usd: int | None = 0
    tokens: int | None = 0
    calls: int | None = 0
    steps: int | None = 0
    wall_ms: int | None = 0
    size_bytes: int | None = 0
    blast_units: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spender:
    """On whose behalf something is spent."""

    run: str
    agent: str = ""
    feature: str = ""
    tenant: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """The most of one kind that each of some accounts may spend."""

    kind: BudgetKind
    limit: int | None
    """In the unit of the kind; None counts and refuses nothing."""
    per: tuple[BudgetScope, ...]
    """What tells accounts apart: (tenant, day) is one per tenant and day, (day,) one for all per day, () one for all."""
    only: tuple[tuple[BudgetScope, str], ...] = ()
    """Globs that the spender has to match; empty: everybody."""
    near_percent: int = 80
    """From this share on, reservations tell that the cap is near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How an account stands against one cap."""

    cap: Cap
    account: str
    """For people, such as `tenant acme on 2026-11-20`."""
    spent: int
    in_flight: int
    """Reserved and not settled yet; it counts as if it were spent."""

    @property
    def is_near(self) -> bool:
        """Whether the soft limit is reached."""
        if self.cap.limit is None:
            return False
        return (self.spent + self.in_flight) * 100 >= self.cap.limit * self.cap.near_percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What was taken from every account at once before something was done."""

    key: str
    fence: int
    charge: Charge
    accounts: tuple[str, ...]
    is_new: bool
    """False when the same call had reserved before, as after a crash."""
    is_open: bool = True
    """False when that one was settled since, or expired: what is spent now needs a key of its own."""
    near: tuple[Balance, ...] = ()
    """Caps whose soft limit is reached: take a cheaper way, or end soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a reservation came to."""

    key: str
    charged: Charge
    """What the accounts bear now."""
    flags: tuple[str, ...] = ()
    """What was wrong with what was reported, such as `tokens: unknown, charged as reserved`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of one model call, as its provider reports them or as they are at most before it."""

    input_tokens: int
    """All of them, cached and written ones included."""
    output_tokens: int
    cached_tokens: int = 0
    """Input that was read from the provider's cache."""
    written_tokens: int = 0
    """Input that was written to it."""
    reasoning_tokens: int = 0
    """Output that was thought and not said."""

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Add up what two calls took."""
        return TokenUsage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            written_tokens=self.written_tokens + other.written_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs: steps of (from so many input tokens on, micro-USD per million tokens), and where that stands."""

    provider: str
    models: str
    """Globs of the models, with `|` between ways to match and `&` between what has to hold together."""
    input: tuple[tuple[int, int], ...]
    output: tuple[tuple[int, int], ...] = ()
    """Empty: output has no price, and a call with output has none."""
    cached: tuple[tuple[int, int], ...] = ()
    """Empty: as input."""
    written: tuple[tuple[int, int], ...] = ()
    """Empty: as input."""
    request_micro_usd: int = 0
    source: str
    """Page that states it, or who set it."""
    as_of: str
    """Day of the price."""
