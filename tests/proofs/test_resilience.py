"""The proofs of resilience hold, and each of them notices when what it proves is broken."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import pytest
from proofs._virtual_time import run_virtually

from proofs import resilience as proof
from quell.domain import PadOwner, ResilienceLimits
from quell.tools import Resilience, Scratchpad, _scratchpad_files
from quell.tools._retry import RetryBudget

SEED = 20_261_120


def weather(**changed: object) -> proof.Weather:
    told: dict[str, object] = {
        "seed": SEED, "calls_per_s": 20, "failing_share": 0.9, "failure_s": 0.05, "layers": 1, "names": "different",
    }  # fmt: skip
    return proof.Weather(**(told | changed))  # type: ignore[arg-type]  # a table of fields


def test_a_failing_dependency_is_not_hurt_more_and_used_again() -> None:
    result = proof.try_failing_dependency("ci", SEED)
    assert (result.violations, result.cases) == (0, 9), result.failures
    assert "three layers of three retries" in result.note
    assert "never forgets" in result.note


def test_three_layers_of_three_retries_are_caught() -> None:
    seen = proof.brownout(weather(layers=3), made=lambda _: proof.ThreeLayers())
    assert seen.load() > 7


def test_a_caller_that_only_retries_three_times_is_caught() -> None:
    seen = proof.brownout(weather(), made=lambda _: proof.ThreeLayers())
    assert seen.load() > proof.LOAD_MAX


class Generous(RetryBudget):
    """A budget that always has one more."""

    def left(self, *, at_s: float) -> int:
        assert at_s > 0
        return 1


def test_callers_that_do_not_forget_the_failure_are_caught() -> None:
    assert proof.brownout(weather(), made=proof.grudging).throughput() < 0.9
    without_breaker = proof.brownout(weather(), made=lambda chance: proof.grudging(chance, kind=Resilience))
    assert without_breaker.throughput() >= proof.THROUGHPUT_LEAST


def test_a_budget_that_is_never_spent_is_caught() -> None:
    class Spendthrift(Resilience):
        budget_class = Generous

    def made(chance: random.Random, *, kind: type[Resilience]) -> Resilience:
        # Neither breaker nor throttling, so that the budget stands alone.
        limits = ResilienceLimits(concurrent_max=2_000, queue_max=1_000, calls_min=10**9)
        return kind(limits=limits, entropy=chance.randbytes, monotonic=asyncio.get_running_loop().time)

    assert proof.brownout(weather(), made=lambda chance: made(chance, kind=Spendthrift)).load() > 2
    assert proof.brownout(weather(), made=lambda chance: made(chance, kind=Resilience)).load() <= proof.LOAD_MAX


def test_nothing_escapes_from_the_scratchpad() -> None:
    result = proof.try_scratchpad_escapes("ci", SEED)
    assert (result.violations, result.is_exhaustive) == (0, True), result.failures
    assert result.cases > 500


@contextmanager
def changed(name: str, value: object) -> Iterator[None]:
    kept = getattr(_scratchpad_files, name)
    setattr(_scratchpad_files, name, value)
    try:
        yield
    finally:
        setattr(_scratchpad_files, name, kept)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("_OPEN_FILE", os.O_RDONLY | os.O_NONBLOCK, "link to a file"),
        ("_OPEN_DIRECTORY", os.O_RDONLY, "directory that is a link"),
        ("_judge_file", lambda _descriptor: None, "hard link"),
        ("_judge_directory", lambda _descriptor, **_: None, "open to others"),
        ("_directory_name", lambda _owner: f"own_{'0' * 40}", "PadOwner"),
        ("_directory_name", lambda owner: f"own_{sha256((owner.tenant + owner.session).encode('utf-8', 'replace')).hexdigest()[:40]}", "PadOwner"),
        ("is_handle", lambda text: text.removesuffix("\n").startswith("pad_"), "pad_"),
    ],
)  # fmt: skip
def test_a_scratchpad_that_leaves_out_one_check_is_caught(name: str, value: object, words: str) -> None:
    with changed(name, value):
        result = proof.try_scratchpad_escapes("ci", SEED)
    assert result.violations > 0
    assert any(words in failure for failure in result.failures), result.failures


def test_a_scratchpad_that_serves_everybody_is_caught() -> None:
    class Shared(Scratchpad):
        async def put(self, owner: PadOwner, content: str | bytes) -> object:  # type: ignore[override]  # broken on purpose
            for other in proof.OTHERS:
                await super().put(other, content)
            return await super().put(owner, content)

    assert proof.try_scratchpad_escapes("ci", SEED, kind=Shared).violations >= len(proof.OTHERS)


def test_virtual_time_runs_timers_in_their_order_and_passes_without_waiting() -> None:
    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for delay in (3_600, 5, 60):
            loop.call_later(delay, seen.append, delay)
        cancelled = loop.call_later(10_000, seen.append, 10_000)
        cancelled.cancel()
        began_s = loop.time()
        await asyncio.sleep(86_400)
        assert loop.time() - began_s == pytest.approx(86_400)
        return seen

    assert run_virtually(story()) == [5, 60, 3_600]
