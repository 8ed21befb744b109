"""Exports that prove themselves: JSON lines with inclusion proofs and a signed checkpoint, and the check of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from quell.audit._blobs import PREFIX, Blobs
from quell.audit._checkpoint import Verifier, read_note
from quell.audit._merkle import Tree, chain_hash, is_included
from quell.audit._tables import Watch, digests_in, leaf_at, leaf_tail, read_records
from quell.domain import AuditCheckpoint, AuditFinding, AuditKind, AuditRecord, AuditReport, Tampering, UsageError
from quell.runs import Database

FORMAT = "quell-audit-export-1"
PACK = (
    AuditKind.REQUEST,
    AuditKind.EVIDENCE,
    AuditKind.DECISION,
    AuditKind.APPROVAL,
    AuditKind.EFFECT,
    AuditKind.OUTCOME,
    AuditKind.VERIFICATION,
)
"""What the evidence pack of a change is expected to hold, in this order."""


def export_records(
    database: Database,
    *,
    checkpoint: AuditCheckpoint,
    blobs: Blobs,
    public_key: str,
    run: str = "",
    change: str = "",
    watch: Watch | None = None,
) -> Iterator[str]:
    """Give a head line, the records with their proofs, then their large bodies.

    The log is read twice, first for its leaves and then for what is told: of a large one only hashes are held.

    Raises:
        UsageError: nothing is recorded of that run or change.
    """
    leaves: list[bytes] = []
    chosen: dict[int, str] = {}
    for record in read_records(database, last=checkpoint.size, watch=watch):
        if isinstance(record, AuditRecord):
            leaves.append(leaf_at(record.number, leaf_tail(record)))
            if (not run or record.run == run) and (not change or _is_of_change(record, change)):
                chosen[record.number] = record.kind
    if not chosen and (run or change):
        raise UsageError(f"the audit log holds nothing of {change or run}", hint="check the id")
    yield _line(_head(chosen, checkpoint=checkpoint, public_key=public_key, run=run, change=change))
    tree = Tree(leaves)
    digests: dict[str, None] = {}
    for record in read_records(database, last=checkpoint.size, run=run, watch=watch):
        if not isinstance(record, AuditRecord) or record.number not in chosen:
            continue
        # A log that was tampered with is exported as it is: its proofs then fail, and say where.
        path = tree.inclusion(record.number - 1) if 0 < record.number <= len(leaves) else []
        yield _line({"type": "record", **asdict(record), "proof": [step.hex() for step in path]})
        digests |= dict.fromkeys(digests_in(record.body))
    for digest in digests:
        try:
            content = blobs.find(digest)
        except ValueError:
            yield _line({"type": "body", "digest": digest, "state": "changed"})
            continue
        if content is None:
            yield _line({"type": "body", "digest": digest, "state": "expired"})
        else:
            text = content.decode("utf-8", "surrogatepass")
            yield _line({"type": "body", "digest": digest, "state": "kept", "text": text})


def prove_consistency(database: Database, *, first: int, second: int) -> list[str]:
    """Return the proof that a tree of one size is the start of that of another."""
    leaves = [
        leaf_at(record.number, leaf_tail(record))
        for record in read_records(database, last=second)
        if isinstance(record, AuditRecord)
    ]
    if not 0 < first <= second == len(leaves):
        raise UsageError(
            f"the log has no proof from {first} to {second} records", hint=f"it holds {len(leaves)} of them"
        )
    return [step.hex() for step in Tree(leaves).consistency(first)]


def _head(
    chosen: Mapping[int, str], *, checkpoint: AuditCheckpoint, public_key: str, run: str, change: str
) -> dict[str, object]:
    sections: dict[str, list[int]] = {kind: [] for kind in PACK} if run or change else {}
    for number, kind in chosen.items():
        sections.setdefault(kind, []).append(number)
    return {
        "type": "head",
        "format": FORMAT,
        "run": run,
        "change": change,
        "records": len(chosen),
        "sections": sections,
        "missing": [kind for kind, numbers in sections.items() if not numbers],
        "checkpoint": checkpoint.note,
        "public_key": public_key,
    }


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What was read of an export so far."""

    verifier: Verifier
    checkpoint: AuditCheckpoint | None = None
    expected: int = 0
    count: int = 0
    digests: dict[str, int] = field(default_factory=dict)
    """Bodies that the records name, with the first record that does."""
    kept: set[str] = field(default_factory=set)
    is_part: bool = False
    findings: list[AuditFinding] = field(default_factory=list)
    before: AuditRecord | None = None

    def blame(self, what: Tampering, place: int, detail: str) -> None:
        self.findings.append(AuditFinding(what=what, first=place, last=place, detail=detail))

    def head(self, line: dict[str, object]) -> None:
        note = str(line.get("checkpoint"))
        self.expected = int(str(line.get("records")))
        self.is_part = bool(line.get("run") or line.get("change"))
        try:
            self.checkpoint = read_note(note)
        except ValueError:
            self.blame(Tampering.CHECKPOINT_FORGED, 0, "the checkpoint cannot be read")
            return
        if not self.verifier.is_signed(note):
            self.blame(Tampering.CHECKPOINT_FORGED, self.checkpoint.size, "no trusted key signed it")

    def record(self, line: dict[str, object]) -> None:
        self.count += 1
        texts = {name: str(line.get(name)) for name in ("at", "kind", "run", "principal", "body", "previous", "hash")}
        record = AuditRecord(number=int(str(line.get("number"))), **texts)
        leaf = leaf_at(record.number, leaf_tail(record))
        steps = line.get("proof")
        path = [bytes.fromhex(str(step)) for step in steps] if isinstance(steps, list) else []
        signed = self.checkpoint
        if chain_hash(record.previous, leaf) != record.hash:
            self.blame(Tampering.EDITED, record.number, "its content does not fit its hash")
        elif signed and not is_included(
            leaf, index=record.number - 1, size=signed.size, path=path, root=bytes.fromhex(signed.root)
        ):
            self.blame(Tampering.EDITED, record.number, "it is not in the signed log")
        if self.before and record.number <= self.before.number:
            self.blame(Tampering.SWAPPED, record.number, "it stands out of order")
        elif not self.is_part and record.number != (self.before.number if self.before else 0) + 1:
            self.blame(Tampering.DELETED, record.number - 1, "what stood before this record is gone")
        for digest in digests_in(record.body):
            self.digests.setdefault(digest, record.number)
        self.before = record

    def body(self, line: dict[str, object]) -> None:
        digest, state = str(line.get("digest")), line.get("state")
        place = self.digests.get(digest, 0)
        text = str(line.get("text", "")).encode("utf-8", "surrogatepass")
        if state == "changed" or (state == "kept" and PREFIX + hashlib.sha256(text).hexdigest() != digest):
            self.blame(Tampering.BLOB_CHANGED, place, f"its body {digest} was changed")
        elif state == "kept":
            self.kept.add(digest)
        elif state != "expired":
            raise ValueError(f"no state of a body: {state}")

    def end(self) -> None:
        """Judge whether all is there."""
        if self.checkpoint is None and not self.findings:
            self.blame(Tampering.TRUNCATED, 0, "there is no head line")
        if self.count != self.expected:
            last = self.before.number if self.before else 0
            self.blame(Tampering.TRUNCATED, last, f"{self.count} records instead of {self.expected}")
        if self.checkpoint and not self.is_part and self.count < self.checkpoint.size:
            self.blame(Tampering.TRUNCATED, self.count + 1, f"{self.checkpoint.size} records were signed")


