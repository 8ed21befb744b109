"""How often and how much a model may be asked: as the settings say, or as its provider's headers tell.

Two buckets that fill evenly (requests, and tokens), one queue in the order of arrival, and a wait that is bounded: who
would wait longer is told at once when to come back. All runs of a process that ask the same model share them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from quell.domain import ModelError, ModelEvent, ModelFault, ModelRequest, OverloadError, UsageTold
from quell.models._model import Hear, Model, tell
from quell.models._ways import Wrapped

_MINUTE_S = 60.0
_WAIT_MAX_S = 30.0
_WAITERS_MAX = 256
_TICK_S = 1e-6
"""Less than this is what sums of floats are off, and no wait."""
_HOLD_FIRST_S = 1.0
_HOLD_MAX_S = 120.0
_ANSWER_TOKENS = 256
"""What an answer is taken for until it told its usage, where the request bounds it no lower."""
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(slots=True)
class _Bucket:
    """So much per minute, filled evenly; None: nobody said how much."""

    per_minute: float | None
    at_s: float
    level: float = 0.0
    is_set: bool = False
    """Whether the settings said how much: what a provider tells does not change that."""

    def __post_init__(self) -> None:
        """Begin full."""
        self.is_set = self.per_minute is not None
        self.level = self.per_minute or 0.0

    def fill(self, now_s: float) -> None:
        """Add what came since."""
        if self.per_minute is not None:
            self.level = min(self.per_minute, self.level + (now_s - self.at_s) * self.per_minute / _MINUTE_S)
        self.at_s = now_s

    def lacks_s(self, amount: float) -> float:
        """Return how long it takes until so much is there; more than the whole waits for the whole."""
        if not self.per_minute:
            return 0.0
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def told(self, *, limit: float | None, left: float | None) -> None:
        """Believe what the provider told of its own bucket, as far as the settings say nothing else."""
        if limit is not None and limit > 0 and not self.is_set:
            self.level = self.level + limit - self.per_minute if self.per_minute is not None else limit
            self.per_minute = limit
        if left is not None and self.per_minute is not None:
            self.level = min(self.level, left)


@dataclass(slots=True)
class Limiter:
    """The bounds of one model at one account."""

    monotonic: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    wait_max_s: float = _WAIT_MAX_S
    waiters_max: int = _WAITERS_MAX
    waiting: int = 0
    """How many wait for their turn now."""
    _requests: _Bucket = field(init=False)
    _tokens: _Bucket = field(init=False)
    _held_until_s: float = field(default=0.0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        """Begin with full buckets."""
        now_s = self.monotonic()
        self._requests = _Bucket(self.requests_per_minute, now_s)
        self._tokens = _Bucket(self.tokens_per_minute, now_s)

    async def admit(self, tokens: int, *, wait_s: float) -> None:
        """Wait until a request of so many tokens may go out. Raises OverloadError when that would take too long."""
        if self.waiting >= self.waiters_max:
            raise OverloadError(
                f"{self.waiting} requests wait for this model already", retry_after_s=max(1.0, self.lacks_s(tokens))
            )
        wait_s = min(wait_s, self.wait_max_s)
        ends_at_s = self.monotonic() + wait_s
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s), self._turn:
                while (lacks_s := self.lacks_s(tokens)) > 0:
                    if self.monotonic() + lacks_s > ends_at_s:
                        raise self._refusal(lacks_s)
                    await self.pause(lacks_s)
                self._requests.level -= 1
                self._tokens.level -= tokens
        except TimeoutError:
            raise self._refusal(max(1.0, self.lacks_s(tokens))) from None
        finally:
            self.waiting -= 1

    def lacks_s(self, tokens: int) -> float:
        """Return how long a request of so many tokens would have to wait now, if it were the next."""
        now_s = self.monotonic()
        self._requests.fill(now_s)
        self._tokens.fill(now_s)
        lacks_s = max(self._held_until_s - now_s, self._requests.lacks_s(1), self._tokens.lacks_s(tokens))
        return lacks_s if lacks_s > _TICK_S else 0.0

    def correct(self, *, taken: int, used: int) -> None:
        """Take what a request used beyond what was taken for it, or give the rest back."""
        if self._tokens.per_minute is not None:
            self._tokens.level = min(self._tokens.per_minute, self._tokens.level + taken - used)

    def hold(self, seconds: float | None) -> None:
        """Let nobody through for a while: the provider said that it is enough."""
        held_s = min(_HOLD_FIRST_S if seconds is None else seconds, _HOLD_MAX_S)
        self._held_until_s = max(self._held_until_s, self.monotonic() + held_s)

    def hear(self, headers: Mapping[str, str], *, now: datetime) -> None:
        """Learn from the headers of an answer: `x-ratelimit-*`, or `anthropic-ratelimit-*`."""
        self.lacks_s(0)
        for bucket, kind in ((self._requests, "requests"), (self._tokens, "tokens")):
            limit, left, reset = _heard(headers, kind)
            bucket.told(limit=limit, left=left)
            # A bucket of known size fills evenly; of one whose size nobody told, only the end of its wait is known.
            is_empty = left is not None and left < 1 and bucket.per_minute is None
            if is_empty and (again_s := _seconds(reset, now=now)) is not None:
                self.hold(again_s)

    def _refusal(self, lacks_s: float) -> OverloadError:
        return OverloadError(
            f"the rate limit of this model has no room for {lacks_s:.0f} s",
            retry_after_s=lacks_s,
            hint="ask less at a time, or raise the account's limits",
        )


@dataclass(slots=True)
class Limits:
    """The limiters of a process, by whose account asks which model where."""

    monotonic: Callable[[], float]
    _limiters: dict[tuple[str, ...], Limiter] = field(default_factory=dict, init=False)

    def of(self, *place: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> Limiter:
        """Return the limiter of a place, the same for everybody who names it."""
        found = self._limiters.get(place)
        if found is None:
            found = Limiter(self.monotonic, requests_per_minute, tokens_per_minute)
            self._limiters[place] = found
        return found


class LimitedModel(Wrapped):
    """A model that is asked as often as its limiter lets it be."""

    def __init__(self, inner: Model, limiter: Limiter) -> None:
        """Stand before a model."""
        super().__init__(inner)
        self._limiter = limiter

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Wait for a place, then ask. Raises as `Model.stream` does."""
        with await self._admitted(request, deadline_s=deadline_s) as admitted:
            async with aclosing(self._inner.stream(request, deadline_s=admitted.left_s)) as events:
                async for event in events:
                    admitted.note(event)
                    yield event

    async def tell(self, request: ModelRequest, *, deadline_s: float, hear: Hear) -> None:
        """Wait for a place, then ask, and hand on what comes. Raises as `Model.stream` does."""
        with await self._admitted(request, deadline_s=deadline_s) as admitted:

            def heard(event: ModelEvent) -> None:
                if isinstance(event, UsageTold):
                    admitted.note(event)
                hear(event)

            await tell(self._inner, request, deadline_s=admitted.left_s, hear=heard)

    async def _admitted(self, request: ModelRequest, *, deadline_s: float) -> _Admitted:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        taken = self.counter.count(request) + min(request.output_max_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)
        await self._limiter.admit(taken, wait_s=deadline_s)
        return _Admitted(self._limiter, taken=taken, left_s=max(ends_at - loop.time(), 0.001))


