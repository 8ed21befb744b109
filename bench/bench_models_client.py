"""What our own streaming client takes for a token, beside bare httptools with a JSON parser, and the SDK of OpenAI.

python -m bench.bench_models_client

One long answer of a played model on loopback, a chunk for each token, read in turns by each client in this process: the
processor time of the thread that reads. The model writes from a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import cast

import httptools

from bench._stream_roles import _chunk, _frame
from quell.config import LlmSettings, Secret
from quell.domain import Message, ModelRequest, TextPiece
from quell.models import open_model
from quell.models._model import tell
from quell.runs import system_clock

TOKENS = 20_000
ROUNDS = 5
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_DEADLINE_S = 60.0


@contextmanager
def _played() -> Iterator[int]:
    """Serve one long answer to everybody who asks; yield the port."""
    tokens = b"".join(_chunk(_frame({"content": " word"})) for _ in range(TOKENS))
    usage = {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": TOKENS + 20}
    end = b"".join(_chunk(each) for each in (_frame({}, "stop"), _frame(None, usage=usage), b"data: [DONE]\n\n", b""))
    whole = _HEAD + tokens + end
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                while asked := connection.recv(1 << 20):
                    # The body may come by itself, after its head.
                    head, _, body = asked.partition(b"\r\n\r\n")
                    size = next(
                        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                    )
                    while len(body) < size:
                        body += connection.recv(1 << 20)
                    connection.sendall(whole)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


class _Bare(asyncio.Protocol):
    """What reading a stream takes at least: the parser of HTTP, lines, and a parser of JSON."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = b'{"model":"played","stream":true,"messages":[{"role":"user","content":"hi"}]}'
        cast("asyncio.WriteTransport", transport).write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        for frame in frames:
            if frame == b"data: [DONE]":
                self.done.set_result(None)
                return
            choices = json.loads(frame[6:])["choices"]
            if choices and (text := choices[0]["delta"].get("content")):
                self.texts.append(text)


async def _bare(port: int) -> int:
    transport, reading = await asyncio.get_running_loop().create_connection(_Bare, "127.0.0.1", port)
    await reading.done
    transport.close()
    return len(reading.texts)


def _ours(port: int) -> Callable[[], Awaitable[int]]:
    settings = LlmSettings(
        provider="openai", model="played", api_key=Secret("none"), base_url=f"http://127.0.0.1:{port}/v1"
    )
    model = open_model(settings, clock=system_clock, env=dict(os.environ))
    request = ModelRequest(messages=(Message(role="user", text="hi"),))

    async def read() -> int:
        texts: list[str] = []

        def hear(event: object) -> None:
            if isinstance(event, TextPiece):
                texts.append(event.text)

        await tell(model, request, deadline_s=_DEADLINE_S, hear=hear)
        return len(texts)

    return read


def _sdk(port: int) -> Callable[[], Awaitable[int]]:
    import openai  # noqa: PLC0415 - not everywhere

    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

    async def read() -> int:
        stream = await client.chat.completions.create(
            model="played", stream=True, messages=[{"role": "user", "content": "hi"}]
        )
        texts = [each.choices[0].delta.content async for each in stream if each.choices]
        return sum(text is not None and bool(text) for text in texts)

    return read


async def _all(port: int) -> dict[str, list[float]]:
    async def bare() -> int:
        return await _bare(port)

    clients: dict[str, Callable[[], Awaitable[int]]] = {"bare": bare, "ours": _ours(port)}
    if find_spec("openai") is not None:
        clients["sdk"] = _sdk(port)
    taken: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(ROUNDS + 1):  # the first one opens connections
        for name, read in clients.items():
            began_s = time.thread_time()
            texts = await read()
            if texts != TOKENS:
                raise RuntimeError(f"{name} read {texts} of {TOKENS} tokens")
            if turn:
                taken[name].append(1e6 * (time.thread_time() - began_s) / TOKENS)
    return taken


def measure() -> dict[str, float]:
    """Return what a token takes each client, and how many times the bare one ours takes."""
    import uvloop  # noqa: PLC0415 - not everywhere

    with _played() as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = runner.run(_all(port))
    told = {f"{name}_us": round(statistics.median(each), 2) for name, each in taken.items()}
    for name in set(taken) - {"ours"}:
        ratios = [ours / theirs for ours, theirs in zip(taken["ours"], taken[name], strict=True)]
        told[f"vs_{name}"] = round(statistics.median(ratios), 2)
    return {"tokens": TOKENS, "rounds": ROUNDS, **told}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
