"""What an agent's file puts before people: named tools whatever policy says, and what the agent asks by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.app._agent_servers import ask_first_of, people_s_of
from quell.app._ask_people import ask_people_hand
from quell.app._first_pins import pin_first
from quell.config import AgentSettings
from quell.domain import Approval, ApprovalTerms, CallOrigin, OutcomeKind, matches_globset
from tests._mcp_rogue import OBJECT, Rogue, rogue
from tests.doors._agent_tools_bench import agent_of, room_of, server_table
from tests.doors._hand_bench import Room, outcome_of, parked_of, person

pytestmark = pytest.mark.timeout(60)

BOSS = person("bob", "approver")


def _approval(room: Room, approval: str) -> Approval:
    with room.runs.database.reading() as connection:
        found = room.authority.guard.approvals.find(connection, approval, tenant="local")
    assert found is not None
    return found


def _terms(room: Room, approval: str) -> ApprovalTerms:
    return _approval(room, approval).terms


Story = Callable[[Room, Rogue, AgentSettings], Awaitable[None]]


def _played(tmp_path: Path, story: Story, *, hitl: str, reads: str = '["*"]', **more: object) -> None:
    async def tell() -> None:
        async with rogue() as server:
            server.tools = [{"name": name, "inputSchema": OBJECT} for name in ("echo", "structured", "kubectl_get")]
            agent = agent_of(tmp_path, f"{server_table('shop', server.url)}[quell]\nreads = {reads}\n{hitl}")
            async with room_of(tmp_path, agent, hands=[ask_people_hand()], **more) as (room, _):
                await pin_first(room.authority)
                await story(room, server, agent)
                assert room.authority.guard.audit.verify().is_intact

    asyncio.run(tell())


def test_a_tool_that_the_file_names_waits_for_people_though_policy_lets_it_through(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue, agent: AgentSettings) -> None:
        caller = room.caller(ask_first=ask_first_of(agent))
        assert outcome_of(await room.call("echo", caller=caller, n=1)).kind is OutcomeKind.OK
        parked = parked_of(await room.call("kubectl_get", call="k1", caller=caller, n=1))
        assert (parked.gate, parked.quorum, parked.approver_roles) == ("kubectl_{get,apply}", 1, ("approver", "admin"))
        terms = _terms(room, parked.approval)
        assert terms.origin() == {"kind": "config_gate", "matched_pattern": "kubectl_{get,apply}"}
        assert terms.policies[0] == "quell.config-gate"
        shown = room.authority.guard.approvals.show(_approval(room, parked.approval), form="text")
        assert "kubectl_{get,apply} (the file of the agent)" in shown
        assert len(server.calls) == 1
        room.decide(parked, BOSS)
        assert outcome_of(await room.call("kubectl_get", call="k1", caller=caller, n=1)).kind is OutcomeKind.OK
        assert len(server.calls) == 2
        # One yes is for one call; and whoever comes without the file's patterns is not held up by them.
        parked_of(await room.call("kubectl_get", call="k2", caller=caller, n=1))
        assert outcome_of(await room.call("kubectl_get", call="k3", n=1)).kind is OutcomeKind.OK

    _played(tmp_path, story, hitl='[hitl]\nrequire_approval = ["kubectl_{get,apply}"]\n')


@pytest.mark.parametrize("origin", list(CallOrigin))
def test_no_kind_of_call_goes_round_the_file_s_patterns(origin: CallOrigin, tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue, agent: AgentSettings) -> None:
        parked_of(await room.call("echo", caller=room.caller(ask_first=ask_first_of(agent), origin=origin), n=1))
        assert server.calls == []

    _played(tmp_path, story, hitl='[hitl]\nrequire_approval = ["*"]\n')


def test_people_who_say_no_end_the_call_and_what_policy_denies_is_not_asked_about(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue, agent: AgentSettings) -> None:
        caller = room.caller(ask_first=ask_first_of(agent))
        parked = parked_of(await room.call("echo", call="e1", caller=caller, n=1))
        room.decide(parked, BOSS, verdict="reject", reason="not now")
        ended = outcome_of(await room.call("echo", call="e1", caller=caller, n=1))
        assert (ended.kind, "not now" in ended.detail) == (OutcomeKind.DENIED, True)
        caller = replace(caller, origin=CallOrigin.SKILL)
        assert outcome_of(await room.call("kubectl_get", caller=caller, n=1)).kind is OutcomeKind.DENIED
        assert server.calls == []

    forbid = '@id("never")\nforbid (principal, action, resource) when { context.origin == "skill" };'
    _played(tmp_path, story, hitl='[hitl]\nrequire_approval = ["*"]\n', policies=[forbid])


def test_an_effect_that_policy_permits_needs_one_person_for_the_file_s_sake(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue, _agent: AgentSettings) -> None:
        caller = room.caller(ask_first=("restart",))
        wanted: dict[str, Any] = {"service": "web", "environment": "staging"}
        parked = parked_of(await room.call("restart", call="r1", caller=caller, **wanted))
        assert (parked.gate, parked.quorum) == ("restart", 1)
        room.decide(parked, BOSS)
        assert outcome_of(await room.call("restart", call="r1", caller=caller, **wanted)).kind is OutcomeKind.OK
        assert outcome_of(await room.call("restart", call="r2", **wanted)).kind is OutcomeKind.OK

    permit = '@id("all")\npermit (principal, action, resource);'
    _played(tmp_path, story, hitl="[hitl]\n", policies=[permit])


def test_where_policy_asks_anyway_it_says_who_and_how_many_and_the_pattern_is_told(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue, agent: AgentSettings) -> None:
        caller = room.caller(ask_first=ask_first_of(agent))
        parked = parked_of(await room.call("echo", caller=caller, n=1))
        assert (parked.gate, parked.quorum) == ("e[a-d]ho", 2)
        assert _terms(room, parked.approval).policies == ("copilot.irreversible-asked",)

    _played(tmp_path, story, hitl='[hitl]\nrequire_approval = ["e[a-d]ho"]\n', reads="[]")


def test_of_our_own_tools_a_pattern_means_only_what_it_names_whole(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue, _agent: AgentSettings) -> None:
        wanted: dict[str, Any] = {"service": "web", "query": "x"}
        ended = await room.call("logs_search", caller=room.caller(ask_first=("*",)), **wanted)
        assert outcome_of(ended).kind is OutcomeKind.OK
        parked_of(await room.call("logs_search", caller=room.caller(ask_first=("logs_search",)), **wanted))

    _played(tmp_path, story, hitl="[hitl]\n")


def test_a_pattern_that_cannot_be_read_holds_everything_up(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue, _agent: AgentSettings) -> None:
        parked_of(await room.call("echo", caller=room.caller(ask_first=("{never",)), n=1))

    _played(tmp_path, story, hitl="[hitl]\n")


def test_when_the_time_that_a_file_gives_people_is_over_the_call_is_and_nobody_is_asked_again(tmp_path: Path) -> None:
    async def story(room: Room, server: Rogue, agent: AgentSettings) -> None:
        assert people_s_of(agent) == 60.0
        caller = room.caller(ask_first=ask_first_of(agent), people_s=people_s_of(agent))
        parked = parked_of(await room.call("echo", call="e1", caller=caller, n=1))
        assert (parked.expires_at - room.clock.at).total_seconds() == 60.0
        room.clock.forward(seconds=61)
        for _ in range(2):
            ended = outcome_of(await room.call("echo", call="e1", caller=caller, n=1))
            assert (ended.kind, ended.detail.startswith("timed out")) == (OutcomeKind.DENIED, True)
        assert server.calls == []
        with room.runs.database.reading() as connection:
            assert len(room.authority.guard.approvals.listed(connection, tenant="local")) == 1

    _played(tmp_path, story, hitl='[hitl]\nrequire_approval = ["*"]\n[hitl.route]\nmode = "conversational"\n')


@pytest.mark.parametrize(
    ("route", "seconds"),
    [
        ("", 0.0),
        ('mode = "conversational"\ntimeout_secs = 5', 5.0),
        ('mode = "webhook"\nurl = "http://w.example"', 300.0),
    ],
)
def test_a_route_says_how_long_people_have(route: str, seconds: float, tmp_path: Path) -> None:
    hitl = f"[hitl]\n[hitl.route]\n{route}\n" if route else "[hitl]\n"
    assert people_s_of(agent_of(tmp_path, hitl)) == seconds


def test_an_agent_asks_people_by_itself_and_goes_on_only_with_their_yes(tmp_path: Path) -> None:
    async def story(room: Room, _server: Rogue, agent: AgentSettings) -> None:
        wanted: dict[str, Any] = {"action_description": "drop the old index", "risk_rationale": "it cannot be undone"}
        # Without patterns, without a file, and by a person: nobody gets round it.
        for caller in (
            room.caller(ask_first=ask_first_of(agent)),
            room.caller(),
            room.caller(origin=CallOrigin.PERSON),
        ):
            parked = parked_of(await room.call("request_approval", call="a1", caller=caller, **wanted))
        terms = _terms(room, parked.approval)
        assert terms.origin() == {
            "kind": "agent_requested",
            "reason": "it cannot be undone",
            "agent_name": "sre",
        }
        assert json.loads(terms.calls[0].call.arguments) == wanted
        room.decide(parked, BOSS)
        ended = outcome_of(await room.call("request_approval", call="a1", **wanted))
        assert (ended.kind, ended.content.startswith("Approved")) == (OutcomeKind.OK, True)
        other = {**wanted, "action_description": "drop the new index"}
        parked = parked_of(await room.call("request_approval", call="a2", **other))
        room.decide(parked, BOSS, verdict="reject", reason="we need it")
        ended = outcome_of(await room.call("request_approval", call="a2", **other))
        assert (ended.kind, "we need it" in ended.detail) == (OutcomeKind.DENIED, True)

    _played(tmp_path, story, hitl="[hitl]\n")


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("kubectl_*", ["kubectl_", "kubectl_get"], ["Kubectl_get", "xkubectl_get"]),
        ("a?c", ["abc", "a.c"], ["ac", "abbc"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[!a-c]x", ["dx"], ["ax"]),
        ("[]x]", ["]", "x"], ["y"]),
        ("{get,list}_*", ["get_a", "list_"], ["put_a"]),
        ("a{b,{c,d*}}", ["ab", "ac", "add"], ["a", "ae"]),
        ("a\\*", ["a*"], ["ab"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a,b", ["a,b"], ["a", "b"]),
        ("[a\\]", ["a", "\\"], ["]"]),
        ("", [""], ["a"]),
    ],
)
def test_patterns_are_read_as_the_original_reads_them(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    assert [name for name in fits if not matches_globset(name, pattern)] == []
    assert [name for name in fits_not if matches_globset(name, pattern)] == []


@pytest.mark.parametrize("pattern", ["[a", "{a", "a}", "{a,{b}", "[z-a]", "a\\", "[", "{" * 20 + "}" * 20])
def test_what_is_no_pattern_is_told(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"brace|bracket|range|backslash"):
        matches_globset("a", pattern)
