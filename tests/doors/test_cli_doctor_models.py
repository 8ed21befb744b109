"""`quell doctor` on models: what each agent names is reached and offered, or what to do about it; no model is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests._quell import UNPLANTED, quell
from tests.doors._chat_bench import played
from tests.doors._model_bench import plain

pytestmark = pytest.mark.timeout(60)  # whole processes

KEY = "sk-typed-0123456789abcdef"
OFFERS = plain(200, {"data": [{"id": "m-1"}, {"id": "m-2"}]})
NOWHERE = "http://127.0.0.1:9/v1"
BLIND = ("--set", f"store.url={NOWHERE}", "--set", "server.port=0")


def an_agent(
    at: Path, name: str, *, url: str, model: str = "m-1", key: str = "{{ env.SHOP_KEY }}", more: str = ""
) -> None:
    (at / "agents").mkdir(exist_ok=True)
    (at / "quell.toml").write_text('agents = "agents"\n')
    llm = f'provider = "openai"\nmodel = "{model}"\napi_key = "{key}"\nbase_url = "{url}"\n'
    (at / "agents" / f"{name}.toml").write_text(
        f'[agent]\nname = "{name}"\nsystem_prompt = "Help."\n[agent.llm]\n{llm}{more}'
    )


def checked(at: Path) -> tuple[int, dict[str, dict[str, str]], str]:
    """Return the exit code, the checks of models by name, and all that was said."""
    told = quell(*BLIND, "doctor", "--json", cwd=at, env={"SHOP_KEY": KEY, **UNPLANTED})
    checks = {each["name"]: each for each in json.loads(told.stdout)["checks"]}
    return told.returncode, {name: each for name, each in checks.items() if name.startswith("model")}, told.stdout


def test_without_agents_nothing_is_needed(tmp_path: Path) -> None:
    _, checks, _ = checked(tmp_path)
    assert checks["model"]["status"] == "ok"
    assert "builtin" in checks["model"]["detail"]


def test_each_model_of_each_agent_is_told_of_with_what_to_do_and_no_key_is_shown(tmp_path: Path) -> None:
    refuses = plain(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    listless = plain(404, {"error": {"message": "no such page"}})
    with played(OFFERS) as offering, played(refuses) as refusing, played(listless) as bare:
        an_agent(tmp_path, "fine", url=offering.url)
        an_agent(tmp_path, "misspelt", url=offering.url, model="m-l")
        an_agent(tmp_path, "refused", url=refusing.url)
        an_agent(tmp_path, "gone", url=NOWHERE)
        an_agent(tmp_path, "bare", url=bare.url)
        code, checks, said = checked(tmp_path)
        assert code == 1
        assert {name: each["status"] for name, each in checks.items()} == {
            "model fine": "ok",
            "model misspelt": "bad",
            "model refused": "bad",
            "model gone": "bad",
            "model bare": "warn",
        }
        assert "openai/m-1" in checks["model fine"]["detail"]
        assert "its key is set (SHOP_KEY)" in checks["model fine"]["detail"]
        assert "m-1" in checks["model misspelt"]["hint"]
        assert "the key is refused" in checks["model refused"]["hint"]
        assert "base_url" in checks["model gone"]["hint"]
        assert KEY not in said
        asked = [head[":path"] for server in (offering, refusing, bare) for head in server.heads]
        assert set(asked) == {"/v1/models"}, "a question would cost money"
        assert len(offering.heads) == 1


def test_an_agent_whose_chain_has_another_model_does_without_one(tmp_path: Path) -> None:
    with played(OFFERS) as offering:
        spare = (
            f'[[quell.fallback]]\nprovider = "openai"\nmodel = "m-2"\napi_key = "none"\nbase_url = "{offering.url}"\n'
        )
        small = '[quell.small]\nprovider = "builtin"\n'
        an_agent(tmp_path, "sre", url=NOWHERE, more=spare + small)
        _, checks, _ = checked(tmp_path)
        assert {name: each["status"] for name, each in checks.items()} == {
            "model sre": "warn",
            "model sre fallback 1": "ok",
            "model sre small": "ok",
        }
        assert "another of its chain answers" in checks["model sre"]["detail"]
