"""Tools over HTTP: whose they are, what a call is, and that nothing is done twice or for somebody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.config import IdentitySettings, McpServerSettings, McpSettings, ServerSettings
from tests._mcp_rogue import Rogue, rogue
from tests._quell import NOWHERE
from tests.doors._wire_bench import Wire, a_wire, settings_of
from tests.doors.test_agent_tools_servers import ECHO, _offering
from tests.doors.test_run_trace import _key

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def shop(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Wire, Rogue]]:
    """Serve two tenants beside a tool server that passes on who asks."""
    async with rogue() as server:
        _offering(server, ECHO)
        known = McpServerSettings(
            transport="http_streamable",
            url=server.url,
            network="host",
            reads=("echo",),
            headers_from_request={"X-Team": "x-my-team"},
        )
        gone = McpServerSettings(transport="http_streamable", url=f"{NOWHERE}/mcp", network="host")
        identity = replace(IdentitySettings(api_keys=True), tenants=("local", "acme"))
        settings = replace(
            settings_of(tmp_path, identity=identity, **more), mcp=McpSettings(servers={"shop": known, "gone": gone})
        )
        async with a_wire(settings) as wire:
            yield wire, server


async def pinned(wire: Wire, who: dict[str, str]) -> dict[str, Any]:
    offer = (await wire.http.post("/api/v1/offers", json={"server": "shop", "tool": "echo"}, headers=who)).json()
    body = {key: offer[key] for key in ("server", "tool", "digest", "terms")}
    told = await wire.http.post("/api/v1/pins", json=body, headers=who)
    assert told.status_code == 200, told.text
    return dict(offer)


def test_a_call_is_its_callers_and_of_whom_their_tenant_trusts(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path) as (wire, server):
            ann = await _key(wire, "ann", "operator", tenant="local")
            await pinned(wire, ann)
            zoe = await _key(wire, "zoe", "viewer", tenant="acme")
            zed = await _key(wire, "zed", "viewer", tenant="acme")
            boss = await _key(wire, "boss", "operator", tenant="acme")
            begun = await wire.http.post(
                "/api/v1/tool-calls",
                json={"tool": "echo", "arguments": {"n": 1}},
                headers={**zoe, "X-My-Team": "web"},
            )
            run = begun.json()["run"]
            path = f"/api/v1/tool-calls/{run}"
            told = (await wire.http.get(path, params={"wait_s": 10}, headers=zoe)).json()
            assert (begun.status_code, told["status"], told["outcome"]["kind"]) == (202, "succeeded", "ok")
            assert server.calls[-1]["headers"]["x-team"] == "web", "her own header went on"
            for who, status in ((boss, 200), (zed, 404), (ann, 404)):
                assert (await wire.http.get(path, headers=who)).status_code == status
                assert (await wire.http.post(f"{path}/cancel", headers=who)).status_code == status
            trace = f"/api/v1/runs/{run}/trace"
            assert [(await wire.http.get(trace, headers=who)).status_code for who in (zoe, ann)] == [200, 200]
            listed = (await wire.http.get("/api/v1/tools", params={"server": "shop"}, headers=zoe)).json()["tools"]
            assert [(each["tool"]["name"], each["pin"]["by"]) for each in listed] == [("echo", "")]
            listed = (await wire.http.get("/api/v1/tools", params={"server": "shop"}, headers=ann)).json()["tools"]
            assert listed[0]["pin"]["by"] == "ann"
            narrow = await _key(wire, "na", "viewer", tenant="local", scopes=("verb:tool.list",))
            asked = [
                await wire.http.get("/api/v1/tools", headers=narrow),
                await wire.http.get("/api/v1/tool-servers", headers=narrow),
                await wire.http.post("/api/v1/tool-calls", json={"tool": "echo"}, headers=narrow),
            ]
            assert [each.status_code for each in asked] == [200, 403, 403]

    asyncio.run(story())


def test_the_same_call_under_one_key_is_one_call(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path) as (wire, server):
            ann, bob = [await _key(wire, name, "operator", tenant="local") for name in ("ann", "bob")]
            await pinned(wire, ann)
            wanted = {"tool": "echo", "arguments": {"n": 7}}

            async def call(who: dict[str, str], body: object, key: str = "k1") -> Any:
                headers = {**who, "Idempotency-Key": key}
                return await wire.http.post("/api/v1/tool-calls", json=body, headers=headers)

            runs = [each.json()["run"] for each in await asyncio.gather(*(call(ann, wanted) for _ in range(5)))]
            assert len(set(runs)) == 1
            told = (await wire.http.get(f"/api/v1/tool-calls/{runs[0]}?wait_s=10", headers=ann)).json()
            assert told["outcome"]["kind"] == "ok"
            assert len(server.calls) == 1
            other = await call(ann, {"tool": "echo", "arguments": {"n": 8}})
            assert (other.status_code, other.json()["error"]["code"]) == (409, "mismatch")
            assert (await call(bob, wanted)).json()["run"] not in runs, "a key is its person's own"
            assert (await call(ann, wanted, key="k" * 201)).status_code == 400

    asyncio.run(story())


def test_what_was_seen_is_what_is_pinned(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path) as (wire, server):
            ann = await _key(wire, "ann", "operator", tenant="local")
            offer = (
                await wire.http.post("/api/v1/offers", json={"server": "shop", "tool": "echo"}, headers=ann)
            ).json()
            body = {key: offer[key] for key in ("server", "tool", "digest", "terms")}

            async def pin(**changed: object) -> tuple[int, str]:
                told = await wire.http.post("/api/v1/pins", json={**body, **changed}, headers=ann)
                return told.status_code, told.text

            assert (await pin(terms={**offer["terms"], "tool_class": "irreversible"}))[0] == 409
            assert (await pin(digest=offer["digest"][:9]))[0] == 400, "too little of it"
            _offering(server, {**ECHO, "description": "Something else."})
            status, told = await pin()
            assert (status, "mismatch" in told) == (409, True)
            listed = (await wire.http.get("/api/v1/tools", headers=ann)).json()
            assert not any(each["tool"]["server"] for each in listed["tools"])
            assert [each["name"] for each in listed["bare"]] == ["shop", "gone"]

    asyncio.run(story())


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path) as (wire, _):
            ann = await _key(wire, "ann", "operator", tenant="local")
            run = (await wire.http.post("/api/v1/tool-calls", json={"tool": "no"}, headers=ann)).json()["run"]
            for method, path, body, status in (
                ("GET", f"/api/v1/tool-calls/{run}?wait_s=21", None, 400),
                ("GET", f"/api/v1/tool-calls/{run}?wait_s=nan", None, 400),
                ("GET", f"/api/v1/tool-calls/{run}?after=-1", None, 404),
                ("GET", "/api/v1/tool-calls/run_none", None, 404),
                ("GET", "/api/v1/tools/none", None, 404),
                ("GET", "/api/v1/tool-servers?server=none", None, 404),
                ("POST", "/api/v1/tool-calls", {"tool": "echo", "arguments": []}, 400),
                ("POST", "/api/v1/tool-calls", {"tool": "echo", "more": 1}, 400),
                ("POST", "/api/v1/offers", {"server": "shop", "tool": "none"}, 400),
                ("DELETE", "/api/v1/pins/shop/none", None, 400),
            ):
                told = await wire.http.request(method, path, json=body, headers=ann)
                assert told.status_code == status, (path, told.text)
                assert told.json()["error"]["hint"], path
            ended = (await wire.http.get(f"/api/v1/tool-calls/{run}?wait_s=10", headers=ann)).json()
            assert (ended["outcome"]["kind"], ended["parked"]) == ("denied", None)
            again = (await wire.http.post(f"/api/v1/tool-calls/{run}/cancel", headers=ann)).json()
            assert again["status"] == "succeeded", "what has ended stays as it is"
            looked = (await wire.http.get("/api/v1/tool-servers", headers=ann)).json()
            assert not looked["ok"]
            assert [(each["server"], each["state"]) for each in looked["servers"]] == [("shop", "up"), ("gone", "down")]
            drift = (await wire.http.get("/api/v1/tool-drift", headers=ann)).json()
            assert not drift["ok"], "one is down, and the other is told all the same"
            assert [each["tool"] for each in drift["tools"]] == ["echo"]
            assert [each["server"] for each in drift["down"]] == ["gone"]

    asyncio.run(story())


def test_a_person_asks_no_more_often_than_the_settings_allow(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path, server=ServerSettings(port=0, chats_per_minute=3)) as (wire, _):
            ann = await _key(wire, "ann", "operator", tenant="local")
            asked = [
                await wire.http.post("/api/v1/tool-calls", json={"tool": "no"}, headers=ann),
                await wire.http.get("/api/v1/tool-servers", headers=ann),
                await wire.http.get("/api/v1/tool-drift?server=shop", headers=ann),
                await wire.http.post("/api/v1/tool-calls", json={"tool": "no"}, headers=ann),
            ]
            assert [each.status_code for each in asked] == [202, 200, 200, 429]
            assert int(asked[-1].headers["retry-after"]) > 0

    asyncio.run(story())


def test_who_waits_for_a_call_is_sent_on_when_the_server_stops(tmp_path: Path) -> None:
    async def story() -> None:
        async with shop(tmp_path) as (wire, server):
            ann = await _key(wire, "ann", "operator", tenant="local")
            _offering(server, {**ECHO, "name": "restart"})
            offer = {"server": "shop", "tool": "restart"}
            sheet = (await wire.http.post("/api/v1/offers", json=offer, headers=ann)).json()
            body = {**offer, "digest": sheet["digest"], "terms": sheet["terms"]}
            assert (await wire.http.post("/api/v1/pins", json=body, headers=ann)).status_code == 200
            begun = await wire.http.post(
                "/api/v1/tool-calls", json={"tool": "restart", "arguments": {"n": 1}}, headers=ann
            )
            path = f"/api/v1/tool-calls/{begun.json()['run']}"
            state = (await wire.http.get(path, params={"wait_s": 10}, headers=ann)).json()
            assert (state["status"] in {"running", "waiting"}, state["parked"] is not None) == (True, True)
            waiting = asyncio.create_task(
                wire.http.get(path, params={"wait_s": 20, "after": state["seq"]}, headers=ann)
            )
            await asyncio.sleep(0.3)
            assert not waiting.done()
            wire.serving.cancel()
            told = await waiting
            assert (told.status_code, "goes on" in told.text) == (503, True), told.text
            assert json.loads(told.text)["error"]["kind"] == "StateHeldError"

    asyncio.run(story())
