"""What stands in a request: each section within its share, what binds always, and an account of what was left out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from quell.agent import AgentAnswer, Role, Stop
from quell.agent._context import fitted, request_of, room_of
from quell.agent._render import exhibit_of, result_text
from quell.agent._route import offered
from quell.agent._talk import Exhibit, Talk
from quell.app._senses_tools import sense_tools
from quell.domain import (
    CallWanted,
    Message,
    ModelError,
    ModelFault,
    ModelRequest,
    OutcomeKind,
    Principal,
    Recovery,
    Tool,
    ToolClass,
    ToolOutcome,
)
from quell.models import ScriptedModel, TokenCounter
from quell.models._openai import Endpoint, body_of
from quell.models._scripted import Turn, says, wants
from tests.doors._agent_bench import AgentRoom, agent_room

ROLE = Role(name="sre", preamble="You look after a small shop. Never restart the database.", turns_max=40)
KEY = "5f2a91c0"


def search(query: str) -> CallWanted:
    return CallWanted(id="x", name="logs_search", arguments=json.dumps({"service": "web", "query": query}))


def talk_of(
    *history: str, calls: int = 0, words: int = 400, tools: Sequence[str] = ("logs_search",), question: str = "Why?"
) -> Talk:
    """Make a conversation with a past, and so many calls of its own."""
    messages = [Message(role="assistant" if at % 2 else "user", text=text) for at, text in enumerate(history)]
    messages.append(Message(role="user", text=question))
    exhibits: list[Exhibit] = []
    for number in range(1, calls + 1):
        tool = tools[number % len(tools)]
        wanted = CallWanted(id=f"{number}.1", name=tool, arguments=json.dumps({"query": number}))
        outcome = ToolOutcome(
            call=wanted.id, tool=tool, kind=OutcomeKind.OK, content=f"result {number} " + "word " * words
        )
        if number == 3:
            outcome = ToolOutcome(call=wanted.id, tool=tool, kind=OutcomeKind.DENIED, detail="bob: not on a Friday")
        exhibit = exhibit_of(f"e{number}", outcome, call=wanted.id, tool=tool)
        exhibits.append(exhibit)
        messages.append(Message(role="assistant", calls=(wanted,)))
        messages.append(Message(role="tool", call=wanted.id, tool=tool, text=result_text(exhibit, outcome, key=KEY)))
    return Talk(messages=tuple(messages), exhibits=tuple(exhibits), fence=KEY)


def packed(talk: Talk, window: int) -> tuple[Talk, ModelRequest, dict[str, int]]:
    counter = TokenCounter()
    fit = fitted(talk, ROLE, tools=(), room=room_of(ROLE, window), counter=counter)
    assert fit.fits
    request = request_of(fit.talk, ROLE, tools=())
    assert counter.count(request) <= window
    return fit.talk, request, dict(fit.compacted.dropped) if fit.compacted is not None else {}


def test_the_first_request_with_eleven_tools_is_small() -> None:
    """The figure: seven senses and four tools of a server, of ordinary size, the prompt and everything around them."""
    bpe_openai = pytest.importorskip("bpe_openai", reason="the offline tokenizer is not installed")
    tools = [*sense_tools(), *(_served(name, about) for name, about in SERVED)]
    talk = Talk(messages=(Message(role="user", text="Why is checkout slow?"),), fence=KEY)
    role = Role(name="sre", preamble="You are the on-call engineer of a web shop. " * 5)
    specs = offered(talk, role, tools)
    assert len(specs) == 12, "eleven tools, and the question to the person"
    request = request_of(talk, role, tools=specs)
    wire = msgspec.json.encode(
        body_of(request, name="gpt-4o", endpoint=Endpoint(provider="openai", base_url="http://x", headers={}))
    )
    tokens = len(bpe_openai.get_encoding("o200k_base").encode_ordinary(wire.decode()))
    print(f"tokens of the first request with 11 tools, as on the wire: {tokens}")
    assert tokens <= 3_000


SERVED = (
    ("pods_list", "List the pods of a namespace with their phase, restarts, node and age; all namespaces without one."),
    (
        "pod_logs",
        "Read the newest lines of the log of one container; `previous` reads that of the one that died before.",
    ),
    ("prometheus_query", "Run a PromQL query over a range and return its series with their labels and samples."),
    ("deployments_list", "List deployments with image, replicas wanted and ready, and when each was changed last."),
)


def _served(name: str, about: str) -> Tool:
    text = {"type": "string", "description": "As the cluster names it; empty for all that the account may see."}
    number = {
        "type": "integer",
        "minimum": 1,
        "maximum": 5_000,
        "description": "Most that is returned; 100 without it.",
    }
    names = ("namespace", "name", "container", "label_selector", "field_selector", "start", "end")
    schema = {
        "type": "object",
        "properties": {**dict.fromkeys(names, text), "limit": number, "step_seconds": number},
        "required": ["namespace"],
        "additionalProperties": False,
    }
    return Tool(
        name=name, server="k8s", original=name, description=about, input_schema=json.dumps(schema), pin="sha256:x",
        tool_class=ToolClass.READ, recovery=Recovery.NATURAL,
    )  # fmt: skip


def test_a_past_ten_times_the_window_is_told_of_by_a_digest_and_the_question_stays() -> None:
    past = [f"{'Question' if at % 2 == 0 else 'Answer'} {at}: " + "word " * 400 for at in range(200)]
    talk, request, dropped = packed(talk_of(*past, question="Why is web slow now?"), 8_000)
    assert set(dropped) == {"history"}
    assert dropped["history"] == talk.digest.messages > 150
    system, told, *rest = request.messages
    assert "Never restart the database." in system.text
    assert f"{talk.digest.messages} older messages of this conversation were left out" in told.text
    assert told.text.startswith(f'<digest key="{KEY}">')
    assert rest[-1].text == "Why is web slow now?"
    assert [each.text for each in rest[:-1]] == past[-len(rest) + 1 :], "the newest turns stay as they were"


def test_a_past_that_fits_is_left_as_it_is() -> None:
    talk = talk_of("one", "two", calls=2)
    assert packed(talk, 100_000) == (talk, request_of(talk, ROLE, tools=()), {})


def test_results_give_before_turns_and_turns_leave_their_calls_outcomes_and_what_people_said() -> None:
    talk, request, dropped = packed(talk_of(calls=60, words=60), 4_000)
    assert dropped["results"] > 20
    assert dropped["turns"] > 0
    texts = "\n".join(each.text for each in request.messages)
    lines = [line for line in texts.splitlines() if line.startswith("- ")]
    assert lines[0] == "- (earlier ones)" or "[e1] ok" in lines[0]
    assert talk.messages[-1].text.startswith('<result id="e60" outcome="ok"')
    assert "result 60 word" in talk.messages[-1].text
    assert {each.id for each in talk.exhibits} == {f"e{number}" for number in range(1, 61)}, "all may still be cited"
    calls = {call.id for each in request.messages for call in each.calls}
    assert calls == {each.call for each in request.messages if each.role == "tool"}, "no call without its result"


def test_what_people_decided_stands_in_the_digest() -> None:
    _, request, _ = packed(talk_of(calls=14, words=60), 2_600)
    (told,) = [each.text for each in request.messages if each.text.startswith("<digest")]
    assert 'logs_search({"query": 3}) -> [e3] denied: bob: not on a Friday' in told


def test_why_people_said_no_stays_when_the_results_around_it_leave() -> None:
    talk = talk_of(calls=20, words=60)
    reason = "bob: the shop sells most on a Friday, and the database is slow to start, so nobody scales it then. " * 4
    outcome = ToolOutcome(call="3.1", tool="logs_search", kind=OutcomeKind.DENIED, detail=reason, content="word " * 900)
    exhibit = exhibit_of("e3", outcome, call="3.1", tool="logs_search")
    told = Message(role="tool", call="3.1", tool="logs_search", text=result_text(exhibit, outcome, key=KEY))
    messages = tuple(told if each.call == "3.1" else each for each in talk.messages)
    talk = replace(talk, messages=messages, exhibits=(*talk.exhibits[:2], exhibit, *talk.exhibits[3:]))
    _, request, dropped = packed(talk, 5_000)
    assert dropped.keys() == {"results"}
    (left,) = [each.text for each in request.messages if each.call == "3.1"]
    assert len(left) < len(told.text)
    assert reason[:200] in left
    assert "call again" not in left


def test_skills_stay_longer_than_results_and_both_are_known_to_have_left() -> None:
    talk, request, dropped = packed(
        talk_of(calls=15, words=200, tools=("load_skill", "logs_search", "logs_search")), 5_600
    )
    assert dropped["results"] >= 1
    assert "skills" not in dropped
    left = [each.text for each in request.messages if "left out to make room" in each.text]
    assert len(left) == dropped["results"] == len(talk.dropped)


def test_all_turns_leave_before_a_skill_does_and_the_turn_that_loaded_it_last() -> None:
    talk = talk_of(calls=20, words=60, tools=("load_skill", *["logs_search"] * 4))
    small, _, dropped = packed(talk, 3_400)
    assert dropped == {"results": 14, "turns": 15}
    loaded = [each for each in small.messages if each.tool == "load_skill"]
    assert [each.call for each in loaded] == ["5.1", "10.1", "15.1", "20.1"]
    assert not any("left out to make room" in each.text for each in loaded)
    smaller, _, dropped = packed(talk, 3_000)
    assert dropped["skills"] == 3
    assert len([each for each in smaller.messages if each.tool == "load_skill"]) == 3


def test_briefings_have_a_share_of_their_own_and_give_after_results_and_before_turns() -> None:
    talk = talk_of(calls=15, words=100, tools=("brief", *["logs_search"] * 6))
    assert list(packed(talk, 4_400)[2]) == ["results"]
    assert list(packed(talk, 4_000)[2]) == ["results", "briefing"]
    assert list(packed(talk, 3_400)[2]) == ["results", "briefing", "turns"]


def test_once_something_left_the_next_turns_have_room() -> None:
    """The prompt of the next turn begins like this one: nothing is left out anew at every turn."""
    talk, _, _ = packed(talk_of(calls=30, words=60), 4_000)
    more = talk_of(calls=31, words=60)
    grown = Talk(
        messages=(*talk.messages, *more.messages[-2:]),
        exhibits=more.exhibits,
        fence=KEY,
        digest=talk.digest,
        dropped=talk.dropped,
    )
    assert packed(grown, 4_000)[2] == {}


def test_the_newest_results_are_cut_before_nothing_fits() -> None:
    talk, request, dropped = packed(talk_of(calls=2, words=6_000), 4_000)
    assert dropped["cut"] >= 2
    assert [each.text.count("</result key=") for each in request.messages if each.role == "tool"] == [1, 1]
    assert talk.messages[0].text == "Why?"


@pytest.mark.parametrize("words", [3_000, 40_000])
def test_a_question_that_does_not_fit_is_said_to(words: int) -> None:
    talk = talk_of(question="word " * words)
    assert not fitted(talk, ROLE, tools=(), room=room_of(ROLE, 2_000), counter=TokenCounter()).fits


def _story(
    tmp_path: Path, turns: object, messages: Sequence[Message] = (), *, window: int | None
) -> tuple[AgentAnswer, AgentRoom, list[dict[str, object]]]:
    async def story() -> tuple[AgentAnswer, AgentRoom, list[dict[str, object]]]:
        async with agent_room(tmp_path, turns, role=ROLE, window=window) as room:  # type: ignore[arg-type]  # turns
            room.world.says += [
                ToolOutcome(call="", tool="t", kind=OutcomeKind.OK, content=f"{number} " + "word " * 600)
                for number in range(20)
            ]
            run = await room.start("Why?")
            answer = await room.answer(run)
            events = await room.runs.events(run=run.id, limit=1_000)
            return answer, room, [json.loads(each.body) for each in events if each.name == "agent.compacted"]

    return asyncio.run(story())


def test_a_long_run_is_told_what_was_left_out_and_so_is_the_journal(tmp_path: Path) -> None:
    numbers = iter(range(20))

    def turn(_request: ModelRequest) -> Turn:
        number = next(numbers, None)
        return says("It is the disk [e1].") if number is None else wants(search(str(number)))

    answer, room, told = _story(tmp_path, turn, window=6_000)
    assert (answer.stop, answer.cited) == (Stop.ANSWERED, ("e1",))
    assert 1 <= len(told) <= 12, "not at every turn"
    assert all(each["tokens_after"] < each["tokens_before"] for each in told)  # type: ignore[operator]  # numbers
    assert isinstance(room.model, ScriptedModel)
    assert all(TokenCounter().count(request) <= 6_000 for request in room.model.asked)


@pytest.mark.parametrize("window", [None, 100_000])
def test_a_provider_whose_window_is_smaller_than_said_is_asked_once_more_with_half(
    tmp_path: Path, window: int | None
) -> None:
    overflow = ModelError("too long", fault=ModelFault.OVERFLOW)
    turns: list[Turn] = [*[wants(search(str(number))) for number in range(4)], [overflow], says("Seen [e1].")]
    answer, room, told = _story(tmp_path, turns, window=window)
    assert (answer.stop, answer.text) == (Stop.ANSWERED, "Seen [e1].")
    (compacted,) = told
    assert compacted["tokens_after"] <= compacted["tokens_before"] // 2  # type: ignore[operator]  # numbers
    assert isinstance(room.model, ScriptedModel)
    assert len(room.model.asked) == 6


def test_a_provider_that_finds_everything_too_long_is_asked_twice_and_then_left(tmp_path: Path) -> None:
    overflow = ModelError("too long", fault=ModelFault.OVERFLOW)
    turns: list[Turn] = [wants(search("a")), wants(search("b")), wants(search("c")), [overflow], [overflow]]
    answer, room, _ = _story(tmp_path, turns, window=None)
    assert answer.stop is Stop.MODEL
    assert answer.fault.startswith("context_overflow")
    assert "What was found so far" in answer.text
    assert isinstance(room.model, ScriptedModel)
    assert len(room.model.asked) == 5


def test_a_call_that_waits_stands_whole_in_what_is_left() -> None:
    talk = talk_of(*["word " * 300] * 20, calls=20)
    open_calls = (CallWanted(id="21.1", name="scale", arguments='{"replicas": 3}'), search("later"))
    waits = Message(role="assistant", text="I would scale it.", calls=open_calls)
    talk = replace(talk, messages=(*talk.messages, waits), waiting=open_calls)
    small, request, dropped = packed(talk, 2_800)
    assert {"results", "history", "turns"} <= dropped.keys()
    assert (small.messages[-1], small.waiting) == (waits, open_calls)
    assert request.messages[-1] == waits


@pytest.mark.timeout(30)
@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_what_people_are_asked_and_what_they_say_stay_while_everything_else_leaves(
    verdict: Literal["approve", "reject"], tmp_path: Path
) -> None:
    """Results leave before people are asked, while they are, and after they have answered."""
    effect = CallWanted(
        id="s", name="scale", arguments=json.dumps({"service": "web", "environment": "staging", "replicas": 3})
    )
    wanted = iter(
        [*[search(str(number)) for number in range(8)], effect, *[search(str(each)) for each in range(8, 16)]]
    )

    def turn(_request: ModelRequest) -> Turn:
        call = next(wanted, None)
        if call is None:
            return says("Seen.")
        return wants(call, search("beside")) if call is effect else wants(call)

    async def story() -> tuple[list[ModelRequest], set[object]]:
        async with agent_room(tmp_path, turn, role=ROLE, window=6_000) as room:
            long = [
                ToolOutcome(call="", tool="t", kind=OutcomeKind.OK, content=f"{number} " + "word " * 600)
                for number in range(20)
            ]
            done = ToolOutcome(call="", tool="scale", kind=OutcomeKind.OK, content="web has 3 replicas")
            room.world.says += [*long[:8], *([done] if verdict == "approve" else []), *long[8:]]
            run = await room.start("Why is web slow?")
            parked = await room.parked(run)
            assert await room.told(run, "agent.compacted"), "something had left when people were asked"
            with room.runs.database.writing() as connection:
                room.authority.guard.approvals.decide(
                    connection,
                    parked.approval,
                    by=Principal(user="bob", roles=("approver",)),
                    verdict=verdict,
                    digest_seen=parked.digest,
                    reason="not on a Friday",
                )
            assert await room.runs.wake(run.id)
            assert (await room.answer(run)).stop is Stop.ANSWERED
            assert isinstance(room.model, ScriptedModel)
            return room.model.asked, {each["turn"] for each in await room.told(run, "agent.compacted")}

    requests, compacted = asyncio.run(story())
    said = "web has 3 replicas" if verdict == "approve" else "not on a Friday"
    after = requests[9:]
    assert len(after) == 9
    assert {turn for turn in compacted if isinstance(turn, int) and turn >= 9}, "more left after people had answered"
    (answered,) = [each.text for each in after[0].messages if each.role == "tool" and each.tool == "scale"]
    assert said in answered
    for request in after:
        texts = [each.text for each in request.messages]
        assert "Never restart the database." in texts[0]
        assert "Why is web slow?" in texts
        calls = [call.name for each in request.messages for call in each.calls]
        in_digest = [text for text in texts if text.startswith("<digest") and "scale({" in text]
        assert "scale" in calls or in_digest, "the call itself, or a line that tells of it"
        assert any(said in text for text in texts) or (verdict == "approve" and "-> [e9] ok" in in_digest[0])
