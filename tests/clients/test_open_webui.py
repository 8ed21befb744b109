"""A real Open WebUI: a person opens it in a browser, chooses an agent, asks, and reads the answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.clients._house import House
from tests.clients._script import Script, said
from tests.doors._model_bench import plain
from tests.pages.test_report_page import ARGUMENTS

pytestmark = [pytest.mark.clients("open-webui"), pytest.mark.needs_chromium, pytest.mark.timeout(300)]

_UP_S = 240.0
_WAIT_MS = 60_000


@contextmanager
def _web_ui(home: Path, house: House) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "DATA_DIR": str(home),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OFFLINE_MODE": "true",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "of-the-test",
        "ENABLE_OLLAMA_API": "False",
        "OPENAI_API_BASE_URL": house.v1,
        "OPENAI_API_KEY": "any",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "True",
        "ENABLE_VERSION_UPDATE_CHECK": "False",
        # What it asks a model behind a person's back (titles, tags, next questions) is no part of this story.
        "ENABLE_TITLE_GENERATION": "False",
        "ENABLE_TAGS_GENERATION": "False",
        "ENABLE_FOLLOW_UP_GENERATION": "False",
    }
    python = Path(os.environ["QUELL_OPEN_WEBUI_PYTHON"])
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONDEVMODE"}}
    with (home / "open-webui.log").open("wb") as log:
        server = subprocess.Popen(
            [str(python.parent / "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=home,
            env={**clean, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(server, f"http://127.0.0.1:{port}/health", home / "open-webui.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=10)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends_at = time.monotonic() + _UP_S
    while time.monotonic() < ends_at:
        assert server.poll() is None, log.read_text()[-3000:]
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"Open WebUI did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def web_ui(open_house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _web_ui(tmp_path_factory.mktemp("open-webui"), open_house) as url:
        yield url


@pytest.fixture(scope="module")
def page(web_ui: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(_WAIT_MS)
        opened.goto(web_ui)
        yield opened
        browser.close()


def _ask(page: Page, web_ui: str, question: str, *, agent: str) -> None:
    page.goto(f"{web_ui}/?model={agent}")
    box = page.locator("#chat-input")
    expect(box).to_be_visible(timeout=_WAIT_MS)
    # It greets whoever comes for the first time.
    with suppress(Exception):
        page.get_by_role("button", name=re.compile("Let's Go")).click(timeout=3_000)
    box.click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")


def _picture(page: Page, name: str, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("QUELL_CLIENT_PICTURES") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=pictures / f"{name}.png")


def test_a_person_asks_an_agent_and_reads_its_answer(page: Page, web_ui: str, script: Script, tmp_path: Path) -> None:
    asked = script.on("Is my shop well today?", said("Your shop ", "is **well**, ", "says the agent."))
    _ask(page, web_ui, "Is my shop well today?", agent="sre")
    expect(page.get_by_text("says the agent.")).to_be_visible(timeout=_WAIT_MS)
    expect(page.locator("strong", has_text="well")).to_be_visible()
    _picture(page, "open-webui-chat", tmp_path)
    assert asked.bodies[0]["messages"][-1]["content"] == "Is my shop well today?"


def test_a_person_sees_that_an_agent_failed(page: Page, web_ui: str, script: Script, tmp_path: Path) -> None:
    script.on("Fail in the browser.", plain(401, {"error": {"message": "bad key", "type": "x"}}))
    _ask(page, web_ui, "Fail in the browser.", agent="sre")
    shown = page.locator("#response-content-container").last
    expect(shown.get_by_text(re.compile("the model did not answer"))).to_be_visible(timeout=_WAIT_MS)
    _picture(page, "open-webui-failure", tmp_path)


def test_what_an_agent_looks_at_by_itself_is_not_asked_of_the_browser(
    page: Page, web_ui: str, open_house: House, tmp_path: Path
) -> None:
    question = "What changed in the last 45 minutes?"
    before = _runs(open_house)
    _ask(page, web_ui, question, agent="evidence")
    expect(page.locator(".chat-assistant").last).to_contain_text(re.compile("last 45 min"), timeout=_WAIT_MS)
    page.wait_for_timeout(3_000)  # it would ask again by now
    _picture(page, "open-webui-builtin", tmp_path)
    assert len(_runs(open_house) - before) == 1, "it called what is not its own, and asked again with what came of it"
    expect(page.get_by_text("View Result from")).to_have_count(0)


def _runs(house: House) -> set[str]:
    return {run["id"] for run in json.loads(house.cli("run", "list", "--json", "--limit", "500").stdout)["runs"]}
