"""A provider of models that answers each question as its test says: a real server on loopback, in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from tests.doors._model_bench import Answer, delta, end, plain, sse, usage


@dataclass(slots=True)
class Asked:
    """What a model was asked about one question."""

    bodies: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Script:
    """What to answer to whom: questions are words that no other test uses."""

    port: int = 0
    lines: dict[str, tuple[tuple[Answer, ...], Asked]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the base URL of the provider."""
        return f"http://127.0.0.1:{self.port}/v1"

    def on(self, question: str, *answers: Answer) -> Asked:
        """Answer requests about this question one after the other, and the last one for ever."""
        assert question not in self.lines, "another test asks the same"
        asked = Asked()
        self.lines[question] = (answers, asked)
        return asked

    def answer_of(self, body: dict[str, Any]) -> Answer:
        """Return what to answer to a request, by what the conversation holds."""
        said = json.dumps(body.get("messages", ()), ensure_ascii=False)
        found = [question for question in self.lines if json.dumps(question, ensure_ascii=False)[1:-1] in said]
        if not found:
            return plain(400, {"error": {"message": "no test has told what to answer", "type": "x"}})
        answers, asked = self.lines[max(found, key=len)]
        asked.bodies.append(body)
        return answers[min(len(asked.bodies), len(answers)) - 1]


def said(*pieces: str, prompt: int = 11, completion: int = 3) -> Answer:
    """Answer with a text in pieces, and what it took."""
    return sse(*(delta(piece) for piece in pieces), end(), usage(prompt, completion))


def called(name: str, arguments: Mapping[str, object], *, call: str = "call_1", text: str = "") -> Answer:
    """Answer with a call of a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    begun = [delta(text)] if text else []
    asks = delta(tool_calls=[{"index": 0, "id": call, "type": "function", "function": function}])
    return sse(*begun, asks, end("tool_calls"), usage(20, 5))


@contextmanager
def scripted() -> Iterator[Script]:
    """Run the provider until the context ends."""
    script, up, stop = Script(), Future[None](), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_provide(script, up, stop)), daemon=True)
    thread.start()
    try:
        up.result(timeout=10)
        yield script
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
        loop.close()


async def _provide(script: Script, up: Future[None], stop: asyncio.Event) -> None:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        tasks.add(task)
        try:
            while not writer.is_closing():
                await _one(script, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            with suppress(OSError):
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    up.set_result(None)
    await stop.wait()
    server.close()
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _one(script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    await script.answer_of(json.loads(body) if body else {})(writer)
    await writer.drain()
