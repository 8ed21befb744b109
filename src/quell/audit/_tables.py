"""The audit log in the database: its tables, its rows, and how a row is hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from quell.audit._checkpoint import read_note
from quell.audit._merkle import GENESIS, Frontier, chain_hash, leaf_hash
from quell.domain import AuditCheckpoint, AuditKind, AuditRecord, JournalError
from quell.runs import Connection, Database

TABLES = (
    """CREATE TABLE IF NOT EXISTS quell_audit (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        run TEXT NOT NULL,
        principal TEXT NOT NULL,
        body TEXT NOT NULL,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS quell_audit_run ON quell_audit (run, number)",
    """CREATE TABLE IF NOT EXISTS quell_audit_head (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL,
        size INTEGER NOT NULL,
        hash TEXT NOT NULL,
        frontier TEXT NOT NULL,
        signed INTEGER NOT NULL,
        signed_at TEXT NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS quell_audit_checkpoint (
        size INTEGER PRIMARY KEY,
        note TEXT NOT NULL
    )""",
)
_PAGE = 2_000
Watch: TypeAlias = Callable[[int], None]
"""Hears from time to time how many records were read; whatever it raises ends the walk."""
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""Writes JSON as it is hashed: sorted keys, no spaces, ASCII."""
_COLUMNS = "number, at, kind, run, principal, body, previous, hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the log ends: what the next record continues."""

    origin: str
    size: int
    hash: str
    frontier: Frontier
    signed: int
    """Size at the newest checkpoint."""
    signed_at: str


def leaf_tail(record: AuditRecord) -> bytes:
    """Write what is hashed of a record, but for its number: a JSON list without spaces, in ASCII."""
    fields = [record.at, record.kind, record.run, record.principal, record.body]
    return canonical(fields)[1:].encode()


def leaf_at(number: int, tail: bytes) -> bytes:
    """Return the leaf hash of a record that stands at a number."""
    return leaf_hash(b"[%d,%s" % (number, tail))


def note_digest(note: str) -> str:
    """Name a signed note."""
    return hashlib.sha256(note.encode("utf-8", "surrogatepass")).hexdigest()


def make_tables(connection: Connection, *, origin: str) -> None:
    """Make the tables and the head of an empty log, where they are missing."""
    connection.make_tables(TABLES)
    if connection.first("SELECT number FROM quell_audit LIMIT 1") is None:
        connection.run(
            "INSERT INTO quell_audit_head (id, origin, size, hash, frontier, signed, signed_at)"
            " VALUES (1, :origin, 0, :hash, '', 0, '') ON CONFLICT DO NOTHING",
            origin=origin,
            hash=GENESIS,
        )


def lock_head(connection: Connection, *, for_update: str) -> Head:
    """Read the head and let nobody else append until the transaction ends."""
    row = connection.first(f"SELECT * FROM quell_audit_head WHERE id = 1{for_update}")
    try:
        assert row is not None
        frontier = Frontier.from_text(row.frontier, size=row.size)
    except (AssertionError, ValueError, TypeError) as error:
        raise JournalError(
            "the head of the audit log is missing or damaged: nothing can be recorded, so nothing may be done",
            hint="verify the audit log, and restore the journal from a backup",
        ) from error
    return Head(
        origin=row.origin, size=row.size, hash=row.hash, frontier=frontier, signed=row.signed, signed_at=row.signed_at
    )


def write_head(connection: Connection, head: Head) -> None:
    """Move the end of the log."""
    connection.run(
        "UPDATE quell_audit_head SET size = :size, hash = :hash, frontier = :frontier, signed = :signed,"
        " signed_at = :signed_at WHERE id = 1",
        size=head.size,
        hash=head.hash,
        frontier=head.frontier.to_text(),
        signed=head.signed,
        signed_at=head.signed_at,
    )


def write_record(connection: Connection, record: AuditRecord) -> None:
    """Add one row."""
    connection.run(
        f"INSERT INTO quell_audit ({_COLUMNS}) VALUES (:number, :at, :kind, :run, :principal, :body, :previous, :hash)",
        number=record.number,
        at=record.at,
        kind=record.kind,
        run=record.run,
        principal=record.principal,
        body=record.body,
        previous=record.previous,
        hash=record.hash,
    )


def write_checkpoint(connection: Connection, checkpoint: AuditCheckpoint) -> None:
    """Keep a signed note."""
    connection.run(
        "INSERT INTO quell_audit_checkpoint (size, note) VALUES (:size, :note)",
        size=checkpoint.size,
        note=checkpoint.note,
    )


def read_checkpoints(connection: Connection) -> list[tuple[int, str]]:
    """Return every signed note with the size under which it lies."""
    return [
        (row.size, str(row.note))
        for row in connection.all("SELECT size, note FROM quell_audit_checkpoint ORDER BY size")
    ]


def newest_checkpoint(connection: Connection) -> AuditCheckpoint | None:
    """Return the newest signed note."""
    row = connection.first("SELECT note FROM quell_audit_checkpoint ORDER BY size DESC LIMIT 1")
    return read_note(row.note) if row else None


