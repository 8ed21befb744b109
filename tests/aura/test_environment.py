"""AURA's variables at the command line: its place of the configuration, and what its server reads beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from quell.config import load
from quell.domain import ConfigError
from tests._quell import quell
from tests.aura.test_files import ENV, FILES, IDS

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory as an AURA team has it: agents, and a `.env` beside them."""
    shutil.copytree(FILES, tmp_path / "agents")
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in ENV.items()))
    return tmp_path


def _shown(home: Path, env: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    told = quell("config", "show", "--changed", "--json", cwd=home, env=env)
    assert told.returncode == 0, told.stderr
    return {each["key"]: (each["value"], each["origin"]) for each in json.loads(told.stdout)["settings"]}


def test_the_place_of_the_configuration_and_what_stands_beside_it_are_taken_from_auras_variables(home: Path) -> None:
    env = {"CONFIG_PATH": "agents", "HOST": "127.0.0.2", "PORT": "8080", "DEFAULT_AGENT": "sre"}
    more = {"AURA_ENABLE_A2A": "yes", "AURA_SERVER_URL": "https://agents.example.com", "AURA_CUSTOM_EVENTS": "on"}
    shown = _shown(home, env | more)
    assert shown["server.host"] == ("127.0.0.2", "env HOST")
    assert shown["server.port"] == (8080, "env PORT")
    assert shown["default_agent"] == ("sre", "env DEFAULT_AGENT")
    assert shown["server.a2a"] == (True, "env AURA_ENABLE_A2A")
    assert shown["server.a2a_url"] == ("https://agents.example.com", "env AURA_SERVER_URL")
    assert shown["server.aura.custom_events"] == (True, "env AURA_CUSTOM_EVENTS")


def test_names_that_shells_use_too_mean_nothing_where_auras_place_is_not_named(home: Path) -> None:
    shown = _shown(home, {"HOST": "my-laptop", "PORT": "8080", "DEFAULT_AGENT": "nobody"})
    assert not {"server.host", "server.port", "default_agent"} & shown.keys()


def test_our_own_variables_and_flags_win(home: Path) -> None:
    env = {"CONFIG_PATH": "nowhere", "PORT": "8080", "QUELL_SERVER__PORT": "9090"}
    told = quell("--config", "agents/05-webhook.toml", "config", "show", "--changed", "--json", cwd=home, env=env)
    shown = {each["key"]: each["value"] for each in json.loads(told.stdout)["settings"]}
    assert (shown["server.port"], shown["agents"]) == (9090, "agents/05-webhook.toml")


def test_config_check_names_files_agents_and_what_is_passed_over(home: Path) -> None:
    told = quell("config", "check", cwd=home, env={"CONFIG_PATH": "agents"})
    assert told.returncode == 0, told.stdout
    *warnings, last = told.stdout.splitlines()
    assert last.startswith("no mistakes; version ")
    assert "read: agents/01-single.toml, agents/02-helm.toml" in last
    assert last.endswith(f"agents: {', '.join(IDS)}")
    assert "warning: agents/07-legacy.toml:2: old_and_gone: unknown key, passed over" in warnings


def test_config_check_ends_with_lines_to_copy_for_variables_that_are_not_set(home: Path) -> None:
    (home / ".env").unlink()
    told = quell("config", "check", cwd=home, env={"CONFIG_PATH": "agents"})
    assert told.returncode == 1
    lines = told.stdout.splitlines()
    at = lines.index("the agents have 9 mistakes")
    assert set(lines[at + 1 :]) == {f"export {name}=..." for name in ENV}


def test_a_default_agent_that_is_not_there_is_a_mistake(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(home / "agents", env={**ENV, "CONFIG_PATH": "agents", "DEFAULT_AGENT": "nobody"})
    (problem,) = caught.value.problems
    assert (problem.path, problem.source) == ("default_agent", "env DEFAULT_AGENT")
    assert "incident-response/logs" in problem.hint


def test_a_default_agent_that_is_there_is_none(home: Path) -> None:
    assert (
        load(home / "agents", env={**ENV, "CONFIG_PATH": "agents", "DEFAULT_AGENT": "sre"}).settings.default_agent
        == "sre"
    )
