"""Agent files as an operator writes them, and rooms whose settings have the servers of those files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from quell.app._agent_servers import merged
from quell.config import AgentSettings, Settings, load_agents
from tests.doors._hand_bench import Room, hand_room


def agent_of(directory: Path, text: str, *, name: str = "shop", extra: str = "") -> AgentSettings:
    """Load one agent file with these tables beside the least that it needs."""
    place = directory / f"agents-{name}"
    place.mkdir()
    path = place / "agent.toml"
    llm = '[agent.llm]\nprovider = "builtin"\ncontext_window = 100000\n'
    path.write_text(
        f'memory_dir = "{directory}/runs"\n[agent]\nname = "{name}"\nsystem_prompt = "Help."\n{extra}{llm}{text}\n'
    )
    (agent,) = load_agents(path, env={}).agents
    return agent


def server_table(name: str, url: str, *, more: str = "") -> str:
    return f'[mcp.servers.{name}]\ntransport = "http_streamable"\nurl = "{url}"\n{more}\n'


@asynccontextmanager
async def room_of(
    state_dir: Path, *agents: AgentSettings, **more: object
) -> AsyncIterator[tuple[Room, Mapping[str, Mapping[str, str]]]]:
    """Open a room whose settings are those of the deployment with the servers of these agents."""
    settings, names = merged(Settings(state_dir=state_dir), agents)
    async with hand_room(state_dir, servers=settings.mcp.servers, **more) as room:  # type: ignore[arg-type]  # settings of a room
        yield room, names


def told(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]  # a coroutine
