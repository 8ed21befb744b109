"""The SQLAlchemy engine of the journal, for DBOS and for the tables of the rooms above."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import event

from quell.config import Secret
from quell.runs._database import BOUND_TRANSACTIONS, CONNECT_TIMEOUT_S, Database, SqliteDatabase, prepare_sqlite

if TYPE_CHECKING:
    import psycopg

_POOL_SIZE = 8
_OVERFLOW_MAX = 16


def make_engine(database: Database, *, url: Secret) -> sa.Engine:
    """Build an engine on the same database, set up alike; it blocks, and connects when it is first used."""
    if not isinstance(database, SqliteDatabase):
        parsed = sa.make_url(url.reveal()).set(drivername="postgresql+psycopg")
        server = sa.create_engine(
            parsed,
            pool_size=_POOL_SIZE,
            max_overflow=_OVERFLOW_MAX,
            pool_pre_ping=True,
            connect_args={} if "connect_timeout" in parsed.query else {"connect_timeout": CONNECT_TIMEOUT_S},
        )

        @event.listens_for(server, "connect")
        def bound(connection: psycopg.Connection, _record: object) -> None:
            connection.execute(BOUND_TRANSACTIONS)
            connection.commit()

        return server
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(database.path)), pool_size=_POOL_SIZE, max_overflow=_OVERFLOW_MAX
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = "IMMEDIATE"  # writers wait for each other instead of failing on upgrade
        prepare_sqlite(connection, durability="flushed")

    return engine


def retire(engine: sa.Engine) -> None:
    """Close every connection of an engine: the idle ones now, those that a thread still holds when it gives them back.

    `dispose` alone leaves the latter open until they are collected.
    """

    @event.listens_for(engine, "checkin")
    def close(_connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.invalidate()

    engine.dispose()
