"""The words of the audit log: what is recorded, how it is signed, and what tampering is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class AuditKind(StrEnum):
    """What an audit record tells of."""

    REQUEST = "request"
    """What was asked for, and by whom."""
    EVIDENCE = "evidence"
    DECISION = "decision"
    APPROVAL = "approval"
    EFFECT = "effect"
    """An effect is about to happen: written, and on the disk, before it."""
    OUTCOME = "outcome"
    VERIFICATION = "verification"
    BUDGET = "budget"
    AUTONOMY = "autonomy"
    POLICY = "policy"
    """Policies, tools and settings are in force from here on; with those that were before."""
    IDENTITY = "identity"
    SWITCH = "switch"
    """A freeze or the kill switch was set or lifted."""
    PIN = "pin"
    REFUSAL = "refusal"
    """Input that was turned away before anything was decided about it."""
    CHECKPOINT = "checkpoint"
    """The log was signed; written by the log itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What will be recorded: redacted, canonical, its large bodies already in the blob store."""

    at: str
    """RFC 3339 in UTC with microseconds, as it is hashed."""
    kind: AuditKind
    run: str
    principal: str
    body: str
    """Canonical JSON: sorted keys, no spaces, ASCII, no floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One record as it stands in the log, or as somebody left it there."""

    number: int
    """Place in the log, from 1."""
    at: str
    kind: str
    run: str
    principal: str
    body: str
    previous: str
    """Hash of the record before; 32 zero bytes for the first."""
    hash: str
    """SHA-256 of 0x02, the previous hash and the leaf hash of this record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheckpoint:
    """The log at one size, signed: a C2SP signed note."""

    origin: str
    """Names the log."""
    size: int
    root: str
    """RFC 6962 root hash of the first `size` records, in hex."""
    chain: str
    """Chain hash of record `size`, in hex."""
    note: str
    """The signed note itself."""


class Tampering(StrEnum):
    """What somebody did to the log."""

    EDITED = "edited"
    DELETED = "deleted"
    INSERTED = "inserted"
    SWAPPED = "swapped"
    """Records stand in each other's places: `first` and `last` are the two places."""
    TRUNCATED = "truncated"
    FORKED = "forked"
    """Another history than the one that was signed or anchored, somewhere from `first` to `last`."""
    HEAD_CHANGED = "head changed"
    CHECKPOINT_FORGED = "checkpoint forged"
    CHECKPOINT_DELETED = "checkpoint deleted"
    BLOB_CHANGED = "blob changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One tampering and its place."""

    what: Tampering
    first: int
    """Record number."""
    last: int
    """Record number; the same as `first` when one record is meant."""
    detail: str

    def __str__(self) -> str:
        """Write it as one line."""
        place = f"record {self.first}" if self.first == self.last else f"records {self.first} to {self.last}"
        return f"{place}: {self.what}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What a walk over a log or an export found."""

    origin: str
    records: int
    root: str
    """RFC 6962 root of all records in hex; empty when records could not be hashed or are only a part of the log."""
    checkpoints: int
    signed: int
    """Records that the newest checkpoint covers; those after it rest on the chain alone."""
    unsigned: int
    """Records that nothing signed covers yet, but for the one that tells of the newest checkpoint. Whoever may write to
    the database and knows how to hash can rewrite exactly these unseen."""
    unsigned_since: str
    """Time of the first of them; empty when there are none."""
    anchored: int
    """Records that the newest anchored checkpoint covers; 0: a rewrite of the whole log would not be found."""
    blobs: int
    blobs_expired: int
    """Bodies that are no longer kept: their digests and sizes still are."""
    findings: tuple[AuditFinding, ...] = ()
    """In the order of their places."""

    @property
    def is_intact(self) -> bool:
        """Whether nothing was tampered with, as far as can be known."""
        return not self.findings


class AuditAnchor(Protocol):
    """A place elsewhere that keeps checkpoints: whoever rewrites the log must not be able to rewrite it too."""

    name: str

    def publish(self, note: str) -> None:
        """Keep a signed note. Raises WorldError when the place cannot be written."""

    def published(self) -> Sequence[str]:
        """Return every note that was kept, oldest first. Raises WorldError when the place cannot be read."""
