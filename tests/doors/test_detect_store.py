"""The detector on a real store: what breaks fires within seconds of its telemetry, and a restart changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from quell.config import DetectionSettings
from quell.domain import Alert, StoreError, Symptom
from quell.signals import Detector
from quell.signals._client import Endpoint, StoreClient
from tests.contracts.reader_store import LiveStore, live_store
from tests.contracts.reader_world import WINDOW_S, World, build

pytestmark = pytest.mark.timeout(60)
SETTINGS = DetectionSettings()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveStore, World]]:
    with live_store(tmp_path_factory.mktemp("store")) as live:
        world = build(
            live.now() - timedelta(seconds=WINDOW_S),
            twist=lambda _w, _at, rng: {"error": "boom"} if rng.random() < 0.4 else {},
        )
        for passed in range(0, 700, 5):
            at = world.fault_at + timedelta(seconds=passed - 600)
            world.metric(at, service="stock", name="pool.count", value=10.0 if passed > 600 else 3.0)
            world.metric(at, service="stock", name="pool.max", value=10.0)
            # Quell's own numbers are no business of the detector.
            world.metric(at, service="quell", name="queue.depth", value=9000.0 if passed > 600 else 0.0)
        for service, reason, code in (("stock", "oom_killed", "137"), ("front", "stopped", "0"), ("front", "", "0")):
            world.log(
                world.fault_at + timedelta(seconds=2),
                service="platform",
                body="a process ended",
                event="process.exited",
                attributes={"service.name": service, "process.exit.reason": reason, "process.exit.code": code},
            )
        live.run(world.insert(live.client))
        yield live, world


def _detector(live: LiveStore, known: list[Alert] | None = None) -> Detector:
    return Detector(live.client, settings=SETTINGS, entropy=lambda n: b"\x01" * n, known=known or [])


def _looks(live: LiveStore, detector: Detector, *, begin: datetime, seconds: float) -> list[tuple[datetime, Alert]]:
    seen = []
    for step in range(int(seconds / SETTINGS.interval_s)):
        at = begin + timedelta(seconds=step * SETTINGS.interval_s)
        seen += [(at, alert) for alert in live.run(detector.look(at))]
    return seen


def test_trouble_fires_once_per_service_and_symptom_and_soon(shop: tuple[LiveStore, World]) -> None:
    live, world = shop
    seen = _looks(live, _detector(live), begin=world.fault_at - timedelta(seconds=40), seconds=100)
    # All rows are there already, so that a look sees the rest of the bucket that it falls into.
    assert all(at >= world.fault_at - timedelta(seconds=5) for at, _ in seen)
    fired = {(alert.service, alert.symptom): at for at, alert in seen}
    assert len(fired) == len(seen)
    assert {("front", Symptom.ERRORS), ("stock", Symptom.ERRORS), ("stock", Symptom.NEW_ERRORS)} <= set(fired)
    assert ("stock", Symptom.SATURATION) in fired
    assert {service for service, _ in fired} == {"front", "stock"}
    ended = next(alert for _, alert in seen if "process ended" in alert.summary)
    assert (ended.service, ended.symptom) == ("stock", Symptom.SATURATION)
    assert "oom_killed 137" in ended.summary
    assert not any("ended" in alert.summary for _, alert in seen if alert.service == "front"), "it was asked for"
    assert fired["front", Symptom.ERRORS] - world.fault_at <= timedelta(seconds=12)


def test_a_restarted_detector_repeats_nothing_that_it_is_told_of_and_finds_the_rest_again(
    shop: tuple[LiveStore, World],
) -> None:
    live, world = shop
    first = [a for _, a in _looks(live, _detector(live), begin=world.fault_at, seconds=40)]
    again = _looks(live, _detector(live, first), begin=world.fault_at + timedelta(seconds=40), seconds=20)
    assert not {a.fingerprint for _, a in again} & {a.fingerprint for a in first}
    forgot = _looks(live, _detector(live), begin=world.fault_at + timedelta(seconds=40), seconds=20)
    assert {a.fingerprint for _, a in forgot} & {a.fingerprint for a in first}


def test_a_store_that_cannot_be_asked_is_an_error_and_the_next_look_catches_up(shop: tuple[LiveStore, World]) -> None:
    live, world = shop

    async def look_at_nothing() -> None:
        client = StoreClient(Endpoint(url="http://127.0.0.1:9"), client_id="t")
        try:
            detector = Detector(client, settings=SETTINGS, entropy=lambda n: b"\x01" * n)
            with pytest.raises(StoreError):
                await detector.look(world.fault_at)
        finally:
            await client.aclose()

    asyncio.run(look_at_nothing())
    detector = _detector(live)
    begin = world.fault_at - timedelta(seconds=60)
    assert _looks(live, detector, begin=begin, seconds=5) == []
    endpoint, live.client.endpoint = live.client.endpoint, Endpoint(url="http://127.0.0.1:9")
    try:
        with pytest.raises(StoreError):
            live.run(detector.look(begin + timedelta(seconds=20)))
    finally:
        live.client.endpoint = endpoint
    seen = _looks(live, detector, begin=world.fault_at + timedelta(seconds=20), seconds=10)
    assert ("front", Symptom.ERRORS) in {(alert.service, alert.symptom) for _, alert in seen}


def test_a_healthy_shop_stays_quiet(shop: tuple[LiveStore, World]) -> None:
    live, world = shop
    assert _looks(live, _detector(live), begin=world.fault_at - timedelta(seconds=300), seconds=100) == []
