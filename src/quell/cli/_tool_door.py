"""The way to tools and their servers: those of this process, or of a `quell serve`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import click

from quell.cli._output import note, note_none
from quell.cli._person import person_in, person_of
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App, Office, ToolDesk, Toolset
    from quell.domain import (
        CallState,
        OfferSheet,
        Pinned,
        Principal,
        ServerCheck,
        ToolComparison,
        ToolList,
        ToolSheet,
    )
    from quell.server import ServerClient

_WAIT_S = 20.0
_LOOK_S = 120.0
"""Servers that are asked there may take as long as their settings allow."""
_TRIES_MAX = 8
_AGAIN_S = 2.0
_KEY_BYTES = 16


class ToolDoor(Protocol):
    """What `quell tool` needs of tools, wherever they are. Every method raises what the desk of tools does."""

    async def listed(self, server: str) -> ToolList: ...
    async def shown(self, name: str) -> ToolSheet: ...
    async def checked(self, server: str) -> tuple[ServerCheck, ...]: ...
    async def compared(self, server: str) -> ToolComparison: ...
    async def offered(self, server: str, name: str, *, declared: str | None) -> OfferSheet: ...
    async def pin(self, sheet: OfferSheet, *, digest: str, declared: str | None) -> Pinned: ...
    async def unpin(self, server: str, name: str) -> None: ...
    def note_none(self, what: str) -> None:
        """Say where there is none."""


class CallDoor(Protocol):
    """Where a person's own calls are made."""

    async def start(self, tool: str, *, arguments: str) -> str: ...
    async def until(self, run: str, *, after: int) -> CallState:
        """Return how far a call is, once something is new or after a while."""

    async def cancel(self, run: str) -> None: ...
    def shown_by(self, run: str) -> str:
        """Return the command that shows what a run did."""


def server_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command look at a server instead of at this process."""
    told = "Do it on a `quell serve`, under the key in QUELL_API_KEY, instead of here."
    return click.option("--server", "url", default="", metavar="URL", help=told)(command)


def with_tools(session: Session, work: Callable[[ToolDoor], Awaitable[int]], *, url: str) -> int:
    """Let `work` use the tools of this process, or those behind a URL."""
    if url:
        return _far(session, url, lambda client: work(_FarTools(client)))

    async def near(office: Office, toolset: Toolset) -> int:
        from quell.app import ToolDesk

        return await work(_NearTools(desk=ToolDesk(office, toolset), office=office, session=session))

    return session.with_toolset(near)


def with_calls(session: Session, work: Callable[[CallDoor], Awaitable[int]], *, url: str) -> int:
    """Let `work` make calls in this process, or on the server behind a URL."""
    if url:
        return _far(session, url, lambda client: work(_FarCalls(client)))

    async def near(app: App) -> int:
        by = await person_in(app, session)
        await app.launch(way="direct")
        return await work(_NearCalls(app=app, by=by))

    return session.with_app(near, agents="open")


def _far(session: Session, url: str, work: Callable[[ServerClient], Awaitable[int]]) -> int:
    # Its `.env` may hold the key of the server.
    session.loaded()
    from quell.cli._chat_remote import client_of
    from quell.cli._loop import run_until_done

    async def use() -> int:
        async with client_of(url, session) as client:
            return await work(client)

    return run_until_done(use)


# -- here -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _NearTools:
    """The tools of this process's own state."""

    desk: ToolDesk
    office: Office
    session: Session

    async def listed(self, server: str) -> ToolList:
        return await self.desk.listed(server)

    async def shown(self, name: str) -> ToolSheet:
        return await self.desk.shown(name)

    async def checked(self, server: str) -> tuple[ServerCheck, ...]:
        return await self.desk.checked(server)

    async def compared(self, server: str) -> ToolComparison:
        return await self.desk.compared(server)

    async def offered(self, server: str, name: str, *, declared: str | None) -> OfferSheet:
        # Who is not believed is told so before anything is shown to them.
        person_of(self.session, self.office)
        return await self.desk.offered(server, name, declared=declared)

    async def pin(self, sheet: OfferSheet, *, digest: str, declared: str | None) -> Pinned:
        by = person_of(self.session, self.office)
        return await self.desk.pin(sheet.server, sheet.tool, digest=digest, terms=sheet.terms, declared=declared, by=by)

    async def unpin(self, server: str, name: str) -> None:
        await self.desk.unpin(server, name, by=person_of(self.session, self.office))

    def note_none(self, what: str) -> None:
        note_none(what, self.office.settings)


