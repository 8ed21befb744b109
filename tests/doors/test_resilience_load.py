"""Many calls: retry budget, breaker, throttling, places and queues; and no place is ever lost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs._virtual_time import run_virtually

from quell.domain import OutcomeKind, OverloadError, Priority, ResilienceLimits, ToolOutcome
from quell.tools import Resilience

OK = ToolOutcome(call="c", tool="t", kind=OutcomeKind.OK)
FAILED = ToolOutcome(call="c", tool="t", kind=OutcomeKind.TRANSPORT_ERROR)


async def well() -> ToolOutcome:
    return OK


async def fails() -> ToolOutcome:
    return FAILED


def resilience(limits: ResilienceLimits | None = None) -> Resilience:
    return Resilience(limits=limits, entropy=random.Random(11).randbytes, monotonic=asyncio.get_running_loop().time)


async def until_open(calls: Resilience) -> None:
    for _ in range(10):
        await calls.call("d", fails, deadline_s=60, retryable="effect")
    assert calls.health()[0].breaker == "open"


@settings(max_examples=60, deadline=None)
@given(gaps_ms=st.lists(st.integers(0, 3_000), min_size=1, max_size=120))
def test_retries_stay_within_a_tenth_of_the_first_tries_plus_three(gaps_ms: list[int]) -> None:
    async def story() -> None:
        # Nothing else may hold calls back here: the budget alone has to.
        limits = ResilienceLimits(calls_min=100_000)
        calls = resilience(limits)
        loop = asyncio.get_running_loop()
        firsts: list[float] = []
        retries: list[float] = []

        async def ask() -> None:
            mine: list[float] = []

            async def work() -> ToolOutcome:
                (retries if mine else firsts).append(loop.time())
                mine.append(loop.time())
                return FAILED

            await calls.call("d", work, deadline_s=60, retryable="read")

        for gap_ms in gaps_ms:
            await asyncio.sleep(gap_ms / 1000)
            await ask()
        # A window of 9 s always lies within the ten slots of one second; firsts count up to 10 s back.
        for at in retries:
            within = sum(at - 8.99 < other <= at for other in retries)
            around = sum(at - 20 < other <= at for other in firsts)
            assert within <= around * limits.retry_share + limits.retries_min

    run_virtually(story())


def test_an_open_breaker_sends_nothing_and_says_when_to_ask_again() -> None:
    async def story() -> None:
        calls = resilience()
        await until_open(calls)
        for priority in ("critical", "normal", "background"):
            with pytest.raises(OverloadError, match="was not called") as shed:
                await calls.call("d", well, deadline_s=60, retryable="read", priority=priority)
            assert 0 < shed.value.retry_after_s <= 2
        assert (await calls.call("other", well, deadline_s=60, retryable="read")).kind is OutcomeKind.OK

    run_virtually(story())


def test_three_probes_that_succeed_close_the_breaker_and_it_forgets_the_past() -> None:
    async def story() -> None:
        calls = resilience()
        await until_open(calls)
        await asyncio.sleep(2)
        for expected in ("half_open", "half_open", "closed"):
            await calls.call("d", well, deadline_s=60, retryable="read")
            assert calls.health()[0].breaker == expected
        for _ in range(5):  # with the ten failures of before, these would open it again
            await calls.call("d", fails, deadline_s=60, retryable="effect")
        assert calls.health()[0].breaker == "closed"
        assert calls.health()[0].shed_share == 0

    run_virtually(story())


def test_a_probe_that_fails_opens_it_again_for_longer_but_never_for_more_than_ten_seconds() -> None:
    async def story() -> None:
        calls = Resilience(entropy=bytes, monotonic=asyncio.get_running_loop().time)  # no jitter: the longest pauses
        await until_open(calls)
        for pause_s in (2, 4, 8, 10, 10):
            with pytest.raises(OverloadError) as shed:
                await calls.call("d", well, deadline_s=60, retryable="read")
            assert shed.value.retry_after_s == pytest.approx(pause_s)
            await asyncio.sleep(pause_s)
            await calls.call("d", fails, deadline_s=60, retryable="effect")

    run_virtually(story())


def test_only_one_probe_is_under_way_and_a_cancelled_one_makes_room_for_the_next() -> None:
    async def story() -> None:
        calls = resilience()
        await until_open(calls)
        await asyncio.sleep(2)
        probe = asyncio.create_task(calls.call("d", lambda: asyncio.sleep(60, OK), deadline_s=90, retryable="read"))
        await asyncio.sleep(1)
        with pytest.raises(OverloadError):
            await calls.call("d", well, deadline_s=60, retryable="read")
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await calls.call("d", well, deadline_s=60, retryable="read")).kind is OutcomeKind.OK

    run_virtually(story())


def test_an_answer_to_a_call_of_before_says_nothing_about_a_probe() -> None:
    async def story() -> None:
        calls = resilience()
        slow = asyncio.create_task(
            calls.call("d", lambda: asyncio.sleep(2.5, FAILED), deadline_s=90, retryable="effect")
        )
        await asyncio.sleep(0)
        await until_open(calls)
        await asyncio.sleep(2)
        await calls.call("d", well, deadline_s=60, retryable="read")
        await slow
        assert calls.health()[0].breaker == "half_open"

    run_virtually(story())


def test_throttling_sheds_what_would_fail_but_nothing_critical_and_ends_with_a_row_of_successes() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(open_share=1.0))
        for number in range(60):
            work = well if number % 4 == 0 else fails
            await calls.call("d", work, deadline_s=60, retryable="effect", priority="critical")
        assert 0.3 < calls.health()[0].shed_share < 0.6
        shed = 0
        for _ in range(100):
            try:
                await calls.call("d", fails, deadline_s=60, retryable="effect")
            except OverloadError:
                shed += 1
        assert shed > 30
        for _ in range(5):
            await calls.call("d", well, deadline_s=60, retryable="read", priority="critical")
        assert calls.health()[0].shed_share == 0

    run_virtually(story())


def test_slow_is_not_failed() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=100))
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(calls.call("d", lambda: asyncio.sleep(50, OK), deadline_s=90, retryable="read"))
                await asyncio.sleep(0.05)
            assert calls.health()[0].shed_share == 0

    run_virtually(story())


def test_places_and_queue_are_bounded_and_the_important_ones_go_first() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1, queue_max=2))
        order: list[str] = []

        async def ask(name: str, priority: Priority) -> None:
            async def work() -> ToolOutcome:
                order.append(name)
                await asyncio.sleep(1)
                return OK

            try:
                await calls.call("d", work, deadline_s=60, retryable="read", priority=priority)
            except OverloadError:
                order.append(f"{name} shed")

        asks: list[tuple[str, Priority]] = [
            ("first", "normal"), ("upkeep", "background"), ("question", "normal"), ("more upkeep", "background"), ("revert", "critical"),
        ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for name, priority in asks:
                group.create_task(ask(name, priority))
                await asyncio.sleep(0.01)
        assert order == ["first", "more upkeep shed", "upkeep shed", "revert", "question"]
        assert (calls.health()[0].in_flight, calls.health()[0].waiting) == (0, 0)

    run_virtually(story())


def test_a_call_that_finds_no_place_before_its_deadline_is_shed_and_nothing_was_sent() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1))
        holder = asyncio.create_task(calls.call("d", lambda: asyncio.sleep(60, OK), deadline_s=90, retryable="read"))
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="no place"):
            await calls.call("d", well, deadline_s=5, retryable="read")
        assert (await holder).kind is OutcomeKind.OK

    run_virtually(story())


def test_a_call_that_gave_up_waiting_leaves_its_place_in_the_queue_to_others() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1, queue_max=1))
        holder = asyncio.create_task(calls.call("d", lambda: asyncio.sleep(60, OK), deadline_s=90, retryable="read"))
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="no place"):
            await calls.call("d", well, deadline_s=5, retryable="read")
        assert calls.health()[0].waiting == 0
        assert (await calls.call("d", well, deadline_s=90, retryable="read")).kind is OutcomeKind.OK
        await holder

    run_virtually(story())


def test_a_call_that_waits_while_the_breaker_opens_is_not_sent() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1, calls_min=1))
        holder = asyncio.create_task(
            calls.call("d", lambda: asyncio.sleep(5, FAILED), deadline_s=90, retryable="effect")
        )
        await asyncio.sleep(0)
        sent: list[bool] = []

        async def work() -> ToolOutcome:
            sent.append(True)
            return OK

        with pytest.raises(OverloadError, match="failed too often"):
            await calls.call("d", work, deadline_s=60, retryable="read")
        assert (await holder).kind is OutcomeKind.TRANSPORT_ERROR
        assert sent == []
        assert calls.health()[0].in_flight == 0

    run_virtually(story())


def test_a_call_inside_a_call_to_the_same_dependency_does_not_wait_for_itself() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1, queue_max=0))
        told = await calls.call(
            "d", lambda: calls.call("d", well, deadline_s=5, retryable="read"), deadline_s=5, retryable="read"
        )
        assert told.kind is OutcomeKind.OK

    run_virtually(story())


def test_many_calls_inside_one_call_to_the_same_dependency_take_turns() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(concurrent_max=1, queue_max=0))
        at_once = busiest = 0

        async def work() -> ToolOutcome:
            nonlocal at_once, busiest
            at_once += 1
            busiest = max(busiest, at_once)
            await asyncio.sleep(1)
            at_once -= 1
            return OK

        async def fan_out() -> ToolOutcome:
            await asyncio.gather(*(calls.call("d", work, deadline_s=60, retryable="read") for _ in range(5)))
            return OK

        assert (await calls.call("d", fan_out, deadline_s=60, retryable="read")).kind is OutcomeKind.OK
        assert busiest == 1

    run_virtually(story())


def test_idle_dependencies_are_forgotten_when_there_are_very_many() -> None:
    async def story() -> None:
        calls = resilience()
        for number in range(1_100):
            await calls.call(f"d{number}", well, deadline_s=5, retryable="read")
        assert len(calls.health()) == 1_024

    run_virtually(story())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_place_is_lost_however_calls_are_cancelled(seed: int) -> None:
    async def story() -> None:
        chance = random.Random(seed)
        limits = ResilienceLimits(concurrent_max=2, queue_max=3, calls_min=1_000)
        calls = resilience(limits)
        busiest = 0

        async def work() -> ToolOutcome:
            nonlocal busiest
            busiest = max(busiest, calls.health()[0].in_flight)
            await asyncio.sleep(chance.choice((0, 0, 1, 3)))
            return chance.choice((OK, FAILED))

        async def ask() -> None:
            await calls.call(
                "d",
                work,
                deadline_s=chance.choice((0.5, 2, 10)),
                retryable=chance.choice(("read", "effect")),
                priority=chance.choice(("critical", "normal", "background")),
            )

        tasks: list[asyncio.Task[None]] = []
        for _ in range(30):
            tasks.append(asyncio.create_task(ask()))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(chance.choice((0, 0, 0.5, 1)))
            if chance.random() < 0.5:
                chance.choice(tasks).cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, OverloadError | asyncio.CancelledError) for end in ends), ends
        health = calls.health()[0]
        assert (health.in_flight, health.waiting) == (0, 0)
        assert 0 < busiest <= limits.concurrent_max

    run_virtually(story())
