"""What "Point your client at it" shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.clients._house import House
from tests.clients._script import Script, said
from tests.clients.test_llm_cli import llm

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "use-your-client.md").read_text()
ADDRESS = "http://127.0.0.1:7433"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def answered(script: Script) -> Script:
    script.on("Is anything wrong?", said("Nothing that I can see."))
    return script


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_its_python_runs_and_prints_the_answer(
    open_house: House, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    example = blocks("python")[number]
    assert ADDRESS in example
    exec(compile(example.replace(ADDRESS, open_house.url), "use-your-client.md", "exec"), {"__name__": "example"})
    assert "Nothing that I can see." in capsys.readouterr().out


@pytest.mark.usefixtures("answered")
def test_its_settings_make_llm_answer(open_house: House, tmp_path: Path) -> None:
    settings, _ = blocks("yaml")
    (tmp_path / "extra-openai-models.yaml").write_text(settings.replace(ADDRESS, open_house.url))
    told = llm(tmp_path, "-m", "quell", "--key", "any", "Is anything wrong?")
    assert (told.returncode, told.stdout.strip()) == (0, "Nothing that I can see.")


@pytest.mark.usefixtures("answered")
def test_its_endpoint_for_librechat_lists_agents_and_answers_in_the_conversation_of_the_chat(open_house: House) -> None:
    _, written = blocks("yaml")
    (endpoint,) = yaml.safe_load(written)["endpoints"]["custom"]
    headers = {
        name: value.replace("{{LIBRECHAT_BODY_CONVERSATIONID}}", "chat-7")
        for name, value in endpoint["headers"].items()
    }
    base = endpoint["baseURL"].replace(ADDRESS, open_house.url)
    with httpx2.Client(headers={"Authorization": f"Bearer {endpoint['apiKey']}", **headers}, trust_env=False) as http:
        listed = {model["id"] for model in http.get(f"{base}/models").json()["data"]}
        assert set(endpoint["models"]["default"]) <= listed
        asked = {"model": "sre", "stream": True, "messages": [{"role": "user", "content": "Is anything wrong?"}]}
        answer = http.post(f"{base}/chat/completions", json=asked, timeout=30)
    assert answer.headers["x-chat-session-id"] == "chat-7"
    assert "Nothing that I can see." in "".join(re.findall(r'"content":"([^"]*)"', answer.text))
