"""A ClickHouse of somebody else: three generations of table definitions, missing tables, attributes as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from quell.domain import Answer, Gap, ObservedChange, PatternShift, Question, QuestionKind
from quell.signals import ClickHouseReader
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import WINDOW_S, World, build

pytestmark = pytest.mark.timeout(60)

_COLUMNS = """Timestamp DateTime64(9), TraceId String, SpanId String, TraceFlags UInt8, SeverityText LowCardinality(String),
SeverityNumber UInt8, ServiceName LowCardinality(String), Body String, ResourceSchemaUrl LowCardinality(String),
ResourceAttributes Map(LowCardinality(String), String), ScopeSchemaUrl LowCardinality(String), ScopeName String,
ScopeVersion LowCardinality(String), ScopeAttributes Map(LowCardinality(String), String),
LogAttributes Map(LowCardinality(String), String)"""
GENERATIONS = {
    "a": (f"{_COLUMNS}, TimestampTime DateTime DEFAULT toDateTime(Timestamp)", "ServiceName, TimestampTime, Timestamp"),
    "b": (
        f"{_COLUMNS}, TimestampTime DateTime DEFAULT toDateTime(Timestamp), EventName String",
        "ServiceName, TimestampTime, Timestamp",
    ),
    "c": (f"{_COLUMNS}, EventName String", "toStartOfFiveMinutes(Timestamp), ServiceName, Timestamp"),
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStore]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        live.without_rollups()
        yield live


def _remake_logs(live: LiveStore, columns: str, order: str) -> None:
    async def remake() -> None:
        await live.client.command("DROP TABLE IF EXISTS otel_logs SYNC", timeout_s=10)
        await live.client.command(
            f"CREATE TABLE otel_logs ({columns}) ENGINE = MergeTree ORDER BY ({order})", timeout_s=10
        )
        await live.client.command("TRUNCATE TABLE otel_traces", timeout_s=10)
        await live.client.load_schema(timeout_s=10)

    live.run(remake())


def _world(live: LiveStore) -> World:
    world = build(
        live.now() - timedelta(seconds=WINDOW_S),
        twist=lambda _w, _at, rng: {"error": "boom"} if rng.random() < 0.5 else {},
        per_second=1,
    )
    event = {
        "event.name": "config.changed",
        "config.key": "pool.size",
        "config.value": "2",
        "config.value.previous": "9",
    }
    world.log(world.fault_at, service="stock", body="configured", attributes=event)
    return world


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_every_question_on_logs_is_answered_for_each_generation_of_the_table(
    foreign: LiveStore, generation: str
) -> None:
    _remake_logs(foreign, *GENERATIONS[generation])
    assert foreign.client.schema["otel_logs"].generation == generation
    world = _world(foreign)
    if generation == "a":
        for row in world.rows["otel_logs"]:
            del row["EventName"]
    foreign.run(world.insert(foreign.client))
    reader = ClickHouseReader(foreign.client)
    said = {
        kind: foreign.run(reader.ask(Question(kind=kind, window=world.window, baseline=world.baseline), timeout_s=20))
        for kind in QuestionKind
        if kind is not QuestionKind.METRIC_SHIFTS
    }
    assert all(isinstance(answer, Answer) for answer in said.values()), said
    patterns = said[QuestionKind.NEW_PATTERNS]
    changes = said[QuestionKind.CHANGES]
    assert isinstance(patterns, Answer)
    assert isinstance(changes, Answer)
    assert [row.template for row in patterns.rows if isinstance(row, PatternShift)] == [
        "no stock level for item <*>: boom"
    ]
    assert [(row.subject, row.before, row.after) for row in changes.rows if isinstance(row, ObservedChange)] == [
        ("pool.size", "9", "2")
    ]
    assert changes.partial


def test_what_a_store_does_not_keep_is_unsupported_and_the_rest_still_answers(foreign: LiveStore) -> None:
    _remake_logs(foreign, *GENERATIONS["b"])
    world = _world(foreign)
    foreign.run(world.insert(foreign.client, tables=("otel_traces",)))

    async def lose() -> None:
        await foreign.client.command("DROP TABLE otel_logs SYNC", timeout_s=10)
        await foreign.client.load_schema(timeout_s=10)

    foreign.run(lose())
    reader = ClickHouseReader(foreign.client)
    assert [line for line in foreign.run(reader.check()) if "otel_logs" in line]
    patterns, rates, diff = (
        foreign.run(reader.ask(Question(kind=kind, window=world.window, baseline=world.baseline), timeout_s=20))
        for kind in (QuestionKind.NEW_PATTERNS, QuestionKind.ERROR_RATES, QuestionKind.ATTRIBUTE_DIFF)
    )
    assert isinstance(patterns, Gap)
    assert patterns.reason == "unsupported"
    assert isinstance(rates, Answer)
    assert isinstance(diff, Answer)
    assert "otel_logs" in diff.partial


def test_attributes_kept_as_json_are_named_as_what_cannot_be_read(foreign: LiveStore) -> None:
    columns = GENERATIONS["b"][0].replace("LogAttributes Map(LowCardinality(String), String)", "LogAttributes JSON")
    columns = columns.replace("ResourceAttributes Map(LowCardinality(String), String)", "ResourceAttributes JSON")
    _remake_logs(foreign, columns, GENERATIONS["b"][1])
    world = _world(foreign)
    reader = ClickHouseReader(foreign.client)
    said = foreign.run(
        reader.ask(Question(kind=QuestionKind.NEW_PATTERNS, window=world.window, baseline=world.baseline), timeout_s=20)
    )
    assert isinstance(said, Gap)
    assert said.reason == "unsupported"
    assert "JSON" in said.detail
    assert [line for line in foreign.run(reader.check()) if "JSON" in line]
