"""A light HTTP/1.1 client: one pool of kept-alive connections to one callee."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

CONNECTION_AGE_MAX_S = 5.0
CONNECTIONS_MAX = 32
CERTIFICATE_HAS_EXPIRED = 10


class CallError(Exception):
    """A call that got no answer; `kind` is OpenTelemetry's `error.type`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class _Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    opened_s: float
    used: bool = False


class Peer:
    """One callee, reached at one address."""

    def __init__(self, *, address: tuple[str, int], tls: ssl.SSLContext | None, server_name: str) -> None:
        self.address = address
        self._tls = tls
        self._server_name = server_name
        self._idle: deque[_Wire] = deque()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """Send one request and return status and body; raise CallError when nothing came back."""
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        raw = f"{method} {path} HTTP/1.1\r\nhost: {self._server_name}\r\n{head}content-length: {len(body)}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(raw + body)
        except TimeoutError as error:
            raise CallError("timeout", f"no answer within {timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            kind = "certificate_expired" if error.verify_code == CERTIFICATE_HAS_EXPIRED else "certificate_invalid"
            raise CallError(kind, f"certificate verify failed: {error.verify_message}") from error
        except ConnectionRefusedError as error:
            raise CallError("connection_refused", "connection refused") from error
        except OSError as error:
            kind = "too_many_open_files" if error.errno == errno.EMFILE else "connection_reset"
            raise CallError(kind, f"{error.strerror or 'connection lost'}".lower()) from error
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise CallError("connection_reset", "connection closed before the answer was complete") from error

    async def _exchange(self, raw: bytes) -> tuple[int, bytes]:
        while True:
            wire = self._take() or await self._connect()
            try:
                return await self._talk(wire, raw)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                wire.writer.close()
                # A kept-alive connection may have been closed by the peer in the meantime: try a fresh one.
                if wire.used and not getattr(error, "partial", b""):
                    continue
                raise
            except BaseException:
                wire.writer.close()
                raise

    async def _talk(self, wire: _Wire, raw: bytes) -> tuple[int, bytes]:
        wire.writer.write(raw)
        head = await wire.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split(b" ", 2)[1])
        length, keep = 0, True
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"connection":
                keep = value.strip().lower() != b"close"
        body = await wire.reader.readexactly(length) if length else b""
        if keep and len(self._idle) < CONNECTIONS_MAX and time.monotonic() - wire.opened_s < CONNECTION_AGE_MAX_S:
            wire.used = True
            self._idle.append(wire)
        else:
            wire.writer.close()
        return status, body

    def _take(self) -> _Wire | None:
        now_s = time.monotonic()
        while self._idle:
            wire = self._idle.pop()
            if wire.reader.at_eof() or wire.writer.is_closing() or now_s - wire.opened_s > CONNECTION_AGE_MAX_S:
                wire.writer.close()
                continue
            return wire
        return None

    async def _connect(self) -> _Wire:
        host, port = self.address
        reader, writer = await asyncio.open_connection(
            host,
            port,
            ssl=self._tls,
            server_hostname=self._server_name if self._tls else None,
        )
        return _Wire(reader=reader, writer=writer, opened_s=time.monotonic())
