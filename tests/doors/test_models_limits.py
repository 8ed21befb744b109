"""Rate limits: set or learned, shared by all who ask the same model, kept in order, and waited for within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.config import LlmSettings, Secret
from quell.domain import ModelError, ModelEvent, ModelFault, ModelRequest, OverloadError, TokenUsage
from quell.models import ChainModel, Limits, ScriptedModel, ask, open_model
from quell.models._limits import LimitedModel, Limiter
from quell.models._scripted import says
from tests.doors._model_bench import HELLO, NOW, delta, end, plain, provider, sse, usage


@dataclass
class Hands:
    """A clock that waits move."""

    at_s: float = 100.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.at_s

    async def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.at_s += seconds
        await asyncio.sleep(0)


def _limiter(hands: Hands, requests: float | None = None, tokens: float | None = None, **more: object) -> Limiter:
    return Limiter(hands, requests, tokens, pause=hands.pause, **more)  # type: ignore[arg-type]


async def _admit(limiter: Limiter, count: int, *, tokens: int = 1) -> None:
    for _ in range(count):
        await limiter.admit(tokens, wait_s=60)


def test_so_many_requests_go_at_once_and_then_one_at_a_time() -> None:
    hands = Hands()
    asyncio.run(_admit(_limiter(hands, requests=6), 8))
    assert hands.waits == pytest.approx([10, 10])


def test_tokens_wait_for_tokens() -> None:
    hands = Hands()
    asyncio.run(_admit(_limiter(hands, tokens=6000), 3, tokens=3000))
    assert hands.waits == pytest.approx([30])


def test_a_request_larger_than_a_minute_goes_when_the_whole_minute_is_there() -> None:
    hands = Hands()
    limiter = _limiter(hands, tokens=1000)

    async def story() -> None:
        await limiter.admit(500, wait_s=60)
        await limiter.admit(9000, wait_s=60)

    asyncio.run(story())
    assert hands.waits == pytest.approx([30])


def test_without_limits_nobody_waits() -> None:
    hands = Hands()
    asyncio.run(_admit(_limiter(hands), 500, tokens=10**6))
    assert hands.waits == []


def test_who_would_wait_too_long_is_told_at_once_when_to_come_back() -> None:
    hands = Hands()
    limiter = _limiter(hands, requests=1)

    async def story() -> None:
        await limiter.admit(1, wait_s=60)
        await limiter.admit(1, wait_s=60)

    with pytest.raises(OverloadError) as caught:
        asyncio.run(story())
    assert caught.value.retry_after_s == pytest.approx(60)
    assert hands.waits == []


def test_the_queue_has_an_end() -> None:
    hands = Hands()
    limiter = _limiter(hands, requests=60, waiters_max=5)

    async def story() -> list[BaseException | None]:
        await _admit(limiter, 60)
        results = await asyncio.gather(*(limiter.admit(1, wait_s=60) for _ in range(9)), return_exceptions=True)
        return list(results)

    results = asyncio.run(story())
    assert sum(isinstance(each, OverloadError) for each in results) == 4
    assert limiter.waiting == 0


def test_first_come_first_served_whatever_they_ask_for() -> None:
    hands = Hands()
    limiter = _limiter(hands, tokens=600)
    order: list[int] = []

    async def one(number: int, tokens: int) -> None:
        await limiter.admit(tokens, wait_s=60)
        order.append(number)

    async def story() -> None:
        await limiter.admit(600, wait_s=60)
        await asyncio.gather(one(0, 200), one(1, 10), one(2, 10))

    asyncio.run(story())
    assert order == [0, 1, 2]


def test_who_gives_up_leaves_the_queue_to_the_others() -> None:
    limiter = Limiter(lambda: 0.0, requests_per_minute=2)

    async def story() -> None:
        await _admit(limiter, 2)
        waiting = [asyncio.create_task(limiter.admit(1, wait_s=60)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(story())
    assert limiter.waiting == 0
    assert not limiter._turn.locked()


@given(
    limit=st.integers(1, 50),
    gaps_s=st.lists(st.floats(0, 30), min_size=1, max_size=40),
)
def test_no_minute_sees_more_than_twice_the_limit_however_it_is_asked(limit: int, gaps_s: list[float]) -> None:
    """A full bucket and what fills it within the minute: that is the most that any minute sees."""
    hands = Hands()
    limiter = _limiter(hands, requests=limit, wait_max_s=1e9)
    went: list[float] = []

    async def story() -> None:
        for gap_s in gaps_s:
            hands.at_s += gap_s
            await limiter.admit(1, wait_s=1e9)
            went.append(hands.at_s)

    asyncio.run(story())
    for at_s in went:
        assert sum(at_s <= each < at_s + 60 for each in went) <= 2 * limit + 1


# -- learned --------------------------------------------------------------------------------------------------------------


def test_limits_are_learned_from_headers_and_the_settings_stand_above_them() -> None:
    hands = Hands()
    learned, said = _limiter(hands), _limiter(hands, requests=100)
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
    for limiter in (learned, said):
        limiter.hear(headers, now=NOW)
    assert learned.lacks_s(1) == pytest.approx(1.0)
    assert said.lacks_s(1) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("reset", "wait_s"),
    [("1s", 1.0), ("1m2s", 62.0), ("250ms", 0.25), ("12", 12.0), ("2026-11-20T12:00:09Z", 9.0), ("soon", 0.0)],
)
def test_the_end_of_a_wait_is_read_as_providers_write_it(reset: str, wait_s: float) -> None:
    limiter = _limiter(Hands())
    limiter.hear({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": reset}, now=NOW)
    assert limiter.lacks_s(1) == pytest.approx(wait_s)


@pytest.mark.parametrize("value", ["", "-5", "nan", "inf", "many", "1e999"])
def test_headers_that_say_nothing_change_nothing(value: str) -> None:
    limiter = _limiter(Hands())
    limiter.hear({"x-ratelimit-limit-requests": value, "x-ratelimit-remaining-requests": value}, now=NOW)
    assert limiter.lacks_s(10**9) == 0.0


def test_a_provider_that_says_stop_is_left_alone_by_everybody() -> None:
    busy = ModelError("slow down", fault=ModelFault.RATE_LIMITED, retry_after_s=20.0)
    hands = Hands()
    limiter = _limiter(hands)
    model = LimitedModel(ScriptedModel([[busy], says("hi")]), limiter)

    async def story() -> str:
        with pytest.raises(ModelError):
            await ask(model, HELLO, deadline_s=60)
        return (await ask(model, HELLO, deadline_s=60)).text

    assert asyncio.run(story()) == "hi"
    assert hands.waits == pytest.approx([20])


def test_what_an_answer_really_took_is_what_counts() -> None:
    hands = Hands()
    limiter = _limiter(hands, tokens=60_000)
    turn = says("hi", usage=TokenUsage(input_tokens=50_000, output_tokens=10_000))
    asyncio.run(_one(LimitedModel(ScriptedModel([turn]), limiter), HELLO))
    assert limiter.lacks_s(1) == pytest.approx(0.001, abs=0.01)
    assert limiter.lacks_s(30_000) == pytest.approx(30, abs=0.1)


def test_a_chain_goes_on_with_the_next_model_where_the_first_has_no_room_left() -> None:
    full = Limiter(lambda: 0.0, requests_per_minute=1)
    left: list[str] = []

    async def story() -> list[str]:
        first, second = ScriptedModel([says("a")], name="first"), ScriptedModel([says("b")], name="second")
        chain = ChainModel([LimitedModel(first, full), second], on_change=lambda model, _error: left.append(model.name))
        return [(await ask(chain, HELLO, deadline_s=5)).text for _ in range(2)]

    assert asyncio.run(story()) == ["a", "b"]
    assert left == ["first"]


async def _one(model: LimitedModel, request: ModelRequest) -> list[ModelEvent]:
    events: AsyncGenerator[ModelEvent, None] = model.stream(request, deadline_s=5)
    return [event async for event in events]


# -- shared ---------------------------------------------------------------------------------------------------------------


def test_all_who_ask_one_model_with_one_key_share_its_limits_and_nobody_else_does() -> None:
    settings = LlmSettings(provider="openai", model="m", api_key=Secret("key-one"), requests_per_minute=1)

    async def story() -> list[str]:
        told = []
        async with provider(sse(delta("hi"), end(), usage(5, 1))) as state:
            here, limits = replace(settings, base_url=state.url), Limits(lambda: 0.0)
            for each in (here, here, replace(here, api_key=Secret("key-two")), replace(here, model="n")):
                model = open_model(each, clock=lambda: NOW, env={}, limits=limits)
                try:
                    told.append((await ask(model, HELLO, deadline_s=5)).text)
                except OverloadError:
                    told.append("later")
                finally:
                    await model.close()
        return told

    assert asyncio.run(story()) == ["hi", "later", "hi", "hi"]


def test_headers_of_a_real_answer_reach_the_limiter_whether_it_is_one_or_a_refusal() -> None:
    headers = ("Content-Type: application/json", "x-ratelimit-limit-requests: 5", "x-ratelimit-remaining-requests: 0")

    async def story() -> OverloadError:
        async with provider(plain(503, {"error": "busy"}, headers=headers)) as state:
            settings = LlmSettings(provider="openai", model="m", api_key=Secret("k"), base_url=state.url)
            model = open_model(settings, clock=lambda: NOW, env={}, limits=Limits(lambda: 0.0))
            with pytest.raises(ModelError):
                await ask(model, HELLO, deadline_s=5)
            with pytest.raises(OverloadError) as caught:
                await ask(model, HELLO, deadline_s=5)
            await model.close()
            return caught.value

    assert asyncio.run(story()).retry_after_s == pytest.approx(12)
