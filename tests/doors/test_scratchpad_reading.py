"""The eight reading tools: what they answer, how they stay within their budget, and how their errors teach."""

from __future__ import annotations

import asyncio
import json
import random
import re
import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.domain import OutcomeKind, PadOwner, PadReading, Recovery, ScratchpadLimits, ToolClass
from quell.tools import Scratchpad
from tests.conftest import FakeClock

ME = PadOwner(session="s1")
BUDGET_BYTES = 4 * ScratchpadLimits().reading_tokens
SHOP = {
    "total": 5_000,
    "items": [
        {
            "id": number,
            "name": f"item {number}",
            "labels": {"zone": "b"},
            **({"error": "timeout"} if number == 7 else {}),
        }
        for number in range(5_000)
    ],
    "a.b": {"c/d": [10, 20]},
    "note": "ä" * 9_000,
    "nothing": None,
    "empty": [],
}


class Desk:
    """One session at a scratchpad."""

    def __init__(self, pad: Scratchpad) -> None:
        self.pad = pad
        self.handle = ""

    def put(self, content: str | bytes) -> str:
        spilled = asyncio.run(self.pad.put(ME, content))
        self.handle = spilled.handle
        return spilled.head

    def ask(self, tool: str, **arguments: object) -> PadReading:
        asked = self.pad.readers[tool](ME, {"handle": self.handle, **arguments})
        reading = asyncio.run(asked)
        assert len(reading.content.encode()) <= BUDGET_BYTES
        return reading


@pytest.fixture
def desk(tmp_path: Path, clock: FakeClock) -> Iterator[Desk]:
    pad = Scratchpad(tmp_path / "pad", clock=clock, entropy=random.Random(3).randbytes)
    yield Desk(pad)
    pad.close()


@pytest.fixture
def shop(desk: Desk) -> Desk:
    desk.put(json.dumps(SHOP))
    return desk


def test_the_head_of_json_tells_size_shape_and_first_items(desk: Desk) -> None:
    head = desk.put(json.dumps(SHOP))
    assert desk.handle in head
    assert "items: array of 5,000" in head
    assert "error?: string" in head
    assert '{"id":0,"name":"item 0","labels":{"zone":"b"}}' in head
    assert "total = 5000" in head
    assert "more bytes]" in head, "the long note says that it is cut"
    assert len(head.encode()) <= 4 * ScratchpadLimits().head_tokens


def test_the_head_of_a_text_tells_lines_and_columns(desk: Desk) -> None:
    head = desk.put("time,service,took_ms\n" + "".join(f"{n},cart,{n * 3}\n" for n in range(9_000)))
    assert "9,001 lines" in head
    assert "3 columns separated by comma; first row: time, service, took_ms" in head
    assert "2: 0,cart,0" in head


def test_what_looks_like_json_and_is_none_is_kept_as_text_and_says_so(desk: Desk) -> None:
    for content in ('{"a": 1', '{"a": 1}\n{"a": 2}\n', "[" * 5_000 + "]" * 5_000, "[" * 100 + "1" + "]" * 100):
        assert "begins like JSON" in desk.put(content)
        reading = desk.ask("get_in", path="a")
        assert (reading.kind, "is text" in reading.detail) == (OutcomeKind.TOOL_ERROR, True)


def test_deep_and_wide_json_cannot_make_the_scratchpad_explode(desk: Desk, tmp_path: Path) -> None:
    content = "[" * 60 + ",".join("1" for _ in range(500_000)) + "]" * 60
    desk.put(content)
    assert sum(path.stat().st_size for path in (tmp_path / "pad").glob("own_*/*")) <= 8 * len(content)


