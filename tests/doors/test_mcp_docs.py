"""The page about MCP servers says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from quell.domain import OutcomeKind

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "connect-an-mcp-server.md").read_text()


@pytest.mark.timeout(30)
def test_the_example_of_the_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    told = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=25, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_page_names_every_kind_of_outcome_and_every_section_of_the_catalogue() -> None:
    assert all(f"`{kind}`" in PAGE for kind in OutcomeKind)
    catalogue = tomllib.loads(files("quell.tools").joinpath("catalogue.toml").read_text())
    line = next(line for line in PAGE.splitlines() if "`catalogue`:" in line)
    assert re.findall(r"`([a-z]+)`", line.partition("`catalogue`:")[2]) == sorted(catalogue)
