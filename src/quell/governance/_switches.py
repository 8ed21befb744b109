"""The kill switch and freezes: rows that every start reads in its own transaction.

A change of the rows and a start cannot pass each other. On SQLite there is one writer at a time. On Postgres a start
shares an advisory lock until it commits, and a change takes it alone: what started before is counted by the change, and
what comes after reads the change. A row lock would do the same but is not fair: starts that overlap could keep a kill
waiting for ever, while here they queue behind it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal

from quell.domain import (
    Clock,
    Entropy,
    Killed,
    Principal,
    RefusedError,
    Switch,
    SwitchState,
    UsageError,
    new_id,
)
from quell.governance._approval_rows import stamp
from quell.governance._break_glass import check_person, given_reason
from quell.runs import Connection, Database

KILL_ROLES = frozenset({"operator", "approver", "admin"})
LIFT_ROLES = frozenset({"admin"})
_LOCK = 0x5155454C4C53
_GLOB_MAX_CHARS = 200
_DRAIN_STEP_S = 0.2


class Switches:
    """The stops of one database."""

    TABLES: tuple[str, ...] = (
        "CREATE TABLE IF NOT EXISTS quell_switch_head (name TEXT PRIMARY KEY, version TEXT NOT NULL)",
        "INSERT INTO quell_switch_head (name, version) VALUES ('head', '') ON CONFLICT DO NOTHING",
        (
            "CREATE TABLE IF NOT EXISTS quell_switches (id TEXT PRIMARY KEY, kind TEXT NOT NULL, tenant TEXT NOT NULL,"
            " agent TEXT NOT NULL, environment TEXT NOT NULL, tool TEXT NOT NULL, starts_at TEXT NOT NULL, ends_at TEXT,"
            " reason TEXT NOT NULL, made_by TEXT NOT NULL, owner TEXT NOT NULL, lifted_at TEXT, lifted_by TEXT NOT NULL,"
            " lifted_reason TEXT NOT NULL)"
        ),
        "CREATE INDEX IF NOT EXISTS quell_switches_lifted ON quell_switches (lifted_at)",
    )
    """What `Connection.make_tables` makes."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        entropy: Entropy,
        in_flight: Callable[[Connection, Switch], Iterable[str]],
        stale_max_s: float = 1.0,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Take what it needs.

        `in_flight` returns the keys of effects that a switch covers and that have not ended; `clean` takes secrets out
        of the reasons that people give.
        """
        self._database = database
        self._is_postgres = database.dialect == "postgresql"
        self._clock = clock
        self._monotonic = monotonic
        self._entropy = entropy
        self._in_flight = in_flight
        self._stale_max_s = stale_max_s
        self._clean = clean
        self._pending: tuple[Switch, ...] = ()
        self._known: tuple[str, tuple[Switch, ...]] | None = None
        self._glanced: tuple[float, SwitchState] | None = None
        self._lock = threading.Lock()

    def state(self, connection: Connection, *, lock: Literal["share", "none"]) -> SwitchState:
        """Read the stops in force, in the transaction that decides or starts.

        With `share` nothing can be stopped between this and the end of the transaction without being counted as started.
        """
        if lock == "share" and self._is_postgres:
            connection.all("SELECT pg_advisory_xact_lock_shared(:lock)", lock=_LOCK)
        # A statement of its own: what waited for the lock still sees the rows as they were when it began to wait.
        head = connection.one("SELECT version FROM quell_switch_head WHERE name = 'head'")
        known = self._known
        if known is None or known[0] != head.version:
            known = self._known = (head.version, _read(connection))
        now = self._clock()
        switches = (*self._pending, *(switch for switch in known[1] if _holds(switch, at=now)))
        return SwitchState(as_of=now, switches=switches)

    def glance(self) -> SwitchState:
        """Return the stops in force from memory, at most `stale_max_s` old: good enough for reads, never for effects."""
        with self._lock:
            now_s = self._monotonic()
            if self._glanced is None or not 0 <= now_s - self._glanced[0] < self._stale_max_s:
                with self._database.reading() as connection:
                    read = self.state(connection, lock="none")
                self._glanced = (
                    now_s,
                    SwitchState(as_of=read.as_of, switches=read.switches, stale_max_s=self._stale_max_s),
                )
            read = self._glanced[1]
        return replace(read, switches=(*self._pending, *read.switches)) if self._pending else read

    def kill_now(
        self,
        *,
        by: Principal,
        reason: str,
        tenant: str | None = None,
        agent: str = "*",
        environment: str = "*",
        tool: str = "*",
        and_then: Callable[[Connection, Killed], None] = lambda _connection, _killed: None,
    ) -> Killed:
        """Kill in a transaction of its own, and let nothing of it start in this process while that waits for its turn.

        SQLite serves writers in no order: under a storm of starts a kill could wait for seconds, and these starts are
        what it is to stop. `and_then` runs in the transaction, for the account of it. Raises as `kill` does.
        """
        scope = (by.tenant if tenant is None else tenant, agent, environment, tool)
        _check_may_stop(by, scope=scope)
        pending = self._switch("kill", by=by, reason=reason, scope=scope, starts_at=self._clock(), ends_at=None)
        with self._announced(pending), self._database.writing() as connection:
            killed = self.kill(
                connection, by=by, reason=reason, tenant=scope[0], agent=agent, environment=environment, tool=tool
            )
            and_then(connection, killed)
        return killed

    @contextmanager
    def _announced(self, pending: Switch) -> Iterator[None]:
        with self._lock:
            self._pending = (*self._pending, pending)
        try:
            yield
        finally:
            with self._lock:
                self._pending = tuple(switch for switch in self._pending if switch is not pending)
                self._glanced = None

    def kill(
        self,
        connection: Connection,
        *,
        by: Principal,
        reason: str,
        tenant: str | None = None,
        agent: str = "*",
        environment: str = "*",
        tool: str = "*",
    ) -> Killed:
        """Stop what the globs cover, until somebody lifts it: nothing starts after this commits.

        Without a tenant it is the caller's own. Returns what started before and has not ended, for people to be told.

        Raises:
            RefusedError: the principal is no person, or may not stop this.
            UsageError: no reason, or a glob that covers nothing.
        """
        scope = (by.tenant if tenant is None else tenant, agent, environment, tool)
        now = self._clock()
        switch = self._insert(connection, "kill", by=by, reason=reason, scope=scope, starts_at=now, ends_at=None)
        return Killed(switch=switch, in_flight=tuple(self._in_flight(connection, switch)))

    def freeze(
        self,
        connection: Connection,
        *,
        by: Principal,
        reason: str,
        starts_at: datetime,
        ends_at: datetime,
        tenant: str | None = None,
        agent: str = "*",
        environment: str = "*",
        tool: str = "*",
    ) -> Switch:
        """Forbid changes for a window of time. Raises as `kill` does, and UsageError for a window without length."""
        if starts_at.tzinfo is None or ends_at.tzinfo is None or not starts_at < ends_at:
            raise UsageError("a freeze ends after it starts, both with a time zone", hint="write 2026-12-24T00:00:00Z")
        scope = (by.tenant if tenant is None else tenant, agent, environment, tool)
        return self._insert(
            connection, "freeze", by=by, reason=reason, scope=scope, starts_at=starts_at, ends_at=ends_at
        )

    def lift(self, connection: Connection, identifier: str, *, by: Principal, reason: str) -> None:
        """End a stop. Raises RefusedError when there is none, when it has ended, or when this person may not."""
        check_person(by, what="lift a stop", scope="switch.lift")
        told = self._clean(given_reason(reason, why="lifting a stop"))
        self._hold(connection)
        row = connection.first("SELECT * FROM quell_switches WHERE id = :id", id=identifier)
        is_own = row is not None and by.tenant in {row.tenant, row.owner}
        if row is None or not is_own:
            raise RefusedError(f"there is no stop {identifier!r}", hint="list the stops in force", code="unknown")
        if LIFT_ROLES.isdisjoint(by.roles):
            raise RefusedError(f"{by.user} may not lift a stop", hint=f"roles that may: {', '.join(LIFT_ROLES)}")
        lifted = connection.run(
            "UPDATE quell_switches SET lifted_at = :at, lifted_by = :by, lifted_reason = :reason"
            " WHERE id = :id AND lifted_at IS NULL",
            at=stamp(self._clock()),
            by=by.user,
            reason=told,
            id=identifier,
        )
        if lifted != 1:
            raise RefusedError(f"{identifier} was lifted by {row.lifted_by}", hint="nothing to do", code="gone")

    def listed(self, connection: Connection, *, tenant: str) -> tuple[Switch, ...]:
        """Return the stops that nobody has lifted and that cover a tenant or were set by one of it, oldest first."""
        owned = {row.id for row in connection.all("SELECT id FROM quell_switches WHERE owner = :owner", owner=tenant)}
        return tuple(switch for switch in _read(connection) if switch.id in owned or fnmatchcase(tenant, switch.tenant))

    def remaining(self, connection: Connection, killed: Killed) -> tuple[str, ...]:
        """Return which of the effects that a kill came too late for have not ended yet."""
        now = set(self._in_flight(connection, killed.switch))
        return tuple(key for key in killed.in_flight if key in now)

    async def drain(
        self, killed: Killed, *, timeout_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> tuple[str, ...]:
        """Wait until what had started has ended; return what had not by then, for a person to look at."""
        left = killed.in_flight
        for _ in range(max(1, round(timeout_s / _DRAIN_STEP_S))):
            left = await asyncio.to_thread(self._read_remaining, killed)
            if not left:
                break
            await sleep(_DRAIN_STEP_S)
        return left

    def _read_remaining(self, killed: Killed) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return self.remaining(connection, killed)

    def _insert(
        self,
        connection: Connection,
        kind: Literal["kill", "freeze"],
        *,
        by: Principal,
        reason: str,
        scope: tuple[str, str, str, str],
        starts_at: datetime,
        ends_at: datetime | None,
    ) -> Switch:
        _check_may_stop(by, scope=scope)
        switch = self._switch(kind, by=by, reason=reason, scope=scope, starts_at=starts_at, ends_at=ends_at)
        self._hold(connection)
        connection.run(
            "INSERT INTO quell_switches (id, kind, tenant, agent, environment, tool, starts_at, ends_at, reason, made_by,"
            " owner, lifted_at, lifted_by, lifted_reason) VALUES (:id, :kind, :tenant, :agent, :environment, :tool,"
            " :starts_at, :ends_at, :reason, :made_by, :owner, NULL, '', '')",
            id=switch.id,
            kind=kind,
            tenant=switch.tenant,
            agent=switch.agent,
            environment=switch.environment,
            tool=switch.tool,
            starts_at=stamp(starts_at),
            ends_at=None if ends_at is None else stamp(ends_at),
            reason=switch.reason,
            made_by=by.user,
            owner=by.tenant,
        )
        return switch

    def _switch(
        self,
        kind: Literal["kill", "freeze"],
        *,
        by: Principal,
        reason: str,
        scope: tuple[str, str, str, str],
        starts_at: datetime,
        ends_at: datetime | None,
    ) -> Switch:
        tenant, agent, environment, tool = scope
        return Switch(
            id=new_id("swt", at=self._clock(), entropy=self._entropy(10)),
            kind=kind,
            tenant=tenant,
            agent=agent,
            environment=environment,
            tool=tool,
            starts_at=starts_at,
            ends_at=ends_at,
            reason=self._clean(given_reason(reason, why="a stop")),
            by=by.user,
        )

    def _hold(self, connection: Connection) -> None:
        """Wait for the starts under way, and let none begin until this transaction ends.

        The version is a new random word each time and never a count: a count could come again after a rollback, and
        what was read under it before would pass for what is there now.
        """
        if self._is_postgres:
            connection.all("SELECT pg_advisory_xact_lock(:lock)", lock=_LOCK)
        connection.run(
            "UPDATE quell_switch_head SET version = :version WHERE name = 'head'", version=self._entropy(10).hex()
        )


def _check_may_stop(by: Principal, *, scope: tuple[str, str, str, str]) -> None:
    check_person(by, what="stop things", scope="switch.set")
    if KILL_ROLES.isdisjoint(by.roles):
        raise RefusedError(f"{by.user} may not stop things", hint=f"roles that may: {', '.join(sorted(KILL_ROLES))}")
    if scope[0] != by.tenant and "admin" not in by.roles:
        raise RefusedError(f"{by.user} may stop what is of tenant {by.tenant}", hint="an admin may stop all")
    if any(not glob or len(glob) > _GLOB_MAX_CHARS for glob in (scope[0], scope[3])):
        raise UsageError("a glob that covers nothing stops nothing", hint="write * for all")


def _read(connection: Connection) -> tuple[Switch, ...]:
    rows = connection.all("SELECT * FROM quell_switches WHERE lifted_at IS NULL ORDER BY id")
    return tuple(
        Switch(
            id=row.id,
            kind=row.kind,
            tenant=row.tenant,
            agent=row.agent,
            environment=row.environment,
            tool=row.tool,
            starts_at=datetime.fromisoformat(row.starts_at),
            ends_at=datetime.fromisoformat(row.ends_at) if row.ends_at else None,
            reason=row.reason,
            by=row.made_by,
        )
        for row in rows
    )


def _holds(switch: Switch, *, at: datetime) -> bool:
    if switch.kind == "kill":
        return True
    return switch.starts_at <= at and (switch.ends_at is None or at < switch.ends_at)
