"""The telemetry store as its users see it: opened, supervised, asked and closed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from quell.config import StoreSettings
from quell.domain import ConfigError, StateHeldError, StoreError
from quell.signals._client import Endpoint, StoreClient
from quell.signals._schema import Retention, statements_of
from quell.signals._schema_otlp import SIGNALS, insert_settings, receivers_of

_EXIT_HELD = 75
_EXIT_FULL = 73
_OPEN_S = 40.0
_PING_S = 2.0
_TICK_S = 2.0
_PINGS_MISSED_MAX = 5
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0, 5.0, 10.0)
_LEAVE_S = 20.0
_LOG_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """How the store is."""

    kind: Literal["embedded", "remote"]
    state: Literal["ready", "restarting", "unreachable", "closed"]
    url: str
    pid: int
    """Of the owner; 0 for a remote store."""
    version: str
    rows: int
    """In the exporter's tables."""
    parts: int
    disk_bytes: int
    memory_bytes: int
    """Resident size of the owner; 0 for a remote store."""
    restarts: int
    """How often this process had to bring the owner back."""
    failure: str
    """The last thing that went wrong; empty when nothing did."""


class _Announced(msgspec.Struct):
    pid: int
    url: str
    token: str


class _Totals(msgspec.Struct):
    version: str
    rows: int
    parts: int
    bytes: int


