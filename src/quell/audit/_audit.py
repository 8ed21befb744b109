"""The audit log: an append-only account of what was decided and done, that tells where somebody changed it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quell.audit._anchor import FileAnchor
from quell.audit._blobs import Blobs
from quell.audit._checkpoint import Signer, make_signer, public_keys
from quell.audit._export import export_records, prove_consistency, verify_export
from quell.audit._merkle import is_consistent
from quell.audit._redact import DEPTH_MAX, Redactor
from quell.audit._tables import (
    TABLES,
    Head,
    Watch,
    canonical,
    follow,
    lock_head,
    make_tables,
    newest_checkpoint,
    next_record,
    note_digest,
    read_naming,
    read_newest,
    read_records,
    write_checkpoint,
    write_head,
    write_record,
)
from quell.audit._verify import verify_log
from quell.domain import (
    AuditAnchor,
    AuditCheckpoint,
    AuditEntry,
    AuditKind,
    AuditRecord,
    AuditReport,
    Clock,
    ConfigError,
    Entropy,
    OverloadError,
    WorldError,
)
from quell.runs import Connection, Database

_LEAVES = frozenset({str, int, bool, type(None)})
INLINE_MAX_BYTES = 2_048
"""A longer text goes to the blob store; its record keeps digest and size."""
CHECKPOINT_S = 60
BUFFERED_MAX = 50
BUFFERED_MAX_S = 0.05
_WAITING_MAX = 2_000
_SIGNED_AT_ONCE = frozenset(
    {
        AuditKind.APPROVAL,
        AuditKind.AUTONOMY,
        AuditKind.IDENTITY,
        AuditKind.PIN,
        AuditKind.POLICY,
        AuditKind.SWITCH,
    }
)
"""What authority rests on, and what is rare: signed in the transaction that records it, so that no word of people ever
rests on the chain alone."""
_NUMBER_MAX = 1 << 62


class Audit:
    """The log of one journal; safe to use from any thread."""

    TABLES = TABLES

    def __init__(
        self,
        database: Database,
        *,
        directory: Path,
        clock: Clock,
        entropy: Entropy,
        redactor: Redactor,
        anchors: Sequence[AuditAnchor] = (),
        checkpoint_records: int = 100,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know where things lie; nothing is read or written yet.

        Args:
            database: The journal.
            directory: Holds the key, the public keys and the bodies: outside of the database.
            clock: Dates the records.
            entropy: Names the log and makes its key.
            redactor: Cleans every body before it is written.
            anchors: Places elsewhere that keep checkpoints.
            checkpoint_records: Records between two checkpoints, at most.
            monotonic: Bounds how long a note may wait.
        """
        self._database = database
        self._directory = directory
        self._clock = clock
        self._entropy = entropy
        self._redactor = redactor
        self._anchors = tuple(anchors)
        self._checkpoint_records = checkpoint_records
        self._monotonic = monotonic
        self._blobs = Blobs(directory / "audit-bodies", clock=clock, entropy=entropy)
        self._signer: Signer | None = None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: list[AuditEntry] = []
        self._waiting_since_s = 0.0
        self._has_added = False
        self._anchored: dict[str, str] = {}
        """The note that each anchor took last; what it holds in all is read once, for it grows for years."""

    def prepare(self) -> None:
        """Make the tables, the directory and the key, where they are missing; blocks.

        Raises:
            ConfigError: the directory or the key cannot be used.
            JournalError: the database cannot be used.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"cannot make {self._directory}: {error.strerror}") from error
        self._get_signer()
        origin = f"quell/audit/{self._entropy(8).hex()}"
        with self._database.writing() as connection:
            make_tables(connection, origin=origin)

    @property
    def public_key(self) -> str:
        """The key that checks this machine's signatures: keep a copy elsewhere."""
        return self._get_signer().public_key

    @property
    def anchors(self) -> tuple[AuditAnchor, ...]:
        """The places elsewhere that keep checkpoints."""
        return self._anchors

    @staticmethod
    def file_anchor(path: Path) -> AuditAnchor:
        """Return an anchor that appends to a file: on another disk or machine, or one that can only grow."""
        return FileAnchor(path)

    def entry(self, kind: AuditKind, *, run: str, principal: str, body: Mapping[str, object]) -> AuditEntry:
        """Redact and freeze what is to be recorded; long texts go to the blob store, flushed, so do it before a lock.

        Raises:
            TypeError: the body holds something that is not a JSON text, integer, boolean, null, list or object.
            BoundExceededError: the body is nested too deeply.
            WorldError: a long text cannot be kept.
        """
        # Looked through together: every look costs, and every decision is recorded.
        whole = [run, principal, _checked(body, depth=0)]
        clean = self._redactor.value(whole)
        assert isinstance(clean, list), "a list stays a list"
        return AuditEntry(
            at=_written(self._clock()),
            kind=kind,
            run=_printable(str(clean[0])),
            principal=_printable(str(clean[1])),
            body=self._body_of(clean[2]),
        )

    def append(self, connection: Connection, *entries: AuditEntry) -> list[AuditRecord]:
        """Record in the caller's transaction, as its last lock; sign when it is time.

        Raises:
            JournalError: the head of the log is damaged, or the database fails.
        """
        self._has_added = True
        head = lock_head(connection, for_update=self._database.for_update)
        records = []
        for entry in entries:
            if not head.signed_at:
                head = replace(head, signed_at=entry.at)
            record, leaf = next_record(
                head, at=entry.at, kind=entry.kind, run=entry.run, principal=entry.principal, body=entry.body
            )
            write_record(connection, record)
            records.append(record)
            head = follow(head, record, leaf)
            if self._is_due(head, at=entry.at):
                head, _ = self._sign(connection, head, at=entry.at)
        if any(entry.kind in _SIGNED_AT_ONCE for entry in entries) and head.size != head.signed + 1:
            head, _ = self._sign(connection, head, at=entries[-1].at)
        write_head(connection, head)
        return records

    def note(self, entry: AuditEntry) -> None:
        """Record soon, with others, what no effect rests on: within 50 ms where `keep_flushing` runs, or 50 notes.

        Raises:
            OverloadError: the database has failed for so long that no more can wait.
            JournalError: it was this note's turn to write them, and the database failed; they go on waiting.
        """
        with self._lock:
            if len(self._waiting) >= _WAITING_MAX:
                raise OverloadError("too many audit records wait for the journal", retry_after_s=5)
            if not self._waiting:
                self._waiting_since_s = self._monotonic()
            self._waiting.append(entry)
            is_due = (
                len(self._waiting) % BUFFERED_MAX == 0 or self._monotonic() - self._waiting_since_s >= BUFFERED_MAX_S
            )
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write the notes that wait. Call it before the transaction of an effect, whose flush then covers them too."""
        with self._flushing:
            with self._lock:
                batch = tuple(self._waiting)
            if not batch:
                return
            try:
                with self._database.writing(durability="written") as connection:
                    self.append(connection, *batch)
                with self._lock:
                    del self._waiting[: len(batch)]
            finally:
                # After a failure too: a database that is away is not asked for every note.
                self._waiting_since_s = self._monotonic()

    def finish(self) -> None:
        """Write what waits, and sign what this process has added: whoever ends leaves nothing to the chain alone.

        Raises JournalError when the database fails.
        """
        self.flush()
        if self._has_added:
            self.checkpoint()

    async def keep_flushing(self) -> None:
        """Write waiting notes every 50 ms until cancelled, and what is left then; failures are retried."""
        try:
            while True:
                await asyncio.sleep(BUFFERED_MAX_S)
                if self._waiting:
                    try:
                        await asyncio.to_thread(self.flush)
                    except WorldError:
                        # The notes go on waiting; `note` tells its callers when there are too many.
                        await asyncio.sleep(1)
        finally:
            self.flush()

    def checkpoint(self) -> AuditCheckpoint:
        """Sign the log as it stands, flushed; the same checkpoint again when nothing was added since."""
        self.flush()
        with self._database.writing() as connection:
            head = lock_head(connection, for_update=self._database.for_update)
            newest = newest_checkpoint(connection)
            if newest is not None and head.size == newest.size + 1:
                return newest
            head, checkpoint = self._sign(connection, head, at=_written(self._clock()))
            write_head(connection, head)
        return checkpoint

    def anchor(self) -> AuditCheckpoint:
        """Sign the log and publish the checkpoint to every anchor.

        Raises:
            WorldError: an anchor could not be written; the others were.
        """
        checkpoint = self.checkpoint()
        failures = []
        for anchor in self._anchors:
            try:
                last = self._anchored.get(anchor.name)
                if last != checkpoint.note and (last is not None or checkpoint.note not in anchor.published()):
                    anchor.publish(checkpoint.note)
                self._anchored[anchor.name] = checkpoint.note
            except WorldError as error:
                failures.append(f"{anchor.name}: {error}")
        if failures:
            raise WorldError(
                f"the checkpoint of {checkpoint.size} records was not anchored: {'; '.join(failures)}",
                hint="until it is, a rewrite of the whole log since the last anchor would not be found",
            )
        return checkpoint

    def verify(self, *, keys: Sequence[str] | None = None, watch: Watch | None = None) -> AuditReport:
        """Walk over everything and name every tampering; needs no private key.

        Args:
            keys: Public keys that are trusted; None: those of this machine, which whoever owns it could replace.
            watch: Hears from time to time how many records were read; whatever it raises ends the walk.

        Raises:
            WorldError: an anchor or a body cannot be read: nothing is said then, rather than too little.
        """
        return verify_log(
            self._database,
            keys=public_keys(self._directory) if keys is None else keys,
            anchored=[(anchor.name, note) for anchor in self._anchors for note in anchor.published()],
            blobs=self._blobs,
            watch=watch,
        )

    def records(
        self, *, after: int = 0, last: int = _NUMBER_MAX, run: str = "", kinds: Iterable[AuditKind] = ()
    ) -> Iterator[AuditRecord]:
        """Give the records after a number, in order, of one run or of some kinds."""
        wanted = frozenset(kinds)
        for record in read_records(self._database, after=after, last=last, run=run):
            if isinstance(record, AuditRecord) and (not wanted or record.kind in wanted):
                yield record

    def newest(
        self, *, run: str = "", kinds: Iterable[AuditKind] = (), since: str = "", items_max: int
    ) -> list[AuditRecord]:
        """Return the newest records, the newest first; of one run, of some kinds, or of a time (RFC 3339) and later.

        Raises:
            JournalError: the database fails, or a record cannot be read: `verify` names it.
        """
        with self._database.reading() as connection:
            return read_newest(connection, run=run, kinds=tuple(kinds), since=since, items_max=items_max)

    @staticmethod
    def naming(connection: Connection, text: str, *, run: str) -> list[AuditRecord]:
        """Return the records of a run whose body holds a plain text, in order, as this transaction sees them."""
        return read_naming(connection, text, run=run)

    def body(self, digest: str) -> str | None:
        """Return a long text by its digest; None when it is no longer kept.

        Raises:
            WorldError: it was changed, or cannot be read.
        """
        try:
            content = self._blobs.find(digest)
        except ValueError as error:
            raise WorldError(str(error), hint="verify the audit log") from error
        return None if content is None else content.decode("utf-8", "surrogatepass")

    def sweep(self, *, kept_for: timedelta) -> int:
        """Remove long texts that no record has named for so long; their digests stay. Return how many."""
        return self._blobs.sweep(kept_for=kept_for)

    def export(self, *, run: str = "", change: str = "", watch: Watch | None = None) -> Iterator[str]:
        """Give JSON lines that prove themselves against a public key: all, or the evidence pack of a run or a change.

        `watch` hears from time to time how many records were read; whatever it raises ends the export.
        """
        checkpoint = self.checkpoint()
        return export_records(
            self._database,
            checkpoint=checkpoint,
            blobs=self._blobs,
            public_key=self.public_key,
            run=run,
            change=change,
            watch=watch,
        )

    @staticmethod
    def verify_export(lines: Iterable[str], *, keys: Sequence[str]) -> AuditReport:
        """Check an export with public keys alone, without the log."""
        return verify_export(lines, keys=keys)

    def consistency(self, first: AuditCheckpoint, second: AuditCheckpoint) -> list[str]:
        """Return the proof, in hex, that the second checkpoint continues the first (RFC 6962, section 2.1.2).

        Raises:
            UsageError: the log does not reach the second, or the first is empty or the later one.
        """
        return prove_consistency(self._database, first=first.size, second=second.size)

    @staticmethod
    def continues(first: AuditCheckpoint, second: AuditCheckpoint, *, proof: Sequence[str]) -> bool:
        """Check such a proof, without the log."""
        return first.origin == second.origin and is_consistent(
            first=first.size,
            first_root=bytes.fromhex(first.root),
            second=second.size,
            second_root=bytes.fromhex(second.root),
            proof=[bytes.fromhex(step) for step in proof],
        )

    def _get_signer(self) -> Signer:
        if self._signer is None:
            self._signer = make_signer(self._directory, entropy=self._entropy)
        return self._signer

    def _is_due(self, head: Head, *, at: str) -> bool:
        if head.size - head.signed >= self._checkpoint_records:
            return True
        return _read_at(at) - _read_at(head.signed_at) >= timedelta(seconds=CHECKPOINT_S)

    def _sign(self, connection: Connection, head: Head, *, at: str) -> tuple[Head, AuditCheckpoint]:
        checkpoint = self._get_signer().sign(
            origin=head.origin, size=head.size, root=head.frontier.root, chain=head.hash
        )
        write_checkpoint(connection, checkpoint)
        # The log tells of its own checkpoints, so that none can be taken away.
        body = {"note": note_digest(checkpoint.note), "root": checkpoint.root, "size": checkpoint.size}
        record, leaf = next_record(
            head,
            at=at,
            kind=AuditKind.CHECKPOINT,
            run="",
            principal="",
            body=canonical(body),
        )
        write_record(connection, record)
        return replace(follow(head, record, leaf), signed=checkpoint.size, signed_at=at), checkpoint

    def _body_of(self, clean: object) -> str:
        text = canonical(clean)
        # No text in it is longer than the whole: most bodies are short, and need not be gone through.
        is_short = len(text) <= INLINE_MAX_BYTES and len(text.encode("utf-8", "surrogatepass")) <= INLINE_MAX_BYTES
        return text if is_short else canonical(self._kept(clean))

    def _kept(self, value: object) -> object:
        if isinstance(value, str) and len(value) > INLINE_MAX_BYTES // 4:
            content = value.encode("utf-8", "surrogatepass")
            if len(content) > INLINE_MAX_BYTES:
                return {"blob": self._blobs.put(content), "size_bytes": len(content)}
        if isinstance(value, dict):
            return {key: self._kept(under) for key, under in value.items()}
        if isinstance(value, list):
            return [self._kept(part) for part in value]
        return value


def _checked(value: object, *, depth: int) -> object:
    """Return a JSON value with plain containers; floats have no canonical form."""
    if value is None or isinstance(value, (str, int)):
        return value
    if depth > DEPTH_MAX:
        return value  # The redactor says so.
    # Plain dicts first: asking for the abstract class is what costs.
    if type(value) is dict or isinstance(value, Mapping):
        return _checked_table(value, depth=depth)
    if isinstance(value, list | tuple):
        return [part if type(part) in _LEAVES else _checked(part, depth=depth + 1) for part in value]
    raise TypeError(f"an audit body holds no {type(value).__name__}: write numbers as integers of a named unit")


def _checked_table(value: Mapping[object, object], *, depth: int) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, under in value.items():
        if not isinstance(key, str):
            raise TypeError("the keys of an audit body are texts")
        table[key] = under if type(under) in _LEAVES else _checked(under, depth=depth + 1)
    return table


def _written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _read_at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
