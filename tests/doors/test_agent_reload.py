"""Agent files that are written anew while the process runs: MCP servers come and go, and runs keep what they began with."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from quell.app import App
from quell.config import AgentSettings, GovernanceSettings, Settings
from quell.domain import AuditKind, ConfigError, Heard, OutcomeKind
from tests._mcp_bench import ROGUE
from tests._mcp_rogue import OBJECT, Rogue, rogue
from tests.doors._desk_bench import ANN, NOWHERE, a_desk, agents_of, asked, file_of, heard, text_of
from tests.doors._model_bench import Answer, Provider, delta, end, provider, sse, usage
from tests.doors._wire_bench import a_wire, settings_of

pytestmark = pytest.mark.timeout(60)

ECHO = {"name": "echo", "description": "says it again", "inputSchema": OBJECT}
CALM = sse(delta("Calm."), end(), usage(10, 2))


def calls(tool: str) -> Answer:
    call = {"index": 0, "id": "x", "function": {"name": tool, "arguments": '{"n": 1}'}}
    return sse(delta(tool_calls=[call]), end("tool_calls"), usage(10, 2))


CALL = calls("echo")


def once(event: asyncio.Event, answer: Answer) -> Answer:
    """Answer when the event is there."""

    async def answered(writer: asyncio.StreamWriter) -> None:
        await event.wait()
        await answer(writer)

    return answered


def agents_with(at: Path, model: Provider, servers: Mapping[str, str], *, more: str = "") -> tuple[AgentSettings, ...]:
    """Write the file of an agent that has these servers, whose tools all read."""
    tables = "".join(
        f'[mcp.servers.{name}]\ntransport = "http_streamable"\nurl = "{servers[name]}"\n' for name in servers
    )
    return agents_of(at, file_of("sre", model.url, more=f'{tables}[quell]\nreads = ["*"]\n{more}'))


def offered_to(model: Provider, place: int) -> set[str]:
    """Return the names of the tools that a request had."""
    tools = model.bodies[place].get("tools", [])
    assert isinstance(tools, list)
    return {tool["function"]["name"] for tool in tools}


def outcomes(told: list[Heard]) -> list[object]:
    return [each.body["kind"] for each in told if each.name == "agent.call_ended"]


async def asks(app: App) -> list[Heard]:
    run = await app.agents.start(asked("How is the shop?"), by=ANN)
    return await heard(app, run.id)


async def until(what: object, is_so: object) -> None:
    """Wait until something is so; the timeout of the test bounds it."""
    while not is_so(what):  # type: ignore[operator]
        await asyncio.sleep(0.01)


def _shop(server: Rogue) -> Rogue:
    server.tools = [dict(ECHO)]
    return server


def test_a_server_that_is_new_in_a_file_is_there_for_new_runs_classed_and_pinned_as_at_a_start(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM, CALL, CALM) as model, rogue() as server:
            _shop(server)
            async with a_desk(tmp_path / "state", agents_with(tmp_path / "a", model, {})) as app:
                await asks(app)
                assert "echo" not in offered_to(model, 0)
                await app.agents.take(agents_with(tmp_path / "a", model, {"shop": server.url}))
                told = await asks(app)
                assert "echo" in offered_to(model, 1)
                assert outcomes(told) == [OutcomeKind.OK]
                assert [call["name"] for call in server.calls] == ["echo"]
                (state,) = await app.agents.servers(app.agents.find("sre"))
                assert (state.name, state.is_up, state.tools) == ("shop", True, ("echo",))
                authority = await app.open_authority()
                (pinned,) = authority.guard.audit.records(kinds=(AuditKind.PIN,))
                assert pinned.principal == authority.pins.CONFIGURATION
                assert "shop" in app.settings.mcp.servers

    asyncio.run(story())


def test_a_new_server_that_is_down_is_told_of_and_keeps_nobody_from_anything(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM) as model, rogue() as server:
            gone = Rogue("modern")
            await gone.start()
            await gone.stop()
            async with a_desk(tmp_path / "state", agents_with(tmp_path / "a", model, {})) as app:
                await app.agents.take(agents_with(tmp_path / "a", model, {"shop": _shop(server).url, "gone": gone.url}))
                assert text_of(await asks(app)) == "Calm."
                assert "echo" in offered_to(model, 0)
                states = {state.name: state for state in await app.agents.servers(app.agents.find("sre"))}
                assert (states["shop"].is_up, states["gone"].is_up) == (True, False)
                assert states["gone"].reason

    asyncio.run(story())


def test_runs_keep_the_server_that_they_began_with_and_it_is_closed_when_nobody_needs_it(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()
        async with (
            provider(once(go, CALL), CALM) as slow,
            provider(calls("shop-sre__echo"), CALM, CALL, CALM) as model,
            rogue("legacy") as old,
            rogue() as new,
        ):
            _shop(old), _shop(new)
            async with a_desk(tmp_path / "state", agents_with(tmp_path / "a", slow, {"shop": old.url})) as app:
                first = await app.agents.start(asked("How is the shop?"), by=ANN)
                await until(slow, lambda it: it.bodies)
                await app.agents.take(agents_with(tmp_path / "a", model, {"shop": new.url}))
                assert outcomes(await asks(app)) == [OutcomeKind.OK]
                assert offered_to(model, 0) - offered_to(slow, 0) == {"shop-sre__echo"}, "its name is another's still"
                assert (len(old.calls), len(new.calls), old.ended) == (0, 1, 0)
                go.set()
                told = await heard(app, first.id)
                assert (outcomes(told), text_of(told), len(old.calls)) == ([OutcomeKind.OK], "Calm.", 1)
                await until(old, lambda it: it.ended)
                # From now on all is as at a start.
                assert outcomes(await asks(app)) == [OutcomeKind.OK]
                assert offered_to(model, 2) == offered_to(slow, 0)
                assert (len(old.calls), len(new.calls)) == (1, 2)
                assert set(app.settings.mcp.servers) == {"shop"}

    asyncio.run(story())


def governed(tmp_path: Path, policy: str) -> Settings:
    """Return settings of a journal with this policy of the operator's beside the pack."""
    (tmp_path / "own.cedar").write_text(policy)
    settings = settings_of(tmp_path / "state")
    return replace(settings, governance=GovernanceSettings(policies=(str(tmp_path / "own.cedar"),)))