def read_records(
    database: Database, *, after: int | None = None, last: int, run: str = "", watch: Watch | None = None
) -> Iterator[AuditRecord | int]:
    """Give the records after a number, in order; the number alone of one that cannot be read."""
    at, count = after, 0
    while True:
        page = _read_page(database, after=at, last=last, run=run, limit=_PAGE)
        yield from page
        count += len(page)
        if watch is not None:
            watch(count)
        if len(page) < _PAGE:
            return
        end = page[-1]
        at = end if isinstance(end, int) else end.number


def read_newest(
    connection: Connection, *, run: str, kinds: Sequence[AuditKind], since: str, items_max: int
) -> list[AuditRecord]:
    """Return the newest records first."""
    wanted = [f"kind IN ({', '.join(repr(AuditKind(kind).value) for kind in kinds)})"] if kinds else []
    bound: dict[str, str | int] = {"items_max": items_max}
    for name, value, test in (("run", run, "run = :run"), ("since", since, "at >= :since")):
        if value:
            wanted.append(test)
            bound[name] = value
    where = f"WHERE {' AND '.join(wanted)} " if wanted else ""
    rows = connection.all(f"SELECT {_COLUMNS} FROM quell_audit {where}ORDER BY number DESC LIMIT :items_max", **bound)
    return [AuditRecord(**vars(row)) for row in rows]


def read_naming(connection: Connection, text: str, *, run: str) -> list[AuditRecord]:
    """Return the records of a run whose body holds a plain text, in order."""
    rows = connection.all(
        f"SELECT {_COLUMNS} FROM quell_audit WHERE run = :run AND body LIKE :wanted ORDER BY number",
        run=run,
        wanted=f"%{text}%",
    )
    return [AuditRecord(**vars(row)) for row in rows]


def _read_page(database: Database, *, after: int | None, last: int, run: str, limit: int) -> list[AuditRecord | int]:
    where = (
        ("number > :after AND " if after is not None else "") + "number <= :last" + (" AND run = :run" if run else "")
    )
    bound: dict[str, str | int] = {"last": last, "limit": limit}
    bound |= {"after": after} if after is not None else {}
    bound |= {"run": run} if run else {}
    rest = f"FROM quell_audit WHERE {where} ORDER BY number LIMIT :limit"
    try:
        with database.reading() as connection:
            rows = connection.all(f"SELECT {_COLUMNS} {rest}", **bound)
        return [_record_of(vars(row)) for row in rows]
    except JournalError:
        # A row whose text is no text must not hide itself, nor the others.
        with database.reading() as connection:
            numbers = [row.number for row in connection.all(f"SELECT number {rest}", **bound)]
        return [_read_one(database, number) for number in numbers]


def _read_one(database: Database, number: int) -> AuditRecord | int:
    try:
        with database.reading() as connection:
            row = connection.one(f"SELECT {_COLUMNS} FROM quell_audit WHERE number = :number", number=number)
        return _record_of(vars(row))
    except JournalError:
        return number


def _record_of(columns: dict[str, Any]) -> AuditRecord | int:
    """Read a row; where somebody put anything but texts into it, its number is all there is to read."""
    number = int(columns.pop("number"))
    if all(isinstance(text, str) for text in columns.values()):
        return AuditRecord(number=number, **columns)
    return number


def follow(head: Head, record: AuditRecord, leaf: bytes) -> Head:
    """Return the head after a record."""
    return Head(
        origin=head.origin,
        size=record.number,
        hash=record.hash,
        frontier=head.frontier.append(leaf),
        signed=head.signed,
        signed_at=head.signed_at,
    )


def next_record(head: Head, *, at: str, kind: str, run: str, principal: str, body: str) -> tuple[AuditRecord, bytes]:
    """Return the record that continues the log, with its leaf hash."""
    bare = AuditRecord(
        number=head.size + 1, at=at, kind=kind, run=run, principal=principal, body=body, previous=head.hash, hash=""
    )
    leaf = leaf_at(bare.number, leaf_tail(bare))
    record = AuditRecord(
        number=bare.number,
        at=at,
        kind=kind,
        run=run,
        principal=principal,
        body=body,
        previous=head.hash,
        hash=chain_hash(head.hash, leaf),
    )
    return record, leaf


def digests_in(body: str) -> list[str]:
    """Return the digests of the large texts that a body names."""
    try:
        return _digests_of(json.loads(body)) if '"blob":"sha256:' in body else []
    except (ValueError, RecursionError):
        return []


def _digests_of(body: object) -> list[str]:
    if isinstance(body, dict):
        digest = body.get("blob")
        own = [digest] if isinstance(digest, str) and set(body) == {"blob", "size_bytes"} else []
        return own + [found for under in body.values() for found in _digests_of(under)]
    return [found for part in body for found in _digests_of(part)] if isinstance(body, list) else []
