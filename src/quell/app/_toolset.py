"""The tools of one journal and how their servers are reached, before anything is decided about them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Self

from quell import telemetry
from quell.app._office import Office
from quell.config import McpServerSettings, Settings, ToolSettings
from quell.domain import (
    ConfigError,
    Offer,
    PolicySource,
    Recovery,
    ResourceRule,
    SandboxedCommand,
    SandboxPolicy,
    Tool,
    ToolClass,
    ToolServer,
    ToolTerms,
)
from quell.governance import PolicySet
from quell.runs import Database
from quell.tools import CodeTool, LocalHand, Pins, Registry, Sandbox, Scratchpad, Servers, Toolbox

_STRICTNESS = tuple(ToolClass)
"""From what only looks to what nothing undoes."""


class Confinement:
    """The sandboxes of the stdio servers of one process."""

    def __init__(self, settings: Settings, *, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._env = env
        self._started: list[SandboxedCommand] = []

    def take(self, settings: Settings) -> None:
        """Confine servers as these settings say from now on."""
        self._settings = settings

    def prepare(self, server: ToolServer) -> Sequence[str]:
        """Put a stdio server into its sandbox; what this machine cannot hold it to is said loudly."""
        wanted = self._settings.mcp.servers[server.name]
        command = (server.command, *server.args)
        if wanted.sandbox == "off":
            return command
        path = self._env.get("PATH")
        program = Path(shutil.which(server.command, path=path) or server.command).resolve()
        policy = SandboxPolicy(
            read_only=(str(program.parent), *_absolute(wanted.readable)),
            read_write=_absolute(wanted.writable),
            environment=("PATH", *wanted.env),
            network=wanted.network,
            need=wanted.sandbox,
        )
        sandbox = Sandbox(policy, protected=(str(self._settings.state_dir.resolve()),))
        started = sandbox.wrap(command, environment={"PATH": path or os.defpath, **server.env})
        self._started.append(started)
        for missing in started.missing:
            telemetry.event("tool.sandbox_weak", server=server.name, missing=missing)
        return started.argv

    def release(self, argv: Sequence[str] | None = None) -> None:
        """Kill what is left of the servers where a group holds it, and remove the groups; blocks until they are gone.

        With a command line only that of this server: it names its group.
        """
        for started in [each for each in self._started if argv is None or each.argv == tuple(argv)]:
            self._started.remove(started)
            Sandbox.release(started)


@dataclass(slots=True, kw_only=True)
class Toolset:
    """What is pinned, who offers it, and what the operator says of it."""

    settings: Settings
    database: Database
    pins: Pins
    registry: Registry
    servers: Servers
    scratchpad: Scratchpad
    code: CodeTool | None
    """What runs programs; None: the extra is not there, or the operator wants none run."""
    confinement: Confinement
    busy: Callable[[], frozenset[str]] = frozenset
    """Tells which servers the runs that go on call."""
    _turn: Lock = field(default_factory=Lock, repr=False)
    _taken: Settings | None = field(default=None, repr=False)
    """Those that the tools were taken under."""

    @classmethod
    async def open(cls, office: Office, *, builtin: Iterable[tuple[Tool, LocalHand]] = ()) -> Self:
        """Build the tools as they are pinned now; no server is asked. Raises ConfigError when servers cannot be."""
        settings, database = office.settings, office.runs.database
        known = _servers_of(settings)
        confinement = Confinement(settings, env=office.env)
        servers = Servers(
            known,
            clock=office.clock,
            entropy=office.entropy,
            prepare=confinement.prepare,
            release=confinement.release,
            clean=office.redactor.text,
        )
        scratchpad = await asyncio.to_thread(
            Scratchpad, settings.state_dir / "scratchpad", clock=office.clock, entropy=office.entropy
        )
        with database.writing() as connection:
            connection.make_tables(Pins.TABLES)
            connection.make_tables(Toolbox.TABLES)
        code = CodeTool() if settings.governance.code_tool and CodeTool.is_installed() else None
        toolset = cls(
            settings=settings,
            database=database,
            pins=Pins(clock=office.clock, signer=office.signer),
            registry=Registry(builtin, scratchpad=scratchpad, code=code),
            servers=servers,
            scratchpad=scratchpad,
            code=code,
            confinement=confinement,
        )
        await asyncio.to_thread(toolset.take)
        return toolset

    def serve(self, settings: Settings) -> None:
        """Reach the servers of these settings from now on; their tools are those that are pinned at the next `take`.

        Raises ConfigError with every mistake of the servers: then everything stays as it was.
        """
        self.servers.take(_servers_of(settings))
        self.confinement.take(settings)
        self.settings = settings

    def terms_of(self, offer: Offer) -> ToolTerms:
        """Return what would be pinned of an offer: the operator's word, or the catalogue's."""
        # Of a client there are no settings: what the operator says of its tools counts, and nothing else.
        known = self.settings.mcp.servers.get(offer.server) or McpServerSettings(transport="http_streamable")
        said = {each.server: terms_of(each) for each in self.settings.tool if each.name == offer.original}
        server = tool_server(offer.server, known)
        terms = Pins.terms_for(offer, server=server, operator=said.get(offer.server))
        meant = said.get(known.stands_for) if offer.server not in said else None
        return terms if meant is None else max(meant, terms, key=lambda each: _STRICTNESS.index(each.tool_class))

    def policy_sources(self, files: Sequence[str] = ()) -> list[PolicySource]:
        """Return the pack and the operator's files, or other files in their place. Raises ConfigError."""
        return policy_sources(self.settings, files=files)

    def take(self, ready: Callable[[tuple[Tool, ...]], None] = lambda _tools: None) -> None:
        """Take the tools that are pinned now, when nobody has taken them yet.

        `ready` is told all tools there will be, before they are there. Where it raises ConfigError, only what was there
        before and is pinned just so goes on: what was revoked or pinned anew is no tool until the settings fit.
        """
        with self._turn, self.database.reading() as connection:
            turn, settings = self.pins.turn(connection), self.settings
            if turn == self.registry.turn and settings is self._taken:
                return
            pins = self.pins.listed(connection)
            for name in self.pins.broken(connection):
                telemetry.event("tool.pin_broken", tool=name)
            known = {name: server.stands_for for name, server in settings.mcp.servers.items()}
            served = self.registry.with_served(pins, servers=self.servers, known=known, busy=self.busy())
            try:
                ready(self.registry.tools_with(served))
            except ConfigError as error:
                telemetry.event("app.part_failed", part="pins", error=f"{error} {error.hint}".strip())
                served = self.registry.unchanged(served)
            self.registry.serve(served, turn=turn)
            self._taken = settings

    async def close(self) -> None:
        """Let go of servers, programs and files."""
        await self.servers.close()
        await asyncio.to_thread(self.confinement.release)
        if self.code is not None:
            await self.code.close()
        self.scratchpad.close()


