"""An effect goes intent, started, done; what nobody saw the end of is sent again, looked for, or left to people."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import (
    Effect,
    EffectFacts,
    EffectState,
    Happened,
    NotHappened,
    Recovery,
    RefusedError,
    Unclear,
    UsageError,
)
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._ledger_bench import Bench, bench

Tell = Callable[[Callable[[Bench], Awaitable[None]]], None]
HOUR_S = 3600.0


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


def test_an_effect_is_written_before_and_after_and_the_joints_stand_in_the_same_transactions(told: Tell) -> None:
    async def story(b: Bench) -> None:
        effect = await b.perform(b.intent(), fence=b.hold())
        assert (effect.state, effect.result, effect.attempts) == (EffectState.DONE, '"fine"', 1)
        assert b.notes() == ["intent intent 0", "start started 1", "end done 1"]
        assert effect == b.entry(b.intent())
        assert b.world.keys == [(effect.key, 1)]
        assert (effect.revert, effect.user, effect.is_whole) == ('[{"tool":"scale"}]', "ann", True)
        names = [event.name for event in await b.runs.events(run=b.run)]
        assert names == ["run.queued", "effect.intended", "effect.started", "effect.ended"]

    told(story)


def test_the_same_call_again_gives_the_kept_result_and_sends_nothing(told: Tell) -> None:
    async def story(b: Bench) -> None:
        first = await b.perform(b.intent(), fence=b.hold())
        again = await b.perform(b.intent(), fence=b.hold("slot-0.b"))
        assert (again.state, again.result, again.key) == (EffectState.DONE, first.result, first.key)
        assert len(b.world.taken) == 1
        assert len(b.notes()) == 3, "no joint is asked again"

    told(story)


def test_the_same_id_with_other_arguments_is_refused(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()
        await b.perform(b.intent(), fence=fence)
        call = replace(b.intent().call, arguments='{"replicas":60}', digest="other")
        for other in (replace(b.intent(), call=call), b.intent(Recovery.NATURAL)):
            with pytest.raises(RefusedError, match="other arguments"):
                await b.perform(other, fence=fence)
        assert len(b.world.taken) == 1

    told(story)


def test_a_refusal_of_the_intent_leaves_nothing_behind(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.joints.refuse_at = "intent"
        with pytest.raises(RefusedError, match="kill switch"):
            await b.perform(b.intent(), fence=b.hold())
        assert b.entry(b.intent()) is None
        assert (b.world.keys, b.notes()) == ([], [])

    told(story)


def test_a_refusal_of_the_start_ends_the_entry_and_undoes_what_joined_the_start(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.joints.refuse_at = "start"
        effect = await b.perform(b.intent(), fence=b.hold())
        assert (effect.state, effect.reason, effect.detail) == (EffectState.FAILED, "refused", "the kill switch is on")
        assert (b.world.keys, effect.attempts) == ([], 0)
        assert b.notes() == ["intent intent 0", "end failed 0"]

    told(story)


def test_a_resend_that_is_refused_is_left_to_people_as_the_first_may_have_happened(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [asyncio.CancelledError()]
        with pytest.raises(asyncio.CancelledError):
            await b.perform(b.intent(), fence=b.hold())
        b.joints.refuse_at = "start"
        effect = await b.perform(b.intent(), fence=b.hold("slot-0.b"), can_look=False)
        assert (effect.state, effect.reason) == (EffectState.UNKNOWN, "refused")
        effect = await b.perform(b.intent(), fence=b.hold("slot-0.c"))
        assert (effect.state, effect.settled_by) == (EffectState.DONE, "probe"), "a look changes nothing, so it is free"
        assert len(b.world.keys) == 1

    told(story)


def test_what_certainly_failed_is_failed_and_not_tried_again(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [NotHappened(detail="no such service \x00\ud800")]
        for _ in range(2):
            effect = await b.perform(b.intent(), fence=b.hold())
            assert (effect.state, effect.reason) == (EffectState.FAILED, "failed")
            assert effect.detail.startswith("no such service")
        assert (len(b.world.keys), b.world.taken) == (1, [])

    told(story)


@pytest.mark.parametrize("end", [Unclear(detail="reset"), ConnectionResetError("reset"), TimeoutError()])
@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        (Recovery.KEYED, (EffectState.DONE, 2, 0)),
        (Recovery.NATURAL, (EffectState.DONE, 2, 0)),
        (Recovery.PROBEABLE, (EffectState.DONE, 1, 1)),
        (Recovery.BLIND, (EffectState.UNKNOWN, 1, 0)),
    ],
)
def test_after_an_answer_that_is_lost_each_class_goes_its_own_way(
    end: Unclear | BaseException, recovery: Recovery, expected: tuple[EffectState, int, int], told: Tell
) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [end]
        effect = await b.perform(b.intent(recovery), fence=b.hold())
        assert (effect.state, len(b.world.keys), b.world.looks) == expected
        assert len({key for key, _ in b.world.keys}) == 1, "every attempt goes under one key"

    told(story)


def test_a_dead_workers_effect_is_recovered_by_its_class(told: Tell) -> None:
    async def story(b: Bench) -> None:
        ways = {Recovery.KEYED: 2, Recovery.NATURAL: 2, Recovery.PROBEABLE: 1, Recovery.BLIND: 1}
        for recovery, sent in ways.items():
            intent = b.intent(recovery, call=f"of-{recovery}")
            b.world.ends, b.world.keys = [asyncio.CancelledError()], []
            with pytest.raises(asyncio.CancelledError):
                await b.perform(intent, fence=b.hold())
            effect = await b.perform(intent, fence=b.hold("slot-1.b"), ledger=b.new_ledger())
            assert len(b.world.keys) == sent
            assert effect.state is (EffectState.UNKNOWN if recovery is Recovery.BLIND else EffectState.DONE)
        (unknown,) = b.ledger_entries(EffectState.UNKNOWN)
        assert unknown.recovery is Recovery.BLIND

    told(story)


def test_that_nothing_is_there_is_believed_only_when_nothing_can_be_on_its_way(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [Unclear(detail="no answer")]
        late = Happened(result='"late"')
        b.world.seen = [NotHappened(detail="nothing there"), late]
        effect = await b.perform(b.intent(Recovery.PROBEABLE, quiet_s=90.0), fence=b.hold())
        assert (effect.state, effect.reason, effect.result) == (EffectState.DONE, "probed", '"late"')
        assert (b.paused, len(b.world.keys)) == ([150.0], 1)

    told(story)


def test_what_certainly_did_not_happen_is_sent_again_and_no_more_than_allowed(told: Tell) -> None:
    async def story(b: Bench) -> None:
        absent = NotHappened(detail="nothing there")
        b.world.ends = [Unclear(detail="no answer")] * 3
        b.world.seen = [absent] * 6
        effect = await b.perform(b.intent(Recovery.PROBEABLE), fence=b.hold())
        assert (effect.state, effect.attempts, effect.reason) == (EffectState.FAILED, 3, "probed")
        b.world.ends = [Unclear(detail="no answer")] * 3
        effect = await b.perform(b.intent(call="call-2"), fence=b.hold(), can_look=False)
        assert (effect.state, effect.attempts, effect.detail) == (EffectState.UNKNOWN, 3, "no answer")

    told(story)


def test_a_resend_that_certainly_failed_does_not_say_that_the_first_did(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [Unclear(detail="no answer"), *[NotHappened(detail="connection refused")] * 2]
        effect = await b.perform(b.intent(), fence=b.hold(), can_look=False)
        assert (effect.state, len(b.world.keys)) == (EffectState.UNKNOWN, 3)

    told(story)


@pytest.mark.parametrize("moved_s", [25 * HOUR_S, -HOUR_S])
def test_a_key_that_the_other_side_may_have_forgotten_is_never_sent_again(
    moved_s: float, tmp_path: Path, clock: FakeClock
) -> None:
    async def story() -> None:
        async with bench(tmp_path, clock) as b:
            b.world.ends = [asyncio.CancelledError()]
            with pytest.raises(asyncio.CancelledError):
                await b.perform(b.intent(), fence=b.hold())
            clock.forward(seconds=moved_s)
            effect = await b.perform(b.intent(), fence=b.hold("slot-0.b"))
            assert (effect.state, b.world.looks, len(b.world.keys)) == (EffectState.DONE, 1, 1)
            b.world.ends = [asyncio.CancelledError()]
            with pytest.raises(asyncio.CancelledError):
                await b.perform(b.intent(call="call-2"), fence=b.hold())
            clock.forward(seconds=moved_s)
            effect = await b.perform(b.intent(call="call-2"), fence=b.hold("slot-0.b"), can_look=False)
            assert (effect.state, len(b.world.keys)) == (EffectState.UNKNOWN, 2)

    asyncio.run(story())


def test_an_unknown_effect_stays_so_until_a_look_or_a_person_settles_it(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends, b.world.seen = [Unclear(detail="no answer")], [Unclear(detail="view is down")] * 2
        intent = b.intent(Recovery.PROBEABLE)
        effect = await b.perform(intent, fence=b.hold())
        assert (effect.state, effect.detail) == (EffectState.UNKNOWN, "view is down")
        assert (await b.perform(intent, fence=b.hold())).state is EffectState.UNKNOWN
        effect = await b.perform(intent, fence=b.hold())
        assert (effect.state, effect.settled_by, len(b.world.keys)) == (EffectState.DONE, "probe", 1)

        b.world.ends = [Unclear(detail="no answer")]
        blind = await b.perform(b.intent(Recovery.BLIND, call="call-2"), fence=b.hold())
        with b.database.writing() as connection, pytest.raises(UsageError, match="a person and a reason"):
            b.ledger.settle(connection, blind.key, by="bob", verdict="done", reason=" ")
        with b.database.writing() as connection:
            settled = b.ledger.settle(connection, blind.key, by="bob", verdict="reverted", reason="seen, undone")
        assert (settled.state, settled.settled_by) == (EffectState.REVERTED, "bob")
        assert b.entry(b.intent(call="call-2")) == settled
        for key, error in ((blind.key, RefusedError), ("none", UsageError)):
            with b.database.writing() as connection, pytest.raises(error):
                b.ledger.settle(connection, key, by="bob", verdict="done", reason="no")
        again = await b.perform(b.intent(Recovery.BLIND, call="call-2"), fence=b.hold())
        assert (again.state, len(b.world.keys)) == (EffectState.REVERTED, 2)

    told(story)


def test_a_large_result_is_kept_as_digest_and_size(told: Tell) -> None:
    async def story(b: Bench) -> None:
        b.world.ends = [Happened(result="x" * 1_000_000)]
        effect = await b.perform(b.intent(), fence=b.hold())
        assert (effect.result, effect.result_bytes, effect.is_whole) == ("", 1_000_000, False)
        assert len(effect.result_digest) == 64
        b.world.ends = [Happened(result="a\x00b")]
        odd = await b.perform(b.intent(call="call-2"), fence=b.hold())
        assert (odd.state, odd.result) == (EffectState.DONE, "a\ufffdb")

    told(story)


def test_the_facts_count_what_may_have_been_touched_and_what_is_in_flight(told: Tell) -> None:
    async def story(b: Bench) -> None:
        fence = b.hold()

        async def one(call: str, *, name: str, end: object = None, units: int = 2) -> Effect:
            intent = b.intent(Recovery.BLIND, call=call)
            resource = replace(intent.call.resource, name=name, units=units)
            b.world.ends = [end] if end is not None else []  # type: ignore[list-item]
            return await b.perform(replace(intent, call=replace(intent.call, resource=resource)), fence=fence)

        await one("a-long-ago", name="old")
        b.clock.forward(seconds=2 * HOUR_S)
        await one("b", name="cart")
        await one("c", name="cart", end=NotHappened(detail="no"))
        await one("d", name="mail", end=Unclear(detail="lost"))
        b.joints.refuse_at = "start"
        await one("e", name="paid")
        b.joints.refuse_at = ""
        b.world.hang = asyncio.Event()
        b.world.reached.clear()
        flying = asyncio.create_task(one("f", name="flying"))
        await b.world.reached.wait()

        def facts(name: str, *, call: str = "new") -> tuple[int, ...]:
            mine = replace(b.intent(call=call).call, resource=replace(b.intent().call.resource, name=name, units=5))
            with b.database.reading() as connection:
                since = b.clock() - timedelta(hours=1)

                def past(workflow: str, tenant: str) -> EffectFacts:
                    return b.ledger.facts(connection, call=mine, workflow_digest=workflow, tenant=tenant, since=since)

                got = past("w1", "local")
                for others in (past("w2", "local"), past("w1", "acme")):
                    assert (others.calls, others.failures, others.in_flight) == (0, 0, 0)
            return (got.calls, got.resources, got.units, got.failures, got.in_flight)

        assert facts("cart") == (4, 3, 3 * 2 + 5, 2, 1)
        assert facts("other") == (4, 4, 3 * 2 + 5, 2, 1)
        assert facts("flying", call="f") == (3, 3, 2 * 2 + 5, 2, 0), "a call does not count itself twice"
        b.clock.forward(seconds=2 * HOUR_S)
        assert facts("other") == (1, 2, 2 + 5, 0, 1), "in flight counts, however old"
        b.world.hang.set()
        await flying

    told(story)
