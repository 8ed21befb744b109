"""Results of an agent's calls that are put aside: from the size that its file gives each tool, and read within its bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from quell.app._agent_servers import offered, spill_of
from quell.app._first_pins import pin_first
from quell.config import AgentSettings
from quell.domain import OutcomeKind, SpillRule, SpillTable, Tool, ToolCaller, ToolClass, ToolOutcome
from tests._mcp_rogue import OBJECT, rogue
from tests.doors._agent_tools_bench import agent_of, room_of, server_table
from tests.doors._hand_bench import Room, outcome_of

pytestmark = pytest.mark.timeout(60)

Told = Callable[[Room, AgentSettings, ToolCaller], Awaitable[None]]
PAD = "[agent.scratchpad]\nenabled = true\nmax_extraction_tokens = 200\n"


def _played(tmp_path: Path, story: Told, *, rules: str, pad: str = PAD) -> None:
    async def tell() -> None:
        async with rogue() as server:
            server.tools = [{"name": name, "inputSchema": OBJECT} for name in ("huge", "structured", "echo")]
            text = f'{pad}{server_table("shop", server.url)}{rules}[quell]\nreads = ["*"]\n'
            agent = agent_of(tmp_path, text)
            async with room_of(tmp_path, agent) as (room, names):
                await pin_first(room.authority)
                await story(room, agent, room.caller(spill=spill_of(agent, names["shop"])))

    asyncio.run(tell())


async def _call(room: Room, tool: str, caller: ToolCaller, **arguments: object) -> ToolOutcome:
    return outcome_of(await room.call(tool, caller=caller, **(arguments or {"n": 1})))  # type: ignore[arg-type]  # arguments of a tool


def test_a_result_of_so_many_tokens_is_put_aside_and_read_with_tools_that_the_pointer_names(tmp_path: Path) -> None:
    async def story(room: Room, agent: AgentSettings, caller: ToolCaller) -> None:
        found = await _call(room, "echo", caller, n=1)
        assert (found.handle[:4], found.kind) == ("pad_", OutcomeKind.OK)
        assert found.handle in found.content
        assert "bytes, about" in found.content
        assert "tokens" in found.content
        assert "read on:" in found.content
        read = await _call(room, "read", caller, handle=found.handle)
        assert read.kind is OutcomeKind.OK
        # Who comes without a table has what the deployment does: so little is given whole.
        assert (await _call(room, "echo", room.caller(), n=1)).handle == ""
        names = offered(room.authority.toolbox.catalog(), agent, {"shop": "shop"})
        assert {"read", "slice", "grep", "schema"} <= set(names)

    _played(tmp_path, story, rules='[mcp.servers.shop.scratchpad."ech?"]\nmin_tokens = 1\n')


def test_a_result_below_its_tool_s_bound_is_given_whole_though_it_is_large(tmp_path: Path) -> None:
    async def story(room: Room, _agent: AgentSettings, caller: ToolCaller) -> None:
        usual = await _call(room, "huge", room.caller())
        assert usual.handle
        assert (await _call(room, "huge", caller)).handle == ""
        assert (await _call(room, "echo", caller)).handle == ""

    _played(tmp_path, story, rules='[mcp.servers.shop.scratchpad."huge"]\nmin_tokens = 100000000\n')


def test_one_reading_brings_as_much_as_the_file_lets_it(tmp_path: Path) -> None:
    async def story(room: Room, _agent: AgentSettings, caller: ToolCaller) -> None:
        handle = (await _call(room, "huge", caller)).handle
        mine = await _call(room, "slice", caller, handle=handle, start=1, end=100)
        usual = await _call(room, "slice", room.caller(), handle=handle, start=1, end=100)
        assert len(mine.content) <= 4 * 200
        assert len(usual.content) > 4 * 200

    _played(tmp_path, story, rules='[mcp.servers.shop.scratchpad."*"]\nmin_tokens = 1000\n')


def test_without_a_scratchpad_in_the_file_nothing_changes_and_its_tools_come_with_the_first_result(
    tmp_path: Path,
) -> None:
    async def story(room: Room, agent: AgentSettings, caller: ToolCaller) -> None:
        assert caller.spill is None
        catalog = room.authority.toolbox.catalog()
        assert "grep" not in offered(catalog, agent, {"shop": "shop"})
        assert (await _call(room, "huge", caller)).handle
        assert "grep" in offered(catalog, agent, {"shop": "shop"}, set_aside="something")

    _played(tmp_path, story, rules='[mcp.servers.shop.scratchpad."*"]\nmin_tokens = 1\n', pad="")


def _tool(original: str, *, server: str = "shop") -> Tool:
    return Tool(
        name=original,
        server=server,
        original=original,
        description="",
        input_schema=json.dumps(OBJECT),
        tool_class=ToolClass.READ,
        recovery="natural",  # type: ignore[arg-type]  # not looked at
        pin="sha256:x",
    )


def test_of_several_globs_the_longest_counts_and_of_two_as_long_the_smaller_bound() -> None:
    rules = [("*", 9), ("get_*", 5), ("get_l*", 7), ("get_?*", 3), ("other", 1)]
    table = SpillTable(rules=tuple(SpillRule(server="shop", glob=glob, min_tokens=n) for glob, n in rules))
    assert table.min_tokens_of(_tool("get_logs")) == 3
    assert table.min_tokens_of(_tool("get_")) == 5
    assert table.min_tokens_of(_tool("put")) == 9
    assert table.min_tokens_of(_tool("put", server="else")) is None


def test_a_worker_s_own_scratchpad_stands_in_the_place_of_the_agent_s(tmp_path: Path) -> None:
    worker = '[orchestration.worker.one]\ndescription = "d"\npreamble = "p"\n'
    own = "[orchestration.worker.one.scratchpad]\nenabled = false\n"
    agent = agent_of(tmp_path, PAD + worker + own)
    assert spill_of(agent, {}) == SpillTable(reading_tokens=200)
    assert spill_of(agent, {}, worker=agent.orchestration.worker["one"]) is None
