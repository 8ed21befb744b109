"""The composition root: Settings become an App; every organ is built, joined and closed here and nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quell import __version__, telemetry
from quell.app._agent_caps import capped
from quell.app._agent_routes import routes_of, with_secrets_of
from quell.app._agent_servers import merged
from quell.app._office import redactor_of
from quell.app._person_calls import PersonCalls
from quell.app._sources import CleanReader
from quell.app._warden import Warden
from quell.config import AgentSettings, Settings, version_of
from quell.domain import (
    Alert,
    Answer,
    Clock,
    Entropy,
    Gap,
    JournalError,
    QuellError,
    Question,
    StateHeldError,
    StoreError,
    Tool,
    Window,
)
from quell.incidents import Curve, CurveAsk, Desk
from quell.runs import Runs
from quell.signals import Reader
from quell.telemetry import Telemetry, open_telemetry

if TYPE_CHECKING:
    from quell.app._agents import AgentDesk
    from quell.app._authority import Authority
    from quell.audit import Redactor
    from quell.signals import ClickHouseReader, Detector, PrometheusReader, Receiver, Store
    from quell.tools import LocalHand

Role = Literal["serve", "command"]

_CLOSE_TIMEOUT_S = 10.0
_STORE_RETRY_S = 5.0
_TEND_INTERVAL_S = 2.0
_RETAIN_INTERVAL_S = 3600.0
_AUTHORITY_INTERVAL_S = 5.0
_SIGN_INTERVAL_S = 60.0
_HERALD_INTERVAL_S = 1.0
_AGENTS_INTERVAL_S = 2.0
_STORE_READER = "store"
_SERIES_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True)
class App:
    """All organs of one process."""

    settings: Settings
    role: Role
    clock: Clock
    entropy: Entropy
    telemetry: Telemetry
    runs: Runs
    warden: Warden
    vault: Vault
    readers: tuple[Reader, ...]
    desk: Desk
    version: str
    calls: PersonCalls
    """Takes tool calls that people make by hand."""
    launch: Callable[[], Awaitable[None]]
    """Let this process execute runs; twice is once."""
    desk_of_agents: AgentDesk | None = None
    """None: it was opened without agents."""
    untaken: list[Alert] = field(default_factory=list)
    """What the detector saw and the journal could not take yet: the detector says everything once."""

    @property
    def agents(self) -> AgentDesk:
        """Who answers questions; only where the app was opened with agents."""
        assert self.desk_of_agents is not None, "open the app with agents"
        return self.desk_of_agents

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

    async def watch_forever(self) -> None:
        """Run the loops of a server until cancelled; one that fails says so and goes on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_loop("store", self._keep_store, interval_s=_STORE_RETRY_S))
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


