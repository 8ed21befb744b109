"""Arize Phoenix takes the traces of agents as they are: every span, its tree, its kinds, and the tokens counted once.

It needs the package arize-phoenix, here or under the Python that `QUELL_PHOENIX_PYTHON` names.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from quell import telemetry
from quell.domain import CallWanted, TokenUsage
from quell.models._scripted import says, wants
from tests.doors._agent_bench import agent_room
from tests.doors._trace_bench import CALLER, TRACE, told

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

PYTHON = os.environ.get("QUELL_PHOENIX_PYTHON") or (sys.executable if importlib.util.find_spec("phoenix") else "")
START_S, ARRIVE_S = 150.0, 30.0
PROJECT = "the-shop"
USAGE = TokenUsage(input_tokens=100, output_tokens=10, cached_tokens=40)
SEARCH = CallWanted(id="x", name="logs_search", arguments='{"service": "web", "query": "error"}')


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextmanager
def running_phoenix(directory: Path) -> Iterator[str]:
    """Run its server as long as the context lasts; it asks nobody outside for anything."""
    port, grpc_port = _free_ports()
    settings = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(directory),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PYTHONPATH": "",
    }
    with (directory / "phoenix.log").open("wb") as log:
        server = subprocess.Popen(
            [PYTHON, "-m", "phoenix.server.main", "serve"],
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(server, f"{url}/healthz", log=directory / "phoenix.log")
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], url: str, *, log: Path) -> None:
    ends_at = time.monotonic() + START_S
    while time.monotonic() < ends_at:
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError("Phoenix does not answer: " + log.read_text(errors="replace")[-2000:])


def _get(url: str | urllib.request.Request) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def _spans(url: str, *, expected: int) -> list[dict[str, Any]]:
    ends_at = time.monotonic() + ARRIVE_S
    found: list[dict[str, Any]] = []
    while time.monotonic() < ends_at and len(found) < expected:
        with suppress(urllib.error.HTTPError):
            found = _get(f"{url}/v1/projects/{PROJECT}/spans?limit=100")["data"]
        time.sleep(0.3)
    return found


async def _ask(state_dir: Path, url: str) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
        "OTEL_SERVICE_NAME": "shop-agent",
        "PHOENIX_PROJECT_NAME": PROJECT,
        "OTEL_RECORD_CONTENT": "true",
    }
    turns = [wants(SEARCH, usage=USAGE), says("It is well [e1].", usage=USAGE)]
    async with told(state_dir, env) as opened, agent_room(state_dir, turns) as room:
        attributes = {"openinference.span.kind": "CHAIN"}
        with telemetry.span("quell.request", attributes, parent=telemetry.extract({"traceparent": CALLER})):
            answer = await room.ask("Why is web slow?")
    assert answer.text == "It is well [e1]."
    assert opened.dropped["spans"] == 0


def test_phoenix_shows_a_question_as_one_tree_and_counts_its_tokens_once(tmp_path: Path) -> None:
    if not PYTHON:
        pytest.skip("arize-phoenix is not installed: QUELL_PHOENIX_PYTHON names a Python that has it")
    (tmp_path / "phoenix").mkdir()
    (tmp_path / "state").mkdir()
    with running_phoenix(tmp_path / "phoenix") as url:
        asyncio.run(_ask(tmp_path / "state", url))
        spans = _spans(url, expected=9)
        query = (
            "{ projects { edges { node { name traceCount tokenCountTotal tokenCountPrompt tokenCountCompletion } } } }"
        )
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(f"{url}/graphql", data=body, headers={"content-type": "application/json"})
        (project,) = [
            edge["node"] for edge in _get(request)["data"]["projects"]["edges"] if edge["node"]["name"] == PROJECT
        ]
        sessions = _get(f"{url}/v1/projects/{PROJECT}/sessions")["data"]
    assert {span["context"]["trace_id"] for span in spans} == {TRACE}
    assert sorted((span["name"], span["span_kind"]) for span in spans) == [
        ("chat script", "LLM"),
        ("chat script", "LLM"),
        ("execute_tool logs_search", "TOOL"),
        ("invoke_agent sre", "AGENT"),
        ("quell.request", "CHAIN"),
        ("quell.run", "CHAIN"),
        ("quell.step", "CHAIN"),
        ("quell.step", "CHAIN"),
        ("quell.step", "CHAIN"),
    ]
    by_id = {span["context"]["span_id"]: span for span in spans}
    for span in spans:
        if span["name"] == "chat script":
            step = by_id[span["parent_id"]]
            agent = by_id[step["parent_id"]]
            assert [agent["name"], by_id[agent["parent_id"]]["name"]] == ["invoke_agent sre", "quell.run"]
            assert span["attributes"]["llm.token_count.total"] == 110
            assert span["attributes"]["gen_ai.usage.input_tokens"] == 100
    assert (project["traceCount"], project["tokenCountTotal"]) == (1, 220)
    assert (project["tokenCountPrompt"], project["tokenCountCompletion"]) == (200, 20)
    (session,) = sessions
    assert session["token_count_total"] == 220
    (agent,) = [span for span in spans if span["span_kind"] == "AGENT"]
    assert agent["attributes"]["input.value"] == "Why is web slow?"
