"""Programs over results that were put aside, through the one path."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from quell.domain import OutcomeKind, PadOwner, Parked, ToolOutcome
from tests.doors._hand_bench import Room, hand_room

pytestmark = pytest.mark.timeout(60)

ITEMS = {"items": [{"id": number, "ms": number * 3 % 1_009} for number in range(20_000)]}


def _told(tmp_path: Path, story: Callable[[Room], Awaitable[None]], **settings: object) -> None:
    async def tell() -> None:
        async with hand_room(tmp_path, **settings) as room:  # type: ignore[arg-type]  # settings of a room
            await story(room)

    asyncio.run(tell())


async def _run(room: Room, program: str, *, session: str = "", **inputs: object) -> ToolOutcome:
    caller = room.caller(session=session)
    ended = await room.call("run_code", caller=caller, program=program, inputs=inputs)
    assert not isinstance(ended, Parked), ended
    return ended


async def _put(room: Room, content: str, *, session: str = "") -> str:
    owner = PadOwner(session=session or room.run, tenant="local", user="ann" if session else "")
    return (await room.authority.scratchpad.put(owner, content)).handle


def test_a_program_reads_a_whole_result_that_was_put_aside(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        handle = await _put(room, json.dumps(ITEMS))
        program = (
            "result = [each['id'] for each in found['items'] if each['ms'] > over][:most]\nprint(len(found['items']))"
        )
        outcome = await _run(room, program, found=handle, over=1_007, most=2)
        assert (outcome.kind, outcome.is_json, outcome.is_citable) == (OutcomeKind.OK, True, True), outcome
        slow = [each["id"] for each in ITEMS["items"] if each["ms"] > 1_007][:2]
        assert json.loads(outcome.content) == {"printed": "20000\n", "result": slow}
        room.authority.guard.audit.flush()
        kinds = [record.kind for record in room.authority.guard.audit.records()]
        assert kinds.count("decision") == kinds.count("outcome") == 1

    _told(tmp_path, story)


def test_a_text_is_a_text_to_the_program_and_so_is_what_only_looks_like_a_handle(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        lines = 'first\n"second" \u00e9\n' * 3_000
        handle = await _put(room, lines)
        outcome = await _run(room, "result = [text, name]", text=f"{handle} ", name={"handle": handle})
        assert json.loads(outcome.content)["result"] == [f"{handle} ", {"handle": handle}]
        outcome = await _run(room, "result = [len(text), text[:16]]", text=handle)
        assert json.loads(outcome.content)["result"] == [len(lines), lines[:16]]

    _told(tmp_path, story)


def test_the_result_of_another_session_is_refused_like_one_that_never_was(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        theirs = await _put(room, json.dumps(ITEMS), session="another")
        assert (await _run(room, "result = len(found)", session="another", found=theirs)).kind is OutcomeKind.OK
        refused = await _run(room, "result = len(found)", found=theirs)
        never = await _run(room, "result = len(found)", found=f"pad_{'0' * 32}")
        assert (refused.kind, never.kind) == (OutcomeKind.DENIED, OutcomeKind.DENIED)
        assert refused.detail.replace(theirs, "X") == never.detail.replace(f"pad_{'0' * 32}", "X")
        assert refused.content == ""

    _told(tmp_path, story)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os\nresult = os.listdir('/')", "there are no files, no network and no packages"),
        ("result = open('/etc/passwd').read()", "the program failed"),
        ("import socket", "there are no files, no network and no packages"),
        ("while True:\n    pass", "the program's seconds"),
        ("result = 'a' * 20_000", "16,000 are the most"),
        ("print('a' * 20_000)", "16,000 are the most"),
        ("result = nothing", "only the inputs and what the program defines have names"),
        ("result = 1 +", "the program failed"),
    ],
)
def test_what_a_program_may_not_or_cannot_is_taught(program: str, says: str, tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        outcome = await _run(room, program)
        assert (outcome.kind, outcome.content) == (OutcomeKind.TOOL_ERROR, ""), outcome
        assert says in outcome.detail
        assert (await _run(room, "result = 1")).kind is OutcomeKind.OK

    _told(tmp_path, story)


def test_inputs_are_bounded_all_together(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        half = await _put(room, json.dumps([["x" * 90] * 50] * 1_000))
        assert (await _run(room, "result = len(a)", a=half)).kind is OutcomeKind.OK
        outcome = await _run(room, "result = len(a)", a=half, b=half)
        assert outcome.kind is OutcomeKind.TOOL_ERROR
        assert half in outcome.detail
        text = await _put(room, "x" * 8_000_001)
        assert (await _run(room, "result = len(a)", a=text)).kind is OutcomeKind.TOOL_ERROR
        refused = await room.call("run_code", program="result = 1", inputs={"not a name": 1})
        assert isinstance(refused, ToolOutcome)
        assert "cannot name an input" in refused.detail

    _told(tmp_path, story)


def test_a_program_that_tells_nothing_has_an_empty_outcome(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        outcome = await _run(room, "x = 1")
        assert (outcome.kind, outcome.is_citable) == (OutcomeKind.EMPTY, False)

    _told(tmp_path, story)


def test_arguments_are_judged_by_the_schema_first(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        for wrong in ({}, {"program": 1}, {"program": "result = 1", "inputs": []}, {"program": "x", "files": {}}):
            ended = await room.call("run_code", **wrong)
            assert isinstance(ended, ToolOutcome)
            assert ended.kind is OutcomeKind.DENIED, wrong

    _told(tmp_path, story)


@pytest.mark.parametrize("without", ["extra", "leave"])
def test_without_the_extra_or_the_operators_leave_there_is_no_such_tool(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without == "extra":
        monkeypatch.setitem(sys.modules, "pydantic_monty", None)

    async def story(room: Room) -> None:
        names = [tool.name for tool in room.authority.toolbox.catalog()]
        assert "run_code" not in names
        assert "grep" in names
        assert (await _run(room, "result = 1")).kind is OutcomeKind.DENIED

    _told(tmp_path, story, code_tool=without != "leave")
