"""Defects of the agents' doors that a hunt found: each story failed before it was mended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.doors._desk_bench import agents_of, file_of
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
