"""Windows that begin before the fine buckets are answered from the coarse rollups."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from quell.domain import Answer, EdgeShift, OperationShift, PatternShift, Question, QuestionKind
from quell.signals import ClickHouseReader
from quell.signals._owner_upkeep import ROLL_EDGES
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import World, build

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveStore, World]]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        fault_at = live.now() - timedelta(minutes=104)
        world = build(
            fault_at - timedelta(seconds=fault_at.second),
            twist=lambda _w, _at, rng: {"error": "boom", "gap_ms": 90.0} if rng.random() < 0.5 else {},
            per_second=2,
        )
        live.run(world.insert(live.client))
        # What upkeep does every few seconds, for a stretch that it would have rolled long ago.
        live.run(live.client.command(ROLL_EDGES.replace("{back_s}", "15000"), timeout_s=20))
        yield live, world


def _ask(shop: tuple[LiveStore, World], kind: QuestionKind) -> Answer:
    live, world = shop
    question = Question(kind=kind, window=world.window, baseline=world.baseline)
    said = live.run(ClickHouseReader(live.client).ask(question, timeout_s=20))
    assert isinstance(said, Answer), said
    return said


def test_edges_operations_and_patterns_of_long_ago_come_from_minutes(shop: tuple[LiveStore, World]) -> None:
    edges = _ask(shop, QuestionKind.EDGE_GAPS)
    assert "quell_edges_1m" in edges.query
    wire = next(
        row for row in edges.rows if isinstance(row, EdgeShift) and (row.caller, row.callee) == ("front", "stock")
    )
    assert wire.error_types == ("boom",)
    assert wire.gap_ms is not None
    assert wire.gap_ms > 20
    assert wire.errors_before == 0
    assert wire.since is not None
    assert abs((wire.since - shop[1].fault_at).total_seconds()) <= 60
    rates = _ask(shop, QuestionKind.ERROR_RATES)
    assert "quell_red_1m" in rates.query
    assert ("front", "GET /item") in {
        (row.service, row.operation) for row in rates.rows if isinstance(row, OperationShift)
    }
    patterns = _ask(shop, QuestionKind.NEW_PATTERNS)
    assert "quell_patterns_1m" in patterns.query
    assert [row.template for row in patterns.rows if isinstance(row, PatternShift)] == [
        "no stock level for item <*>: boom"
    ]
