"""Checkpoints are signed with a key outside of the database, anchored elsewhere, and exports prove themselves."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from quell.audit import Audit, Redactor
from quell.domain import AuditKind, ConfigError, Tampering, UsageError, WorldError
from tests.conftest import FakeClock
from tests.doors._audit_bench import audited, entry, fill


def test_a_checkpoint_is_a_signed_note_that_anybody_can_check(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=3)
        checkpoint = audit.checkpoint()
        name, _, public = audit.public_key.split("+", 2)
        text, _, signature = checkpoint.note.rpartition("\n\n")
        origin, size, root, chain = text.split("\n")
        assert (origin.startswith("quell/audit/"), size, chain) == (True, "3", f"chain {checkpoint.chain}")
        assert base64.b64decode(root).hex() == checkpoint.root
        dash, told_name, raw = signature.split()
        assert (dash, told_name) == ("\u2014", name)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public)[1:])
        key.verify(base64.b64decode(raw)[4:], f"{text}\n".encode())


def test_the_key_is_private_made_once_and_not_needed_to_verify(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=3)
        audit.checkpoint()
        key = tmp_path / "audit" / "audit.key"
        assert key.stat().st_mode & 0o777 == 0o600
        again = Audit(database, directory=tmp_path / "audit", clock=clock, entropy=os.urandom, redactor=Redactor())
        assert again.public_key == audit.public_key
        text = key.read_text()
        key.unlink()
        assert again.verify().is_intact
        assert again.verify(keys=[audit.public_key]).is_intact
        key.write_text(text)
        key.chmod(0o644)
        for content, mode, told in ((text, 0o644, "others may read"), (text[:-9], 0o600, "cannot be understood")):
            key.write_text(content)
            key.chmod(mode)
            other = Audit(database, directory=tmp_path / "audit", clock=clock, entropy=os.urandom, redactor=Redactor())
            with pytest.raises(ConfigError, match=told):
                other.prepare()


@pytest.mark.parametrize("kind", sorted(set(AuditKind) - {AuditKind.CHECKPOINT}))
def test_what_authority_rests_on_is_signed_with_its_record_and_the_rest_is_told(
    tmp_path: Path, clock: FakeClock, kind: AuditKind
) -> None:
    """Whoever writes the database makes the newest record anew: it shows unless nothing signed covers it yet."""
    is_grave = kind in {"approval", "autonomy", "identity", "pin", "policy", "switch"}
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=2)
        audit.checkpoint()
        with database.reading() as connection:
            head = connection.one("SELECT size, hash, frontier, signed, signed_at FROM quell_audit_head")
        with database.writing() as connection:
            audit.append(connection, entry(audit, 7, kind=kind))
        report = audit.verify()
        at = "2026-11-20T12:00:00.000000Z"
        assert (report.unsigned, report.unsigned_since) == ((0, "") if is_grave else (1, at))
        stranger = Audit(database, directory=tmp_path / "own", clock=clock, entropy=os.urandom, redactor=Redactor())
        with database.writing() as connection:
            connection.run("DELETE FROM quell_audit WHERE number > :size", size=head.size)
            connection.run("DELETE FROM quell_audit_checkpoint WHERE size > :size", size=head.size)
            connection.run(
                "UPDATE quell_audit_head SET size = :size, hash = :hash, frontier = :frontier, signed = :signed,"
                " signed_at = :signed_at",
                **vars(head),
            )
            (tmp_path / "own").mkdir()
            stranger.append(connection, entry(stranger, 8, kind=kind))
        assert audit.verify().is_intact is not is_grave


def test_who_ends_signs_what_it_added_and_only_that(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        audit.finish()
        assert audit.verify().records == 0
        fill(audit, database, count=2)
        audit.note(entry(audit, 3))
        assert audit.verify().unsigned == 2
        audit.finish()
        audit.finish()
        report = audit.verify()
        assert (report.records, report.checkpoints, report.signed, report.unsigned) == (4, 1, 3, 0)


def test_a_new_key_joins_the_old_one_and_a_stranger_is_not_trusted(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock) as (audit, database):
        fill(audit, database, count=3)
        audit.checkpoint()
        (tmp_path / "audit" / "audit.key").unlink()
        again = Audit(database, directory=tmp_path / "audit", clock=clock, entropy=os.urandom, redactor=Redactor())
        again.prepare()
        assert again.public_key != audit.public_key
        fill(again, database, count=3)
        again.checkpoint()
        assert again.verify().is_intact
        found = again.verify(keys=[again.public_key]).findings
        assert [(one.what, one.first) for one in found] == [(Tampering.CHECKPOINT_FORGED, 3)]
        for wrong in ("", "a+b", "quell-audit+00000000+AAAA", again.public_key.replace("quell", "other")):
            with pytest.raises(UsageError):
                again.verify(keys=[wrong])


def test_a_rewrite_of_everything_shows_exactly_when_there_is_an_anchor(tmp_path: Path, clock: FakeClock) -> None:
    """A new log with a new key in the place of the old one: nothing in it is wrong."""
    anchor = Audit.file_anchor(tmp_path / "elsewhere")
    with audited(tmp_path / "one", clock=clock, anchors=(anchor,)) as (audit, database):
        fill(audit, database, count=9)
        audit.anchor()
        audit.anchor()
        assert len(anchor.published()) == 1
        assert audit.verify().anchored == 9
    with audited(tmp_path / "two", clock=clock, seed=8) as (forged, database):
        fill(forged, database, count=12)
        forged.checkpoint()
        assert forged.verify().is_intact
    with audited(tmp_path / "two", clock=clock, anchors=(anchor,)) as (forged, _):
        assert {one.what for one in forged.verify().findings} == {Tampering.FORKED, Tampering.CHECKPOINT_FORGED}


def test_an_anchor_survives_a_torn_line_and_says_when_it_cannot_be_used(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "anchor"
    anchor = Audit.file_anchor(path)
    with audited(tmp_path, clock=clock, anchors=(anchor,)) as (audit, database):
        fill(audit, database, count=3)
        first = audit.anchor()
        whole = path.read_bytes()
        path.write_bytes(whole + whole[: len(whole) // 2])
        fill(audit, database, count=3)
        second = audit.anchor()
        assert anchor.published() == [first.note, second.note]
        assert audit.verify().is_intact
    missing = Audit.file_anchor(tmp_path / "not" / "there")
    with audited(tmp_path, clock=clock, anchors=(missing, anchor)) as (audit, database):
        fill(audit, database, count=1)
        with pytest.raises(WorldError, match="not anchored"):
            audit.anchor()
        assert len(anchor.published()) == 3


class _Counting:
    """An anchor of one's own that counts how often it is read."""

    name = "counting"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.reads = 0

    def publish(self, note: str) -> None:
        self.notes.append(note)

    def published(self) -> list[str]:
        self.reads += 1
        return list(self.notes)


