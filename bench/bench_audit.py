"""What the audit log costs: appends per second, CPU per append, and how fast it is verified.

python -m bench.bench_audit [--json]
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from bench._shown import show
from quell.audit import Audit, Redactor
from quell.config import JournalSettings, Secret
from quell.domain import AuditEntry, AuditKind
from quell.runs import Database, Runs, system_clock

FLUSHED = 600
GROUPED = 10_000
BODY = {
    "tool": "scale_deployment",
    "arguments": '{"deployment":"checkout","environment":"production","replicas":6}',
    "decision": "permit",
    "policies": ["reversible-within-blast-radius", "operators-may-scale"],
    "policy_digest": "3f" * 32,
    "digest": "a7" * 32,
    "facts": {"calls_1h": 3, "services_1h": 1, "units_1h": 6, "blast_percent": 2},
}


def _freeze(audit: Audit) -> AuditEntry:
    return audit.entry(AuditKind.DECISION, run="run_01jd3x", principal="someone@example.org", body=BODY)


def take(audit: Audit, database: Database) -> dict[str, float]:
    """Append flushed and in groups, then verify."""
    figures = {}
    began_cpu_s = time.process_time()
    for _ in range(2_000):
        _freeze(audit)
    figures["freeze_cpu_us"] = (time.process_time() - began_cpu_s) / 2_000 * 1e6
    entry = _freeze(audit)

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(FLUSHED):
        with database.writing() as connection:
            audit.append(connection, entry)
    figures["flushed_per_s"] = FLUSHED / (time.perf_counter() - began_s)
    figures["transaction_cpu_us"] = (time.process_time() - began_cpu_s) / FLUSHED * 1e6

    with database.writing() as connection:
        began_cpu_s = time.process_time()
        for _ in range(FLUSHED):
            audit.append(connection, entry)
        figures["append_cpu_us"] = (time.process_time() - began_cpu_s) / FLUSHED * 1e6

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(GROUPED):
        audit.note(entry)
    audit.flush()
    figures["grouped_per_s"] = GROUPED / (time.perf_counter() - began_s)
    figures["grouped_cpu_us"] = (time.process_time() - began_cpu_s) / GROUPED * 1e6

    audit.checkpoint()
    began_s = time.perf_counter()
    report = audit.verify()
    assert report.is_intact
    figures["verified_per_s"] = report.records / (time.perf_counter() - began_s)
    return figures


def measure() -> dict[str, float]:
    """Return the figures of a log on SQLite, with twenty secrets held."""
    with tempfile.TemporaryDirectory() as told:
        directory = Path(told)
        opening = Runs.open(
            JournalSettings(), state_dir=directory, clock=system_clock, entropy=os.urandom, version="bench"
        )
        runs = asyncio.run(opening)
        try:
            secrets = {f"secret-{number}": Secret(os.urandom(15).hex()) for number in range(20)}
            audit = Audit(
                runs.database,
                directory=directory / "audit",
                clock=system_clock,
                entropy=os.urandom,
                redactor=Redactor(secrets),
            )
            audit.prepare()
            figures = take(audit, runs.database)
        finally:
            asyncio.run(runs.close())
    return {name: round(value, 1) for name, value in figures.items()}


if __name__ == "__main__":
    show(measure(), form="10,.1f")
