"""A server with agents on a real port, models that play a part, and clients that read its streams as bytes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from quell.app import App, open_app
from quell.config import (
    AgentSettings,
    AuraSettings,
    IdentitySettings,
    JournalSettings,
    Secret,
    ServerSettings,
    Settings,
    StoreSettings,
)
from quell.runs import system_clock
from quell.server import serve
from tests import _canaries

NOWHERE = "http://127.0.0.1:9"
CHAT = "/v1/chat/completions"


@dataclass(kw_only=True)
class Wire:
    """One running server."""

    app: App
    url: str
    http: httpx2.AsyncClient
    serving: asyncio.Task[None]

    async def ask(self, said: str = "Hello?", **more: object) -> httpx2.Response:
        """Ask, and read the whole answer."""
        return await self.http.post(CHAT, json={"messages": [{"role": "user", "content": said}], **more})

    async def stream(self, said: str = "Hello?", **more: object) -> str:
        """Ask for a stream, and read it to its end."""
        response = await self.ask(said, stream=True, **more)
        assert response.status_code == 200, response.text
        return response.text


def settings_of(
    state_dir: Path,
    *,
    aura: AuraSettings | None = None,
    identity: IdentitySettings | None = None,
    server: ServerSettings | None = None,
) -> Settings:
    return Settings(
        state_dir=state_dir,
        store=StoreSettings(url=NOWHERE, query_timeout_s=0.5, password=Secret(_canaries.IN_SETTINGS)),
        journal=JournalSettings(url=Secret(""), lease_s=2.0),
        server=server or ServerSettings(port=0, aura=aura or AuraSettings()),
        identity=identity or IdentitySettings(),
    )


@asynccontextmanager
async def a_wire(
    settings: Settings, agents: Sequence[AgentSettings] = (), *, env: Mapping[str, str] | None = None
) -> AsyncIterator[Wire]:
    """Open an app with agents, serve it, and stop it; `env` is what it finds beside the canaries."""
    urls: asyncio.Queue[str] = asyncio.Queue()
    async with open_app(
        settings,
        role="serve",
        clock=system_clock,
        entropy=os.urandom,
        env={**_canaries.ENVIRONMENT, **(env or {})},
        agents=agents,
    ) as app:
        serving = asyncio.create_task(serve(app, on_ready=urls.put_nowait))
        try:
            up = asyncio.create_task(urls.get())
            await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            url = up.result()
            async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
                yield Wire(app=app, url=url, http=http, serving=serving)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def frames(text: str) -> list[tuple[str, Any]]:
    """Return the frames of a stream: name and payload; `data` for chunks, `comment` for comments."""
    found: list[tuple[str, Any]] = []
    for block in text.split("\n\n"):
        if not block:
            continue
        name, data = "data", ""
        for line in block.split("\n"):
            if line.startswith(":"):
                name, data = "comment", line
            elif line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
        found.append((name, json.loads(data) if data.startswith(("{", "[{")) else data))
    return found


_VARYING: Sequence[tuple[str, str]] = (
    (r'"created":\d+', '"created":0'),
    (r"chatcmpl-[0-9a-z]{20,}", "chatcmpl-1"),
    (r"run_[0-9a-z]{20,}", "run_1"),
    (r"call_[0-9a-z]{10}_", "call_r_"),
    (r"cs_[0-9a-f-]{36}", "cs_1"),
    (r'"duration_ms":\d+', '"duration_ms":0'),
    (r'"(decision_id)":"[0-9a-f-]{36}"', r'"\1":"d"'),
    (r'"expires_at":"[^"]+"', '"expires_at":"t"'),
)


def golden(text: str) -> str:
    """Return a stream without what differs from run to run."""
    for pattern, instead in _VARYING:
        text = re.sub(pattern, instead, text)
    return text


def chunk(delta: str, *, finish: str = "", more: str = "", model: str = "openai/played") -> str:
    """Return a chunk as a golden transcript has it."""
    reason = f'"{finish}"' if finish else "null"
    return (
        f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":0,"model":"{model}",'
        f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]{more}}}\n\n'
    )


def text_of(payloads: Sequence[Any]) -> str:
    """Join the text of chunks."""
    chosen = [each["choices"] for each in payloads if isinstance(each, dict) and each.get("choices")]
    return "".join(choices[0]["delta"].get("content") or "" for choices in chosen)
