"""The canaries of the suite are looked for in earnest: what is planted to be found is found, wherever a test puts it."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from quell.audit import Redactor
from quell.config import Secret
from tests import _canaries

_TESTS = """
import base64, os, pathlib, sqlite3, subprocess, sys, tempfile
import pytest

ITS = os.environ["CANARY_PAGER_TOKEN"]

def test_clean(tmp_path):
    (tmp_path / "file").write_text("nothing")

def test_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 70_000 + ITS.encode().hex().encode())

def test_name(tmp_path):
    (tmp_path / base64.urlsafe_b64encode(b"a" + ITS.encode()).decode()).mkdir()
    (tmp_path / base64.urlsafe_b64encode(b"a" + ITS.encode()).decode() / "file").touch()

def test_log_of_a_database(tmp_path):
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE t (c TEXT)")
    connection.execute("INSERT INTO t VALUES (?)", ("y" * 4000 + ITS,))
    connection.commit()
    # Open still: it is in the log alone.

def test_directory_that_is_gone():
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "file").write_text(ITS[-14:])

def test_output():
    print(ITS)

def test_output_that_is_read(capsys):
    print(ITS)
    assert capsys.readouterr().out

def test_program():
    said = subprocess.run([sys.executable, "-c", "import os; print(os.environ['CANARY_PAGER_TOKEN'])"],
                          capture_output=True, check=True)
    assert said.stdout

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")

def test_outside(shared):
    (shared / "file-of-all").write_text(ITS)
"""
_LEAKING = {
    "test_file": "hex in file deep/file",
    "test_name": "base64 in the name of a file",
    "test_log_of_a_database": "plain in file journal.db-wal",
    "test_directory_that_is_gone": "plain in file file",
    "test_output": "plain in stdout",
    "test_output_that_is_read": "plain in stdout",
    "test_program": "plain in stdout of a program",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_what_a_test_leaks_fails_it_by_name(tmp_path: Path, workers: tuple[str, ...]) -> None:
    here = Path(__file__).parents[2]
    (tmp_path / "test_leaks.py").write_text(_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    told = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests._canaries", "-p", "no:cacheprovider"),
            *("-p", "no:randomly", "-p", "no:inline_snapshot"),
            *(f"--basetemp={tmp_path / 'planted-leak'}", "--show-capture=no", *workers, "test_leaks.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{here / 'src'}:{here}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert told.returncode == pytest.ExitCode.TESTS_FAILED, told.stdout + told.stderr
    for test, leak in _LEAKING.items():
        assert re.search(
            rf"ERROR at teardown of {test} .*\n(?:.*\n)??a canary leaked: .*{re.escape(leak)}", told.stdout
        )
    assert "teardown of test_clean" not in told.stdout
    assert "LEAKED outside of any test: plain in file" in told.stdout, told.stdout
    figures = re.search(
        r"canaries: (\d+) tests, (\d+) files, (\d+) texts and [\d.]+ MB looked through: (\d+) hits", told.stdout
    )
    assert figures, told.stdout
    assert figures[1] == "9"
    assert int(figures[4]) >= len(_LEAKING) + 1


@pytest.mark.parametrize("secret", [_canaries.IN_ENVIRONMENT, _canaries.IN_SETTINGS])
def test_every_canary_is_found_in_every_encoding_and_after_every_neighbour(secret: str) -> None:
    raw = secret.encode()
    forms = [secret, raw.hex(), raw.hex().upper(), urllib.parse.quote(secret), "".join(f"%{byte:02x}" for byte in raw)]
    forms += ["".join(f"\\u{ord(letter):04x}" for letter in secret)]
    forms += [base64.b64encode(b"u:x"[:shift] + raw + b"@h").decode() for shift in range(4)]
    forms += [base64.urlsafe_b64encode(b"u:x"[:shift] + raw).decode() for shift in range(4)]
    for form in forms:
        whole = form.encode()
        for half in (whole, whole[: len(whole) * 3 // 5], whole[len(whole) * 2 // 5 :]):
            assert any(needle in half for needle in _canaries.needles()), form


def test_what_is_planted_is_held_by_what_it_is_planted_in() -> None:
    redactor = Redactor({"store.password": Secret(_canaries.IN_SETTINGS)}, environment=_canaries.ENVIRONMENT)
    assert any(needle in _canaries.RESULT.encode() for needle in _canaries.needles())
    clean = redactor.text("\n".join((_canaries.RESULT, *_canaries.ENVIRONMENT.values()))).encode()
    assert not any(needle in clean for needle in _canaries.needles())
