"""What happened and what is being said, in one order, also where the bell of the journal rings late."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

from quell.agent import Live, Piece
from quell.app._agent_follow import followed
from quell.config import JournalSettings, Secret
from quell.domain import Event
from quell.runs import Done, Next, RunContext, Runs, system_clock


class _Late:
    """A journal whose bell rings when the test says so."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self.events = runs.events
        self.rings = asyncio.Event()

    async def follow(self, *, run: str, after: int) -> AsyncGenerator[Event, None]:
        await self.rings.wait()
        async for event in self._runs.follow(run=run, after=after):
            yield event


def test_the_words_of_a_later_turn_do_not_overtake_what_the_turn_before_brought(tmp_path: Path) -> None:
    async def story() -> None:
        runs = await Runs.open(
            JournalSettings(url=Secret("")), state_dir=tmp_path, clock=system_clock, entropy=os.urandom, version="v1"
        )
        ends = asyncio.Event()

        async def work(_context: RunContext) -> Next:
            await ends.wait()
            return Done(result={})

        runs.register("talk", work, way="direct")
        try:
            await runs.launch(way="direct")
            run = (await runs.start("talk", subject="x", arguments={})).id
            live, late, names = Live(), _Late(runs), list[str]()

            async def listen() -> None:
                async for heard in followed(cast("Runs", late), live, run, after=""):
                    names.append(f"{heard.name} {heard.body.get('text', '')}".strip())

            listening = asyncio.create_task(listen())
            while not names:
                await asyncio.sleep(0.01)
            for name, body in (
                ("agent.turn", {"turn": 0, "text": ""}),
                ("agent.call_asked", {"call": "1.1"}),
                ("agent.call_ended", {"call": "1.1"}),
            ):
                await runs.emit(run, name, key=name, body=body)
            for text in ("All ", "is well."):
                live.say(Piece(run, 1, 1, "text", text))
            while "text is well." not in names:
                await asyncio.sleep(0.01)
            began = names.index("agent.turn")
            told = ["agent.turn", "agent.call_asked", "agent.call_ended", "text All", "text is well."]
            assert names[began:] == told
            ends.set()
            late.rings.set()
            await listening
            assert names[began:] == [*told, "run.finished"], "and each once"
        finally:
            await runs.close()

    asyncio.run(story())
