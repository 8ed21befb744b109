"""The page about diagnosis says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from quell.diagnosis import CATALOGUE, THRESHOLDS, WEIGHTS

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "diagnosis.md").read_text()


def test_the_page_lists_every_weight_as_it_is() -> None:
    told = re.findall(r"^\| `(\w+)` \| ([+-][\d.]+) \| (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert told == [(n, f"{w.points:+g}", w.family, w.meaning) for n, w in WEIGHTS.items()]


def test_the_page_lists_every_kind_of_cause() -> None:
    told = re.findall(r"^\| `(\w+)` \| ([A-Z][^|]+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert told == [(c.value, a.title, a.meaning) for c, a in CATALOGUE.items()]


def test_the_page_names_the_thresholds_in_force() -> None:
    assert f"{100 * THRESHOLDS.error_share_floor:g} points of failures" in PAGE
    assert f"{THRESHOLDS.slow_ratio:g} times and {THRESHOLDS.slow_floor_ms:g} ms" in PAGE
    assert f"{THRESHOLDS.high_score:g} points without words" in PAGE
    assert f"passes the bar of {THRESHOLDS.bar:g} points" in PAGE
