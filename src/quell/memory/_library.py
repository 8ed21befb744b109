"""The documents that were taken in: full text in one SQLite file, searched by BM25, permissions held by the query.

What a document says is kept once, however many files hold it; each file has its own permission. A file is written in one
transaction, so that a search sees it before or after, and a crash between two files costs nothing: the next ingest
goes on where this one ended.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from quell.domain import Clock, SourceError, UsageError
from quell.memory._asking import match_of
from quell.memory._passage import Audience, Passage
from quell.memory._pieces import Piece, pieces_of
from quell.memory._walk import Document, Step, StepKind, listed, read

FILE = "library.sqlite"
PASSAGES_MAX = 50
_VERSION = 1
_PATIENCE_S = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEADING_WEIGHT, _TEXT_WEIGHT = 2.0, 1.0
_TABLES = (
    """CREATE TABLE source (
        id INTEGER PRIMARY KEY, store TEXT NOT NULL, tenant TEXT NOT NULL, root TEXT NOT NULL, path TEXT NOT NULL,
        content INTEGER NOT NULL REFERENCES content(id), is_open INTEGER NOT NULL,
        modified_ms INTEGER NOT NULL, size_bytes INTEGER NOT NULL, ingested_ms INTEGER NOT NULL,
        UNIQUE (store, tenant, root, path))""",
    "CREATE INDEX source_content ON source(content)",
    """CREATE TABLE permission (
        source INTEGER NOT NULL REFERENCES source(id) ON DELETE CASCADE, role TEXT NOT NULL,
        PRIMARY KEY (source, role)) WITHOUT ROWID""",
    "CREATE TABLE content (id INTEGER PRIMARY KEY, digest TEXT NOT NULL, suffix TEXT NOT NULL, UNIQUE (digest, suffix))",
    """CREATE TABLE piece (
        id INTEGER PRIMARY KEY, content INTEGER NOT NULL REFERENCES content(id), line INTEGER NOT NULL,
        heading TEXT NOT NULL, text TEXT NOT NULL)""",
    "CREATE INDEX piece_content ON piece(content)",
    """CREATE VIRTUAL TABLE piece_text USING fts5(
        heading, text, content='piece', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER piece_in AFTER INSERT ON piece BEGIN
        INSERT INTO piece_text(rowid, heading, text) VALUES (new.id, new.heading, new.text); END""",
    """CREATE TRIGGER piece_out AFTER DELETE ON piece BEGIN
        INSERT INTO piece_text(piece_text, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text); END""",
)
_PERMITTED = """(s.is_open OR EXISTS (
    SELECT 1 FROM permission p WHERE p.source = s.id AND p.role IN (SELECT value FROM json_each(:roles))))"""
_SEEN = f"s.store = :store AND s.tenant = :tenant AND {_PERMITTED}"
_SEARCH = f"""SELECT piece.id, piece.content, piece.line, piece.heading, piece.text, content.digest,
    bm25(piece_text, {_HEADING_WEIGHT}, {_TEXT_WEIGHT}) AS rank, snippet(piece_text, 1, '', '', ' … ', 24) AS snippet
    FROM piece_text JOIN piece ON piece.id = piece_text.rowid JOIN content ON content.id = piece.content
    WHERE piece_text MATCH :match AND EXISTS (SELECT 1 FROM source s WHERE s.content = piece.content AND {_SEEN})
    ORDER BY rank, piece.id LIMIT :most"""
_HOLDERS = f"""SELECT s.root, s.path, s.modified_ms, count(*) OVER () AS holders FROM source s
    WHERE s.content = :content AND {_SEEN} ORDER BY s.root, s.path LIMIT 1"""
_SOURCES = f"""SELECT s.*, c.digest, (SELECT count(*) FROM piece WHERE piece.content = s.content) AS pieces,
    (SELECT json_group_array(role) FROM (SELECT role FROM permission WHERE source = s.id ORDER BY role)) AS roles
    FROM source s JOIN content c ON c.id = s.content WHERE s.tenant = :tenant AND (:store = '' OR s.store = :store)
    AND (:is_all OR {_PERMITTED})
    ORDER BY s.store, s.root, s.path LIMIT :most"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One document that was taken in."""

    store: str
    path: str
    """Where the file is."""
    version: str
    """Digest of the file as it was read."""
    roles: tuple[str, ...]
    """Who may see it; empty: everybody of its tenant."""
    tenant: str
    pieces: int
    size_bytes: int
    modified_at: datetime
    ingested_at: datetime


class Library:
    """The documents of one state directory; safe to use from any thread and from several processes."""

    def __init__(self, state_dir: Path, *, clock: Clock) -> None:
        self._path = state_dir / FILE
        self._clock = clock

    def ingest(
        self,
        directory: Path,
        *,
        store: str,
        tenant: str = "local",
        roles: Sequence[str] = (),
        hear: Callable[[Step], None] | None = None,
    ) -> tuple[Step, ...]:
        """Take in the documents of a directory: new and changed ones are read, vanished ones are removed.

        Without roles everybody of the tenant may see them. What cannot be read now stays as it was.

        Raises:
            UsageError: it is no directory, or a name is none.
            BoundExceededError: there are too many documents.
            SourceError: the file of the library cannot be used.
        """
        _check_names(store, roles)
        root = directory.resolve()
        listing = listed(root)
        shelf = _Shelf(store=store, tenant=tenant, root=str(root), roles=tuple(sorted(set(roles))))
        steps: list[Step] = []

        def tell(step: Step) -> None:
            steps.append(step)
            if hear is not None:
                hear(step)

        for step in listing.left_out:
            tell(step)
        with self._opened("write") as raw:
            kept = set[str]()
            for path in listing.files:
                found = read(root, path)
                if isinstance(found, Document):
                    tell(self._keep(raw, shelf, found))
                else:
                    tell(found)
                if isinstance(found, Document) or found.kind == "failed":
                    kept.add(path)
            for step in self._sweep(raw, shelf, kept=kept, unread=listing.unread):
                tell(step)
        return tuple(steps)

    def search(self, question: str, *, store: str, audience: Audience, passages_max: int = 5) -> tuple[Passage, ...]:
        """Return the passages that fit a question best, of those that the audience may see.

        No question is a mistake: what is no word is passed over. Raises SourceError when the file cannot be used.
        """
        match = match_of(question)
        if not match or not self._path.exists():
            return ()
        who = {"store": store, "tenant": audience.tenant, "roles": _json(audience.roles)}
        most = max(1, min(passages_max, PASSAGES_MAX))
        with self._opened("read") as raw:
            raw.execute("BEGIN")
            rows = raw.execute(_SEARCH, {"match": match, "most": most, **who}).fetchall()
            found = []
            for row in rows:
                holder = raw.execute(_HOLDERS, {"content": row["content"], **who}).fetchone()
                found.append(_passage(row, holder))
            raw.rollback()
        return tuple(found)

    def sources(
        self, *, audience: Audience | None = None, store: str = "", tenant: str = "local", sources_max: int = 1_000
    ) -> tuple[Source, ...]:
        """Return what an audience may see, or without one all of a tenant, by store and path.

        Raises SourceError when the file cannot be used.
        """
        if not self._path.exists():
            return ()
        who = audience or Audience(tenant=tenant)
        wanted = {"store": store, "tenant": who.tenant, "roles": _json(who.roles), "is_all": audience is None}
        with self._opened("read") as raw:
            rows = raw.execute(_SOURCES, {**wanted, "most": sources_max}).fetchall()
        return tuple(_source(row) for row in rows)

    def forget(self, path: Path, *, store: str = "", tenant: str = "local") -> tuple[str, ...]:
        """Remove a document, or all below a directory, and return their paths. The files themselves stay as they are.

        Raises SourceError when the file of the library cannot be used.
        """
        if not self._path.exists():
            return ()
        wanted = Path(os.path.abspath(path))  # noqa: PTH100 - what it leads to may be gone, or lead elsewhere by now
        with self._opened("write") as raw:
            rows = raw.execute(
                "SELECT id, root, path FROM source WHERE tenant = :tenant AND (:store = '' OR store = :store)",
                {"tenant": tenant, "store": store},
            ).fetchall()
            gone = [row for row in rows if Path(row["root"], row["path"]).is_relative_to(wanted)]
            with _whole(raw):
                for row in gone:
                    _drop(raw, row["id"])
        return tuple(sorted(str(Path(row["root"], row["path"])) for row in gone))

    # -- writing ------------------------------------------------------------------------------------------------------

    def _keep(self, raw: sqlite3.Connection, shelf: _Shelf, document: Document) -> Step:
        """Write one document, in one transaction."""
        with _whole(raw):
            old = shelf.find(raw, document.path)
            content, pieces = _content(raw, document)
            is_same = old is not None and old["content"] == content and shelf.is_permission_of(raw, old)
            now_ms = (self._clock() - _EPOCH) // timedelta(milliseconds=1)
            shelf.write(raw, document, content=content, now_ms=now_ms)
            if old is not None and old["content"] != content:
                _drop_unheld(raw, old["content"])
        kind: StepKind = "added" if old is None else "same" if is_same else "changed"
        return Step(path=document.path, kind=kind, pieces=pieces)

    def _sweep(
        self, raw: sqlite3.Connection, shelf: _Shelf, *, kept: set[str], unread: Sequence[str]
    ) -> Iterator[Step]:
        """Remove what is there no more; what lies in a directory that could not be listed may still be there."""
        for row in shelf.rows(raw):
            path = str(row["path"])
            if path in kept or any(Path(path).is_relative_to(each) for each in unread):
                continue
            with _whole(raw):
                _drop(raw, row["id"])
            yield Step(path=path, kind="removed")

    # -- the file -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, way: Literal["read", "write"]) -> Iterator[sqlite3.Connection]:
        """Give a connection of its own. Raises SourceError when the file cannot be used."""
        raw: sqlite3.Connection | None = None
        try:
            if way == "write":
                self._make()
            raw = sqlite3.connect(self._path, isolation_level=None, timeout=_PATIENCE_S)
            raw.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                raw.execute(f"PRAGMA {pragma}")
            _prepare(raw)
            yield raw
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        finally:
            if raw is not None:
                raw.close()

    def _make(self) -> None:
        """Make the file so that nobody else may read it; SQLite's side files follow it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> SourceError:
        hint = "check the disk and the rights of the file; moved away, `quell memory ingest` builds it again"
        return SourceError(f"the library {self._path}: {error}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shelf:
    """Where the documents of one ingest stand, and who may see them."""

    store: str
    tenant: str
    root: str
    roles: tuple[str, ...]

    def rows(self, raw: sqlite3.Connection) -> list[sqlite3.Row]:
        return raw.execute(
            "SELECT * FROM source WHERE store = ? AND tenant = ? AND root = ? ORDER BY path",
            (self.store, self.tenant, self.root),
        ).fetchall()

    def find(self, raw: sqlite3.Connection, path: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = raw.execute(
            "SELECT * FROM source WHERE store = ? AND tenant = ? AND root = ? AND path = ?",
            (self.store, self.tenant, self.root, path),
        ).fetchone()
        return row

    def is_permission_of(self, raw: sqlite3.Connection, row: sqlite3.Row) -> bool:
        roles = raw.execute("SELECT role FROM permission WHERE source = ? ORDER BY role", (row["id"],)).fetchall()
        return tuple(each["role"] for each in roles) == self.roles

    def write(self, raw: sqlite3.Connection, document: Document, *, content: int, now_ms: int) -> None:
        (source,) = raw.execute(
            """INSERT INTO source (store, tenant, root, path, content, is_open, modified_ms, size_bytes, ingested_ms)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (store, tenant, root, path) DO UPDATE SET
            content = excluded.content, is_open = excluded.is_open, modified_ms = excluded.modified_ms,
            size_bytes = excluded.size_bytes, ingested_ms = excluded.ingested_ms RETURNING id""",
            (
                self.store,
                self.tenant,
                self.root,
                document.path,
                content,
                not self.roles,
                document.modified_ms,
                document.size_bytes,
                now_ms,
            ),
        ).fetchone()
        raw.execute("DELETE FROM permission WHERE source = ?", (source,))
        raw.executemany("INSERT INTO permission VALUES (?, ?)", [(source, role) for role in self.roles])


def _content(raw: sqlite3.Connection, document: Document) -> tuple[int, int]:
    """Return what a document says, kept once, and how many pieces it has."""
    key = (document.digest, document.suffix)
    row = raw.execute("SELECT id FROM content WHERE digest = ? AND suffix = ?", key).fetchone()
    if row is not None:
        (count,) = raw.execute("SELECT count(*) FROM piece WHERE content = ?", (row["id"],)).fetchone()
        return int(row["id"]), int(count)
    pieces: Sequence[Piece] = pieces_of(document.text, suffix=document.suffix)
    (content,) = raw.execute("INSERT INTO content (digest, suffix) VALUES (?, ?) RETURNING id", key).fetchone()
    raw.executemany(
        "INSERT INTO piece (content, line, heading, text) VALUES (?, ?, ?, ?)",
        [(content, piece.line, piece.heading, piece.text) for piece in pieces],
    )
    return int(content), len(pieces)


def _drop(raw: sqlite3.Connection, source: int) -> None:
    row = raw.execute("DELETE FROM source WHERE id = ? RETURNING content", (source,)).fetchone()
    if row is not None:
        _drop_unheld(raw, row["content"])


def _drop_unheld(raw: sqlite3.Connection, content: int) -> None:
    """Remove what a document said once no file holds it."""
    if raw.execute("SELECT 1 FROM source WHERE content = ?", (content,)).fetchone() is None:
        raw.execute("DELETE FROM piece WHERE content = ?", (content,))
        raw.execute("DELETE FROM content WHERE id = ?", (content,))


@contextmanager
def _whole(raw: sqlite3.Connection) -> Iterator[None]:
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        raw.rollback()
        raise
    raw.commit()


def _prepare(raw: sqlite3.Connection) -> None:
    """Make the tables of a new file. Raises SourceError for a file of a later version."""
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    if version > _VERSION:
        raise SourceError(f"the library is of version {version}, this Quell knows {_VERSION}", hint="update Quell")
    with _whole(raw):
        # Another process may have made them while we waited for our turn.
        (version,) = raw.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _TABLES:
                raw.execute(statement)
            raw.execute(f"PRAGMA user_version = {_VERSION}")


def _check_names(store: str, roles: Sequence[str]) -> None:
    if not store or not store.isascii() or not store.replace("-", "_").isidentifier() or len(store) > 40:
        raise UsageError(f"{store!r} is no name of a store", hint="letters, digits, - and _, at most 40")
    if any(not role.strip() for role in roles):
        raise UsageError("a role has no name", hint="such as --roles operator,admin")


def _passage(row: sqlite3.Row, holder: sqlite3.Row) -> Passage:
    return Passage(
        text=row["text"],
        score=round(-float(row["rank"]), 6),
        source=str(Path(holder["root"], holder["path"])),
        heading=row["heading"],
        line=row["line"],
        snippet=" ".join(str(row["snippet"]).split()),
        version=row["digest"],
        modified_at=_EPOCH + timedelta(milliseconds=holder["modified_ms"]),
        also_in=holder["holders"] - 1,
    )


def _source(row: sqlite3.Row) -> Source:
    return Source(
        store=row["store"],
        path=str(Path(row["root"], row["path"])),
        version=row["digest"],
        roles=tuple(json.loads(row["roles"])),
        tenant=row["tenant"],
        pieces=row["pieces"],
        size_bytes=row["size_bytes"],
        modified_at=_EPOCH + timedelta(milliseconds=row["modified_ms"]),
        ingested_at=_EPOCH + timedelta(milliseconds=row["ingested_ms"]),
    )


def _json(roles: Sequence[str]) -> str:
    return json.dumps(list(roles))
