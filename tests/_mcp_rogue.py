"""A tool server that misbehaves in every way we know: over HTTP in this process, over pipes in a process of its own.

It writes bytes by hand, since no SDK would let a server do these things. `python _mcp_rogue.py [forks|deaf|chatty]`
speaks over pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

Json = dict[str, Any]
MODERN, LEGACY = "2026-07-28", "2025-11-25"
OBJECT: Json = {"type": "object", "properties": {"n": {"type": "integer"}}}
FORM: Json = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
TOOLS = (
    "echo structured empty_text empty_list huge half_json drip hang close status_500 status_401 html not_rpc gzip lie "
    "error_text error_body failed elicit park sample flood twice other_id old denied_form no_content login void die moved accepted "
    "asks torn"
)


def definitions() -> list[Json]:
    """Return the tools as they are offered."""
    out = [{"name": name, "description": f"does {name}", "inputSchema": OBJECT} for name in TOOLS.split()]
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    return [{**tool, "outputSchema": number} if tool["name"] in {"lie", "void", "structured"} else tool for tool in out]


def text(words: str, **more: object) -> Json:
    return {"content": [{"type": "text", "text": words}], **more}


ANSWERS: dict[str, Json] = {
    "structured": text("seven", structuredContent={"n": 7}),
    "lie": text("seven", structuredContent={"n": "seven"}),
    "void": text('{"n": 7}'),
    "empty_text": text("  \n"),
    "no_content": {"content": []},
    "empty_list": text("[]", structuredContent={"result": []}),
    "error_text": text("Error: everything is on fire"),
    "error_body": text('{"error": {"code": 500}, "message": "no"}'),
    "failed": text("out of cheese", isError=True),
    "login": text("<!doctype html><title>Sign in</title>"),
    "old": text("", structuredContent={"at": "2026-11-20T11:00:00Z", "n": 1}),
    "denied_form": {"content": "not a list"},
}


TORN = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\xff\\ud800"}]}}'
"""No text that anybody can read."""
ASKED = 500


def _questions(number: int) -> list[Json]:
    return [{"jsonrpc": "2.0", "id": f"ask{n}", "method": "ping"} for n in range(number)]


class Rogue:
    """One bad server on a port of its own."""

    def __init__(self, era: Literal["modern", "legacy"]) -> None:
        self.era = era
        self.tools = definitions()
        self.page_size = 10
        self.listing: Literal["fine", "circle", "endless", "twice", "nonsense", "fails", "hangs"] = "fine"
        self.instructions = "be good"
        self.discover_hangs = False
        self.moved_to = ""
        """Where every request is sent on to, when it is somewhere."""
        self.calls: list[Json] = []
        """What was called: parameters and headers."""
        self.cancelled: list[object] = []
        self.gone: list[str] = []
        """Tools whose request was dropped by the client."""
        self.ended = 0
        self.handshakes = 0
        self.lists = 0
        self.gets = 0
        self.ends_streams = False
        """Whether a stream that is asked for ends at once, with leave to ask again at once."""
        self.replies: asyncio.Queue[Json] = asyncio.Queue()
        self.streams: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[str] = set()
        self.port = 0
        self._stamp: Json = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go away at once, as a killed process does; what it knew of sessions is lost."""
        assert self._server is not None
        self._server.close()
        self._sessions.clear()
        self.streams.clear()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def changed(self) -> None:
        """Tell every listener that the tools changed."""
        for writer in self.streams:
            writer.write(
                _event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": self._stamp})
            )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method = head.split(" ", 1)[0]
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._serve(method, headers, json.loads(body) if body else {}, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the streams of asyncio would report a handler that ends otherwise
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(  # noqa: PLR0911 - one way out for each misdeed
        self, method: str, headers: Json, message: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if method == "DELETE":
            self.ended += 1
            return _send(writer, 200, b"{}")
        if method == "GET":
            self.gets += 1
            _begin_events(writer)
            if self.ends_streams:
                writer.write(b"retry: 0\nid: 1\ndata: \n\n")
                await writer.drain()
                return False
            self.streams.append(writer)
            await asyncio.sleep(60)
            return False
        if self.moved_to:
            return _send(writer, 308, b"", more=f"location: {self.moved_to}\r\n")
        if "method" not in message:
            self.replies.put_nowait(message)
            return _send(writer, 202, b"")
        if message["method"] == "notifications/cancelled":
            self.cancelled.append(message["params"]["requestId"])
        if "id" not in message:
            return _send(writer, 202, b"")
        session = headers.get("mcp-session-id", "")
        is_handshake = message["method"] in {"initialize", "server/discover"}
        if self.era == "legacy" and not is_handshake and session not in self._sessions:
            return _send(writer, 404, b"no such session", kind="text/plain")
        if message["method"] == "tools/call":
            return await self._call(message, headers, reader, writer)
        if message["method"] == "tools/list" and self.listing == "hangs":
            return await self._until_gone("tools/list", reader)
        if message["method"] == "subscriptions/listen":
            _begin_events(writer)
            stamp = {"_meta": {"io.modelcontextprotocol/subscriptionId": message["id"]}}
            ack = {
                "method": "notifications/subscriptions/acknowledged",
                "params": {"notifications": {"toolsListChanged": True}, **stamp},
            }
            writer.write(_event({"jsonrpc": "2.0", **ack}))
            self._stamp = stamp
            self.streams.append(writer)
            await asyncio.sleep(60)
            return False
        if message["method"] == "server/discover" and self.discover_hangs:
            await asyncio.sleep(60)
        more = f"mcp-session-id: {self._open()}\r\n" if message["method"] == "initialize" else ""
        return _send(writer, 200, json.dumps(self.answer(message)).encode(), more=more)

    def _open(self) -> str:
        name = f"s{self.handshakes}-{len(self._sessions)}"
        self._sessions.add(name)
        return name

    def answer(self, message: Json) -> Json:
        """Answer all that is no call."""
        about = {"name": "rogue", "version": "6.6.6"}
        can = {"tools": {"listChanged": True}}
        match message["method"]:
            case "server/discover" if self.era == "modern":
                self.handshakes += 1
                found = {
                    "supportedVersions": [MODERN],
                    "capabilities": can,
                    "instructions": self.instructions,
                    "resultType": "complete",
                    "ttlMs": 0,
                    "cacheScope": "private",
                    "_meta": {"io.modelcontextprotocol/serverInfo": about},
                }
                return _result(message, found)
            case "initialize":
                self.handshakes += 1
                told = {"protocolVersion": LEGACY, "capabilities": can, "serverInfo": about}
                return _result(message, {**told, "instructions": self.instructions})
            case "tools/list":
                self.lists += 1
                return self._list(message)
        return _error(message, -32601, "Method not found")

    def _list(self, message: Json) -> Json:
        cursor = int((message.get("params") or {}).get("cursor") or 0)
        page = self.tools[cursor : cursor + self.page_size]
        following = cursor + self.page_size if cursor + self.page_size < len(self.tools) else None
        match self.listing:
            case "circle":
                following = 10 if cursor == 20 else cursor + 10
                page = []
            case "endless":
                following, page = cursor + 1, []
            case "twice":
                page = [self.tools[0], self.tools[0]]
            case "nonsense":
                return _result(message, {**self._era_fields(), "tools": [{"description": "nameless"}]})
            case "fails":
                return _error(message, -32603, "cannot list")
        more = {"nextCursor": str(following)} if following is not None else {}
        return _result(message, {**self._era_fields(), "tools": page, **more})

    def _era_fields(self) -> Json:
        return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if self.era == "modern" else {}

    async def _call(  # noqa: PLR0911, PLR0912 - one way out for each misdeed
        self, message: Json, headers: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        params = message["params"]
        self.calls.append({**params, "headers": headers})
        name = params["name"]
        done = {"resultType": "complete"} if self.era == "modern" else {}
        if name in ANSWERS:
            return _send(writer, 200, json.dumps(_result(message, {**ANSWERS[name], **done})).encode())
        fine = json.dumps(_result(message, {**text(json.dumps(params.get("arguments"))), **done})).encode()
        match name:
            case "hang":
                return await self._until_gone(name, reader)
            case "close":
                return False
            case "huge":
                return _send(writer, 200, json.dumps(_result(message, {**text("x" * 3_000_000), **done})).encode())
            case "half_json":
                return _send(writer, 200, fine[: len(fine) // 2])
            case "drip":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
                for byte in fine:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.1)
                    if writer.transport.is_closing():
                        self.gone.append(name)
                        break
                return False
            case "status_500":
                return _send(writer, 500, b"Internal Server Error", kind="text/plain")
            case "status_401":
                return _send(writer, 401, b"{}")
            case "html":
                return _send(writer, 200, b"<!doctype html><form>password</form>", kind="text/html")
            case "not_rpc":
                return _send(writer, 200, b'{"error": "rate limited"}')
            case "moved":
                return _send(writer, 307, b"", more="location: /mcp\r\n")
            case "accepted":
                return _send(writer, 202, b"")
            case "gzip":
                return _send(writer, 200, fine, more="content-encoding: gzip\r\n")
            case "park":
                return self._park(message, writer)
            case "sample":
                ask = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
                return _send(writer, 200, json.dumps(_result(message, _asking(ask))).encode())
            case "torn":
                return _send(writer, 200, TORN % message["id"])
            case "elicit" | "flood" | "twice" | "asks":
                return await self._events(message, writer, fine)
            case "other_id":
                return _send(writer, 200, json.dumps({**json.loads(fine), "id": 999_999}).encode())
        return _send(writer, 200, fine)

    async def _until_gone(self, name: str, reader: asyncio.StreamReader) -> bool:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        self.gone.append(name)
        return False

    def _park(self, message: Json, writer: asyncio.StreamWriter) -> bool:
        params = message["params"]
        if params.get("requestState") != "state-1":
            ask = {
                "method": "elicitation/create",
                "params": {"mode": "form", "message": "sure?", "requestedSchema": FORM},
            }
            return _send(writer, 200, json.dumps(_result(message, _asking(ask))).encode())
        said = params["inputResponses"]["q"]
        result = text(f"{said['action']} {said.get('content')}", resultType="complete")
        return _send(writer, 200, json.dumps(_result(message, result)).encode())

    async def _events(self, message: Json, writer: asyncio.StreamWriter, fine: bytes) -> bool:
        _begin_events(writer)
        name = message["params"]["name"]
        if name == "elicit":
            ask = {"mode": "form", "message": "sure?", "requestedSchema": FORM}
            writer.write(_event({"jsonrpc": "2.0", "id": "q1", "method": "elicitation/create", "params": ask}))
            reply = (await self.replies.get())["result"]
            fine = json.dumps(_result(message, text(f"{reply['action']} {reply.get('content')}"))).encode()
        if name == "flood":
            token = message["params"]["_meta"]["progressToken"]
            for step in range(3_000):
                told = {"progressToken": token, "progress": step, "total": 3_000, "message": "half way"}
                writer.write(_event({"jsonrpc": "2.0", "method": "notifications/progress", "params": told}))
            await writer.drain()
        if name == "asks":
            writer.write(b"".join(map(_event, _questions(ASKED))))
        writer.write(_event(json.loads(fine)) * (2 if name == "twice" else 1))
        await writer.drain()
        return False


class OldRogue(Rogue):
    """The same over the old transport: one stream of events carries every answer."""

    def __init__(self) -> None:
        super().__init__("legacy")
        self.page_size = 100

    async def _serve(
        self, method: str, headers: Json, message: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if method == "GET":
            _begin_events(writer)
            writer.write(b"event: endpoint\ndata: /mcp\n\n")
            self.streams.append(writer)
            await asyncio.sleep(60)
            return False
        if "id" in message and "method" in message:
            is_call = message["method"] == "tools/call"
            self.streams[-1].write(_event(_piped(message) if is_call else self.answer(message)))
        return _send(writer, 202, b"")


@asynccontextmanager
async def rogue(era: Literal["modern", "legacy", "old"] = "modern") -> AsyncIterator[Rogue]:
    """Run a bad server."""
    server = OldRogue() if era == "old" else Rogue(era)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def _asking(ask: Json) -> Json:
    return {"resultType": "input_required", "inputRequests": {"q": ask}, "requestState": "state-1"}


def _result(message: Json, result: Json) -> Json:
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


def _error(message: Json, code: int, words: str) -> Json:
    return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": words}}


def _event(message: Json) -> bytes:
    return f"event: message\ndata: {json.dumps(message)}\n\n".encode()


def _begin_events(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")


def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, *, kind: str = "application/json", more: str = ""
) -> bool:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)
    return True


def main(mode: str) -> None:
    """Speak over pipes."""
    server = Rogue("legacy")
    server.page_size = 100
    if mode == "forks":
        # A grandchild that leaves the group, ignores what it can and outlives its parent.
        code = "import os,signal,time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        orphan = subprocess.Popen([sys.executable, "-c", code])
        sys.stderr.write(f"orphan {orphan.pid}\n")
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "chatty":
        sys.stdout.write("Welcome to the server!\n{not json\n")
        sys.stderr.write("warning " * 100_000)
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        out = _piped(message) if message["method"] == "tools/call" else server.answer(message)
        is_torn = message["method"] == "tools/call" and message["params"]["name"] == "torn"
        sys.stdout.buffer.write((TORN % message["id"] if is_torn else json.dumps(out).encode()) + b"\n")
        sys.stdout.flush()
    if mode == "deaf":
        time.sleep(60)


def _piped(message: Json) -> Json:
    name = message["params"]["name"]
    if name == "die":
        sys.stderr.write("Segmentation fault, sort of\n")
        sys.stderr.flush()
        os._exit(3)
    if name == "hang":
        time.sleep(60)
    if name == "asks":
        # More than the pipes hold answers to, which nobody reads meanwhile.
        sys.stdout.write("".join(json.dumps(one) + "\n" for one in _questions(20_000)))
        sys.stdout.flush()
    if name == "flood":
        token = message["params"]["_meta"]["progressToken"]
        told = [{"progressToken": token, "progress": step} for step in range(900)]
        lines = (json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": one}) for one in told)
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
    if name == "huge":
        return {"result": text("y" * 3_000_000), "jsonrpc": "2.0", "id": message["id"]}
    if name == "elicit":
        ask = {"mode": "form", "message": "sure?", "requestedSchema": FORM}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": ask}) + "\n")
        sys.stdout.flush()
        reply = json.loads(sys.stdin.readline())["result"]
        return _result(message, text(f"{reply['action']} {reply.get('content')}"))
    if name in ANSWERS:
        return _result(message, ANSWERS[name])
    return _result(message, text(json.dumps({"pid": os.getpid(), "arguments": message["params"].get("arguments")})))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
