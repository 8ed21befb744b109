"""Row 10 of the acceptance list: large results are put aside and read piece by piece, through the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quell.config import AuraSettings
from tests.aura._bench import LOOSE, a_shop, agent_at, calls, named, played, says, server_of, thinking
from tests.doors._model_bench import Answer
from tests.doors._wire_bench import a_wire, frames, settings_of

pytestmark = pytest.mark.timeout(60)
EIGHT = {"head", "slice", "grep", "schema", "item_schema", "get_in", "iterate_over", "read"}


class Reader:
    """A model that fetches everything, and then reads what was put aside with the calls of a list."""

    def __init__(self, *wanted: tuple[str, Mapping[str, object]]) -> None:
        self._wanted: Sequence[tuple[str, Mapping[str, object]]] = wanted
        self.handle = ""
        self.offered: set[str] = set()
        self.results: list[str] = []

    def __call__(self, body: dict[str, Any]) -> Answer:
        self.offered = {each["function"]["name"] for each in body["tools"]}
        self.results = [str(each["content"]) for each in body["messages"] if each["role"] == "tool"]
        if not self.results:
            return calls(("get_all", {}))
        self.handle = re.findall(r"pad_[0-9a-z_]+", self.results[0])[0] if "pad_" in self.results[0] else ""
        place = len(self.results) - 1
        if not self.handle or place >= len(self._wanted):
            return says("I have read it.")
        tool, arguments = self._wanted[place]
        return calls((tool, {"handle": self.handle, **arguments}))


def _read(
    tmp_path: Path, reader: Reader, *, min_tokens: int = 125, most: int = 10_000, aura: AuraSettings | None = None
) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    async def story() -> None:
        async with a_shop() as shop, thinking(reader) as model:
            pad = f'[mcp.servers.shop.scratchpad."get_*"]\nmin_tokens = {min_tokens}\n'
            scratch = f"[agent.scratchpad]\nenabled = true\nmax_extraction_tokens = {most}\n"
            text = "context_window = 100000\n" + server_of(shop) + pad + LOOSE + scratch
            tables = agent_at(tmp_path, model.url, text, agent="turn_depth = 12", top=f'memory_dir = "{tmp_path}"')
            async with a_wire(settings_of(tmp_path / "state", aura=aura), tables) as wire:
                found.extend(frames(await wire.stream("Read it.")))

    played(story)
    return found


def test_row_10_a_result_above_its_bound_is_a_pointer_and_eight_tools_read_it(tmp_path: Path) -> None:
    reader = Reader(
        ("head", {"lines": 3}),
        ("slice", {"start": 1, "end": 5}),
        ("grep", {"pattern": "line 399 of"}),
        ("schema", {}),
        ("item_schema", {"path": "items"}),
        ("get_in", {"path": "items.7.text"}),
        ("iterate_over", {"path": "items", "fields": ["id"]}),
        ("read", {}),
    )
    found = _read(tmp_path, reader)
    pointer, *read = reader.results
    assert reader.offered >= EIGHT
    assert "line 200 of many" not in pointer, "the model was not given all of it"
    assert {tool for tool in EIGHT if tool in pointer} >= {"grep", "get_in"}
    assert len(read) == 8
    assert not any('outcome="tool_error"' in each or 'outcome="denied"' in each for each in read), read
    assert "line 399 of many" in read[2]
    assert "line 7 of many" in read[5]
    (usage,) = [each for name, each in found if name == "aura.scratchpad_usage"]
    assert usage["tokens_intercepted"] > 1000
    assert usage["tokens_extracted"] > 0
    assert (usage["agent_id"], "session_id" in usage) == ("main", True)


def test_row_10_a_result_below_its_bound_is_given_whole(tmp_path: Path) -> None:
    reader = Reader()
    found = _read(tmp_path, reader, min_tokens=100_000)
    assert "line 200 of many" in reader.results[0]
    assert not [each for name, each in found if name == "aura.scratchpad_usage"]


def test_row_10_too_much_at_once_is_refused_with_its_size_and_a_wrong_path_names_the_right_ones(tmp_path: Path) -> None:
    reader = Reader(("read", {}), ("get_in", {"path": "item.0"}), ("get_in", {"path": "items.9999"}))
    _read(tmp_path, reader, most=500)
    whole, wrong, beyond = reader.results[1:]
    assert re.search(r"too large: about [\d,]+ of 500 tokens; use schema, get_in or iterate_over", whole)
    told = json.loads(next(line for line in whole.splitlines() if line.startswith("{")))
    assert (told["error"], told["tokens_max"]) == ("read_too_large", 500)
    assert told["tokens"] > 500
    assert "get_in" in told["suggestions"]
    assert "items" in wrong
    assert "items here: 0 to 399" in beyond


def test_row_10_reading_is_quiet_in_the_stream_unless_it_is_asked_for(tmp_path: Path) -> None:
    on = AuraSettings(custom_events=True)
    names = named(_read(tmp_path / "quiet", Reader(("head", {"lines": 2})), aura=on))
    assert names.count("tool_complete") == 1
    loud = AuraSettings(custom_events=True, emit_scratchpad_tool_events=True)
    found = _read(tmp_path / "loud", Reader(("head", {"lines": 2})), aura=loud)
    assert [each["tool_name"] for name, each in found if name == "aura.tool_complete"] == ["get_all", "head"]
    assert json.dumps(found).count("aura.scratchpad_usage") == 1
