"""Bad payloads, bad days: what the receiver refuses, puts aside, keeps, and never stores twice."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import resource
import shutil
import signal
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from quell.config import Secret, StoreSettings
from quell.domain import BoundExceededError, OverloadError, RefusedError, UsageError
from quell.signals import Receiver, Store
from quell.signals._receiver import Receipt
from tests._live_store import LiveStore, now
from tests._otlp_requests import JSON, PROTOBUF, logs, metrics

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStore]:
    live = LiveStore(tmp_path_factory.mktemp("trouble"))
    yield live
    live.close()


class Taking:
    """A receiver of its own directory before the shared store."""

    def __init__(
        self, live: LiveStore, state_dir: Path, *, body_max_bytes: int = 16 << 20, spool_max_bytes: int = 64 << 20
    ) -> None:
        self.live = live
        self.state_dir = state_dir
        self.receiver = live.run(
            lambda: Receiver.open(
                live.store,
                state_dir=state_dir,
                clock=now,
                entropy=os.urandom,
                body_max_bytes=body_max_bytes,
                spool_max_bytes=spool_max_bytes,
            )
        )

    def take(self, body: bytes, *, form: str = PROTOBUF, encoding: str = "", signal: str = "logs") -> Receipt:
        return self.live.run(lambda: self.receiver.receive(signal, body, content_type=form, content_encoding=encoding))  # type: ignore[arg-type] # the test's own word

    def close(self) -> None:
        self.live.run(self.receiver.close)

    def quarantine(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.state_dir / "quarantine").glob("*"))}


@pytest.fixture
def taking(live: LiveStore, tmp_path: Path) -> Iterator[Taking]:
    taking = Taking(live, tmp_path)
    yield taking
    taking.close()


def test_one_bad_part_among_good_ones_is_put_aside_and_the_answer_says_so(taking: Taking) -> None:
    good = logs("partial", ["one", "two"]).SerializeToString()
    bad = b"\x0a\x07\x12\xffsever"
    receipt = taking.take(good + bad + good)
    assert (receipt.accepted, receipt.rejected) == (4, 1)
    response = ExportLogsServiceResponse.FromString(receipt.response_body)
    assert response.partial_success.rejected_log_records == 1
    assert "quarantine" in response.partial_success.error_message
    assert taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'partial'", 4) == 4
    files = taking.quarantine()
    assert bad in files.values()
    assert any(name.endswith(".reason.txt") and content.strip() for name, content in files.items())


@pytest.mark.parametrize(
    ("body", "form", "encoding"),
    [
        (b"nonsense", PROTOBUF, ""),
        (b'{"resourceLogs": 7}', JSON, ""),
        (b'{"resourceLogs": [', JSON, ""),
        (b"[]", JSON, ""),
        (b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"xyz"}]}]}]}', JSON, ""),
        (b"\x0a" * 50_000, PROTOBUF, ""),
        (b'{"a":' * 5000, JSON, ""),
        (b"not gzip", PROTOBUF, "gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], PROTOBUF, "gzip"),
        (b"", "text/plain", ""),
        (b"", PROTOBUF, "br"),
    ],
)
def test_what_cannot_be_read_at_all_is_the_senders_mistake(
    taking: Taking, body: bytes, form: str, encoding: str
) -> None:
    with pytest.raises(UsageError) as caught:
        taking.take(body, form=form, encoding=encoding)
    assert caught.value.hint
    assert taking.receiver.status().accepted == 0


def test_a_body_that_is_too_large_is_refused_before_and_after_decompression(live: LiveStore, tmp_path: Path) -> None:
    taking = Taking(live, tmp_path, body_max_bytes=10_000)
    try:
        with pytest.raises(BoundExceededError):
            taking.take(logs("big", ["x" * 20_000]).SerializeToString())
        with pytest.raises(BoundExceededError):
            taking.take(gzip.compress(b"\x00" * 10_000_000), encoding="gzip")
    finally:
        taking.close()


def test_a_body_of_very_many_bad_parts_costs_little_and_its_first_good_part_is_stored(taking: Taking) -> None:
    good = logs("among-many", ["line"]).SerializeToString()
    bad = b"\x0a\x02\x12\xff"

    async def take_and_see_the_loop_turn() -> tuple[Receipt, float]:
        longest = 0.0
        taking_it = asyncio.create_task(taking.receiver.receive("logs", good + bad * 1_000_000, content_type=PROTOBUF))
        while not taking_it.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)
        return taking_it.result(), longest

    receipt, longest = taking.live.run(take_and_see_the_loop_turn)
    assert receipt.accepted == 1
    assert receipt.rejected >= 1
    assert longest < 3, "others are answered meanwhile"
    assert sum(map(len, taking.quarantine().values())) >= len(bad) * 1_000_000, "nothing of it is thrown away"


def test_a_body_of_several_gzip_members_is_taken_whole(taking: Taking) -> None:
    parts = [logs("members", [f"line {n}", "x" * 9000]).SerializeToString() for n in range(3)]
    receipt = taking.take(b"".join(map(gzip.compress, parts)), encoding="gzip")
    assert receipt.accepted == 6
    assert taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'members'", 6) == 6
    with pytest.raises(UsageError, match="too early"):
        taking.take(gzip.compress(parts[0]) + gzip.compress(parts[1])[:-9], encoding="gzip")


def test_a_payload_that_only_the_engine_refuses_is_put_aside_and_its_neighbours_are_stored_once(taking: Taking) -> None:
    day_ns = 86_400 * 10**9
    far_apart = logs("poison", ["x"] * 300, at_ns=time.time_ns(), apart_ns=day_ns).SerializeToString()
    neighbours = [logs("neighbour", [f"line {n}"]).SerializeToString() for n in range(5)]

    async def all_at_once() -> None:
        for body in (*neighbours[:3], far_apart, *neighbours[3:]):
            await taking.receiver.receive("logs", body, content_type=PROTOBUF)

    taking.live.run(all_at_once)
    taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'neighbour'", 5)
    while taking.receiver.status().spool_bytes:
        time.sleep(0.1)
    assert taking.live.number("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'neighbour'") == 5
    assert taking.live.number("SELECT sum(count) AS n FROM quell_patterns_1m WHERE service = 'neighbour'") == 5
    assert taking.live.number("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'poison'") == 0
    assert taking.receiver.status().quarantined == 1
    assert far_apart in taking.quarantine().values()


def test_a_segment_that_comes_again_after_a_crash_is_stored_once(live: LiveStore, tmp_path: Path) -> None:
    first = Taking(live, tmp_path)
    spool = tmp_path / "spool" / "slot-0"
    receipt = first.take(logs("again", [f"line {n}" for n in range(40)]).SerializeToString())
    first.take(metrics("again").SerializeToString(), signal="metrics")
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in spool.glob("*.seg"):
        shutil.copy(path, kept / path.name)
    assert live.until("SELECT sum(count) AS n FROM quell_patterns_5s WHERE service = 'again'", receipt.accepted) == 40
    first.close()
    copies = list(kept.glob("*.seg"))
    assert copies
    assert not list(spool.glob("*.seg"))
    for path in copies:  # as if the process had died after the insert and before the removal
        shutil.copy(path, spool / path.name)
    second = Taking(live, tmp_path)
    while second.receiver.status().spool_bytes:
        time.sleep(0.05)
    second.close()
    assert second.receiver.status().batches == len(copies)
    for sql in (
        "SELECT count() AS n FROM otel_logs WHERE ServiceName = 'again'",
        "SELECT sum(count) AS n FROM quell_patterns_5s WHERE service = 'again'",
        "SELECT sum(count) AS n FROM quell_patterns_1m WHERE service = 'again'",
    ):
        assert live.number(sql) == 40, sql
    assert live.number("SELECT count() AS n FROM otel_metrics_gauge WHERE ServiceName = 'again'") == 3


def test_the_same_request_sent_twice_is_stored_twice(taking: Taking) -> None:
    body = logs("twice", ["same"], at_ns=time.time_ns()).SerializeToString()
    taking.take(body)
    taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'twice'", 1)
    taking.take(body)
    assert taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'twice'", 2) == 2


def test_a_torn_write_is_put_aside_and_what_was_acknowledged_before_it_is_stored(
    live: LiveStore, tmp_path: Path
) -> None:
    first = Taking(live, tmp_path)
    first.take(logs("torn", ["whole"]).SerializeToString())
    spool = tmp_path / "spool" / "slot-0"
    whole = next(spool.glob("*.seg")).read_bytes()
    first.close()
    (spool / "0000000099-00aa.seg").write_bytes(whole + whole[: len(whole) // 2])
    second = Taking(live, tmp_path)
    assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'torn'", 2) == 2
    second.close()
    assert whole[: len(whole) // 2] in second.quarantine().values()


def test_what_was_acknowledged_behind_a_damaged_frame_is_stored_and_the_damage_is_put_aside(
    live: LiveStore, tmp_path: Path
) -> None:
    spool = tmp_path / "spool" / "slot-0"
    frames = []
    for word in ("first", "second", "third"):
        taking = Taking(live, tmp_path)
        taking.take(logs("damage", [word]).SerializeToString())
        frames.append(next(spool.glob("*.seg")).read_bytes())
        taking.close()
    spoiled = frames[1][:-3] + bytes(255 - byte for byte in frames[1][-3:])
    shifted = frames[1][:5] + b"\xff" + frames[1][6:]  # a length that leads beyond the end
    (spool / "0000000098-00aa.seg").write_bytes(frames[0] + spoiled + frames[2])
    (spool / "0000000099-00bb.seg").write_bytes(frames[0] + shifted + frames[2])
    before = live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'damage'", 3)
    taking = Taking(live, tmp_path)
    assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'damage'", before + 4) == 7
    taking.close()
    assert {spoiled, shifted} <= set(taking.quarantine().values())


def test_a_segment_that_is_gone_or_cannot_be_read_keeps_none_behind_it_waiting(live: LiveStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool" / "slot-0"
    (spool / "0000000001-00aa.seg").mkdir(parents=True)  # nobody can read a directory as a segment
    (spool / "0000000002-00bb.seg").write_bytes(b"")
    taking = Taking(live, tmp_path)
    try:
        (spool / "0000000002-00bb.seg").unlink()
        taking.take(logs("behind", ["line"]).SerializeToString())
        assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'behind'", 1, patience_s=30) == 1
        status = taking.receiver.status()
        assert status.failures
        assert "spool" in status.last_failure
        assert (spool / "0000000001-00aa.unreadable").exists()
    finally:
        taking.close()


def test_nonsense_at_the_door_takes_no_place_from_what_was_acknowledged_and_could_not_be_stored(
    live: LiveStore, tmp_path: Path
) -> None:
    (tmp_path / "quarantine").mkdir()
    for number in range(2002):
        (tmp_path / "quarantine" / f"nonsense-{number}").touch()
    taking = Taking(live, tmp_path)
    day_ns = 86_400 * 10**9
    far_apart = logs("poison", ["y"] * 300, at_ns=time.time_ns(), apart_ns=day_ns).SerializeToString()
    taking.take(far_apart)
    while taking.receiver.status().spool_bytes:
        time.sleep(0.1)
    taking.close()
    assert far_apart in taking.quarantine().values()


def test_a_full_spool_sheds_load_and_says_when_to_come_back(live: LiveStore, tmp_path: Path) -> None:
    taking = Taking(live, tmp_path, spool_max_bytes=50_000)
    try:
        with pytest.raises(OverloadError) as caught:
            taking.take(logs("flood", ["x" * 20_000] * 3).SerializeToString())
        assert caught.value.retry_after_s > 0
        assert caught.value.hint
    finally:
        taking.close()


def test_a_full_disk_sheds_load_and_loses_nothing_of_what_was_acknowledged(taking: Taking) -> None:
    taken = taking.take(logs("disk", ["before"]).SerializeToString()).accepted
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OverloadError, match="cannot be written") as caught:
            taking.take(logs("disk", ["x" * 100_000]).SerializeToString())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.retry_after_s > 0
    taken += taking.take(logs("disk", ["after"]).SerializeToString()).accepted
    assert taking.live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'disk'", taken) == 2


def test_a_store_whose_disk_is_full_gets_everything_once_there_is_room(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # the owner inherits it: no file of it can grow beyond
    try:
        live = LiveStore(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    taking = Taking(live, tmp_path)
    try:
        noise = random.Random(1)
        bodies = ["".join(noise.choices(string.printable[:90], k=2000)) for _ in range(100)]
        assert taking.take(logs("room", bodies).SerializeToString()).accepted == 100
        while not taking.receiver.status().failures:
            time.sleep(0.1)
        assert taking.receiver.status().spool_bytes > 0
        os.kill(live.run(live.store.status).pid, signal.SIGKILL)  # the next owner has no such limit
        assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'room'", 100, patience_s=40) == 100
        assert live.until("SELECT sum(count) AS n FROM quell_patterns_1m WHERE service = 'room'", 100) == 100
        assert taking.receiver.status().quarantined == 0
    finally:
        taking.close()
        live.close()


def test_segments_of_a_process_that_is_gone_are_taken_up(live: LiveStore, tmp_path: Path) -> None:
    first = Taking(live, tmp_path)
    first.take(logs("orphan", ["x"]).SerializeToString())
    content = next((tmp_path / "spool" / "slot-0").glob("*.seg")).read_bytes()
    orphaned = tmp_path / "spool" / "slot-7"
    orphaned.mkdir()
    (orphaned / "0000000001-ffee.seg").write_bytes(content)
    second = Taking(live, tmp_path)  # slot 0 is held, so this one takes slot 1, and adopts slot 7
    try:
        assert live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'orphan'", 2) == 2
        assert not list(orphaned.glob("*.seg"))
    finally:
        second.close()
        first.close()


def test_a_store_that_is_not_ours_takes_nothing(live: LiveStore, tmp_path: Path) -> None:
    endpoint = live.store.client.endpoint
    settings = StoreSettings(url=endpoint.url, password=Secret(endpoint.password), database="system")

    async def try_it() -> None:
        foreign = await Store.open(settings, state_dir=tmp_path, clock=now)
        receiver = await Receiver.open(foreign, state_dir=tmp_path, clock=now, entropy=os.urandom)
        try:
            await receiver.receive("logs", b"", content_type=PROTOBUF)
        finally:
            await receiver.close()
            await foreign.close()

    with pytest.raises(RefusedError) as caught:
        live.run(try_it)
    assert "create_tables" in caught.value.hint
