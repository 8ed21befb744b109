"""An agent is a version: runs keep the one that they began with, whatever becomes of its file; and what it may spend."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from quell.agent import Stop
from quell.app._agent_minds import version_of_agent
from quell.app._in_force import InForce
from quell.config import LlmSettings, Secret, agent_kept, kept_agent
from quell.domain import ConfigError, Heard
from tests._mcp_rogue import Rogue, rogue
from tests.doors._desk_bench import ANN, a_desk, agents_of, asked, file_of, heard, text_of
from tests.doors._model_bench import Answer, delta, end, provider, sse, usage
from tests.doors._wire_bench import settings_of

pytestmark = pytest.mark.timeout(60)


def says(text: str, *, gap_s: float = 0.0) -> Answer:
    return sse(*map(delta, text.split(" ")), end(), usage(10, 20), gap_s=gap_s)


def began(told: list[Heard]) -> object:
    return next(each.body["version"] for each in told if each.name == "agent.began")


def test_a_version_is_named_by_all_that_makes_the_answers_what_they_are(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("Yes.")) as model:
            versions = []
            for number, text in enumerate(
                (
                    file_of("sre", model.url),
                    file_of("sre", model.url),
                    file_of("sre", model.url).replace("small", "large"),
                    file_of("sre", model.url, more="temperature = 0.5\n"),
                )
            ):
                agents = agents_of(tmp_path / f"agents{number}", text)
                async with a_desk(tmp_path / "state", agents) as app:
                    run = await app.agents.start(asked("Well?"), by=ANN)
                    versions.append(began(await heard(app, run.id)))
            assert versions[0] == versions[1]
            assert len(set(versions)) == 3

    asyncio.run(story())


def test_tools_policy_and_prices_are_a_part_of_it(tmp_path: Path) -> None:
    policy = tmp_path / "own.cedar"
    settings = settings_of(tmp_path / "state")
    settings = replace(settings, governance=replace(settings.governance, policies=(str(policy),)))

    async def version(server: Rogue, tools: str, permits: str) -> str:
        server.tools = [{"name": name, "inputSchema": {"type": "object"}} for name in tools.split()]
        policy.write_text(f'@id("own") {permits} (principal, action, resource) when {{ resource.name == "moon" }};')
        table = f'[mcp.servers.shop]\ntransport = "http_streamable"\nurl = "{server.url}"\n'
        agents = agents_of(tmp_path / "agents", file_of("sre", "http://127.0.0.1:9/v1", more=table))
        async with a_desk(tmp_path / "state", agents, settings=settings) as app:
            run = await app.agents.start(asked("Well?"), by=ANN)
            return (await app.agents.wanted(run.id)).version

    async def story() -> list[str]:
        async with rogue() as server:
            said = [("echo", "permit"), ("echo", "permit"), ("echo", "forbid"), ("echo wipe", "forbid")]
            return [await version(server, *each) for each in said]

    first, again, governed, offered = asyncio.run(story())
    assert first == again
    assert len({first, governed, offered}) == 3
    (agent,) = agents_of(tmp_path / "agents", file_of("sre", "http://127.0.0.1:9/v1"))
    same = InForce(policy="p", tools="t", settings="s")
    named = {version_of_agent(agent, skills=(), prices=(price,), in_force=same) for price in ("1.0", "2.0")}
    assert len(named) == 2


def test_a_run_goes_on_with_its_version_when_its_file_is_written_anew(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("old old old old", gap_s=0.1)) as old, provider(says("new")) as new:
            agents = agents_of(tmp_path / "agents", file_of("sre", old.url))
            async with a_desk(tmp_path / "state", agents) as app:
                first = await app.agents.start(asked("Which?"), by=ANN)
                while not old.bodies:
                    await asyncio.sleep(0.01)
                await app.agents.take(agents_of(tmp_path / "agents", file_of("sre", new.url)))
                second = await app.agents.start(asked("Which?"), by=ANN)
                told = await heard(app, second.id)
                assert text_of(told) == "new"
                before = await heard(app, first.id)
                assert text_of(before) == "oldoldoldold"
                assert began(before) != began(told)

    asyncio.run(story())


def test_files_are_taken_anew_when_they_change_and_mistakes_change_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(says("Yes.")) as model:
            at = tmp_path / "agents"
            agents = agents_of(at, file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                app.warden.settings = replace(app.warden.settings, agents=str(at))
                await app.agents.look()
                await app.agents.look()
                assert [agent.id for agent in app.agents.agents()] == ["sre"]
                (at / "agent-0.toml").write_text("[agent]\nname = 3\n")
                await app.agents.look()
                assert [agent.id for agent in app.agents.agents()] == ["sre"]
                (at / "agent-0.toml").write_text(file_of("ops", model.url))
                (at / "agent-1.toml").write_text(file_of("dev", model.url))
                await app.agents.look()
                assert [agent.id for agent in app.agents.agents()] == ["ops", "dev"]

    asyncio.run(story())


def test_after_a_restart_a_run_goes_on_with_the_version_that_its_file_has_no_more(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("word. ")] * 2_000, end(), gap_s=0.05)
        async with provider(slow, says("as it was")) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Which?"), by=ANN)
                async for each in app.agents.follow(run.id):
                    if each.name == "text":
                        break
            text = file_of("sre", model.url).replace("a small shop", "a bank").replace('"played"', '"another"')
            agents = agents_of(tmp_path / "agents", text)
            async with a_desk(tmp_path / "state", agents) as app:
                told = await heard(app, run.id)
                assert text_of(told).replace(" ", "") == "asitwas"
                assert [body["model"] for body in model.bodies] == ["played", "played"]
                assert "a bank" not in str(model.bodies)

    asyncio.run(story())


def test_a_run_that_comes_back_to_other_skills_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        skill = tmp_path / "skills" / "restart"
        skill.mkdir(parents=True)
        front = "---\nname: restart\ndescription: How to restart.\n---\n"
        (skill / "SKILL.md").write_text(f"{front}Carefully.")
        slow = sse(*[delta("word. ")] * 2_000, end(), gap_s=0.05)
        async with provider(slow, says("as it is")) as model:
            sources = f'[[agent.skills.local]]\nsource = "{tmp_path / "skills"}"\n'
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=sources))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Which?"), by=ANN)
                async for each in app.agents.follow(run.id):
                    if each.name == "text":
                        break
            (skill / "SKILL.md").write_text(f"{front}Boldly.")
            async with a_desk(tmp_path / "state", agents) as app:
                told = await heard(app, run.id)
                (differs,) = [each.body for each in told if each.name == "agent.version_differs"]
                assert differs["version"] == began(told)
                assert differs["now"] != differs["version"]

    asyncio.run(story())


def test_secrets_of_an_agent_are_not_kept_and_have_to_be_there_when_it_goes_on(tmp_path: Path) -> None:
    (agent,) = agents_of(tmp_path, file_of("sre", "http://127.0.0.1:9/v1"))
    key = os.urandom(12).hex()
    agent = replace(agent, agent=replace(agent.agent, llm=replace(agent.agent.llm, api_key=Secret(key))))
    kept = kept_agent(agent)
    assert key not in kept
    assert agent_kept(kept, now=agent) == agent
    other = replace(agent, agent=replace(agent.agent, llm=LlmSettings(provider="builtin", model="builtin")))
    with pytest.raises(ConfigError, match=r"agent\.llm\.api_key"):
        agent_kept(kept, now=other)
    with pytest.raises(ConfigError):
        agent_kept(kept, now=None)


def test_conversations_belong_to_whoever_had_them_and_can_be_gone_on_with(tmp_path: Path) -> None:
    async def story() -> None:
        bob = replace(ANN, user="bob")
        stranger = replace(ANN, tenant="other")
        async with a_desk(tmp_path) as app:
            for question in ("Is anything wrong?", "What changed?"):
                run = await app.agents.start(asked(question, session="s1"), by=ANN)
                await app.agents.answer(run.id, timeout_s=10)
            run = await app.agents.start(asked("List incidents", session="s2"), by=bob)
            await app.agents.answer(run.id, timeout_s=10)
            (mine,) = await app.agents.sessions(by=ANN)
            assert (mine.id, mine.subject, mine.agent) == ("s1", "What changed?", "quell")
            first, last = await app.agents.conversation("s1", by=ANN)
            assert (first.text, last.role) == ("What changed?", "assistant")
            assert "[e1]" in last.text
            assert await app.agents.conversation("s1", by=bob) == ()
            assert await app.agents.conversation("s1", by=stranger) == ()

    asyncio.run(story())


def test_what_an_agents_file_lets_a_run_spend_ends_the_run(tmp_path: Path) -> None:
    async def story() -> None:
        def look(limit: int) -> Answer:
            # Never the same call twice: that would end as a loop, whatever may be spent.
            call = {"index": 0, "id": "x", "function": {"name": "incidents", "arguments": f'{{"limit": {limit}}}'}}
            return sse(delta(tool_calls=[call]), end("tool_calls"), usage(900, 200))

        async with provider(*map(look, range(1, 20))) as model:
            budget = "[quell.budget]\ntokens = 9000\n"
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=budget, agent="turn_depth = 40"))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Go on and on."), by=ANN)
                answer = await app.agents.answer(run.id, timeout_s=20)
                assert answer is not None
                assert answer.stop is Stop.SPENT
                assert answer.usage.input_tokens + answer.usage.output_tokens <= 9_000
                assert len(model.bodies) < 9

    asyncio.run(story())


def test_a_budget_that_is_written_anew_holds_for_new_runs_and_running_ones_keep_theirs(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "incidents", "arguments": "{}"}}
        turns = sse(delta(tool_calls=[call]), end("tool_calls"), usage(900, 200), gap_s=0.2)
        async with provider(turns, sse(delta("Calm."), end(), usage(900, 20))) as model:
            text = file_of("sre", model.url, more="[quell.budget]\ntokens = 50000\n")
            async with a_desk(tmp_path / "state", agents_of(tmp_path / "agents", text)) as app:
                first = await app.agents.start(asked("What is open?"), by=ANN)
                while not model.bodies:
                    await asyncio.sleep(0.01)
                await app.agents.take(agents_of(tmp_path / "agents", text.replace("50000", "40")))
                before = await app.agents.answer(first.id, timeout_s=20)
                assert before is not None
                assert (before.stop, before.text, len(model.bodies)) == (Stop.ANSWERED, "Calm.", 2)
                second = await app.agents.start(asked("What is open?"), by=ANN)
                after = await app.agents.answer(second.id, timeout_s=20)
                assert after is not None
                assert (after.stop, len(model.bodies)) == (Stop.SPENT, 2)

    asyncio.run(story())
