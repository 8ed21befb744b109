"""`quell init`: what it senses, asks and writes, and that it never loses what is there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests._quell import UNPLANTED, error_of, quell
from tests.doors._chat_bench import played, terminal
from tests.doors._model_bench import plain

pytestmark = pytest.mark.timeout(60)  # whole processes

KEYLESS = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"), "")
KEYLESS |= dict.fromkeys(("GOOGLE_API_KEY", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"), "") | UNPLANTED
KEY = "sk-typed-0123456789abcdef"


def written(at: Path) -> set[str]:
    return {each.name for each in at.iterdir() if each.is_file()}


def test_without_a_key_it_begins_with_builtin_and_what_it_writes_is_taken(tmp_path: Path) -> None:
    told = quell("init", "--offline", cwd=tmp_path, env=KEYLESS)
    assert told.returncode == 0, told
    assert written(tmp_path) == {"agent.toml", "quell.toml"}
    assert 'provider = "builtin"' in (tmp_path / "agent.toml").read_text()
    checked = quell("config", "check", "--json", cwd=tmp_path, env=KEYLESS)
    assert json.loads(checked.stdout)["agents"] == ["sre"]
    assert json.loads(checked.stdout)["warnings"] == []


@pytest.mark.parametrize("form", ["single", "team"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "openrouter", "ollama", "bedrock"])
def test_every_provider_and_form_passes_the_check_and_refers_to_its_key(
    tmp_path: Path, provider: str, form: str
) -> None:
    flags = (
        "--provider",
        provider,
        "--model",
        "m-1",
        "--form",
        form,
        "--context-window",
        "100000",
        "--name",
        "Night Shift",
    )
    told = quell("init", "--offline", *flags, cwd=tmp_path, env=KEYLESS)
    assert told.returncode == 0, told
    text = (tmp_path / "agent.toml").read_text()
    variable = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
    if provider in variable:
        assert f'api_key = "{{{{ env.{variable[provider]} }}}}"' in text
    env = {**KEYLESS, **dict.fromkeys((*variable.values(), "OPENROUTER_API_KEY"), "a-key")}
    checked = quell("config", "check", "--json", cwd=tmp_path, env=env)
    document = json.loads(checked.stdout)
    assert document["ok"], document
    assert (document["agents"], document["warnings"]) == (["night-shift"], [])


def test_nothing_is_overwritten_without_force_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert quell("init", "--offline", "--dry-run", cwd=tmp_path, env=KEYLESS).returncode == 0
    assert written(tmp_path) == set()
    (tmp_path / "agent.toml").write_text("mine\n")
    (tmp_path / "quell.toml").write_text("# mine\n[store]\nretention_hours = 5.0\n")
    told = quell("init", "--offline", "--json", cwd=tmp_path, env=KEYLESS)
    assert told.returncode == 2
    assert "agent.toml and quell.toml would change" in str(error_of(told)["message"])
    assert (tmp_path / "agent.toml").read_text() == "mine\n"
    forced = quell("init", "--offline", "--json", "--force", cwd=tmp_path, env=KEYLESS)
    assert forced.returncode == 0, forced
    changes = {each["path"]: each["change"] for each in json.loads(forced.stdout)["files"]}
    assert changes == {"agent.toml": "replaced", "quell.toml": "changed"}
    project = (tmp_path / "quell.toml").read_text()
    assert project == 'agents = "agent.toml"\n# mine\n[store]\nretention_hours = 5.0\n'
    assert quell("config", "check", cwd=tmp_path, env=KEYLESS).returncode == 0
    again = quell("init", "--offline", "--json", cwd=tmp_path, env=KEYLESS)
    assert (again.returncode, json.loads(again.stdout)["is_written"]) == (0, False)


def test_a_new_key_goes_to_dotenv_alone_and_is_read_from_there(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("export OTHER='kept'\n")
    (tmp_path / ".git").mkdir()
    told = quell(
        "init", "--offline", "--provider", "openai", "--key-from", "-", cwd=tmp_path, env=KEYLESS, stdin=f"{KEY}\n"
    )
    assert told.returncode == 0, told
    assert KEY not in told.stdout + told.stderr
    assert ".gitignore" in told.stderr
    assert (tmp_path / ".env").read_text() == f"export OTHER='kept'\nOPENAI_API_KEY={KEY}\n"
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert KEY not in (tmp_path / "agent.toml").read_text() + (tmp_path / "quell.toml").read_text()
    env = {name: value for name, value in KEYLESS.items() if name != "OPENAI_API_KEY"}
    assert quell("config", "check", cwd=tmp_path, env=env).returncode == 0
    (tmp_path / ".env").write_text("not a setting\n")
    broken = quell("config", "check", "--json", cwd=tmp_path, env=env)
    assert json.loads(broken.stdout)["problems"][0]["source"] == ".env:1"


def test_live_models_are_listed_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    listed = {"object": "list", "data": [{"id": "large-1"}, {"id": "gpt-4o"}, {"id": "small-1"}]}
    with played(plain(200, listed)) as model:
        flags = ("--provider", "openai", "--base-url", model.url, "--prometheus", "none", "--clickhouse", "none")
        env = {**KEYLESS, "OPENAI_API_KEY": KEY}
        told = quell("init", *flags, "--json", cwd=tmp_path, env=env)
        assert told.returncode == 0, told
        assert json.loads(told.stdout)["model"] == "gpt-4o"
        odd = quell("init", *flags, "--model", "small-2", "--force", "--json", cwd=tmp_path, env=env)
        assert "did you mean small-1" in json.loads(odd.stdout)["notes"][0]
    assert model.heads[0][":path"] == "/v1/models"
    assert model.heads[0]["authorization"] == f"Bearer {KEY}"


def test_a_provider_without_a_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    told = quell("init", "--provider", "anthropic", "--json", cwd=tmp_path, env=KEYLESS)
    assert told.returncode == 2
    assert "ANTHROPIC_API_KEY" in str(error_of(told)["hint"])
    assert written(tmp_path) == set()


def test_a_person_is_asked_shown_and_may_still_say_no(tmp_path: Path) -> None:
    with terminal("init", "--offline", cwd=tmp_path, env=KEYLESS) as sitting:
        sitting.wait("Number or name")
        sitting.type("nobody\n")
        sitting.wait("type its number or its name")
        sitting.type("builtin\n")
        sitting.wait("What is the agent called?")
        sitting.type("Night Shift\n")
        assert 'alias = "night-shift"' in sitting.wait("Write this?")
        sitting.type("n\n")
        sitting.end()
    assert sitting.code == 1
    assert written(tmp_path) == set()