class Vault:
    """The telemetry store and what lives on it, opened when first needed."""

    def __init__(self, settings: Settings, *, role: Role, clock: Clock, entropy: Entropy) -> None:
        self._settings = settings
        self._role = role
        self._clock = clock
        self._entropy = entropy
        self._opening = asyncio.Lock()
        self._failure: tuple[float, QuellError] | None = None
        self.on_open: Callable[[], None] = lambda: None
        self.firing: Callable[[], Awaitable[Sequence[Alert]]] = _none_firing
        self.store: Store | None = None
        self.reader: ClickHouseReader | None = None
        self.receiver: Receiver | None = None
        self.detector: Detector | None = None

    async def open(self) -> Store:
        """Open the store once. Raises StoreError, ConfigError or StateHeldError, at once again for a while after it failed."""
        async with self._opening:
            if self.store is not None:
                return self.store
            now = asyncio.get_running_loop().time()
            if self._failure is not None and now - self._failure[0] < _STORE_RETRY_S / 2:
                raise self._failure[1]
            try:
                self.store = await self._build()
            except QuellError as error:
                self._failure = (now, error)
                raise
            self.on_open()
            return self.store

    async def _build(self) -> Store:
        # numpy and all that reads telemetry are loaded when some is read: who asks an agent waits for neither.
        from quell.signals import ClickHouseReader, Detector, Receiver, Store  # noqa: PLC0415

        settings = self._settings
        async with AsyncExitStack() as undo:
            store = await Store.open(settings.store, state_dir=settings.state_dir, clock=self._clock)
            undo.push_async_callback(store.close)
            if self._role == "serve":
                receiver = await Receiver.open(
                    store,
                    state_dir=settings.state_dir,
                    clock=self._clock,
                    entropy=self._entropy,
                    body_max_bytes=int(settings.server.body_max_mb * 1024 * 1024),
                )
                undo.push_async_callback(receiver.close)
                known = [alert for alert in await self.firing() if alert.source == "detector"]
                self.detector = Detector(store.client, settings=settings.detection, entropy=self._entropy, known=known)
                self.receiver = receiver
            self.reader = ClickHouseReader(store.client, name=_STORE_READER)
            undo.pop_all()
        return store

    async def take(self, signal: Literal["logs", "traces", "metrics"], body: bytes) -> None:
        """Store one OTLP payload at once. Raises StoreError."""
        if self.store is None:
            raise StoreError("the telemetry store is not open")
        await self.store.take(signal, body)

    async def open_reader(self) -> ClickHouseReader:
        """Open the store and return its reader. Raises as `open` does."""
        await self.open()
        assert self.reader is not None, "an open store has its reader"
        return self.reader

    async def close(self) -> None:
        """Close what was opened, in reverse order."""
        if self.receiver is not None:
            await self.receiver.close()
        if self.store is not None:
            await self.store.close()


async def _none_firing() -> Sequence[Alert]:
    return ()


