"""Two workers, a cancelled task, a database that blinks, runs that end without their effects: nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.config import Settings
from quell.domain import Effect, EffectState, Fence, Happened, JournalError, Recovery, RefusedError, Unclear
from quell.runs import Connection, Continue, Done, Ledger, Next, RunContext, Runs
from quell.telemetry import open_telemetry
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._ledger_bench import Bench, bench
from tests.doors._runs_bench import journal

Tell = Callable[[Callable[[Bench], Awaitable[None]]], None]


@pytest.fixture(params=["sqlite", "postgres"])
def told(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Tell]:
    """Tell a story on a fresh ledger of either kind."""

    def tell_on(url: str) -> Tell:
        def tell(story: Callable[[Bench], Awaitable[None]]) -> None:
            async def whole() -> None:
                async with bench(tmp_path, clock, url=url) as made:
                    await story(made)

            asyncio.run(whole())

        return tell

    if request.param == "sqlite":
        yield tell_on("")
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        yield tell_on(url)


def test_an_old_holder_can_not_begin_an_effect(told: Tell) -> None:
    async def story(b: Bench) -> None:
        old = b.hold("slot-0.a")
        b.hold("slot-1.b")
        with pytest.raises(RefusedError, match="not held by this worker"):
            await b.perform(b.intent(), fence=old)
        with pytest.raises(RefusedError, match="fence is of"):
            await b.perform(b.intent(), fence=replace(old, run="run_other"))
        assert (b.entry(b.intent()), b.world.keys) == (None, [])

    told(story)


def test_a_run_that_is_cancelled_between_intent_and_start_sends_nothing(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        intent = b.intent()

        def cancel(connection: Connection, effect: Effect) -> None:
            connection.run("UPDATE quell_runs SET status = 'cancelled', token = '' WHERE id = :run", run=b.run)

        with pytest.raises(RefusedError, match="not held by this worker"):
            await b.ledger.perform(
                intent,
                send=b.world.send,
                probe=None,
                fence=fence,
                on_intent=cancel,
                on_start=b.joints.at("start"),
                on_end=b.joints.at("end"),
            )
        assert b.world.keys == []
        kept = b.entry(intent)
        assert kept is not None
        assert kept.state is EffectState.INTENT

    told(story)


@pytest.mark.parametrize("recovery", list(Recovery))
def test_two_workers_on_one_run_do_it_once_and_the_old_one_can_not_end_what_the_new_one_met(
    recovery: Recovery, tmp_path: Path, clock: FakeClock
) -> None:
    async def story() -> None:
        async with bench(tmp_path, clock) as b:
            b.world.hang = asyncio.Event()
            intent = b.intent(recovery)
            old = asyncio.create_task(_awaited(b.perform(intent, fence=b.hold("slot-0.a"))))
            await b.world.reached.wait()
            hang, b.world.hang = b.world.hang, None
            new = await b.perform(intent, fence=b.hold("slot-1.b"), ledger=b.new_ledger())
            assert new.state is (EffectState.UNKNOWN if recovery is Recovery.BLIND else EffectState.DONE)
            hang.set()
            with pytest.raises(RefusedError, match="not held"):
                await old
            assert b.entry(intent) == new
            assert len(set(b.world.taken)) == 1
            if recovery in {Recovery.PROBEABLE, Recovery.BLIND}:
                assert len(b.world.taken) == 1

    asyncio.run(story())


def test_what_an_old_holder_knows_is_kept_as_long_as_nobody_else_has_met_the_effect(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.hang = asyncio.Event()
        intent = b.intent(Recovery.BLIND)
        old = asyncio.create_task(_awaited(b.perform(intent, fence=b.hold("slot-0.a"))))
        await b.world.reached.wait()
        fence = b.hold("slot-1.b")
        b.world.hang.set()
        assert (await old).state is EffectState.DONE
        assert (await b.perform(intent, fence=fence)).state is EffectState.DONE
        assert len(b.world.taken) == 1

    told(story)


def test_many_tasks_and_ledgers_that_race_for_one_call_send_it_once(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        ledgers = [b.new_ledger() for _ in range(2)]
        done = await asyncio.gather(
            *(b.perform(b.intent(), fence=fence, ledger=ledgers[0]) for _ in range(4)),
        )
        assert {effect.state for effect in done} == {EffectState.DONE}
        assert len(b.world.keys) == 1
        racing = await asyncio.gather(
            *(b.perform(b.intent(call="call-2"), fence=fence, ledger=ledger) for ledger in ledgers * 3),
            return_exceptions=True,
        )
        assert all(isinstance(end, Effect | RefusedError) for end in racing), racing
        keys = [key for key, _ in b.world.keys[1:]]
        assert len(set(keys)) == 1, "whoever sends, sends under the one key"
        kept = b.entry(b.intent(call="call-2"))
        assert kept is not None
        assert kept.state is EffectState.DONE

    told(story)


def test_effects_that_compete_for_one_budget_all_end(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        with b.database.writing() as connection:
            connection.run("CREATE TABLE budget (spent BIGINT NOT NULL)")
            connection.run("INSERT INTO budget (spent) VALUES (0)")

        def spend(connection: Connection, effect: Effect) -> None:
            connection.run("UPDATE budget SET spent = spent + 1")

        async def one(number: int) -> EffectState:
            effect = await b.ledger.perform(
                b.intent(call=f"call-{number}"),
                send=b.world.send,
                probe=None,
                fence=fence,
                on_intent=spend,
                on_start=spend,
                on_end=spend,
            )
            with b.database.reading() as connection:
                assert b.ledger.find(connection, b.ledger.key_of(effect.call)) == effect
            return effect.state

        states = await asyncio.gather(*(one(number) for number in range(12)))
        assert set(states) == {EffectState.DONE}
        with b.database.reading() as connection:
            assert connection.one("SELECT spent FROM budget").spent == 36
        seqs = [event.seq for event in await b.runs.events(run=b.run)]
        assert len(seqs) == 1 + 36

    told(story)


@pytest.mark.parametrize(
    ("recovery", "state"),
    [
        (Recovery.KEYED, EffectState.STARTED),
        (Recovery.PROBEABLE, EffectState.STARTED),
        (Recovery.BLIND, EffectState.UNKNOWN),
    ],
)
def test_cancelled_while_it_is_sent_an_effect_is_open_or_unknown_and_recovered(
    recovery: Recovery, state: EffectState, told: Tell
) -> None:
    async def story(b: Bench) -> None:
        b.world.hang = asyncio.Event()
        task = asyncio.create_task(_awaited(b.perform(b.intent(recovery), fence=b.hold())))
        await b.world.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = b.entry(b.intent(recovery))
        assert kept is not None
        assert kept.state is state
        b.world.hang = None
        again = await b.perform(b.intent(recovery), fence=b.hold("slot-0.b"))
        assert again.state is (EffectState.UNKNOWN if recovery is Recovery.BLIND else EffectState.DONE)

    told(story)


@pytest.mark.parametrize(
    ("moment", "state", "sent"),
    [("intent", EffectState.INTENT, 0), ("start", EffectState.FAILED, 0), ("end", EffectState.DONE, 1)],
)
def test_cancelled_while_a_transaction_is_written_the_transaction_ends_and_nothing_more_is_sent(
    moment: str, state: EffectState, sent: int, told: Tell
) -> None:
    async def story(b: Bench) -> None:
        loop = asyncio.get_running_loop()

        def cancelling(connection: Connection, effect: Effect) -> None:
            loop.call_soon_threadsafe(task.cancel)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)  # the loop has seen it

        joints = {name: cancelling if name == moment else b.joints.at(name) for name in ("intent", "start", "end")}
        task = asyncio.create_task(
            b.ledger.perform(
                b.intent(),
                send=b.world.send,
                probe=None,
                fence=b.hold(),
                on_intent=joints["intent"],
                on_start=joints["start"],
                on_end=joints["end"],
            )
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = b.entry(b.intent())
        assert kept is not None
        assert (kept.state, len(b.world.keys)) == (state, sent)

    told(story)


def test_a_database_that_blinks_at_the_end_does_not_lose_what_is_known(told: Tell) -> None:
    async def story(b: Bench) -> None:
        left = 3

        def blinking(connection: Connection, effect: Effect) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise JournalError("the database blinked")

        async def perform(call: str) -> Effect:
            return await b.ledger.perform(
                b.intent(Recovery.BLIND, call=call),
                send=b.world.send,
                probe=None,
                fence=b.hold(),
                on_intent=b.joints.at("intent"),
                on_start=b.joints.at("start"),
                on_end=blinking,
            )

        assert (await perform("call-1")).state is EffectState.DONE
        assert len(b.world.keys) == 1
        left = 1000
        with pytest.raises(JournalError):
            await perform("call-2")
        kept = b.entry(b.intent(call="call-2"))
        assert kept is not None
        assert kept.state is EffectState.STARTED, "it is open, so the next life or a person sees to it"

    told(story)


def test_an_end_whose_commit_was_kept_and_not_confirmed_is_the_end(told: Tell) -> None:
    """A connection that is lost in COMMIT: the caller must not hear of a refusal about an effect that is done."""

    async def story(b: Bench) -> None:
        lost = [1, 2]

        async def losing(work: Callable[..., object], /, *arguments: object, **named: object) -> object:
            written = await asyncio.to_thread(work, *arguments, **named)
            if lost and isinstance(written, Effect) and written.state is EffectState.DONE:
                lost.pop()
                raise JournalError("the server closed the connection unexpectedly")
            return written

        async def at_once(_seconds: float) -> None:
            pass

        ledger = Ledger(b.database, clock=b.clock, call=losing, pause=at_once)  # type: ignore[arg-type]  # it returns what `work` does
        effect = await b.perform(b.intent(Recovery.BLIND), fence=b.hold(), ledger=ledger)
        assert (effect.state, lost, len(b.world.keys)) == (EffectState.DONE, [], 1)
        assert b.notes() == ["intent intent 0", "start started 1", "end done 1"]
        names = [event.name for event in await b.runs.events(run=b.run)]
        assert names.count("effect.ended") == 1

    told(story)


def test_an_attempt_has_a_deadline(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.hang = asyncio.Event()
        effect = await b.perform(b.intent(Recovery.BLIND, timeout_s=0.02), fence=b.hold())
        assert (effect.state, effect.detail) == (EffectState.UNKNOWN, "no answer within 0.02 s")

    told(story)


def test_a_start_that_took_too_long_to_be_written_is_not_followed_by_the_effect(told: Tell) -> None:
    async def story(b: Bench) -> None:
        def slow(connection: Connection, effect: Effect) -> None:
            b.clock.forward(seconds=31)

        effect = await b.ledger.perform(
            b.intent(Recovery.PROBEABLE),
            send=b.world.send,
            probe=b.world.look,
            fence=b.hold(),
            on_intent=b.joints.at("intent"),
            on_start=slow,
            on_end=b.joints.at("end"),
        )
        assert (effect.state, b.world.keys) == (EffectState.FAILED, [])
        assert "took too long" in effect.detail

    told(story)


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"quiet_s": 0.5}, {"attempts_max": 0}])
def test_bounds_under_which_nothing_could_be_promised_are_refused(
    wrong: dict[str, object], tmp_path: Path, clock: FakeClock
) -> None:
    async def story() -> None:
        async with bench(tmp_path, clock) as b:
            with pytest.raises(ValueError, match="an effect has a deadline"):
                replace(b.intent(), **wrong)  # type: ignore[arg-type]  # fields of an Intent

    asyncio.run(story())


def test_effects_of_runs_that_ended_without_them_come_before_people(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        b.world.ends = [asyncio.CancelledError(), Happened()]
        with pytest.raises(asyncio.CancelledError):
            await b.perform(b.intent(), fence=fence)
        b.joints.refuse_at = "none"

        def broken(connection: Connection, effect: Effect) -> None:
            raise JournalError("the database is away")

        with pytest.raises(JournalError):
            await b.ledger.perform(
                b.intent(call="call-2"),
                send=b.world.send,
                probe=None,
                fence=fence,
                on_intent=b.joints.at("intent"),
                on_start=broken,
                on_end=b.joints.at("end"),
            )
        b.clock.forward(seconds=60)

        def close(*, seconds: float) -> list[tuple[str, EffectState]]:
            with b.database.writing() as connection:
                closed = b.ledger.close_abandoned(connection, before=b.clock() - timedelta(seconds=seconds))
            return sorted((effect.call.id, effect.state) for effect in closed)

        assert close(seconds=30) == [], "the run is alive"
        await b.runs.cancel(b.run)
        assert close(seconds=90) == [], "a worker may still be busy with them"
        assert close(seconds=30) == [("call-1", EffectState.UNKNOWN), ("call-2", EffectState.FAILED)]
        assert close(seconds=30) == []
        assert [effect.call.id for effect in b.ledger_entries(EffectState.UNKNOWN)] == ["call-1"]
        names = [event.name for event in await b.runs.events(run=b.run)]
        assert names[-2:] == ["effect.unknown", "effect.ended"]

    told(story)


def test_a_verdict_that_is_not_committed_yet_holds_up_nobodys_effect(postgres_url: str, tmp_path: Path) -> None:
    """Whoever settles goes on to the audit log, whose lock others hold while they come to the event log."""

    async def story(b: Bench) -> None:
        b.world.ends = [Unclear(detail="who knows"), Happened()]
        left = await b.perform(b.intent(Recovery.BLIND), fence=b.hold())
        with b.database.writing() as connection:
            b.ledger.settle(connection, left.key, by="bob", verdict="done", reason="seen")
            async with asyncio.timeout(20):
                other = await b.perform(b.intent(call="call-2"), fence=b.hold())
        assert other.state is EffectState.DONE

    with fresh_database(postgres_url) as url:

        async def whole() -> None:
            async with bench(tmp_path, FakeClock(), url=url) as made:
                await story(made)

        asyncio.run(whole())


def test_what_comes_before_people_and_what_they_find_is_told_to_telemetry(told: Tell, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "quell.log"

    def heard() -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [(line["event"], line["call"]) for line in lines if line["event"].startswith("effect.")]

    async def story(b: Bench) -> None:
        b.world.ends = [asyncio.CancelledError()]
        with pytest.raises(asyncio.CancelledError):
            await b.perform(b.intent(), fence=b.hold())
        await b.runs.cancel(b.run)
        opened = open_telemetry(
            Settings(state_dir=tmp_path), role="serve", service_version="1", instance="i", clock=b.clock, env={}
        )
        try:
            with b.database.writing() as connection:
                (closed,) = b.ledger.close_abandoned(connection, before=b.clock() + timedelta(seconds=1))
                assert heard() == [], "not before it is kept"
            with b.database.writing() as connection:
                b.ledger.settle(connection, closed.key, by="bob", verdict="done", reason="seen")
        finally:
            opened.close_now()
        assert heard() == [("effect.unknown", "call-1"), ("effect.settled", "call-1")]

    told(story)


def test_entries_outlive_their_runs_and_only_settled_ones_that_nobody_can_come_back_to_are_deleted(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        await b.perform(b.intent(), fence=fence)
        b.world.ends = [Unclear(detail="lost")]
        await b.perform(b.intent(Recovery.BLIND, call="call-2"), fence=fence)
        b.clock.forward(seconds=100)

        def retain(*, seconds: float) -> int:
            with b.database.writing() as connection:
                return b.ledger.retain(connection, before=b.clock() - timedelta(seconds=seconds))

        assert retain(seconds=50) == 0, "its run may come back to it"
        with b.database.writing() as connection:
            connection.run("DELETE FROM quell_runs WHERE id = :run", run=b.run)
        assert b.entry(b.intent()) is not None
        assert retain(seconds=150) == 0
        assert retain(seconds=50) == 1
        assert b.entry(b.intent()) is None
        assert b.entry(b.intent(call="call-2")) is not None, "what nobody knows is somebody's work"

    told(story)


@pytest.mark.timeout(30)
def test_a_run_hands_out_its_fence_and_each_segment_has_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        fences: list[Fence] = []

        async def work(context: RunContext) -> Next:
            fences.append(context.fence)
            if not context.state:
                return Continue(state={"again": True})
            with runs.database.reading() as connection:
                row = connection.one("SELECT * FROM quell_runs WHERE id = :run", run=context.run.id)
            assert (row.dispatch, row.token) == (context.fence.dispatch, context.fence.token)
            return Done(result={})

        runs: Runs
        async with journal(tmp_path, works={"w": work}) as runs:
            run = await runs.start("w", subject="a test", arguments={})
            ended = await runs.wait(run.id, timeout_s=20)
            assert ended.status == "succeeded", ended.error
        assert [fence.run for fence in fences] == [run.id] * 2
        assert fences[0] != fences[1]

    asyncio.run(story())


async def _awaited(performing: Awaitable[Effect]) -> Effect:
    return await performing
