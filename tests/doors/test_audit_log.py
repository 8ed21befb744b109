"""The audit log takes what happens, in order, redacted, in the transaction of what it tells of."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from quell.audit import Audit, Redactor
from quell.audit._merkle import GENESIS, Frontier
from quell.audit._tables import Head, next_record, write_record
from quell.config import Secret
from quell.domain import AuditKind, BoundExceededError, JournalError, OverloadError, Tampering
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._audit_bench import audited, entry, fill


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> object:
    with ExitStack() as stack:
        yield (
            stack.enter_context(fresh_database(request.getfixturevalue("postgres_url")))
            if request.param == "postgres"
            else ""
        )


@pytest.mark.timeout(60)
def test_what_was_appended_can_be_read_and_proven_on_either_database(
    tmp_path: Path, clock: FakeClock, url: str
) -> None:
    with audited(tmp_path, clock=clock, url=url, checkpoint_records=10) as (audit, database):
        assert audit.verify().is_intact
        written = fill(audit, database, count=25)
        assert [record for record in audit.records() if record.kind != AuditKind.CHECKPOINT] == written
        assert [json.loads(record.body)["n"] for record in audit.records(run="run_b")] == list(range(1, 25, 2))
        report = audit.verify()
        assert report.is_intact
        assert (report.records, report.checkpoints, report.signed) == (27, 2, 20)
        assert audit.checkpoint().size == 27
        assert audit.verify().signed == 27


@pytest.mark.timeout(60)
def test_many_that_append_at_once_make_one_chain(tmp_path: Path, clock: FakeClock, url: str) -> None:
    with audited(tmp_path, clock=clock, url=url, checkpoint_records=7) as (audit, database):

        def work() -> None:
            for number in range(15):
                with database.writing() as connection:
                    audit.append(connection, entry(audit, number), entry(audit, number))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = audit.verify()
        assert report.is_intact, report.findings
        assert report.records == 120 + report.checkpoints


def test_a_transaction_that_fails_leaves_no_record_and_no_gap(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=2)

        def fail() -> None:
            with database.writing() as connection:
                audit.append(connection, entry(audit, 9))
                raise LookupError

        with pytest.raises(LookupError):
            fail()
        fill(audit, database, count=1)
        assert [record.number for record in audit.records()] == [1, 2, 3]
        assert audit.verify().is_intact


def test_a_body_is_redacted_before_it_is_frozen(tmp_path: Path, clock: FakeClock) -> None:
    redactor = Redactor({"model.key": Secret("hunter2-hunter2")})
    with audited(tmp_path, clock=clock, redactor=redactor) as (audit, database):
        told = audit.entry(
            AuditKind.OUTCOME,
            run="hunter2-hunter2",
            principal="x hunter2-hunter2",
            body={"t": ["aHVudGVyMi1odW50ZXIy"]},
        )
        long = audit.entry(AuditKind.OUTCOME, run="", principal="", body={"t": "hunter2-hunter2 " * 500})
        with database.writing() as connection:
            audit.append(connection, told, long)
        assert (told.run, told.principal) == ("[redacted:model.key]", "x [redacted:model.key]")
        assert json.loads(told.body) == {"t": ["[redacted:model.key]"]}
        assert "hunter2" not in (audit.body(json.loads(long.body)["t"]["blob"]) or "hunter2")
        database.close()
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or b"hunter2" not in file.read_bytes(), file


def test_bodies_are_canonical_and_hold_no_floats(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        told = audit.entry(
            AuditKind.POLICY, run="a\nb\x00", principal="\ud800é", body={"b": (1, True, None), "a": "ä\ud800\x00"}
        )
        assert told.body == '{"a":"\\u00e4\\ud800\\u0000","b":[1,true,null]}'
        assert (told.run, told.principal) == ("a\ufffdb\ufffd", "\ufffdé")
        for wrong in ({"x": 1.5}, {"x": [float("nan")]}, {"x": b"y"}, {"x": {1: 2}}):
            with pytest.raises(TypeError):
                audit.entry(AuditKind.POLICY, run="", principal="", body=wrong)
        deep: dict[str, object] = {}
        for _ in range(100):
            deep = {"x": deep}
        with pytest.raises(BoundExceededError):
            audit.entry(AuditKind.POLICY, run="", principal="", body=deep)
        with database.writing() as connection:
            audit.append(connection, told)
        assert audit.verify().is_intact


def test_notes_are_written_together_and_in_order(tmp_path: Path, clock: FakeClock) -> None:
    now_s = 0.0
    with audited(tmp_path, clock=clock) as (_, database):
        audit = Audit(
            database,
            directory=tmp_path / "audit",
            clock=clock,
            entropy=bytes,
            redactor=Redactor(),
            monotonic=lambda: now_s,
        )
        for number in range(49):
            audit.note(entry(audit, number))
        assert list(audit.records()) == []
        audit.note(entry(audit, 49))
        assert [json.loads(record.body)["n"] for record in audit.records()] == list(range(50))
        audit.note(entry(audit, 50))
        assert len(list(audit.records())) == 50
        now_s = 0.06
        audit.note(entry(audit, 51))
        assert len(list(audit.records())) == 52
        audit.note(entry(audit, 52))
        audit.flush()
        assert len(list(audit.records())) == 53
        audit.note(entry(audit, 53))
        assert audit.checkpoint().size == 54


def test_a_note_that_waits_is_written_without_another_one(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, _):

        async def wait() -> None:
            flushing = asyncio.create_task(audit.keep_flushing())
            audit.note(entry(audit, 1))
            while not list(audit.records()):
                await asyncio.sleep(0.01)
            audit.note(entry(audit, 2))
            flushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flushing

        asyncio.run(wait())
        assert len(list(audit.records())) == 2


def test_notes_wait_while_the_database_fails_and_are_bounded(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (_, database):
        audit = Audit(
            database,
            directory=tmp_path / "audit",
            clock=clock,
            entropy=bytes,
            redactor=Redactor(),
            monotonic=lambda: 0.0,
        )
        with database.writing() as connection:
            connection.run("ALTER TABLE quell_audit_head RENAME TO away")
        failures = 0
        for number in range(2_000):
            try:
                audit.note(entry(audit, number))
            except JournalError:
                failures += 1
        assert failures == 40
        with pytest.raises(OverloadError):
            audit.note(entry(audit, 2_000))
        with database.writing() as connection:
            connection.run("ALTER TABLE away RENAME TO quell_audit_head")
        audit.flush()
        numbers = [json.loads(record.body) for record in audit.records() if record.kind != AuditKind.CHECKPOINT]
        assert [body["n"] for body in numbers] == list(range(2_000))


def test_a_damaged_head_stops_everything_rather_than_starting_anew(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=3)
        with database.writing() as connection:
            connection.run("DELETE FROM quell_audit_head")
        audit.prepare()
        with pytest.raises(JournalError, match="head of the audit log"):
            fill(audit, database, count=1)
        assert [finding.what for finding in audit.verify().findings] == [Tampering.HEAD_CHANGED]


def test_the_log_is_signed_after_a_minute_and_after_so_many_records(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock, checkpoint_records=10) as (audit, database):
        fill(audit, database, count=3)
        assert audit.verify().checkpoints == 0
        clock.forward(seconds=60)
        fill(audit, database, count=1)
        assert audit.verify().signed == 4
        fill(audit, database, count=9)
        assert audit.verify().signed == 14
        assert audit.checkpoint() == audit.checkpoint()


def test_a_walk_meanwhile_never_takes_what_is_being_added_for_tampering(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock, checkpoint_records=3, anchors=(Audit.file_anchor(tmp_path / "e"),)) as (
        audit,
        database,
    ):
        ends = threading.Event()

        def write() -> None:
            while not ends.is_set():
                fill(audit, database, count=5)
                audit.anchor()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(30):
                report = audit.verify()
                assert report.is_intact, report.findings
        finally:
            ends.set()
            writer.join()


def test_a_row_that_is_no_text_hides_neither_itself_nor_others(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=5)
        raw = sqlite3.connect(tmp_path / "quell.db")
        raw.execute("UPDATE quell_audit SET run = CAST(x'ff' AS TEXT) WHERE number = 2")
        raw.execute("UPDATE quell_audit SET principal = 'eve' WHERE number = 4")
        raw.commit()
        raw.close()
        found = audit.verify().findings
        assert [(one.what, one.first, one.last) for one in found] == [
            (Tampering.EDITED, 2, 2),
            (Tampering.EDITED, 4, 4),
        ]
        assert [record.number for record in audit.records()] == [1, 3, 4, 5]


def test_large_bodies_lie_beside_the_log_and_may_be_forgotten(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        text = "ä" * 3_000
        told = audit.entry(AuditKind.EVIDENCE, run="", principal="", body={"result": [text], "short": "x" * 2_000})
        with database.writing() as connection:
            audit.append(connection, told)
        kept = json.loads(told.body)["result"][0]
        assert kept["size_bytes"] == 6_000
        assert len(json.loads(told.body)["short"]) == 2_000
        assert audit.body(kept["blob"]) == text
        file = next((tmp_path / "audit" / "audit-bodies").glob("??/*"))
        assert file.stat().st_mode & 0o777 == 0o600
        leftover = file.with_name(".new-0011")
        leftover.write_bytes(b"half")
        os.utime(leftover, (clock().timestamp(), clock().timestamp()))
        clock.forward(seconds=3_600 * 24 * 20)
        audit.entry(AuditKind.EVIDENCE, run="", principal="", body={"again": text})
        assert audit.sweep(kept_for=timedelta(days=10)) == 1
        assert audit.verify().blobs_expired == 0
        clock.forward(seconds=3_600 * 24 * 20)
        assert audit.sweep(kept_for=timedelta(days=10)) == 1
        report = audit.verify()
        assert (report.is_intact, report.blobs, report.blobs_expired) == (True, 1, 1)
        assert audit.body(kept["blob"]) is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE quell_audit SET principal = 'eve' WHERE number % 2 = 0",
        "UPDATE quell_audit SET number = -number",
        "DELETE FROM quell_audit WHERE number % 3 = 0",
        "UPDATE quell_audit SET number = 9000000000000000000 WHERE number = 7",
        "UPDATE quell_audit_head SET size = 9000000000000000000",
        "UPDATE quell_audit SET previous = hash, hash = previous",
        "UPDATE quell_audit SET hash = 'x' WHERE number = 5",
        "UPDATE quell_audit SET run = x'ff' WHERE number = 5",
        "UPDATE quell_audit SET body = '" + "[" * 100_000 + "' WHERE number = 5",
        "UPDATE quell_audit_head SET size = 'many'",
        "UPDATE quell_audit_head SET frontier = x'ff'",
        "UPDATE quell_audit_checkpoint SET note = x'ff'",
        "DELETE FROM quell_audit",
    ],
)
def test_however_much_was_changed_the_walk_ends_and_names_a_place(
    tmp_path: Path, clock: FakeClock, attack: str
) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        with database.writing() as connection:
            for number in range(1_300):
                audit.append(connection, entry(audit, number))
        assert audit.verify().is_intact
        with database.writing() as connection:
            connection.run(attack)
        report = audit.verify()
        assert report.findings
        assert len(report.findings) < 2_000


def test_records_that_were_forged_for_impossible_places_are_named(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=9)
        places = (4_000_000_000_000_000_000, -4_000_000_000_000_000_000, 0, -1)
        with database.writing() as connection:
            for place in places:
                head = Head(origin="", size=place - 1, hash=GENESIS, frontier=Frontier(), signed=0, signed_at="")
                forged, _ = next_record(head, at="", kind="effect", run="", principal="eve", body="{}")
                write_record(connection, forged)
        found = audit.verify().findings
        inserted = [one for one in found if one.what is Tampering.INSERTED]
        assert all(any(one.first <= place <= one.last for one in inserted) for place in places)
        assert not any(one.last >= 1 and one.first <= 9 for one in found)
