"""The store owner: the one process that holds the embedded engine of a state directory.

Started as `python -m quell.signals._owner`; speaks ClickHouse HTTP on loopback to whoever has the token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import msgspec

from quell.signals._owner_engine import NOT_ENOUGH_SPACE, Engine, EngineError, Limits, drop_schemas
from quell.signals._owner_http import Connection, Desk
from quell.signals._owner_upkeep import Upkeep
from quell.signals._schema import Retention, statements_of, tables_of
from quell.signals._schema_otlp import receivers_of

EXIT_HELD = 75
"""Exit code when another live owner holds the state directory."""
EXIT_FULL = 73
"""Exit code when the disk has no room for the store to start."""
IDLE_S = 10.0
"""An owner without a parent leaves when nobody has asked for this long."""
_LOCK_WAIT_S = 8.0
_DRAIN_S = 15.0


def lock(path: Path) -> int:
    """Take the exclusive lock of the store; wait a little for an owner that is closing. Returns -1 when it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return -1
            time.sleep(0.1)
        else:
            return descriptor


def lay_tables(engine: Engine, *, limits: Limits, mark: Path) -> None:
    """Create what is missing; rebuild views and retention when their text differs from what `mark` remembers."""
    retention = Retention(raw_hours=limits.retention_hours, rollup_days=limits.rollup_retention_days)
    statements = (*statements_of(retention), *receivers_of())
    digest = hashlib.sha256("\n".join(statements).encode()).hexdigest()
    here = "name FROM system.tables WHERE database = currentDatabase()"
    laid = len(engine.run(f"SELECT {here} AND (startsWith(name, 'otel_') OR startsWith(name, 'quell_'))").split())
    if laid >= len(statements) and mark.exists() and mark.read_bytes() == digest.encode():
        return
    mark.unlink(missing_ok=True)  # whoever is stopped half-way leaves nothing that says that all is laid
    names = engine.run(
        f"SELECT {here} AND (engine = 'MaterializedView' OR startsWith(name, 'quell_raw_')) ORDER BY engine = 'Null'"
    )
    for name in names.decode().split():
        engine.run(f"DROP TABLE IF EXISTS {name}")
    for statement in statements:
        engine.run(statement)
    for statement in tables_of(retention):
        table = statement.split("EXISTS ", 1)[1].split()[0]
        horizon = next(line for line in statement.splitlines() if line.startswith("TTL "))
        engine.run(f"ALTER TABLE {table} MODIFY {horizon} SETTINGS materialize_ttl_after_modify = 0")
    mark.write_text(digest)


class Owner:
    """Life of the owner process: ready, serving, leaving."""

    def __init__(self, state_dir: Path, *, limits: Limits) -> None:
        self._state_dir = state_dir
        self._limits = limits
        self._token = secrets.token_urlsafe(32)
        self._seen: dict[str, float] = {}
        self._last_seen = time.monotonic()
        self._parent_lives = True
        self._leave = asyncio.Event()
        self._connections: set[Connection] = set()

    async def run(self) -> None:
        """Serve until told to leave, or until nobody is left to serve."""
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        drop_schemas()
        engine = Engine(self._state_dir / "store", limits=self._limits)
        lay_tables(engine, limits=self._limits, mark=self._state_dir / "store.schema")
        upkeep = Upkeep(engine, limits=self._limits)
        desk = Desk(engine, token=self._token, seen=self._note, asked_to_close=self._may_close)
        server = await loop.create_server(lambda: Connection(desk, open_connections=self._connections), "127.0.0.1", 0)
        self._announce(server.sockets[0].getsockname()[1])
        upkeep.start()
        self._watch_parent(loop)
        watch = loop.create_task(self._watch_idle())
        await self._leave.wait()
        watch.cancel()
        (self._state_dir / "store.json").unlink(missing_ok=True)
        server.close()
        await asyncio.wait_for(asyncio.to_thread(self._close_engine, engine, upkeep), _DRAIN_S)
        await asyncio.sleep(0.05)  # answers of the last statements go out
        for connection in list(self._connections):
            connection.close()

    @staticmethod
    def _close_engine(engine: Engine, upkeep: Upkeep) -> None:
        upkeep.close()
        engine.close()

    def _note(self, client: str) -> None:
        self._last_seen = time.monotonic()
        if client:
            self._seen[client] = self._last_seen

    def _may_close(self, client: str) -> bool:
        """Leave now when the asking client is the only one; otherwise stay for the others."""
        self._seen.pop(client, None)
        recent = time.monotonic() - IDLE_S
        if any(seen > recent for seen in self._seen.values()):
            return False
        self._leave.set()
        return True

    def _announce(self, port: int) -> None:
        words = {"pid": os.getpid(), "url": f"http://127.0.0.1:{port}", "token": self._token}
        fresh = self._state_dir / f"store.json.{os.getpid()}"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(words, file)
        fresh.replace(self._state_dir / "store.json")

    def _watch_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        """The parent holds the other end of standard input; its end is the parent's end."""
        descriptor = sys.stdin.fileno()

        def readable() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                self._parent_lives = False

        try:
            loop.add_reader(descriptor, readable)
        except (OSError, ValueError):  # standard input is a file or closed: nobody to watch
            self._parent_lives = False

    async def _watch_idle(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if not self._parent_lives and time.monotonic() - self._last_seen > IDLE_S:
                self._leave.set()


def main() -> int:
    """Run the owner. Returns EXIT_HELD when another one lives, EXIT_FULL when the disk is full, 1 for any other failure."""
    parser = argparse.ArgumentParser(prog="quell.signals._owner")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--limits", required=True)
    arguments = parser.parse_args()
    limits = msgspec.json.decode(arguments.limits, type=Limits)
    state_dir: Path = arguments.state_dir.resolve()
    # The engine writes telemetry to files that everybody may read otherwise, in a directory that may be older than us.
    os.umask(0o077)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        if lock(state_dir / "store.lock") < 0:
            return EXIT_HELD
        (state_dir / "store.json").unlink(missing_ok=True)
        asyncio.run(Owner(state_dir, limits=limits).run())
    except Exception as error:  # noqa: BLE001 - the engine's threads would keep a half-dead owner, and its lock, for ever
        with contextlib.suppress(OSError):
            sys.stderr.write(f"store: {error!r}\n" if not isinstance(error, EngineError) else f"store: {error}\n")
        return EXIT_FULL if is_full(error) else 1
    return 0


def is_full(error: Exception) -> bool:
    """Tell whether an error says that the disk has no room."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return isinstance(error, EngineError) and (error.code == NOT_ENOUGH_SPACE or f"errno: {errno.ENOSPC}" in str(error))


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # The engine's own threads do not survive the interpreter's clean-up; everything is closed and on disk by now.
    os._exit(code)
