"""A disk that is really full: nothing that was acknowledged is lost, everybody is told, and space heals it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from quell.config import StoreSettings
from quell.domain import OverloadError, StoreError
from quell.signals import Receiver, Store
from tests._live_store import LiveStore, now
from tests._otlp_requests import PROTOBUF, logs
from tests._quell import quell, started, wait_for_line

pytestmark = pytest.mark.timeout(150)
DISK_MB = 96


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs leave to mount a file system: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _fill(place: Path, *, left_mb: int = 0) -> None:
    """Take every byte that is left, or all but some."""
    with (place / "ballast").open("ab", buffering=0) as ballast:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    ballast.write(b"\0" * size)
        ballast.truncate(ballast.tell() - (left_mb << 20))


def _kept(state: Path, *, wanted: set[int]) -> set[int]:
    """Ask the store itself until it has everything, or patience ends."""
    announced = json.loads((state / "store.json").read_text())
    sql = "SELECT DISTINCT toUInt32OrZero(extract(Body, 'number ([0-9]+)')) FROM otel_logs WHERE ServiceName = 'shop'"
    kept: set[int] = set()
    deadline = time.monotonic() + 30
    while not wanted <= kept and time.monotonic() < deadline:
        answer = httpx2.post(
            announced["url"], content=sql, headers={"X-ClickHouse-Key": announced["token"]}, timeout=10
        )
        kept = {int(line) for line in answer.text.split()} if answer.status_code == 200 else kept
        time.sleep(0.3)
    return kept


def test_a_server_on_a_full_disk_refuses_what_it_cannot_keep_and_goes_on_when_there_is_room(disk: Path) -> None:
    state = disk / "state"
    with started(f"--set=state_dir={state}", "serve", "--port", "0", cwd=disk) as server:
        wait_for_line(server, "ready: http://127.0.0.1:")
        url = json.loads((state / "serve.json").read_text())["url"]
        acknowledged: list[tuple[int, httpx2.Response]] = []
        refused: list[tuple[int, httpx2.Response]] = []
        with httpx2.Client(base_url=url, timeout=20) as client:

            def send(number: int) -> int:
                lines = [f"order number {number} {line} " + "x" * 2000 for line in range(20)]
                body = logs("shop", lines).SerializeToString()
                answer = client.post("/v1/logs", content=body, headers={"Content-Type": PROTOBUF})
                (acknowledged if answer.status_code == 200 else refused).append((number, answer))
                return answer.status_code

            assert [send(number) for number in range(5)] == [200] * 5
            _fill(disk)
            told = [send(number) for number in range(5, 400)]
            assert set(told) <= {200, 429, 503}, set(told)
            assert refused, "a full disk takes nothing"
            answer = refused[-1][1]
            assert int(answer.headers["Retry-After"]) >= 1
            assert any(os.strerror(errno.ENOSPC).encode() in answer.content for _, answer in refused), answer.content

            assert client.get("/health").status_code == 200, "the server lives"
            (disk / "ballast").unlink()
            deadline = time.monotonic() + 60
            while send(1000) != 200:
                assert time.monotonic() < deadline, "it goes on by itself once there is room"
                time.sleep(0.5)
            wanted = {number for number, _ in acknowledged}
            kept = _kept(state, wanted=wanted)
            assert wanted <= kept, f"acknowledged and lost: {sorted(wanted - kept)}"
        assert server.poll() is None
    assert quell(f"--set=state_dir={state}", "run", "list", cwd=disk).returncode == 0


def test_a_store_that_finds_no_room_to_start_says_so_at_once_and_leaves_nobody_behind(disk: Path) -> None:
    LiveStore(disk / "state").close()
    _fill(disk)
    began = time.monotonic()
    with pytest.raises(StoreError, match="is full") as caught:
        asyncio.run(Store.open(StoreSettings(), state_dir=disk / "state", clock=now))
    assert "free disk space" in caught.value.hint
    assert time.monotonic() - began < 30, "nobody waits for an owner that has given up"
    (disk / "ballast").unlink()
    again = LiveStore(disk / "state")  # nobody holds the lock
    again.close()


def test_upkeep_outlives_a_full_disk_on_which_not_even_its_complaint_can_be_written(disk: Path) -> None:
    sighted = "INSERT INTO quell_sightings SELECT 'shop', '{version}', '', now64(9) - {ago}, now64(9) - {ago}"
    derived = "SELECT count() AS n FROM quell_changes WHERE service = 'shop' AND after = '{version}'"
    live = LiveStore(disk / "state")
    try:
        for version, ago in (("v1", 60), ("v2", 4)):
            put = sighted.format(version=version, ago=ago)
            live.run(lambda put=put: live.store.client.command(put, timeout_s=10))  # type: ignore[misc] # bound now
        _fill(disk)
        time.sleep(25)  # a sighting waits ten seconds before it is written as a change, which now fails
        (disk / "ballast").unlink()
        for version in ("v2", "v3"):
            if version == "v3":
                put = sighted.format(version=version, ago=30)
                live.run(lambda put=put: live.store.client.command(put, timeout_s=10))  # type: ignore[misc] # bound now
            wanted = derived.format(version=version)
            assert live.until(wanted, 1, patience_s=30) == 1, f"{version} was never told"
    finally:
        live.close()


def test_the_last_of_a_disk_is_left_to_the_store_and_the_very_last_to_nobody(disk: Path) -> None:
    put = "INSERT INTO otel_logs (Timestamp, ServiceName, Body) SELECT now64(9), 'shop', 'line' FROM numbers(10)"
    live = LiveStore(disk / "state")
    try:
        receiver = live.receiver = live.run(
            lambda: Receiver.open(live.store, state_dir=disk / "state", clock=now, entropy=os.urandom)
        )
        body = logs("shop", ["one"]).SerializeToString()
        live.run(lambda: receiver.receive("logs", body, content_type=PROTOBUF))
        _fill(disk, left_mb=20)
        with pytest.raises(OverloadError, match=os.strerror(errno.ENOSPC)):
            live.run(lambda: receiver.receive("logs", body, content_type=PROTOBUF))
        live.run(lambda: live.store.client.command(put, timeout_s=10))
        assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'shop'", 11) == 11
        _fill(disk, left_mb=4)
        with pytest.raises(StoreError) as caught:  # a part cut short would be reported as stored
            live.run(lambda: live.store.client.command(put, timeout_s=10))
        assert caught.value.code == 243
        (disk / "ballast").unlink()
        assert live.run(lambda: receiver.receive("logs", body, content_type=PROTOBUF)).accepted == 1
    finally:
        live.close()
