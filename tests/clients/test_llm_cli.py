"""The real `llm` command: people ask agents from a shell, as they ask any other model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import _canaries
from tests.clients._house import House
from tests.clients._script import Script, said
from tests.doors._model_bench import plain

_MODEL = """
- model_id: quell
  model_name: {agent}
  api_base: "{url}"
  can_stream: true
"""


@pytest.fixture
def home(tmp_path: Path, open_house: House) -> Path:
    (tmp_path / "extra-openai-models.yaml").write_text(
        _MODEL.format(agent="sre", url=open_house.v1)
        + _MODEL.format(agent="nobody", url=open_house.v1).replace("quell", "lost")
    )
    return tmp_path


def llm(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Its plugin for the small model wants a library that is left out: none are loaded.
    own = {"LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": "", "HOME": str(home)}
    told = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    _canaries.SEARCH.text("what llm said", told.stdout + told.stderr)
    return told


@pytest.mark.parametrize("way", ["streamed", "whole"])
def test_an_answer_is_printed_and_what_it_took_is_logged(home: Path, script: Script, way: str) -> None:
    question = f"Ask from a shell ({way})."
    script.on(question, said("A shell ", "heard it.", prompt=77, completion=8))
    options = [] if way == "streamed" else ["--no-stream"]
    told = llm(home, "-m", "quell", "--key", "any", *options, question)
    assert (told.returncode, told.stdout.strip(), told.stderr) == (0, "A shell heard it.", "")
    (logged,) = json.loads(llm(home, "logs", "--json").stdout)
    assert logged["response"] == "A shell heard it."
    assert (logged["input_tokens"], logged["output_tokens"]) == (77, 8)


def test_a_conversation_goes_on_with_what_was_said(home: Path, script: Script) -> None:
    script.on("First of two.", said("One."))
    asked = script.on("Second of the two, then.", said("Two."))
    assert llm(home, "-m", "quell", "--key", "any", "First of two.").returncode == 0
    told = llm(home, "-c", "--key", "any", "Second of the two, then.")
    assert told.stdout.strip() == "Two."
    turns = [(message["role"], message["content"]) for message in asked.bodies[-1]["messages"]]
    assert turns[-3:] == [("user", "First of two."), ("assistant", "One."), ("user", "Second of the two, then.")]


def test_what_fails_is_told_on_stderr_and_prints_no_answer(home: Path, script: Script) -> None:
    script.on("Fail in a shell.", plain(401, {"error": {"message": "bad key", "type": "x"}}))
    for model, words in (("quell", "Fail in a shell."), ("lost", "Anybody there?")):
        told = llm(home, "-m", model, "--key", "any", "--no-stream", words)
        assert told.returncode == 1
        assert told.stdout == ""
        assert "Error: " in told.stderr
    assert "nobody" in told.stderr
