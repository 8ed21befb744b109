"""Trouble between baseline and window belongs to an earlier incident: it is no onset, and no past either."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from quell.domain import Answer, EdgeShift, MetricShift, OperationShift, Question, QuestionKind, Scope, Window
from quell.signals import ClickHouseReader
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import World

pytestmark = pytest.mark.timeout(60)
SLACK_S = 5.0
EARLIER_S = (-190, -60)
"""The trouble before, in seconds from the onset: far worse than what is asked about."""


@pytest.fixture(scope="module", params=["rollups", "raw"])
def till(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveStore, World]]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        world = World(fault_at=live.now() - timedelta(seconds=50))
        _sales(world, random.Random(7))
        if request.param == "raw":
            live.without_rollups()
        live.run(world.insert(live.client))
        yield live, world


def _sales(world: World, rng: random.Random) -> None:
    for number in range(-400 * 2, 40 * 2):
        passed = number / 2
        at = world.fault_at + timedelta(seconds=passed)
        earlier = EARLIER_S[0] <= passed < EARLIER_S[1]
        share = 0.9 if earlier else 0.2 if passed >= 0 else 0.0
        error = "boom" if rng.random() < share else ""
        ids = (f"{number + 5000:032x}", f"{number + 5000:016x}")
        world.span(at, service="till", name="POST /sale", kind="Server", ms=20, ids=(*ids, ""), error=error)
        world.span(
            at,
            service="till",
            name="POST bank",
            kind="Client",
            ms=8,
            ids=(ids[0], f"{number + 9000:016x}", ids[1]),
            error=error,
            attributes={"server.address": "bank.example"},
        )
        if number % 10 == 0:
            level = 900.0 if earlier else 60.0 if passed >= 0 else 10.0
            world.metric(at, service="till", name="queue.depth", value=level + rng.random())


def _ask(till: tuple[LiveStore, World], kind: QuestionKind) -> Answer:
    live, world = till
    window = Window(start=world.fault_at - timedelta(seconds=30), end=world.fault_at + timedelta(seconds=40))
    baseline = Window(start=world.fault_at - timedelta(seconds=360), end=world.fault_at - timedelta(seconds=200))
    question = Question(kind=kind, window=window, baseline=baseline, scope=Scope())
    said = live.run(ClickHouseReader(live.client).ask(question, timeout_s=20))
    assert isinstance(said, Answer), said
    return said


def _is_near(since: datetime | None, world: World) -> bool:
    return since is not None and abs((since - world.fault_at).total_seconds()) <= SLACK_S


def test_the_onset_is_that_of_the_trouble_in_the_window(till: tuple[LiveStore, World]) -> None:
    rows = [r for r in _ask(till, QuestionKind.ERROR_RATES).rows if isinstance(r, OperationShift)]
    row = next(r for r in rows if r.operation == "POST /sale")
    assert _is_near(row.since, till[1]), row
    assert row.errors_before == 0
    assert row.errors_since == pytest.approx(row.errors, abs=2)


def test_the_onset_of_an_edge_too(till: tuple[LiveStore, World]) -> None:
    rows = [r for r in _ask(till, QuestionKind.EDGE_GAPS).rows if isinstance(r, EdgeShift)]
    row = next(r for r in rows if r.callee == "bank.example")
    assert _is_near(row.since, till[1]), row
    assert row.errors_before == 0
    assert row.failed_since == pytest.approx(row.errors, abs=2)


def test_the_onset_of_a_series_too(till: tuple[LiveStore, World]) -> None:
    rows = [r for r in _ask(till, QuestionKind.METRIC_SHIFTS).rows if isinstance(r, MetricShift)]
    row = next(r for r in rows if r.metric == "queue.depth")
    assert row.before == pytest.approx(10, abs=2)
    assert row.after == pytest.approx(60, abs=5)
    assert _is_near(row.since, till[1]), row
