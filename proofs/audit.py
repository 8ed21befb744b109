"""Whoever changes the audit log is found, and told where: every edit, deletion, insertion, swap, truncation and fork."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from proofs._proof import Promise, Result, Scale
from quell.audit import Audit, Redactor
from quell.audit._checkpoint import Signer
from quell.audit._merkle import GENESIS, Frontier, chain_hash
from quell.audit._tables import leaf_at, leaf_tail, note_digest
from quell.config import JournalSettings
from quell.domain import AuditAnchor, AuditKind, AuditRecord, AuditReport, Tampering
from quell.runs import Database, Runs, system_clock

RECORDS = {"ci": 120, "full": 1_000}
COLUMNS = ("at", "kind", "run", "principal", "body", "previous", "hash")
T = Tampering


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One thing that an attacker does to the log, and what has to be said of it."""

    name: str
    places: tuple[int, ...]
    """Record numbers that have to be named."""
    expected: frozenset[Tampering]
    do: Callable[[], None]
    anchored: bool = False
    """Whether only an anchor can show it."""


class Log:
    """A real log on SQLite, an attacker who may write every byte of the database, and a way back."""

    def __init__(self, directory: Path, database: Database, *, records: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self._at = datetime(2026, 1, 1, tzinfo=UTC)
        self.anchor = Audit.file_anchor(directory / "elsewhere")
        self.audit = self._open(database, anchors=(self.anchor,), records=records)
        self.unanchored = self._open(database, anchors=(), records=records)
        self.audit.prepare()
        self._fill(database, records)
        self.audit.anchor()
        self.raw = sqlite3.connect(directory / "quell.db", isolation_level=None)
        self.raw.execute("PRAGMA synchronous=OFF")
        self.raw.execute("ATTACH ':memory:' AS kept")
        for table in TABLES:
            self.raw.execute(f"CREATE TABLE kept.{table} AS SELECT * FROM main.{table}")
        self.rows = self.read()
        self.size = len(self.rows)
        self.notes = dict(self.raw.execute("SELECT size, note FROM quell_audit_checkpoint ORDER BY size"))
        self.signed = max(self.notes)
        self.besides = 0
        """Attacks of which something was also said of a record that nobody touched."""

    def _open(self, database: Database, *, anchors: tuple[AuditAnchor, ...], records: int) -> Audit:
        return Audit(
            database,
            directory=self.directory / "audit",
            clock=self._clock,
            entropy=self.random.randbytes,
            redactor=Redactor(),
            anchors=anchors,
            checkpoint_records=max(records // 4, 5),
        )

    def _clock(self) -> datetime:
        self._at += timedelta(milliseconds=10)
        return self._at

    def _fill(self, database: Database, records: int) -> None:
        kinds = [kind for kind in AuditKind if kind is not AuditKind.CHECKPOINT]
        while sum(1 for _ in self.audit.records()) < records:
            body: dict[str, object] = {"n": self.random.randrange(10**6), "policies": ["a", "b"], "ok": True}
            if sum(1 for _ in self.audit.records()) % 9 == 4:
                body["prompt"] = self.random.randbytes(1_500).hex()
            run = f"run_{self.random.randrange(9)}"
            entry = self.audit.entry(self.random.choice(kinds), run=run, principal="ada", body=body)
            with database.writing(durability="written") as connection:
                self.audit.append(connection, entry)

    def run(self, sql: str, values: tuple[str | int, ...] = ()) -> None:
        self.raw.execute(sql, values)

    def read(self) -> list[AuditRecord]:
        rows = self.raw.execute(f"SELECT number, {', '.join(COLUMNS)} FROM quell_audit ORDER BY number").fetchall()
        return [AuditRecord(**dict(zip(("number", *COLUMNS), row, strict=True))) for row in rows]

    def restore(self) -> None:
        self.raw.execute("BEGIN")
        for table in TABLES:
            self.raw.execute(f"DELETE FROM main.{table}")
            self.raw.execute(f"INSERT INTO main.{table} SELECT * FROM kept.{table}")
        self.raw.execute("COMMIT")

    def write(self, rows: list[AuditRecord], *, head: bool) -> None:
        """Replace every record; `head`: the attacker makes the head fit as well as possible."""
        self.raw.execute("DELETE FROM quell_audit")
        self.raw.executemany(
            f"INSERT INTO quell_audit (number, {', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(row.number, *(getattr(row, column) for column in COLUMNS)) for row in rows],
        )
        if head:
            frontier = Frontier()
            for row in rows:
                frontier = frontier.append(leaf_at(row.number, leaf_tail(row)))
            final = rows[-1].hash if rows else GENESIS
            self.raw.execute(
                "UPDATE quell_audit_head SET size = ?, hash = ?, frontier = ?", (len(rows), final, frontier.to_text())
            )


TABLES = ("quell_audit", "quell_audit_head", "quell_audit_checkpoint")


def hashed(record: AuditRecord, *, previous: str) -> AuditRecord:
    """Give a record the hash that fits its content, as an attacker would who knows how."""
    leaf = leaf_at(record.number, leaf_tail(record))
    return replace(record, previous=previous, hash=chain_hash(previous, leaf))


def renumbered(rows: list[AuditRecord]) -> list[AuditRecord]:
    return [replace(row, number=number) for number, row in enumerate(rows, start=1)]


def rehashed(rows: list[AuditRecord]) -> list[AuditRecord]:
    previous, done = GENESIS, []
    for row in rows:
        done.append(hashed(row, previous=previous))
        previous = done[-1].hash
    return done


@contextmanager
def opened(*, records: int, seed: int) -> Iterator[Log]:
    with tempfile.TemporaryDirectory(prefix="quell-proof-") as told:
        directory = Path(told)
        opening = Runs.open(
            JournalSettings(), state_dir=directory, clock=system_clock, entropy=os.urandom, version="proof"
        )
        runs = asyncio.run(opening)
        try:
            log = Log(directory, runs.database, records=records, seed=seed)
            try:
                yield log
            finally:
                log.raw.close()
        finally:
            asyncio.run(runs.close())


def edits(log: Log) -> Iterator[Attack]:
    """Every field of every record, and every record under a hash that was made anew."""
    changed: dict[str, Callable[[str], str]] = {
        "at": lambda at: at.replace("2026", "2025"),
        "kind": lambda kind: "decision" if kind != "decision" else "effect",
        "run": lambda run: f"{run}x",
        "principal": lambda _: "mallory",
        "body": lambda body: body.replace("{", '{"a":0,', 1),
        "previous": lambda told: told[:-1] + ("0" if told[-1] != "0" else "1"),
        "hash": lambda told: ("0" if told[0] != "0" else "1") + told[1:],
    }
    for row in log.rows:
        at = row.number
        for column in COLUMNS:
            value = changed[column](getattr(row, column))
            yield Attack(
                name=f"edit {column}",
                places=(at,),
                expected=frozenset({T.EDITED}),
                do=partial(log.run, f"UPDATE quell_audit SET {column} = ? WHERE number = ?", (value, at)),
            )
        for number in (log.size + 1_000 + at, -at, 0):
            yield Attack(
                name=f"edit number to {number}",
                places=(at,),
                expected=frozenset({T.EDITED, T.SWAPPED, T.DELETED, T.TRUNCATED}),
                do=partial(log.run, "UPDATE quell_audit SET number = ? WHERE number = ?", (number, at)),
            )
        yield Attack(
            name="edit to no text",
            places=(at,),
            expected=frozenset({T.EDITED}),
            do=partial(log.run, "UPDATE quell_audit SET body = CAST(x'fffe22' AS TEXT) WHERE number = ?", (at,)),
        )
        if at <= log.signed:
            forged = hashed(replace(row, principal="mallory"), previous=row.previous)
            rows = [*log.rows[: at - 1], forged, *log.rows[at:]]
            yield Attack(
                name="edit and hash anew",
                places=(at,),
                expected=frozenset({T.EDITED}),
                do=partial(log.write, rows, head=True),
            )


def removals(log: Log) -> Iterator[Attack]:
    for row in log.rows:
        at = row.number
        gone = frozenset({T.DELETED}) if at < log.size else frozenset({T.TRUNCATED})
        rest = [*log.rows[: at - 1], *log.rows[at:]]
        yield Attack(name="delete", places=(at,), expected=gone, do=partial(log.write, rest, head=False))
        yield Attack(
            name="delete and renumber",
            places=(at,),
            expected=gone,
            do=partial(log.write, renumbered(rest), head=True),
        )
        yield Attack(
            name="truncate",
            places=(at,),
            expected=frozenset({T.TRUNCATED}),
            do=partial(log.write, log.rows[: at - 1], head=False),
        )
        yield Attack(
            name="truncate with the head",
            places=(at,),
            expected=frozenset({T.TRUNCATED}),
            do=partial(log.write, log.rows[: at - 1], head=True),
        )


def insertions(log: Log) -> Iterator[Attack]:
    for at in range(1, log.size + 2):
        sample = log.rows[log.random.randrange(log.size)]
        previous = log.rows[at - 2].hash if at > 1 else GENESIS
        new = replace(sample, number=at, principal="mallory")
        forms = {
            "insert crudely": replace(new, hash=sample.hash),
            "insert a copy": replace(sample, number=at),
            "insert well hashed": hashed(new, previous=previous),
        }
        for name, record in forms.items():
            rows = renumbered([*log.rows[: at - 1], record, *log.rows[at - 1 :]])
            # Behind the end, a head that counts it would make it a record: whoever owns the database may append.
            yield Attack(
                name=name,
                places=(at,),
                expected=frozenset({T.INSERTED}),
                do=partial(log.write, rows, head=at <= log.signed),
            )


def swaps(log: Log) -> Iterator[Attack]:
    for first in range(1, log.size):
        others = {first + 1, log.random.randint(first + 1, log.size)}
        for second in sorted(others):
            rows = list(log.rows)
            rows[first - 1], rows[second - 1] = rows[second - 1], rows[first - 1]
            rows = renumbered(rows)
            yield Attack(
                name="swap",
                places=(first, second),
                expected=frozenset({T.SWAPPED}),
                do=partial(log.write, rows, head=False),
            )
            if second <= log.signed:
                careful = list(rows)
                for at in (first, second):
                    careful[at - 1] = hashed(careful[at - 1], previous=log.rows[at - 2].hash if at > 1 else GENESIS)
                yield Attack(
                    name="swap and hash anew",
                    places=(first, second),
                    expected=frozenset({T.EDITED, T.SWAPPED}),
                    do=partial(log.write, careful, head=True),
                )


def forks(log: Log) -> Iterator[Attack]:
    """Another history from some record on, all hashes made anew, signatures left as they are."""
    for at in range(1, log.signed + 1):
        forged = [*log.rows[: at - 1], replace(log.rows[at - 1], run="run_forged"), *log.rows[at:]]
        yield Attack(
            name="fork",
            places=(at,),
            expected=frozenset({T.FORKED}),
            do=partial(log.write, rehashed(forged), head=True),
        )


def signatures(log: Log) -> Iterator[Attack]:
    """Every checkpoint: each line changed, signed with another key, taken from elsewhere, removed; and the head."""
    other = Signer("quell-audit", log.random.randbytes(32))
    for size, note in log.notes.items():
        lines = note.split("\n")
        forged = {
            f"checkpoint line {number}": "\n".join([*lines[:number], _altered(line), *lines[number + 1 :]])
            for number, line in enumerate(lines)
            if line
        }
        root = bytes(32)
        forged["checkpoint of another key"] = other.sign(origin=lines[0], size=size, root=root, chain=GENESIS).note
        forged["checkpoint of another size"] = next(told for kept, told in log.notes.items() if kept != size)
        for name, told in forged.items():
            yield Attack(
                name=name,
                places=(size,),
                expected=frozenset({T.CHECKPOINT_FORGED}),
                do=partial(log.run, "UPDATE quell_audit_checkpoint SET note = ? WHERE size = ?", (told, size)),
            )
        yield Attack(
            name="checkpoint deleted",
            places=(size,),
            expected=frozenset({T.CHECKPOINT_DELETED}),
            do=partial(log.run, "DELETE FROM quell_audit_checkpoint WHERE size = ?", (size,)),
        )
    for change in ("hash = previous_hash", "frontier = ''", "frontier = 'zz'"):
        sql = change.replace("previous_hash", f"'{log.rows[-2].hash}'")
        yield Attack(
            name=f"head {change}",
            places=(log.size,),
            expected=frozenset({T.HEAD_CHANGED}),
            do=partial(log.run, f"UPDATE quell_audit_head SET {sql}"),
        )
    yield Attack(
        name="head deleted",
        places=(log.size,),
        expected=frozenset({T.HEAD_CHANGED}),
        do=partial(log.run, "DELETE FROM quell_audit_head"),
    )


def _altered(line: str) -> str:
    return f"{line[:-3]}{'A' if line[-3] != 'A' else 'B'}{line[-2:]}" if len(line) > 5 else f"{line}1"


def bodies(log: Log) -> Iterator[Attack]:
    for row in log.rows:
        prompt = json.loads(row.body).get("prompt")
        if isinstance(prompt, dict):
            name = prompt["blob"].removeprefix("sha256:")
            path = log.directory / "audit" / "audit-bodies" / name[:2] / name[2:]
            yield Attack(
                name="body changed",
                places=(row.number,),
                expected=frozenset({T.BLOB_CHANGED}),
                do=partial(_spoil, path),
            )


def _spoil(path: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))


def rewrites(log: Log) -> Iterator[Attack]:
    """What needs an anchor: the owner of the key writes another history and signs it, or goes back to an older one."""
    key = (log.directory / "audit" / "audit.key").read_text().strip().split("+", 4)
    signer = Signer(key[2], base64.b64decode(key[4])[1:])
    yield Attack(
        name="whole log rewritten and signed with another key",
        places=tuple(log.notes),
        expected=frozenset({T.CHECKPOINT_FORGED}),
        do=partial(_rewrite, log, 1, Signer(key[2], log.random.randbytes(32))),
    )
    for at in range(1, log.size):
        if at % max(log.size // 25, 1) == 1:
            yield Attack(
                name="whole log rewritten and signed",
                places=(at,),
                expected=frozenset({T.FORKED}),
                do=partial(_rewrite, log, at, signer),
                anchored=True,
            )
        # Where a checkpoint ends, going back between it and the record that tells of it shows.
        if at not in log.notes:
            yield Attack(
                name="whole log set back",
                places=(at + 1,),
                expected=frozenset({T.TRUNCATED}),
                do=partial(_set_back, log, at),
                anchored=True,
            )


def _rewrite(log: Log, at: int, signer: Signer) -> None:
    rows, frontier, previous = [], Frontier(), GENESIS
    notes = []
    for row in log.rows:
        new = replace(row, principal="mallory") if row.number == at and row.kind != "checkpoint" else row
        new = replace(new, run="run_forged") if row.number == at and row.kind != "checkpoint" else new
        if row.kind == "checkpoint":
            signed = signer.sign(
                origin=log.notes[row.number - 1].split("\n")[0], size=row.number - 1, root=frontier.root, chain=previous
            )
            body = {"note": note_digest(signed.note), "root": signed.root, "size": signed.size}
            new = replace(row, body=json.dumps(body, sort_keys=True, separators=(",", ":")))
            new = replace(new, run="run_forged") if row.number == at else new
            notes.append((signed.note, signed.size))
        new = hashed(new, previous=previous)
        rows.append(new)
        previous, frontier = new.hash, frontier.append(leaf_at(new.number, leaf_tail(new)))
    log.write(rows, head=True)
    log.raw.executemany("UPDATE quell_audit_checkpoint SET note = ? WHERE size = ?", notes)


def _set_back(log: Log, at: int) -> None:
    log.write(log.rows[:at], head=True)
    log.raw.execute("DELETE FROM quell_audit_checkpoint WHERE size >= ?", (at,))


ATTACKS = (edits, removals, insertions, swaps, forks, signatures, bodies, rewrites)


def wrong(attack: Attack, log: Log) -> str:
    """Do what the attacker does, and say what the log failed to notice; put everything back."""
    files = {path: path.read_bytes() for path in _bodies(log)} if attack.name == "body changed" else {}
    log.raw.execute("BEGIN")
    attack.do()
    log.raw.execute("COMMIT")
    try:
        if attack.anchored and not (alone := log.unanchored.verify()).is_intact:
            return f"found without an anchor: {alone.findings[0]}"
        report = log.audit.verify() if attack.anchored else log.unanchored.verify()
        log.besides += any(
            not any(one.first <= place <= one.last for place in attack.places) for one in report.findings
        )
        return _missed(attack, report)
    finally:
        log.restore()
        for path, content in files.items():
            path.write_bytes(content)


def _bodies(log: Log) -> list[Path]:
    return list((log.directory / "audit" / "audit-bodies").glob("??/*"))


def _missed(attack: Attack, report: AuditReport) -> str:
    for place in attack.places:
        fitting = [one for one in report.findings if one.what in attack.expected and one.first <= place <= one.last]
        if attack.name.startswith("swap") and not attack.name.endswith("anew"):
            fitting = [one for one in fitting if {one.first, one.last} == set(attack.places)]
        if not fitting:
            told = "; ".join(map(str, report.findings[:3])) or "nothing found"
            return f"place {place} not named: {told}"
    return ""


def try_audit(scale: Scale, seed: int, *, records: int = 0) -> Result:
    """Attack a log in every way; every attack has to be found at its place."""
    cases = 0
    failures: list[str] = []
    with opened(records=records or RECORDS[scale], seed=seed) as log:
        if not (untouched := log.audit.verify()).is_intact:
            failures.append(f"found in a log that nobody touched: {untouched.findings[0]}")
        for kind in ATTACKS:
            for attack in kind(log):
                cases += 1
                if told := wrong(attack, log):
                    failures.append(f"{attack.name} at {attack.places}, seed {seed}: {told}")
        size, signed, besides = log.size, log.signed, log.besides
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=True,
        note=f"every attack of {len(ATTACKS)} families on each of {size} records ({signed} signed); swaps: neighbours and one far pair each; {besides} named others too",
        failures=tuple(failures[:10]),
    )


PROMISES = (
    Promise(
        name="audit-tampering",
        promise="Whoever changes the audit log is found and the place named; a rewrite of all of it, where an anchor exists.",
        try_it=try_audit,
    ),
)
