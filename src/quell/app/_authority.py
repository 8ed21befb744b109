"""The guard and the hand, built from the settings and joined to one journal."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from quell import telemetry
from quell.config import BudgetSettings, McpServerSettings, Secret, Settings, ToolSettings
from quell.domain import (
    BudgetKind,
    BudgetScope,
    Cap,
    Clock,
    ConfigError,
    EffectState,
    Entropy,
    PolicySource,
    Recovery,
    ResourceRule,
    SandboxPolicy,
    Switch,
    Tool,
    ToolClass,
    ToolServer,
    ToolTerms,
)
from quell.governance import Approvals, Audit, Autonomy, Budgets, Guard, PolicySet, Redactor, Switches
from quell.runs import Connection, Ledger, Runs
from quell.tools import Hand, Pins, Registry, Resilience, Sandbox, Scratchpad, Servers, Toolbox

_MICRO = 1_000_000
_KEY_BYTES = 32
_RUN, _DAY, _TENANT = BudgetScope.RUN, BudgetScope.DAY, BudgetScope.TENANT


@dataclass(slots=True, kw_only=True)
class Authority:
    """Who decides, what acts, and where the account of it lies: the organs of one process on one journal."""

    runs: Runs
    settings: Settings
    guard: Guard
    registry: Registry
    servers: Servers
    scratchpad: Scratchpad
    redactor: Redactor
    toolbox: Toolbox

    async def reload(self) -> None:
        """Take the tools that are pinned now and the policies as they are written now, whole or not at all.

        Raises ConfigError with every mistake of the policies: then everything stays as it was.
        """
        with self.runs.database.reading() as connection:
            pins = Pins.listed(connection)
        served = self.registry.with_served(pins, servers=self.servers, known=self.settings.mcp.servers)
        tools = self.registry.tools_with(served)
        self.guard.policy = PolicySet.load(policy_sources(self.settings), tools=tools)
        self.registry.serve(served)

    async def close(self) -> None:
        """Let go of servers and files, and write what still waits to be recorded."""
        await self.servers.close()
        await asyncio.to_thread(self.guard.audit.flush)
        self.scratchpad.close()


async def open_authority(
    runs: Runs,
    settings: Settings,
    *,
    clock: Clock,
    entropy: Entropy,
    env: Mapping[str, str],
    builtin: Iterable[tuple[Tool, Hand]] = (),
    monotonic: Callable[[], float] = time.monotonic,
) -> Authority:
    """Build everything that decides and acts; tables and keys are made where they are missing.

    Raises:
        ConfigError: policies, keys or servers cannot be used.
        JournalError: the journal cannot be used.
    """
    ledger = Ledger(runs.database, clock=clock)
    redactor = Redactor(dict(secrets_of(settings)), environment=env)
    servers = _servers(settings, clock=clock, entropy=entropy, env=env)
    pad = await asyncio.to_thread(Scratchpad, settings.state_dir / "scratchpad", clock=clock, entropy=entropy)
    registry = Registry(builtin, scratchpad=pad)
    given = _Given(clock=clock, entropy=entropy, monotonic=monotonic)
    build = partial(_guard, runs, settings, ledger=ledger, redactor=redactor, registry=registry, given=given)
    guard = await asyncio.to_thread(build)
    toolbox = Toolbox(
        registry=registry,
        database=runs.database,
        clock=clock,
        guard=guard,
        ledger=ledger,
        resilience=Resilience(entropy=entropy, monotonic=monotonic),
        scratchpad=pad,
        redactor=redactor,
        monotonic=monotonic,
        environment=settings.governance.environment,
    )
    authority = Authority(
        runs=runs,
        settings=settings,
        guard=guard,
        registry=registry,
        servers=servers,
        scratchpad=pad,
        redactor=redactor,
        toolbox=toolbox,
    )
    await authority.reload()
    return authority


def _servers(settings: Settings, *, clock: Clock, entropy: Entropy, env: Mapping[str, str]) -> Servers:
    """Know the tool servers. Raises ConfigError for settings that cannot be."""
    known = [tool_server(name, each) for name, each in settings.mcp.servers.items()]
    for server in known:
        Pins.check(server)
    return Servers(known, clock=clock, entropy=entropy, prepare=_confined(settings, env=env))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """Time and chance, handed in."""

    clock: Clock
    entropy: Entropy
    monotonic: Callable[[], float]


def _guard(
    runs: Runs, settings: Settings, *, ledger: Ledger, redactor: Redactor, registry: Registry, given: _Given
) -> Guard:
    """Join what decides; makes tables and keys where they are missing."""
    database, keys = runs.database, settings.state_dir / "audit"
    anchor = settings.governance.anchor_file
    audit = Audit(
        database,
        directory=keys,
        clock=given.clock,
        entropy=given.entropy,
        redactor=redactor,
        anchors=[Audit.file_anchor(Path(anchor))] if anchor else [],
        monotonic=given.monotonic,
    )
    _make_tables(runs, audit)
    approvals = Approvals(
        database,
        clock=given.clock,
        entropy=given.entropy,
        signers=[Approvals.signer(_key(keys / "votes.key", entropy=given.entropy))],
        expires_s=settings.governance.approval_minutes * 60,
    )
    switches = Switches(
        database,
        clock=given.clock,
        monotonic=given.monotonic,
        entropy=given.entropy,
        in_flight=_in_flight_of(ledger),
    )
    dearest: Literal["dearest"] | None = "dearest" if settings.budgets.unknown_price == "charge" else None
    return Guard(
        database,
        policy=PolicySet.load(policy_sources(settings), tools=registry.tools),
        approvals=approvals,
        switches=switches,
        budgets=Budgets(caps_of(settings.budgets), clock=given.clock, pessimistic=dearest),
        audit=audit,
        ledger=ledger,
        autonomy=Autonomy(database, clock=given.clock),
        clock=given.clock,
        entropy=given.entropy,
    )


def _confined(settings: Settings, *, env: Mapping[str, str]) -> Callable[[ToolServer], Sequence[str]]:
    """Return what puts a stdio server into its sandbox; what this machine cannot hold it to is said loudly."""

    def prepare(server: ToolServer) -> Sequence[str]:
        wanted = settings.mcp.servers[server.name]
        command = (server.command, *server.args)
        if wanted.sandbox == "off":
            return command
        program = Path(shutil.which(server.command, path=env.get("PATH")) or server.command).resolve()
        policy = SandboxPolicy(
            read_only=(str(program.parent), *wanted.readable),
            read_write=wanted.writable,
            environment=("PATH", *wanted.env),
            network=wanted.network,
            need=wanted.sandbox,
        )
        sandbox = Sandbox(policy, protected=(str(settings.state_dir.resolve()),))
        started = sandbox.wrap(command, environment={"PATH": env.get("PATH", os.defpath), **server.env})
        for missing in started.missing:
            telemetry.event("tool.sandbox_weak", server=server.name, missing=missing)
        return started.argv

    return prepare


def policy_sources(settings: Settings) -> list[PolicySource]:
    """Read the pack and the operator's files. Raises ConfigError for a file that cannot be read."""
    wanted = settings.governance
    sources = [PolicySet.pack(wanted.pack)]
    for names, mode in ((wanted.policies, "enforce"), (wanted.watched_policies, "log")):
        for name in names:
            try:
                text = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"the policy file {name} cannot be read: {error}", hint="governance.policies"
                ) from error
            sources.append(PolicySource(name=name, text=text, mode="enforce" if mode == "enforce" else "log"))
    return sources