@dataclass(slots=True, kw_only=True)
class _NearCalls:
    """Calls that this process makes."""

    app: App
    by: Principal

    async def start(self, tool: str, *, arguments: str) -> str:
        return (await self.app.calls.start(tool, arguments=arguments, by=self.by)).id

    async def until(self, run: str, *, after: int) -> CallState:
        return await self.app.calls.until(run, after=after, by=self.by)

    async def cancel(self, run: str) -> None:
        await self.app.calls.cancel(run, by=self.by)

    def shown_by(self, run: str) -> str:
        return f"`quell run trace {run}`"


# -- behind a URL ---------------------------------------------------------------------------------------------------------


class _FarTools:
    """The tools of a server."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    async def listed(self, server: str) -> ToolList:
        from quell.domain import ToolList

        return self._client.read(await self._client.ask("GET", "/api/v1/tools", query=_of(server)), ToolList)

    async def shown(self, name: str) -> ToolSheet:
        from quell.domain import ToolSheet

        return self._client.read(await self._client.ask("GET", self._client.path("tools", name)), ToolSheet)

    async def checked(self, server: str) -> tuple[ServerCheck, ...]:
        from quell.domain import ServerCheck

        told = await self._client.ask("GET", "/api/v1/tool-servers", query=_of(server), timeout_s=_LOOK_S)
        return self._client.read(told.get("servers"), tuple[ServerCheck, ...])

    async def compared(self, server: str) -> ToolComparison:
        from quell.domain import ToolComparison

        told = await self._client.ask("GET", "/api/v1/tool-drift", query=_of(server), timeout_s=_LOOK_S)
        return self._client.read(told, ToolComparison)

    async def offered(self, server: str, name: str, *, declared: str | None) -> OfferSheet:
        from quell.domain import OfferSheet

        body = {"server": server, "tool": name, "declared": declared}
        told = await self._client.ask("POST", "/api/v1/offers", body=body, timeout_s=_LOOK_S)
        return self._client.read(told, OfferSheet)

    async def pin(self, sheet: OfferSheet, *, digest: str, declared: str | None) -> Pinned:
        import msgspec

        from quell.domain import Pinned

        terms = msgspec.to_builtins(sheet.terms)
        body = {"server": sheet.server, "tool": sheet.tool, "digest": digest, "terms": terms, "declared": declared}
        return self._client.read(await self._client.ask("POST", "/api/v1/pins", body=body, timeout_s=_LOOK_S), Pinned)

    async def unpin(self, server: str, name: str) -> None:
        await self._client.ask("DELETE", self._client.path("pins", server, name))

    def note_none(self, what: str) -> None:
        note(f"no {what} at {self._client.url}")


class _FarCalls:
    """Calls that a server makes; it goes on with them when nobody listens."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    async def start(self, tool: str, *, arguments: str) -> str:
        from quell.domain import WorldError

        key = {"Idempotency-Key": os.urandom(_KEY_BYTES).hex()}
        body = {"tool": tool, "arguments": json.loads(arguments)}
        try:
            told = await self._client.ask("POST", "/api/v1/tool-calls", body=body, headers=key)
        except WorldError:
            # It may have begun all the same: under its key the second time is the first one.
            await asyncio.sleep(_AGAIN_S / 4)
            told = await self._client.ask("POST", "/api/v1/tool-calls", body=body, headers=key)
        return str(told.get("run", ""))

    async def until(self, run: str, *, after: int) -> CallState:
        from quell.domain import CallState, OverloadError, WorldError

        path, query = self._client.path("tool-calls", run), {"after": str(after), "wait_s": f"{_WAIT_S:g}"}
        for left in reversed(range(_TRIES_MAX)):
            try:
                told = await self._client.ask("GET", path, query=query, timeout_s=2 * _WAIT_S)
                return self._client.read(told, CallState)
            except (WorldError, OverloadError) as error:
                if not left:
                    raise
                note(f"{error}; the call goes on there, trying again")
                await asyncio.sleep(_AGAIN_S)
        raise AssertionError("the last try returns or raises")

    async def cancel(self, run: str) -> None:
        await self._client.ask("POST", self._client.path("tool-calls", run, "cancel"))

    def shown_by(self, run: str) -> str:
        return f"`quell run trace {run} --server {self._client.url}`"


def _of(server: str) -> dict[str, str]:
    return {"server": server} if server else {}