@pytest.mark.parametrize(
    ("tool", "arguments", "content"),
    [
        ("get_in", {"path": "total"}, "5000"),
        ("get_in", {"path": "nothing"}, "null"),
        ("get_in", {"path": "items.7"}, '{"id":7,"name":"item 7","labels":{"zone":"b"},"error":"timeout"}'),
        ("get_in", {"path": "items[7].error"}, '"timeout"'),
        ("get_in", {"path": "/a.b/c~1d/1"}, "20"),
        ("get_in", {"path": "items", "offset": 4_999, "limit": 5}, '[{"id":4999,"name":"item 4999","labels":{"zone":"b"}}]'),
        ("get_in", {"path": "note", "offset": 8_999, "limit": 9}, "ä"),
        ("iterate_over", {"path": "items", "fields": ["id", "labels.zone"], "limit": 2}, '0: {"id": 0, "labels.zone": "b"}\n1: {"id": 1, "labels.zone": "b"}'),
        ("slice", {"start": 1, "end": 2}, '1: {\n2:  "total": 5000,'),
        ("schema", {"path": "a.b"}, None),
        ("item_schema", {"path": "items", "limit": 2}, "items 0 to 1 of 5,000; `?` is not in all of them\nitem: object with 3 keys\n  id: integer\n  name: string\n  labels: object with 1 key\n    zone: string"),
    ],
)  # fmt: skip
def test_a_question_is_answered_exactly(
    shop: Desk, tool: str, arguments: dict[str, object], content: str | None
) -> None:
    reading = shop.ask(tool, **arguments)
    if content is None:
        assert (reading.kind, "no key `a`" in reading.detail) == (OutcomeKind.TOOL_ERROR, True)
    else:
        assert (reading.kind, reading.content) == (OutcomeKind.OK, content), reading.detail


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("get_in", {"path": "item.3"}, ["there is no key `item`", "total, items, a.b, note, nothing, empty"]),
        ("get_in", {"path": "items.5000"}, ["no item `5000`", "0 to 4,999"]),
        ("get_in", {"path": "items.x"}, ["no item `x`", "0 to 4,999"]),
        ("get_in", {"path": "empty.0"}, ["items here: none"]),
        ("get_in", {"path": "total.x"}, ["integer has nothing in it", "at total"]),
        ("get_in", {"path": "items"}, ["too large", "array of 5,000", "iterate_over"]),
        ("get_in", {"path": ""}, ["too large", "items (", "one of its keys"]),
        ("get_in", {"path": "note"}, ["too large", "offset and limit"]),
        ("get_in", {"path": "total", "offset": 1}, ["offset and limit are for arrays and texts"]),
        ("get_in", {"path": "items", "offset": 9_999}, ["no item 9999", "5,000 items"]),
        ("get_in", {"path": "items", "limit": 0}, ["`limit` is a whole number from 1"]),
        ("get_in", {"path": "items", "limit": True}, ["`limit` is a whole number"]),
        ("get_in", {}, ["get_in needs `path`"]),
        ("get_in", {"path": 5}, ["`path` is a text"]),
        ("get_in", {"path": "x" * 5_000}, ["`path` is a text of 0 to 4096 characters"]),
        ("get_in", {"path": "a", "file": "x"}, ["get_in takes no `file`", "handle (required)"]),
        ("iterate_over", {"path": "", "fields": ["id"]}, ["no array", "arrays below it: items, empty"]),
        ("iterate_over", {"path": "items", "fields": ["nam"]}, ["no key `nam`", "id, name, labels"]),
        ("iterate_over", {"path": "items", "fields": []}, ["`fields` has 1 to 20"]),
        ("iterate_over", {"path": "items", "fields": "id"}, ["`fields` is a list of texts"]),
        ("item_schema", {"path": "total"}, ["no array: integer"]),
        ("slice", {"start": 99_999_999, "end": 99_999_999}, ["this result has lines 1 to"]),
        ("slice", {"start": 5, "end": 4}, ["no lines 5 to 4"]),
        ("read", {}, ["too large", "schema, get_in or iterate_over"]),
        ("read", {"offset": 99_999_999}, ["bytes, counted from 0"]),
        ("grep", {"pattern": "x" * 513}, ["1 to 512"]),
    ],
)  # fmt: skip
def test_an_error_says_what_is_there_and_what_to_ask_instead(
    shop: Desk, tool: str, arguments: dict[str, object], words: list[str]
) -> None:
    reading = shop.ask(tool, **arguments)
    assert (reading.kind, bool(reading.content)) == (OutcomeKind.TOOL_ERROR, "too large" in words)
    assert [word for word in words if word not in reading.detail] == [], reading.detail


