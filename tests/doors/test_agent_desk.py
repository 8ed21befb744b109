"""The desk of agents: what any protocol asks becomes a durable run, and whoever wants to hears it to its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from quell.agent import Piece, Stop
from quell.app._agent_follow import Follower
from quell.domain import ChatAsk, Event, Message, RefusedError, ToolSpec, UsageError, WorldError
from tests.doors._desk_bench import ANN, a_desk, agents_of, asked, file_of, heard, text_of
from tests.doors._model_bench import NOW, delta, end, plain, provider, sse, usage

pytestmark = pytest.mark.timeout(60)


def test_without_any_file_there_is_an_agent_that_answers_without_a_model(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            run = await app.agents.start(asked("Is anything wrong?"), by=ANN)
            told = await heard(app, run.id)
            answer = await app.agents.answer(run.id, timeout_s=10)
            assert answer is not None
            assert answer.model == "builtin/builtin"
            assert text_of(told).endswith(answer.text)
            names = [each.name for each in told if each.name.startswith("agent.")]
            assert names == [
                "agent.began",
                "agent.turn",
                "agent.call_asked",
                "agent.call_started",
                "agent.call_ended",
                "agent.turn",
                "agent.answered",
            ], [(each.name, each.body) for each in told]

    asyncio.run(story())


@pytest.mark.parametrize("before", ["", "I look."])
def test_who_comes_in_the_middle_of_a_later_turn_hears_it_once_and_after_the_earlier_ones(
    tmp_path: Path, before: str
) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "incidents", "arguments": "{}"}}
        over = asyncio.Event()

        async def second(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            writer.write(f"data: {json.dumps(delta('All of it. Now'))}\n\n".encode())
            await writer.drain()
            await over.wait()
            writer.write(f"data: {json.dumps(end())}\n\ndata: [DONE]\n\n".encode())
            writer.close()

        looking = [delta(before)] if before else []
        first = sse(*looking, delta(tool_calls=[call]), end("tool_calls"), usage(10, 2))
        async with provider(first, second) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Count."), by=ANN)
                async for each in app.agents.follow(run.id):
                    if each.name == "text" and "All" in str(each.body["text"]):
                        break
                late = asyncio.create_task(heard(app, run.id))
                await asyncio.sleep(0.1)
                over.set()
                answer = await app.agents.answer(run.id, timeout_s=10)
                assert answer is not None
                told = await late
                assert answer.text == "All of it. Now"
                assert text_of(told).strip() == before + answer.text
                assert "void" not in [each.name for each in told]

    asyncio.run(story())


def test_who_comes_back_with_the_id_of_what_it_heard_last_misses_nothing_and_hears_nothing_twice(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        words = [f"word{number} " for number in range(20)]
        async with provider(sse(*map(delta, words), end(), usage(10, 20), gap_s=0.02)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Count."), by=ANN)
                live = await heard(app, run.id)
                whole = text_of(live)
                assert whole == "".join(words)
                for place, each in enumerate(live):
                    rest = await heard(app, run.id, after=each.id)
                    assert text_of([*live[: place + 1], *rest]) == whole
                    assert [h.name for h in rest if h.name.startswith(("agent.", "run."))] == [
                        h.name for h in live[place + 1 :] if h.name.startswith(("agent.", "run."))
                    ]

    asyncio.run(story())


def test_who_comes_late_hears_what_was_said_before(tmp_path: Path) -> None:
    async def story() -> None:
        words = [f"word{number} " for number in range(30)]
        async with provider(sse(*map(delta, words), end(), usage(10, 20), gap_s=0.03)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Count."), by=ANN)
                first = []
                async for each in app.agents.follow(run.id):
                    first.append(each)
                    if sum(h.name == "text" for h in first) == 5:
                        break
                late = await heard(app, run.id)
                assert text_of(late) == "".join(words)
                assert text_of([*first, *await heard(app, run.id, after=first[-1].id)]) == "".join(words)

    asyncio.run(story())


def test_an_event_that_comes_while_something_is_said_repeats_nothing_of_it() -> None:
    # The journal is read more slowly than what is said arrives: a run may have spoken before its beginning is told.
    def event(seq: int, name: str, **body: object) -> Event:
        return Event(seq=seq, run="r", key=name, name=name, at=NOW, body=json.dumps(body))

    turn = event(8, "agent.turn", turn=1, text="All is well.")
    follower = Follower.after("r", "")
    told = [*follower.piece(Piece("r", 1, 0, "text", "All is ")), *follower.event(event(7, "agent.began"))]
    left_at = told[-1].id
    told += [*follower.piece(Piece("r", 1, 0, "text", "well.")), *follower.event(turn)]
    told += follower.event(event(9, "agent.answered", text="All is well."))
    assert [each.body["text"] for each in told if each.name == "text"] == ["All is ", "well."]
    back = Follower.after("r", left_at)
    assert [each.body["text"] for each in back.event(turn) if each.name == "text"] == ["well."]


def test_a_try_that_broke_off_is_void_for_who_listens(tmp_path: Path) -> None:
    async def story() -> None:
        broken = sse(delta("Half a "), delta("sentence"), cut=2)
        async with provider(broken, sse(delta("Whole."), end(), usage(5, 2))) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more='[quell]\nevidence = "off"\n'))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Say it."), by=ANN)
                told = await heard(app, run.id)
                assert [h.name for h in told if h.name in {"text", "void"}] == ["text", "text", "void", "text"]
                assert text_of(told) == "Whole."

    asyncio.run(story())


def test_a_tool_of_the_client_ends_the_run_and_its_result_comes_with_the_next_question(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "local_time", "arguments": "{}"}}
        async with provider(
            sse(delta(tool_calls=[call]), end("tool_calls"), usage(9, 3)),
            sse(delta("It is noon."), end(), usage(20, 3)),
        ) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, agent="enable_client_tools = true"))
            async with a_desk(tmp_path / "state", agents) as app:
                clock = ToolSpec(name="local_time", description="The time.", parameters='{"type":"object"}')
                question = Message(role="user", text="What time is it?")
                run = await app.agents.start(ChatAsk(messages=(question,), client_tools=(clock,)), by=ANN)
                answer = await app.agents.answer(run.id, timeout_s=10)
                assert answer is not None
                assert answer.stop is Stop.CLIENT
                (wanted,) = answer.client_calls
                assert (wanted.name, wanted.arguments) == ("local_time", "{}")
                history = (
                    question,
                    Message(role="assistant", calls=(wanted,)),
                    Message(role="tool", call=wanted.id, tool="local_time", text="12:00"),
                )
                run = await app.agents.start(ChatAsk(messages=history, client_tools=(clock,)), by=ANN)
                answer = await app.agents.answer(run.id, timeout_s=10)
                assert answer is not None
                assert answer.stop is Stop.ANSWERED
                assert "12:00" in str(model.bodies[1]["messages"])

    asyncio.run(story())


def test_one_key_is_one_run_and_stands_for_one_question(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            first = await app.agents.start(asked("Is anything wrong?"), by=ANN, key="k1")
            again = await app.agents.start(asked("Is anything wrong?"), by=ANN, key="k1")
            assert again.id == first.id
            with pytest.raises(RefusedError) as refused:
                await app.agents.start(asked("What changed?"), by=ANN, key="k1")
            assert refused.value.code == "mismatch"
            await app.agents.answer(first.id, timeout_s=10)

    asyncio.run(story())


def test_agents_are_chosen_by_their_id_and_names_are_not_guessed_among_several(tmp_path: Path) -> None:
    async def story() -> None:
        url = "http://127.0.0.1:9/v1"
        agents = agents_of(tmp_path / "agents", file_of("one", url), file_of("two", url, agent='alias = "team/two"'))
        async with a_desk(tmp_path / "state", agents) as app:
            assert app.agents.find("team/two").agent.name == "two"
            with pytest.raises(RefusedError, match="no agent 'two'"):
                app.agents.find("two")
            with pytest.raises(UsageError, match="you must provide a model"):
                app.agents.find("")

    asyncio.run(story())


def test_a_model_that_does_not_answer_ends_the_run_with_what_went_wrong(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(plain(401, {"error": {"message": "bad key"}})) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Hello?"), by=ANN)
                answer = await app.agents.answer(run.id, timeout_s=10)
                assert answer is not None
                assert answer.stop is Stop.MODEL
                assert answer.fault.startswith("auth: ")

    asyncio.run(story())


def test_the_next_model_of_the_file_answers_when_the_first_does_not(tmp_path: Path) -> None:
    async def story() -> None:
        whole = sse(delta("From behind."), end(), usage(9, 3))
        async with provider(plain(500, {"error": {"message": "oops"}})) as first, provider(whole) as second:
            llm = f'provider = "openai"\napi_key = "none"\nmodel = "spare"\nbase_url = "{second.url}"\n'
            agents = agents_of(tmp_path / "agents", file_of("sre", first.url, more=f"[[quell.fallback]]\n{llm}"))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Hello?"), by=ANN)
                told = await heard(app, run.id)
                assert text_of(told) == "From behind."
                assert ([body["model"] for body in first.bodies], len(second.bodies)) == (["played"], 1)

    asyncio.run(story())


def test_a_run_that_is_cancelled_says_so_and_leaves_its_model(tmp_path: Path) -> None:
    async def story() -> None:
        slow = sse(*[delta("word ")] * 1_000, end(), gap_s=0.05)
        async with provider(slow) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url))
            async with a_desk(tmp_path / "state", agents) as app:
                run = await app.agents.start(asked("Hello?"), by=ANN)
                while not model.bodies:
                    await asyncio.sleep(0.01)
                await app.agents.cancel(run.id)
                with pytest.raises(RefusedError, match="cancelled"):
                    await app.agents.answer(run.id, timeout_s=10)
                async with asyncio.timeout(5):
                    await model.left.wait()

    asyncio.run(story())


def test_nothing_is_asked_and_what_is_no_id_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_desk(tmp_path) as app:
            with pytest.raises(UsageError, match="nothing is asked"):
                await app.agents.start(ChatAsk(messages=(Message(role="system", text="Be kind."),)), by=ANN)
            with pytest.raises(UsageError, match="not the user's"):
                await app.agents.start(asked("Hello?", "Yes."), by=ANN)
            run = await app.agents.start(asked("Is anything wrong?"), by=ANN)
            with pytest.raises(UsageError, match="not the id of an event"):
                await heard(app, run.id, after="x.1")
            with pytest.raises((UsageError, WorldError)):
                await app.agents.answer("run_none", timeout_s=1)

    asyncio.run(story())
