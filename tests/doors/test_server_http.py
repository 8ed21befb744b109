"""The HTTP face, in process: routes, limits, errors on the wire, streams that resume."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx2
import pytest
from starlette.routing import Route

from quell.app import App, Vault
from quell.app._incident_room import IncidentRoom
from quell.app._person_calls import PersonCalls
from quell.app._warden import Warden
from quell.config import InvestigationSettings, JournalSettings, ServerSettings, Settings
from quell.domain import BoundExceededError, ConfigError, ObservedChange, OverloadError, StateHeldError, UsageError
from quell.incidents import CaseFile, Desk
from quell.runs import Runs
from quell.server import asgi, serve
from quell.telemetry import Telemetry
from tests._story import NOON, ONSET, RecordedReader, alert
from tests.conftest import FakeClock

pytestmark = pytest.mark.timeout(20)


@dataclass(frozen=True, kw_only=True)
class Taken:
    response_body: bytes


@dataclass(kw_only=True)
class Intake:
    """Stands for the receiver: remembers what it was given, fails on demand, waits on demand."""

    taken: list[tuple[str, bytes, str, str]] = field(default_factory=list)
    changes: list[ObservedChange] = field(default_factory=list)
    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def receive(self, signal: str, body: bytes, *, content_type: str, content_encoding: str = "") -> Taken:
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        self.taken.append((signal, body, content_type, content_encoding))
        return Taken(response_body=b"{}" if "json" in content_type else b"")

    async def record_change(self, change: ObservedChange) -> None:
        self.changes.append(change)


@dataclass(kw_only=True)
class Parts:
    store: None = None
    receiver: Intake | None
    detector: None = None


@dataclass(kw_only=True)
class House:
    client: httpx2.AsyncClient
    app: App
    intake: Intake


@asynccontextmanager
async def a_house(state_dir: Path, *, server: ServerSettings, receives: bool = True) -> AsyncIterator[House]:
    clock = FakeClock()
    clock.at = NOON + timedelta(seconds=60)
    runs = await Runs.open(JournalSettings(), state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    settings = Settings(state_dir=state_dir, server=server, investigation=InvestigationSettings(settle_s=0.0))
    desk = Desk(runs=runs, readers=[RecordedReader()], settings=settings.investigation, clock=clock, entropy=os.urandom)
    intake = Intake()
    app = App(
        role="serve",
        clock=clock,
        entropy=os.urandom,
        telemetry=cast("Telemetry", None),
        runs=runs,
        warden=Warden(runs, settings, clock=clock, entropy=os.urandom, env={}),
        vault=cast("Vault", Parts(receiver=intake if receives else None)),
        readers=(),
        room=cast("IncidentRoom", SimpleNamespace(desk=desk)),
        calls=cast("PersonCalls", None),
        version="v1",
    )
    transport = httpx2.ASGITransport(app=asgi(app), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:7433") as client:
        try:
            yield House(client=client, app=app, intake=intake)
        finally:
            await runs.close()


def in_a_house(
    work: Callable[[House], Awaitable[None]],
    state_dir: Path,
    *,
    server: ServerSettings | None = None,
    receives: bool = True,
    executes: bool = False,
) -> None:
    async def run() -> None:
        async with a_house(state_dir, server=server or ServerSettings(), receives=receives) as house:
            if executes:
                await house.app.runs.launch()
            await work(house)

    asyncio.run(run())


async def investigated(house: House) -> str:
    (incident,) = await house.app.desk.handle([alert()])
    await house.app.runs.wait(incident.run or "", timeout_s=10)
    return incident.id


def test_telemetry_is_handed_on_as_it_came_and_answered_in_its_own_form(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        packed = gzip.compress(b"\x0a\x00")
        head = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        first = await house.client.post("/v1/traces", content=packed, headers=head)
        second = await house.client.post(
            "/v1/logs", content=b"{}", headers={"content-type": "application/json; charset=utf-8"}
        )
        assert (first.status_code, first.content, first.headers["content-type"]) == (200, b"", "application/x-protobuf")
        assert (second.status_code, second.json()) == (200, {})
        assert house.intake.taken == [
            ("traces", packed, "application/x-protobuf", "gzip"),
            ("logs", b"{}", "application/json", ""),
        ]

    in_a_house(story, tmp_path)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        ({"content-type": "application/json", "content-encoding": "br"}, 415),
    ],
)
def test_what_nobody_reads_is_refused_with_415(tmp_path: Path, head: dict[str, str], status: int) -> None:
    async def story(house: House) -> None:
        answer = await house.client.post("/v1/logs", content=b"{}", headers=head)
        assert answer.status_code == status
        assert house.intake.taken == []

    in_a_house(story, tmp_path)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("not OTLP"), 400, 3),
        (BoundExceededError("body", limit=1), 413, 8),
        (OverloadError("full", retry_after_s=7), 429, 8),
    ],
)
def test_errors_of_the_receiver_are_a_status_message_in_both_forms(
    tmp_path: Path, error: Exception, status: int, code: int
) -> None:
    async def story(house: House) -> None:
        house.intake.error = error
        as_json = await house.client.post("/v1/logs", content=b"{}", headers={"content-type": "application/json"})
        as_proto = await house.client.post("/v1/logs", content=b"", headers={"content-type": "application/x-protobuf"})
        assert as_json.status_code == as_proto.status_code == status
        assert as_json.json()["code"] == code
        assert as_proto.content[:2] == bytes([8, code])
        assert str(error).encode() in as_proto.content
        if status == 429:
            assert as_json.headers["retry-after"] == as_proto.headers["retry-after"] == "7"

    in_a_house(story, tmp_path)


def test_too_long_a_body_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += 1
                yield b"x" * 100_000

        head = {"content-type": "application/json"}
        declared = await house.client.post("/v1/logs", content=b"x" * 2_000_000, headers=head)
        streamed = await house.client.post("/v1/logs", content=body(), headers=head)
        assert declared.status_code == streamed.status_code == 413
        assert house.intake.taken == []

    in_a_house(story, tmp_path, server=ServerSettings(body_max_mb=1.0))


def test_more_requests_at_once_than_allowed_are_told_to_come_again(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.intake.gate = asyncio.Event()
        head = {"content-type": "application/json"}
        waiting = [asyncio.create_task(house.client.post("/v1/logs", content=b"{}", headers=head)) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await house.client.post("/v1/logs", content=b"{}", headers=head)
        house.intake.gate.set()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await each).status_code for each in waiting] == [200, 200]
        assert (await house.client.post("/v1/logs", content=b"{}", headers=head)).status_code == 200

    in_a_house(story, tmp_path, server=ServerSettings(in_flight_max=2))


def test_without_a_store_telemetry_is_answered_503_with_retry_after_and_the_rest_works(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        answer = await house.client.post("/v1/logs", content=b"{}", headers={"content-type": "application/json"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await house.client.get("/api/v1/incidents")).status_code == 200
        health = await house.client.get("/health")
        assert health.status_code == 503
        assert health.json()["ok"] is False

    in_a_house(story, tmp_path, receives=False)


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:7433",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "",
        "10.0.0.1",
        "[2001:db8::1]",
        "a@127.0.0.1",
        "[::1",
        "127.0.0.1]",
    ],
)
def test_a_request_under_another_name_is_refused(tmp_path: Path, host: str) -> None:
    async def story(house: House) -> None:
        answer = await house.client.get("/api/v1/incidents", headers={"host": host})
        assert answer.status_code == 421

    in_a_house(story, tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1:7433", "localhost", "[::1]:80", "LOCALHOST:1", "127.8.9.1"])
def test_this_machine_may_ask(tmp_path: Path, host: str) -> None:
    async def story(house: House) -> None:
        assert (await house.client.get("/api/v1/incidents", headers={"host": host})).status_code == 200

    in_a_house(story, tmp_path)


@pytest.mark.parametrize(
    ("site", "mode", "dest", "status"),
    [
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "", "", 403),
        ("cross-site", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("none", "navigate", "document", 200),
    ],
)
def test_a_page_of_another_site_holds_no_stream_open_and_a_link_in_a_chat_is_followed(
    tmp_path: Path, site: str, mode: str, dest: str, status: int
) -> None:
    async def story(house: House) -> None:
        head = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        assert (await house.client.get("/api/v1/incidents", headers=head)).status_code == status

    in_a_house(story, tmp_path)


def test_a_page_of_another_site_can_neither_read_nor_write(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        head = {"origin": "http://evil.test", "content-type": "text/plain"}
        assert (await house.client.get("/api/v1/incidents", headers=head)).status_code == 403
        assert (await house.client.post("/webhooks/alertmanager", content=b"{}", headers=head)).status_code == 403
        answer = await house.client.get("/api/v1/incidents", headers={"origin": "http://127.0.0.1:7433"})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        for origin in ("null", "http://[", "http://127.0.0.1:7434"):
            assert (await house.client.get("/api/v1/incidents", headers={"origin": origin})).status_code == 403

    in_a_house(story, tmp_path)


def test_alertmanager_opens_an_incident_and_repeating_itself_opens_no_other(tmp_path: Path) -> None:
    body = {
        "version": "4",
        "status": "firing",
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": "HighErrors", "service": "payment", "severity": "critical"},
                "annotations": {"summary": "payment fails"},
                "startsAt": ONSET.isoformat(),
                "endsAt": "0001-01-01T00:00:00Z",
                "fingerprint": "abc",
            }
        ],
    }

    async def story(house: House) -> None:
        first = (await house.client.post("/webhooks/alertmanager", json=body)).json()
        second = (await house.client.post("/webhooks/alertmanager", json=body)).json()
        assert first["ok"] is True
        assert first["incidents"] == second["incidents"]
        assert len(first["incidents"]) == 1
        known = (await house.client.get("/api/v1/alerts")).json()["alerts"]
        assert [each["name"] for each in known] == ["HighErrors"]

    in_a_house(story, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b'{"alerts": 5}',
        b'{"version": "4", "alerts": [{"labels": []}]}',
        b'{"version": "\xff\xfe"}',
        b'{"a":' * 100_000,
        b'{"version": "4", "alerts": [{"status": "firing", "startsAt": "9999-12-31T23:59:59-14:00"}]}',
    ],
)
def test_a_webhook_that_cannot_be_read_is_answered_400_and_changes_nothing(tmp_path: Path, body: bytes) -> None:
    async def story(house: House) -> None:
        answer = await house.client.post("/webhooks/alertmanager", content=body)
        assert answer.status_code == 400
        assert answer.json()["ok"] is False
        assert (await house.client.get("/api/v1/incidents")).json()["incidents"] == []

    in_a_house(story, tmp_path)


def test_an_incident_is_served_in_every_form(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identifier = await investigated(house)
        listed = (await house.client.get("/api/v1/incidents")).json()
        assert [each["id"] for each in listed["incidents"]] == [identifier]
        case = (await house.client.get(f"/api/v1/incidents/{identifier}")).json()
        assert case["finding"]["outcome"] == "cause_found"
        page = await house.client.get(f"/api/v1/incidents/{identifier}/report.html")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        text = await house.client.get(f"/api/v1/incidents/{identifier}/report.md")
        assert "## What caused it?" in text.text
        again = await house.client.get(f"/api/v1/incidents/{identifier[:10]}/report.json")
        assert again.json()["incident"]["id"] == identifier
        assert (await house.client.get(f"/api/v1/incidents/{identifier}/report.pdf")).status_code == 404
        run = (await house.client.get(f"/api/v1/runs/{case['run']}")).json()
        assert run["run"]["status"] == "succeeded"
        assert run["steps"][0]["name"] == "plan"
        runs = (await house.client.get("/api/v1/runs?limit=1")).json()
        assert len(runs["runs"]) == 1

    in_a_house(story, tmp_path, executes=True)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/incidents/inc_none", 404),
        ("/api/v1/runs/run_none", 404),
        ("/api/v1/incidents?limit=0", 400),
        ("/api/v1/incidents?limit=many", 400),
        (f"/api/v1/incidents?limit={'9' * 5000}", 400),
        ("/api/v1/incidents?stage=dreaming", 400),
        ("/api/v1/events?after=-1", 400),
        ("/api/v1/events?run=run_none", 404),
        ("/api/v1/events?run=inc_none&follow=false", 404),
        ("/api/v1/nothing", 404),
        ("/", 404),
    ],
)
def test_a_wrong_question_is_answered_with_an_error_in_json(tmp_path: Path, path: str, status: int) -> None:
    async def story(house: House) -> None:
        answer = await house.client.get(path)
        assert answer.status_code == status
        body = answer.json()
        assert body["ok"] is False
        assert set(body["error"]) == {"kind", "message", "hint"}

    in_a_house(story, tmp_path)


def test_a_change_is_recorded_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        good = {"change": "deploy", "subject": "service.version", "service": "web", "before": "1", "after": "2"}
        answer = await house.client.post("/api/v1/changes", json=good)
        assert (answer.status_code, answer.json()["recorded"]) == (202, 1)
        assert house.intake.changes[0].service == "web"
        assert house.intake.changes[0].at == house.app.clock()
        for bad in ({"change": "magic", "subject": "x"}, {"subject": "x"}, {**good, "at": "2026-11-20T12:00:00"}, 5):
            assert (await house.client.post("/api/v1/changes", json=bad)).status_code == 400
        for bytes_bad in (b"[" * 100_000, b'{"change":"deploy","subject":"\xff"}', b""):
            assert (await house.client.post("/api/v1/changes", content=bytes_bad)).status_code == 400
        for at in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
            assert (await house.client.post("/api/v1/changes", json={**good, "at": at})).status_code == 400
        assert (await house.client.post("/api/v1/changes", json=[good, {**good, "subject": " "}])).status_code == 400
        assert len(house.intake.changes) == 1

    in_a_house(story, tmp_path)


def test_a_wrong_method_is_told_which_ones_there_are(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        answer = await house.client.get("/v1/logs")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "POST" in answer.json()["error"]["hint"]
        of_two = await house.client.delete("/api/v1/approvals/apr_1")
        assert (of_two.status_code, of_two.headers["allow"]) == (405, "GET, HEAD, POST"), "a path with several verbs"
        assert "GET, HEAD, POST" in of_two.json()["error"]["hint"]

    in_a_house(story, tmp_path)


def test_events_resume_after_a_number_and_none_comes_twice(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await investigated(house)
        lines = await house.client.get("/api/v1/events?follow=false", headers={"accept": "application/x-ndjson"})
        events = [json.loads(line) for line in lines.text.splitlines()]
        seqs = [event["seq"] for event in events]
        assert seqs == sorted(set(seqs))
        assert events[0]["name"] == "incident.opened"
        middle = seqs[len(seqs) // 2]
        rest = await house.client.get("/api/v1/events?follow=false", headers={"last-event-id": str(middle)})
        ids = [int(line.removeprefix("id: ")) for line in rest.text.splitlines() if line.startswith("id: ")]
        assert ids == [seq for seq in seqs if seq > middle]

    in_a_house(story, tmp_path, executes=True)


def test_a_stream_of_a_run_ends_when_the_run_has_ended(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        identifier = await investigated(house)
        run = (await house.app.desk.incident(identifier)).run
        streamed = await house.client.get(f"/api/v1/events?run={run}")
        frames = [frame for frame in streamed.text.split("\n\n") if frame.startswith("id:")]
        assert "event: run.finished" in frames[-1]
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert (await house.client.get(f"/api/v1/events?run={str(run)[:12]}")).text == streamed.text
        of_incident = await house.client.get(f"/api/v1/events?run={identifier[:12]}&follow=false")
        assert "event: incident.opened" in of_incident.text
        assert "event: run.finished" not in of_incident.text
        head = await house.client.head("/api/v1/events")
        assert (head.status_code, head.content) == (200, b"")

    in_a_house(story, tmp_path, executes=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "example.org", "::"])
def test_no_address_but_loopback_is_listened_on(tmp_path: Path, host: str) -> None:
    async def story(house: House) -> None:
        house.app.warden.settings = replace(house.app.settings, server=ServerSettings(host=host, port=0))
        with pytest.raises(ConfigError) as refused:
            await serve(house.app)
        assert "loopback" in str(refused.value)

    in_a_house(story, tmp_path)


def test_a_real_server_answers_streams_and_stops_when_told(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.app.warden.settings = replace(
            house.app.settings,
            server=ServerSettings(port=0),
            detection=replace(house.app.settings.detection, enabled=False),
        )
        house.app.vault.open = _refuses  # type: ignore[method-assign, assignment]  # this house has no store
        urls: asyncio.Queue[str] = asyncio.Queue()
        serving = asyncio.create_task(serve(house.app, on_ready=urls.put_nowait))
        url = await urls.get()
        assert json.loads((tmp_path / "serve.json").read_text()) == {"pid": os.getpid(), "url": url}
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{url}/api/v1/incidents")).status_code == 200
            taken = replace(house.app.settings, server=ServerSettings(port=int(url.rsplit(":", 1)[1])))
            house.app.warden.settings = taken
            with pytest.raises(StateHeldError):
                await serve(house.app)
            async with client.stream("GET", f"{url}/api/v1/events") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "retry: 1000"
                await house.app.desk.handle([alert()])
                seen = [await anext(lines) for _ in range(4)]
                assert "event: incident.opened" in seen
                serving.cancel()
                async with asyncio.timeout(5):
                    async for _ in lines:
                        pass
        with pytest.raises(asyncio.CancelledError):
            await serving

    in_a_house(story, tmp_path)


def test_senders_that_never_finish_keep_nobody_else_from_being_heard(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, in_flight_max=2, request_timeout_s=0.5)
    begun = b"POST /v1/logs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"

    async def story(house: House) -> None:
        house.app.vault.open = _refuses  # type: ignore[method-assign, assignment]  # this house has no store
        urls: asyncio.Queue[str] = asyncio.Queue()
        serving = asyncio.create_task(serve(house.app, on_ready=urls.put_nowait))
        port = int((await urls.get()).rsplit(":", 1)[1])
        slow = [await _said_to(port, begun) for _ in range(2)]
        endless = await _said_to(port, b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: y")
        silent = await _said_to(port, b"")
        answers = [await reader.read() for reader, _ in slow]
        assert all(answer.startswith(b"HTTP/1.1 503 ") and b"retry-after" in answer for answer in answers)
        assert [await reader.read() for reader, _ in (endless, silent)] == [b"", b""]
        wide = await _said_to(port, b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * 66_000)
        assert (await wide[0].read()).startswith(b"HTTP/1.1 431 ")
        async with httpx2.AsyncClient() as client:
            for _ in range(3):
                answer = await client.post(
                    f"http://127.0.0.1:{port}/v1/logs", content=b"{}", headers={"content-type": "application/json"}
                )
                assert answer.status_code == 200
        for _, writer in (*slow, endless, silent, wide):
            writer.close()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    in_a_house(story, tmp_path, server=settings)


def test_a_server_that_stops_tells_who_is_still_sending_to_send_it_again(tmp_path: Path) -> None:
    begun = b"POST /v1/logs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"

    async def story(house: House) -> None:
        house.app.vault.open = _refuses  # type: ignore[method-assign, assignment]  # this house has no store
        urls: asyncio.Queue[str] = asyncio.Queue()
        serving = asyncio.create_task(serve(house.app, on_ready=urls.put_nowait))
        port = int((await urls.get()).rsplit(":", 1)[1])
        reader, writer = await _said_to(port, begun)
        async with httpx2.AsyncClient() as client:
            await client.get(f"http://127.0.0.1:{port}/api/v1/runs")
        serving.cancel()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in answer
        writer.close()
        with pytest.raises(asyncio.CancelledError):
            await serving

    in_a_house(story, tmp_path, server=ServerSettings(port=0))


async def _said_to(port: int, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    await writer.drain()
    return reader, writer


async def _refuses() -> None:
    raise UsageError("no store here")


def test_every_route_and_every_part_of_a_case_file_is_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
    routes = [
        route.path
        for route in asgi(cast("App", SimpleNamespace(settings=Settings(), desk_of_agents=SimpleNamespace()))).routes
        if isinstance(route, Route)
    ]
    assert len(routes) > 10
    for path in routes:
        written = re.sub(r"{(\w+)(?::path)?}", lambda part: part[1].upper(), path)
        assert written in page, f"{written} is not in docs/reference/http.md"
    for part in fields(CaseFile):
        assert f"`{part.name}`" in page, f"{part.name} of a case file is not in docs/reference/http.md"