class StoreReader:
    """Asks the telemetry store, which is opened at the first question; a store that cannot be opened is a Gap."""

    name = _STORE_READER

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question."""
        try:
            reader = await self._vault.open_reader()
        except QuellError as error:
            detail = f"the telemetry store cannot be used: {error}"
            return Gap(question=question.kind, source=self.name, query="", reason="failed", detail=detail)
        return await reader.ask(question, timeout_s=timeout_s)

    async def check(self) -> list[str]:
        """Return what keeps the store from answering."""
        try:
            reader = await self._vault.open_reader()
        except QuellError as error:
            return [f"{error} ({error.hint})" if error.hint else str(error)]
        return await reader.check()


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
        servers: Mapping[str, Mapping[str, str]] = {}
        if agents:
            settings = with_secrets_of(capped(settings, agents), env=env)
            settings, servers = merged(settings, agents)
        telling, runs, redactor = await _ground(stack, settings, role=role, clock=clock, entropy=entropy, env=env)
        warden = Warden(runs, settings, clock=clock, entropy=entropy, env=env, redactor=redactor)
        vault = Vault(settings, role=role, clock=clock, entropy=entropy)
        _end_after_runs(stack, warden, vault)
        talking = None
        if agents is not None:
            talking = _agents_of(stack, agents, servers, warden=warden, clock=clock, entropy=entropy, env=env)
        readers = tuple(CleanReader(each, redactor=redactor) for each in _readers(settings, vault, stack))
        _end_first(stack, runs, telling)
        launch = _once(runs.launch)
        ready = launch if role == "command" else None
        desk = await asyncio.to_thread(
            _desk_of, settings, vault, readers, runs=runs, clock=clock, entropy=entropy, ready=ready, redactor=redactor
        )
        warden.builtin = _senses_of(
            warden, settings, desk=desk, runs=runs, readers=readers, clock=clock, agents=talking
        )
        warden.inventory = desk.inventory
        app = App(
            settings=settings,
            role=role,
            clock=clock,
            entropy=entropy,
            telemetry=telling,
            runs=runs,
            warden=warden,
            vault=vault,
            readers=readers,
            desk=desk,
            version=version_of(settings),
            desk_of_agents=talking,
            calls=PersonCalls(warden),
            launch=launch,
        )
        await _start(app)
        yield app


def _desk_of(
    settings: Settings,
    vault: Vault,
    readers: Sequence[Reader],
    *,
    runs: Runs,
    clock: Clock,
    entropy: Entropy,
    ready: Callable[[], Awaitable[None]] | None,
    redactor: Redactor,
) -> Desk:
    """Open the desk of incidents; it blocks."""
    desk = Desk(
        runs=runs,
        readers=readers,
        settings=settings.investigation,
        clock=clock,
        entropy=entropy,
        curves=_curves_of(vault),
        begins_at=_extent_of(vault),
        ready=ready,
        clean=redactor.text,
    )
    vault.firing = desk.firing
    return desk


def _agents_of(
    stack: AsyncExitStack,
    agents: Sequence[AgentSettings],
    servers: Mapping[str, Mapping[str, str]],
    *,
    warden: Warden,
    clock: Clock,
    entropy: Entropy,
    env: Mapping[str, str],
) -> AgentDesk:
    """Open the desk of the agents; its models are closed when no run uses them any more."""
    from quell.app._agents import AgentDesk  # noqa: PLC0415 - a command that asks no agent needs no model

    for agent in agents:
        warden.redactor.hold_all(f"agents.{agent.id}", agent)
    desk = AgentDesk(agents, warden=warden, clock=clock, entropy=entropy, env=env, servers=servers)
    warden.routes, warden.headers_of = routes_of(warden.settings, agents), desk.headers_of
    stack.push_async_callback(_closed, "agents", desk.close)
    return desk


def _senses_of(
    warden: Warden,
    settings: Settings,
    *,
    desk: Desk,
    runs: Runs,
    readers: Sequence[Reader],
    clock: Clock,
    agents: AgentDesk | None,
) -> Callable[[], Iterable[tuple[Tool, LocalHand]]]:
    """Return what makes the senses when the authority is opened: they see with the desk and the readers."""

    def hands() -> Iterable[tuple[Tool, LocalHand]]:
        from quell.app._senses import Senses, desired_of  # noqa: PLC0415 - a command that decides nothing needs none

        senses = Senses(
            desk=desk,
            runs=runs,
            readers=readers,
            settings=settings.investigation,
            clock=clock,
            desired=desired_of(lambda: warden.authority, environment=settings.governance.environment),
        )
        return [*senses.hands(), *(agents.hands() if agents is not None else ())]

    return hands


def _end_after_runs(stack: AsyncExitStack, warden: Warden, vault: Vault) -> None:
    """Have what runs rest on closed after them: a call in flight whose server is taken away ends as nobody knows."""
    stack.push_async_callback(_closed, "authority", warden.close)
    stack.push_async_callback(_closed, "store", vault.close)


async def _ground(
    stack: AsyncExitStack, settings: Settings, *, role: Role, clock: Clock, entropy: Entropy, env: Mapping[str, str]
) -> tuple[Telemetry, Runs, Redactor]:
    """Open what everything else speaks and writes through, and what keeps secrets out of it, one for the process."""
    instance = f"{os.uname().nodename}-{os.getpid()}"
    redactor = redactor_of(settings, env=env)
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


def _once(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return what does `work` the first time it is asked, and nothing after that."""
    turn = asyncio.Lock()
    done: list[bool] = []

    async def once() -> None:
        async with turn:
            if not done:
                await work()
                done.append(True)

    return once


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


def _curves_of(vault: Vault) -> Callable[[CurveAsk], Awaitable[tuple[Curve, ...]]]:
    """Return what draws the charts' curves from the store's rollups."""

    async def curves(ask: CurveAsk) -> tuple[Curve, ...]:
        reader = await vault.open_reader()
        drawn = await reader.series(
            services=ask.services, edges=ask.edges, metrics=ask.metrics, window=ask.window, timeout_s=_SERIES_TIMEOUT_S
        )
        return tuple(Curve(subject=one.subject, measure=one.measure, unit=one.unit, points=one.points) for one in drawn)

    return curves


def _extent_of(vault: Vault) -> Callable[[Window], Awaitable[datetime | None]]:
    """Return what tells since when there is telemetry."""

    async def begins_at(window: Window) -> datetime | None:
        reader = await vault.open_reader()
        return await reader.begins_at(window, timeout_s=_SERIES_TIMEOUT_S)

    return begins_at


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
