"""A desk of agents in a real app: agent files as operators write them, and models that play a part on a real port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from quell.app import App, open_app
from quell.config import AgentSettings, JournalSettings, Secret, Settings, StoreSettings, load_agents
from quell.domain import ChatAsk, Heard, Message, Principal
from quell.runs import system_clock
from tests import _canaries

ANN = Principal(user="ann", roles=("operator",))
NOWHERE = "http://127.0.0.1:9"


def asked(*said: str, agent: str = "", session: str = "") -> ChatAsk:
    """Return a question after earlier questions and answers, in turn."""
    messages = tuple(Message(role="assistant" if place % 2 else "user", text=text) for place, text in enumerate(said))
    return ChatAsk(messages=messages, agent=agent, session=session)


def agents_of(at: Path, *files: str, env: Mapping[str, str] | None = None) -> tuple[AgentSettings, ...]:
    """Write agent files and read them."""
    at.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(files):
        (at / f"agent-{number}.toml").write_text(text)
    return load_agents(at, env=env or {}).agents


def file_of(name: str, url: str, *, more: str = "", agent: str = "") -> str:
    """Return an agent file whose model is played by a server."""
    return (
        f'[agent]\nname = "{name}"\nsystem_prompt = "You look after a small shop."\n{agent}\n'
        f'[agent.llm]\nprovider = "openai"\nmodel = "played"\napi_key = "none"\nbase_url = "{url}"\n{more}'
    )


@asynccontextmanager
async def a_desk(
    state_dir: Path, agents: Sequence[AgentSettings] = (), *, settings: Settings | None = None
) -> AsyncIterator[App]:
    """Open an app as a command does that asks agents."""
    settings = settings or Settings(
        state_dir=state_dir,
        store=StoreSettings(url=NOWHERE, query_timeout_s=0.5, password=Secret(_canaries.IN_SETTINGS)),
        journal=JournalSettings(url=Secret(""), lease_s=2.0),
    )
    async with open_app(
        settings, role="command", clock=system_clock, entropy=os.urandom, env=_canaries.ENVIRONMENT, agents=agents
    ) as app:
        await app.launch()
        yield app


async def first_of(urls: asyncio.Queue[str], serving: asyncio.Task[None]) -> str:
    """Return where a server answers, or raise why it does not."""
    up = asyncio.create_task(urls.get())
    await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        up.cancel()
        await serving
    return up.result()


async def heard(app: App, run: str, *, after: str = "") -> list[Heard]:
    """Follow a run to its end."""
    return [each async for each in app.agents.follow(run, after=after)]


def text_of(heard: Iterable[Heard]) -> str:
    """Join what was said, as whoever listens has it: what was void counts no more."""
    turns: dict[object, str] = {}
    for each in heard:
        if each.name == "void":
            turns[each.body["turn"]] = ""
        elif each.name == "text":
            turns[each.body["turn"]] = turns.get(each.body["turn"], "") + str(each.body["text"])
    return "".join(turns.values())
