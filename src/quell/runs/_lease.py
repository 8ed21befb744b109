"""Executor slots: a process takes one exclusively, renews it, and loses it when it stops doing so.

A lease is a row with a token that is new each time the slot is taken. The token is also the executor id of the durable
runtime, so that a takeover can only ever touch what the dead holder left behind, never what its successor does.
Ages are told by a clock that nobody can set: the monotonic one of the machine for SQLite, the server's for Postgres.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from quell.domain import Entropy, StateHeldError
from quell.runs._database import Connection, Database

_SLOT_LOCK = 0x5155454C4C03
_SLOTS_MAX = 256
_START_TIME_FIELD = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a process holds: a slot, under a token that nobody had before."""

    slot: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    name: str
    token: str
    host: str
    pid: int
    pid_started: str
    is_expired: bool

    @property
    def is_dead(self) -> bool:
        """Whether its holder is gone for certain, or has not renewed in time."""
        return self.is_expired or _is_gone(self)


class Leases:
    """The slots of one journal."""

    def __init__(self, database: Database, *, lease_s: float, entropy: Entropy) -> None:
        self._database = database
        self._lease_s = lease_s
        self._entropy = entropy
        self._is_postgres = database.dialect == "postgresql"

    def take(self, wanted: str) -> Lease:
        """Take the wanted slot, or the first free one when the name is empty.

        Raises StateHeldError when the wanted slot has a live holder.
        """
        with self._database.writing() as connection:
            self._queue(connection)
            slots = {slot.name: slot for slot in self._slots(connection)}
            name = wanted or self._first_free(slots)
            holder = slots.get(name)
            if holder is not None and not holder.is_dead:
                raise StateHeldError(
                    f"executor slot {name!r} is held by process {holder.pid}",
                    hint="give each process its own journal.executor, or leave it empty",
                )
            lease = Lease(slot=name, token=f"{name}.{self._entropy(6).hex()}")
            connection.run(
                "INSERT INTO quell_slots (name, token, host, pid, pid_started, expires_s)"
                f" VALUES (:name, :token, :host, :pid, :pid_started, {self._now_sql} + :lease_s)"
                " ON CONFLICT (name) DO UPDATE SET token = excluded.token, host = excluded.host,"
                " pid = excluded.pid, pid_started = excluded.pid_started, expires_s = excluded.expires_s",
                name=lease.slot,
                token=lease.token,
                host=_host(),
                pid=os.getpid(),
                pid_started=_started(os.getpid()),
                lease_s=self._lease_s,
                **self._now,
            )
        return lease

    def renew(self, lease: Lease) -> bool:
        """Prolong a lease; False when somebody else has taken it."""
        with self._database.writing(durability="written") as connection:
            changed = connection.run(
                f"UPDATE quell_slots SET expires_s = {self._now_sql} + :lease_s WHERE name = :name AND token = :token",
                name=lease.slot,
                token=lease.token,
                lease_s=self._lease_s,
                **self._now,
            )
        return changed == 1

    def release(self, lease: Lease) -> None:
        """Give a slot back."""
        with self._database.writing() as connection:
            _delete(connection, name=lease.slot, token=lease.token)

    def bury(self) -> None:
        """Remove the slots of dead holders; each goes once, whoever looks first."""
        with self._database.reading() as connection:
            if not any(slot.is_dead for slot in self._slots(connection)):
                return
        with self._database.writing() as connection:
            self._queue(connection)
            for slot in self._slots(connection):
                if slot.is_dead:
                    _delete(connection, name=slot.name, token=slot.token)

    def without_holder(self, tokens: Iterable[str]) -> list[str]:
        """Of these tokens, return those that nobody holds.

        Ask with tokens that were read before this call: a token is written before its holder does anything.
        """
        with self._database.reading() as connection:
            held = {row.token for row in connection.all("SELECT token FROM quell_slots")}
        return sorted(set(tokens) - held)

    @property
    def _now_sql(self) -> str:
        return "EXTRACT(EPOCH FROM clock_timestamp())" if self._is_postgres else ":monotonic_s"

    @property
    def _now(self) -> dict[str, float]:
        return {} if self._is_postgres else {"monotonic_s": time.monotonic()}

    def _queue(self, connection: Connection) -> None:
        if self._is_postgres:
            connection.all("SELECT pg_advisory_xact_lock(:lock)", lock=_SLOT_LOCK)

    def _slots(self, connection: Connection) -> list[_Slot]:
        rows = connection.all(
            f"SELECT name, token, host, pid, pid_started, expires_s < {self._now_sql} AS is_expired FROM quell_slots",
            **self._now,
        )
        return [
            _Slot(
                name=row.name,
                token=row.token,
                host=row.host,
                pid=row.pid,
                pid_started=row.pid_started,
                # On SQLite another host name means another boot of this machine: its clock has no meaning any more.
                is_expired=bool(row.is_expired) or (not self._is_postgres and _boot(row.host) != _boot(_host())),
            )
            for row in rows
        ]

    @staticmethod
    def _first_free(slots: dict[str, _Slot]) -> str:
        for number in range(_SLOTS_MAX):
            name = f"slot-{number}"
            if name not in slots or slots[name].is_dead:
                return name
        raise StateHeldError(f"all {_SLOTS_MAX} executor slots are held", hint="end processes that are not needed")


def _delete(connection: Connection, *, name: str, token: str) -> None:
    connection.run("DELETE FROM quell_slots WHERE name = :name AND token = :token", name=name, token=token)


def _is_gone(slot: _Slot) -> bool:
    """Whether the holder ran on this machine, where its process can be looked for, and is not there."""
    return slot.host == _host() and _started(slot.pid) != slot.pid_started


@lru_cache(maxsize=1)
def _host() -> str:
    """Name this boot of this machine and its process namespace: where a process number means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return f"{os.uname().nodename}/"
    return f"{boot}/{space}"


def _boot(host: str) -> str:
    return host.partition("/")[0]


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty when there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[_START_TIME_FIELD]
