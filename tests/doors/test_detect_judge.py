"""The detector's judgement, replayed look by look over made-up traffic."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quell.config import DetectionSettings
from quell.domain import Alert, Symptom
from quell.signals._detect_history import HeartbeatRow, History
from quell.signals._detect_judge import judge, state_of
from quell.signals._detect_state import (
    Buckets,
    DetectorState,
    GaugeHistory,
    Heartbeat,
    OperationHistory,
    PatternHistory,
)

pytestmark = pytest.mark.timeout(30)
T0 = 1_790_000_000.0
FAULT = T0 + 300
SETTINGS = DetectionSettings()
Calls = Callable[[float, random.Random], tuple[int, int, float]]


def _usual(_at: float, rng: random.Random) -> tuple[int, int, float]:
    calls = rng.randint(40, 60)
    return calls, int(rng.random() < 0.2), calls * rng.uniform(9, 13)


def _shop(calls_at: Calls, *, until: float, seed: int = 0, since: float = T0) -> OperationHistory:
    rng = random.Random(seed)
    starts, rows = [], []
    at = since
    while at < until:
        row = calls_at(at, rng)
        if row[0]:
            # The newest bucket is still filling.
            part = min(1.0, (until - at) / 5)
            starts.append(at)
            rows.append((round(row[0] * part), round(row[1] * part), row[2] * part))
        at += 5
    return OperationHistory(
        service="shop",
        operation="GET /",
        starts=tuple(starts),
        calls=tuple(row[0] for row in rows),
        errors=tuple(min(row[0], row[1]) for row in rows),
        total_ms=tuple(row[2] for row in rows),
    )


def _beat(until: float) -> Heartbeat:
    return Heartbeat(
        service="shop", first=T0, last=until - 1, cadence_s=5, steadiness=1.0, beats=int((until - T0) // 5)
    )


def _watch(
    see: Callable[[float], Buckets], *, looks_from: float, looks_until: float, state: DetectorState | None = None
) -> list[tuple[float, Alert]]:
    state = state or DetectorState()
    alerts = []
    at = looks_from
    while at < looks_until:
        state, new = judge(state, see(at), datetime.fromtimestamp(at, tz=UTC), settings=SETTINGS)
        alerts += [(at, alert) for alert in new]
        at += SETTINGS.interval_s
    return alerts


def _see(calls_at: Calls, seed: int = 0) -> Callable[[float], Buckets]:
    return lambda at: Buckets(operations=(_shop(calls_at, until=at, seed=seed),), heartbeats=(_beat(at),))


def _failing(at: float, rng: random.Random) -> tuple[int, int, float]:
    calls, errors, total = _usual(at, rng)
    return (calls, calls // 2, total) if FAULT <= at < FAULT + 60 else (calls, errors, total)


@pytest.mark.parametrize("seed", range(5))
def test_failing_calls_fire_one_error_alert_within_fifteen_seconds_and_resolve_after_quiet(seed: int) -> None:
    alerts = _watch(_see(_failing, seed), looks_from=T0 + 10, looks_until=FAULT + 150)
    assert [(a.symptom, a.status) for _, a in alerts] == [(Symptom.ERRORS, "firing"), (Symptom.ERRORS, "resolved")]
    (fired_at, fired), (cleared_at, cleared) = alerts
    assert fired_at - FAULT <= 12
    assert abs(fired.starts_at.timestamp() - FAULT) <= 5
    assert cleared.id == fired.id
    assert cleared.fingerprint == fired.fingerprint
    assert SETTINGS.clear_s <= cleared_at - (FAULT + 60) <= SETTINGS.clear_s + 25


@pytest.mark.parametrize("seed", range(5))
def test_slow_calls_fire_a_latency_alert(seed: int) -> None:
    def slow(at: float, rng: random.Random) -> tuple[int, int, float]:
        calls, errors, total = _usual(at, rng)
        return (calls, errors, total + calls * 250) if at >= FAULT else (calls, errors, total)

    alerts = _watch(_see(slow, seed), looks_from=T0 + 10, looks_until=FAULT + 60)
    assert [a.symptom for _, a in alerts] == [Symptom.LATENCY]
    assert alerts[0][0] - FAULT <= 15


def test_a_single_slow_call_does_not_fire() -> None:
    def hiccup(at: float, rng: random.Random) -> tuple[int, int, float]:
        calls, errors, total = _usual(at, rng)
        return (calls, errors, total + 9000) if at == FAULT else (calls, errors, total)

    assert _watch(_see(hiccup), looks_from=T0 + 10, looks_until=FAULT + 60) == []


@pytest.mark.parametrize(("factor", "symptom"), [(4.0, Symptom.TRAFFIC), (0.02, Symptom.TRAFFIC)])
def test_a_jump_of_traffic_fires(factor: float, symptom: Symptom) -> None:
    def jump(at: float, rng: random.Random) -> tuple[int, int, float]:
        calls, _, total = _usual(at, rng)
        share = factor if at >= FAULT else 1.0
        return round(calls * share), 0, total * share

    alerts = _watch(_see(jump), looks_from=T0 + 10, looks_until=FAULT + 60)
    assert [a.symptom for _, a in alerts] == [symptom]
    assert alerts[0][0] - FAULT <= 20


@pytest.mark.parametrize("factor", [0.4, 0.6, 1.3, 1.6])
@pytest.mark.parametrize("seed", range(3))
def test_a_load_change_within_the_daily_shape_does_not_fire(factor: float, seed: int) -> None:
    def shaped(at: float, rng: random.Random) -> tuple[int, int, float]:
        calls, errors, total = _usual(at, rng)
        share = factor if at >= FAULT else 1.0
        return round(calls * share), errors, total * share

    assert _watch(_see(shaped, seed), looks_from=T0 + 10, looks_until=FAULT + 90) == []


def test_a_stopped_service_fires_silence_and_a_speaking_one_does_not() -> None:
    def see(at: float) -> Buckets:
        until = min(at, FAULT)
        other = replace(_shop(_usual, until=at, seed=3), service="cart")
        return Buckets(operations=(_shop(_usual, until=until), other), heartbeats=(_beat(until),))

    alerts = _watch(see, looks_from=T0 + 10, looks_until=FAULT + 60)
    silent = [(at, a) for at, a in alerts if a.symptom is Symptom.SILENCE]
    assert [a.service for _, a in silent] == ["shop"]
    assert silent[0][0] - FAULT <= 25
    assert {a.service for _, a in alerts} == {"shop"}


def test_who_speaks_only_on_occasion_is_never_silent() -> None:
    spoken = [T0, T0 + 5, T0 + 10, T0 + 90, T0 + 95, T0 + 170]

    def see(at: float) -> Buckets:
        history = History()
        history.take_heartbeats([HeartbeatRow(service="events", b=int(b)) for b in spoken if b <= at])
        # Regular by accident, as when something breaks every eighty seconds, or a few times in a row.
        history.take_heartbeats(
            [HeartbeatRow(service="rare", b=int(T0 + 80 * n)) for n in range(4) if T0 + 80 * n <= at]
        )
        history.take_heartbeats(
            [HeartbeatRow(service="burst", b=int(T0 + 5 * n)) for n in range(9) if T0 + 5 * n <= at]
        )
        history.take_heartbeats(
            [HeartbeatRow(service="steady", b=int(T0 + 15 * n)) for n in range(20) if T0 + 15 * n < min(at, FAULT)]
        )
        return history.buckets()

    alerts = _watch(see, looks_from=T0 + 20, looks_until=FAULT + 120)
    assert [(a.service, a.symptom) for _, a in alerts] == [("steady", Symptom.SILENCE)]


def test_a_working_rollout_with_a_short_dent_does_not_fire() -> None:
    def dented(at: float, rng: random.Random) -> tuple[int, int, float]:
        calls, errors, total = _usual(at, rng)
        return (calls, 12, total) if FAULT <= at < FAULT + 5 else (calls, errors, total)

    def see(at: float) -> Buckets:
        return replace(_see(dented)(at), rollouts=(("shop", FAULT),) if at >= FAULT else ())

    assert _watch(see, looks_from=T0 + 10, looks_until=FAULT + 90) == []


def test_a_broken_rollout_still_fires_within_fifteen_seconds() -> None:
    def see(at: float) -> Buckets:
        return replace(_see(_failing)(at), rollouts=(("shop", FAULT),) if at >= FAULT else ())

    alerts = _watch(see, looks_from=T0 + 10, looks_until=FAULT + 30)
    assert [a.symptom for _, a in alerts] == [Symptom.ERRORS]
    assert alerts[0][0] - FAULT <= 15


def _ended(*exits: tuple[float, str]) -> Callable[[float], Buckets]:
    def see(at: float) -> Buckets:
        known = tuple(("shop", FAULT + after, reason) for after, reason in exits if at >= FAULT + after + 1)
        return replace(_see(_usual)(at), exits=known)

    return see


def test_a_process_that_ends_for_want_of_memory_fires_before_users_feel_much() -> None:
    alerts = _watch(_ended((0, "oom_killed 137")), looks_from=T0 + 10, looks_until=FAULT + 60)
    (at, fired), (until, resolved) = alerts
    assert (fired.symptom, fired.status, resolved.status) == (Symptom.SATURATION, "firing", "resolved")
    assert at - FAULT <= 7
    assert until - FAULT <= 50
    assert "oom_killed 137" in fired.summary


def test_a_single_crash_does_not_fire_and_a_second_one_does() -> None:
    assert _watch(_ended((0, "exited 1")), looks_from=T0 + 10, looks_until=FAULT + 60) == []
    alerts = _watch(_ended((0, "exited 1"), (6, "exited 1")), looks_from=T0 + 10, looks_until=FAULT + 25)
    assert [(a.symptom, a.summary) for _, a in alerts] == [
        (Symptom.OTHER, "shop: the process ended 2 times, unplanned: exited 1")
    ]


def _gauge(
    metric: str, level: Callable[[float], float], *, until: float, limit: float | None = None, unit: str = ""
) -> GaugeHistory:
    times = [T0 + 5 * i for i in range(int((until - T0) / 5) + 1)]
    return GaugeHistory(
        service="shop",
        metric=metric,
        unit=unit,
        attributes=(),
        times=tuple(times),
        values=tuple(level(at) for at in times),
        limit=limit,
    )


SATURATED: list[tuple[str, Callable[[float], float], float | None]] = [
    ("db.client.connection.count", lambda at: 10.0 if at >= FAULT else 3.0, 10.0),
    ("process.memory.usage", lambda at: 30 + max(0.0, at - FAULT) * 1.5, 100.0),
    ("process.cpu.utilization", lambda at: 0.99 if at >= FAULT else 0.2, None),
    ("queue.depth", lambda at: 2 + max(0.0, at - FAULT) * 8, None),
    ("process.open_file_descriptor.count", lambda at: 98.0 if at >= FAULT else 20.0, 100.0),
    ("db.client.connection.pending_requests", lambda at: 9.0 if at >= FAULT else 0.0, None),
]


@pytest.mark.parametrize(("metric", "level", "limit"), SATURATED)
def test_a_resource_that_fills_up_fires_saturation(
    metric: str, level: Callable[[float], float], limit: float | None
) -> None:
    def see(at: float) -> Buckets:
        return replace(_see(_usual)(at), gauges=(_gauge(metric, level, until=at, limit=limit),))

    alerts = _watch(see, looks_from=T0 + 10, looks_until=FAULT + 60)
    assert [a.symptom for _, a in alerts] == [Symptom.SATURATION]
    assert alerts[0][0] - FAULT <= 32
    assert dict(alerts[0][1].labels)["metric"] == metric


STEADY: list[tuple[str, Callable[[float], float], float | None]] = [
    ("process.memory.usage", lambda at: 80.0 + at % 3, 100.0),
    ("process.memory.usage", lambda at: 35.0 if at >= FAULT else 20.0, 100.0),
    ("process.cpu.utilization", lambda at: 0.5 if at >= FAULT else 0.2, None),
    ("queue.depth", lambda at: 4.0 + at % 7, None),
    ("tls.certificate.expiry", lambda at: 9000.0 - (at - T0), None),
]


@pytest.mark.parametrize(("metric", "level", "limit"), STEADY)
def test_a_resource_with_room_does_not_fire(metric: str, level: Callable[[float], float], limit: float | None) -> None:
    def see(at: float) -> Buckets:
        return replace(_see(_usual)(at), gauges=(_gauge(metric, level, until=at, limit=limit),))

    assert _watch(see, looks_from=T0 + 10, looks_until=FAULT + 60) == []


UNITS: list[tuple[str, str, float, float, bool]] = [
    ("system.clock.offset", "ms", 0.2, 9.0, False),
    ("system.clock.offset", "ms", 0.2, 9000.0, True),
    ("queue.oldest_message.age", "ms", 30.0, 900.0, False),
    ("queue.oldest_message.age", "ms", 30.0, 90_000.0, True),
    ("container.memory.max_usage", "By", 40e6, 90e6, False),
    ("container.memory.max_usage", "By", 4e6, 90e6, False),
    ("messaging.max_message_size", "By", 100.0, 9000.0, False),
    ("system.cpu.utilization", "%", 20.0, 99.0, True),
    ("system.cpu.utilization", "%", 20.0, 40.0, False),
    ("aws_sqs_approximate_age_of_oldest_message", "s", 2.0, 400.0, True),
]


@pytest.mark.parametrize(("metric", "unit", "usual", "now", "fires"), UNITS)
def test_a_gauge_is_judged_in_its_own_unit(
    metric: str,
    unit: str,
    usual: float,
    now: float,
    fires: bool,
) -> None:
    def see(at: float) -> Buckets:
        gauge = _gauge(metric, lambda t: now if t >= FAULT else usual, until=at, unit=unit)
        return replace(_see(_usual)(at), gauges=(gauge,))

    alerts = [alert for _, alert in _watch(see, looks_from=T0 + 10, looks_until=FAULT + 60)]
    assert [alert.status for alert in alerts] == (["firing"] if fires else [])


def test_a_new_error_template_fires_and_a_known_or_similar_one_does_not() -> None:
    old = PatternHistory(
        service="shop", template="cannot reach <*> for order alpha", starts=(T0 + 60, T0 + 90), counts=(2, 1)
    )
    similar = PatternHistory(service="shop", template="cannot reach <*> for order beta", starts=(FAULT,), counts=(9,))
    new = PatternHistory(
        service="shop", template="disk quota exceeded on <*>", starts=(FAULT, FAULT + 5), counts=(4, 9)
    )

    def see(patterns: tuple[PatternHistory, ...]) -> Callable[[float], Buckets]:
        def shown(at: float) -> Buckets:
            cut = tuple(
                replace(
                    p,
                    starts=tuple(s for s in p.starts if s <= at),
                    counts=tuple(n for s, n in zip(p.starts, p.counts, strict=True) if s <= at),
                )
                for p in patterns
            )
            return replace(_see(_usual)(at), patterns=cut)

        return shown

    assert _watch(see((old, similar)), looks_from=T0 + 10, looks_until=FAULT + 40) == []
    alerts = _watch(see((old, new)), looks_from=T0 + 10, looks_until=FAULT + 20)
    assert [a.symptom for _, a in alerts] == [Symptom.NEW_ERRORS]
    assert "disk quota" in alerts[0][1].summary


def test_errors_that_callers_log_during_a_short_restart_do_not_fire() -> None:
    refused = PatternHistory(service="shop", template="cannot reach peer: refused", starts=(FAULT,), counts=(12,))

    def see(at: float) -> Buckets:
        seen = _see(_usual)(at)
        return replace(seen, patterns=(refused,), rollouts=(("peer", FAULT),)) if at >= FAULT else seen

    assert _watch(see, looks_from=T0 + 10, looks_until=FAULT + 60) == []


def test_after_a_restart_a_known_alert_does_not_fire_again_and_still_resolves() -> None:
    before = _watch(_see(_failing), looks_from=T0 + 10, looks_until=FAULT + 20)
    known = [alert for _, alert in before]
    after = _watch(_see(_failing), looks_from=FAULT + 22, looks_until=FAULT + 150, state=state_of(known))
    assert [(a.id, a.status) for _, a in after] == [(known[0].id, "resolved")]


def test_a_clock_set_back_neither_repeats_nor_loses_an_alert() -> None:
    state = DetectorState()
    fired: list[Alert] = []
    for at in [FAULT + 2.5 * i for i in range(8)]:
        state, new = judge(state, _see(_failing)(at), datetime.fromtimestamp(at, tz=UTC), settings=SETTINGS)
        fired += new
    state, new = judge(
        state, _see(_failing)(FAULT - 100), datetime.fromtimestamp(FAULT - 100, tz=UTC), settings=SETTINGS
    )
    assert [a.status for a in fired] == ["firing"]
    assert new == []
    assert len(state.episodes) == 1


def test_nothing_is_judged_before_a_service_has_a_past() -> None:
    def broken(_at: float, _rng: random.Random) -> tuple[int, int, float]:
        return 20, 20, 200.0

    assert _watch(_see(broken), looks_from=T0 + 2, looks_until=T0 + 90) == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80), st.floats(0, 9000)), min_size=10, max_size=60),
    st.lists(st.floats(-50, 60), min_size=3, max_size=20),
)
def test_whatever_is_seen_each_alert_resolves_at_most_once_and_replays_alike(
    rows: list[tuple[int, int, float]], steps: list[float]
) -> None:
    history = OperationHistory(
        service="shop",
        operation="GET /",
        starts=tuple(T0 + 5 * i for i in range(len(rows))),
        calls=tuple(row[0] for row in rows),
        errors=tuple(min(row[:2]) for row in rows),
        total_ms=tuple(row[2] for row in rows),
    )

    def run() -> list[Alert]:
        state, at, alerts = DetectorState(), T0 + 60, []
        for step in steps:
            at = max(T0 + 1, at + step)
            state, new = judge(
                state, Buckets(operations=(history,)), datetime.fromtimestamp(at, tz=UTC), settings=SETTINGS
            )
            alerts += new
        return alerts

    alerts = run()
    assert alerts == run()
    open_now: set[str] = set()
    for alert in alerts:
        assert (alert.id in open_now) == (alert.status == "resolved")
        open_now ^= {alert.id}
        assert alert.ends_at is None or alert.ends_at >= alert.starts_at
