"""The journal's own way to its database: short transactions on sqlite3 or psycopg, and what their failures mean.

SQLAlchemy stands beside it (`_engine.py`) for DBOS and for the rooms above. Not here: a listing of runs would spend most
of its time on loading it, and a step most of its own in it.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, LiteralString, Protocol, TypeAlias, cast

from quell import telemetry
from quell.config import Secret
from quell.domain import ConfigError, JournalError
from quell.runs._holder import holder_of, named

Durability: TypeAlias = Literal["flushed", "written"]
"""`flushed` is on the disk when the transaction ends. `written` survives the death of the process but not of the
machine, and costs no flush: for what nothing else rests on."""

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
Value: TypeAlias = str | int | float | None
Told: TypeAlias = tuple[str, str, dict[str, object]]
"""An event that was appended: run, name and body."""

SQLITE_FILE = "quell.db"
BUSY_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 10
_UNIXEPOCH_SINCE = (3, 42)
_IDLE_MAX = 8
BOUND_TRANSACTIONS: LiteralString = "SET idle_in_transaction_session_timeout TO 10000"
"""A process that freezes in the middle of a transaction must not hold its locks for ever."""
_TRUSTED_S = 5.0
_SCHEMA_LOCK = 0x5155454C4C01
_NUMBER: dict[Dialect, str] = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
_NAMED = re.compile(r"(?<!:):([a-z_]+)")


class Row(SimpleNamespace):
    """One row, a column per attribute."""


class _Cursor(Protocol):
    rowcount: int

    def fetchall(self) -> list[Row]: ...


class _Raw(Protocol):
    """What sqlite3 and psycopg connections share, as far as it is used here."""

    def execute(self, sql: str, parameters: dict[str, Value], /) -> _Cursor: ...

    def rollback(self) -> None: ...

    def commit(self) -> None: ...

    def close(self) -> None: ...


class Connection:
    """One transaction; parameters are written `:name` in either dialect."""

    def __init__(self, raw: _Raw, *, dialect: Dialect) -> None:
        self._raw = raw
        self._dialect = dialect
        self.told: list[Told] = []
        """Events that were appended. Telemetry and followers hear of them once they are kept."""
        self._last: list[Callable[[], None]] = []

    def run(self, sql: str, /, **parameters: Value) -> int:
        """Execute a statement and return how many rows it touched."""
        return self._execute(sql, parameters).rowcount

    def all(self, sql: str, /, **parameters: Value) -> list[Row]:
        """Return every row."""
        return self._execute(sql, parameters).fetchall()

    def first(self, sql: str, /, **parameters: Value) -> Row | None:
        """Return the first row, if there is one."""
        rows = self.all(sql, **parameters)
        return rows[0] if rows else None

    def one(self, sql: str, /, **parameters: Value) -> Row:
        """Return the one row that must be there."""
        rows = self.all(sql, **parameters)
        assert len(rows) == 1, f"{len(rows)} rows instead of one: {sql}"
        return rows[0]

    def at_end(self, write: Callable[[], None]) -> None:
        """Write it right before the commit, whatever else is written until then: where every transaction queues.

        So the queue comes last for everybody, and two that wait for it can not wait for each other.
        """
        self._last.append(write)

    def take_last(self) -> list[Callable[[], None]]:
        """Take away what was put off: what shares a transaction keeps its own, or drops it."""
        last, self._last = self._last, []
        return last

    def take_told(self) -> list[Told]:
        """Take away the events that were appended since this was last asked for."""
        told, self.told = self.told, []
        return told

    def finish(self) -> None:
        """Write what was put off."""
        for write in self._last:
            write()

    def make_tables(self, statements: Sequence[str]) -> None:
        """Make the tables that are missing; `{number}` stands for a primary key that counts up."""
        if self._dialect == "postgresql":
            self.all("SELECT pg_advisory_xact_lock(:lock)", lock=_SCHEMA_LOCK)
        for statement in statements:
            self.run(statement.replace("{number}", _NUMBER[self._dialect]))

    def _execute(self, sql: str, parameters: dict[str, Value]) -> _Cursor:
        return self._raw.execute(sql if self._dialect == "sqlite" else _percent(sql), parameters)


def names(values: Sequence[str], *, prefix: str) -> tuple[str, dict[str, Value]]:
    """Return `(:p_a, :p_b)` for an IN, with its parameters."""
    letters = [f"{prefix}_{_letters(index)}" for index in range(len(values))]
    return f"({', '.join(f':{name}' for name in letters)})", dict(zip(letters, values, strict=True))


class Database(ABC):
    """Connections to one journal; safe to use from any thread."""

    dialect: Dialect
    where: str
    """Names the database for people, without secrets."""

    def __init__(self) -> None:
        self.patience_s = BUSY_TIMEOUT_MS / 1000
        """How long a writer waits for the others of its process, and as long again for those of other processes."""
        self._idle: dict[Durability, list[tuple[float, _Raw]]] = {"flushed": [], "written": []}
        self.on_events: Callable[[Sequence[Told]], None] | None = None
        """Told, in the thread that wrote, to which runs and streams events were appended, once they are kept."""
        self._lock = threading.Lock()
        self._writer = threading.Lock()
        self._shared = threading.local()
        self._is_closed = False

    @property
    def for_update(self) -> str:
        """What locks a selected row until the transaction ends."""
        return " FOR UPDATE" if self.dialect == "postgresql" else ""

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for queries. Raises JournalError when the database fails."""
        with self._borrowed("flushed") as raw:
            try:
                yield Connection(raw, dialect=self.dialect)
            finally:
                raw.rollback()

    @contextmanager
    def writing(self, *, durability: Durability = "flushed") -> Iterator[Connection]:
        """Give one write transaction, committed at the end or not at all, and tell of its events once it is.

        In a thread that shares one transaction among many writes, this is that one.

        Raises JournalError when the database fails.
        """
        shared: Connection | None = getattr(self._shared, "connection", None)
        if shared is not None:
            yield shared
            return
        with self._transaction(durability) as connection:
            yield connection
            connection.finish()
        self.tell(connection.told)
        self.tell_runs(connection.told)

    @contextmanager
    def sharing(self) -> Iterator[Connection]:
        """Give one flushed transaction; until it ends, every `writing` in this thread is a part of it.

        The parts keep apart by savepoints, and finish and tell what they wrote themselves.

        Raises JournalError when the database fails.
        """
        with self._transaction("flushed") as connection:
            self._shared.connection = connection
            try:
                yield connection
            finally:
                self._shared.connection = None

    def told_apart(self, error: Exception) -> Exception:
        """Say what a failure of the driver means; any other is what it is."""
        return self._told(error) if isinstance(error, self.errors) else error

    @staticmethod
    def tell(told: Sequence[Told]) -> None:
        """Tell telemetry of events that are kept."""
        for run, name, body in told:
            if name in telemetry.EVENTS:
                # `name` is taken by the event itself.
                fields = {("step" if key == "name" else key): _field(value) for key, value in body.items()}
                telemetry.event(name, run=run, **fields)

    def tell_runs(self, told: Sequence[Told]) -> None:
        """Tell who listens of events that are kept."""
        if told and self.on_events is not None:
            self.on_events(told)

    @contextmanager
    def _transaction(self, durability: Durability) -> Iterator[Connection]:
        with self._turn(), self._borrowed(durability) as raw:
            if self.dialect == "sqlite":
                raw.execute("BEGIN IMMEDIATE", {})
            try:
                yield Connection(raw, dialect=self.dialect)
                raw.commit()
            except BaseException:
                with suppress(*self.errors):
                    raw.rollback()
                raise

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._lock:
            self._is_closed = True
            idle = [raw for pool in self._idle.values() for _, raw in pool]
            for pool in self._idle.values():
                pool.clear()
        for raw in idle:
            raw.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Give this process's writers their turn where the database has only one writer.

        SQLite lets its writers in by chance, and one that was unlucky waits ever longer between its tries. Each waits
        for its turn as long as for the file, so that a file that is held by others does not hold a queue here for ever.
        """
        if self.dialect != "sqlite":
            yield
            return
        if not self._writer.acquire(timeout=self.patience_s):
            raise self._told(TimeoutError("database is locked"))
        try:
            yield
        finally:
            self._writer.release()

    def _told(self, error: BaseException) -> JournalError:
        """Say what a failure means."""
        return explain(error, where=self.where)

    @contextmanager
    def _borrowed(self, durability: Durability) -> Iterator[_Raw]:
        raw: _Raw | None = None
        try:
            raw = self._take(durability)
            yield raw
        except self.errors as error:
            if raw is not None:
                with suppress(*self.errors):
                    raw.close()
            raise self._told(error) from error
        except BaseException:
            if raw is not None:
                self._give_back(raw, durability)
            raise
        self._give_back(raw, durability)

    def _take(self, durability: Durability) -> _Raw:
        while True:
            with self._lock:
                since_s, raw = self._idle[durability].pop() if self._idle[durability] else (0.0, None)
            if raw is None:
                return self.connect(durability)
            if time.monotonic() - since_s < _TRUSTED_S:
                return raw
            try:
                raw.execute("SELECT 1", {})
                raw.rollback()
            except self.errors:
                with suppress(*self.errors):
                    raw.close()
            else:
                return raw

    def _give_back(self, raw: _Raw, durability: Durability) -> None:
        with self._lock:
            if not self._is_closed and len(self._idle[durability]) < _IDLE_MAX:
                self._idle[durability].append((time.monotonic(), raw))
                return
        raw.close()

    errors: tuple[type[Exception], ...]
    """What the driver raises."""

    @abstractmethod
    def connect(self, durability: Durability) -> _Raw:
        """Open a connection whose commits are that durable."""


class SqliteDatabase(Database):
    """The embedded journal: one file, many processes of one machine."""

    dialect: Dialect = "sqlite"
    errors = (sqlite3.Error,)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.where = str(path)

    def connect(self, durability: Durability) -> _Raw:
        """Open the file."""
        raw = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            timeout=self.patience_s,
        )
        try:
            prepare_sqlite(raw, durability=durability, patience_s=self.patience_s)
        except BaseException:
            raw.close()
            raise
        raw.row_factory = _sqlite_row
        return cast("_Raw", raw)

    def _told(self, error: BaseException) -> JournalError:
        told = super()._told(error)
        if "is locked" not in str(error):
            return told
        holder, do = named(holder_of(self.path))
        return JournalError(f"journal {self.where}: {holder} holds it for too long ({error})", hint=do)


class PostgresDatabase(Database):
    """The journal on a server: many processes of many machines."""

    dialect: Dialect = "postgresql"

    def __init__(self, url: Secret) -> None:
        super().__init__()
        # Loaded here: whoever uses SQLite does not pay for it.
        try:
            import psycopg  # noqa: PLC0415
            from psycopg.rows import kwargs_row  # noqa: PLC0415
        except ImportError as error:
            raise JournalError("the PostgreSQL driver is missing", hint="pip install 'psycopg[binary]'") from error
        self.errors = (psycopg.Error,)
        self._url = url
        self._connect = psycopg.connect
        self._rows = kwargs_row(Row)
        try:
            told = psycopg.conninfo.conninfo_to_dict(url.reveal())
        except psycopg.Error:
            raise ConfigError("journal.url cannot be read", hint=_URL_HINT) from None
        self.where = f"{told.get('dbname') or 'postgres'} at {told.get('host') or 'localhost'}"
        self._timeout_s = int(told.get("connect_timeout") or CONNECT_TIMEOUT_S)

    def connect(self, durability: Durability) -> _Raw:
        """Connect to the server."""
        raw = self._connect(self._url.reveal(), connect_timeout=self._timeout_s, row_factory=self._rows)
        try:
            raw.execute(BOUND_TRANSACTIONS)
            if durability == "written":
                raw.execute("SET synchronous_commit TO off")
            raw.commit()
        except BaseException:
            raw.close()
            raise
        return cast("_Raw", raw)


_URL_HINT = "write postgresql://user:password@host:5432/name, or leave it empty for SQLite in the state directory"


def open_database(url: Secret, *, state_dir: Path) -> Database:
    """Name the database of the journal: Postgres by URL, otherwise SQLite in the state directory.

    Raises:
        ConfigError: the URL is no Postgres URL.
        JournalError: the state directory cannot be made.
    """
    if url:
        scheme, separator, rest = url.reveal().partition("://")
        if not separator or scheme.partition("+")[0] not in {"postgresql", "postgres"}:
            raise ConfigError("journal.url is no PostgreSQL URL", hint=_URL_HINT)
        return PostgresDatabase(Secret(f"postgresql://{rest}"))
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(state_dir / SQLITE_FILE)
    except OSError as error:
        raise JournalError(
            f"cannot make the state directory {state_dir}: {error.strerror}",
            hint="choose a directory that you may write, with state_dir or QUELL_STATE_DIR",
        ) from error
    return SqliteDatabase(state_dir / SQLITE_FILE)


def _make_private(file: Path) -> None:
    """Let nobody else read the journal, also in a directory that others may enter; SQLite's side files follow it."""
    # Whether it can be opened at all, SQLite tells better.
    with suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def prepare_sqlite(
    raw: sqlite3.Connection, *, durability: Durability, patience_s: float = BUSY_TIMEOUT_MS / 1000
) -> None:
    """Set up a connection to the file: readers and one writer at once, and commits that are as durable as asked."""
    if sqlite3.sqlite_version_info < _UNIXEPOCH_SINCE:
        # dbos asks for unixepoch('subsec') by the version of Python, not of SQLite; old libraries answer NULL.
        raw.create_function("unixepoch", -1, lambda *_: time.time())  # noqa: TID251 - stands in for SQLite's own clock
    for pragma in (
        f"busy_timeout={int(patience_s * 1000)}",
        "foreign_keys=ON",
        "journal_mode=WAL",
        f"synchronous={'FULL' if durability == 'flushed' else 'NORMAL'}",
    ):
        raw.execute(f"PRAGMA {pragma}")


