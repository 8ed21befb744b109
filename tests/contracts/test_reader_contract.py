"""The contract of every reader, kept by the ClickHouse reader on rollups and on raw tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from quell.domain import Answer, Gap, Question, QuestionKind
from quell.signals import ClickHouseReader
from tests.contracts.reader_contract import ReaderContract
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import WINDOW_S, World, build

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", params=["rollups", "raw"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveStore, World]]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        world = build(
            # Long enough ago that nothing is still under way: what is, an answer may count or not.
            live.now() - timedelta(seconds=WINDOW_S + 20),
            twist=lambda _w, _at, rng: {"error": "\x1b[31mboom\u202e\n`rm`"} if rng.random() < 0.5 else {},
            per_second=2,
        )
        if request.param == "raw":
            live.without_rollups()
        live.run(world.insert(live.client))
        yield live, world


class TestClickHouseKeepsTheContract(ReaderContract):
    reader_name = "clickhouse"

    @pytest.fixture(autouse=True)
    def _shop(self, shop: tuple[LiveStore, World]) -> None:
        self.live, self.world = shop

    def ask(self, question: Question, *, timeout_s: float = 10.0) -> Answer | Gap:
        return self.live.run(ClickHouseReader(self.live.client).ask(question, timeout_s=timeout_s))

    def question(self, kind: QuestionKind) -> Question:
        return Question(kind=kind, window=self.world.window, baseline=self.world.baseline)