class Store:
    """The one telemetry store of a state directory, or an existing ClickHouse."""

    def __init__(self, settings: StoreSettings, *, state_dir: Path, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._state_dir = state_dir.absolute()
        self._clock = clock
        self._wake = asyncio.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._state: Literal["ready", "restarting", "unreachable", "closed"] = "restarting"
        self._held = False
        self._restarts = 0
        self._failure = ""
        self._supervisor: asyncio.Task[None] | None = None
        endpoint = Endpoint(
            url=settings.url.rstrip("/"),
            user=settings.user,
            password=settings.password.reveal(),
            database=settings.database,
        )
        self.client = StoreClient(endpoint, client_id=secrets.token_hex(8), failed=self._wake.set)

    @classmethod
    async def open(cls, settings: StoreSettings, *, state_dir: Path, clock: Callable[[], datetime]) -> Store:
        """Attach to the live owner of the state directory, spawn one, or connect to the ClickHouse of the settings.

        Raises ConfigError when the embedded engine is not installed, StoreError when the store does not come up.
        """
        store = cls(settings, state_dir=state_dir, clock=clock)
        try:
            await (store._connect() if settings.url else store._ensure())
            await store._learn_schema()
        except BaseException:
            await store.close()
            raise
        store._state = "ready"
        store._supervisor = asyncio.get_running_loop().create_task(store._supervise())
        return store

    @property
    def embedded(self) -> bool:
        """Whether the engine is ours."""
        return not self._settings.url

    @property
    def receives(self) -> bool:
        """Whether raw OTLP can be written: our decoding views exist."""
        return "quell_raw_logs" in self.client.schema

    async def answers(self) -> bool:
        """Tell whether the store answers us, or would if it had a hand free: one that is busy is no dead one."""
        return await self.client.ping(timeout_s=_PING_S) or (
            self.embedded and await self.client.busy(timeout_s=_PING_S)
        )

    async def take(self, signal: Literal["logs", "traces", "metrics"], payload: bytes) -> None:
        """Store one OTLP payload without a spool, for a sender that can bear to lose it.

        Raises StoreError when it was not stored, or when our decoding views are not there.
        """
        if not self.receives:
            raise StoreError("the telemetry store has no tables for raw OTLP", hint="set store.create_tables to always")
        await self.client.insert(
            SIGNALS[signal].raw_table,
            payload,
            input_format="ProtobufSingle",
            settings=insert_settings(signal),
            timeout_s=self._settings.query_timeout_s,
        )

    async def _learn_schema(self) -> None:
        """Describe the tables; an owner that ends in this very moment is brought back, not reported."""
        deadline = time.monotonic() + _OPEN_S
        while True:
            try:
                await self.client.load_schema(timeout_s=self._settings.query_timeout_s)
            except StoreError as error:
                is_gone = error.code is None and not await self.client.ping(timeout_s=_PING_S)
                if not self.embedded or not is_gone or time.monotonic() > deadline:
                    raise
                await self._ensure()
            else:
                return

    async def _connect(self) -> None:
        await self.client.rows(
            "SELECT version() AS version, 0 AS rows, 0 AS parts, 0 AS bytes",
            row=_Totals,
            timeout_s=self._settings.query_timeout_s,
        )
        if self._settings.create_tables == "always":
            retention = Retention(
                raw_hours=self._settings.retention_hours, rollup_days=self._settings.rollup_retention_days
            )
            for statement in (*statements_of(retention), *receivers_of()):
                await self.client.command(statement, timeout_s=60.0)

    async def _ensure(self) -> None:
        """Attach or spawn, until a live owner answers or time is up."""
        if importlib.util.find_spec("chdb") is None:
            raise ConfigError(
                "the embedded telemetry store is not installed",
                hint="pip install 'quell[embedded]', or set store.url to an existing ClickHouse",
            )
        deadline = time.monotonic() + _OPEN_S
        while time.monotonic() < deadline:
            if await self._attach():
                return
            if self._child is None:
                self._child = self._start()
            elif self._child.poll() is not None:
                self._bury(self._child)
            await asyncio.sleep(0.05)
        if self._held:
            raise StateHeldError(
                f"another telemetry store holds {self._state_dir} and does not answer",
                hint="end that process, or use another state_dir",
            )
        raise StoreError(
            f"the telemetry store did not start within {_OPEN_S:g} s", hint=f"see {self._state_dir / 'store.log'}"
        )

    async def _attach(self) -> bool:
        try:
            announced = msgspec.json.decode((self._state_dir / "store.json").read_bytes(), type=_Announced)
        except (OSError, msgspec.DecodeError):
            return False
        if not _is_loopback(announced.url):
            return False
        self.client.endpoint = Endpoint(url=announced.url, password=announced.token)
        if not await self.answers():
            return False
        self._pid = announced.pid
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        """Spawn an owner. Raises StoreError when the world does not let us."""
        try:
            return self._spawn()
        except OSError as error:
            raise StoreError(
                f"the telemetry store cannot be started: {error}",
                hint=f"see that {self._state_dir} can be written and has room",
            ) from error

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        limits = {
            "memory_max_mb": self._settings.memory_max_mb,
            "threads_max": self._settings.threads_max,
            "query_timeout_s": self._settings.query_timeout_s,
            "retention_hours": self._settings.retention_hours,
            "rollup_retention_days": self._settings.rollup_retention_days,
            "disk_max_mb": self._settings.disk_max_mb,
        }
        command = [
            sys.executable,
            "-P",
            "-m",
            "quell.signals._owner",
            "--state-dir",
            str(self._state_dir),
            "--limits",
            msgspec.json.encode(limits).decode(),
        ]
        path = self._state_dir / "store.log"
        if path.exists() and path.stat().st_size > _LOG_MAX_BYTES:
            path.replace(self._state_dir / "store.log.1")
        path.touch(mode=0o600)
        environment = {**os.environ, "TZ": "UTC", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with path.open("ab") as log:
            # Its own process group: Ctrl-C is for us to hear. The pipe on its standard input tells it of our end.
            # Its working directory is ours, because the engine keeps a cache of formats in whatever directory it is in.
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0,
                cwd=self._state_dir,
            )

    def _bury(self, child: subprocess.Popen[bytes]) -> None:
        """Take note of a child that ended. Raises StoreError when another try is of no use."""
        code = child.returncode
        _close_pipe(child)
        self._child = None
        self._held = code == _EXIT_HELD
        if code == _EXIT_FULL:
            raise StoreError(
                f"the disk that holds {self._state_dir} is full: the telemetry store has no room to start",
                hint="free disk space, or use another state_dir",
            )
        if code > 0 and not self._held:
            raise StoreError(
                f"the telemetry store ended with code {code}: {_last_line(self._state_dir / 'store.log')}",
                hint=f"see {self._state_dir / 'store.log'}",
            )

    async def _supervise(self) -> None:
        """Watch the store, and bring the embedded one back when it is gone."""
        missed = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _TICK_S)
            self._wake.clear()
            gone = self._child is not None and self._child.poll() is not None
            if not gone and await self.answers():
                self._state, missed = "ready", 0
                continue
            self._wake.clear()
            missed += 1
            if not self.embedded:
                self._state, self._failure = "unreachable", "no answer"
            elif gone or not psutil.pid_exists(self._pid) or missed >= _PINGS_MISSED_MAX:
                await self._restart()
                missed = 0

    async def _restart(self) -> None:
        self._state = "restarting"
        self._kill_hung()
        for delay_s in (*_BACKOFF_S, *[_BACKOFF_S[-1]] * 1000):
            try:
                await self._ensure()
            except (StoreError, StateHeldError) as error:
                self._failure = str(error)
                await asyncio.sleep(delay_s)
            else:
                self._restarts += 1
                self._state = "ready"
                return

    def _kill_hung(self) -> None:
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            child.kill()
            child.wait()
        self._failure = f"the store process ended with code {child.returncode}"
        _close_pipe(child)
        self._child = None

    async def status(self) -> StoreStatus:
        """Look at the store; never raises."""
        totals = _Totals(version="", rows=0, parts=0, bytes=0)
        state = self._state
        sql = """
SELECT version() AS version, sumIf(rows, startsWith(table, 'otel_')) AS rows, count() AS parts, sum(bytes_on_disk) AS bytes
FROM system.parts WHERE active AND database = currentDatabase()"""
        if state != "closed":
            try:
                totals = (await self.client.rows(sql, row=_Totals, timeout_s=_PING_S))[0]
            except StoreError as error:
                self._failure = str(error)
                state = "restarting" if self.embedded else "unreachable"
        return StoreStatus(
            kind="embedded" if self.embedded else "remote",
            state=state,
            url=self.client.endpoint.url,
            pid=self._pid,
            version=totals.version,
            rows=totals.rows,
            parts=totals.parts,
            disk_bytes=totals.bytes,
            memory_bytes=_resident(self._pid),
            restarts=self._restarts,
            failure=self._failure,
        )

    async def close(self) -> None:
        """Let the owner leave when nobody else uses it, and wait until it has."""
        self._state = "closed"
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        if self.embedded and self._pid:
            leaves = await self.client.close_store(timeout_s=_PING_S)
            if self._child is not None and leaves:
                await asyncio.to_thread(_await_end, self._child)
            elif leaves:
                await asyncio.to_thread(_await_stranger, self._pid)
        if self._child is not None:
            _close_pipe(self._child)  # an owner that others use lives on until they are gone
            self._child.poll()
            _DETACHED.append(self._child)
            self._child = None
        await self.client.aclose()


_DETACHED: list[subprocess.Popen[bytes]] = []
"""Children that live on for others; kept so that the interpreter reaps them in peace."""


def _await_end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _await_stranger(pid: int) -> None:
    """Wait for an owner that another process had started."""
    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).wait(_LEAVE_S)


def _close_pipe(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _is_loopback(url: str) -> bool:
    return url.startswith("http://127.0.0.1:")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1][:300] if lines else "no word"


def _resident(pid: int) -> int:
    if not pid:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