_MEANINGS: tuple[tuple[str, str, str], ...] = (
    ("database or disk is full", "the disk that holds it is full", "free space on it; runs go on by themselves"),
    ("no space left on device", "the disk that holds it is full", "free space on it; runs go on by themselves"),
    ("readonly database", "it may not be written", "check the owner and the rights of the file and its directory"),
    ("unable to open database file", "it cannot be opened", "check that its directory exists and may be written"),
    (
        "file is not a database",
        "the file is damaged or no journal",
        "move it away with its -wal and -shm, or restore it",
    ),
    ("malformed", "the file is damaged", "move it away with its -wal and -shm, or restore it from a backup"),
    ("disk i/o error", "the disk failed", "check the disk and its free space"),
    ("database is locked", "another process holds it for too long", "find the process that has the file open"),
    ("password authentication failed", "the server refused the login", "check user and password in journal.url"),
    ("permission denied", "the user may not do this", "grant the user of journal.url the right to create tables"),
    ("does not exist", "something it needs is missing", "check the database name in journal.url"),
)
_UNREACHABLE = ("the database cannot be used", "check that it is up and that journal.url is right")


def explain(error: BaseException, *, where: str) -> JournalError:
    """Say what a failure of the database means and what to do, without secrets."""
    cause = getattr(error, "orig", None) or error
    said = " ".join(str(cause).split())
    low = said.lower()
    meaning, hint = next(((mean, do) for sign, mean, do in _MEANINGS if sign in low), _UNREACHABLE)
    return JournalError(f"journal {where}: {meaning} ({said[:200]})", hint=hint)


def _sqlite_row(cursor: sqlite3.Cursor, values: tuple[object, ...]) -> Row:
    return Row(**{column[0]: value for column, value in zip(cursor.description, values, strict=True)})


@lru_cache(maxsize=256)
def _percent(sql: str) -> str:
    """Write named parameters as psycopg wants them."""
    return _NAMED.sub(r"%(\1)s", sql)


def _field(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _letters(index: int) -> str:
    return chr(ord("a") + index % 26) + (_letters(index // 26 - 1) if index >= 26 else "")
