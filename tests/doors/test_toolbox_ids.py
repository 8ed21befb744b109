"""Ids of calls are written by models too: what no journal can keep is refused, on record, before anything else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from quell.domain import OutcomeKind, ToolCall, ToolOutcome
from tests._postgres import fresh_database
from tests.doors._hand_bench import hand_room

ODD = ("", "c\x00", "c\n", "\u202ecall", "c\u200b", "\ud800", "c" * 257, "c" * 100_000)


@pytest.mark.parametrize("tool", ["logs_search", "restart"])
@pytest.mark.parametrize("place", ["sqlite", "postgres"])
def test_an_id_that_no_journal_can_keep_is_a_refusal_on_record(
    place: str, tool: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arguments: dict[str, object] = {
        "service": "web",
        **({"query": "x"} if tool == "logs_search" else {"environment": "staging"}),
    }

    async def tell(url: str) -> None:
        async with hand_room(tmp_path, url=url, pack="reversible-auto") as room:
            for odd in ODD:
                ended = await room.authority.toolbox.call(
                    _wanted(tool, odd, arguments),
                    caller=room.caller(),
                )
                assert isinstance(ended, ToolOutcome)
                assert ended.kind is OutcomeKind.DENIED, (odd[:9], ended)
                assert "id of a call" in ended.detail
            assert not room.world.done
            assert not room.world.reads
            room.authority.guard.audit.flush()
            refusals = [each for each in room.authority.guard.audit.records() if each.kind == "refusal"]
            assert len(refusals) == len(ODD)
            longest = await room.authority.toolbox.call(_wanted("logs_search", "c" * 256, _READ), caller=room.caller())
            assert isinstance(longest, ToolOutcome)
            assert longest.kind is OutcomeKind.OK

    if place == "sqlite":
        asyncio.run(tell(""))
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        asyncio.run(tell(url))


_READ: dict[str, object] = {"service": "web", "query": "x"}


def _wanted(tool: str, call: str, arguments: dict[str, object]) -> ToolCall:
    return ToolCall(id=call, tool=tool, arguments=json.dumps(arguments))
