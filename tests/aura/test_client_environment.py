"""Variables of AURA's client: where it asks, with which key, and whom; what is ours wins, and a key is never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests._quell import error_of, quell
from tests.doors._chat_bench import agent_file, played, says
from tests.doors._model_bench import plain

pytestmark = pytest.mark.timeout(60)  # whole processes

KEY = "key-of-auras-client-1"
NOWHERE = "http://127.0.0.1:9"


def test_ask_and_chat_go_where_auras_variables_say(tmp_path: Path) -> None:
    listed = plain(200, {"object": "list", "data": [{"id": "incident-response/sre", "object": "model"}]})
    with played(says("It is pay."), says("Since noon."), listed) as model:
        env = {"AURA_API_URL": f"{model.url}/v1", "AURA_API_KEY": KEY, "AURA_MODEL": "incident-response/sre"}
        told = quell("ask", "what is slow?", cwd=tmp_path, env=env)
        assert (told.returncode, told.stdout) == (0, "It is pay.\n"), told
        talked = quell("chat", cwd=tmp_path, env=env, stdin="since when?\n/agents\n")
        assert talked.stdout == "Since noon.\n* incident-response/sre    \n", talked
    assert [body["model"] for body in model.bodies[:2]] == ["incident-response/sre"] * 2
    assert {head["authorization"] for head in model.heads} == {f"Bearer {KEY}"}
    assert KEY not in told.stderr + talked.stderr


def test_a_dotenv_may_hold_them(tmp_path: Path) -> None:
    with played(says("It is pay.")) as model:
        (tmp_path / ".env").write_text(f"AURA_API_URL={model.url}\nAURA_API_KEY={KEY}\n")
        told = quell("ask", "what is slow?", cwd=tmp_path)
        assert (told.returncode, told.stdout) == (0, "It is pay.\n"), told
    assert model.heads[0]["authorization"] == f"Bearer {KEY}"


def test_the_log_is_kept_where_auras_variable_says(tmp_path: Path) -> None:
    place = tmp_path / "kept" / "aura.log"
    env = {"AURA_LOG_FILE": str(place)}
    assert quell("ask", "what would you do?", "--model", "builtin", cwd=tmp_path, env=env).returncode == 0
    events = {json.loads(line)["event"] for line in place.read_text().splitlines()}
    assert "run.started" in events
    assert place.stat().st_mode & 0o077 == 0
    assert not (tmp_path / ".quell" / "logs").exists()
    named = quell(
        "ask", "what would you do?", "--model", "builtin", cwd=tmp_path, env=env | {"QUELL_TELEMETRY__LOG_FILE": ""}
    )
    assert named.returncode == 0
    assert (tmp_path / ".quell" / "logs" / "quell.log").exists(), "our own variable wins"


def test_our_own_flags_and_variables_win(tmp_path: Path) -> None:
    with played(says("It is pay.")) as model:
        env = {"AURA_API_URL": NOWHERE, "AURA_API_KEY": KEY, "AURA_MODEL": "theirs", "QUELL_API_KEY": "our-own-key-1"}
        told = quell("ask", "what is slow?", "--server", model.url, "--agent", "ours", cwd=tmp_path, env=env)
        assert (told.returncode, told.stdout) == (0, "It is pay.\n"), told
    assert (model.bodies[0]["model"], model.heads[0]["authorization"]) == ("ours", "Bearer our-own-key-1")


@pytest.mark.parametrize("flags", [("--model", "builtin"), ("--server", "")])
def test_a_flag_for_this_process_is_asked_of_this_process(tmp_path: Path, flags: tuple[str, str]) -> None:
    told = quell("ask", "what would you do?", *flags, "--json", cwd=tmp_path, env={"AURA_API_URL": NOWHERE})
    assert json.loads(told.stdout)["run"].startswith("run_"), told
    assert quell("ask", "?", cwd=tmp_path, env={"AURA_API_URL": NOWHERE}).returncode == 3, (
        "without it the server is asked"
    )


def test_auras_agent_counts_here_too_unless_our_variable_says_another_or_a_conversation_has_one(tmp_path: Path) -> None:
    with played(says("It is pay.")) as model:
        agent_file(tmp_path, model.url)
        (tmp_path / "agents").mkdir()
        text = (tmp_path / "agent.toml").read_text()
        for name in ("one", "two"):
            (tmp_path / "agents" / f"{name}.toml").write_text(text.replace('"sre"', f'"{name}"'))
        (tmp_path / "quell.toml").write_text('agents = "agents"\n')

        def asked(*flags: str, **env: str) -> object:
            told = quell("ask", "what is slow?", "--json", *flags, cwd=tmp_path, env=env)
            assert told.returncode == 0, told
            return json.loads(told.stdout)["agent"]

        assert asked(AURA_MODEL="two") == "two"
        assert asked(AURA_MODEL="two", QUELL_DEFAULT_AGENT="one") == "one"
        assert asked("--agent", "one", AURA_MODEL="two") == "one"
        assert asked("--session", "night", AURA_MODEL="one") == "one"
        assert asked("--session", "night", AURA_MODEL="two") == "one", "it goes on with whom it began"


def test_no_key_is_told_when_a_server_tells_it_back(tmp_path: Path) -> None:
    refused = plain(401, {"error": {"message": f"{KEY} and header-key-22 are nobody's"}})
    with played(refused) as model:
        env = {
            "AURA_API_URL": model.url,
            "AURA_API_KEY": KEY,
            "AURA_EXTRA_HEADERS": "x-team: sre,authorization-extra: Bearer header-key-22",
        }
        told = quell("ask", "hello?", "--json", cwd=tmp_path, env=env)
    assert (told.returncode, told.stdout) == (4, "")
    assert error_of(told)["message"] == "[redacted:env.AURA_API_KEY] and [redacted:env.AURA_EXTRA_HEADERS] are nobody's"
    assert KEY not in told.stderr
