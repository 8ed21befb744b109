"""What a call of a model costs, by a table in the package and by what operators set; unknown is unknown, never zero."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from quell.domain import AMOUNT_MAX, Price, TokenUsage

_MILLION = 1_000_000
_KNOWN_MAX = 4096
_OWN = frozenset({"builtin", "local", "ollama"})
"""Who is paid nothing by the token: it runs on the operator's own machines."""
Steps = tuple[tuple[int, int], ...]


class Prices:
    """Prices by provider and model: the operator's first, then the table's, then the pessimistic one if there is one."""

    def __init__(
        self, overrides: Sequence[Price] = (), *, pessimistic: Price | Literal["dearest"] | None = None
    ) -> None:
        self._overrides = tuple(overrides)
        self._pessimistic = _dearest_known(self._overrides) if pessimistic == "dearest" else pessimistic
        self._found: dict[tuple[str, str], Price | None] = {}

    def find_price(self, provider: str, model: str) -> Price | None:
        """Return the price of a model with where it comes from; None when nobody knows it."""
        place = (provider.lower(), model.lower())
        if place not in self._found:
            if len(self._found) >= _KNOWN_MAX:
                self._found.clear()
            self._found[place] = self._look_up(*place)
        return self._found[place]

    def price_of(self, provider: str, model: str, usage: TokenUsage) -> int | None:
        """Return micro-USD, rounded up; None when the price is unknown or the usage cannot be true."""
        price = self.find_price(provider, model)
        known = None if price is None else cost(price, usage)
        return cost(self._pessimistic, usage) if known is None and self._pessimistic is not None else known

    def price_at_most(self, provider: str, model: str, *, input_tokens: int, output_tokens: int) -> int | None:
        """Return the micro-USD that so many tokens cost at worst: what a cache will read or write is not known before."""
        price = self.find_price(provider, model)
        usage = TokenUsage(input_tokens=input_tokens, output_tokens=output_tokens)
        known = None if price is None else cost(_dearest(price, input_tokens), usage)
        return cost(self._pessimistic, usage) if known is None and self._pessimistic is not None else known

    def _look_up(self, provider: str, model: str) -> Price | None:
        for price in self._overrides:
            if fnmatchcase(provider, price.provider.lower()) and _matches(_ways(price.models.lower()), model):
                return price
        if provider in _OWN:
            return _nothing(provider)
        return next(_in_table(provider, model), self._pessimistic)


def _nothing(provider: str) -> Price:
    """Return the price of what runs on the operator's own machines."""
    free = ((0, 0),)
    return Price(
        provider=provider, models="*", input=free, output=free, source="runs on your own machines", as_of="2026-11-20"
    )


def cost(price: Price, usage: TokenUsage) -> int | None:
    """Charge every token once, at the step of the whole input, as providers do.

    Returns None when the usage is no usage, or something in it has no price.
    """
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.written_tokens)
    # Providers write what they like into these fields: a bool or a float is no count.
    if any(type(count) is not int or not 0 <= count <= AMOUNT_MAX for count in counts):
        return None
    plain = usage.input_tokens - usage.cached_tokens - usage.written_tokens
    if plain < 0 or (usage.output_tokens and not price.output):
        return None
    parts = (
        (plain, price.input),
        (usage.output_tokens, price.output),
        (usage.cached_tokens, price.cached or price.input),
        (usage.written_tokens, price.written or price.input),
    )
    total = sum(tokens * _rate(steps, usage.input_tokens) for tokens, steps in parts if tokens)
    return -(-total // _MILLION) + price.request_micro_usd


def _rate(steps: Steps, input_tokens: int) -> int:
    """Return the rate at that size of input; before the first step, the first step's."""
    return next((rate for start, rate in reversed(steps) if input_tokens > start), steps[0][1])


def _dearest(price: Price, input_tokens: int) -> Price:
    """Return the price with every input token at the dearest way that it could be charged."""
    ways = [steps for steps in (price.input, price.cached, price.written) if steps]
    most = max(rate for steps in ways for start, rate in steps if start <= input_tokens)
    output = max((rate for start, rate in price.output if start <= input_tokens), default=0)
    return replace(price, input=((0, most),), output=((0, output),) if price.output else ())


def _dearest_known(overrides: Sequence[Price]) -> Price:
    """Return the price of a model that would be as dear as the dearest known one in everything."""
    known = [*overrides, *(_price(one, model) for one in _table()["providers"] for model in one["models"])]

    def most(of: Callable[[Price], Steps]) -> Steps:
        return ((0, max(rate for price in known for _, rate in of(price))),)

    return Price(
        provider="*",
        models="*",
        input=most(lambda price: price.input),
        output=most(lambda price: price.output),
        cached=most(lambda price: price.cached or price.input),
        written=most(lambda price: price.written or price.input),
        request_micro_usd=max(price.request_micro_usd for price in known),
        source="the dearest known price, as this one is unknown",
        as_of=_table()["source"]["date"],
    )


def _in_table(provider: str, model: str) -> Iterator[Price]:
    """Yield prices of the table: of the provider, then of those whose models it resells."""
    table = _table()
    entry = next((one for one in table["providers"] if one["id"] == provider), None) or next(
        (one for one in table["providers"] if _matches(one["match"], provider)), None
    )
    if entry is None:
        return
    resold = [one for name in entry["else"] for one in table["providers"] if one["id"] == name]
    for one in (entry, *resold):
        yield from (_price(one, known) for known in one["models"] if _matches(known[0], model))


def _price(provider: Any, model: Any) -> Price:
    """Read one line of the table."""
    ways, (per_input, per_output, cached, written, request) = model
    return Price(
        provider=provider["id"],
        models="|".join("&".join(way) for way in ways),
        input=_steps(per_input),
        output=_steps(per_output),
        cached=_steps(cached),
        written=_steps(written),
        request_micro_usd=request,
        source=provider["source"] or _table()["source"]["url"],
        as_of=_table()["source"]["date"],
    )


def _matches(ways: Sequence[Sequence[str]], name: str) -> bool:
    return any(
        all(not fnmatchcase(name, glob[1:]) if glob[0] == "!" else fnmatchcase(name, glob) for glob in way)
        for way in ways
    )


def _ways(models: str) -> list[list[str]]:
    return [[glob for glob in way.split("&") if glob] for way in models.split("|") if way]


def _steps(rate: int | list[list[int]] | None) -> Steps:
    if rate is None:
        return ()
    return ((0, rate),) if isinstance(rate, int) else tuple((start, price) for start, price in rate)


@lru_cache(maxsize=1)
def _table() -> Any:
    """Read the table once, when the first price is asked for; `scripts/prices.py` writes it."""
    return json.loads(files("quell.governance").joinpath("prices.json").read_text(encoding="utf-8"))
