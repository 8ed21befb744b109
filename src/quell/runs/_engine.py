"""Open the database of the journal, and say in one place what its failures mean."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from quell.config import Secret
from quell.domain import ConfigError, JournalError

_SQLITE_FILE = "quell.db"
_BUSY_TIMEOUT_MS = 30_000
_UNIXEPOCH_SINCE = (3, 42)
_CONNECT_TIMEOUT_S = 10


class _Connection(Protocol):
    """The little of sqlite3.Connection that is set up here."""

    isolation_level: str | None

    def execute(self, sql: str, /) -> object: ...

    def create_function(self, name: str, narg: int, func: object, /) -> None: ...


def open_engine(url: Secret, *, state_dir: Path) -> sa.Engine:
    """Build the engine of the journal: Postgres by URL, otherwise SQLite in the state directory.

    Raises:
        ConfigError: the URL is no Postgres URL.
        JournalError: the state directory cannot be made.
    """
    if url:
        return _postgres(url)
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise JournalError(
            f"cannot make the state directory {state_dir}: {error.strerror}",
            hint="choose a directory that you may write, with state_dir or QUELL_STATE_DIR",
        ) from error
    return _sqlite(state_dir / _SQLITE_FILE)


def _postgres(url: Secret) -> sa.Engine:
    try:
        parsed = sa.make_url(url.reveal())
    except ArgumentError:
        raise ConfigError(
            "journal.url cannot be read", hint="write postgresql://user:password@host:5432/name"
        ) from None
    if parsed.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ConfigError(
            f"journal.url names {parsed.drivername!r}, and only PostgreSQL is known",
            hint="write postgresql://…, or leave it empty for SQLite in the state directory",
        )
    arguments = {} if "connect_timeout" in parsed.query else {"connect_timeout": _CONNECT_TIMEOUT_S}
    try:
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=8,
            max_overflow=16,
            pool_pre_ping=True,
            connect_args=arguments,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise JournalError("the PostgreSQL driver is missing", hint="pip install 'psycopg[binary]'") from error


def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), pool_size=8, max_overflow=16)

    @event.listens_for(engine, "connect")
    def prepare(connection: _Connection, _record: object) -> None:
        connection.isolation_level = "IMMEDIATE"  # writers wait for each other instead of failing on upgrade
        if sqlite3.sqlite_version_info < _UNIXEPOCH_SINCE:
            # dbos asks for unixepoch('subsec') by the version of Python, not of SQLite; old libraries answer NULL.
            connection.create_function("unixepoch", -1, lambda *_: time.time())  # noqa: TID251 - SQLite's own clock
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
            "journal_mode=WAL",
            "synchronous=FULL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Give a connection for queries; raises JournalError when the database fails."""
    with _explained(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine, *, durability: Literal["flushed", "written"] = "flushed") -> Iterator[sa.Connection]:
    """Give one write transaction; it is committed at the end, or not at all.

    `flushed` is on the disk before this returns. `written` survives the death of the process but not of the machine,
    and costs no flush: for what nothing else rests on. Raises JournalError when the database fails.
    """
    with _explained(engine), engine.connect() as connection:
        is_sqlite = engine.dialect.name == "sqlite"
        relaxed = durability == "written"
        if is_sqlite:
            if relaxed:
                connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            # sqlite3 opens a transaction only before a write; what was read before would then be out of date.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif relaxed:
            connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
        try:
            yield connection
            connection.commit()
        finally:
            connection.rollback()
            if is_sqlite and relaxed:
                connection.exec_driver_sql("PRAGMA synchronous=FULL")


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
    ("does not exist", "something it needs is missing", "check the database name in journal.url"),
    ("permission denied", "the user may not do this", "grant the user of journal.url the right to create tables"),
)
_UNREACHABLE = ("the database cannot be used", "check that it is up and that journal.url is right")


@contextmanager
def _explained(engine: sa.Engine) -> Iterator[None]:
    """Turn a failure of the database into a JournalError that says what it means."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise explain(engine, error) from error


def explain(engine: sa.Engine, error: BaseException) -> JournalError:
    """Say what a failure of the database means and what to do, without secrets."""
    cause = getattr(error, "orig", None) or error
    said = " ".join(str(cause).split())
    where = engine.url.render_as_string(hide_password=True)
    where = engine.url.database or where if engine.dialect.name == "sqlite" else where
    low = said.lower()
    meaning, hint = next(((mean, do) for sign, mean, do in _MEANINGS if sign in low), _UNREACHABLE)
    return JournalError(f"journal {where}: {meaning} ({said[:200]})", hint=hint)