@pytest.mark.parametrize(
    ("tool", "arguments", "suggestions"),
    [
        ("get_in", {"path": "items"}, ["get_in with offset and limit", "item_schema", "iterate_over"]),
        ("get_in", {"path": ""}, ["schema", "get_in of one of its keys"]),
        ("get_in", {"path": "note"}, ["get_in with offset and limit"]),
        ("read", {}, ["schema", "get_in", "iterate_over", "read with offset=0"]),
    ],
)
def test_what_is_too_large_is_told_in_json_with_its_tokens_and_what_to_use_instead(
    shop: Desk, tool: str, arguments: dict[str, object], suggestions: list[str]
) -> None:
    reading = shop.ask(tool, **arguments)
    told = json.loads(reading.content)
    assert reading.is_json
    assert (told["error"], told["suggestions"]) == (f"{tool}_too_large", suggestions)
    assert told["tokens"] > told["tokens_max"] > 0
    assert f"about {told['tokens']:,} of {told['tokens_max']:,} tokens" in reading.detail


def test_what_does_not_fit_is_cut_between_values_and_says_where_to_go_on(shop: Desk) -> None:
    reading = shop.ask("get_in", path="items", offset=0, limit=5_000)
    items = json.loads(reading.content)
    assert (reading.kind, reading.is_json) == (OutcomeKind.TRUNCATED, True)
    assert items == SHOP["items"][: len(items)]  # type: ignore[index]
    assert f"go on with offset={len(items)}" in reading.detail
    rows = shop.ask("iterate_over", path="items", fields=["id", "error"], limit=1_000)
    assert (rows.kind, len(rows.content.splitlines())) == (
        OutcomeKind.TRUNCATED,
        int(rows.detail.split("item ")[1].split(";")[0]),
    )
    assert "`error` is missing in" in rows.detail
    lines = shop.ask("slice", start=10, end=90_000)
    last = int(lines.content.splitlines()[-1].split(":")[0])
    assert (lines.kind, f"go on with start={last + 1}" in lines.detail) == (OutcomeKind.TRUNCATED, True)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_reading_piece_by_piece_brings_everything_and_divides_no_character(desk: Desk, seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice("aé€😀\n") for _ in range(40_000))
    desk.put(text)
    pieces, offset = [], 0
    for _ in count():
        reading = desk.ask("read", offset=offset)
        pieces.append(reading.content)
        if reading.kind is OutcomeKind.OK:
            break
        offset = int(reading.detail.split("offset=")[1])
    assert "".join(pieces) == text
    assert len(pieces) > 3


def test_a_long_value_is_read_letter_by_letter(shop: Desk) -> None:
    first = shop.ask("get_in", path="note", offset=0)
    rest = shop.ask("get_in", path="note", offset=int(first.detail.split("offset=")[1]))
    assert (first.kind, rest.kind) == (OutcomeKind.TRUNCATED, OutcomeKind.OK)
    assert first.content + rest.content == SHOP["note"]


def test_grep_shows_lines_with_their_numbers_and_what_stands_around_them(desk: Desk) -> None:
    desk.put("one\ntwo\nthree ERROR x\nfour\nfive\nsix\nseven\neight error y\nnine")
    reading = desk.ask("grep", pattern="(?i)error", context=1)
    assert reading.content == "2- two\n3: three ERROR x\n4- four\n--\n7- seven\n8: eight error y\n9- nine"
    assert reading.kind is OutcomeKind.OK
    assert desk.ask("grep", pattern="^nine$", context=0).content == "9: nine"
    assert desk.ask("grep", pattern=r"\Anine\z", context=0).content == "9: nine"
    limited = desk.ask("grep", pattern="e", context=0, limit=2)
    assert (limited.kind, "2 of 6 matching lines are shown" in limited.detail) == (OutcomeKind.TRUNCATED, True)


def test_grep_finds_nothing_and_says_so_and_takes_what_is_no_expression_literally(desk: Desk) -> None:
    desk.put("call(x)\ncall(y)\n")
    none = desk.ask("grep", pattern="nothing")
    assert (none.kind, none.content, none.detail) == (OutcomeKind.EMPTY, "", "no line matches")
    literal = desk.ask("grep", pattern="call(", limit=1)
    assert literal.content.startswith("1: call(x)")
    assert "taken literally" in literal.detail
    assert "look-around" in desk.ask("grep", pattern="(?=call)").detail


