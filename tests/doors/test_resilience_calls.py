"""One call: its attempts, its deadline, and what the typed outcome says about the dependency."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from proofs._virtual_time import run_virtually

from quell.domain import OutcomeKind, OverloadError, ResilienceLimits, SourceError, ToolOutcome
from quell.tools import Resilience

FAILURES = {OutcomeKind.TRANSPORT_ERROR, OutcomeKind.TIMEOUT}


def outcome(kind: OutcomeKind) -> ToolOutcome:
    return ToolOutcome(call="c", tool="t", kind=kind)


def resilience(limits: ResilienceLimits | None = None) -> Resilience:
    loop = asyncio.get_running_loop()
    return Resilience(limits=limits, entropy=random.Random(4).randbytes, monotonic=loop.time)


class Dependency:
    """Answers what it is told to, and counts."""

    def __init__(self, *kinds: OutcomeKind, takes_s: float = 0.0) -> None:
        self._kinds = list(kinds)
        self._takes_s = takes_s
        self.calls = 0

    async def __call__(self) -> ToolOutcome:
        self.calls += 1
        await asyncio.sleep(self._takes_s)
        return outcome(self._kinds.pop(0) if len(self._kinds) > 1 else self._kinds[0])


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_a_read_is_tried_again_only_when_it_failed_on_its_way(kind: OutcomeKind) -> None:
    async def story() -> None:
        dependency = Dependency(kind)
        told = await resilience().call("d", dependency, deadline_s=60, retryable="read")
        assert (told.kind, told.attempts, dependency.calls) == (kind, *(2 * (3 if kind in FAILURES else 1,)))

    run_virtually(story())


def test_an_effect_is_never_sent_twice() -> None:
    async def story() -> None:
        dependency = Dependency(OutcomeKind.TRANSPORT_ERROR)
        told = await resilience().call("d", dependency, deadline_s=60, retryable="effect")
        assert (told.attempts, dependency.calls) == (1, 1)

    run_virtually(story())


def test_a_read_that_works_the_second_time_says_that_it_took_two() -> None:
    async def story() -> None:
        told = await resilience().call(
            "d", Dependency(OutcomeKind.TRANSPORT_ERROR, OutcomeKind.OK), deadline_s=60, retryable="read"
        )
        assert (told.kind, told.attempts) == (OutcomeKind.OK, 2)

    run_virtually(story())


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "a", "a")])
def test_three_layers_that_would_all_retry_try_three_times_in_all(names: tuple[str, ...]) -> None:
    async def story() -> None:
        calls = resilience()
        dependency = Dependency(OutcomeKind.TRANSPORT_ERROR)
        work: Callable[[], Awaitable[ToolOutcome]] = dependency
        for name in names:
            work = _layer(calls, name, work)
        await work()
        assert dependency.calls == 3

    run_virtually(story())


def _layer(
    calls: Resilience, name: str, inner: Callable[[], Awaitable[ToolOutcome]]
) -> Callable[[], Awaitable[ToolOutcome]]:
    return lambda: calls.call(name, inner, deadline_s=60, retryable="read")


def test_a_call_ends_with_its_deadline_and_says_that_it_may_have_happened() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        told = await resilience().call(
            "d", Dependency(OutcomeKind.OK, takes_s=90), deadline_s=30, retryable="effect", call="c1", tool="restart"
        )
        assert loop.time() - began_s == pytest.approx(30)
        assert (told.kind, told.call, told.tool, told.attempts) == (OutcomeKind.TIMEOUT, "c1", "restart", 1)
        assert "may have been carried out" in told.detail

    run_virtually(story())


@pytest.mark.parametrize("inner_s", [1.0, 500.0])
def test_a_nested_call_never_outlives_its_parent(inner_s: float) -> None:
    async def story() -> None:
        calls = resilience()
        seen: list[ToolOutcome] = []
        ended: list[float] = []
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def outer() -> ToolOutcome:
            left = calls.remaining_s()
            assert left is not None
            assert left == pytest.approx(20)
            try:
                seen.append(await calls.call("b", hang, deadline_s=inner_s, retryable="read"))
            finally:
                ended.append(loop.time() - began_s)
            return outcome(OutcomeKind.OK)

        hang = Dependency(OutcomeKind.OK, takes_s=1_000)
        await calls.call("a", outer, deadline_s=20, retryable="read")
        assert ended == [pytest.approx(min(inner_s, 20))]
        assert hang.calls == 1

    run_virtually(story())


def test_with_no_time_left_nothing_is_sent() -> None:
    async def story() -> None:
        calls = resilience()
        dependency = Dependency(OutcomeKind.OK)
        with calls.within(5):
            await asyncio.sleep(6)
            assert calls.remaining_s() == 0
            told = await calls.call("d", dependency, deadline_s=60, retryable="read")
        assert (told.kind, told.attempts, dependency.calls) == (OutcomeKind.TIMEOUT, 0, 0)
        assert "nothing was sent" in told.detail
        assert calls.remaining_s() is None

    run_virtually(story())


def test_a_task_that_outlives_the_call_which_started_it_is_not_nested_in_it_any_more() -> None:
    async def story() -> None:
        calls = resilience()
        dependency = Dependency(OutcomeKind.TRANSPORT_ERROR)
        left: list[asyncio.Task[ToolOutcome]] = []

        async def later() -> ToolOutcome:
            await asyncio.sleep(100)
            return await calls.call("d", dependency, deadline_s=60, retryable="read")

        async def starts_it() -> ToolOutcome:
            left.append(asyncio.create_task(later()))
            return outcome(OutcomeKind.OK)

        await calls.call("d", starts_it, deadline_s=5, retryable="read")
        assert (await left[0]).attempts == 3

    run_virtually(story())


def test_a_pause_that_would_pass_the_deadline_is_not_begun() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        calls = Resilience(entropy=lambda size: b"\xff" * size, monotonic=loop.time)
        began_s = loop.time()
        told = await calls.call("d", Dependency(OutcomeKind.TRANSPORT_ERROR), deadline_s=0.15, retryable="read")
        assert (told.kind, told.attempts) == (OutcomeKind.TRANSPORT_ERROR, 2)  # pauses of 0.1 s, then 0.2 s
        assert loop.time() - began_s < 0.15

    run_virtually(story())


@pytest.mark.parametrize(
    ("error", "counts"),
    [(SourceError("down"), True), (ConnectionResetError(), True), (TimeoutError(), True), (KeyError(), False)],
)
def test_an_exception_passes_through_and_counts_when_it_is_the_worlds(error: Exception, counts: bool) -> None:
    async def story() -> None:
        calls = resilience()

        async def work() -> ToolOutcome:
            raise error

        for _ in range(10):
            with pytest.raises(type(error)):
                await calls.call("d", work, deadline_s=60, retryable="read")
        assert calls.health()[0].breaker == ("open" if counts else "closed")

    run_virtually(story())


def test_what_a_tool_refuses_or_lacks_never_opens_the_breaker() -> None:
    async def story() -> None:
        calls = resilience()
        for kind in set(OutcomeKind) - FAILURES:
            for _ in range(20):
                await calls.call("d", Dependency(kind), deadline_s=60, retryable="read")
        assert calls.health()[0].breaker == "closed"
        assert calls.health()[0].shed_share == 0

    run_virtually(story())


def test_a_shed_retry_gives_the_outcome_of_the_try_before_it() -> None:
    async def story() -> None:
        calls = resilience(ResilienceLimits(calls_min=2))
        await calls.call("d", Dependency(OutcomeKind.TRANSPORT_ERROR), deadline_s=60, retryable="effect")
        told = await calls.call("d", Dependency(OutcomeKind.TRANSPORT_ERROR), deadline_s=60, retryable="read")
        assert (told.kind, told.attempts) == (OutcomeKind.TRANSPORT_ERROR, 1)
        with pytest.raises(OverloadError):
            await calls.call("d", Dependency(OutcomeKind.OK), deadline_s=60, retryable="read")

    run_virtually(story())


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts_max": 4}, {"attempts_max": 0}, {"window_s": 0}, {"open_max_s": 1}, {"retry_share": 2.0},
        {"shed_max": 1.0}, {"concurrent_max": 0}, {"queue_max": -1},
    ],
)  # fmt: skip
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"max|zero|shares"):
        ResilienceLimits(**wrong)