def _absolute(paths: Sequence[str]) -> tuple[str, ...]:
    # From the working directory, as policy files and the state directory are; the sandbox follows no link in them.
    return tuple(str(Path(path).absolute()) for path in paths)


def policy_sources(settings: Settings, *, files: Sequence[str] = ()) -> list[PolicySource]:
    """Read the pack and the operator's files, or others in their place. Raises ConfigError for one that cannot be read."""
    wanted = settings.governance
    sources = [PolicySet.pack(wanted.pack)]
    named = ((files, "enforce"),) if files else ((wanted.policies, "enforce"), (wanted.watched_policies, "log"))
    for names, mode in named:
        for name in names:
            try:
                text = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"the policy file {name} cannot be read: {error}", hint="governance.policies"
                ) from error
            sources.append(PolicySource(name=name, text=text, mode="enforce" if mode == "enforce" else "log"))
    return sources


def _servers_of(settings: Settings) -> list[ToolServer]:
    """Return how the MCP servers are reached. Raises ConfigError for a section of the catalogue that is not there."""
    known = [tool_server(name, each) for name, each in settings.mcp.servers.items()]
    for server in known:
        Pins.check(server)
    return known


def tool_server(name: str, settings: McpServerSettings) -> ToolServer:
    """Return how an MCP server is reached."""
    return ToolServer(
        name=name,
        transport="streamable_http" if settings.transport == "http_streamable" else settings.transport,
        command=settings.cmd[0] if settings.cmd else "",
        args=(*settings.cmd[1:], *settings.args),
        env={key: value.reveal() for key, value in settings.env.items()},
        url=settings.url,
        headers={key: value.reveal() for key, value in settings.headers.items()},
        forward_headers=settings.forward_headers,
        headers_from_request=settings.headers_from_request,
        tools=settings.tools,
        catalogue=settings.catalogue,
        reads=settings.reads,
        hints=settings.hints,
        connect_timeout_s=settings.connect_timeout_s,
        call_timeout_s=settings.call_timeout_s,
    )


def terms_of(settings: ToolSettings) -> ToolTerms:
    """Return what the operator says of a tool."""
    return ToolTerms(
        tool_class=ToolClass(settings.effect),
        recovery=Recovery(settings.recovery),
        resource=ResourceRule(
            kind=settings.kind,
            name=settings.resource,
            environment=settings.environment,
            units=settings.units,
            destination=settings.destination,
        ),
        key_argument=settings.key_argument,
        probe=settings.probe,
        revert=settings.revert,
        dry_run=settings.dry_run,
        timeout_s=settings.timeout_s,
        answers=settings.answers,
        as_of=settings.as_of,
        fresh_for_s=settings.fresh_for_s or None,
        reason="the operator's settings say so",
    )
