"""A real server with a real store: telemetry in, trouble noticed, the cause named, in every form, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests._quell import started

pytestmark = [pytest.mark.flow, pytest.mark.timeout(150)]

HEALTHY_S = 180
STEP_S = 1
CALLS_PER_STEP = 4


def attribute(key: str, value: str) -> dict[str, object]:
    return {"key": key, "value": {"stringValue": value}}


def span(
    ids: tuple[str, str, str], name: str, *, kind: int, start_ns: int, length_ms: float, failed: bool, peer: str = ""
) -> dict[str, object]:
    trace, identifier, parent = ids
    return {
        "traceId": trace,
        "spanId": identifier,
        "parentSpanId": parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + int(length_ms * 1e6)),
        "attributes": [attribute("peer.service", peer)] if peer else [],
        "status": {"code": 2} if failed else {},
    }


def traffic(dice: random.Random, *, since: float, until: float, broken_at: float) -> dict[str, object]:
    """Return traces of a shop front that calls a till; from `broken_at` on the till fails most of its calls."""
    front: list[dict[str, object]] = []
    till: list[dict[str, object]] = []
    at = since
    while at < until:
        for _ in range(CALLS_PER_STEP):
            trace, a, b, c = (f"{dice.getrandbits(bits):0{bits // 4}x}" for bits in (128, 64, 64, 64))
            failed = at >= broken_at and dice.random() < 0.8
            start = int((at + dice.random() * STEP_S) * 1e9)
            length = 20 + dice.random() * 10
            served = span((trace, a, ""), "POST /buy", kind=2, start_ns=start, length_ms=length + 8, failed=failed)
            asked = span(
                (trace, b, a),
                "POST",
                kind=3,
                start_ns=start + 2_000_000,
                length_ms=length + 3,
                failed=failed,
                peer="till",
            )
            paid = span((trace, c, b), "POST /pay", kind=2, start_ns=start + 3_000_000, length_ms=length, failed=failed)
            front += [served, asked]
            till.append(paid)
        at += STEP_S
    return {
        "resourceSpans": [
            {"resource": {"attributes": [attribute("service.name", name)]}, "scopeSpans": [{"spans": spans}]}
            for name, spans in (("front", front), ("till", till))
        ]
    }


def deploy(at: float) -> dict[str, object]:
    attributes = [
        attribute("service.name", "till"),
        attribute("service.version", "2.0.0"),
        attribute("service.version.previous", "1.9.3"),
    ]
    record = {
        "timeUnixNano": str(int(at * 1e9)),
        "eventName": "deployment.finished",
        "severityNumber": 9,
        "body": {"stringValue": "till 2.0.0 deployed"},
        "attributes": [*attributes, attribute("event.name", "deployment.finished")],
    }
    resource = {"attributes": [attribute("service.name", "releases")]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}


def until(condition: Any, *, seconds: float, pause_s: float = 0.3) -> Any:
    """Wait for something that another process brings about."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(pause_s)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[tuple[httpx2.Client, int, Path]]:
    state = tmp_path / "state"
    env = {
        "QUELL_STATE_DIR": str(state),
        "QUELL_SERVER_PORT": "0",
        "QUELL_INVESTIGATION_SETTLE_S": "2",
        "QUELL_DETECTION_INTERVAL_S": "1",
    }
    with started("serve", "--port", "0", cwd=tmp_path, env=env) as process:
        ready = until(lambda: (state / "serve.json").exists() or process.poll() is not None, seconds=60)
        assert ready
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        where = json.loads((state / "serve.json").read_text())
        assert where["pid"] == process.pid
        with httpx2.Client(base_url=where["url"], timeout=30) as client:
            yield client, process.pid, state


def test_trouble_is_noticed_investigated_and_reported(house: tuple[httpx2.Client, int, Path]) -> None:
    client, pid, state = house
    dice = random.Random(7)
    now = time.time()  # noqa: TID251 - telemetry carries the wall clock
    broken_at = now - 8
    head = {"content-type": "application/json"}

    def send(signal_name: str, body: dict[str, object]) -> None:
        answer = client.post(f"/v1/{signal_name}", content=json.dumps(body), headers=head)
        assert answer.status_code == 200, answer.text

    send("traces", traffic(dice, since=now - HEALTHY_S, until=now, broken_at=broken_at))
    send("logs", deploy(broken_at - 1))
    sent_until = now

    def case() -> dict[str, Any] | None:
        nonlocal sent_until
        at = time.time()  # noqa: TID251 - telemetry carries the wall clock
        send("traces", traffic(dice, since=sent_until, until=at, broken_at=broken_at))
        sent_until = max(at, sent_until + STEP_S)
        incidents = client.get("/api/v1/incidents").json()["incidents"]
        if not incidents:
            return None
        found: dict[str, Any] = client.get(f"/api/v1/incidents/{incidents[0]['id']}").json()
        return found if found["finding"] else None

    found = until(case, seconds=70, pause_s=1.0)
    assert found["finding"]["outcome"] == "cause_found", found["finding"]
    assert found["finding"]["subject"]["name"] == "till"
    assert found["finding"]["category"] == "bad_release"
    since = datetime.fromisoformat(found["finding"]["since"])
    assert abs((since - datetime.fromtimestamp(broken_at, tz=UTC)).total_seconds()) <= 15
    assert {curve["subject"] for curve in found["curves"]} >= {"till"}
    known = {evidence["id"] for evidence in found["evidence"]}
    assert {citation["evidence"] for citation in found["finding"]["citations"]} <= known
    page = client.get(f"/api/v1/incidents/{found['incident']['id']}/report.html").text
    assert "<svg" in page

    lines = client.get("/api/v1/events?follow=false", headers={"accept": "application/x-ndjson"}).text.splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert names.count("incident.opened") == 1
    assert "finding.made" in names

    owner = json.loads((state / "store.json").read_text())["pid"]
    os.kill(owner, signal.SIGKILL)
    answered = until(lambda: client.get("/health").status_code == 200, seconds=40)
    assert answered, "the store is brought back"
    again = client.get(f"/api/v1/incidents/{found['incident']['id']}").json()
    assert again["finding"] == found["finding"]

    family = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    assert family
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (state / "serve.json").exists(), seconds=20)
    until(lambda: not any(psutil.pid_exists(child) for child in family), seconds=30)
