"""A provider of models to test against: a real server on loopback that answers with the bytes it is told to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from quell.domain import Message, ModelRequest, ToolSpec
from quell.models._exchange import Patience
from quell.models._openai import Endpoint, OpenAIModel

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
READ_LOGS = ToolSpec(
    name="read_logs",
    description="Read the log of a service.",
    parameters='{"type":"object","properties":{"service":{"type":"string"},"lines":{"type":"integer"}},"required":["service"]}',
)
HELLO = ModelRequest(messages=(Message(role="user", text="Say hello."),))

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Provider:
    """What was asked of the server, and where it listens."""

    port: int = 0
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client goes away in the middle of an answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def provider(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    """Run a server that answers each request with the next answer, and the last one for ever."""
    state = Provider()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while await _one(state, reader, writer, answers):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            state.left.set()
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)
            with suppress(OSError):
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    state: Provider, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Sequence[Answer]
) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    state.heads.append({":path": head[0].split(" ")[1], **headers})
    state.bodies.append(json.loads(body) if body else {})
    await answers[min(len(state.bodies), len(answers)) - 1](writer)
    await writer.drain()
    return not writer.is_closing()


def sse(*data: object, done: bool = True, gap_s: float = 0.0, cut: int | None = None) -> Answer:
    """Answer with a stream of events, chunked; `cut` closes the connection after so many."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, each in enumerate(data):
            if number == cut:
                writer.close()
                return
            _chunk(writer, f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n".encode())
            await writer.drain()
            if gap_s:
                await asyncio.sleep(gap_s)
        if done:
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    return answer


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def ndjson(*lines: object, cut: bool = False) -> Answer:
    """Answer with lines of JSON, chunked; `cut` closes the connection before the end."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        for line in lines:
            _chunk(writer, (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
        if cut:
            await writer.drain()
            writer.close()
            return
        writer.write(b"0\r\n\r\n")

    return answer


def plain(status: int, body: object, *, headers: Sequence[str] = ("Content-Type: application/json",)) -> Answer:
    """Answer with one body."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + raw)

    return answer


def raw(data: bytes, *, then_close: bool = True, after_s: float = 0.0) -> Answer:
    """Answer with these bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        if after_s:
            await asyncio.sleep(after_s)
        writer.write(data)
        await writer.drain()
        if then_close:
            writer.close()

    return answer


def silence() -> Answer:
    """Never answer."""

    async def answer(_writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return answer


def delta(text: str = "", **more: object) -> dict[str, object]:
    """Return a chunk with some text."""
    return {"model": "m-1", "choices": [{"index": 0, "delta": {"content": text} | more}]}


def end(reason: str = "stop") -> dict[str, object]:
    """Return a chunk that ends the answer."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int, completion: int, **more: object) -> dict[str, object]:
    """Return a chunk that tells the usage."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion} | more}


def model_at(state: Provider, *, patience: Patience | None = None, window: int | None = None) -> OpenAIModel:
    """Return a model at this server."""
    endpoint = Endpoint(provider="openai", base_url=state.url, headers={"Authorization": "Bearer key-of-the-test"})
    return OpenAIModel(endpoint, name="m", clock=lambda: NOW, patience=patience, window=window)
