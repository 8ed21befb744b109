"""The parts of the bench of streams, each a process of its own: the model, the bare proxy, and the clients.

python -m bench._stream_roles upstream TOKENS EVERY_MS
python -m bench._stream_roles proxy PORT
python -m bench._stream_roles clients PORT STREAMS PER_S TOKENS HOLD_S

All speak HTTP by hand on uvloop, so that what they cost is little beside what is measured. The model stamps each token
with the clock of the machine, in letters: a stamp in figures would be a claim that an agent has to bear out.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from collections.abc import Callable
from typing import cast

import uvloop

MARK = b"~"
LETTERS = bytes.maketrans(b"0123456789", b"abcdefghij")
DIGITS = bytes.maketrans(b"abcdefghij", b"0123456789")
STAMP_CHARS = 10
"""Microseconds of the machine's clock, the last ten digits."""
WRAP_US = 10**STAMP_CHARS
FIRST_MS = 50
SENTENCE = 12
"""Every so many tokens a sentence ends: an agent that holds claims against evidence says whole sentences."""
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"


def now_us() -> int:
    """Return the clock that all processes of a machine share."""
    return time.monotonic_ns() // 1000


def _frame(delta: object, finish: str | None = None, usage: object = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    told = {
        "id": "chatcmpl-played",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": "played",
        "service_tier": "default",
        "system_fingerprint": "fp_played",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _cut(word: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the stamp of a token."""
    stamp = "0" * STAMP_CHARS
    before, after = _chunk(_frame({"content": f" {MARK.decode()}{stamp}{word}"})).split(stamp.encode())
    return before, after


class Upstream:
    """A model that says one token every so many milliseconds on each connection, all from one timer."""

    def __init__(self, *, tokens: int, every_ms: int) -> None:
        self.tokens = tokens
        self.every_ms = every_ms
        self.slots: list[dict[Played, int]] = [{} for _ in range(every_ms)]
        self._plain, self._last = _cut(""), _cut(".")
        usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": tokens + 20}
        self._end = b"".join(
            _chunk(each) for each in (_frame({}, "stop"), _frame(None, usage=usage), b"data: [DONE]\n\n", b"")
        )
        self._tick = 0
        self._began_s = 0.0

    def begin(self) -> None:
        """Start the timer."""
        self._began_s = time.monotonic()
        self._turn()

    def add(self, played: Played) -> None:
        """Say the first token in FIRST_MS, the others in their turn."""
        now = int((time.monotonic() - self._began_s) * 1000)
        self.slots[(now + FIRST_MS + 1) % self.every_ms][played] = 0

    def _turn(self) -> None:
        # The loop's own clock stands still during a round, and counts whole milliseconds.
        due = int((time.monotonic() - self._began_s) * 1000)
        while self._tick <= due:
            self._say(self.slots[self._tick % self.every_ms])
            self._tick += 1
        asyncio.get_running_loop().call_later(0.001, self._turn)

    def _say(self, slot: dict[Played, int]) -> None:
        if not slot:
            return
        stamp = (b"%010d" % (now_us() % WRAP_US)).translate(LETTERS)
        plain, last = self._plain[0] + stamp + self._plain[1], self._last[0] + stamp + self._last[1]
        over = []
        for played, said in slot.items():
            if said == self.tokens:
                over.append(played)
                played.transport.write(self._end)
                continue
            slot[played] = said + 1
            played.transport.write(last if said % SENTENCE == SENTENCE - 1 else plain)
        for played in over:
            del slot[played]


class Played(asyncio.Protocol):
    """One connection to the model."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._got = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0]):
            return
        self._got = b""
        self.transport.write(_HEAD)
        self._upstream.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        for slot in self._upstream.slots:
            slot.pop(self, None)


class Carried(asyncio.Protocol):
    """One half of a bare proxy: bytes as they come, and nothing else."""

    def __init__(self, port: int, other: Carried | None = None) -> None:
        self._port = port
        self._other = other
        self._early: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._other is None:
            loop = asyncio.get_running_loop()
            made = loop.create_connection(lambda: Carried(self._port, self), "127.0.0.1", self._port)
            self._joining = loop.create_task(made)
        else:
            self._other.joined(self)

    def joined(self, other: Carried) -> None:
        self._other = other
        for data in self._early:
            other.write(data)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._other is not None:
            self._other.close()


class Watch:
    """What the clients saw."""

    def __init__(self, *, streams: int, tokens: int) -> None:
        self.streams = streams
        self.tokens = tokens
        self.late_us = array("l")
        self.first_us = array("l")
        self.is_steady = False
        self.counted = 0
        self.tokens_all = 0
        self.open = 0
        self.ended = 0
        self.whole = 0
        self.refused = ""
        self.all_open = asyncio.Event()
        self.all_ended = asyncio.Event()

    def ends(self, *, seen: int) -> None:
        self.ended += 1
        self.whole += seen == self.tokens
        if self.ended == self.streams:
            self.all_open.set()
            self.all_ended.set()


class Client(asyncio.Protocol):
    """One client and its stream."""

    def __init__(self, watch: Watch, request: bytes) -> None:
        self._watch = watch
        self._request = request
        self._began_us = now_us()
        self._rest = b""
        self._seen = 0
        self._is_over = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        watch, now = self._watch, now_us()
        if not self._seen and not data.startswith(b"HTTP/1.1 200") and not watch.refused and b"~" not in data:
            watch.refused = data[:1000].decode(errors="replace")
        if self._rest:
            data = self._rest + data
            self._rest = b""
        _, *stamped = data.split(MARK)
        if stamped and len(stamped[-1]) < STAMP_CHARS:
            self._rest = MARK + stamped.pop()
        if stamped:
            if not self._seen:
                watch.first_us.append(now - self._began_us)
                watch.open += 1
                if watch.open == watch.streams:
                    watch.all_open.set()
            self._seen += len(stamped)
            watch.tokens_all += len(stamped)
            if watch.is_steady:
                for each in stamped:
                    watch.late_us.append((now - int(each[:STAMP_CHARS].translate(DIGITS))) % WRAP_US)
        if b"[DONE]" in data:
            self._end()
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._watch.ends(seen=self._seen)


def request_of(port: int) -> bytes:
    """Return the question that every client asks."""
    said = {"model": "streams", "stream": True, "messages": [{"role": "user", "content": "What is going on?"}]}
    body = json.dumps(said).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        b"Accept: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (port, len(body), body)
    )


def tell(**told: object) -> None:
    """Tell whoever started this process, a line at a time."""
    print(json.dumps(told), flush=True)


async def _upstream(tokens: int, every_ms: int) -> None:
    upstream = Upstream(tokens=tokens, every_ms=every_ms)
    await _serve(lambda: Played(upstream), upstream.begin)


async def _proxy(port: int) -> None:
    await _serve(lambda: Carried(port))


async def _serve(made: Callable[[], asyncio.Protocol], begin: Callable[[], None] = lambda: None) -> None:
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0, backlog=4096)
    begin()
    tell(port=server.sockets[0].getsockname()[1])
    await asyncio.get_running_loop().create_future()


async def _clients(port: int, streams: int, per_s: float, tokens: int, hold_s: float) -> None:
    """Open streams evenly, hold them, and wait for their ends; say when the steady time begins and ends."""
    loop = asyncio.get_running_loop()
    watch, request = Watch(streams=streams, tokens=tokens), request_of(port)
    opening: list[asyncio.Task[object]] = []
    began_s = loop.time()
    for number in range(streams):
        await asyncio.sleep(max(0.0, began_s + number / per_s - loop.time()))
        made = loop.create_connection(lambda: Client(watch, request), "127.0.0.1", port)
        opening.append(loop.create_task(made))
    await asyncio.gather(*opening)
    async with asyncio.timeout(120):
        await watch.all_open.wait()
    await asyncio.sleep(1.0)
    watch.is_steady = True
    before = watch.tokens_all
    tell(steady="begins", open=watch.open, ended=watch.ended, refused=watch.refused)
    await asyncio.sleep(hold_s)
    counted, open_now = watch.tokens_all - before, watch.open - watch.ended
    watch.is_steady = False
    tell(steady="ends", tokens=counted, open=open_now)
    async with asyncio.timeout(300):
        await watch.all_ended.wait()
    tell(whole=watch.whole, late_us=sorted(watch.late_us), first_us=sorted(watch.first_us), refused=watch.refused)


def main() -> None:
    """Play one part."""
    role, *numbers = sys.argv[1:]
    gc.freeze()
    gc.disable()
    match role, [float(each) for each in numbers]:
        case "upstream", [tokens, every_ms]:
            playing = _upstream(int(tokens), int(every_ms))
        case "proxy", [port]:
            playing = _proxy(int(port))
        case "clients", [port, streams, per_s, tokens, hold_s]:
            playing = _clients(int(port), int(streams), per_s, int(tokens), hold_s)
        case _:
            raise SystemExit(__doc__)
    uvloop.run(playing)


if __name__ == "__main__":
    main()