def verify_export(lines: Iterable[str], *, keys: Sequence[str]) -> AuditReport:
    """Check an export with public keys alone."""
    reading = _Reading(verifier=Verifier(keys))
    known = {"head": reading.head, "record": reading.record, "body": reading.body}
    for number, line in enumerate(lines, start=1):
        try:
            read = json.loads(line)
            known[read["type"]](read)
        except (ValueError, KeyError, TypeError, RecursionError):
            reading.blame(
                Tampering.EDITED, reading.before.number if reading.before else 0, f"line {number} cannot be read"
            )
    reading.end()
    checkpoint = reading.checkpoint
    return AuditReport(
        origin=checkpoint.origin if checkpoint else "",
        records=reading.count,
        root="" if reading.is_part or checkpoint is None else checkpoint.root,
        checkpoints=int(checkpoint is not None),
        signed=checkpoint.size if checkpoint else 0,
        unsigned=0,
        unsigned_since="",
        anchored=0,
        blobs=len(reading.digests),
        blobs_expired=len(reading.digests) - len(reading.kept),
        findings=tuple(reading.findings),
    )


def _line(told: dict[str, object]) -> str:
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def _is_of_change(record: AuditRecord, change: str) -> bool:
    if json.dumps(change) not in record.body:
        return False
    try:
        body = json.loads(record.body)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("change") == change
