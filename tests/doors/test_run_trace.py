"""The trace of a run, from the journal and over HTTP: the same text, and nobody else's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.app._run_trace import trace_of
from quell.config import IdentitySettings
from quell.domain import CallWanted, KeyRequest, OutcomeKind, Principal, ToolOutcome
from quell.models._scripted import says as replies
from quell.models._scripted import wants
from quell.runs import system_clock
from tests._quell import NOWHERE, error_of, quell
from tests.doors._agent_bench import agent_room
from tests.doors._chat_bench import agent_file, calls, played, says
from tests.doors._cli_bench import Desk
from tests.doors._wire_bench import Wire, a_wire, settings_of
from tests.doors.test_cli_server import server, typed

pytestmark = pytest.mark.timeout(120)  # whole processes, a server among them


def test_a_trace_is_the_same_from_the_journal_and_from_a_server(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.configure()
    desk.pin_all()
    ann = desk.key("ann", "operator")
    tool = next(name for name in desk.done("tool", "list").split() if name.endswith("logs"))
    with played(calls(tool, service="web", query="errors"), says("It is well [e1].")) as model:
        agent_file(tmp_path, model.url)
        with server(tmp_path) as url:
            asked = quell("ask", "is web well?", "--server", url, "--json", cwd=tmp_path, env=ann)
            assert asked.returncode == 0, asked
            run = json.loads(asked.stdout)["run"]
            near, far = (
                [quell("run", "trace", run, *where, *form, cwd=tmp_path, env=ann).stdout for form in ((), ("--json",))]
                for where in ((), ("--server", url))
            )
            assert near == far
            assert f"─ {tool} " in far[0]
            assert "total: " in far[0]
            assert "2 model turns, 1 tool call, 200+" in far[0]
            told = json.loads(far[1])
            assert (told["kind"], told["run"]["id"], told["totals"]["calls"]) == ("trace", run, 1)

            assert far[0] in typed(f"/run trace {run}", url=url, cwd=tmp_path, env=ann)
            none = quell("run", "trace", "run_none", "--server", url, "--json", cwd=tmp_path, env=ann)
            here = quell("run", "trace", "run_none", "--json", cwd=tmp_path, env=ann)
            assert (none.returncode, none.stdout, error_of(none)) == (here.returncode, "", error_of(here))
            stranger = quell("run", "trace", run, "--server", url, "--json", cwd=tmp_path)
            assert (stranger.returncode, stranger.stdout) == (4, ""), stranger
    away = quell("run", "trace", run, "--server", NOWHERE, "--json", cwd=tmp_path)
    assert (away.returncode, away.stdout) == (3, "")


async def _key(wire: Wire, user: str, *roles: str, tenant: str, scopes: tuple[str, ...] = ()) -> dict[str, str]:
    identities = await wire.app.warden.identities()
    owner = Principal(user="owner", tenant=tenant, roles=("viewer", "operator", "admin"))
    wish = KeyRequest(
        name=f"of {user}",
        user=user,
        tenant=tenant,
        roles=roles,
        scopes=scopes,
        expires_at=system_clock() + timedelta(days=1),
    )
    with wire.app.runs.database.writing(durability="written") as connection:
        _, secret = identities.new_key(connection, wish, by=owner)
    return {"Authorization": f"Bearer {secret.reveal()}"}


def test_a_trace_belongs_to_who_asked_and_to_the_first_tenant(tmp_path: Path) -> None:
    async def story() -> None:
        identity = replace(IdentitySettings(api_keys=True), tenants=("local", "acme", "other"))
        async with a_wire(settings_of(tmp_path, identity=identity)) as wire:
            ours, acme, other = [
                await _key(wire, f"of-{tenant}", "operator", tenant=tenant) for tenant in ("local", "acme", "other")
            ]
            body = {"messages": [{"role": "user", "content": "Is anything wrong?"}]}
            runs: dict[str, str] = {}
            for name, who in (("local", ours), ("acme", acme)):
                told = await wire.http.post("/v1/chat/completions", json=body, headers=who)
                assert told.status_code == 200, told.text
                runs[name] = told.headers["x-quell-run"]

            async def seen(run: str, who: dict[str, str]) -> int:
                told = await wire.http.get(f"/api/v1/runs/{run}/trace", headers=who)
                if told.status_code != 200:
                    assert not any(each in told.text for each in runs.values() if each != run), (
                        "nothing is told of others"
                    )
                return told.status_code

            assert [await seen(runs["acme"], each) for each in (ours, acme, other)] == [200, 200, 404]
            assert [await seen(runs["local"], each) for each in (ours, acme, other)] == [200, 404, 404]
            assert [await seen("run_", each) for each in (acme, other)] == [404, 404], "a beginning tells nothing"
            assert (await wire.http.get(f"/api/v1/runs/{runs['acme']}/trace")).status_code == 401
            narrow = await _key(wire, "narrow", "viewer", tenant="local", scopes=("verb:incident.read",))
            assert await seen(runs["local"], narrow) == 403

    asyncio.run(story())


def test_a_trace_counts_as_failed_what_the_agent_does(tmp_path: Path) -> None:
    # None that is tried again: each call takes one of them.
    kinds = [OutcomeKind.OK, OutcomeKind.EMPTY, OutcomeKind.TOOL_ERROR, OutcomeKind.EMPTY]
    brings = [
        ToolOutcome(call=f"{turn}.1", tool="logs_search", kind=kind, content="three pods")
        for turn, kind in enumerate(kinds, start=1)
    ]
    searches = [
        CallWanted(id="x", name="logs_search", arguments=json.dumps({"service": "web", "query": f"part {number}"}))
        for number, _ in enumerate(kinds)
    ]

    async def story() -> None:
        async with agent_room(tmp_path, [*map(wants, searches), replies("I do not know.")]) as room:
            room.world.says += brings
            run = await room.start("Why?")
            answer = await room.answer(run, timeout_s=30)
            trace = await trace_of(room.runs, run.id, price_of=lambda *_: None)
            assert (trace.totals.calls, trace.totals.failed_calls) == (answer.calls, answer.failed)
            assert 0 < answer.failed < answer.calls, "that there is nothing is an answer"

    asyncio.run(story())
