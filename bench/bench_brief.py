"""How large a briefing gets at worst: many made-up surveys, honest and hostile, counted by our bound and by tokenizers.

python -m bench.bench_brief [--json]
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable

from tests.doors._brief_surveys import NOW, answers, made_survey

from quell.signals import pack

SURVEYS = 400
BUDGET_TOKENS = 1000
VOCABULARIES = ("o200k_base", "cl100k_base")


def _tokenizers() -> list[Callable[[str], int]]:
    try:
        bpe = importlib.import_module("bpe_openai")
    except ImportError:
        return []
    return [
        lambda text, encoding=encoding: len(encoding.encode_ordinary(text))  # type: ignore[misc] # bound per vocabulary
        for encoding in (bpe.get_encoding(name) for name in VOCABULARIES)
    ]


def measure() -> dict[str, object]:
    """Pack every survey, and report the largest briefing and what packing costs."""
    tokenizers = _tokenizers()
    bounds, real, facts, spent_ms = [], [], [], []
    for seed in range(SURVEYS):
        # Every fourth is all hostile, every fourth all honest, the rest are mixed.
        hostile = {0: 1.0, 1: 0.0}.get(seed % 4, 0.5)
        made = made_survey(seed, rows_max=50 + seed, hostile=hostile)
        began = time.process_time()
        briefing = pack(made, budget_tokens=BUDGET_TOKENS, anchor=NOW)
        spent_ms.append(1000 * (time.process_time() - began))
        bounds.append(briefing.tokens)
        facts.append(len(briefing.shown))
        real.append(max((count(briefing.text) for count in tokenizers), default=0))
    rows = sum(len(getattr(answer, "rows", ())) for seed in range(20) for answer in answers(seed))
    return {
        "briefings": SURVEYS,
        "budget_tokens": BUDGET_TOKENS,
        "tokens_max": max(bounds),
        "tokens_max_by_tokenizer": max(real) if tokenizers else None,
        "tokenizers": list(VOCABULARIES) if tokenizers else [],
        "over_budget": sum(tokens > BUDGET_TOKENS for tokens in (*bounds, *real)),
        "tokens_median": statistics.median(bounds),
        "facts_shown_median": statistics.median(facts),
        "rows_per_survey_mean": rows / 20,
        "pack_cpu_ms_median": round(statistics.median(spent_ms), 2),
    }


def main() -> None:
    """Print the figures."""
    figures = measure()
    if "--json" in sys.argv:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