def test_grep_finds_letters_however_json_spelled_them(desk: Desk) -> None:
    desk.put(json.dumps({"a": "Zürich 😀 \\u00fc", "b": "\ud800"}))
    assert desk.ask("grep", pattern="Zürich 😀", context=0).content == '2:  "a": "Zürich 😀 \\\\u00fc",'
    assert json.loads(desk.ask("get_in", path="a").content) == "Zürich 😀 \\u00fc"
    assert desk.ask("get_in", path="b", offset=0).content == "\ufffd", "half a letter is lost, and only it"
    desk.put('{"a": "\\u12"}')
    assert desk.ask("schema").content.startswith("text of 1 lines")


@pytest.mark.parametrize(
    ("content", "pattern", "found"),
    [
        ("x\nab\ny\n", "^ab$", "2: ab"),
        ("x\r\nab\r\ny\r\n", "ab$", "2: ab"),
        ("x\r\nab\r", "ab$", "2: ab"),
        ("x\nab\ny", r"\Aab\z", "2: ab"),
        ("x\nab\ny", "(?s:x.ab)", ""),
    ],
)
def test_grep_ends_lines_where_they_end(desk: Desk, content: str, pattern: str, found: str) -> None:
    desk.put(content)
    assert desk.ask("grep", pattern=pattern, context=0).content == found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text("ab 1é\r", max_size=6), max_size=30),
    pattern=st.sampled_from(
        ["a+b", "^a", "b$", "^$", r"\ba\b", "(?i)A", "a|1", "[^a]b", r"é\s1", "a.b", r"\Aa", r"b\z", "(?i:B)a"]
    ),
)
def test_grep_agrees_with_a_search_line_by_line(desk: Desk, lines: list[str], pattern: str) -> None:
    desk.put("\n".join(lines))
    reading = desk.ask("grep", pattern=pattern, context=0)
    physical = "\n".join(lines).split("\n")
    physical = physical[:-1] if physical[-1] == "" else physical
    plain = re.compile(pattern.replace(r"\z", r"\Z"))
    expected = [number for number, line in enumerate(physical, start=1) if plain.search(line.removesuffix("\r"))]
    found = [int(line.split(":")[0]) for line in reading.content.split("\n") if line not in {"", "--"}]
    assert found == expected


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*)*x", "(?:a?){60}a{60}b", "([a-z]+)*!"])
def test_a_pattern_that_makes_backtracking_engines_hang_comes_back(desk: Desk, pattern: str) -> None:
    desk.put("a" * 200_000 + "!\n" + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!\n" * 1_000)
    reading = desk.ask("grep", pattern=pattern)
    assert reading.kind in {OutcomeKind.EMPTY, OutcomeKind.TRUNCATED, OutcomeKind.OK}


def test_grep_that_runs_out_of_time_says_how_far_it_came(tmp_path: Path, clock: FakeClock) -> None:
    ticks = count()
    pad = Scratchpad(
        tmp_path / "pad", clock=clock, entropy=random.Random(3).randbytes, monotonic=lambda: float(next(ticks))
    )
    desk = Desk(pad)
    desk.put("line\n" * 300_000)
    reading = desk.ask("grep", pattern="other")
    assert reading.kind is OutcomeKind.TRUNCATED
    assert "the time was up after" in reading.detail
    pad.close()


def test_a_very_long_line_is_shown_around_its_match_and_told_to_be_searched_in_pieces(desk: Desk) -> None:
    desk.put("x" * 1_500_000 + "needle" + "y" * 1_500_000)
    reading = desk.ask("grep", pattern="needle")
    assert "xneedley" in reading.content
    assert (reading.kind, len(reading.content) < 500) == (OutcomeKind.TRUNCATED, True)
    assert "in pieces" in reading.detail
    line = desk.ask("slice", start=1, end=1)
    assert "more bytes: read with offset=2000]" in line.content


def test_an_outline_of_a_document_is_its_headings(desk: Desk) -> None:
    desk.put("# One\ntext\n## Two\nmore\n")
    assert desk.ask("schema").content == "text of 4 lines, 23 bytes\n1: # One\n3: ## Two"


def test_bytes_that_are_no_text_and_nothing_at_all_are_read_too(desk: Desk) -> None:
    desk.put(b"\xff\xfe\x00bad\n")
    assert desk.ask("read").content == "\ufffd\ufffd\x00bad\n"
    desk.put("")
    assert desk.ask("head").kind is OutcomeKind.OK
    assert desk.ask("grep", pattern="x").kind is OutcomeKind.EMPTY
    assert desk.ask("read").content == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, ascii_only=st.booleans())
