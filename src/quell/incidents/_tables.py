"""The tables of the incidents room, in the journal's database, alike on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Column, Connection, Engine, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

tables = MetaData()

alerts = Table(
    "incident_alerts",
    tables,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("starts_at", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("incident", Text, nullable=True, index=True),
    Column("body", Text, nullable=False),
    UniqueConstraint("fingerprint", "starts_at", name="incident_alerts_episode"),
)

incidents = Table(
    "incidents",
    tables,
    Column("id", Text, primary_key=True),
    Column("stage", Text, nullable=False, index=True),
    Column("opened_at", Text, nullable=False),
    Column("quiet_since", Text, nullable=False),
    Column("rounds", Integer, nullable=False),
    Column("request", Text, nullable=False),
    Column("body", Text, nullable=False),
)

timeline = Table(
    "incident_timeline",
    tables,
    Column("incident", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("at", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("told", Integer, nullable=False),
    Index("incident_timeline_number", "number"),
    Index("incident_timeline_told", "told"),
)

cases = Table(
    "incident_cases",
    tables,
    Column("run", Text, primary_key=True),
    Column("incident", Text, nullable=False, index=True),
    Column("made_at", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("body", Text, nullable=False),
)

calls = Table(
    "incident_calls",
    tables,
    Column("caller", Text, primary_key=True),
    Column("callee", Text, primary_key=True),
    Column("seen_at", Text, nullable=False),
)

_LOCK_KEY = 0x7175656C6C
"""Number of the advisory lock that writers of these tables take on PostgreSQL."""


def create_tables(engine: Engine) -> None:
    """Create what is missing; two processes may do so at once."""
    with engine.begin() as connection:
        lock_writers(connection)
        tables.create_all(connection)


def lock_writers(connection: Connection) -> None:
    """Let one writer at a time decide what belongs together; ends with the transaction.

    SQLite must begin as a writer: what was read before its first write would be out of date.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def stamp(at: datetime) -> str:
    """Write a time so that text order is time order."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def unstamp(written: str) -> datetime:
    """Read a time back."""
    return datetime.fromisoformat(written)
