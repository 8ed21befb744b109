"""Write src/quell/governance/prices.json from the PyPI package genai-prices (MIT), which is no dependency of Quell.

Run it in an environment of its own: `pip install genai-prices && python scripts/prices.py`. Rates become whole micro-USD
per million tokens, rounded up; where a model has several prices over time or over the day, the dearest that applies from
today on is taken: a cap may stop a run early, never late.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from pathlib import Path

from genai_prices import types as t
from genai_prices.data_snapshot import get_snapshot

TARGET = Path(__file__).parents[1] / "src" / "quell" / "governance" / "prices.json"
RATES = (("input_mtok",), ("output_mtok",), ("cache_read_mtok",), ("cache_write_mtok", "cache_write_1h_mtok"))
NOISE = Decimal("0.000000001")
NOT_SPEECH = "(?!.*-[tT][tT][sS](?:$|-))"
Rate = int | list[list[int]] | None


def main() -> None:
    """Write the table and say what was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", type=dt.date.fromisoformat, required=True, help="the day of the prices")
    day = parser.parse_args().date
    left_out: list[str] = []
    providers = [entry for one in get_snapshot().providers if (entry := provider(one, day=day, left_out=left_out))]
    source = {
        "package": "genai-prices",
        "version": version("genai-prices"),
        "license": "MIT",
        "url": "https://github.com/pydantic/genai-prices",
        "date": day.isoformat(),
        "rates": "micro-USD per million tokens: input, output, cached input, written cache; then micro-USD per request",
    }
    lines = ",\n".join(json.dumps(entry, separators=(",", ":"), ensure_ascii=False) for entry in providers)
    TARGET.write_text(f'{{"source": {json.dumps(source)},\n"providers": [\n{lines}\n]}}\n')
    print(f"{sum(len(p['models']) for p in providers)} models of {len(providers)} providers")
    print(f"left out: {len(left_out)}, such as {left_out[:5]}")


def provider(one: t.Provider, *, day: dt.date, left_out: list[str]) -> dict[str, object] | None:
    """Write one provider, or None when it charges by nothing that is counted here."""
    models = []
    for model in one.models:
        rates = rates_of(model, day=day)
        ways = list(alternatives(model.match))
        if rates is None or not ways:
            left_out.append(f"{one.id}/{model.id}")
        else:
            models.append([ways, rates])
    if not models and not one.fallback_model_providers:
        return None
    return {
        "id": one.id,
        "match": list(alternatives(one.provider_match)) if one.provider_match else [],
        "else": one.fallback_model_providers or [],
        "source": (one.pricing_urls or [""])[0],
        "models": models,
    }


def rates_of(model: t.ModelInfo, *, day: dt.date) -> list[Rate] | None:
    """Return the dearest rates from a day on, None when tokens have no price."""
    candidates = list(applying(model, day=day))
    rates: list[Rate] = [dearest([read(price, names) for price in candidates]) for names in RATES]
    if rates[0] is None:
        return None
    per_request = [price.__dict__.get("requests_kcount") for price in candidates]
    rates.append(max((micro(p) // 1000 + 1 for p in per_request if p), default=0))
    return rates


def applying(model: t.ModelInfo, *, day: dt.date) -> Iterator[t.ModelPrice]:
    """Yield the prices that may apply on that day or later; the last whose condition holds is the one that does."""
    if isinstance(model.prices, t.ModelPrice):
        yield model.prices
        return
    for one in reversed(model.prices):
        yield one.prices
        since = one.constraint
        if since is None or (isinstance(since, t.StartDateConstraint) and since.start_date <= day):
            return


def read(price: t.ModelPrice, names: tuple[str, ...]) -> list[list[int]]:
    """Return the steps (from so many input tokens, micro-USD) of the dearest of these units; empty when there is none."""
    found = [price.__dict__[name] for name in names if price.__dict__.get(name) is not None]
    return steps_over(
        [
            [[0, micro(p.base)], *([x.start, micro(x.price)] for x in p.tiers)]
            if isinstance(p, t.TieredPrices)
            else [[0, micro(p)]]
            for p in found
        ]
    )


def dearest(candidates: list[list[list[int]]]) -> Rate:
    """Take the dearer at every number of tokens; a plain number when there is one step."""
    steps = steps_over([steps for steps in candidates if steps])
    if not steps:
        return None
    return steps[0][1] if len(steps) == 1 else steps


def steps_over(many: list[list[list[int]]]) -> list[list[int]]:
    """Return the upper hull of several step functions."""
    hull: list[list[int]] = []
    for start in sorted({step[0] for steps in many for step in steps}):
        price = max(next(p for s, p in reversed(steps) if s <= start) for steps in many)
        if not hull or hull[-1][1] != price:
            hull.append([start, price])
    return hull


def micro(price: Decimal) -> int:
    """Return whole micro-USD, rounded up; noise of binary floats in the source is taken away first."""
    return int((price.quantize(NOISE) * 1_000_000).to_integral_value(rounding=ROUND_CEILING))


def alternatives(clause: t.MatchLogic) -> Iterator[list[str]]:
    """Yield the ways to match: lists of globs that all have to, `!` in front of those that must not."""
    if isinstance(clause, t.ClauseOr):
        for one in clause.or_:
            yield from alternatives(one)
    elif isinstance(clause, t.ClauseAnd):
        parts = [list(alternatives(one)) for one in clause.and_]
        if all(len(part) == 1 for part in parts):
            yield [pattern for part in parts for pattern in part[0]]
    elif isinstance(clause, t.ClauseRegex):
        if patterns := globs(clause.regex):
            yield patterns
    else:
        yield [plain(clause)]


def plain(clause: t.ClauseEquals | t.ClauseStartsWith | t.ClauseEndsWith | t.ClauseContains) -> str:
    """Write a comparison of texts as a glob."""
    if isinstance(clause, t.ClauseEquals):
        return escape(clause.equals)
    if isinstance(clause, t.ClauseStartsWith):
        return f"{escape(clause.starts_with)}*"
    if isinstance(clause, t.ClauseEndsWith):
        return f"*{escape(clause.ends_with)}"
    return f"*{escape(clause.contains)}*"


def escape(text: str) -> str:
    """Write a text so that a glob takes it literally."""
    return re.sub(r"([\[?*])", r"[\1]", text.lower())


def globs(regex: str) -> list[str]:
    """Write one of the few forms of expressions that the source uses as globs; empty for any other."""
    body = regex.removeprefix("^")
    if body == NOT_SPEECH:
        return ["!*-tts", "!*-tts-*"]
    body, is_open = (body[:-1], False) if body.endswith("$") else (body, True)
    glob = ""
    for token in re.findall(r"\\d\{\d+\}|\\d|\\[.\[\]]|\[[-@]+\]|[a-zA-Z0-9/=_-]|.", body):
        if token.startswith("\\d"):
            glob += "[0-9]" * int(token[3:-1] or 1) if "{" in token else "[0-9]"
        elif token.startswith("\\"):
            glob += escape(token[1])
        elif re.fullmatch(r"\[[-@]+\]|[a-zA-Z0-9/=_-]", token):
            glob += token.lower()
        else:
            return []
    return [glob + "*" * is_open]


if __name__ == "__main__":
    main()