def caps_of(budgets: BudgetSettings) -> Sequence[Cap]:
    """Return the caps that the settings state."""
    return (
        Cap(kind=BudgetKind.MONEY, limit=int(budgets.run_usd * _MICRO), per=(_RUN,)),
        Cap(kind=BudgetKind.TOKENS, limit=budgets.run_tokens, per=(_RUN,)),
        Cap(kind=BudgetKind.CALLS, limit=budgets.run_calls, per=(_RUN,)),
        Cap(kind=BudgetKind.WALL, limit=int(budgets.run_minutes * 60_000), per=(_RUN,)),
        Cap(kind=BudgetKind.BYTES, limit=budgets.run_bytes, per=(_RUN,)),
        Cap(kind=BudgetKind.BLAST, limit=budgets.run_units, per=(_RUN,)),
        Cap(kind=BudgetKind.MONEY, limit=int(budgets.day_usd * _MICRO), per=(_TENANT, _DAY)),
        Cap(kind=BudgetKind.CALLS, limit=budgets.day_calls, per=(_TENANT, _DAY)),
    )


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
        tools=settings.tools,
        catalogue=settings.catalogue,
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
        timeout_s=settings.timeout_s,
        reason="the operator's settings say so",
    )


def secrets_of(value: object, path: str = "") -> Iterator[tuple[str, Secret]]:
    """Yield every secret of the settings with the key that holds it."""
    if isinstance(value, Secret):
        if value:
            yield path, value
    elif is_dataclass(value):
        for each in fields(value):
            yield from secrets_of(getattr(value, each.name), f"{path}.{each.name}" if path else each.name)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets_of(item, f"{path}.{name}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from secrets_of(item, f"{path}.{index}")


def _in_flight_of(ledger: Ledger) -> Callable[[Connection, Switch], Iterable[str]]:
    """Return what names the effects that a stop came too late for; an agent's name is not in the ledger: all count."""

    def in_flight(connection: Connection, switch: Switch) -> Iterable[str]:
        return [
            effect.key
            for effect in ledger.entries(connection, state=EffectState.STARTED, rows_max=10_000)
            if fnmatchcase(effect.tenant, switch.tenant)
            and fnmatchcase(effect.resource.environment, switch.environment)
            and fnmatchcase(effect.call.tool, switch.tool)
        ]

    return in_flight


def _make_tables(runs: Runs, audit: Audit) -> None:
    with runs.database.writing() as connection:
        for tables in (
            Approvals.TABLES,
            Switches.TABLES,
            Budgets.tables,
            Autonomy.TABLES,
            Ledger.TABLES,
            Pins.TABLES,
            Toolbox.TABLES,
        ):
            connection.make_tables(tables)
    audit.prepare()


def _key(path: Path, *, entropy: Entropy) -> bytes:
    """Return the key of a file that only its owner can read, made when it is missing. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            scratch = path.with_suffix(f".{entropy(6).hex()}")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(entropy(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # A link is made only where nothing is: of two processes at once, one key wins for both.
            try:
                os.link(scratch, path)
            except FileExistsError:
                pass
            finally:
                scratch.unlink()
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be used: {error.strerror}", hint="check its owner and rights"
        ) from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"the key {path} is damaged", hint="restore it from a backup; votes are signed with it")
    return key
