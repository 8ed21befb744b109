"""One sick replica among healthy ones is seen, whatever moments each of them reports at."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from quell.config import DetectionSettings
from quell.domain import Alert, MetricShift, Symptom, Window
from quell.signals._clickhouse_metrics import _Row, _series
from quell.signals._detect_history import GaugeRow, History
from quell.signals._detect_judge import judge
from quell.signals._detect_state import DetectorState
from quell.signals._reader_replicas import join_replicas
from quell.signals._reader_shifts import find_shifts

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(start=NOW - timedelta(minutes=5), end=NOW)
BASELINE = WINDOW.before(length=timedelta(minutes=15))
FAULT = (NOW - timedelta(minutes=4)).timestamp()
START = BASELINE.start.timestamp()


def _times(replica: int, *, every_s: float) -> list[float]:
    return [
        START + 7.3 * replica + every_s * i
        for i in range(int(1200 / every_s))
        if START + 7.3 * replica + every_s * i < NOW.timestamp()
    ]


def _gauge(replica: int, *, every_s: float, low: float, high: float) -> _Row:
    points = [(at, high if at >= FAULT else low, 0.0) for at in _times(replica, every_s=every_s)]
    return _Row(
        service="s", metric="process.memory.usage", unit="By", attributes=[], monotonic=0, temporality=0, points=points
    )


def _counter(replica: int, *, every_s: float, rate: float, temporality: int = 2) -> _Row:
    points = []
    for at in _times(replica, every_s=every_s):
        value = rate * every_s if temporality == 1 else rate * (at - START)
        points.append((at, value, every_s if temporality == 1 else 0.0))
    return _Row(
        service="s", metric="served", unit="", attributes=[], monotonic=1, temporality=temporality, points=points
    )


def _shifts(rows: list[_Row], table: str) -> list[MetricShift]:
    return find_shifts(_series(rows, table=table), window=WINDOW, baseline=BASELINE)


@pytest.mark.parametrize("every_s", [5.0, 15.0, 30.0, 60.0])
def test_one_replica_that_fills_up_is_a_step_however_rarely_each_reports(every_s: float) -> None:
    sick = _gauge(1, every_s=every_s, low=100e6, high=900e6)
    well = [_gauge(replica, every_s=every_s, low=100e6, high=100e6) for replica in (0, 2)]
    (row,) = _shifts([well[0], sick, well[1]], "otel_metrics_gauge")
    assert (row.shape, row.before, row.after) == ("step", 100e6, 900e6)
    assert row.since is not None
    assert abs(row.since.timestamp() - FAULT) <= every_s + 5


@pytest.mark.parametrize("temporality", [1, 2])
@pytest.mark.parametrize("every_s", [5.0, 15.0, 60.0])
def test_replicas_that_count_steadily_do_not_move_and_are_summed(every_s: float, temporality: int) -> None:
    rows = [_counter(replica, every_s=every_s, rate=10.0, temporality=temporality) for replica in range(3)]
    (series,) = _series(rows, table="otel_metrics_sum")
    middle = [value for at, value in zip(series.times, series.values, strict=True) if START + 180 <= at <= FAULT]
    assert middle == pytest.approx([30.0] * len(middle))
    assert _shifts(rows, "otel_metrics_sum") == []


def test_what_replaced_a_process_speaks_for_itself() -> None:
    old = {5.0 * i: 90.0 for i in range(10)}
    new = {5.0 * i: 20.0 for i in range(10, 20)}
    assert join_replicas([old, new], by="max") == {**old, **new}


def test_a_sick_replica_among_healthy_ones_raises_an_alert() -> None:
    rng = random.Random(1)
    history, state, alerts = History(), DetectorState(), list[Alert]()
    begin, fault = 1_790_000_000.0, 1_790_000_300.0
    for second in range(0, 360, 2):
        at = begin + second
        for replica in range(3):
            if (second // 2 + replica) % 2:
                continue
            used = 96.0 if replica == 1 and at >= fault else 30.0 + rng.random()
            for metric, value in (("process.memory.usage", used), ("process.memory.limit", 100.0)):
                row = GaugeRow("shop", metric, "By", [], [(at + 0.3 * replica, value)], instance=f"i-{replica}")
                history.take_gauges([row])
        moment = datetime.fromtimestamp(at + 1, tz=UTC)
        state, new = judge(state, history.buckets(), moment, settings=DetectionSettings())
        alerts += new
    assert [(a.symptom, a.status) for a in alerts] == [(Symptom.SATURATION, "firing")]
    assert alerts[0].starts_at.timestamp() >= fault - 5


@pytest.mark.parametrize(
    ("metric", "sick", "well"),
    [
        ("node_filesystem_avail_bytes", 1e6, 9e9),
        ("tls.certificate.expiry", -60.0, 7e6),
        ("process.clock.offset", -30.0, 0.01),
        ("process.memory.usage", 9e9, 1e6),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_of_several_replicas_the_one_in_trouble_is_told(metric: str, sick: float, well: float, order: int) -> None:
    rows = [
        _Row(
            service="s", metric=metric, unit="", attributes=[], monotonic=0, temporality=0,
            points=[(at, level, 0.0) for at in _times(replica, every_s=10.0)],
        )
        for replica, level in enumerate([sick, well][::order])
    ]  # fmt: skip
    (series,) = _series(rows, table="otel_metrics_gauge")
    assert set(series.values[2:-2]) == {sick}
