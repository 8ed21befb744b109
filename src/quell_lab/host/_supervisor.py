"""The platform: it starts the shop, watches every process, restarts what dies, and deploys."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from quell_lab._plan import DATABASE, PLATFORM, SERVICES, Layout, ServiceSpec, edges
from quell_lab._watched import Document, write_document
from quell_lab.host._instance import Instance, bind_listener
from quell_lab.host._poller import Poller
from quell_lab.host._postgres import Postgres
from quell_lab.host._repository import Repository, Revision
from quell_lab.host._worker import Worker
from quell_lab.kit import PeerSpec, ProcessSpec, Signals, open_signals

CERTIFICATES = Path(__file__).parent.parent / "certs"
STABLE_AFTER_S = 10.0
BACKOFF_MAX_S = 5.0
GIVE_UP_S = 3.0
MEMORY_LOOK_S = 0.4
QUERY_OPTIONS = "-c statement_timeout=2500 -c lock_timeout=1500"


@dataclass(slots=True)
class Slot:
    """One service as the platform keeps it."""

    spec: ServiceSpec
    version: str
    release: Path
    wanted: bool = True
    current: Instance | None = None
    restarts: int = 0
    quick_deaths: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Supervisor:
    """Everything that runs in the shop, and the means to change it."""

    def __init__(self, layout: Layout, *, endpoint: str, rate_per_s: float, seed: int) -> None:
        self.layout = layout
        self.seed = seed
        self.ports: dict[str, int] = {}
        self.slots: dict[str, Slot] = {}
        self._endpoint = endpoint
        self._rate_per_s = rate_per_s
        self._instances = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._host = socket.gethostname()
        self._secret = os.urandom(16).hex()
        self._network: Worker | None = None
        self._users: Worker | None = None
        shutil.rmtree(layout.repository, ignore_errors=True)
        for name in ("log", "checkouts", "settings", "conditions", "spool", "certificates"):
            shutil.rmtree(layout.root / name, ignore_errors=True)
            (layout.root / name).mkdir(parents=True)
        self.postgres = Postgres(layout.log(DATABASE))
        self._platform = self._signals(PLATFORM)
        self._exporter = self._signals(DATABASE)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start database, network, services and users; return when all of them are ready."""
        network, users, _, self.repository = await asyncio.gather(
            Worker.start("quell_lab.host._proxy", log=self.layout.log("network")),
            Worker.start("quell_lab.host._load", log=self.layout.log("users")),
            self.postgres.create(),
            asyncio.to_thread(self._open_repository),
        )
        self._network, self._users = network, users
        self.ports = await network.ask([edge.name for edge in edges()])
        await self.lead_database(open_edges=True)
        write_document(self.layout.flags, {})
        await asyncio.gather(*(self._first_start(spec) for spec in SERVICES.values()))
        self._spawn(self._watch_memory())
        self._spawn(Poller(self.postgres, self._exporter).watch())
        self._write_targets()
        await users.tell(
            {
                "port": self.ports["users->gateway"],
                "rate_per_s": self._rate_per_s,
                "seed": self.seed,
                "figures": str(self.layout.load_figures),
            },
        )

    async def close(self) -> None:
        """Stop everything."""
        self._closing = True
        if self._users is not None:
            await self._users.stop()
        for task in list(self._tasks):
            task.cancel()
        stops = [slot.current.stop(reason="stopped") for slot in self.slots.values() if slot.current is not None]
        await asyncio.gather(*stops, return_exceptions=True)
        if self._network is not None:
            await self._network.stop()
        await self.postgres.destroy()
        await asyncio.to_thread(self._platform.close)
        await asyncio.to_thread(self._exporter.close)

    def status(self) -> Document:
        """Return what runs where."""
        return {
            "services": {
                name: {
                    "version": slot.version,
                    "pid": slot.current.pid if slot.current else None,
                    "ready": bool(slot.current and slot.current.ready),
                    "restarts": slot.restarts,
                    "url": self._url(slot),
                }
                for name, slot in self.slots.items()
            },
            "postgres": {"pid": self.postgres.pid, "port": self.postgres.address[1]},
            "edges": self.ports,
            "endpoint": self._endpoint,
            "load": self._load_figures(),
        }

    # -- what faults and people change --------------------------------------------------------------------------

    async def wire(self, edge: str, **fields: object) -> None:
        """Change the wire of one edge."""
        assert self._network is not None
        await self._network.ask({edge: fields})

    async def load(self, **fields: object) -> None:
        """Change what users want."""
        assert self._users is not None
        await self._users.tell(fields)

    def set_flag(self, key: str, variant: str) -> None:
        """Write one feature flag into the file that services watch."""
        flags = json.loads(self.layout.flags.read_text())
        write_document(self.layout.flags, {**flags, key: variant})

    def set_conditions(self, service: str, **conditions: float) -> None:
        """Say what the machine below a service is like; nothing given means healthy."""
        write_document(self.layout.conditions(service), dict(conditions))

    def use_certificate(self, service: str, name: str) -> None:
        """Put a certificate where a service reads it."""
        target = self.layout.certificate(service)
        fresh = target.with_suffix(".new")
        shutil.copyfile(CERTIFICATES / f"{name}.pem", fresh)
        fresh.replace(target)

    async def stop_service(self, service: str) -> None:
        """Stop a service and leave it stopped."""
        slot = self.slots[service]
        slot.wanted = False
        if slot.current is not None:
            await slot.current.stop(reason="stopped")

    async def start_service(self, service: str) -> None:
        """Want a service again, and wait until it runs."""
        slot = self.slots[service]
        slot.wanted, slot.quick_deaths = True, 0
        if slot.current is None:
            await self._launch(slot)

    async def stop_database(self) -> None:
        """Stop the database and leave it stopped."""
        await self.lead_database(open_edges=False)
        code = await self.postgres.stop()
        self._exited(DATABASE, code=code, reason="stopped", pid=0)

    async def start_database(self) -> None:
        """Start the database again."""
        await self.postgres.start()
        await self.lead_database(open_edges=True)
        self._platform.report.event("process.started", f"{DATABASE} started", {"service.name": DATABASE})

    async def lead_database(self, *, open_edges: bool) -> None:
        """Open or close every edge to the database."""
        assert self._network is not None
        upstream = list(self.postgres.address) if open_edges else None
        await self._network.ask({edge.name: {"upstream": upstream} for edge in edges() if edge.callee == DATABASE})

    async def deploy(self, service: str, revision: Revision) -> bool:
        """Replace a service by a revision, without dropping requests; tell whether it became ready."""
        slot = self.slots[service]
        previous, slot_release = slot.version, slot.release
        slot.release = await asyncio.to_thread(self._check_out, service, revision.tag)
        slot.version = revision.tag
        old = await self._replace(slot)
        if old is slot.current:
            slot.version, slot.release = previous, slot_release
            return False
        self._platform.report.event(
            "deployment.finished",
            f"{service} {revision.tag} deployed: {revision.message}",
            {
                "service.name": service,
                "service.version": revision.tag,
                "service.version.previous": previous,
                "vcs.ref.head.revision": revision.commit,
            },
        )
        await self._retire(old)
        return True

    async def replace_process(self, service: str) -> None:
        """Replace the process of a service by a fresh one of the same release."""
        slot = self.slots[service]
        old = await self._replace(slot)
        if old is not slot.current:
            await self._retire(old)

    async def all_ready(self, *, timeout_s: float) -> None:
        """Wait until every wanted service serves."""
        async with asyncio.timeout(timeout_s):
            while not all(slot.current and slot.current.ready for slot in self.slots.values() if slot.wanted):  # noqa: ASYNC110 - bounded above
                await asyncio.sleep(0.1)

    async def execute(self, statement: str) -> None:
        """Run one SQL statement in the database of the shop, beside the network."""
        connection = await psycopg.AsyncConnection.connect(self.postgres.conninfo(), autocommit=True)
        async with connection:
            await connection.execute(statement.encode())

    async def configure(self, service: str, revision: Revision) -> None:
        """Apply the settings of a revision to a running service."""
        await asyncio.to_thread(self._check_out, service, revision.tag)

    def touch_settings(self, service: str) -> None:
        """Write the settings of a service again, unchanged."""
        path = self.layout.settings(service)
        write_document(path, {**json.loads(path.read_text()), "applied": time.monotonic()})

    # -- inside -------------------------------------------------------------------------------------------------

    def _signals(self, service: str) -> Signals:
        return open_signals(
            service=service,
            version="1",
            instance=f"{service}-0",
            host=self._host,
            endpoint=self._endpoint,
        )

    def _open_repository(self) -> Repository:
        return Repository(self.layout.repository)

    def _check_out(self, service: str, tag: str) -> Path:
        release, settings = self.repository.check_out(service, tag, self.layout.checkout(service, tag))
        write_document(self.layout.settings(service), {"revision": tag, "values": settings})
        return release

    async def _first_start(self, spec: ServiceSpec) -> None:
        tag = self.repository.main
        release = await asyncio.to_thread(self._check_out, spec.name, tag)
        self.set_conditions(spec.name)
        if spec.tls:
            self.use_certificate(spec.name, "valid")
        slot = Slot(spec=spec, version=tag, release=release)
        self.slots[spec.name] = slot
        await self._launch(slot)
        if slot.current is None or not slot.current.ready:
            raise OSError(f"{spec.name} did not start, see {self.layout.log(spec.name)}")

    async def _launch(self, slot: Slot) -> None:
        instance = await self._spawn_instance(slot)
        slot.current = instance
        if await instance.becomes_ready() and slot.current is instance:
            await self._lead(slot)
        elif not await instance.ends_within(GIVE_UP_S):
            # What neither serves nor ends would hold its place for ever.
            instance.kill(reason="not_ready")

    async def _replace(self, slot: Slot) -> Instance | None:
        """Put a fresh process in the place of the current one, which is returned still running."""
        old = slot.current
        fresh = await self._spawn_instance(slot)
        if not await fresh.becomes_ready():
            if not await fresh.ends_within(GIVE_UP_S):
                fresh.kill(reason="not_ready")
            return old
        slot.current = fresh
        slot.wanted = True
        await self._lead(slot)
        return old

    async def _retire(self, old: Instance | None) -> None:
        if old is not None:
            # Give the callers a moment to finish what is under way.
            await asyncio.sleep(0.3)
            await old.stop(reason="stopped")

    async def _spawn_instance(self, slot: Slot) -> Instance:
        self._instances += 1
        listener = bind_listener()
        spec = self._process_spec(slot, listener, f"{slot.spec.name}-{os.urandom(3).hex()}")
        instance = await Instance.start(spec, listener=listener, log=self.layout.log(slot.spec.name))
        self._platform.report.event(
            "process.started",
            f"{slot.spec.name} started as {spec.instance}",
            {"service.name": slot.spec.name, "service.instance.id": spec.instance},
        )
        self._spawn(self._watch(slot, instance))
        return instance

    async def _watch(self, slot: Slot, instance: Instance) -> None:
        code = await instance.ends()
        if self._closing:
            return
        self._exited(slot.spec.name, code=code, reason=instance.reason, pid=instance.pid)
        if slot.current is not instance:
            return
        slot.current = None
        await self._lead(slot)
        if not slot.wanted:
            return
        lived_s = time.monotonic() - instance.started_s
        slot.quick_deaths = 1 if lived_s > STABLE_AFTER_S else slot.quick_deaths + 1
        slot.restarts += 1
        await asyncio.sleep(min(0.5 * 2 ** (slot.quick_deaths - 1), BACKOFF_MAX_S))
        if slot.wanted and slot.current is None and not self._closing:
            await self._launch(slot)

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_LOOK_S)
            for slot in self.slots.values():
                instance = slot.current
                if instance is not None and instance.resident() > slot.spec.memory_limit_mb * 1_048_576:
                    instance.kill(reason="oom_killed")

    async def _lead(self, slot: Slot) -> None:
        assert self._network is not None
        instance = slot.current
        upstream = list(instance.address) if instance is not None and instance.ready else None
        callers = [edge.name for edge in edges() if edge.callee == slot.spec.name]
        if callers:
            await self._network.ask({name: {"upstream": upstream} for name in callers})
        self._write_targets()

    def _exited(self, service: str, *, code: int, reason: str, pid: int) -> None:
        self._platform.report.event(
            "process.exited",
            f"{service} exited with code {code}: {reason}",
            {
                "service.name": service,
                "process.exit.code": code,
                "process.exit.reason": reason,
                "process.pid": pid,
            },
        )

    def _process_spec(self, slot: Slot, listener: socket.socket, instance: str) -> ProcessSpec:
        spec, layout = slot.spec, self.layout
        edge = f"{spec.name}->{DATABASE}"
        address = ("127.0.0.1", self.ports.get(edge, 0))
        return ProcessSpec(
            service=spec.name,
            version=slot.version,
            instance=instance,
            host=self._host,
            endpoint=self._endpoint,
            release=str(slot.release),
            descriptor=listener.fileno(),
            peers={
                callee: PeerSpec(host="127.0.0.1", port=self.ports[f"{spec.name}->{callee}"], tls=SERVICES[callee].tls)
                for callee in spec.callees
            },
            conninfo=self.postgres.conninfo(address=address, options=QUERY_OPTIONS) if spec.uses_database else "",
            database_address=address,
            pool_size=spec.pool_size,
            flags=str(layout.flags),
            settings=str(layout.settings(spec.name)),
            conditions=str(layout.conditions(spec.name)),
            certificate=str(layout.certificate(spec.name)) if spec.tls else "",
            certificate_key=str(CERTIFICATES / "server.key"),
            authority=str(CERTIFICATES / "ca.pem"),
            token_secret=self._secret,
            spool=str(layout.spool(spec.name)),
            spool_limit_kb=spec.spool_limit_kb,
            memory_limit_mb=spec.memory_limit_mb,
            descriptor_limit=spec.descriptor_limit,
        )

    def _spawn(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._closing:
            # A platform that cannot watch is worse than none: end, and take every child along.
            self._closing = True
            asyncio.get_running_loop().call_exception_handler({"message": "the platform failed", "exception": error})
            os.kill(os.getpid(), signal.SIGTERM)

    def _url(self, slot: Slot) -> str:
        if slot.current is None:
            return ""
        host, port = slot.current.address
        return f"{'https' if slot.spec.tls else 'http'}://{host}:{port}"

    def _write_targets(self) -> None:
        """Write where Prometheus can scrape /metrics."""
        groups = [
            {
                "targets": [self._url(slot).split("//")[1]],
                "labels": {"service": name, "__scheme__": self._url(slot).split(":")[0]},
            }
            for name, slot in self.slots.items()
            if slot.current is not None
        ]
        fresh = self.layout.targets.with_suffix(".new")
        fresh.write_text(json.dumps(groups, indent=1))
        fresh.replace(self.layout.targets)

    def _load_figures(self) -> Document:
        try:
            found: Document = json.loads(self.layout.load_figures.read_text())
        except (OSError, ValueError):
            return {}
        return found
