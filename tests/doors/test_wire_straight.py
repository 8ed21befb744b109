"""Text that goes to the connection in the moment in which it is said: the order is kept, and who listens fails alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quell.agent import Live, Piece
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import delta, end, provider, sse, usage
from tests.doors._wire_bench import CHAT, a_wire, frames, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
LOOSE = '[quell]\nevidence = "off"\n'


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_client_that_reads_slowly_gets_every_word_in_its_order(tmp_path: Path, path: str) -> None:
    """Three megabytes: more than the connection's buffers hold, so that sends stop halfway."""
    words = [f"{number:06d}" * 700 for number in range(700)]

    async def story() -> None:
        async with provider(sse(*(delta(word) for word in words), end(), usage(1, 700))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                asked = {"input": "Hello?"} if path != CHAT else {"messages": [{"role": "user", "content": "Hello?"}]}
                read: list[str] = []
                async with wire.http.stream("POST", path, json={**asked, "stream": True}) as response:
                    async for piece in response.aiter_text():
                        read.append(piece)
                        if len(read) < 20:
                            await asyncio.sleep(0.05)
                found = [each for _, each in frames("".join(read))]
                if path == CHAT:
                    assert text_of(found) == "".join(words)
                else:
                    told = [each["delta"] for each in found if each["type"] == "response.output_text.delta"]
                    assert "".join(told) == "".join(words)

    asyncio.run(story())


def test_what_fails_in_who_listens_is_raised_there_and_not_where_it_was_said() -> None:
    async def story() -> None:
        live = Live()

        def fails(_: Piece) -> bool:
            raise ZeroDivisionError("a bug of the listener")

        with live.listen("run_1") as ear, live.listen("run_1") as other:
            ear.at_once = fails
            waiting = asyncio.create_task(ear.get())
            await asyncio.sleep(0)
            live.say(Piece("run_1", 0, 1, "text", "word"))
            with pytest.raises(ZeroDivisionError):
                await waiting
            heard = other.get_nowait()
            assert isinstance(heard, Piece)
            assert heard.text == "word"

    asyncio.run(story())


def test_nothing_overtakes_what_waits() -> None:
    async def story() -> None:
        live = Live()
        at_once: list[str] = []

        def takes(piece: Piece) -> bool:
            at_once.append(piece.text)
            return True

        def said(text: str) -> None:
            live.say(Piece("run_1", 0, 1, "text", text))

        with live.listen("run_1") as ear:
            ear.at_once = takes
            said("nobody waits yet")
            assert at_once == []
            first = await ear.get()
            assert isinstance(first, Piece)
            waiting = asyncio.create_task(ear.get())
            await asyncio.sleep(0)
            said("one who waits")
            assert at_once == ["one who waits"]
            ear.put_nowait("an event")
            said("after the event")
            assert at_once == ["one who waits"], "the event comes first"
            assert await waiting == "an event"
            last = await ear.get()
            assert isinstance(last, Piece)
            assert last.text == "after the event"

    asyncio.run(story())
