"""The composition root: Settings become an App; every organ is built, joined and closed here and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quell import __version__, telemetry
from quell.app._agent_routes import routes_of, with_secrets_of
from quell.app._agent_servers import merged
from quell.app._incident_room import IncidentRoom
from quell.app._person_calls import PersonCalls
from quell.app._run_trace import trace_of
from quell.app._sources import CleanReader
from quell.app._vault import STORE_RETRY_S, Role, StoreReader, Vault
from quell.app._warden import Warden
from quell.audit import Redactor
from quell.config import AgentSettings, McpServerSettings, Settings, version_of
from quell.domain import (
    Alert,
    Clock,
    Entropy,
    JournalError,
    Principal,
    QuellError,
    RunTrace,
    StateHeldError,
    StoreError,
    UsageError,
)
from quell.runs import Runs
from quell.signals import Reader
from quell.telemetry import Telemetry, open_telemetry

if TYPE_CHECKING:
    from quell.app._agents import AgentDesk
    from quell.app._authority import Authority
    from quell.incidents import Desk
    from quell.signals import Detector, PrometheusReader, Receiver, Store

_CLOSE_TIMEOUT_S = 10.0
_TEND_INTERVAL_S = 2.0
_RETAIN_INTERVAL_S = 3600.0
_AUTHORITY_INTERVAL_S = 5.0
_SIGN_INTERVAL_S = 60.0
_HERALD_INTERVAL_S = 1.0
_AGENTS_INTERVAL_S = 2.0


@dataclass(slots=True, kw_only=True)
class App:
    """All organs of one process."""

    role: Role
    clock: Clock
    entropy: Entropy
    telemetry: Telemetry
    runs: Runs
    warden: Warden
    vault: Vault
    readers: tuple[Reader, ...]
    room: IncidentRoom
    version: str
    calls: PersonCalls
    """Takes tool calls that people make by hand."""
    desk_of_agents: AgentDesk | None = None
    """None: it was opened without agents."""
    untaken: list[Alert] = field(default_factory=list)
    """What the detector saw and the journal could not take yet: the detector says everything once."""

    @property
    def settings(self) -> Settings:
        """What holds now: the MCP servers of agent files come and go while this process runs."""
        return self.warden.settings

    async def launch(self, *, way: Literal["queue", "direct"] = "queue") -> None:
        """Let this process execute runs, with `direct` only those that somebody waits for; twice is once."""
        await self.runs.launch(way=way)

    @property
    def agents(self) -> AgentDesk:
        """Who answers questions; only where the app was opened with agents."""
        assert self.desk_of_agents is not None, "open the app with agents"
        return self.desk_of_agents

    @property
    def desk(self) -> Desk:
        """Who keeps incidents: open in a server, and in a command without agents; others `open_desk` first."""
        assert self.room.desk is not None, "open the desk first"
        return self.room.desk

    async def open_desk(self) -> Desk:
        """Open the desk of incidents, if it is not. Raises JournalError."""
        return await self.room.open()

    @property
    def store(self) -> Store | None:
        """The telemetry store, if it was needed so far and answers."""
        return self.vault.store

    @property
    def receiver(self) -> Receiver | None:
        """The receiver of telemetry; None in a command, and while the store cannot be opened."""
        return self.vault.receiver

    @property
    def detector(self) -> Detector | None:
        """The detector; None in a command, and while the store cannot be opened."""
        return self.vault.detector

    async def open_store(self) -> Store:
        """Open the telemetry store, or attach to the one that runs. Raises StoreError when it cannot be used."""
        return await self.vault.open()

    @property
    def authority(self) -> Authority | None:
        """What decides and acts, if it was needed so far."""
        return self.warden.authority

    async def open_authority(self) -> Authority:
        """Open what decides and acts. Raises ConfigError with every mistake, or JournalError."""
        return await self.warden.open()

    async def trace(self, run_id: str, *, by: Principal) -> RunTrace:
        """Return a run as a tree. Raises UsageError when there is none that `by` may see.

        Runs belong to the first tenant, as incidents do; what another one's people asked is theirs as well.
        """
        if by.tenant != self.settings.identity.tenants[0]:
            run_id = await self._of_tenant(run_id, by.tenant)
        authority = await self.open_authority()
        return await trace_of(self.runs, run_id, price_of=authority.guard.budgets.price_of)

    async def _of_tenant(self, run_id: str, tenant: str) -> str:
        """Return the whole id of a run that somebody of a tenant asked for. Raises UsageError for any other."""
        with suppress(UsageError):
            found = (await self.runs.get(run_id)).id
            if await self.calls.is_of(found, tenant=tenant):
                return found
            if self.desk_of_agents is not None and (await self.desk_of_agents.wanted(found)).by.tenant == tenant:
                return found
        # Also of a beginning that several have: it would tell that they are there.
        raise UsageError(f"there is no run {run_id!r}", hint="quell run list shows the runs there are")

    async def watch_forever(self) -> None:
        """Run the loops of a server until cancelled; one that fails says so and goes on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_loop("store", self._keep_store, interval_s=STORE_RETRY_S))
            group.create_task(_loop("incidents", self.desk.tend, interval_s=_TEND_INTERVAL_S))
            group.create_task(_loop("retention", self._retain, interval_s=_RETAIN_INTERVAL_S))
            group.create_task(_loop("authority", self.warden.tend, interval_s=_AUTHORITY_INTERVAL_S))
            group.create_task(_loop("audit", self.warden.sign, interval_s=_SIGN_INTERVAL_S))
            group.create_task(_loop("audit records", self.warden.keep_flushing, interval_s=_AUTHORITY_INTERVAL_S))
            group.create_task(_loop("bodies", self.warden.sweep, interval_s=_RETAIN_INTERVAL_S))
            if self.desk_of_agents is not None:
                group.create_task(_loop("agents", self.desk_of_agents.look, interval_s=_AGENTS_INTERVAL_S))
            group.create_task(_loop("approvals", self.warden.look, interval_s=_HERALD_INTERVAL_S))
            if self.settings.detection.enabled:
                interval_s = self.settings.detection.interval_s
                telemetry.event("detector.started", interval_s=interval_s)
                group.create_task(_loop("detector", self._look, interval_s=interval_s))

    def announce(self, url: str) -> None:
        """Write down where this server answers, for other processes of this user."""
        self.warden.url = url
        path = self.settings.state_dir / "serve.json"
        scratch = path.with_suffix(".json.new")
        scratch.write_text(json.dumps({"pid": os.getpid(), "url": url}) + "\n", encoding="utf-8")
        scratch.chmod(0o600)
        scratch.replace(path)

    async def _keep_store(self) -> None:
        if self.vault.store is None:
            await self.vault.open()

    async def _retain(self) -> None:
        deleted = await self.runs.retain()
        if deleted:
            telemetry.event("run.retained", deleted=deleted)

    async def _look(self) -> None:
        detector = self.vault.detector
        if detector is None:
            return
        try:
            with telemetry.span("quell.look"):
                self.untaken += await detector.look(self.clock())
        finally:
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Give the desk what was seen; while the journal is away it is kept, and whatever else fails ends with it."""
        alerts, self.untaken = self.untaken, []
        try:
            await self.desk.handle(alerts)
        except JournalError:
            self.untaken = [*alerts, *self.untaken]
            raise


@asynccontextmanager
async def open_app(
    settings: Settings,
    *,
    role: Role,
    clock: Clock,
    entropy: Entropy,
    env: Mapping[str, str],
    agents: Sequence[AgentSettings] | None = None,
) -> AsyncIterator[App]:
    """Build the app, hand it over, and close everything in reverse order.

    A command opens the journal only; store and executor follow when something needs them. A server takes the state
    directory for itself, and starts even when its store does not: it goes on trying, and says what is missing.
    `agents` are those of the agent files; without any there is one that needs no model, and with None there is none.

    Raises:
        StateHeldError: another server has this state directory.
        JournalError: the journal cannot be used.
        ConfigError: of a server, its policies, identities or keys cannot be used.
    """
    async with AsyncExitStack() as stack:
        own = settings.mcp.servers
        settings, servers = _with_agents(settings, agents or (), env=env)
        telling, runs, redactor = await _ground(stack, settings, role=role, clock=clock, entropy=entropy, env=env)
        warden = Warden(runs, settings, clock=clock, entropy=entropy, env=env, redactor=redactor)
        vault = Vault(settings, role=role, clock=clock, entropy=entropy)
        _end_after_runs(stack, warden, vault)
        talking = _agents_of(stack, agents, servers, own=own, warden=warden, clock=clock, entropy=entropy, env=env)
        readers = tuple(CleanReader(each, redactor=redactor) for each in _readers(settings, vault, stack))
        _end_first(stack, runs, telling)
        room = _room_of(vault, readers, settings=settings, warden=warden, role=role, clock=clock, entropy=entropy)
        warden.builtin = lambda: [*room.hands(), *(talking.hands() if talking is not None else ())]
        if role == "serve" or talking is None:
            await room.open()
        app = App(
            role=role,
            clock=clock,
            entropy=entropy,
            telemetry=telling,
            runs=runs,
            warden=warden,
            vault=vault,
            readers=readers,
            room=room,
            version=version_of(settings),
            desk_of_agents=talking,
            calls=PersonCalls(warden, entropy=entropy),
        )
        await _start(app)
        yield app


def _room_of(
    vault: Vault,
    readers: Sequence[Reader],
    *,
    settings: Settings,
    warden: Warden,
    role: Role,
    clock: Clock,
    entropy: Entropy,
) -> IncidentRoom:
    """Return where incidents are, not opened yet; who asks for them there opens it."""
    room = IncidentRoom(
        settings,
        runs=warden.runs,
        warden=warden,
        open_reader=vault.open_reader,
        readers=readers,
        clock=clock,
        entropy=entropy,
        ready=warden.runs.launch if role == "command" else None,
    )
    vault.firing, warden.inventory = room.firing, room.inventory
    return room


def _with_agents(
    settings: Settings, agents: Sequence[AgentSettings], *, env: Mapping[str, str]
) -> tuple[Settings, Mapping[str, Mapping[str, str]]]:
    """Return settings with what agent files add: servers, secrets of approvals; and how each calls its servers."""
    if not agents:
        return settings, {}
    return merged(with_secrets_of(settings, env=env), agents)


def _agents_of(
    stack: AsyncExitStack,
    agents: Sequence[AgentSettings] | None,
    servers: Mapping[str, Mapping[str, str]],
    *,
    own: Mapping[str, McpServerSettings],
    warden: Warden,
    clock: Clock,
    entropy: Entropy,
    env: Mapping[str, str],
) -> AgentDesk | None:
    """Open the desk of the agents; its models are closed when no run uses them any more."""
    if agents is None:
        return None
    from quell.app._agents import AgentDesk  # noqa: PLC0415 - a command that asks no agent needs no model

    for agent in agents:
        warden.redactor.hold_all(f"agents.{agent.id}", agent)
    desk = AgentDesk(agents, warden=warden, clock=clock, entropy=entropy, env=env, servers=servers, own=own)
    warden.routes, warden.headers_of = routes_of(warden.settings, agents), desk.headers_of
    warden.asker = desk.asker
    warden.busy = desk.busy
    stack.push_async_callback(_closed, "agents", desk.close)
    return desk


def _end_after_runs(stack: AsyncExitStack, warden: Warden, vault: Vault) -> None:
    """Have what runs rest on closed after them: a call in flight whose server is taken away ends as nobody knows."""
    stack.push_async_callback(_closed, "authority", warden.close)
    stack.push_async_callback(_closed, "store", vault.close)


async def _ground(
    stack: AsyncExitStack, settings: Settings, *, role: Role, clock: Clock, entropy: Entropy, env: Mapping[str, str]
) -> tuple[Telemetry, Runs, Redactor]:
    """Open what everything else speaks and writes through, and what keeps secrets out of it, one for the process."""
    instance = f"{os.uname().nodename}-{os.getpid()}"
    redactor = Redactor.of(settings, environment=env)
    telling = open_telemetry(
        settings,
        role=role,
        service_version=__version__,
        instance=instance,
        clock=clock,
        env=env,
        clean=redactor.text,
    )
    stack.callback(telling.close_now)
    if role == "serve":
        stack.enter_context(_held(settings.state_dir))
    runs = await Runs.open(
        settings.journal,
        state_dir=settings.state_dir,
        clock=clock,
        entropy=entropy,
        version=version_of(settings),
        clean=redactor.text,
    )
    stack.push_async_callback(_closed, "journal", runs.close)
    return telling, runs, redactor


def _end_first(stack: AsyncExitStack, runs: Runs, telling: Telemetry) -> None:
    """Have what still acts on the rest closed before it: the runs, then what Quell last tells about itself."""
    stack.push_async_callback(_closed, "telemetry", telling.close)
    # A run that still asked while its sources are closed would keep their silence as the answer.
    stack.push_async_callback(_closed, "runs", runs.close)


def _readers(settings: Settings, vault: Vault, stack: AsyncExitStack) -> tuple[Reader, ...]:
    """Build every reader, and have those with connections closed."""
    prometheus: tuple[PrometheusReader, ...] = ()
    if settings.prometheus:
        from quell.signals import PrometheusReader  # noqa: PLC0415 - as above

        prometheus = tuple(PrometheusReader(each) for each in settings.prometheus)
    for each in prometheus:
        stack.push_async_callback(_closed, each.name, each.close)
    return (StoreReader(vault), *prometheus)


def _tell_own_store(app: App) -> None:
    """Have Quell's own spans, metrics and logs stored, from the moment that the store is open.

    A server sends them the way of all telemetry; a command, which has no spool, writes what the store takes at once.
    """

    async def export(signal: Literal["logs", "traces", "metrics"], body: bytes) -> object:
        if app.role == "command":
            await app.vault.take(signal, body)
            return None
        if app.receiver is None:
            raise StoreError("the telemetry store is not open")
        return await app.receiver.receive(signal, body, content_type="application/x-protobuf", content_encoding="")

    def attach() -> None:
        if app.role == "serve" or (app.store is not None and app.store.receives):
            app.telemetry.attach(export)

    app.vault.on_open = attach


async def _start(app: App) -> None:
    """Open what a server needs from the beginning, and nothing else; without its store it is one that says so.

    Without its authority it is none: nothing that a policy or an identity cannot be read for may begin to answer.
    """
    _tell_own_store(app)
    if app.role == "command":
        return
    await app.warden.identities()
    await app.warden.herald()
    try:
        await app.vault.open()
    except QuellError as error:
        telemetry.event("app.part_failed", part="store", error=f"{error} {error.hint}".strip())
    await app.launch()


async def _loop(part: str, work: Callable[[], Awaitable[None]], *, interval_s: float) -> None:
    """Do `work` again and again; a failure is told once per kind and does not end the loop."""
    told = ""
    while True:
        try:
            await work()
            told = ""
        except Exception as error:  # noqa: BLE001 - one bad look must not blind the server for good
            said = f"{type(error).__name__}: {error}"
            if said != told:
                name = "detector.failed" if part == "detector" else "app.part_failed"
                body = {"error": said} if part == "detector" else {"part": part, "error": said}
                telemetry.event(name, **body)
            told = said
        await asyncio.sleep(interval_s)


async def _closed(part: str, close: Callable[[], Awaitable[None]]) -> None:
    """Close one organ within a bounded time, so that the others are closed as well."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await close()
    except Exception as error:  # noqa: BLE001 - what fails to close must not keep the rest from closing
        telemetry.event("app.part_failed", part=part, error=f"while closing: {type(error).__name__}: {error}")


@contextmanager
def _held(state_dir: Path) -> Iterator[None]:
    """Hold a state directory for one server. Raises StateHeldError naming who has it."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
            raise StateHeldError(
                f"the state directory {state_dir} is held by another server (pid {holder})",
                hint="stop that server, or give this one its own state_dir",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            with suppress(OSError):
                (state_dir / "serve.json").unlink()
    finally:
        os.close(descriptor)