@pytest.mark.parametrize(
    "scope",
    [
        'action == Quell::Action::"echo", resource)',
        'action in Quell::Action::"server:shop", resource)',
        'action, resource) when { context.server == "shop" }',
    ],
)
def test_a_forbid_counts_for_the_changed_server_while_an_old_run_still_has_its_name(scope: str, tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()
        async with (
            provider(CALM, once(go, CALM)) as slow,
            provider(calls("shop-sre__echo"), CALM) as model,
            rogue("legacy") as old,
            rogue() as new,
        ):
            _shop(old), _shop(new)
            before = agents_with(tmp_path / "a", slow, {"shop": old.url})
            async with a_desk(tmp_path / "state", before) as app:
                await asks(app)
            settings = governed(tmp_path, f'@id("no") forbid (principal, {scope};')
            async with a_desk(tmp_path / "state", before, settings=settings) as app:
                first = await app.agents.start(asked("How is the shop?"), by=ANN)
                await until(slow, lambda it: len(it.bodies) == 2)
                await app.agents.take(agents_with(tmp_path / "a", model, {"shop": new.url}))
                assert outcomes(await asks(app)) == [OutcomeKind.DENIED]
                assert "shop-sre__echo" in offered_to(model, 0)
                assert new.calls == []
                go.set()
                await heard(app, first.id)

    asyncio.run(story())


def test_a_kill_by_the_name_that_a_tool_had_holds_under_the_name_that_it_has_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()
        async with (
            provider(once(go, CALM)) as slow,
            provider(calls("shop-sre__echo"), CALM) as model,
            rogue("legacy") as old,
            rogue() as new,
        ):
            _shop(old), _shop(new)
            async with a_desk(tmp_path / "state", agents_with(tmp_path / "a", slow, {"shop": old.url})) as app:
                first = await app.agents.start(asked("How is the shop?"), by=ANN)
                await until(slow, lambda it: it.bodies)
                switches = (await app.open_authority()).guard.switches
                switches.kill_now(by=replace(ANN, roles=("admin",)), reason="it says too much", tool="echo")
                await app.agents.take(agents_with(tmp_path / "a", model, {"shop": new.url}))
                assert outcomes(await asks(app)) == [OutcomeKind.DENIED]
                assert ("shop-sre__echo" in offered_to(model, 0), new.calls) == (True, [])
                go.set()
                await heard(app, first.id)

    asyncio.run(story())


def test_a_server_that_a_file_has_no_more_is_closed_and_its_tools_are_gone(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM) as model, rogue("legacy") as server:
            _shop(server)
            async with a_desk(tmp_path / "state", agents_with(tmp_path / "a", model, {"shop": server.url})) as app:
                await asks(app)
                assert "echo" in offered_to(model, 0)
                await app.agents.take(agents_with(tmp_path / "a", model, {}))
                await until(server, lambda it: it.ended)
                await asks(app)
                assert "echo" not in offered_to(model, 1)
                authority = await app.open_authority()
                assert "echo" not in {tool.name for tool in authority.toolbox.catalog()}
                assert await app.agents.servers(app.agents.find("sre")) == ()

    asyncio.run(story())


def test_other_words_about_a_server_count_for_its_tools_and_keep_its_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM) as model, rogue("legacy") as server:
            _shop(server)
            agents = agents_with(tmp_path / "a", model, {"shop": server.url})
            async with a_desk(tmp_path / "state", agents) as app:
                await asks(app)
                text = (tmp_path / "a" / "agent-0.toml").read_text().replace('reads = ["*"]', "reads = []")
                await app.agents.take(agents_of(tmp_path / "a", text))
                authority = await app.open_authority()
                (echo,) = [tool for tool in authority.toolbox.catalog() if tool.name == "echo"]
                assert echo.tool_class.is_effect
                assert (server.handshakes, server.ended) == (1, 0)

    asyncio.run(story())