class _Admitted:
    """A request that has its place: when it is over, the limiter learns what it took."""

    __slots__ = ("_limiter", "_taken", "_used", "left_s")

    def __init__(self, limiter: Limiter, *, taken: int, left_s: float) -> None:
        self._limiter = limiter
        self._taken = taken
        self._used: int | None = None
        self.left_s = left_s
        """How much of its time is left."""

    def __enter__(self) -> Self:
        """Begin to ask."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        """Settle."""
        if isinstance(error, ModelError) and error.fault is ModelFault.RATE_LIMITED:
            self._limiter.hold(error.retry_after_s)
        if self._used is not None:
            self._limiter.correct(taken=self._taken, used=self._used)

    def note(self, event: ModelEvent) -> None:
        """Hear what comes: some of it tells what was used."""
        if isinstance(event, UsageTold):
            self._used = event.usage.input_tokens + event.usage.output_tokens


def _heard(headers: Mapping[str, str], kind: str) -> tuple[float | None, float | None, str]:
    """Return limit, rest, and when the rest is whole again."""
    for limit, left, reset in (
        (f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}"),
        (
            f"anthropic-ratelimit-{kind}-limit",
            f"anthropic-ratelimit-{kind}-remaining",
            f"anthropic-ratelimit-{kind}-reset",
        ),
    ):
        if limit in headers or left in headers:
            return _number(headers.get(limit, "")), _number(headers.get(left, "")), headers.get(reset, "")
    return None, None, ""


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 <= found < float("inf") else None


def _seconds(text: str, *, now: datetime) -> float | None:
    """Read `1s`, `6m0s`, `250ms`, plain seconds, or a time (RFC 3339)."""
    parts = _LENGTH.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    found = _number(text)
    if found is not None:
        return found
    try:
        at = datetime.fromisoformat(text)
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError):
        return None
