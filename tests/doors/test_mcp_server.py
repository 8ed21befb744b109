"""Quell as an MCP server: real clients over HTTP and stdio ask agents, read evidence, and see what waits for people."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

from quell.app import App, open_app
from quell.config import AgentSettings, IdentitySettings
from quell.memory import Library
from quell.runs import system_clock
from quell.server import serve
from tests.doors._authority_house import settings_of
from tests.doors._desk_bench import agents_of, file_of, first_of
from tests.doors._model_bench import Answer, delta, end, provider, sse, usage

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True, slots=True)
class Served:
    app: App
    url: str


@asynccontextmanager
async def served(
    state_dir: Path, agents: tuple[AgentSettings, ...] = (), *, identity: IdentitySettings | None = None
) -> AsyncIterator[Served]:
    """Serve an app with agents on a real port."""
    urls: asyncio.Queue[str] = asyncio.Queue()
    settings = settings_of(state_dir, identity=identity)
    async with open_app(
        settings, role="serve", clock=system_clock, entropy=os.urandom, env=dict(os.environ), agents=agents
    ) as app:
        serving = asyncio.create_task(serve(app, on_ready=urls.put_nowait))
        try:
            yield Served(app, await first_of(urls, serving))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


_CREW = """
[orchestration]
enabled = true
[orchestration.worker.reader]
description = "reads what there is"
preamble = "Read it."
mcp_filter = []
"""


def _calling(name: str, given: Mapping[str, object]) -> Answer:
    """Play a turn that calls one tool."""
    asked = {"index": 0, "id": "x", "function": {"name": name, "arguments": json.dumps(given)}}
    return sse(delta(tool_calls=[asked]), end("tool_calls"), usage(1, 1))


def told(result: object) -> dict[str, object]:
    body = getattr(result, "structured_content", None)
    assert isinstance(body, dict), result
    return body


def _rows(result: object) -> list[dict[str, object]]:
    rows = told(result)["approvals"]
    assert isinstance(rows, list)
    return rows


def test_a_client_asks_and_reads_what_the_answer_rests_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as at, Client(f"{at.url}/mcp") as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names >= {
                "ask",
                "investigate",
                "brief",
                "what_changed",
                "evidence",
                "incidents",
                "memory",
                "approvals",
            }
            heard: list[str | None] = []

            async def progress(progress: float, total: float | None, message: str | None) -> None:
                assert (progress >= 1, total) == (True, None)
                heard.append(message)

            result = await client.call_tool("ask", {"question": "Is anything wrong?"}, progress_callback=progress)
            answer = told(result)
            assert answer["state"] == "ended"
            assert answer["cited"] == ["e1"]
            assert heard[0] == "calls system_overview"
            evidence = told(await client.call_tool("evidence", {"run": answer["run"]}))
            listed = evidence["evidence"]
            assert isinstance(listed, list)
            (exhibit,) = listed
            assert (exhibit["id"], exhibit["tool"]) == ("e1", "system_overview")
            whole = told(await client.call_tool("evidence", {"run": answer["run"], "id": "e1"}))
            assert json.loads(str(whole["content"]))["state"] == "unclear"
            again = told(await client.call_tool("run", {"run": answer["run"]}))
            assert again["answer"] == answer["answer"]

    asyncio.run(story())


def test_evidence_has_the_ids_that_the_answer_of_a_crew_cites(tmp_path: Path) -> None:
    async def story() -> None:
        task = {"type": "task", "task": "look", "worker": "reader"}
        plan = {"goal": "g", "steps": [task, task], "routing_rationale": "r", "planning_summary": "s"}
        submitted = {"summary": "done", "result": "Nothing is open [t1e1].", "confidence": "high"}
        twice = {**submitted, "result": "Still nothing [t2e1]."}
        answers = [
            _calling("create_plan", plan),
            _calling("incidents", {}),
            _calling("submit_result", submitted),
            _calling("incidents", {"state": "all"}),
            _calling("submit_result", twice),
            _calling("respond_directly", {"response": "Nothing is open [t2e1].", "routing_rationale": "r"}),
        ]
        async with provider(*answers) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=_CREW))
            async with served(tmp_path / "state", agents) as at, Client(f"{at.url}/mcp") as client:
                answer = told(await client.call_tool("ask", {"question": "Is anything open?"}))
                assert answer["cited"] == ["t2e1"]
                listed = told(await client.call_tool("evidence", {"run": answer["run"]}))["evidence"]
                assert isinstance(listed, list)
                # Decisions of the coordinator are calls too, and no evidence.
                assert [(each["id"], each["tool"]) for each in listed] == [("t1e1", "incidents"), ("t2e1", "incidents")]
                cited = told(await client.call_tool("evidence", {"run": answer["run"], "id": "t2e1"}))
                assert cited["call"] == "t2.1.1"
                none = await client.call_tool("evidence", {"run": answer["run"], "id": "e1"})
                assert (none.is_error, "it has: t1e1, t2e1" in str(none.content[0])) == (True, True)

    asyncio.run(story())


def test_every_sense_answers_over_mcp_and_documents_are_searched(tmp_path: Path) -> None:
    (tmp_path / "runbooks").mkdir()
    (tmp_path / "runbooks" / "till.md").write_text("# The till\n\nOpen the drawer with the silver key.")

    async def story() -> None:
        async with served(tmp_path / "state") as at, Client(f"{at.url}/mcp") as client:
            Library(tmp_path / "state", clock=system_clock).ingest(tmp_path / "runbooks", store="documents")
            for name in ("system_overview", "what_changed", "investigate", "incidents", "brief", "advise"):
                sensed = told(await client.call_tool(name, {}))
                assert (bool(sensed["state"]), bool(sensed["lines"])) == (True, True), name
            listed = told(await client.call_tool("incidents", {"state": "all"}))
            # What `investigate` opened.
            incidents = listed["incidents"]
            assert isinstance(incidents, list)
            (incident,) = incidents
            shown = told(await client.call_tool("incident", {"incident": incident}))
            assert shown["incidents"] == [incident]
            found = await client.call_tool("memory", {"query": "silver key"})
            assert "Open the drawer" in str(found.content[0])

    asyncio.run(story())


def test_what_waits_for_people_is_told_and_decided_here(tmp_path: Path) -> None:
    async def story() -> None:
        gate = '[hitl]\nrequire_approval = ["incidents"]\n'
        async with provider(_calling("incidents", {}), sse(delta("None is open."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=gate))
            async with served(tmp_path / "state", agents) as at, Client(f"{at.url}/mcp") as client:
                stands = told(await client.call_tool("ask", {"question": "Is anything open?", "wait_s": 0.1}))
                while stands["state"] != "waits_for_people":
                    stands = told(await client.call_tool("run", {"run": stands["run"], "wait_s": 0.1}))
                (waiting,) = _rows(await client.call_tool("approvals", {}))
                assert [waiting["approval"]] == stands["approvals"]
                verdict = {"id": waiting["approval"], "decision": "approve", "digest": "sha256:of something else"}
                assert (await client.call_tool("decide_approval", verdict)).is_error
                decided = await client.call_tool("decide_approval", {**verdict, "digest": waiting["digest"]})
                assert not decided.is_error
                ended = told(await client.call_tool("run", {"run": stands["run"], "wait_s": 20}))
                assert (ended["state"], ended["answer"]) == ("ended", "None is open.")
                assert _rows(await client.call_tool("approvals", {})) == []

    asyncio.run(story())


def test_conversations_go_on_and_a_wait_that_is_over_leaves_the_run_going(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(delta("First. "), delta("Done."), end(), usage(9, 3), gap_s=0.4)
        async with provider(slow, sse(delta("Second."), end(), usage(9, 3))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with served(tmp_path / "state", agents) as at, Client(f"{at.url}/mcp") as client:
                ask = {"question": "One?", "session": "s", "wait_s": 0.1}
                first = told(await client.call_tool("ask", ask))
                assert first["state"] == "running"
                first = told(await client.call_tool("run", {"run": first["run"], "wait_s": 20}))
                assert first["answer"] == "First. Done."
                await client.call_tool("ask", {"question": "Two?", "session": "s"})
                messages = model.bodies[1]["messages"]
                assert isinstance(messages, list)
                assert [m["content"] for m in messages if m["role"] != "system"] == ["One?", "First. Done.", "Two?"]

    asyncio.run(story())


def test_what_does_not_fit_is_said_and_what_is_none_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as at, Client(f"{at.url}/mcp") as client:
            bad = await client.call_tool("ask", {"question": "", "agents": "x"})
            assert bad.is_error
            said = str(bad.content[0])
            assert "question" in said
            assert "agents" in said
            unknown = await client.call_tool("evidence", {"run": "run_0"})
            assert unknown.is_error
            with pytest.raises(MCPError, match="there is no tool"):
                await client.call_tool("no_such_tool", {})
            with pytest.raises(MCPError, match="there is no resource"):
                await client.read_resource("quell://nothing/1")
            with pytest.raises(MCPError, match="needs the argument"):
                await client.get_prompt("why", {})
            prompt = await client.get_prompt("why", {"service": "checkout"})
            assert "checkout" in str(prompt.messages[0].content)
            assert [each.name for each in (await client.list_resource_templates()).resource_templates] == [
                "incident",
                "run",
            ]
            listed = told(await client.call_tool("approvals", {}))
            assert listed == {"approvals": []}

    asyncio.run(story())


def test_nobody_gets_in_without_an_identity_where_one_is_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path, identity=IdentitySettings(api_keys=True)) as at, httpx2.AsyncClient() as http:
            hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            answer = await http.post(f"{at.url}/mcp", json=hello)
            assert answer.status_code == 401
            answer = await http.post(f"{at.url}/mcp", json=hello, headers={"Authorization": "Bearer qk_made_up"})
            assert answer.status_code == 401

    asyncio.run(story())


def test_a_program_that_starts_quell_itself_speaks_over_stdio(tmp_path: Path) -> None:
    async def story() -> None:
        arguments = ["-m", "quell", "mcp", "--state-dir", str(tmp_path), "--set", "store.url=http://127.0.0.1:9"]
        command = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
        async with Client(stdio_client(command)) as client:
            result = await client.call_tool("what_changed", {"minutes": 5})
            assert not result.is_error
            assert told(result)["state"]
            answer = told(await client.call_tool("ask", {"question": "What changed?"}))
            assert answer["state"] == "ended"

    asyncio.run(story())
