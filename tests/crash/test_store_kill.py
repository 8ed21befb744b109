"""kill -9 of the store and of the receiver: nothing that was acknowledged is lost, and nothing is stored twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quell.signals import Receiver
from tests._live_store import LiveStore, now
from tests.crash._kills import LINES, SERVICE, Sender, storm

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


def count_after(sender: Sender) -> tuple[dict[int, int], LiveStore]:
    """Open the store once more, let it take up what is spooled, and count lines by request."""
    sender.kill()
    live = LiveStore(sender.state_dir)
    receiver = live.receiver = live.run(
        lambda: Receiver.open(live.store, state_dir=live.state_dir, clock=now, entropy=os.urandom)
    )
    deadline = time.monotonic() + 60
    while receiver.status().spool_bytes and time.monotonic() < deadline:
        time.sleep(0.1)
    assert receiver.status().spool_bytes == 0
    assert receiver.status().quarantined <= 1, "at most the write that was cut"
    rows = live.rows(
        f"SELECT toUInt32(LogAttributes['request']) AS request, count() AS n FROM otel_logs WHERE ServiceName = '{SERVICE}' GROUP BY request",
        dict,
    )
    return {row["request"]: row["n"] for row in rows}, live


@pytest.mark.parametrize("receiver_every", [0, 2], ids=["store", "store-and-receiver"])
def test_no_acknowledged_line_is_lost_or_doubled_over_kills(tmp_path: Path, receiver_every: int) -> None:
    sender = Sender(tmp_path)
    try:
        assert storm(sender, kills=4, seed=receiver_every, every_s=(0.3, 1.5), receiver_every=receiver_every) == 4
        stored, live = count_after(sender)
    finally:
        sender.kill()
    try:
        assert len(sender.acknowledged) > 20
        assert {number: stored.get(number, 0) for number in sender.acknowledged} == dict.fromkeys(
            sender.acknowledged, LINES
        )
        assert set(stored.values()) == {LINES}  # what was in flight is there whole or not at all
        for table in ("quell_patterns_5s", "quell_patterns_1m"):
            assert live.number(f"SELECT sum(count) AS n FROM {table} WHERE service = '{SERVICE}'") == sum(
                stored.values()
            )
    finally:
        live.close()
