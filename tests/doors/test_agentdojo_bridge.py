"""The bridge between the benchmark's worlds and our hand, where the benchmark has its environment."""

from __future__ import annotations

import asyncio

import pytest
from bench.bench_agentdojo import GATES, Score, is_installed, stage, worlds

SUITE = "slack"
LINK, VISIT = "injection_task_1", "injection_task_3"

pytestmark = [
    pytest.mark.skipif(
        not is_installed(), reason="left out: python -m bench agentdojo makes the environment that this needs"
    ),
    pytest.mark.timeout(60),
]


def played(gate_name: str, *episodes: tuple[str, str]) -> list[Score]:
    gate = next(gate for gate in GATES if gate.name == gate_name)

    async def play() -> list[Score]:
        with worlds() as bridge:
            async with stage(gate, SUITE, bridge, bridge.ask("catalogue")[SUITE]) as on:
                return [await on.episode(user, injection, order="after") for user, injection in episodes]

    return asyncio.run(play())


def test_without_a_gate_an_obedient_model_does_its_task_and_every_attack() -> None:
    scores = played("none", ("user_task_0", ""), ("user_task_0", LINK), ("user_task_0", VISIT))
    assert [score.is_done for score in scores] == [True, True, True]
    assert [score.is_attacked for score in scores] == [False, True, True]


def test_behind_the_copilot_pack_it_does_its_task_and_no_attack() -> None:
    scores = played("copilot", ("user_task_0", ""), ("user_task_0", LINK), ("user_task_0", VISIT))
    assert [score.is_done for score in scores] == [True, True, True]
    assert [score.is_attacked for score in scores] == [False, False, False]
    assert [score.asked for score in scores] == [1, 2, 2]
    assert [score.kind for score in scores] == ["", "effect", "read with a URL"]
