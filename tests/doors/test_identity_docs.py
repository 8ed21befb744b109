"""What the pages about identity and autonomy show is true: their examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from quell.governance._ladder import CLAIMS, QUORUM

PAGES = Path(__file__).parents[2] / "docs" / "explanation"


@pytest.mark.parametrize("page", ["identity.md", "autonomy.md"])
def test_the_examples_of_a_page_run(page: str) -> None:
    examples = list(Sybil(parsers=[PythonCodeBlockParser()], pattern="*.md").parse(PAGES / page).examples())
    assert examples
    for example in examples:
        example.evaluate()


def test_the_table_of_levels_says_what_the_code_asks_for() -> None:
    text = (PAGES / "autonomy.md").read_text()
    rows = re.findall(r"^\| (\d) [a-z ]+ \| [^|]+ \| ([^|,]*)[^|]* \| (\d?) *\|$", text, re.MULTILINE)
    told = {int(level): (claim.strip(), people) for level, claim, people in rows if int(level)}
    assert told == {
        int(level): ("none" if claim is None else f"{claim:.2f}", str(QUORUM[level])) for level, claim in CLAIMS.items()
    }
