"""Defects of the agents' doors that a hunt found: each story failed before it was mended."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from quell.app._agent_servers import spill_of
from quell.app._first_pins import pin_first
from quell.domain import OutcomeKind
from tests._mcp_rogue import OBJECT, rogue
from tests.doors._agent_tools_bench import agent_of, room_of, server_table
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._hand_bench import outcome_of
from tests.doors._model_bench import delta, end, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, frames, settings_of

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("after", ["abc", "1.2.3", "-1", "9" * 30, "0.1.2." + "9" * 30])
def test_a_stream_that_goes_on_after_what_is_no_id_is_refused_before_it_begins(tmp_path: Path, after: str) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            run = (await wire.ask()).headers["x-quell-run"]
            refused = await wire.http.get(f"{CHAT}/{run}", params={"after": after})
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")

    asyncio.run(story())


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_journal_that_goes_away_in_the_middle_of_a_stream_is_told_in_it(tmp_path: Path, path: str) -> None:
    async def story() -> None:
        slow = sse(*[delta("On and on. ")] * 200, end(), usage(9, 3), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                asked = {"messages": [{"role": "user", "content": "?"}]} if path == CHAT else {"input": "?"}
                said, is_away = "", False
                async with wire.http.stream("POST", path, json=asked | {"stream": True}) as response:
                    async for piece in response.aiter_text():
                        said += piece
                        if "On and on" in said and not is_away:
                            is_away = True
                            with wire.app.runs.database.writing() as connection:
                                connection.run("ALTER TABLE quell_events RENAME TO quell_events_away")
                with wire.app.runs.database.writing() as connection:
                    connection.run("ALTER TABLE quell_events_away RENAME TO quell_events")
                told = json.dumps(frames(said)[-3:])
                assert '"error"' in told
                assert "journal" in told

    asyncio.run(story())


def test_a_session_of_the_same_name_shows_nobody_what_somebody_else_put_aside(tmp_path: Path) -> None:
    async def story() -> None:
        async with rogue() as server:
            server.tools = [{"name": "echo", "inputSchema": OBJECT}]
            rules = '[mcp.servers.shop.scratchpad."echo"]\nmin_tokens = 1\n[quell]\nreads = ["*"]\n'
            pad = "[agent.scratchpad]\nenabled = true\n"
            agent = agent_of(tmp_path, f"{pad}{server_table('shop', server.url)}{rules}")
            async with room_of(tmp_path, agent) as (room, names):
                await pin_first(room.authority)
                ann = room.caller(spill=spill_of(agent, names["shop"]), session="s")
                bob = replace(ann, principal=replace(ann.principal, user="bob"))
                handle = outcome_of(await room.call("echo", caller=ann, n=1)).handle
                assert handle
                assert outcome_of(await room.call("read", caller=ann, handle=handle)).kind is OutcomeKind.OK
                theirs = outcome_of(await room.call("read", caller=bob, handle=handle))
                assert theirs.kind is OutcomeKind.DENIED
                guessed = outcome_of(await room.call("read", caller=bob, handle="pad_" + "0" * 32))
                assert handle not in guessed.detail

    asyncio.run(story())
