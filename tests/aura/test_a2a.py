"""Row 12 of the acceptance list: other agents speak A2A to ours, in version 1 and in the old one, whatever server they reach."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from quell.config import JournalSettings, Secret, ServerSettings
from tests._postgres import fresh_database
from tests._quell import NOWHERE, started, wait_for_line
from tests.aura._bench import LOOSE, a_shop, agent_at, calls, played, says, server_of
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import delta, end, provider, sse
from tests.doors._wire_bench import Wire, a_wire, settings_of

pytestmark = pytest.mark.timeout(90)
NEW = {"A2A-Version": "1.0"}
SLOW = sse(*[delta("Still. ")] * 600, end(), gap_s=0.05)


def _settings(state_dir: Path, *, url: str = "", at: str = "") -> Any:
    settings = settings_of(state_dir, server=ServerSettings(port=0, a2a=True, a2a_url=at))
    return replace(settings, journal=JournalSettings(url=Secret(url), lease_s=2.0))


def _says(text: str, **more: object) -> dict[str, object]:
    return {"messageId": f"m-{text}", "role": "ROLE_USER", "parts": [{"text": text}], **more}


async def _rpc(wire: Wire, method: str, params: dict[str, object], *, headers: dict[str, str] | None = None) -> Any:
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = await wire.http.post("/a2a/v1/rpc", json=call, headers={**NEW, **(headers or {})})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert "result" in told, told
    return told["result"]


async def _begin(http: httpx2.AsyncClient) -> str:
    """Begin a task that takes long, and return its id."""
    body = {"message": _says("Go on."), "configuration": {"returnImmediately": True}}
    answer = await http.post("/a2a/v1/message:send", json=body, headers=NEW)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task"]["id"])


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_row_12_the_card_serves_new_clients_and_old_ones_and_tells_no_prompt(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("Well.")) as model:
            described = file_of("sre", model.url, agent='description = "Looks at the shop."')
            agents = agents_of(tmp_path / "agents", described)
            settings = _settings(tmp_path / "state", at="https://agents.example.com/")
            async with a_wire(settings, agents) as wire:
                card = (await wire.http.get("/.well-known/agent-card.json")).json()
                assert {"name", "description", "version", "capabilities", "skills"} <= card.keys()
                assert card["defaultInputModes"] == card["defaultOutputModes"] == ["text/plain"]
                faces = {
                    (each["protocolBinding"], each["protocolVersion"]): each["url"]
                    for each in card["supportedInterfaces"]
                }
                assert faces == {
                    ("JSONRPC", "1.0"): "https://agents.example.com/a2a/v1/rpc",
                    ("HTTP+JSON", "1.0"): "https://agents.example.com/a2a/v1",
                    ("JSONRPC", "0.3"): "https://agents.example.com/",
                }
                # What clients of version 0.x read.
                assert card["url"].startswith("https://agents.example.com")
                assert card["preferredTransport"] == "JSONRPC"
                # AURA's card shows the first 200 characters of the system prompt.
                assert "small shop" not in json.dumps(card)

    played(story)


def test_row_12_a_message_is_answered_read_again_and_belongs_to_its_conversation(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(says("One."), says("Two.")) as model,
            a_wire(_settings(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            first = (await _rpc(wire, "SendMessage", {"message": _says("First?", contextId="ctx")}))["task"]
            assert first["status"]["state"] == "TASK_STATE_COMPLETED"
            assert {each["artifactId"] for each in first["artifacts"]} >= {"final"}
            await _rpc(wire, "SendMessage", {"message": _says("Second?", contextId="ctx")})
            asked: Any = model.bodies[1]["messages"]
            said = [each["content"] for each in asked if each["role"] != "system"]
            assert said == ["First?", "One.", "Second?"]
            again = await _rpc(wire, "GetTask", {"id": first["id"]})
            assert again["artifacts"][0]["parts"][0]["text"] == "One."

    played(story)


def test_row_12_a_message_streams_piece_by_piece_to_a_last_state(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(says("All ", "is ", "well.")) as model,
            a_wire(_settings(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            body = {"message": _says("How is it?")}
            async with wire.http.stream("POST", "/a2a/v1/message:stream", json=body, headers=NEW) as response:
                found = [each async for each in _events(response)]
            pieces = [each["artifactUpdate"]["artifact"] for each in found if "artifactUpdate" in each]
            assert (
                "".join(each["parts"][0]["text"] for each in pieces if each["artifactId"] == "response")
                == "All is well."
            )
            assert [each["parts"][0]["text"] for each in pieces if each["artifactId"] == "final"] == ["All is well."]
            assert found[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"

    played(story)


def test_row_12_a_header_of_auras_chooses_the_agent(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("I am one.")) as one, provider(says("I am two.")) as two:
            agents = agents_of(tmp_path / "agents", file_of("one", one.url), file_of("two", two.url))
            async with a_wire(_settings(tmp_path / "state"), agents) as wire:
                wanted = {"x-aura-model": "two"}
                task = (await _rpc(wire, "SendMessage", {"message": _says("Who?")}, headers=wanted))["task"]
                assert task["artifacts"][0]["parts"][0]["text"] == "I am two."

    played(story)


def test_row_12_a_client_of_version_0_3_sends_streams_gets_and_cancels_at_the_root(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(says("Well."), says("Well ", "again."), SLOW) as model,
            a_wire(_settings(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):

            def body(method: str, **params: object) -> dict[str, object]:
                return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}

            message = {"messageId": "1", "role": "user", "kind": "message", "parts": [{"kind": "text", "text": "Hi?"}]}
            sent = (await wire.http.post("/", json=body("message/send", message=message))).json()["result"]
            assert (sent["kind"], sent["status"]["state"]) == ("task", "completed")
            got = (await wire.http.post("/", json=body("tasks/get", id=sent["id"]))).json()["result"]
            assert got["artifacts"][0]["parts"][0] == {"kind": "text", "text": "Well."}
            streamed = body("message/stream", message={**message, "messageId": "2"})
            async with wire.http.stream("POST", "/", json=streamed) as response:
                found = [each["result"] async for each in _events(response)]
            assert (found[-1]["kind"], found[-1]["status"]["state"], found[-1]["final"]) == (
                "status-update",
                "completed",
                True,
            )
            task = await _begin(wire.http)
            ended = (await wire.http.post("/", json=body("tasks/cancel", id=task))).json()["result"]
            assert ended["status"]["state"] == "canceled"

    played(story)


def test_row_12_who_subscribes_again_hears_on_and_a_cancel_ends_it_for_everybody_for_good(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            provider(SLOW) as model,
            a_wire(_settings(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            await _heard_and_cancelled(wire.http, wire.http, await _begin(wire.http))

    played(story)


async def _heard_and_cancelled(there: httpx2.AsyncClient, here: httpx2.AsyncClient, task: str) -> None:
    """Two clients listen to a task at one server; somebody cancels it at another."""

    async def listen(hearing: asyncio.Event) -> list[dict[str, Any]]:
        found = []
        try:
            async with there.stream("POST", f"/a2a/v1/tasks/{task}:subscribe", headers=NEW) as response:
                assert response.status_code == 200, await response.aread()
                async for each in _events(response):
                    found.append(each)
                    hearing.set()
        finally:
            hearing.set()
        return found

    # Both have to be there: who comes after the end is told that there is nothing to hear.
    heard = [asyncio.Event(), asyncio.Event()]
    listening = [asyncio.create_task(listen(each)) for each in heard]
    await asyncio.gather(*(each.wait() for each in heard))
    gone = await here.post(f"/a2a/v1/tasks/{task}:cancel", headers=NEW)
    assert gone.status_code == 200, gone.text
    for found in await asyncio.gather(*listening):
        assert found[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_CANCELED"
    assert (await here.get(f"/a2a/v1/tasks/{task}", headers=NEW)).json()["status"]["state"] == "TASK_STATE_CANCELED"
    assert (await there.post(f"/a2a/v1/tasks/{task}:cancel", headers=NEW)).status_code >= 400, "it has ended"


def test_row_12_two_servers_on_one_journal_are_one_to_their_clients(tmp_path: Path, postgres_url: str) -> None:
    async def story() -> None:
        with fresh_database(postgres_url) as url:
            async with provider(SLOW) as model:
                agent_at(tmp_path, model.url)
                with _process(tmp_path, "one", url) as first_at, _process(tmp_path, "two", url) as second_at:
                    async with (
                        httpx2.AsyncClient(base_url=first_at) as first,
                        httpx2.AsyncClient(base_url=second_at) as second,
                    ):
                        for here, there in ((first, second), (second, first)):
                            task = await _begin(here)
                            assert (await there.get(f"/a2a/v1/tasks/{task}", headers=NEW)).status_code == 200
                            await _heard_and_cancelled(there, here, task)
                            await _heard_no_more(here, task)

    played(story, timeout_s=70)


async def _heard_no_more(here: httpx2.AsyncClient, task: str) -> None:
    """Who subscribes to what has ended is told the end, or that there is nothing to hear."""
    async with here.stream("POST", f"/a2a/v1/tasks/{task}:subscribe", headers=NEW) as response:
        assert (
            "CANCELED" in (told := (await response.aread()).decode()) or "ended" in told or response.status_code >= 400
        )


@contextmanager
def _process(at: Path, name: str, journal: str) -> Iterator[str]:
    """Serve the agents of a directory in a process of its own; give its address."""
    env = {
        "QUELL_JOURNAL__URL": journal,
        "QUELL_SERVER__A2A": "true",
        "QUELL_STORE__URL": NOWHERE,
        "QUELL_STORE__QUERY_TIMEOUT_S": "0.5",
        "CONFIG_PATH": str(at / "agents"),
        "QUELL_TELEMETRY__LEVEL": "error",
    }
    arguments = ("--state-dir", str(at / name), "serve", "--port", "0")
    with started(*arguments, cwd=at, env=env) as process:
        line = wait_for_line(process, "ready: ")
        yield re.findall(r"http://\S+", line)[0]


def test_row_12_what_waits_for_people_is_told_and_stays_in_the_queue(tmp_path: Path) -> None:
    # AURA tells nobody: a conversational approval can be neither seen nor answered over A2A.
    async def story() -> None:
        turns = (calls(("delete_volume", {"name": "v1"})), says("Done."))
        async with a_shop() as shop, provider(*turns) as model:
            gate = '[hitl]\nrequire_approval = ["delete_*"]\n'
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + gate)
            async with a_wire(_settings(tmp_path / "state"), agents) as wire:
                task = await _begin(wire.http)
                state = ""
                while state != "TASK_STATE_INPUT_REQUIRED":
                    await asyncio.sleep(0.05)
                    told = (await wire.http.get(f"/a2a/v1/tasks/{task}", headers=NEW)).json()
                    state = told["status"]["state"]
                assert "delete_volume" in json.dumps(told["status"])
                (row,) = (await wire.http.get("/api/v1/approvals")).json()["approvals"]
                assert row["calls"][0]["tool"] == "delete_volume"
                assert shop.done == []

    played(story)


def test_row_12_a_server_that_stops_refuses_new_messages(tmp_path: Path) -> None:
    # In AURA these routes are not behind the gate of the shutdown.
    async def story() -> None:
        async with (
            provider(SLOW) as model,
            a_wire(_settings(tmp_path / "state"), agent_at(tmp_path, model.url)) as wire,
        ):
            streaming = asyncio.create_task(wire.ask(stream=True))
            while not model.bodies:
                await asyncio.sleep(0.01)
            wire.serving.cancel()
            while (await wire.http.get("/v1/models")).status_code != 503:
                await asyncio.sleep(0.01)
            refused = await wire.http.post("/a2a/v1/message:send", json={"message": _says("Now?")}, headers=NEW)
            assert refused.status_code == 503
            streaming.cancel()

    played(story)