def test_an_anchor_is_read_whole_once_however_long_it_is_written(tmp_path: Path, clock: FakeClock) -> None:
    anchor = _Counting()
    with audited(tmp_path, clock=clock, anchors=(anchor,)) as (audit, database):
        for count in (1, 1, 0, 0, 1):
            fill(audit, database, count=count)
            audit.anchor()
        assert (len(anchor.notes), len(set(anchor.notes)), anchor.reads) == (3, 3, 1)
        again = Audit(
            database,
            directory=tmp_path / "audit",
            clock=clock,
            entropy=os.urandom,
            redactor=Redactor(),
            anchors=[anchor],
        )
        again.anchor()
        assert len(anchor.notes) == 3, "another process finds it there"


def test_a_later_checkpoint_is_proven_to_continue_an_earlier_one(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock, checkpoint_records=1_000) as (audit, database):
        checkpoints = []
        for count in (1, 1, 2, 3, 5, 1, 7, 16):
            fill(audit, database, count=count)
            checkpoints.append(audit.checkpoint())
        for number, first in enumerate(checkpoints):
            for second in checkpoints[number:]:
                proof = audit.consistency(first, second)
                assert Audit.continues(first, second, proof=proof)
                if first.size < second.size:
                    assert not Audit.continues(first, second, proof=proof[:-1])
                    assert not Audit.continues(second, first, proof=proof)
                    for at in range(len(proof)):
                        wrong = [*proof[:at], "00" * 32, *proof[at + 1 :]]
                        assert not Audit.continues(first, second, proof=wrong)
        with pytest.raises(UsageError):
            audit.consistency(checkpoints[-1], checkpoints[0])


