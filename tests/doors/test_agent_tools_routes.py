"""An agent's own approver: asked over real HTTP about that agent's calls, with the headers that its file passes on."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quell.app._agent_routes import routes_of, with_secrets_of
from quell.app._agent_servers import ask_first_of, people_s_of
from quell.app._herald import Herald
from quell.config import AgentSettings, ApprovalSettings, Secret, Settings
from quell.domain import ConfigError, OutcomeKind, Parked, ToolOutcome
from tests.doors._agent_tools_bench import agent_of
from tests.doors._authority_house import Service, until
from tests.doors._hand_bench import Room, hand_room, outcome_of, parked_of

pytestmark = pytest.mark.timeout(60)

Story = Callable[[Room, Service, Herald, AgentSettings], Awaitable[None]]


def _played(tmp_path: Path, story: Story, *, timeout_secs: int = 30) -> None:
    async def tell() -> None:
        async with Service() as service:
            hitl = (
                f'[hitl]\nrequire_approval = ["logs_search"]\n[hitl.route]\nmode = "webhook"\nurl = "{service.url}/hook"\n'
                f'timeout_secs = {timeout_secs}\nheaders = {{ "X-Team" = "sre" }}\n'
                'headers_from_request = { "X-Asker" = "x-user" }\n'
            )
            agent = agent_of(tmp_path, hitl, name="sre")
            async with hand_room(tmp_path) as room:
                herald = Herald(
                    room.authority,
                    clock=room.clock,
                    entropy=random.Random(7).randbytes,
                    link_of=lambda _: "",
                    routes=routes_of(room.authority.settings, [agent]),
                    headers_of=lambda run: {"X-User": "ann", "Cookie": "c"} if run == room.run else {},
                )
                try:
                    await story(room, service, herald, agent)
                finally:
                    await herald.close()

    asyncio.run(tell())


async def _asked(room: Room, agent: AgentSettings, *, call: str = "c1") -> ToolOutcome | Parked:
    caller = room.caller(ask_first=ask_first_of(agent), people_s=people_s_of(agent))
    return await room.call("logs_search", call=call, caller=caller, service="web", query="x")


def test_the_approver_of_an_agent_s_file_is_asked_and_its_answer_decides(tmp_path: Path) -> None:
    async def story(room: Room, service: Service, herald: Herald, agent: AgentSettings) -> None:
        service.answer = lambda _: (200, {}, b'{"approved":true}')
        parked = parked_of(await _asked(room, agent))
        assert (parked.expires_at - room.clock.at).total_seconds() == 30.0
        await herald.look()
        await until(lambda: bool(service.told))
        await until(lambda: not herald._sending)
        (sent,) = service.told
        assert (sent.path, sent.headers["x-team"], sent.headers["x-asker"]) == ("/hook", "sre", "ann")
        assert "cookie" not in sent.headers
        assert json.loads(sent.body)["origin"] == {"kind": "config_gate", "matched_pattern": "logs_search"}
        assert outcome_of(await _asked(room, agent)).kind is OutcomeKind.OK

    _played(tmp_path, story)


def test_what_no_approver_answers_is_over_with_its_time_and_never_done(tmp_path: Path) -> None:
    async def story(room: Room, service: Service, herald: Herald, agent: AgentSettings) -> None:
        service.answer = lambda _: (500, {}, b'{"approved":true}')
        parked_of(await _asked(room, agent))
        await herald.look()
        await until(lambda: bool(service.told))
        await until(lambda: not herald._sending)
        room.clock.forward(seconds=31)
        ended = outcome_of(await _asked(room, agent))
        assert (ended.kind, ended.detail.startswith("timed out")) == (OutcomeKind.DENIED, True)

    _played(tmp_path, story)


def test_requests_of_other_agents_do_not_go_to_the_approver_of_one(tmp_path: Path) -> None:
    async def story(room: Room, service: Service, herald: Herald, agent: AgentSettings) -> None:
        caller = room.caller(ask_first=ask_first_of(agent))
        caller = replace(caller, principal=replace(caller.principal, agent="other"))
        parked_of(await room.call("logs_search", caller=caller, service="web", query="x"))
        await herald.look()
        assert (herald._sending, service.told) == (set(), [])

    _played(tmp_path, story)


def test_secrets_of_the_original_s_variables_sign_unless_the_settings_have_their_own() -> None:
    env = {
        "AURA_HITL_WEBHOOK_SECRET": "a" * 32,
        "AURA_HITL_WEBHOOK_SECRET_SECONDARY": "b" * 32,
        "AURA_HITL_WEBHOOK_TOLERANCE_SECS": "60",
    }
    found = with_secrets_of(Settings(), env=env).approvals
    assert (found.webhook_secret.reveal(), found.webhook_secondary.reveal(), found.tolerance_s) == (
        "a" * 32,
        "b" * 32,
        60,
    )
    own = Settings(approvals=ApprovalSettings(webhook_secret=Secret("c" * 32)))
    assert with_secrets_of(own, env=env).approvals.webhook_secret.reveal() == "c" * 32
    assert with_secrets_of(Settings(), env={}) == Settings()


@pytest.mark.parametrize("text", ["0", "86401", "-1", "soon", "1.5"])
def test_a_tolerance_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        with_secrets_of(Settings(), env={"AURA_HITL_WEBHOOK_TOLERANCE_SECS": text})


def test_with_a_secret_a_plain_address_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    async def story() -> None:
        hitl = '[hitl]\n[hitl.route]\nmode = "webhook"\nurl = "http://approve.example/hook"\n'
        agent = agent_of(tmp_path, hitl, name="sre")
        settings = with_secrets_of(Settings(), env={"AURA_HITL_WEBHOOK_SECRET": "a" * 32})
        async with hand_room(tmp_path) as room:
            with pytest.raises(ConfigError):
                Herald(
                    room.authority,
                    clock=room.clock,
                    entropy=random.Random(7).randbytes,
                    link_of=lambda _: "",
                    routes=routes_of(settings, [agent]),
                )

    asyncio.run(story())
