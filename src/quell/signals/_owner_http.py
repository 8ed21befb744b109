"""The ClickHouse HTTP interface of the owner process, as far as clients of ClickHouse use it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import gzip
import hmac
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_plus

import httptools

from quell.signals._owner_engine import Engine, EngineError, Outcome, Statement

BODY_MAX_BYTES = 256 << 20
_AUTHENTICATION_FAILED = 516
_NOT_SETTINGS = frozenset(
    {
        "buffer_size",
        "client_protocol_version",
        "compress",
        "database",
        "decompress",
        "default_format",
        "enable_http_compression",
        "http_headers_progress_interval_ms",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "send_progress_in_http_headers",
        "session_check",
        "session_id",
        "session_timeout",
        "user",
        "wait_end_of_query",
    }
)
_STATUS = {60: 404, 81: 404, 47: 400, 62: 400, 36: 400, 202: 503, 241: 500, _AUTHENTICATION_FAILED: 403}
_CONTENT_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "Native": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
}
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Request:
    """One HTTP request, gathered."""

    method: str = "GET"
    target: bytes = b"/"
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    keep_alive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Desk:
    """Turns requests into statements and outcomes into replies."""

    def __init__(
        self, engine: Engine, *, token: str, seen: Callable[[str], None], asked_to_close: Callable[[str], bool]
    ) -> None:
        self._engine = engine
        self._token = token
        self._seen = seen
        self._asked_to_close = asked_to_close

    async def answer(self, request: Request) -> Reply:
        """Answer one request; never raises."""
        url = httptools.parse_url(request.target)
        path = (url.path or b"/").decode("latin-1")
        fields = dict(parse_qsl((url.query or b"").decode("latin-1"), keep_blank_values=True, encoding="utf-8"))
        client = request.headers.get("x-quell-client", "")
        if path == "/ping":
            if client and self._knows(request, fields):
                self._seen(client)
            return Reply(body=b"Ok.\n")
        if not self._knows(request, fields):
            return _refusal(
                EngineError(
                    _AUTHENTICATION_FAILED,
                    "Code: 516. DB::Exception: Authentication failed: the token is in store.json of the state directory. (AUTHENTICATION_FAILED)",
                )
            )
        self._seen(client)
        if path == "/quell/close":
            return Reply(body=b"closing\n" if self._asked_to_close(client) else b"in use\n")
        if path == "/quell/busy":
            return Reply(body=b"busy\n" if self._engine.busy() else b"not busy\n")
        if path != "/":
            return Reply(status=404, body=b"There is no such path; queries go to /\n")
        return await self._query(request, fields)

    def _knows(self, request: Request, fields: dict[str, str]) -> bool:
        given = request.headers.get("x-clickhouse-key") or fields.get("password", "")
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = credentials
        elif scheme.lower() == "basic":
            try:
                given = base64.b64decode(credentials, validate=True).decode("utf-8", "replace").partition(":")[2]
            except binascii.Error:
                given = ""
        return hmac.compare_digest(unquote_plus(given).encode(), self._token.encode()) or hmac.compare_digest(
            given.encode(), self._token.encode()
        )

    async def _query(self, request: Request, fields: dict[str, str]) -> Reply:
        try:
            body = _decoded(b"".join(request.pieces), request.headers.get("content-encoding", ""))
        except ValueError as error:
            return Reply(status=415, body=f"{error}\n".encode())
        text, rows = (fields["query"].encode(), body) if "query" in fields else (body, b"")
        if not text.strip():
            return Reply(body=b"Ok.\n")
        output = request.headers.get("x-clickhouse-format") or fields.get("default_format", "TabSeparated")
        statement = Statement(
            text=text,
            rows=rows,
            settings={
                name: value
                for name, value in fields.items()
                if name not in _NOT_SETTINGS and not name.startswith(("param_", "http_"))
            },
            params={name[6:]: value for name, value in fields.items() if name.startswith("param_")},
            database=request.headers.get("x-clickhouse-database") or fields.get("database", ""),
            output_format=output,
        )
        try:
            outcome = await asyncio.wrap_future(self._engine.submit(statement))
        except EngineError as error:
            return _refusal(error)
        except (asyncio.CancelledError, RuntimeError):
            return _refusal(EngineError(TOO_LATE, "Code: 236. DB::Exception: the store is closing. (ABORTED)"))
        return _success(outcome, output, fields.get("query_id", ""))


TOO_LATE = 236


def _success(outcome: Outcome, output: str, query_id: str) -> Reply:
    summary = {
        "read_rows": str(outcome.read_rows),
        "read_bytes": str(outcome.read_bytes),
        "written_rows": str(outcome.written_rows),
        "written_bytes": str(outcome.written_bytes),
        "total_rows_to_read": "0",
        "result_rows": "0",
        "result_bytes": str(len(outcome.body)),
        "elapsed_ns": str(outcome.elapsed_ns),
    }
    headers = {
        "Content-Type": _CONTENT_TYPES.get(output, "text/plain; charset=UTF-8"),
        "X-ClickHouse-Format": output,
        "X-ClickHouse-Query-Id": query_id.replace("\r", "").replace("\n", ""),
        "X-ClickHouse-Summary": json.dumps(summary, separators=(",", ":")),
    }
    return Reply(body=outcome.body, headers=headers)


def _refusal(error: EngineError) -> Reply:
    headers = {"X-ClickHouse-Exception-Code": str(error.code), "Content-Type": "text/plain; charset=UTF-8"}
    if error.code == 202:
        headers["Retry-After"] = "1"
    return Reply(status=_STATUS.get(error.code, 500), body=f"{error}\n".encode(), headers=headers)


def _decoded(body: bytes, encoding: str) -> bytes:
    """Undo the content encoding. Raises ValueError when it is unknown, broken or too large."""
    if encoding in {"", "identity"}:
        return body
    if encoding != "gzip":
        raise ValueError(f"content encoding {encoding} is not supported; send gzip or none")
    try:
        decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        plain = decoder.decompress(body, BODY_MAX_BYTES)
        if decoder.unconsumed_tail:
            raise ValueError(f"the body is larger than {BODY_MAX_BYTES} bytes after decompression")
        return plain if not decoder.unused_data else gzip.decompress(body)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"the body is not gzip: {error}") from error


class Connection(asyncio.Protocol):
    """One client connection; requests on it are answered in turn."""

    def __init__(self, desk: Desk, *, open_connections: set[Connection]) -> None:
        self._desk = desk
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._queue: asyncio.Queue[Request | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start answering."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Forget the client."""
        self._open.discard(self)
        self._queue.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._send(Reply(status=400, body=b"That is not HTTP/1.1\n"), keep_alive=False)

    # httptools
    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = Request()

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        self._request.target = self._request.target + url if self._request.target != b"/" else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Answer an expectation, so that curl and others go on."""
        if self._request.headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Gather the body up to the bound."""
        self._request.pieces.append(body)
        self._request.size_bytes += len(body)
        if self._request.size_bytes > BODY_MAX_BYTES:
            self._send(Reply(status=413, body=b"The body is too large\n"), keep_alive=False)

    def on_message_complete(self) -> None:
        """Hand the request over."""
        self._request.method = self._parser.get_method().decode("latin-1")
        self._request.keep_alive = self._parser.should_keep_alive()
        self._queue.put_nowait(self._request)

    async def _serve(self) -> None:
        while (request := await self._queue.get()) is not None:
            reply = await self._desk.answer(request)
            self._send(reply, keep_alive=request.keep_alive)

    def _send(self, reply: Reply, *, keep_alive: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        headers = {
            "Content-Length": str(len(reply.body)),
            "Connection": "Keep-Alive" if keep_alive else "Close",
            "X-ClickHouse-Server-Display-Name": "quell",
            "X-ClickHouse-Timezone": "UTC",
            **reply.headers,
        }
        head = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._transport.write(head.encode("latin-1", "replace") + b"\r\n")
        self._transport.write(reply.body)
        if not keep_alive:
            self._transport.close()

    def close(self) -> None:
        """Close the connection once what was written is sent."""
        if self._transport is not None:
            self._transport.close()
