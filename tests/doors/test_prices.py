"""Prices: exact, sourced, never zero because unknown, and never less than what a provider would charge."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quell.domain import Price, TokenUsage
from quell.governance import Budgets

KNOWN = Budgets((), clock=lambda: datetime(2026, 11, 20, tzinfo=UTC))
TABLE = json.loads(files("quell.governance").joinpath("prices.json").read_text())


def usage(input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> TokenUsage:
    return TokenUsage(
        input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=cached, written_tokens=written
    )


@pytest.mark.parametrize(
    ("provider", "model", "told", "micro_usd"),
    [
        ("openai", "gpt-4o", usage(1_000_000, 100_000), 2_500_000 + 1_000_000),
        ("openai", "GPT-4o", usage(1, 0), 3),
        ("openai", "gpt-4o", usage(1000, 0, cached=1000), 1250),
        ("anthropic", "claude-3-5-haiku-20241022", usage(1_000_000, 0), 800_000),
        ("anthropic", "claude-3-5-haiku-20241022", usage(1_000_000, 0, cached=500_000, written=500_000), 840_000),
        ("google-vertex", "claude-3-5-haiku", usage(1_000_000, 0), 800_000),
        ("azure", "gpt-4o", usage(1_000_000, 0), 2_500_000),
        ("openai", "gpt-4o", usage(0, 0), 0),
    ],
)
def test_tokens_are_charged_at_their_rates_and_rounded_up(
    provider: str, model: str, told: TokenUsage, micro_usd: int
) -> None:
    assert KNOWN.price_of(provider, model, told) == micro_usd


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "no-such-model"), ("nobody", "gpt-4o"), ("", ""), ("openai", "tts-1")]
)
def test_an_unknown_price_is_unknown(provider: str, model: str) -> None:
    assert KNOWN.price_of(provider, model, usage(1, 1)) is None
    assert KNOWN.price_at_most(provider, model, input_tokens=1, output_tokens=1) is None


@pytest.mark.parametrize(
    "told",
    [usage(-1, 0), usage(1, -1), usage(10, 0, cached=11), usage(10, 0, cached=6, written=6), usage(10**16, 0)]
    + [usage(odd, 0) for odd in (True, 1.5, "7", None)],  # type: ignore[arg-type]
)
def test_a_usage_that_cannot_be_true_has_no_price(told: TokenUsage) -> None:
    assert KNOWN.price_of("openai", "gpt-4o", told) is None


def test_a_model_without_a_price_for_output_has_none_when_it_writes() -> None:
    assert KNOWN.price_of("openai", "text-embedding-3-small", usage(1_000_000, 0)) == 20_000
    free_output = Price(provider="own", models="m", input=((0, 1),), source="operator", as_of="2026-11-20")
    own = Budgets((), clock=KNOWN._clock, prices=[free_output])
    assert own.price_of("own", "m", usage(5, 1)) is None


def test_long_inputs_are_charged_at_the_higher_step_from_the_token_past_it() -> None:
    stepped = Price(
        provider="own",
        models="big-*",
        input=((0, 1_000_000), (200_000, 2_000_000)),
        output=((0, 0),),
        source="operator",
        as_of="2026-11-20",
    )
    own = Budgets((), clock=KNOWN._clock, prices=[stepped])
    assert own.price_of("own", "big-1", usage(200_000, 0)) == 200_000
    assert own.price_of("own", "big-1", usage(200_001, 0)) == 400_002


def test_an_operators_price_comes_before_the_table_and_says_so() -> None:
    negotiated = Price(
        provider="openai",
        models="gpt-4o|x&!y",
        input=((0, 7),),
        output=((0, 9),),
        source="contract 12",
        as_of="2026-10-01",
    )
    own = Budgets((), clock=KNOWN._clock, prices=[negotiated])
    assert own.price_of("openai", "gpt-4o", usage(1_000_000, 1_000_000)) == 16
    found = own.find_price("openai", "gpt-4o")
    assert found is not None
    assert found.source == "contract 12"
    table = own.find_price("openai", "gpt-4o-mini")
    assert table is not None
    assert (table.provider, table.as_of) == ("openai", TABLE["source"]["date"])
    assert table.source.startswith("https://")


def test_the_table_has_a_day_and_a_version_and_whole_rates_that_are_not_negative() -> None:
    assert date.fromisoformat(TABLE["source"]["date"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", TABLE["source"]["version"])
    rates = [
        rate for provider in TABLE["providers"] for _, found in provider["models"] for rate in found if rate is not None
    ]
    assert len(rates) > 2000
    for rate in rates:
        steps = [[0, rate]] if isinstance(rate, int) else rate
        assert steps[0][0] == 0
        assert all(type(number) is int and number >= 0 for step in steps for number in step)


def test_the_dearest_price_stands_in_for_an_unknown_one_when_the_operator_says_so() -> None:
    own = Budgets((), clock=KNOWN._clock, pessimistic="dearest")
    told = usage(100_000, 5_000, cached=10_000, written=20_000)
    unknown = own.price_of("nobody", "nothing", told)
    assert unknown is not None
    for provider in TABLE["providers"]:
        for ways, _ in provider["models"]:
            known = KNOWN.price_of(provider["id"], ways[0][0].replace("*", "x"), told)
            assert known is None or known <= unknown
    assert own.price_of("openai", "gpt-4o", told) == KNOWN.price_of("openai", "gpt-4o", told)
    found = own.find_price("nobody", "nothing")
    assert found is not None
    assert "unknown" in found.source


MODELS = [
    (provider["id"], ways[0][0].replace("*", "x"))
    for provider in TABLE["providers"]
    for ways, _ in provider["models"]
    if len(ways[0]) == 1 and "[" not in ways[0][0]
]


@settings(deadline=None)
@given(
    place=st.sampled_from(MODELS),
    tokens=st.tuples(*[st.integers(0, 400_000)] * 4),
)
def test_what_is_reserved_at_most_is_never_less_than_what_any_split_of_those_tokens_costs(
    place: tuple[str, str], tokens: tuple[int, int, int, int]
) -> None:
    plain, cached, written, output = tokens
    real = KNOWN.price_of(*place, usage(plain + cached + written, output, cached=cached, written=written))
    most = KNOWN.price_at_most(*place, input_tokens=plain + cached + written + 10, output_tokens=output + 10)
    if most is None:
        assert real is None or output == 0
    else:
        assert real is not None
        assert real <= most
