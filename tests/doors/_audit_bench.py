"""A small real audit log for tests."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quell.audit import Audit, Redactor
from quell.config import JournalSettings, Secret
from quell.domain import AuditAnchor, AuditEntry, AuditKind, AuditRecord, Clock
from quell.runs import Database, Runs, system_clock


@contextmanager
def audited(
    directory: Path,
    *,
    clock: Clock,
    url: str = "",
    redactor: Redactor | None = None,
    anchors: tuple[AuditAnchor, ...] = (),
    checkpoint_records: int = 100,
    seed: int = 7,
) -> Iterator[tuple[Audit, Database]]:
    """Open a journal with an audit log."""
    settings = JournalSettings(url=Secret(url))
    opening = Runs.open(settings, state_dir=directory, clock=system_clock, entropy=os.urandom, version="v1")
    runs = asyncio.run(opening)
    try:
        audit = Audit(
            runs.database,
            directory=directory / "audit",
            clock=clock,
            entropy=random.Random(seed).randbytes,
            redactor=redactor or Redactor(),
            anchors=anchors,
            checkpoint_records=checkpoint_records,
        )
        audit.prepare()
        yield audit, runs.database
    finally:
        asyncio.run(runs.close())


def entry(audit: Audit, number: int, *, run: str = "run_a", kind: AuditKind = AuditKind.DECISION) -> AuditEntry:
    """Freeze a small decision."""
    return audit.entry(kind, run=run, principal="ada", body={"n": number, "change": "chg_1"})


def fill(audit: Audit, database: Database, *, count: int) -> list[AuditRecord]:
    """Append so many records, each in its own transaction."""
    records = []
    for number in range(count):
        with database.writing() as connection:
            records += audit.append(connection, entry(audit, number, run=f"run_{'ab'[number % 2]}"))
    return records
