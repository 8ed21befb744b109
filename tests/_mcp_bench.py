"""Tool servers under test: settings, a client with a clock that a test moves, and pinned calls."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from quell.domain import ServerAnswer, ToolServer
from quell.tools import Servers
from tests._mcp_rogue import Rogue, rogue

Era = Literal["modern", "legacy"]
ERAS: tuple[Era, ...] = ("modern", "legacy")
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ROGUE = str(Path(__file__).with_name("_mcp_rogue.py"))


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story, and see that it leaves no task and no child behind."""

    async def whole() -> None:
        await story()
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, left

    asyncio.run(whole())


def http_server(url: str, **more: Any) -> ToolServer:
    settings: dict[str, Any] = {
        "call_timeout_s": 20.0,
        "connect_timeout_s": 20.0,
        "result_max_bytes": 1_000_000,
        **more,
    }
    return ToolServer(**{"name": "bad", "transport": "streamable_http", "url": url, **settings})


def piped_server(*args: str, **more: Any) -> ToolServer:
    settings: dict[str, Any] = {"call_timeout_s": 20.0, "result_max_bytes": 1_000_000, **more}
    return ToolServer(
        **{"name": "bad", "transport": "stdio", "command": sys.executable, "args": (ROGUE, *args), **settings}
    )


@asynccontextmanager
async def bad(era: Era = "modern", **more: Any) -> AsyncIterator[tuple[Rogue, Servers]]:
    """Run a bad server over HTTP and a client of it."""
    async with rogue(era) as server, client(http_server(server.url, **more)) as servers:
        yield server, servers


@asynccontextmanager
async def client(
    *settings: ToolServer, monotonic: Callable[[], float] = time.monotonic, entropy: Callable[[int], bytes] = os.urandom
) -> AsyncIterator[Servers]:
    async with Servers(settings, clock=lambda: NOON, monotonic=monotonic, entropy=entropy) as servers:
        yield servers


async def call(servers: Servers, tool: str, arguments: dict[str, object] | None = None, **more: Any) -> ServerAnswer:
    """Call a tool as it is offered now."""
    name = more.pop("server", "bad")
    pins = {offer.original: offer.digest for offer in await servers.offers(name, headers=more.get("headers"))}
    return await servers.call(name, tool, arguments or {"n": 1}, digest=pins[tool], **more)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool], *, seconds: float = 4.0) -> None:
    """Wait for something that will be true; fail when it is not in time."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true in time")