def test_files_whose_servers_cannot_be_change_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM) as model, rogue() as server:
            _shop(server)
            agents = agents_with(tmp_path / "a", model, {"shop": server.url})
            async with a_desk(tmp_path / "state", agents) as app:
                await asks(app)
                wrong = agents_with(
                    tmp_path / "a",
                    model,
                    {"other": server.url},
                    more='[quell.servers.other]\ncatalogue = "none such"\n',
                )
                with pytest.raises(ConfigError):
                    await app.agents.take(wrong)
                assert app.agents.agents() == agents
                assert set(app.settings.mcp.servers) == {"shop"}
                await asks(app)
                assert "echo" in offered_to(model, 1)

    asyncio.run(story())


def test_the_program_of_a_server_that_a_file_has_no_more_ends(tmp_path: Path) -> None:
    program = tmp_path / "programs" / "rogue.py"
    program.parent.mkdir()
    shutil.copy(ROGUE, program)

    def running() -> int:
        lines = []
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                lines.append(each.read_bytes())
        return sum(str(program).encode() in line for line in lines)

    async def story() -> None:
        async with provider(CALM) as model:
            pipes = f'[mcp.servers.pipes]\ntransport = "stdio"\ncmd = ["{sys.executable}"]\nargs = ["{program}"]\n'
            agents = agents_of(tmp_path / "a", file_of("sre", model.url, more=pipes))
            async with a_desk(tmp_path / "state", agents) as app:
                await asks(app)
                assert "echo" in offered_to(model, 0)
                assert running()
                await app.agents.take(agents_of(tmp_path / "a", file_of("sre", model.url)))
                await until(running, lambda count: count() == 0)

    asyncio.run(story())


def test_a_server_that_serves_tells_of_what_its_files_say_now(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALM) as model, rogue() as shop:
            _shop(shop)
            at = tmp_path / "a"
            agents = agents_with(at, model, {})
            settings = replace(settings_of(tmp_path / "state"), agents=str(at))
            async with a_wire(settings, agents) as wire:
                await wire.app.agents.look()
                agents_with(at, model, {"shop": shop.url})
                await wire.app.agents.look()
                told = (await wire.http.get("/aura/info?detail=tools:summary")).json()
                (server,) = told["agents"][0]["mcp_servers"].values()
                assert [tool["name"] for tool in server["tools"]] == ["echo"]
                body = {"model": "sre", "messages": [{"role": "user", "content": "How is the shop?"}]}
                assert (await wire.http.post("/v1/chat/completions", json=body)).status_code == 200
                assert "echo" in offered_to(model, 0)

    asyncio.run(story())


def test_the_clients_of_a_version_are_closed_when_its_last_run_has_ended(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()
        agents = agents_of(tmp_path / "a", file_of("sre", NOWHERE))
        async with (
            provider(once(go, CALM)) as old,
            provider(CALM) as new,
            a_desk(tmp_path / "state", agents) as app,
        ):
            await app.agents.take(agents_of(tmp_path / "a", file_of("sre", old.url)))
            first = await app.agents.start(asked("How is the shop?"), by=ANN)
            await until(old, lambda it: it.bodies)
            await app.agents.take(agents_of(tmp_path / "a", file_of("sre", new.url)))
            assert text_of(await asks(app)) == "Calm."
            assert not old.left.is_set()
            go.set()
            assert text_of(await heard(app, first.id)) == "Calm."
            await old.left.wait()
            assert text_of(await asks(app)) == "Calm."
            assert (new.left.is_set(), new.connections) == (False, 1)

    asyncio.run(story())


def test_a_version_that_waits_for_people_is_not_closed_and_one_that_ended_elsewhere_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(CALL, CALM) as old, provider(CALM) as new, rogue() as server:
            _shop(server)
            at = tmp_path / "a"
            agents_with(at, old, {"shop": server.url})
            text = (at / "agent-0.toml").read_text().replace('reads = ["*"]', "reads = []")
            async with a_desk(tmp_path / "state", agents_of(at, text)) as app:
                run = await app.agents.start(asked("How is the shop?"), by=ANN)
                async for each in app.agents.follow(run.id):
                    if each.name == "agent.call_parked":
                        break
                await app.agents.take(agents_with(at, new, {}))
                await asks(app)
                await app.agents.look()
                assert (old.left.is_set(), "shop" in app.settings.mcp.servers) == (False, True)
                # As another process on this journal would: nobody here is told.
                await app.runs.cancel(run.id)
                await app.agents.look()
                await old.left.wait()
                assert "shop" not in app.settings.mcp.servers

    asyncio.run(story())