def _changes(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Return every small change of an export: a letter in every field of every line, and every line away."""
    made = []
    for number, line in enumerate(lines):
        made.append((f"line {number} away", [*lines[:number], *lines[number + 1 :]]))
        read = json.loads(line)
        for field in read:
            if field in {"sections", "missing", "format", "public_key", "change", "run"} and read["type"] == "head":
                continue
            old = read[field]
            new = old[1:] if isinstance(old, list) else old + 1 if isinstance(old, int) else f"{old}x"
            changed = json.dumps({**read, field: new})
            made.append((f"line {number}: {field}", [*lines[:number], changed, *lines[number + 1 :]]))
    return made


def test_an_export_proves_itself_and_every_change_of_it_shows(tmp_path: Path, clock: FakeClock) -> None:
    with audited(tmp_path, clock=clock, checkpoint_records=8) as (audit, database):
        fill(audit, database, count=11)
        long = audit.entry(
            AuditKind.EVIDENCE, run="run_a", principal="ada", body={"text": "y" * 5_000, "change": "chg_2"}
        )
        with database.writing() as connection:
            audit.append(connection, long)
        whole, pack = list(audit.export()), list(audit.export(run="run_a"))
        change = list(audit.export(change="chg_2"))
        key = audit.public_key
        with pytest.raises(UsageError):
            list(audit.export(run="run_none"))
    for lines, count in ((whole, 13), (pack, 7), (change, 1)):
        report = Audit.verify_export(lines, keys=[key])
        assert report.is_intact, report.findings
        assert (report.records, report.signed, report.blobs) == (count, 13, 1)
        for name, changed in _changes(lines):
            told = Audit.verify_export(changed, keys=[key])
            is_body_away = name.endswith("away") and json.loads(lines[-1]) not in map(json.loads, changed)
            assert not told.is_intact or (is_body_away and told.blobs_expired == 1), name
    head = json.loads(change[0])
    assert head["sections"]["evidence"] == [13]
    assert "approval" in head["missing"]
    other = "quell-audit+896909be+ARgOheI2/nxSfZbhMCmNt3kwwLa4X5heF+fWplRLv3in"
    assert not Audit.verify_export(whole, keys=[other]).is_intact
    assert not Audit.verify_export([], keys=[key]).is_intact


WRITER = """
import os, sys
from pathlib import Path
from tests.doors._audit_bench import audited, entry
from quell.domain import AuditKind
from quell.audit import Audit
from quell.runs import system_clock

directory = Path(sys.argv[1])
anchor = Audit.file_anchor(directory / "elsewhere")
with audited(directory, clock=system_clock, anchors=(anchor,), checkpoint_records=4) as (audit, database):
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        audit.note(entry(audit, number))
        long = audit.entry(AuditKind.EVIDENCE, run="r", principal="", body={"t": str(number) * 3000})
        with database.writing() as connection:
            audit.append(connection, long)
        if number % 3 == 0:
            audit.anchor()
"""


@pytest.mark.crash
@pytest.mark.timeout(60)
def test_a_crash_in_the_middle_of_anything_is_not_taken_for_tampering(tmp_path: Path, clock: FakeClock) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    grown = 0
    for turn in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment, cwd=root
        )
        assert writer.stdout is not None
        with writer.stdout:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.037 * turn)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with audited(tmp_path, clock=clock, anchors=(Audit.file_anchor(tmp_path / "elsewhere"),)) as (audit, database):
            report = audit.verify()
            assert report.is_intact, (turn, report.findings)
            assert report.blobs_expired == 0
            assert report.records > grown
            grown = report.records
            with database.writing() as connection:
                audit.append(connection, entry(audit, turn))


def test_ctrl_c_ends_an_export_between_two_records(tmp_path: Path, clock: FakeClock) -> None:
    """The reader of the pipe is slow, so the command can not end by itself before the signal."""
    with audited(tmp_path / "state", clock=clock) as (audit, database):
        with database.writing() as connection:
            audit.append(connection, *[audit.entry(AuditKind.DECISION, run="r", principal="ada", body=_LONG)] * 200)
        audit.finish()
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "quell", "audit", "export", "--out", "pipe"]
    environment = {**os.environ, "QUELL_STATE_DIR": str(tmp_path / "state"), "HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        with (tmp_path / "pipe").open() as pipe:
            whole = json.loads(pipe.readline())["records"]
            process.send_signal(signal.SIGINT)
            assert "stopped" in process.stderr.readline()
            left = len(pipe.readlines())
        assert process.wait() == 130
        assert left < whole


_LONG = {"text": "x" * 1500}
