"""The ClickHouse reader tells the truth about a made-up shop, on rollups and on a foreign database alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from quell.domain import (
    Answer,
    AttributeDiff,
    ChangeKind,
    EdgeShift,
    Exemplar,
    FlowBreak,
    Gap,
    MetricShift,
    ObservedChange,
    OperationShift,
    PatternShift,
    Question,
    QuestionKind,
    Scope,
    Window,
)
from quell.signals import ClickHouseReader
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import BASELINE_S, WINDOW_S, World, build

pytestmark = pytest.mark.timeout(60)
SLACK_S = 5.0


def _twist(_world: World, at: datetime, rng: object) -> dict[str, float | str]:
    share = rng.random()  # type: ignore[attr-defined] # a random.Random
    if share < 0.3:
        return {"error": "quota exceeded", "version": "2.0.0", "gap_ms": 80.0}
    return {"lost": "yes", "gap_ms": 80.0} if share < 0.5 else {"gap_ms": 80.0}


@pytest.fixture(scope="module", params=["rollups", "raw"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveStore, World]]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        world = build(live.now() - timedelta(seconds=WINDOW_S + 15), twist=_twist)
        _metrics(world)
        _queue(world)
        world.log(
            world.fault_at,
            service="stock",
            body="rollout done",
            event="deployment.finished",
            attributes={
                "service.version": "2.0.0",
                "service.version.previous": "1.0.0",
                "vcs.ref.head.revision": "abc1",
            },
        )
        world.log(
            world.fault_at - timedelta(seconds=90),
            service="platform",
            body="flag set",
            event="feature_flag.changed",
            attributes={"feature_flag.key": "fast-path", "feature_flag.result.variant": "on"},
        )
        if request.param == "raw":
            live.without_rollups()
        live.run(world.insert(live.client))
        yield live, world


def _metrics(world: World) -> None:
    for passed in range(0, BASELINE_S + WINDOW_S, 5):
        at = world.fault_at + timedelta(seconds=passed - BASELINE_S)
        since = max(0.0, (at - world.fault_at).total_seconds())
        # A restart in the middle of the baseline must not look like anything.
        instance = "i-1" if passed < 300 else "i-2"
        gauges = {
            "process.memory.usage": ("By", 50e6 + since * 2e6, {}),
            "process.memory.limit": ("By", 400e6, {}),
            "process.open_file_descriptor.count": ("{count}", 40.0 + passed % 3, {}),
            "db.client.connection.count": ("{connection}", 10.0 if since else 3.0, {"state": "used", "pool": "p"}),
            "db.client.connection.max": ("{connection}", 10.0, {"pool": "p"}),
        }
        for name, (unit, value, attributes) in gauges.items():
            world.metric(
                at, service="stock", name=name, unit=unit, value=value, attributes=attributes, instance=instance
            )
        served = (passed - (0 if instance == "i-1" else 300)) * 5.0
        world.metric(at, service="stock", name="served", value=served, table="otel_metrics_sum", instance=instance)
        world.metric(
            at, service="stock", name="retries", value=50.0 if since else 5.0, table="otel_metrics_sum", delta_s=5.0
        )  # fmt: skip
        waited = passed * 0.01 if not since else BASELINE_S * 0.01 + since * 0.4
        world.metric(
            at, service="stock", name="wait_time", unit="s", value=waited, count=passed,
            table="otel_metrics_histogram",
        )  # fmt: skip


def _queue(world: World) -> None:
    for passed in range(0, BASELINE_S + WINDOW_S, 2):
        at = world.fault_at + timedelta(seconds=passed - BASELINE_S)
        ids = (f"{passed:032x}", f"{passed:016x}")
        world.span(
            at, service="front", name="send jobs", kind="Producer", ms=2, ids=(*ids, ""),
            attributes={"messaging.system": "kafka", "messaging.destination.name": "jobs"},
        )  # fmt: skip
        world.span(
            at + timedelta(seconds=1), service="worker", name="take jobs", kind="Consumer", ms=20,
            ids=(ids[0], f"{passed + 7_000_000:016x}", ids[1]), attributes={"messaging.system": "kafka"},
        )  # fmt: skip


def _ask(
    shop: tuple[LiveStore, World], kind: QuestionKind, *, scope: tuple[str, ...] = (), window: Window | None = None
) -> Answer:
    live, world = shop
    baseline = world.baseline if window is None else window.before(length=timedelta(seconds=200))
    question = Question(kind=kind, window=window or world.window, baseline=baseline, scope=Scope(services=scope))
    said = live.run(ClickHouseReader(live.client).ask(question, timeout_s=20))
    assert isinstance(said, Answer), said
    return said


def _near(since: datetime | None, world: World) -> bool:
    return since is not None and abs((since - world.fault_at).total_seconds()) <= SLACK_S


def test_error_rates_name_what_fails_and_since_when(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.ERROR_RATES).rows if isinstance(row, OperationShift)]
    shown = {(row.service, row.operation): row for row in rows}
    row = shown["front", "GET /item"]
    assert row.errors_before == 0
    assert 0.15 < row.errors / row.calls < 0.35
    assert _near(row.since, shop[1])
    assert ("stock", "SELECT items") not in shown


def test_an_operation_that_moved_tells_the_calls_of_its_whole_service(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.ERROR_RATES).rows if isinstance(row, OperationShift)]
    totals = {(row.service, row.service_calls, row.service_calls_before) for row in rows}
    assert len(totals) == len({row.service for row in rows}), "one total per service"
    row = next(row for row in rows if (row.service, row.operation) == ("front", "GET /item"))
    assert row.service_calls is not None
    assert row.service_calls_before is not None
    assert row.service_calls >= row.calls
    assert row.service_calls_before >= row.calls_before
    sent = next(row for row in rows if row.span_kind == "client")
    assert sent.service_calls == row.service_calls, "calls that it makes are none that it takes"


def test_failures_of_the_last_moments_of_a_long_window_are_not_diluted(shop: tuple[LiveStore, World]) -> None:
    world = shop[1]
    begin, end = world.fault_at - timedelta(seconds=200), world.fault_at + timedelta(seconds=20)
    late = Window(start=begin, end=end)
    rows = [r for r in _ask(shop, QuestionKind.ERROR_RATES, window=late).rows if isinstance(r, OperationShift)]
    row = next(r for r in rows if (r.service, r.operation) == ("front", "GET /item"))
    assert row.calls_since is not None
    assert row.errors_since is not None
    assert row.errors / row.calls < 0.06
    assert row.errors_since / row.calls_since > 0.15
    assert row.errors_since == row.errors, "none failed before"
    edges = [r for r in _ask(shop, QuestionKind.EDGE_GAPS, window=late).rows if isinstance(r, EdgeShift)]
    edge = next(r for r in edges if (r.caller, r.callee) == ("front", "stock"))
    assert edge.calls_since is not None
    assert edge.failed_since is not None
    assert edge.failed_since / edge.calls_since > 3 * edge.errors / edge.calls
    assert _near(edge.since, world)


def test_slow_operations_name_what_slowed_down(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.SLOW_OPERATIONS).rows if isinstance(row, OperationShift)]
    assert {(row.service, row.operation) for row in rows} == {("front", "GET /item"), ("front", "GET stock")}
    assert all(row.p95_ms > 5 * row.p95_ms_before and _near(row.since, shop[1]) for row in rows)


def test_edge_gaps_blame_the_wire_count_the_unanswered_and_know_a_callee_by_its_address(
    shop: tuple[LiveStore, World],
) -> None:
    rows = [row for row in _ask(shop, QuestionKind.EDGE_GAPS).rows if isinstance(row, EdgeShift)]
    edges = {(row.caller, row.callee): row for row in rows}
    wire = edges["front", "stock"]
    assert wire.callee_kind == "service"
    assert wire.gap_ms is not None
    assert wire.gap_ms_before is not None
    assert wire.server_ms is not None
    assert wire.gap_ms > 50
    assert wire.gap_ms_before < 5
    assert abs(wire.server_ms - (wire.server_ms_before or 0)) < 2
    assert wire.unanswered > 40
    assert wire.unanswered_before == 0
    assert wire.error_types == ("quota exceeded",)
    assert _near(wire.since, shop[1])
    database = edges["stock", "items-db"]
    assert (database.callee_kind, database.unanswered, database.since) == ("database", 0, None)
    assert database.server_ms is None
    assert edges["front", "jobs"].callee_kind == "queue"
    assert edges["jobs", "worker"].calls > 0
    assert all("10.0.0.7" not in row.callee for row in rows)


def test_new_patterns_hold_the_new_template_only(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.NEW_PATTERNS).rows if isinstance(row, PatternShift)]
    assert [(row.service, row.severity, row.template) for row in rows if row.severity == "error"] == [
        ("stock", "error", "no stock level for item <*>: quota exceeded")
    ]
    assert rows[0].is_new
    assert _near(rows[0].first_seen, shop[1])


def test_changed_patterns_hold_what_became_rarer_per_call(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.CHANGED_PATTERNS).rows if isinstance(row, PatternShift)]
    assert all(row.template != "look up item <*>" for row in rows)


def test_attribute_diff_finds_the_version_and_leaves_out_what_defines_failure(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.ATTRIBUTE_DIFF).rows if isinstance(row, AttributeDiff)]
    stock = {(row.key, row.value) for row in rows if row.service == "stock"}
    assert ("service.version", "2.0.0") in stock
    assert all(not key.startswith(("error", "exception")) for key, _ in stock)
    assert all(row.key != "region" for row in rows)


def test_flow_breaks_show_the_step_that_no_longer_follows(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.FLOW_BREAKS).rows if isinstance(row, FlowBreak)]
    breaks = {(row.service, row.before, row.after): row for row in rows}
    gone = breaks["stock", "client SELECT items", "item <*> found"]
    assert gone.share < 0.8
    assert gone.share_before == 1.0


def test_metric_shifts_tell_shape_limit_and_onset_and_see_through_a_restart(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.METRIC_SHIFTS).rows if isinstance(row, MetricShift)]
    shown = {row.metric: row for row in rows}
    assert set(shown) == {"process.memory.usage", "db.client.connection.count", "wait_time", "retries"}
    retries = shown["retries"]
    assert (retries.shape, retries.unit, retries.before, retries.after) == ("step", "1/s", 1.0, 10.0)
    memory, pool = shown["process.memory.usage"], shown["db.client.connection.count"]
    assert (memory.shape, memory.limit) == ("trend", 400e6)
    assert (pool.shape, pool.before, pool.after, pool.limit) == ("step", 3.0, 10.0, 10.0)
    assert _near(memory.since, shop[1])
    assert _near(pool.since, shop[1])
    assert shown["wait_time"].before == pytest.approx(0.01, rel=0.05)
    assert shown["wait_time"].after == pytest.approx(0.4, rel=0.1)


def test_changes_of_baseline_and_window_come_oldest_first(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.CHANGES).rows if isinstance(row, ObservedChange)]
    told = [(row.change, row.service, row.before, row.after) for row in rows if row.change is not ChangeKind.RESTART]
    assert (ChangeKind.FLAG, "", "", "on") in told
    assert (ChangeKind.DEPLOY, "stock", "1.0.0", "2.0.0") in told
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    scoped = _ask(shop, QuestionKind.CHANGES, scope=("front",))
    assert [row.subject for row in scoped.rows if isinstance(row, ObservedChange)] == ["fast-path"]


def test_exemplars_are_first_records_of_trouble(shop: tuple[LiveStore, World]) -> None:
    rows = [row for row in _ask(shop, QuestionKind.EXEMPLARS).rows if isinstance(row, Exemplar)]
    assert any(row.service == "stock" and row.text.startswith("no stock level for item ") for row in rows)
    assert all(row.at >= shop[1].window.start for row in rows)


def test_a_healthy_stretch_shows_nothing_but_the_call_graph(shop: tuple[LiveStore, World]) -> None:
    world = shop[1]
    quiet = Window(start=world.fault_at - timedelta(seconds=200), end=world.fault_at - timedelta(seconds=60))
    for kind in QuestionKind:
        rows = _ask(shop, kind, window=quiet).rows
        if kind is QuestionKind.EDGE_GAPS:
            assert all(isinstance(row, EdgeShift) and row.since is None for row in rows)
        elif kind is not QuestionKind.CHANGES:
            assert rows == (), kind


def test_a_scope_or_a_time_without_any_data_is_a_gap_and_not_an_empty_answer(shop: tuple[LiveStore, World]) -> None:
    live, world = shop
    long_ago = Window(start=world.fault_at - timedelta(hours=50), end=world.fault_at - timedelta(hours=49))
    reader = ClickHouseReader(live.client)
    for kind in QuestionKind:
        nowhere = Question(kind=kind, window=world.window, baseline=world.baseline, scope=Scope(services=("nobody",)))
        never = Question(kind=kind, window=long_ago, baseline=long_ago.before(length=timedelta(minutes=5)))
        for question in (nowhere, never):
            said = live.run(reader.ask(question, timeout_s=20))
            if kind is QuestionKind.CHANGES and question is nowhere:
                continue  # a change of everybody concerns nobody too
            assert isinstance(said, Gap), (kind, said)
            assert said.reason == "empty"
