"""Every mistake of a configuration is told at once, with its place, its reason and what to do."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from quell.config import Secret, explain_all, load
from quell.domain import ConfigError, Problem

SECRET = "hunter2-correct-horse"
NUMBER = str(98765 * 100_000 + 43210)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _problems(
    text: str, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> tuple[Problem, ...]:
    Path("quell.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(None, env=env or {}, overrides=overrides)
    return caught.value.problems


def test_every_mistake_of_a_file_is_told_at_once_in_the_order_of_its_lines() -> None:
    text = """
[server]
prot = 1
port = "80"
host = "0.0.0.0"
[store]
password = "{{ env.NOT_SET }}"
create_tables = "alway"
query_timeout_s = -1
[[prometheus]]
name = "a"
url = "http://one:9090"
[[prometheus]]
name = "a"
[telemtry]
"""
    told = _problems(text)
    assert [(problem.path, problem.source) for problem in told] == [
        ("server.prot", "quell.toml:3"),
        ("server.port", "quell.toml:4"),
        ("server.host", "quell.toml:5"),
        ("store.password", "quell.toml:7"),
        ("store.create_tables", "quell.toml:8"),
        ("store.query_timeout_s", "quell.toml:9"),
        ("prometheus.1.url", "quell.toml:13"),
        ("prometheus.1.name", "quell.toml:14"),
        ("telemtry", "quell.toml:15"),
    ]
    said = {problem.path: f"{problem.reason} / {problem.hint}" for problem in told}
    assert "did you mean `server.port`?" in said["server.prot"]
    assert "without quotes" in said["server.port"]
    assert "loopback" in said["server.host"]
    assert "NOT_SET" in said["store.password"]
    assert 'did you mean "always"?' in said["store.create_tables"]
    assert "more than 0" in said["store.query_timeout_s"]
    assert "required" in said["prometheus.1.url"]
    assert "taken by prometheus.0" in said["prometheus.1.name"]
    assert "did you mean `telemetry`?" in said["telemtry"]


def test_a_syntax_error_is_told_with_its_line_and_does_not_hide_the_rest() -> None:
    text = '[server]\nport = = 1\nbody_max_mb = "x"\n[stor\nuser = "a"\n[journal]\nurl = "{{ env.NOT_SET }}"\nlease_ss = 1\n'
    told = _problems(text)
    assert [problem.source.partition(":")[2].partition(":")[0] for problem in told] == ["2", "3", "4", "7", "8"]
    assert "TOML syntax" in told[0].reason
    assert "NOT_SET" in told[3].reason
    assert "server.port" not in {problem.path for problem in told}, "what a broken line hid is not called missing"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("[server]\nport = 80.5", "server.port", "must be a whole number, not a number"),
        ("[server]\nport = true", "server.port", "must be a whole number, not true or false"),
        ("[server]\nport = 70000", "server.port", "at most 65535"),
        ("[server]\nport = [1]", "server.port", "must be a whole number, not a list"),
        ("[store]\nuser = 5", "store.user", "in quotes"),
        ("[store]\nuser = 2026-11-20", "store.user", "must be text, not a date or time"),
        ("[store]\nurl = 'ftp://x'", "store.url", "must be a URL"),
        ("[store]\nurl = 'http://ann:pw@h:8123'", "store.url", "must not carry a user or a password"),
        ("[detection]\ninterval_s = nan", "detection.interval_s", "finite"),
        ("[detection]\ninterval_s = 0.0", "detection.interval_s", "at least 0.2"),
        ("server = 5", "server", "must be a table, not a whole number"),
        ("[journal]\nurl = 'mysql://h/d'", "journal.url", "postgresql://"),
        ("[journal]\nurl = 'postgresql://ann:p@ss@h/d'", "journal.url", "%40"),
        ('[[prometheus]]\nname="a"\nurl="http://h"\nmetrics=["("]', "prometheus.0.metrics.0", "regular expression"),
        ('[[prometheus]]\nname="a"\nurl="http://h"\nmetrics="x"', "prometheus.0.metrics", "in brackets"),
        ('[[prometheus]]\nname="a b\\n"\nurl="http://h"', "prometheus.0.name", "letters"),
        ("state_dir = ''", "state_dir", "empty"),
        ('state_dir = "a\\u0000b"', "state_dir", "NUL"),
        ("[server]\nport = {{ env.ABSENT | default: 'high' }}", "server.port", "such as port = 7433"),
        ("[server]\nport = '80'", "server.port", "without quotes"),
    ],
)
def test_a_wrong_value_is_told_with_what_it_should_be(text: str, path: str, words: str) -> None:
    (problem,) = _problems(text)
    assert problem.path == path
    assert words in f"{problem.reason}; {problem.hint}"


def test_something_that_was_meant_as_a_reference_is_told() -> None:
    (problem,) = _problems('[store]\nuser = "{{ env.lower }}"')
    assert "is no reference" in problem.reason
    assert problem.hint.startswith("write {{ env.NAME }}")
    assert problem.source == "quell.toml:2"


def test_a_reference_cannot_be_a_key() -> None:
    for text in ('[store]\n"{{ env.K }}" = "v"', "[store]\n{{ env.K }} = 1", "[{{ env.K }}]\nuser = 'v'"):
        (problem,) = _problems(text, {"K": "user"})
        assert "in a key" in problem.reason, "and nothing is said of what stands in its place inside"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_is_accepted_in_every_spelling(host: str) -> None:
    assert load(None, env={}, overrides={"server.host": host}).settings.server.host == host


def test_mistakes_in_the_environment_and_in_flags_name_their_source() -> None:
    told = _problems("", {"QUELL_SERVER__PRT": "1", "QUELL_STORE__THREADS_MAX": "two"}, {"server.port": "x"})
    assert {(problem.path, problem.source) for problem in told} == {
        ("server.prt", "env QUELL_SERVER__PRT"),
        ("store.threads_max", "env QUELL_STORE__THREADS_MAX"),
        ("server.port", "flag"),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe", "not UTF-8"), (b"x" * 1_000_001, "larger than 1 MB"), (None, "no such file")],
)
def test_a_file_that_cannot_be_read_is_a_mistake_like_others(content: bytes | None, words: str) -> None:
    if content is not None:
        Path("named.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(Path("named.toml"), env={})
    assert words in caught.value.problems[0].reason


def test_a_directory_in_place_of_a_file_is_a_mistake() -> None:
    Path("quell.toml").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(None, env={})
    assert "cannot be read" in caught.value.problems[0].reason


def test_a_secret_prints_nowhere() -> None:
    Path("quell.toml").write_text(
        '[store]\npassword = "{{ env.PW }}"\n[journal]\nurl = "postgresql://ann:{{ env.PW }}@h/d"\n'
    )
    loaded = load(None, env={"PW": SECRET})
    secret = loaded.settings.store.password
    assert secret.reveal() == SECRET
    shown = [
        repr(loaded),
        str(loaded.settings),
        f"{secret}",
        f"{secret!r:>40}",
        json.dumps([e.value for e in explain_all(loaded)]),
    ]
    shown.append(repr(copy.deepcopy(loaded.settings)))
    for told in shown:
        assert SECRET not in told
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_a_secret_in_a_wrong_place_prints_in_no_error() -> None:
    text = """
[server]
port = "{{ env.PW }}"
host = "{{ env.PW }}"
[store]
create_tables = "{{ env.PW }}"
password = {{ env.NUMBER }}
url = "{{ env.PW }}"
[journal]
url = "{{ env.PW }}"
"""
    Path("quell.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(None, env={"PW": SECRET, "NUMBER": NUMBER})
    told = "".join(traceback.format_exception(caught.value)) + "".join(map(str, caught.value.problems))
    assert SECRET not in told
    assert NUMBER not in told
    assert len(caught.value.problems) == 6


def test_an_empty_secret_says_so() -> None:
    assert repr(Secret("")) == "Secret(empty)"
    assert not Secret("")
