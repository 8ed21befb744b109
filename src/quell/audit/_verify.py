"""Verification: one walk over the log, then judgement of its order, its end, its checkpoints, anchors and bodies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quell.audit._blobs import Blobs
from quell.audit._checkpoint import Verifier, read_note
from quell.audit._merkle import GENESIS, Frontier, chain_hash
from quell.audit._order import Stretch, judge_order
from quell.audit._tables import (
    Watch,
    digests_in,
    leaf_at,
    leaf_tail,
    note_digest,
    read_checkpoints,
    read_records,
)
from quell.domain import AuditCheckpoint, AuditFinding, AuditKind, AuditRecord, AuditReport, Tampering
from quell.runs import Database

_SEARCH_MAX = 5_000
"""How far from its number a record is looked for."""
_NEAR = 8
"""How far it is always looked for."""
_TRIES_MAX = 100_000
_BEYOND_MAX = 100_000
_REHASHED_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What the head says of the log."""

    origin: str
    size: int
    hash: str
    frontier: str
    last: int
    """Largest number of a record, in the same instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A checkpoint that the log tells of."""

    number: int
    size: int
    digest: str


@dataclass(slots=True, kw_only=True)
class _Walk:
    """What one pass over the records gathers."""

    sizes: frozenset[int]
    """Sizes of checkpoints, at which hashes are remembered."""
    last: int
    stretches: list[Stretch] = field(default_factory=list)
    rehashed: list[int] = field(default_factory=list)
    since: dict[int, str] = field(default_factory=dict)
    """When the records were written that come first behind a checkpoint and the record that tells of it."""
    chains: dict[int, str] = field(default_factory=dict)
    roots: dict[int, str] = field(default_factory=dict)
    told: list[_Told] = field(default_factory=list)
    bodies: list[tuple[int, str]] = field(default_factory=list)
    frontier: Frontier = field(default_factory=Frontier)
    is_whole: bool = True
    """Whether the tree of what was walked over is known."""
    count: int = 0
    final: AuditRecord | None = None
    tries: int = _TRIES_MAX
    """Hashes that may still be made to find out where displaced records belong."""

    def step(self, record: AuditRecord | int) -> None:
        """Take the next record, or the number of one that cannot be read."""
        self.count += 1
        if isinstance(record, int):
            self._place(record, None, "")
            self.final, self.is_whole = None, False
            return
        tail = leaf_tail(record)
        offset = self._offset_of(record, tail)
        self._link(record, offset)
        self._place(record.number, offset, record.hash)
        self.final = record if offset is not None else None
        if offset is None:
            self.is_whole = False
            return
        self._remember(record, record.number + offset, tail)

    def _offset_of(self, record: AuditRecord, tail: bytes) -> int | None:
        def fits(offset: int) -> bool:
            return chain_hash(record.previous, leaf_at(record.number + offset, tail)) == record.hash

        usual = self.stretches[-1].offset or 0 if self.stretches else 0
        try:
            if fits(usual):
                return usual
            if fits(0):
                return 0
        except ValueError:
            return None
        reach = max(min(_SEARCH_MAX, max(self.last, abs(record.number)), self.tries // 2), _NEAR)
        self.tries -= 2 * reach
        # Near places first: most of what is moved is moved by one.
        return next((offset for far in range(1, reach + 1) for offset in (far, -far) if fits(offset)), None)

    def _link(self, record: AuditRecord, offset: int | None) -> None:
        """Find a record whose own hash was made anew: the next one still names the old hash."""
        before = self.stretches[-1] if self.stretches else None
        if offset is None:
            return
        if before is None or before.offset is None:
            is_broken = record.number + offset == 1 and record.previous != GENESIS
            if is_broken:
                self.rehashed.append(record.number)
        elif before.offset == offset and before.last + 1 == record.number:
            assert self.final is not None
            is_broken = record.previous != self.final.hash
            if is_broken and len(self.rehashed) < _REHASHED_MAX:
                self.rehashed.append(before.last)
        else:
            is_broken = True
        self.is_whole = self.is_whole and not is_broken

    def _place(self, number: int, offset: int | None, told: str) -> None:
        newest = self.stretches[-1] if self.stretches else None
        if newest and newest.offset == offset and newest.last + 1 == number:
            newest.last, newest.last_hash = number, told
        else:
            stretch = Stretch(first=number, last=number, offset=offset, first_hash=told, last_hash=told)
            self.stretches.append(stretch)

    def _remember(self, record: AuditRecord, place: int, tail: bytes) -> None:
        self.is_whole = self.is_whole and place == self.frontier.size + 1
        if self.is_whole:
            self.frontier = self.frontier.append(leaf_at(place, tail))
        if place == 1 or place - 2 in self.sizes:
            self.since[place] = record.at
        if place in self.sizes:
            self.chains[place] = record.hash
            if self.is_whole:
                self.roots[place] = self.frontier.root.hex()
        if record.kind == AuditKind.CHECKPOINT and (told := _told_of(record, place)):
            self.told.append(told)
        self.bodies += [(place, digest) for digest in digests_in(record.body)]


def verify_log(
    database: Database,
    *,
    keys: Sequence[str],
    anchored: Sequence[tuple[str, str]],
    blobs: Blobs,
    watch: Watch | None = None,
) -> AuditReport:
    """Walk over everything and name every tampering."""
    verifier = Verifier(keys)
    claim, kept = _claimed(database)
    findings: list[AuditFinding] = []
    notes = _judge_notes(kept, verifier, claim, findings)
    elsewhere = _judge_anchored(anchored, verifier, claim, findings)
    walk = _Walk(sizes=frozenset(note.size for note in (*notes, *elsewhere)), last=claim.last)
    for record in read_records(database, last=claim.last, watch=watch):
        walk.step(record)
    # A checkpoint is followed by the record that tells of it, in the same transaction.
    known = max((note.size + 1 for note in (*notes, *elsewhere)), default=0)
    rows, reach = judge_order(
        walk.stretches,
        size=walk.count if claim.size < 0 else claim.size,
        bound=max(walk.count, known) + _BEYOND_MAX,
    )
    rows += [
        _found(Tampering.EDITED, at, at, "its hash was made anew: the next one names another") for at in walk.rehashed
    ]
    _judge_end(walk, claim, reach=reach, known=known, rows=rows)
    _judge_told(walk, kept, rows=rows, findings=findings)
    for signed in (notes, elsewhere):
        _judge_forks(walk, signed, rows=rows, findings=findings)
    expired = _judge_bodies(walk.bodies, blobs, findings)
    signed_to = max((note.size for note in notes if note.size <= reach), default=0)
    behind = signed_to + 2 if signed_to else 1
    return AuditReport(
        origin=claim.origin,
        records=walk.count,
        root=walk.frontier.root.hex() if walk.is_whole else "",
        checkpoints=len(kept),
        signed=signed_to,
        unsigned=max(0, reach - behind + 1),
        unsigned_since=walk.since.get(behind, ""),
        anchored=max((note.size for note in elsewhere if note.size <= reach), default=0),
        blobs=len(walk.bodies),
        blobs_expired=expired,
        findings=_sorted([*rows, *findings]),
    )


def _claimed(database: Database) -> tuple[_Claim, list[tuple[int, str]]]:
    """Read the end of the log and its checkpoints, so that what is added meanwhile cannot look like tampering."""
    with database.reading() as connection:
        before = read_checkpoints(connection)
        row = connection.one(
            "SELECT h.origin, h.size, h.hash, h.frontier, (SELECT MAX(number) FROM quell_audit) AS last"
            " FROM (SELECT 1 AS id) AS one LEFT JOIN quell_audit_head h ON h.id = one.id"
        )
        last = row.last or 0
        after = [pair for pair in read_checkpoints(connection) if pair[0] < last]
    claim = (
        _Claim(origin="", size=-1, hash="", frontier="", last=last)
        if not isinstance(row.size, int)
        or not all(isinstance(text, str) for text in (row.origin, row.hash, row.frontier))
        else _Claim(origin=row.origin, size=row.size, hash=row.hash, frontier=row.frontier, last=last)
    )
    return claim, sorted({*before, *after})


def _judge_notes(
    kept: Sequence[tuple[int, str]], verifier: Verifier, claim: _Claim, findings: list[AuditFinding]
) -> list[AuditCheckpoint]:
    """Return the checkpoints of the log that are what they seem."""
    good = []
    for size, note in kept:
        wrong = ""
        try:
            checkpoint = read_note(note)
        except ValueError:
            wrong = "it cannot be read"
        else:
            if not verifier.is_signed(note):
                wrong = "no trusted key signed it"
            elif checkpoint.size != size:
                wrong = f"it is that of {checkpoint.size} records"
            elif claim.size >= 0 and checkpoint.origin != claim.origin:
                wrong = f"it is that of another log, {checkpoint.origin}"
            else:
                good.append(checkpoint)
        if wrong:
            findings.append(_found(Tampering.CHECKPOINT_FORGED, size, size, wrong))
    return good


def _judge_anchored(
    anchored: Sequence[tuple[str, str]], verifier: Verifier, claim: _Claim, findings: list[AuditFinding]
) -> list[AuditCheckpoint]:
    """Return the checkpoints that were kept elsewhere; they are believed even where the keys were exchanged."""
    good: dict[int, AuditCheckpoint] = {}
    for name, note in anchored:
        try:
            checkpoint = read_note(note)
        except ValueError:
            # An anchor may hold other things, and what a crash cut short.
            continue
        size = checkpoint.size
        if not verifier.is_signed(note):
            findings.append(_found(Tampering.CHECKPOINT_FORGED, size, size, f"{name}: no trusted key signed it"))
        if claim.size >= 0 and checkpoint.origin != claim.origin:
            findings.append(_found(Tampering.FORKED, 1, max(size, 1), f"{name} holds another log, {checkpoint.origin}"))
        elif size in good and good[size].chain != checkpoint.chain:
            findings.append(_found(Tampering.FORKED, 1, size, f"{name}: two histories of {size} records were signed"))
        else:
            good[size] = checkpoint
    return [good[size] for size in sorted(good)]


def _judge_end(walk: _Walk, claim: _Claim, *, reach: int, known: int, rows: list[AuditFinding]) -> None:
    end = max(known, claim.size if claim.last < claim.size else 0)
    if reach < end:
        rows.append(_found(Tampering.TRUNCATED, reach + 1, end, "the log reached further"))
    if claim.size < 0:
        if walk.count or known:
            rows.append(_found(Tampering.HEAD_CHANGED, max(reach, 1), max(reach, 1), "the head is gone"))
        return
    if claim.last > claim.size and reach > claim.size:
        rows.append(_found(Tampering.INSERTED, claim.size + 1, reach, "the head does not count them"))
    if not walk.is_whole or rows:
        return
    final = walk.final.hash if walk.final else GENESIS
    is_chain, is_tree = claim.hash == final, claim.frontier == walk.frontier.to_text()
    if not is_chain and not is_tree:
        rows.append(_found(Tampering.EDITED, reach, reach, "its hash was made anew: the head names another"))
    elif not is_chain or not is_tree:
        rows.append(_found(Tampering.HEAD_CHANGED, reach, reach, "the head does not fit the last record"))


def _judge_told(
    walk: _Walk, kept: Sequence[tuple[int, str]], *, rows: Sequence[AuditFinding], findings: list[AuditFinding]
) -> None:
    """Compare the checkpoints with the records that tell of them."""
    told = {one.size: one for one in walk.told if not _covers(rows, one.number, one.number)}
    notes = dict(kept)
    for size, one in told.items():
        if size not in notes:
            findings.append(_found(Tampering.CHECKPOINT_DELETED, size, size, f"record {one.number} tells of it"))
        elif note_digest(notes[size]) != one.digest:
            findings.append(_found(Tampering.CHECKPOINT_FORGED, size, size, f"record {one.number} tells of another"))
    for size in notes:
        if size not in told and not _covers(rows, size + 1, size + 1) and not _covers(findings, size, size):
            findings.append(_found(Tampering.CHECKPOINT_FORGED, size, size, "no record tells of it"))


def _judge_forks(
    walk: _Walk, signed: Sequence[AuditCheckpoint], *, rows: Sequence[AuditFinding], findings: list[AuditFinding]
) -> None:
    """Find another history than the one that was signed, where no single record shows it."""
    agreed, is_told = 0, False
    for checkpoint in signed:
        size = checkpoint.size
        if size > 0 and size not in walk.chains:
            # The record at that place is gone or strange, and was told of.
            continue
        is_chain = size == 0 or walk.chains[size] == checkpoint.chain
        if is_chain and walk.roots.get(size, checkpoint.root) == checkpoint.root:
            agreed, is_told = size, False
        elif not is_told and not _covers(rows, agreed + 1, size):
            findings.append(
                _found(Tampering.FORKED, agreed + 1, size, f"{size} records were signed with another history")
            )
            is_told = True


def _judge_bodies(bodies: Sequence[tuple[int, str]], blobs: Blobs, findings: list[AuditFinding]) -> int:
    """Check the texts that lie beside the log; return how many are no longer kept."""
    states: dict[str, str] = {}
    for place, digest in bodies:
        if digest not in states:
            try:
                states[digest] = "kept" if blobs.find(digest) is not None else "expired"
            except ValueError:
                states[digest] = "changed"
        if states[digest] == "changed":
            findings.append(_found(Tampering.BLOB_CHANGED, place, place, f"its body {digest} was changed"))
    return sum(states[digest] == "expired" for _, digest in bodies)


def _covers(findings: Iterable[AuditFinding], first: int, last: int) -> bool:
    return any(one.first <= last and first <= one.last for one in findings)


def _found(what: Tampering, first: int, last: int, detail: str) -> AuditFinding:
    return AuditFinding(what=what, first=first, last=last, detail=detail)


def _sorted(findings: Iterable[AuditFinding]) -> tuple[AuditFinding, ...]:
    once = {(finding.first, finding.last, finding.what): finding for finding in findings}
    return tuple(once[key] for key in sorted(once))


def _told_of(record: AuditRecord, place: int) -> _Told | None:
    try:
        body = json.loads(record.body)
        return _Told(number=place, size=int(body["size"]), digest=str(body["note"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
