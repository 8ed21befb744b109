"""Our own tools that an agent's file turns on, and no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from quell.app._agent_servers import offered
from quell.app._ask_people import ask_people_hand
from quell.app._file_tools import file_hands
from quell.app._memory import skill_hands
from quell.app._senses_tools import sense_tools
from quell.domain import Tool, strict_schema
from quell.memory import Skills
from quell.tools._reading import definitions
from tests.doors._agent_tools_bench import agent_of
from tests.doors._hand_bench import TOOLS

SENSES = {tool.name for tool in sense_tools()}
READERS = {tool.name for tool in definitions()}
STORE = '[[vector_stores]]\nname = "{}"\ntype = "in_memory"\nembedding_model = {{ provider = "openai", model = "m", api_key = "k" }}\n'
WORKER = '[orchestration]\nenabled = true\n[orchestration.worker.one]\ndescription = "d"\npreamble = "p"\n'


def _catalog(tmp_path: Path) -> list[Tool]:
    searching = [replace(TOOLS[0], name=name) for name in _SEARCH]
    skills = [tool for tool, _ in skill_hands(lambda _: Skills.load(()))]
    files = [tool for tool, _ in file_hands(lambda _: (), state_dir=tmp_path)]
    return [*sense_tools(), *definitions(), *skills, *files, ask_people_hand()[0], *searching, *TOOLS]


_SEARCH = ("search_documents", "vector_search_a", "vector_search_b")


@pytest.mark.parametrize(
    ("text", "extra", "more"),
    [
        ("", "", set()),
        ("[tools]\nfilesystem = true\n", "", {"read_file", "list_dir"}),
        ("[hitl]\n", "", {"request_approval"}),
        (STORE.format("a"), "", {"vector_search_a"}),
        ("[agent.scratchpad]\nenabled = true\n", "", READERS),
        ('[[agent.skills.local]]\nsource = "skills"\n', "", {"load_skill", "read_skill_file"}),
    ],
)
def test_a_file_turns_on_what_it_names_and_nothing_else(text: str, extra: str, more: set[str], tmp_path: Path) -> None:
    agent = agent_of(tmp_path, text, extra=extra)
    assert set(offered(_catalog(tmp_path), agent, {})) == {*SENSES, "search_documents", *more}


def test_a_coordinator_looks_at_nothing_itself_and_searches_its_own_stores(tmp_path: Path) -> None:
    agent = agent_of(tmp_path, STORE.format("a") + STORE.format("b") + WORKER)
    assert set(offered(_catalog(tmp_path), agent, {})) == {"search_documents"}


def test_a_worker_has_its_own_stores_and_what_it_does_not_say_is_the_agent_s(tmp_path: Path) -> None:
    text = (
        STORE.format("a") + STORE.format("b") + WORKER + 'vector_stores = ["b"]\n[[agent.skills.local]]\nsource = "s"\n'
    )
    agent = agent_of(tmp_path, text)
    worker = agent.orchestration.worker["one"]
    more = {"vector_search_b", "load_skill", "read_skill_file"}
    assert set(offered(_catalog(tmp_path), agent, {}, worker=worker)) == {*SENSES, "search_documents", *more}


def test_all_that_we_offer_ourselves_has_a_strict_shape(tmp_path: Path) -> None:
    for tool in _catalog(tmp_path):
        strict = json.loads(strict_schema(tool.input_schema))
        jsonschema.Draft202012Validator.check_schema(strict)
        assert set(strict["required"]) == set(strict["properties"]) == set(json.loads(tool.input_schema)["properties"])
        assert strict["additionalProperties"] is False
