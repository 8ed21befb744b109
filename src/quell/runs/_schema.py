"""The tables of the journal, alike in SQLite and Postgres."""

from __future__ import annotations

from quell.domain import JournalError
from quell.runs._database import Database

VERSION = 1

# Times are texts in UTC that sort as times do. `number` and `seq` give the order; no clock does.
_TABLES: tuple[str, ...] = (
    "CREATE TABLE IF NOT EXISTS quell_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS quell_runs (
        number {number},
        id TEXT NOT NULL UNIQUE,
        start_key TEXT UNIQUE,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        arguments TEXT NOT NULL,
        status TEXT NOT NULL,
        version TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        wake_at TEXT NOT NULL DEFAULT '',
        attempts BIGINT NOT NULL DEFAULT 0,
        attempts_before BIGINT NOT NULL DEFAULT 0,
        round BIGINT NOT NULL DEFAULT 0,
        segment BIGINT NOT NULL DEFAULT 0,
        begun BIGINT NOT NULL DEFAULT -1,
        dispatch BIGINT NOT NULL DEFAULT 0,
        executor TEXT NOT NULL DEFAULT '',
        token TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        result TEXT NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX IF NOT EXISTS quell_runs_open ON quell_runs (status, wake_at)",
    """CREATE TABLE IF NOT EXISTS quell_segments (
        run TEXT NOT NULL REFERENCES quell_runs (id) ON DELETE CASCADE,
        segment BIGINT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (run, segment)
    )""",
    """CREATE TABLE IF NOT EXISTS quell_steps (
        number {number},
        run TEXT NOT NULL REFERENCES quell_runs (id) ON DELETE CASCADE,
        segment BIGINT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        started_at TEXT NOT NULL,
        ended_at TEXT NOT NULL,
        result TEXT NOT NULL,
        UNIQUE (run, segment, name)
    )""",
    """CREATE TABLE IF NOT EXISTS quell_events (
        seq {number},
        run TEXT NOT NULL,
        key TEXT NOT NULL,
        name TEXT NOT NULL,
        at TEXT NOT NULL,
        body TEXT NOT NULL,
        UNIQUE (run, key)
    )""",
    "CREATE INDEX IF NOT EXISTS quell_events_of_run ON quell_events (run, seq)",
    """CREATE TABLE IF NOT EXISTS quell_slots (
        name TEXT PRIMARY KEY,
        token TEXT NOT NULL UNIQUE,
        host TEXT NOT NULL,
        pid BIGINT NOT NULL,
        pid_started TEXT NOT NULL,
        expires_s DOUBLE PRECISION NOT NULL
    )""",
)


def create_tables(database: Database) -> None:
    """Make the tables that are missing. Raises JournalError when a newer Quell wrote this journal."""
    found = _found(database)
    if found is None:
        found = _create(database)
    if found > VERSION:
        raise JournalError(
            f"this journal was written by a newer Quell (schema {found}, known {VERSION})",
            hint="upgrade quell, or choose another state directory",
        )


def _create(database: Database) -> int:
    with database.writing() as connection:
        connection.make_tables(_TABLES)
        connection.run(
            "INSERT INTO quell_meta (name, value) VALUES ('schema', :version) ON CONFLICT (name) DO NOTHING",
            version=str(VERSION),
        )
        return int(connection.one("SELECT value FROM quell_meta WHERE name = 'schema'").value)


def _found(database: Database) -> int | None:
    """Return the version of the tables that are there, None when there are none: the usual case needs no write."""
    known = (
        "SELECT name FROM sqlite_master WHERE name = 'quell_meta'"
        if database.dialect == "sqlite"
        else "SELECT 1 AS name WHERE to_regclass('quell_meta') IS NOT NULL"
    )
    with database.reading() as connection:
        if connection.first(known) is None:
            return None
        return int(connection.one("SELECT value FROM quell_meta WHERE name = 'schema'").value)
