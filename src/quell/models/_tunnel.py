"""A way through a proxy: CONNECT, its answer, and then whatever protocol the server behind it speaks."""

from __future__ import annotations

import asyncio
import ssl

from quell.domain import ModelError, ModelFault
from quell.models._proxy import Proxy

_HEAD_MAX_BYTES = 16 * 1024
_REFUSED = frozenset({403, 407})


class _Asking(asyncio.Protocol):
    """Reads the head of a proxy's answer."""

    def __init__(self, done: asyncio.Future[bytes]) -> None:
        self._done = done
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if (b"\r\n\r\n" in self._head or len(self._head) > _HEAD_MAX_BYTES) and not self._done.done():
            self._done.set_result(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("the proxy closed the connection"))


async def tunnelled(
    via: Proxy, *, host: str, port: int, protocol: asyncio.Protocol, tls: ssl.SSLContext
) -> asyncio.Transport:
    """Join a protocol to a server behind a proxy, by TLS of its own: the proxy sees where to, and nothing else.

    Raises:
        ModelError: the proxy does not let us through.
        OSError: the proxy, or the server behind it, cannot be reached.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    opened, _ = await loop.create_connection(
        lambda: _Asking(done), via.host, via.port, ssl=ssl.create_default_context() if via.is_tls else None
    )
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(f"{name}: {v}" for name, v in via.headers.items())]
        opened.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        require_let_through(_status(await done), via=via)
        upgraded = await loop.start_tls(opened, protocol, tls, server_hostname=host)
        assert upgraded is not None, "a transport that was just opened can be upgraded"
    except BaseException:
        opened.abort()
        raise
    protocol.connection_made(upgraded)
    return upgraded


def require_let_through(status: int, *, via: Proxy) -> None:
    """Check a proxy's answer. Raises ModelError."""
    if 200 <= status < 300:
        return
    if status in _REFUSED:
        hint = "it wants a user and a password: http://USER:PASSWORD@HOST:PORT" if status == 407 else "ask who runs it"
        raise ModelError(f"the proxy {via.named} refuses us (HTTP {status})", fault=ModelFault.AUTH, hint=hint)
    told = f"the proxy {via.named} does not reach the server (HTTP {status})"
    raise ModelError(told, fault=ModelFault.UNREACHABLE, hint="check base_url, the proxy and NO_PROXY")


def _status(head: bytes) -> int:
    words = head.split(b"\r\n", 1)[0].split()
    is_http = len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].isdigit()
    return int(words[1]) if is_http and head.endswith(b"\r\n\r\n") else 0
