"""Events: one catalogue, one line each, on stderr and in a capped log file, without secrets or control characters."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from quell import telemetry
from quell.config import Secret, Settings, StoreSettings, TelemetrySettings
from quell.domain import printable
from quell.telemetry import EVENTS, Telemetry, open_telemetry

SRC = Path(__file__).parents[2] / "src" / "quell"
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECRET = "hunter2-correct-horse"


@contextmanager
def opened(
    tmp_path: Path,
    *,
    role: Literal["serve", "command"] = "serve",
    said: TelemetrySettings = TelemetrySettings(),  # noqa: B008 - frozen
    env: dict[str, str] | None = None,
) -> Iterator[Telemetry]:
    settings = Settings(state_dir=tmp_path, telemetry=said, store=StoreSettings(password=Secret(SECRET)))
    made = open_telemetry(settings, role=role, service_version="1", instance="i", clock=lambda: NOON, env=env or {})
    try:
        yield made
    finally:
        made.close_now()


def _kept(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "logs" / "quell.log").read_text().splitlines()]


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_every_event_that_the_code_names_is_in_the_catalogue_with_its_fields() -> None:
    prefixes = {name.partition(".")[0] for name in EVENTS}
    wrong: list[str] = []
    seen: set[str] = set()
    for path in sorted(SRC.rglob("*.py")):
        for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
            if _called(call) not in {"event", "emit", "_event", "Told"}:
                continue
            texts = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in {"event", "name"})]
            names = [
                text.value
                for text in texts
                if isinstance(text, ast.Constant)
                and isinstance(text.value, str)
                and text.value.partition(".")[0] in prefixes
                and text.value.count(".") == 1
            ]
            for name in names[-1:]:
                seen.add(name)
                where = f"{path.relative_to(SRC)}:{call.lineno} {name}"
                if name not in EVENTS:
                    wrong.append(f"{where}: not in the catalogue")
                elif _called(call) in {"event", "emit"}:
                    given = {keyword.arg for keyword in call.keywords if keyword.arg} - {"run", "key", "body"}
                    wrong += [f"{where}: field {field}" for field in sorted(given - set(EVENTS[name].fields))]
    assert not wrong, "\n".join(wrong)
    assert len(seen) > 10, "the walk found events"


def test_an_event_that_the_catalogue_does_not_have_is_refused_open_or_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.such"):
        telemetry.event("no.such")
    with opened(tmp_path), pytest.raises(ValueError, match=r"no\.such"):
        telemetry.event("no.such")


@pytest.mark.timeout(30)
def test_nothing_happens_and_nothing_is_loaded_before_it_is_opened() -> None:
    code = (
        "import sys; from quell import telemetry as t\n"
        "with t.span('a', {'x': 1}) as s: s.put('y', 2); t.count('c'); t.event('run.started', run='r')\n"
        "h = {}; t.inject(h); assert h == {}\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry', 'pydantic', 'asyncio', 'requests'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_server_writes_one_plain_line_per_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path):
        telemetry.event("step.finished", run="run_1", name="read:store:changes", elapsed_ms=12)
        telemetry.event("step.started", run="run_1", name="plan")
    assert capsys.readouterr().err.splitlines() == [
        "2026-11-20T12:00:00.000Z info step.finished run=run_1 name=read:store:changes elapsed_ms=12"
    ], "debug events stay in the file"


def test_a_command_leaves_stderr_to_its_own_messages_unless_something_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, role="command"):
        telemetry.event("run.started", run="run_1")
        telemetry.event("store.lost", pid=1, exit_code=-9)
    (line,) = capsys.readouterr().err.splitlines()
    assert "error store.lost pid=1 exit_code=-9" in line


def test_lines_are_json_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, said=TelemetrySettings(log_format="json")):
        telemetry.event("run.started", run="run_1", kind='a "b"', at="forged", event="forged")
    assert json.loads(capsys.readouterr().err) == {
        "at": "2026-11-20T12:00:00+00:00",
        "level": "info",
        "event": "run.started",
        "run": "run_1",
        "kind": 'a "b"',
    }


def test_colour_is_for_terminals_and_force_color(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for env, is_coloured in (({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)):
        with opened(tmp_path, env=env):
            telemetry.event("run.started", run="run_1")
        line = capsys.readouterr().err
        assert ("\x1b[" in line) is is_coloured
        assert "info" in line, "a word beside the colour"


@pytest.mark.parametrize("form", ["plain", "json"])
def test_control_characters_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Literal["plain", "json"]
) -> None:
    evil = "a\x1b[2Jb\nc\rd\x9be\u202ef\u2028g\u061c\U000e0041"
    with opened(tmp_path, said=TelemetrySettings(log_format=form)):
        telemetry.event("run.failed", run="run\x1b[1", error=evil)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    kept = (tmp_path / "logs" / "quell.log").read_text()
    for text in (shown, kept):
        assert not set("\x1b\x9b\u202e\u2028\r\u061c\U000e0041") & set(text)
    assert json.loads(kept)["error"] == evil, "in JSON nothing is lost"
    assert printable(evil) == "a\\x1b[2Jb\\nc\\rd\\x9be\\u202ef\\u2028g\\u061c\\U000e0041"


def test_a_secret_reaches_neither_stderr_nor_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path):
        telemetry.event("store.failed", error=f"cannot log in with {SECRET}")
        telemetry.event("store.failed", error="http://ann:open-sesame@h/ said Bearer abcdefgh12345")
        telemetry.event("config.refused", problems=["x", f"y {SECRET}"])
        telemetry.event("store.failed", api_key="k-123456", tokens=5, budget_tokens="many")
        logging.getLogger("some.library").warning("password is %s", SECRET)
    for text in (capsys.readouterr().err, (tmp_path / "logs" / "quell.log").read_text()):
        for hidden in (SECRET, "open-sesame", "abcdefgh12345", "k-123456"):
            assert hidden not in text
        assert text.count("[redacted]") == 6
        assert "many" in text, "a budget is no secret"


def test_what_libraries_log_arrives_from_warning_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path):
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").error("it broke", exc_info=RuntimeError("inside"))
    logging.getLogger("some.library").debug("after closing nobody listens")
    (line,) = capsys.readouterr().err.splitlines()
    assert 'library.logged logger=some.library severity=error message="it broke"' in line
    assert "RuntimeError: inside" in str(_kept(tmp_path)[0]["traceback"]), "the traceback is in the file"


def test_the_log_file_is_capped_and_private(tmp_path: Path) -> None:
    with opened(tmp_path, said=TelemetrySettings(level="error", log_file_max_mb=0.01)):
        for number in range(400):
            telemetry.event("run.started", run=f"run_{number}", subject="x" * 200)
    logs = sorted((tmp_path / "logs").iterdir())
    assert [log.name for log in logs] == ["quell.log", "quell.log.1", "quell.log.2", "quell.log.3"]
    assert all(log.stat().st_size < 0.01 * 1024 * 1024 + 500 for log in logs)
    assert logs[0].stat().st_mode & 0o077 == 0
    assert _kept(tmp_path)[-1]["run"] == "run_399"


@pytest.mark.timeout(30)
def test_two_processes_share_a_rotating_file_without_breaking_a_line(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from datetime import datetime, UTC; from quell import telemetry as t\n"
        "from quell.config import Settings, TelemetrySettings\n"
        "s = Settings(state_dir=pathlib.Path(sys.argv[1]), telemetry=TelemetrySettings(level='error', log_file_max_mb=0.02))\n"
        "o = t.open_telemetry(s, role='serve', service_version='1', instance='i', clock=lambda: datetime.now(UTC), env={})\n"
        "for n in range(300): t.event('run.started', run=f'run_{n}', subject='y' * 100)\n"
        "print(o.dropped['lines'])"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["0", "0"]
    for log in (tmp_path / "logs").iterdir():
        for line in log.read_text().splitlines():
            json.loads(line)


def test_a_log_file_that_cannot_be_written_is_counted_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where a directory should be")
    with opened(tmp_path) as made:
        telemetry.event("run.started", run="run_1")
        assert made.dropped["lines"] == 1
    assert "run.started" in capsys.readouterr().err


def test_a_log_file_that_is_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with opened(tmp_path, said=TelemetrySettings(log_file=str(tmp_path / "pipe"))) as made:
        telemetry.event("run.started", run="run_1")
        assert made.dropped["lines"] == 1, "nobody reads it"
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with opened(tmp_path, said=TelemetrySettings(log_file=str(tmp_path / "pipe"))):
            telemetry.event("run.started", run="run_2")
        assert json.loads(os.read(reader, 65536))["run"] == "run_2"
    finally:
        os.close(reader)


def test_the_log_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "logs" / "quell.log").symlink_to(victim)
    with opened(tmp_path) as made:
        telemetry.event("run.started", run="run_1")
        assert made.dropped["lines"] == 1
    assert victim.read_text() == "precious"


def test_only_one_telemetry_is_open_at_a_time(tmp_path: Path) -> None:
    listening = list(logging.getLogger().handlers)
    with opened(tmp_path), pytest.raises(AssertionError), opened(tmp_path):
        pass
    with opened(tmp_path):
        pass
    assert logging.getLogger().handlers == listening, "one that was refused listens no more"