def test_every_value_is_found_by_its_pointer(desk: Desk, value: object, ascii_only: bool) -> None:
    desk.put(json.dumps(value, ensure_ascii=ascii_only))

    def walk(at: object, pointer: str) -> Iterator[tuple[str, object]]:
        yield pointer, at
        steps = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, below in steps:
            yield from walk(below, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")

    for pointer, expected in list(walk(value, ""))[:12]:
        reading = desk.ask("get_in", path=pointer)
        assert reading.kind is OutcomeKind.OK, reading.detail
        assert json.loads(reading.content) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, lines=st.integers(1, 1_000), depth=st.integers(1, 16))
def test_no_result_is_so_odd_that_a_tool_falls_over(desk: Desk, value: object, lines: int, depth: int) -> None:
    desk.put(json.dumps(value))
    asked: dict[str, dict[str, object]] = {
        "head": {"lines": lines}, "schema": {"max_depth": depth}, "item_schema": {}, "read": {}, "grep": {"pattern": "."},
        "slice": {"start": 1, "end": lines}, "iterate_over": {"fields": ["a", "0"]}, "get_in": {"path": "", "offset": 0, "limit": 2},
    }  # fmt: skip
    for tool, arguments in asked.items():
        reading = desk.ask(tool, **arguments)
        assert reading.kind in {OutcomeKind.OK, OutcomeKind.EMPTY, OutcomeKind.TOOL_ERROR, OutcomeKind.TRUNCATED}


def test_a_hundred_megabytes_are_read_in_little_memory(desk: Desk) -> None:
    row = json.dumps({"id": 1, "name": "x" * 9_000, "tags": ["a", "b"]})
    desk.put("[" + ",".join([row] * 10_500) + "]")
    tracemalloc.start()  # counts what is allocated, and not the pages of the file
    try:
        assert desk.ask("get_in", path="10499.id").content == "1"
        assert "array of 10,500" in desk.ask("schema").content
        assert desk.ask("grep", pattern="no such").kind is OutcomeKind.EMPTY
        assert desk.ask("slice", start=70_000, end=70_001).kind is OutcomeKind.OK
        assert "too large" in desk.ask("read").detail
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8_000_000


def test_the_tools_are_defined_for_the_registry_as_strictly_as_they_are_checked(shop: Desk) -> None:
    tools = shop.pad.tools
    assert [tool.name for tool in tools] == [
        "head", "slice", "grep", "schema", "item_schema", "get_in", "iterate_over", "read",
    ]  # fmt: skip
    assert set(shop.pad.readers) == {tool.name for tool in tools}
    assert {(tool.tool_class, tool.recovery, tool.server) for tool in tools} == {(ToolClass.READ, Recovery.NATURAL, "")}
    assert len({tool.pin for tool in tools}) == 8
    examples: dict[str, dict[str, object]] = {
        "slice": {"start": 1, "end": 1}, "grep": {"pattern": "x"}, "get_in": {"path": "total"},
        "iterate_over": {"path": "items", "fields": ["id"]}, "item_schema": {"path": "items"},
    }  # fmt: skip
    for tool in tools:
        schema = json.loads(tool.input_schema)
        good = {"handle": shop.handle, **examples.get(tool.name, {})}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(good, schema)
        assert shop.ask(tool.name, **examples.get(tool.name, {})).kind is not OutcomeKind.DENIED
        for bad in ({}, {**good, "x": 1}, {**good, "handle": 5}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(bad, schema)
            refused = asyncio.run(shop.pad.readers[tool.name](ME, bad))
            assert refused.kind is OutcomeKind.TOOL_ERROR


def test_a_result_is_large_by_what_it_would_cost_to_read(desk: Desk) -> None:
    limit = 4 * ScratchpadLimits().inline_tokens
    assert not desk.pad.is_large("a" * limit)
    assert desk.pad.is_large("a" * (limit + 1))
    assert desk.pad.is_large("€" * (limit // 2))
