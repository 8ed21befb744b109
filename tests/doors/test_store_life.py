"""The life of the embedded store: opened, closed, killed, left alone, kept within its bounds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from quell.config import StoreSettings
from quell.domain import StoreError
from quell.signals import Store
from tests._live_store import LiveStore, now

pytestmark = pytest.mark.timeout(90)

_PUT = "INSERT INTO otel_logs (Timestamp, ServiceName, SeverityText, Body) SELECT now64(9) - number, 'put', 'INFO', 'line ' || toString(number) FROM numbers(100)"


def test_what_was_stored_is_there_after_a_clean_end_and_no_process_stays(tmp_path: Path) -> None:
    first = LiveStore(tmp_path)
    first.run(lambda: first.store.client.command(_PUT, timeout_s=10))
    pid = first.run(first.store.status).pid
    first.close()
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "store.json").exists()
    assert (tmp_path / "store.log").read_text() == ""
    second = LiveStore(tmp_path)
    try:
        assert second.number("SELECT count() AS n FROM otel_logs") == 100
        assert second.number("SELECT sum(count) AS n FROM quell_patterns_1m") == 100
        assert second.run(second.store.status).memory_bytes < 500 << 20
    finally:
        second.close()


def test_sigterm_ends_the_owner_cleanly_even_while_it_works(tmp_path: Path) -> None:
    live = LiveStore(tmp_path)
    owner = psutil.Process(live.run(live.store.status).pid)

    async def end_it_in_mid_query() -> str:
        asking = asyncio.create_task(
            live.store.client.rows("SELECT sum(sleepEachRow(0.1)) AS n FROM numbers(15)", row=dict, timeout_s=10)
        )
        await asyncio.sleep(0.3)
        owner.send_signal(signal.SIGTERM)
        try:
            return str(await asking)
        except StoreError as error:
            return str(error)

    try:
        assert live.run(end_it_in_mid_query) == "[{'n': 0}]"  # what runs is finished
    finally:
        live.close()
    assert "Segmentation" not in (tmp_path / "store.log").read_text()


def test_a_killed_owner_is_brought_back_and_errors_in_between_say_so(tmp_path: Path) -> None:
    live = LiveStore(tmp_path)
    try:
        before = live.run(live.store.status)
        os.kill(before.pid, signal.SIGKILL)

        async def ask_until_it_answers() -> list[StoreError]:
            errors: list[StoreError] = []
            for _ in range(300):
                try:
                    await live.store.client.rows("SELECT 1 AS n", row=dict, timeout_s=2)
                except StoreError as error:
                    errors.append(error)
                    await asyncio.sleep(0.1)
                else:
                    return errors
            raise AssertionError("it never came back")

        errors = live.run(ask_until_it_answers)
        assert errors
        assert all(error.hint for error in errors)
        live.run(lambda: asyncio.sleep(0.2))
        after = live.run(live.store.status)
        assert after.pid != before.pid
        assert (after.restarts, after.state) == (1, "ready")
    finally:
        live.close()


_PARENT = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from quell.config import StoreSettings
from quell.signals import Store

async def main():
    store = await Store.open(StoreSettings(), state_dir=Path(sys.argv[1]), clock=lambda: datetime.now(UTC))
    print((await store.status()).pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_an_owner_leaves_by_itself_when_its_parent_was_killed_and_nobody_asks(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.pid_exists(pid)
    deadline = time.monotonic() + 40
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "store.json").exists()


def test_an_owner_whose_parent_was_killed_serves_on_for_those_who_ask(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    live = LiveStore(tmp_path)
    try:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        live.run(lambda: asyncio.sleep(13))
        status = live.run(live.store.status)
        assert (status.pid, status.restarts) == (pid, 0)
    finally:
        live.close()
    assert not psutil.pid_exists(pid)


def test_the_oldest_telemetry_goes_when_the_disk_bound_is_passed(tmp_path: Path) -> None:
    # Each day's lines lie in one partition of six hours, whatever the time of day is now: what goes, goes whole.
    fill = (
        "INSERT INTO otel_logs (Timestamp, ServiceName, Body) SELECT"
        " toStartOfInterval(now() - INTERVAL {days} DAY, INTERVAL 6 HOUR, 'UTC') + 3600 + number, 'fill',"
        " hex(randomString(400)) FROM numbers(4000)"
    )
    first = LiveStore(tmp_path)
    for days in (2, 1):
        first.run(lambda days=days: first.store.client.command(fill.replace("{days}", str(days)), timeout_s=20))  # type: ignore[misc] # bound now
    first.close()
    second = LiveStore(tmp_path, settings=StoreSettings(disk_max_mb=2))
    try:
        old = now() - timedelta(hours=40)
        sql = f"SELECT count() AS n FROM otel_logs WHERE Timestamp < fromUnixTimestamp64Nano({int(old.timestamp())} * 1000000000)"
        assert second.until(sql, 0) == 0
        assert second.number("SELECT count() AS n FROM otel_logs") > 0
    finally:
        second.close()


def test_telemetry_of_a_clock_that_runs_ahead_does_not_outlive_what_is_younger(tmp_path: Path) -> None:
    fill = "INSERT INTO otel_logs (Timestamp, ServiceName, Body) SELECT {at}, '{service}', hex(randomString(400)) FROM numbers({rows})"
    first = LiveStore(tmp_path)
    # All of one moment: rows that lie on both sides of a partition's edge would be two partitions.
    ahead = fill.format(at="now64(9) + INTERVAL 20 YEAR", service="ahead", rows=5000)
    first.run(lambda: first.store.client.command(ahead, timeout_s=20))
    first.run(lambda: asyncio.sleep(1.1))
    right = fill.format(at="now64(9)", service="right", rows=1000)
    first.run(lambda: first.store.client.command(right, timeout_s=20))
    first.close()
    second = LiveStore(tmp_path, settings=StoreSettings(disk_max_mb=2))
    try:
        assert second.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'ahead'", 0) == 0
        assert second.number("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'right'") == 1000
    finally:
        second.close()


def test_a_flood_of_names_fills_at_most_half_the_disk_with_rollups(tmp_path: Path) -> None:
    letters = (
        "translate(lower(hex(randomString(60))), '0123456789', 'ghijklmnop')"  # nothing that a template would mask
    )
    fill = f"INSERT INTO otel_logs (Timestamp, ServiceName, Body) SELECT now64(9) - INTERVAL 26 HOUR, 'flood', arrayStringConcat(extractAll({letters}, '.{{{{1,7}}}}'), ' ') FROM numbers(15000)"
    first = LiveStore(tmp_path)
    first.run(lambda: first.store.client.command(fill.replace("{{", "{").replace("}}", "}"), timeout_s=30))
    first.run(lambda: first.store.client.command(_PUT, timeout_s=20))
    rollups = "SELECT sum(bytes_on_disk) AS n FROM system.parts WHERE active AND startsWith(table, 'quell_')"
    assert first.number(rollups) > 2 << 20
    first.close()
    second = LiveStore(tmp_path, settings=StoreSettings(disk_max_mb=4))
    try:
        assert second.until("SELECT count() AS n FROM quell_patterns_1m WHERE service = 'flood'", 0) == 0
        assert second.number("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'put'") == 100
        assert second.number("SELECT sum(count) AS n FROM quell_patterns_1m WHERE service = 'put'") == 100
    finally:
        second.close()


def test_retention_that_was_changed_holds_for_tables_that_exist(tmp_path: Path) -> None:
    first = LiveStore(tmp_path, settings=StoreSettings(retention_hours=400))
    first.run(lambda: first.store.client.command(_PUT.replace("now64(9)", "now64(9) - INTERVAL 5 DAY"), timeout_s=10))
    assert first.number("SELECT count() AS n FROM otel_logs") == 100
    first.close()
    second = LiveStore(tmp_path, settings=StoreSettings(retention_hours=24))
    try:
        assert second.until("SELECT count() AS n FROM otel_logs", 0) == 0
    finally:
        second.close()


def test_an_owner_that_was_stopped_while_it_laid_its_tables_leaves_a_store_that_can_still_be_laid(
    tmp_path: Path,
) -> None:
    LiveStore(tmp_path).close()
    mark = (tmp_path / "store.schema").read_text()
    half = LiveStore(tmp_path)
    for name in ("quell_raw_logs_mv", "quell_red_5s_mv"):  # views go first when tables are laid anew
        half.run(lambda name=name: half.store.client.command(f"DROP TABLE {name}", timeout_s=10))  # type: ignore[misc] # bound now
    half.close()
    assert (tmp_path / "store.schema").read_text() == mark
    whole = LiveStore(tmp_path)
    try:
        sql = "SELECT count() AS n FROM system.tables WHERE name IN ('quell_raw_logs_mv', 'quell_red_5s_mv')"
        assert whole.number(sql) == 2
    finally:
        whole.close()


def test_a_stale_announcement_whose_port_now_belongs_to_somebody_else_is_no_store(tmp_path: Path) -> None:
    class Somebody(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"welcome")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Somebody) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            words = {"pid": os.getpid(), "url": f"http://127.0.0.1:{server.server_port}", "token": "stale"}
            (tmp_path / "store.json").write_text(json.dumps(words))
            live = LiveStore(tmp_path)
            try:
                assert live.number("SELECT 1 AS n") == 1
                assert live.run(live.store.status).pid != os.getpid()
            finally:
                live.close()
        finally:
            server.shutdown()


def test_an_owner_that_could_not_be_started_for_a_while_is_started_when_it_can_be(tmp_path: Path) -> None:
    live = LiveStore(tmp_path)
    try:
        (tmp_path / "store.log").unlink()
        (tmp_path / "store.log").mkdir()  # as a full disk does: the log cannot be opened
        os.kill(live.run(live.store.status).pid, signal.SIGKILL)
        live.run(lambda: asyncio.sleep(4))
        assert "cannot be" in live.run(live.store.status).failure
        (tmp_path / "store.log").rmdir()
        assert live.until("SELECT 1 AS n", 1) == 1
    finally:
        live.close()


def test_a_store_that_is_only_busy_is_left_at_its_work(tmp_path: Path) -> None:
    live = LiveStore(tmp_path)

    async def keep_every_reader_busy() -> None:
        slow = "SELECT sleep(2.9), {number}"
        asks = [live.store.client.command(slow.format(number=number), timeout_s=50) for number in range(12 * 3)]
        await asyncio.gather(*asks)

    try:
        pid = live.run(live.store.status).pid
        live.run(keep_every_reader_busy)
        status = live.run(live.store.status)
        assert (status.pid, status.restarts) == (pid, 0)
    finally:
        live.close()


def test_a_store_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(StoreError, match="ended with code") as caught:
        asyncio.run(Store.open(StoreSettings(), state_dir=tmp_path, clock=now))
    assert "store.log" in caught.value.hint
