"""The command line before it does anything: help, names, options, exit codes, errors, streams."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from quell.cli import ExitCode, main
from quell.cli._root import COMMANDS, QuellCommand, root
from quell.cli._session import Session
from quell_lab.cli import lab
from tests._quell import QUELL, UNPLANTED, environment, error_of, quell

pytestmark = pytest.mark.timeout(60)  # whole processes, several per test, on machines that do other things as well

NOT_IN_HELP = {
    "pydantic",
    "asyncio",
    "rich",
    "starlette",
    "sqlalchemy",
    "dbos",
    "opentelemetry",
    "httpx2",
    "msgspec",
    "chdb",
    "prompt_toolkit",
}


def test_an_error_shows_what_hides_in_it_to_people_and_stays_whole_for_programs(tmp_path: Path) -> None:
    evil = "a\u202e\U000e0041b"
    for words in ((), ("--json",)):
        told = quell("--set", f"{evil}=1", "run", "list", *words, cwd=tmp_path)
        shown = told.stdout + told.stderr
        assert "\\u202e" in shown, shown
        assert not set("\u202e\U000e0041") & set(shown)
    assert evil in json.dumps(error_of(told), ensure_ascii=False)


def test_help_loads_nothing_heavy_and_none_of_the_commands(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom quell.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as left:\n    assert left.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(told.stderr.split())
    assert not {name.partition(".")[0] for name in loaded} & NOT_IN_HELP
    assert not {name for name in loaded if name.startswith("quell.") and not name.startswith("quell.cli")}
    for name in (
        "investigate",
        "brief",
        "watch",
        "serve",
        "doctor",
        "incident",
        "run",
        "approval",
        "switch",
        "break-glass",
        "effect",
        "autonomy",
        "policy",
        "tool",
        "key",
        "budget",
        "audit",
        "config",
        "completion",
        "lab",
        "demo",
    ):
        assert re.search(rf"^  {name} ", told.stdout, re.MULTILINE), name


def test_every_command_and_verb_has_help_and_takes_json(tmp_path: Path) -> None:
    at = click.Context(root, info_name="quell")
    seen = 0
    for name in [name for name, entry in COMMANDS.items() if entry.module]:
        command = root.get_command(at, name)
        assert command is not None
        verbs = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        for verb in verbs:
            seen += 1
            assert verb.help, f"{name} {verb.name} has no help"
            assert any("--json" in parameter.opts for parameter in verb.params), f"{name} {verb.name} has no --json"
    assert seen > 15
    assert quell("run", "list", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["confg"], ["no such command 'confg'", "did you mean `config`?"]),
        (["config", "shwo"], ["no such command 'shwo'"]),
        (["run", "list", "--limt", "3"], ["no such option '--limt'", "did you mean `--limit`?"]),
        (["run", "show"], ["missing argument 'ID'", "`quell run show --help`"]),
        (["run", "list", "--limit", "0"], ["0 is not in the range"]),
        (["investigate"], ["say what to look at"]),
        (["brief", "--since", "soon"], ["'soon' is not a length of time", "30m"]),
        (["brief", "--since", "5m", "--window", "10m"], ["longer than --since"]),
        (["--set", "nonsense", "config", "show"], ["'nonsense' is not KEY=VALUE"]),
    ],
)
def test_a_wrong_command_line_says_what_was_probably_meant(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    told = quell(*arguments, cwd=tmp_path)
    assert told.returncode == ExitCode.USAGE
    assert told.stdout == ""
    assert told.stderr.startswith("error: ")
    for word in words:
        assert word in told.stderr
    as_json = error_of(quell(*arguments, "--json", cwd=tmp_path))
    assert as_json["kind"] == "UsageError"
    assert set(as_json) >= {"kind", "message", "hint", "exit"}


@pytest.mark.parametrize("arguments", [[], ["incident"]])
def test_a_command_line_without_a_command_is_shown_the_commands(tmp_path: Path, arguments: list[str]) -> None:
    told = quell(*arguments, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (ExitCode.USAGE, "")
    lines = told.stderr.splitlines()
    assert lines[0].startswith("Usage: quell ")
    assert "error: missing command" in lines
    assert max(map(len, lines)) <= 100
    assert error_of(quell(*arguments, "--json", cwd=tmp_path))["message"] == "missing command"


def test_help_with_json_is_one_document(tmp_path: Path) -> None:
    document = json.loads(quell("help", "run", "show", "--json", cwd=tmp_path).stdout)
    assert (document["kind"], document["topic"]) == ("help", "run show")
    assert document["text"].startswith("Usage: quell run show ")


def test_commands_of_other_packages_answer_in_json_wherever_it_was_asked_for(tmp_path: Path) -> None:
    runner = CliRunner()
    for asked_before in (True, False):
        session = Session(env={}, is_json=asked_before)
        after = [] if asked_before else ["--json"]
        listed = runner.invoke(lab, ["faults", *after], obj=session)
        assert json.loads(listed.stdout)["kind"] == "lab_faults"
        refused = runner.invoke(lab, ["status", "--dir", str(tmp_path / "none"), *after], obj=session)
        assert (refused.exit_code, refused.stdout) == (ExitCode.UNREACHABLE, "")
        error = json.loads(refused.stderr)["error"]
        assert error["exit"] == ExitCode.UNREACHABLE
        assert "quell lab up" in error["message"]


def test_topics_tell_the_exit_codes_and_the_environment(tmp_path: Path) -> None:
    told = quell("help", "exit-codes", cwd=tmp_path).stdout
    for code in ExitCode:
        assert re.search(rf"^ *{int(code)}  {code.name.lower()}: ", told, re.MULTILINE)
    entries = json.loads(quell("help", "environment", "--json", cwd=tmp_path).stdout)["entries"]
    assert "NO_COLOR" in entries
    assert "Usage: quell run show" in quell("help", "run", "show", cwd=tmp_path).stdout
    assert "did you mean `run`?" in quell("help", "rnu", cwd=tmp_path).stderr


def test_version_and_module_entry(tmp_path: Path) -> None:
    assert re.fullmatch(r"quell \d+\.\d+\.\d+\n", quell("--version", cwd=tmp_path).stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(tmp_path: Path, shell: str) -> None:
    told = quell("completion", shell, cwd=tmp_path)
    assert told.returncode == 0
    assert "_QUELL_COMPLETE" in told.stdout


def test_the_completion_script_completes_commands(tmp_path: Path) -> None:
    env = {"_QUELL_COMPLETE": "bash_complete", "COMP_WORDS": "quell in", "COMP_CWORD": "1"}
    assert quell(cwd=tmp_path, env=env).stdout.split() == ["plain,investigate", "plain,incident", "plain,init"]


def test_config_check_tells_every_mistake_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "quell.toml").write_text('[server]\nprot = 1\nport = "x"\n')
    told = quell("config", "check", cwd=tmp_path)
    assert told.returncode == ExitCode.BAD
    assert told.stderr == "", "the mistakes are what was asked for"
    assert told.stdout.splitlines()[:2] == [
        "quell.toml:2: server.prot: unknown key",
        "  hint: did you mean `server.port`?",
    ]
    document = json.loads(quell("config", "check", "--json", cwd=tmp_path).stdout)
    assert (document["kind"], document["ok"]) == ("config_check", False)
    assert [problem["path"] for problem in document["problems"]] == ["server.prot", "server.port"]


def test_config_check_tells_of_servers_that_are_called_otherwise_than_their_files_say(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    for number, name in enumerate(("one", "two", "three")):
        table = f'[mcp.servers.shop]\ntransport = "http_streamable"\nurl = "http://127.0.0.1:{number // 2 + 1}/mcp"\n'
        llm = '[agent.llm]\nprovider = "builtin"\n'
        text = f'[agent]\nname = "{name}"\nsystem_prompt = "Help."\n{llm}{table}'
        (tmp_path / "agents" / f"{number}.toml").write_text(text)
    flags = ("--set", "agents=agents", "config", "check")
    told = quell(*flags, cwd=tmp_path, env=UNPLANTED)
    assert told.returncode == 0
    said = "warning: agent three: mcp.servers.shop: another server has this name, so it is called shop-three"
    assert [line for line in told.stdout.splitlines() if "another server" in line] == [said]
    (warning,) = json.loads(quell(*flags, "--json", cwd=tmp_path, env=UNPLANTED).stdout)["warnings"]
    assert "a permit names shop-three" in warning["hint"]


def test_a_broken_configuration_stops_every_other_command_with_2(tmp_path: Path) -> None:
    (tmp_path / "quell.toml").write_text('[server]\nprot = 1\nport = "x"\n')
    for arguments in (["serve"], ["run", "list"], ["incident", "list"], ["config", "show"], ["watch"], ["brief"]):
        told = quell(*arguments, cwd=tmp_path)
        assert told.returncode == ExitCode.USAGE, arguments
        assert told.stdout == ""
        assert "server.prot (quell.toml:2): unknown key" in told.stderr
        assert "server.port (quell.toml:3)" in told.stderr
    error = error_of(quell("serve", "--json", cwd=tmp_path))
    assert error["kind"] == "ConfigError"
    assert isinstance(error["problems"], list)
    assert len(error["problems"]) == 2
    assert not (tmp_path / ".quell").exists(), "nothing was begun"


def test_no_configuration_is_fine_and_everything_is_a_default(tmp_path: Path) -> None:
    assert quell("config", "check", cwd=tmp_path, env=UNPLANTED).returncode == 0
    document = json.loads(quell("config", "show", "--json", cwd=tmp_path, env=UNPLANTED).stdout)
    assert {entry["origin"] for entry in document["settings"]} == {"default"}
    assert len(quell("config", "show", "--changed", cwd=tmp_path, env=UNPLANTED).stdout.splitlines()) == 1


def test_config_show_proves_where_each_value_came_from_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "quell.toml").write_text('[server]\nport = 1\n[store]\npassword = "{{ env.PW }}"\n')
    env = {"QUELL_SERVER__PORT": "2", "PW": "hunter2-correct-horse", **UNPLANTED}
    assert re.search(
        r"server\.port +3 +flag", quell("--set", "server.port=3", "config", "show", cwd=tmp_path, env=env).stdout
    )
    told = quell("config", "show", cwd=tmp_path, env=env)
    assert re.search(r"server\.port +2 +env QUELL_SERVER__PORT", told.stdout)
    assert re.search(r"store\.password +\(set\) +file:quell\.toml:4", told.stdout)
    assert "hunter2" not in told.stdout + told.stderr
    assert "hunter2" not in quell("config", "show", "--json", "--debug", cwd=tmp_path, env=env).stdout


def test_config_explain_tells_value_origin_and_meaning(tmp_path: Path) -> None:
    told = quell("config", "explain", "server.port", "--set", "server.port=0", cwd=tmp_path)
    assert "TCP port" in told.stdout
    assert "from:    flag" in told.stdout
    assert (
        json.loads(quell("config", "explain", "store.retention_hours", "--json", cwd=tmp_path).stdout)["unit"]
        == "hours"
    )
    assert quell("config", "explain", "server.prot", cwd=tmp_path).returncode == ExitCode.USAGE


def test_config_schema_is_json_schema(tmp_path: Path) -> None:
    assert json.loads(quell("config", "schema", cwd=tmp_path).stdout)["additionalProperties"] is False
    document = json.loads(quell("config", "schema", "--json", cwd=tmp_path).stdout)
    assert (document["kind"], document["ok"]) == ("config_schema", True)


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    out = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m quell config show | true; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (out.stdout.strip(), out.stderr) == ("0", "")


def test_output_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [*QUELL, "config", "show"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert told.returncode == ExitCode.UNREACHABLE
    assert told.stderr.startswith("error: No space left on device\nhint: ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_bug_and_no_file_takes_its_place(tmp_path: Path, closed: str) -> None:
    for command, code in (("incident list", ExitCode.DONE), ("--help", ExitCode.DONE), ("nonsense", ExitCode.USAGE)):
        told = _with_closed(command, closed, cwd=tmp_path)
        assert told == str(int(code)), f"{command} {closed}"
    assert not (tmp_path / ".quell" / "logs" / "quell.log").exists()
    assert (tmp_path / ".quell" / "quell.db").read_bytes().startswith(b"SQLite format 3")


def _with_closed(command: str, closed: str, *, cwd: Path) -> str:
    line = f"{sys.executable} -m quell {command} {closed}; echo $? > code"
    subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, check=True)
    return (cwd / "code").read_text().strip()


def test_output_survives_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert quell("config", "explain", "journal.url", cwd=tmp_path, env=env).returncode == 0


def test_colour_follows_the_terminal_and_can_be_forced_or_forbidden(tmp_path: Path) -> None:
    (tmp_path / "quell.toml").write_text("nonsense = 1\n")

    def has_colour(*arguments: str, env: Mapping[str, str] | None = None) -> bool:
        return "\x1b[" in quell("doctor", *arguments, cwd=tmp_path, env=env).stdout

    assert not has_colour()
    assert has_colour("--color", "always")
    assert has_colour(env={"FORCE_COLOR": "1"})
    assert not has_colour("--color", "never", env={"FORCE_COLOR": "1"})
    main, side = pty.openpty()
    try:
        subprocess.run(
            [*QUELL, "doctor"], cwd=tmp_path, stdout=side, stderr=side, stdin=subprocess.DEVNULL, check=False
        )
        shown = os.read(main, 65536).decode()
    finally:
        os.close(main)
        os.close(side)
    assert "\x1b[31;1mbad" in shown, "and a word stands in the colour"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_configuration_is_read_ends_with_130(tmp_path: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "quell.toml"
    os.mkfifo(fifo)
    started = subprocess.Popen(
        [*QUELL, "config", "show"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    writer = os.open(fifo, os.O_WRONLY)  # returns when the command has opened it, and then it waits for a first line
    try:
        started.send_signal(number)
        out, err = started.communicate(timeout=30)
    finally:
        os.close(writer)
    assert (started.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert err.strip() == "error: interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait_s", [0.3, 0.5, 0.8])
def test_an_interrupt_while_modules_are_loaded_shows_nothing_of_ours(
    tmp_path: Path, number: signal.Signals, wait_s: float
) -> None:
    os.mkfifo(tmp_path / "quell.toml")
    started = subprocess.Popen(
        [*QUELL, "config", "show"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait_s)
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert out == ""
    assert f"{os.sep}quell{os.sep}cli" not in err, "a traceback through our code"
    # Before the first line of ours runs, the signal itself, or Python, ends the interpreter.
    assert started.returncode in {ExitCode.INTERRUPTED, -number, 1}


def _install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Let only `points` be installed as commands of other packages."""
    real = importlib.metadata.entry_points

    def entry_points(**wanted: str) -> object:
        return points if wanted.get("group") == "quell.commands" else real(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


@pytest.fixture
def _signals() -> Iterator[None]:
    """Give the test runner its signal handlers back: `main` sets those of a whole process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_command_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _install(monkeypatch)
    with pytest.raises(SystemExit) as left:
        main(["lab", "up"])
    assert left.value.code == ExitCode.USAGE
    assert capsys.readouterr().err == "error: `quell lab` is not installed\nhint: pip install 'quell[lab]'\n"


@pytest.mark.usefixtures("_signals")
def test_a_command_whose_packages_are_missing_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint(name="demo", value="no_such_package.cli:demo", group="quell.commands")
    _install(monkeypatch, broken)
    with pytest.raises(SystemExit) as left:
        main(["demo"])
    assert left.value.code == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "cause: ModuleNotFoundError: No module named 'no_such_package'" in told
    assert "pip install 'quell[lab]'" in told


@pytest.mark.usefixtures("_signals")
def test_a_bug_of_ours_gets_an_id_and_its_traceback_goes_to_the_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    point = EntryPoint(name="lab", value="tests.doors.test_cli_words:explosive", group="quell.commands")
    _install(monkeypatch, point)
    with pytest.raises(SystemExit) as left:
        main(["lab", "--json"])
    assert left.value.code == ExitCode.BUG
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["kind"], error["exit"]) == ("Bug", 7)
    assert error["report"] in error["hint"]
    (kept,) = [json.loads(line) for line in (tmp_path / ".quell" / "logs" / "quell.log").read_text().splitlines()]
    assert (kept["event"], kept["report"]) == ("cli.crashed", error["report"])
    assert "the unexpected" in kept["traceback"]
    with pytest.raises(SystemExit):
        main(["lab", "--debug"])
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "error: a bug of ours: RuntimeError: the unexpected, with \\x1b[31m colour" in told


@click.command("lab", cls=QuellCommand)
@click.pass_obj
def explosive(session: Session) -> int:
    """Fail as only a bug can, after the settings were read."""
    session.settings()
    raise RuntimeError("the unexpected, with \x1b[31m colour")
