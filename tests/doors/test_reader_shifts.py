"""Series that moved are found with their shape and onset, and steady, noisy or ticking ones are not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from quell.domain import MetricShift, Window
from quell.signals._reader_families import Series
from quell.signals._reader_shifts import find_shifts

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(start=NOW - timedelta(minutes=4), end=NOW)
BASELINE = WINDOW.before(length=timedelta(minutes=12))
FAULT = NOW - timedelta(minutes=2, seconds=30)
START = BASELINE.start.timestamp()
Level = Callable[[float, random.Random], float]


def _series(
    metric: str, level: Level, *, unit: str = "", seed: int = 0, every_s: float = 5, attributes: dict[str, str] | None = None,
    until: float = 1e12, since: float = 0.0,
) -> Series:  # fmt: skip
    rng = random.Random(seed)
    times = [START + every_s * i for i in range(int(960 / every_s))]
    times = [at for at in times if since <= at < until]
    return Series(
        service="s",
        metric=metric,
        unit=unit,
        attributes=tuple(sorted((attributes or {}).items())),
        times=tuple(times),
        values=tuple(level(at - FAULT.timestamp(), rng) for at in times),
    )


def _find(*series: Series) -> list[MetricShift]:
    return find_shifts(series, window=WINDOW, baseline=BASELINE)


def _onset_error_s(row: MetricShift) -> float:
    assert row.since is not None
    return abs((row.since - FAULT).total_seconds())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("metric", "unit", "low", "high", "noise"),
    [
        ("queue.depth", "", 4.0, 40.0, 2.0),
        ("process.cpu.utilization", "1", 0.2, 0.95, 0.05),
        ("process.memory.usage", "By", 80e6, 190e6, 2e6),
        ("process.clock.offset", "s", 0.0, 30.0, 0.01),
        ("db.client.connection.count", "", 3.0, 10.0, 0.7),
        ("db.client.connection.wait_time", "s", 0.001, 0.9, 0.0003),
        ("tls.certificate.expiry", "s", 7e6, -60.0, 0.0),
    ],
)
def test_a_step_is_found_with_its_levels_and_onset(  # noqa: PLR0917 - one parameter per column of the table
    metric: str, unit: str, low: float, high: float, noise: float, seed: int
) -> None:
    rows = _find(_series(metric, lambda t, rng: rng.gauss(high if t >= 0 else low, noise), unit=unit, seed=seed))
    assert [row.shape for row in rows] == ["step"]
    assert rows[0].before == pytest.approx(low, abs=max(3 * noise, 1e-9), rel=0.05)
    assert rows[0].after == pytest.approx(high, abs=max(3 * noise, 1e-9), rel=0.05)
    assert _onset_error_s(rows[0]) <= 5


@pytest.mark.parametrize("every_s", [5, 10, 15])
def test_a_leak_is_a_trend_and_its_bend_is_the_onset(every_s: float) -> None:
    leak = _series(
        "process.memory.usage",
        lambda t, rng: 90e6 + max(0.0, t) * 1.2e6 + rng.gauss(0, 5e5),
        unit="By",
        every_s=every_s,
    )
    limit = _series("process.memory.limit", lambda _t, _r: 300e6, unit="By", every_s=every_s)
    (row,) = _find(leak, limit)
    assert (row.shape, row.limit) == ("trend", 300e6)
    assert _onset_error_s(row) <= 15


def test_a_small_volume_that_fills_up_is_seen_by_its_own_measure() -> None:
    used = _series("system.filesystem.usage", lambda t, rng: 8e6 if t >= 0 else 2e5 + rng.gauss(0, 1e3), unit="By")
    limit = _series("system.filesystem.limit", lambda _t, _r: 8.4e6, unit="By")
    (row,) = _find(used, limit)
    assert (row.shape, row.limit) == ("step", 8.4e6)
    assert _find(used) == []


def test_a_short_peak_is_a_spike_and_ranks_below_a_step_of_the_same_height() -> None:
    spike = _series("queue.depth", lambda t, rng: 50.0 if 0 <= t < 20 else rng.uniform(2, 5))
    step = _series("queue.depth", lambda t, rng: 50.0 if t >= 0 else rng.uniform(2, 5), attributes={"q": "b"})
    first, second = _find(spike, step)
    assert (first.shape, second.shape) == ("step", "spike")
    assert second.peak == 50.0
    assert _onset_error_s(second) <= 5


@pytest.mark.parametrize(
    ("metric", "unit", "level"),
    [
        ("queue.depth", "", lambda _t, rng: float(rng.randint(0, 3))),
        ("process.cpu.utilization", "1", lambda _t, rng: rng.uniform(0.1, 0.4)),
        ("process.memory.usage", "By", lambda t, rng: 90e6 + t * 1e3 + rng.gauss(0, 1e6)),
        ("tls.certificate.expiry", "s", lambda t, _r: 50_000 - t),
        ("process.uptime", "s", lambda t, _r: t + 1e4),
        ("exactly.flat", "", lambda t, _r: 7.0 if t < 0 else 7.1),
        ("http.server.active_requests", "", lambda _t, rng: float(rng.randint(0, 2))),
        ("constant.zero", "1/s", lambda t, rng: 0.0 if t < 0 else rng.choice([0.0, 0.2])),
    ],
)
def test_steady_noisy_and_ticking_series_are_left_alone(metric: str, unit: str, level: Level) -> None:
    for seed in range(10):
        assert _find(_series(metric, level, unit=unit, seed=seed)) == []


def test_a_series_that_ends_is_gone_and_one_that_begins_has_appeared() -> None:
    gone = _series("queue.depth", lambda _t, _r: 9.0, until=FAULT.timestamp())
    appeared = _series("queue.backlog", lambda _t, _r: 9.0, since=FAULT.timestamp())
    rows = {row.metric: row for row in _find(gone, appeared)}
    assert rows["queue.depth"].shape == "gone"
    assert rows["queue.backlog"].shape == "appeared"
    assert all(_onset_error_s(row) <= 5 for row in rows.values())


@pytest.mark.parametrize(
    ("usage", "limit", "labels"),
    [
        ("process_open_fds", "process_max_fds", {}),
        ("process.open_file_descriptor.count", "process.open_file_descriptor.limit", {}),
        ("db.client.connection.count", "db.client.connection.max", {"pool": "p"}),
        ("container_memory_usage_bytes", "container_spec_memory_limit_bytes", {"pod": "p"}),
        ("system.filesystem.usage", "system.filesystem.limit", {"device": "d"}),
    ],
)
def test_the_capacity_of_a_resource_is_found_by_name_and_labels(usage: str, limit: str, labels: dict[str, str]) -> None:
    used = _series(usage, lambda t, _r: 900e6 if t >= 0 else 100e6, attributes={**labels, "state": "used"})
    cap = _series(limit, lambda _t, _r: 1e9, attributes=labels)
    other = _series(limit, lambda _t, _r: 5e9, attributes=dict.fromkeys(labels, "other") or {"x": "y"})
    assert [row.limit for row in _find(used, cap, other)] == [1e9]


def _step_of(height: float, *, seed: int) -> Series:
    return _series(
        "load", lambda t, rng: rng.gauss(height if t >= 0 else 100, 6), attributes={"n": str(seed)}, seed=seed
    )


def _peak_of(*, seed: int) -> Series:
    return _series(
        "load", lambda t, rng: 400.0 if abs(t - 60) < 3 else rng.gauss(100, 6), attributes={"d": str(seed)}, seed=seed
    )


@pytest.mark.timeout(30)
def test_five_hundred_moved_series_are_told_from_five_hundred_decoys_and_quickly() -> None:
    rng = random.Random(5)
    moved = [_step_of(rng.choice([0.4, 1.8, 2.5]) * 100, seed=n) for n in range(500)]
    decoys = [_peak_of(seed=n) for n in range(500)]
    began = time.process_time()
    rows = _find(*moved, *decoys)
    spent_s = time.process_time() - began
    top = rows[:500]
    assert sum(dict(row.attributes).get("n") is not None for row in top) >= 480
    assert spent_s < 2.5


@pytest.mark.parametrize(
    ("usage", "watermark"),
    [
        ("container_memory_usage_bytes", "container_memory_max_usage_bytes"),
        ("http_server_requests_seconds", "http_server_requests_seconds_max"),
    ],
)
def test_the_most_that_was_ever_seen_is_no_capacity(usage: str, watermark: str) -> None:
    used = _series(usage, lambda t, _r: 900e6 if t >= 0 else 100e6)
    most = _series(watermark, lambda t, _r: 900e6 if t >= 0 else 100e6)
    assert [row.limit for row in _find(used, most)] == [None, None]


def test_the_most_that_was_ever_seen_does_not_hide_the_capacity() -> None:
    used = _series("container_memory_usage_bytes", lambda t, _r: 300e6 if t >= 0 else 100e6)
    most = _series("container_memory_max_usage_bytes", lambda t, _r: 300e6 if t >= 0 else 100e6)
    limit = _series("container_spec_memory_limit_bytes", lambda _t, _r: 1e9)
    assert {row.metric: row.limit for row in _find(used, most, limit)}["container_memory_usage_bytes"] == 1e9


def test_a_pod_that_others_replaced_is_not_gone() -> None:
    def pod(name: str, *, until: float = 1e12, since: float = 0.0) -> Series:
        return _series(
            "process_resident_memory_bytes",
            lambda _t, _r: 9e7,
            unit="By",
            attributes={"pod": name},
            until=until,
            since=since,
        )

    at = FAULT.timestamp()
    replaced = [pod("a", until=at), pod("b", until=at + 20), pod("c", since=at), pod("d", since=at + 20)]
    assert {row.shape for row in _find(*replaced)} == {"appeared"}
    assert {row.shape for row in _find(pod("a", until=at), pod("b"))} == set()
    assert [row.shape for row in _find(pod("a", until=at), pod("b", until=at))] == ["gone", "gone"]


def test_a_queue_that_ended_beside_others_is_gone() -> None:
    ended = _series("queue.depth", lambda _t, _r: 9.0, until=FAULT.timestamp(), attributes={"queue": "a"})
    other = _series("queue.depth", lambda _t, _r: 9.0, attributes={"queue": "b"})
    assert [row.shape for row in _find(ended, other)] == ["gone"]
