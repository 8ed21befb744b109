"""What the rows of the acceptance list are played with: a served deployment, models that think, and a real tool server over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, TextContent

from quell.config import AgentSettings
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import Answer, Provider, delta, end, provider, sse, usage

Json: TypeAlias = dict[str, Any]
Brain: TypeAlias = Callable[[Json], Answer]
LOOSE = '[quell]\nevidence = "off"\nreads = ["*"]\n'
"""No marks in the text, and every tool is a read: what AURA takes all tools for."""


def played(story: Callable[[], Awaitable[None]], *, timeout_s: float = 25.0) -> None:
    """Play a story; one that hangs fails."""

    async def whole() -> None:
        async with asyncio.timeout(timeout_s):
            await story()

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that will be true."""
    while not condition():
        await asyncio.sleep(0.02)


def calls(*wanted: tuple[str, Mapping[str, object]], said: str = "") -> Answer:
    """Answer with calls of tools."""
    pieces = [
        {"index": number, "id": f"c{number}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(wanted)
    ]
    return sse(*([delta(said)] if said else []), delta(tool_calls=pieces), end("tool_calls"), usage(20, 5))


def says(*pieces: str, gap_s: float = 0.0) -> Answer:
    """Answer with text."""
    return sse(*map(delta, pieces), end(), usage(30, 6), gap_s=gap_s)


@asynccontextmanager
async def thinking(brain: Brain) -> AsyncIterator[Provider]:
    """Run a provider whose model answers each request by what stands in it."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        await brain(state.bodies[-1])(writer)

    async with provider(answer) as state:
        yield state


@dataclass(slots=True)
class Shop:
    """A real tool server over HTTP, and what it saw."""

    url: str = ""
    done: list[tuple[str, Json]] = field(default_factory=list)
    """Tool and arguments, in the order in which they were carried out."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    steps: int = 0
    """How far the slow work is."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the slow work was told to stop."""


def _tools(shop: Shop) -> MCPServer:
    server = MCPServer("shop", log_level="CRITICAL")

    def saw(context: Context[Any, Any], tool: str, **arguments: object) -> None:
        shop.done.append((tool, arguments))
        shop.headers.append({name.lower(): value for name, value in (context.headers or {}).items()})

    @server.tool()
    def get_logs(context: Context[Any, Any], service: str) -> CallToolResult:
        """Read the log of a service."""
        saw(context, "get_logs", service=service)
        told = {"lines": [f"{service}: out of cheese"]}
        return CallToolResult(content=[TextContent(type="text", text="see the structure")], structured_content=told)

    @server.tool()
    def get_all(context: Context[Any, Any]) -> dict[str, Any]:
        """Read everything there is."""
        saw(context, "get_all")
        return {"items": [{"id": number, "text": f"line {number} of many"} for number in range(400)]}

    @server.tool()
    def get_trouble(context: Context[Any, Any]) -> CallToolResult:
        """Fail, as tools do."""
        saw(context, "get_trouble")
        return CallToolResult(content=[TextContent(type="text", text="out of cheese")], is_error=True)

    @server.tool()
    async def watch_rollout(context: Context[Any, Any], steps: int) -> str:
        """Watch a rollout, step by step."""
        saw(context, "watch_rollout", steps=steps)
        try:
            for shop.steps in range(1, steps + 1):
                await context.report_progress(shop.steps, steps, f"step {shop.steps}")
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            shop.stopped.set()
            raise
        return "rolled out"

    @server.tool()
    def delete_volume(context: Context[Any, Any], name: str) -> str:
        """Delete a volume."""
        saw(context, "delete_volume", name=name)
        return f"{name} is gone"

    return server


class _Quiet(uvicorn.Server):
    """Leaves signals to whoever runs the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def a_shop() -> AsyncIterator[Shop]:
    """Run the tool server."""
    shop = Shop()
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    config = uvicorn.Config(_tools(shop).streamable_http_app(), host="127.0.0.1", port=0, log_config=None, ws="none")
    server = _Quiet(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    shop.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    try:
        yield shop
    finally:
        server.should_exit = server.force_exit = True
        await serving


def server_of(shop: Shop, *, name: str = "shop", more: str = "") -> str:
    """Return the table of the tool server in an agent's file."""
    return f'[mcp.servers.{name}]\ntransport = "http_streamable"\nurl = "{shop.url}"\n{more}\n'


def named(frames: Sequence[tuple[str, Any]]) -> list[str]:
    """Return the names of AURA's events among the frames of a stream, in order."""
    return [name.removeprefix("aura.") for name, _ in frames if name.startswith("aura.")]


def agent_at(
    directory: Path, url: str, text: str = LOOSE, *, agent: str = "", name: str = "sre", top: str = ""
) -> tuple[AgentSettings, ...]:
    """Return one agent whose model is played at this address; `top` stands above its tables."""
    return agents_of(directory / "agents", f"{top}\n{file_of(name, url, more=text, agent=agent)}")
