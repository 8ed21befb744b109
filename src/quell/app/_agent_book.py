"""What the journal keeps for agents beside their runs: versions that runs go on with, and conversations by session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from quell.config import AgentSettings, agent_kept, kept_agent
from quell.domain import Clock, Principal
from quell.runs import Connection, Database

TABLES = (
    (
        "CREATE TABLE IF NOT EXISTS quell_agent_versions (version TEXT PRIMARY KEY, agent TEXT NOT NULL,"
        " settings TEXT NOT NULL, at TEXT NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS quell_agent_sessions (number {number}, session TEXT NOT NULL, tenant TEXT NOT NULL,"
        " owner TEXT NOT NULL, run TEXT NOT NULL UNIQUE, agent TEXT NOT NULL, subject TEXT NOT NULL, at TEXT NOT NULL)"
    ),
    ("CREATE INDEX IF NOT EXISTS quell_agent_sessions_by ON quell_agent_sessions (tenant, owner, session, number)"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation of somebody with an agent."""

    id: str
    agent: str
    run: str
    """Its newest run."""
    subject: str
    """What was asked last, cut."""
    at: datetime


class AgentBook:
    """Writes them down, and finds them again; it blocks."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Write into this database, where the tables are made."""
        self._database = database
        self._clock = clock
        with database.writing() as connection:
            connection.make_tables(TABLES)

    def keep_version(self, version: str, settings: AgentSettings) -> None:
        """Keep what an agent is in a version, without its secrets; twice is once."""
        with self._database.reading() as connection:
            if _version(connection, version) is not None:
                return
        with self._database.writing() as connection:
            connection.run(
                "INSERT INTO quell_agent_versions (version, agent, settings, at) VALUES (:version, :agent, :settings, :at)"
                " ON CONFLICT (version) DO NOTHING",
                version=version,
                agent=settings.id,
                settings=kept_agent(settings),
                at=self._clock().isoformat(),
            )

    def version(self, version: str, *, now: AgentSettings | None) -> AgentSettings | None:
        """Return what an agent was in a version, with the secrets of today; None when nobody kept it.

        Raises ConfigError when it cannot be what it was.
        """
        with self._database.reading() as connection:
            kept = _version(connection, version)
        return None if kept is None else agent_kept(kept, now=now)

    def keep_run(self, session: str, *, run: str, by: Principal, agent: str, subject: str) -> None:
        """Note that a run belongs to somebody's conversation; twice is once."""
        with self._database.reading() as connection:
            if connection.first("SELECT run FROM quell_agent_sessions WHERE run = :run", run=run) is not None:
                return
        with self._database.writing() as connection:
            connection.run(
                "INSERT INTO quell_agent_sessions (session, tenant, owner, run, agent, subject, at)"
                " VALUES (:session, :tenant, :owner, :run, :agent, :subject, :at) ON CONFLICT (run) DO NOTHING",
                session=session,
                tenant=by.tenant,
                owner=by.user,
                run=run,
                agent=agent,
                subject=subject,
                at=self._clock().isoformat(),
            )

    def runs_of(self, session: str, *, by: Principal, rows_max: int = 50) -> Sequence[str]:
        """Return the runs of somebody's conversation, the newest first."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT run FROM quell_agent_sessions WHERE tenant = :tenant AND owner = :owner AND session = :session"
                " ORDER BY number DESC LIMIT :most",
                tenant=by.tenant,
                owner=by.user,
                session=session,
                most=rows_max,
            )
        return [row.run for row in rows]

    def sessions(self, *, by: Principal, sessions_max: int = 50) -> Sequence[Session]:
        """Return somebody's conversations, that of the newest question first."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT session, agent, run, subject, at FROM quell_agent_sessions WHERE number IN"
                " (SELECT max(number) FROM quell_agent_sessions WHERE tenant = :tenant AND owner = :owner"
                " GROUP BY session) ORDER BY number DESC LIMIT :most",
                tenant=by.tenant,
                owner=by.user,
                most=sessions_max,
            )
        return [
            Session(
                id=row.session, agent=row.agent, run=row.run, subject=row.subject, at=datetime.fromisoformat(row.at)
            )
            for row in rows
        ]


def forget_sessions(connection: Connection, *, before: datetime) -> int:
    """Forget conversations of before then whose runs are gone, and versions that no run can go on with; return how many."""
    connection.make_tables(TABLES)
    gone = connection.run(
        "DELETE FROM quell_agent_sessions WHERE at < :before AND run NOT IN (SELECT id FROM quell_runs)",
        before=before.isoformat(),
    )
    return gone + connection.run(
        "DELETE FROM quell_agent_versions WHERE at < :before AND NOT EXISTS"
        " (SELECT 1 FROM quell_runs WHERE status IN ('queued', 'running', 'waiting'))",
        before=before.isoformat(),
    )


def _version(connection: Connection, version: str) -> str | None:
    row = connection.first("SELECT settings FROM quell_agent_versions WHERE version = :version", version=version)
    return None if row is None else str(row.settings)
