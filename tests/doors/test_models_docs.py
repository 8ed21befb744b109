"""The page about models says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from quell.config import LlmSettings
from quell.domain import ModelFault
from quell.models import _limits as limits
from quell.models._bills import _UNBOUNDED_TOKENS
from quell.models._direct import _NEEDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "choose-a-model.md").read_text()


@pytest.mark.timeout(30)
def test_the_example_of_the_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    told = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=25, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_page_names_every_provider_every_fault_and_every_key_that_it_explains() -> None:
    providers = typing.get_args(typing.get_type_hints(LlmSettings)["provider"])
    assert set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE)) - {"provider"} == set(providers)
    line = next(line for line in PAGE.splitlines() if "Every fault has a kind" in line)
    assert re.findall(r"`([a-z_]+)`", line.partition("Every fault")[2]) == [fault.value for fault in ModelFault]
    assert f"longer than {limits._WAIT_MAX_S:g} seconds" in PAGE
    assert f"when {limits._WAITERS_MAX} wait" in PAGE
    assert f"{_UNBOUNDED_TOKENS:,} where" in PAGE


def test_what_the_page_says_to_install_is_an_extra_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install 'quell\[([a-z]+)\]'", PAGE)
    assert sorted(named) == sorted(_NEEDS)
    assert set(named) <= set(extras)
