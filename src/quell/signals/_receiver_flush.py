"""From the spool into the store: batches under a token, retries, and the search for the one payload that spoils a batch."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass

from quell.domain import StoreError
from quell.signals._receiver_quarantine import Quarantine
from quell.signals._schema_otlp import CHANGES_RAW_TABLE, SIGNALS, insert_settings
from quell.signals._spool import SEGMENT_BYTES, Segment, Spool
from quell.signals._store import Store

KINDS = {"logs": 1, "traces": 2, "metrics": 3, "changes": 4}
_NAMES = {number: name for name, number in KINDS.items()}
_INSERT_S = 60.0
_INTERVAL_MIN_S = 0.3
_INTERVAL_MAX_S = 0.8
_REST_FACTOR = 2.0
_BACKOFF_MIN_S = 0.2
_BACKOFF_MAX_S = 3.0
_CLOSE_S = 10.0
_BATCH_TRIES_MAX = 3
_PAYLOAD_TRIES_MAX = 10
# Failures that are about the store and not about the payload: time, memory, disk, tables, closing, permission, network.
_OF_STORE = frozenset(
    {
        60,
        74,
        75,
        76,
        81,
        107,
        159,
        164,
        173,
        202,
        209,
        210,
        236,
        241,
        242,
        243,
        252,
        373,
        394,
        425,
        439,
        497,
        516,
        1001,
        1002,
    }
)
_PERHAPS_OF_PAYLOAD = frozenset({None, 241, 1001, 1002})
_TOO_MANY_OPEN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_READ_TRIES_MAX = 5
_TOO_MANY_PARTITIONS = "Too many partitions"
_TAIL = "bytes after the last whole frame: a write that was cut, never acknowledged"
_DAMAGED = "bytes between whole frames: the disk did not keep what was acknowledged"
_BATCH_SETTINGS = {
    "deduplicate_insert": "enable",
    "insert_deduplicate": "1",
    "deduplicate_blocks_in_dependent_materialized_views": "1",
    # One thread and one view after another: the same batch makes the same blocks, so a repeated one is recognised.
    "max_threads": "1",
    "max_insert_threads": "1",
    "parallel_view_processing": "0",
}


@dataclass(slots=True)
class FlushCounts:
    """What the flusher did since it began."""

    batches: int = 0
    payloads: int = 0
    failures: int = 0
    last_failure: str = ""
    lag_s: float = 0.0
    """How long the oldest payload of the last batch waited at most."""


class Flusher:
    """Moves sealed segments into the store, in order, for as long as it runs."""

    def __init__(self, store: Store, spool: Spool, quarantine: Quarantine) -> None:
        self._store = store
        self._spool = spool
        self._quarantine = quarantine
        self._dirty = asyncio.Event()
        self._full = asyncio.Event()
        self._tries: dict[str, int] = {}
        self._unread = 0
        self._uncertain = True
        self._closing = False
        self.counts = FlushCounts()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def noted(self) -> None:
        """Say that something was spooled."""
        self._dirty.set()
        if self._spool.open_bytes >= SEGMENT_BYTES:
            self._full.set()

    async def close(self) -> None:
        """Move what can be moved in a short time, then stop."""
        self._closing = True
        self._dirty.set()
        self._full.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._task, _CLOSE_S)

    async def _run(self) -> None:
        interval_s, backoff_s = _INTERVAL_MIN_S, _BACKOFF_MIN_S
        while True:
            if not self._closing and not self._spool.bytes_waiting:
                await self._dirty.wait()
            self._dirty.clear()
            began = time.monotonic()
            await self._rest(interval_s)
            started = time.monotonic()
            if await self._move():
                self.counts.lag_s = time.monotonic() - began
                interval_s = min(_INTERVAL_MAX_S, max(_INTERVAL_MIN_S, _REST_FACTOR * (time.monotonic() - started)))
                backoff_s = _BACKOFF_MIN_S
                if self._closing and not self._spool.bytes_waiting:
                    return
            else:
                interval_s = backoff_s  # while the store is away, segments grow instead of multiplying
                backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)

    async def _rest(self, interval_s: float) -> None:
        """Gather for a while; a full segment or the end ends it."""
        self._full.clear()
        if self._closing:
            interval_s = min(interval_s, _BACKOFF_MIN_S)
            await asyncio.sleep(interval_s if self._tries else 0)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), interval_s)

    async def _move(self) -> bool:
        """Seal and store; False when the store or the disk must be waited for."""
        try:
            await self._spool.seal()
            return await self._drain()
        except OSError as error:  # whatever the disk does today, tomorrow we go on
            self._failed(f"spool: {error}")
            return False

    async def _drain(self) -> bool:
        """Store every sealed segment; False when the store must be waited for. Raises OSError when the disk must."""
        while True:
            try:
                segment = await asyncio.to_thread(self._spool.first_sealed)
            except OSError as error:
                self._unread += error.errno not in _TOO_MANY_OPEN
                if not isinstance(error, FileNotFoundError) and self._unread < _READ_TRIES_MAX:
                    raise
                self._failed(f"spool: {error}")
                self._spool.set_aside()
                continue
            self._unread = 0
            if segment is None:
                return True
            self._put_aside(segment)
            for kind in sorted({frame.kind for frame in segment.frames}):
                if not await self._store_kind(segment, kind):
                    return False
            self._spool.remove(segment)
            self._tries.clear()
            self.counts.batches += 1
            self.counts.payloads += len(segment.frames)

    def _put_aside(self, segment: Segment) -> None:
        """Keep what is no frame. Raises OSError when the disk does not take it."""
        for number, piece in enumerate(segment.damaged):
            self._quarantine.put(f"{segment.name}.damaged-{number}", piece, reason=_DAMAGED, standing="acknowledged")
        if segment.tail:
            self._quarantine.put(f"{segment.name}.tail", segment.tail, reason=_TAIL, standing="acknowledged")

    def _failed(self, failure: str) -> None:
        self.counts.failures += 1
        self.counts.last_failure = failure

    async def _store_kind(self, segment: Segment, kind: int) -> bool:
        payloads = [frame.payload for frame in segment.frames if frame.kind == kind]
        token = f"{segment.name}-{kind}"
        if self._tries.get(token, 0) < _BATCH_TRIES_MAX:
            outcome = await self._insert(kind, b"".join(payloads), token=token)
            if outcome is None:
                return True
            if is_of_store(outcome):
                return False
        # One of them spoils the batch: store each under its own token, which a repeated search finds again.
        for number, payload in enumerate(payloads):
            if not await self._store_one(kind, payload, token=f"{token}-{number}"):
                return False
        return True

    async def _store_one(self, kind: int, payload: bytes, *, token: str) -> bool:
        outcome = await self._insert(kind, payload, token=token)
        if outcome is None:
            return True
        if is_of_store(outcome) and not (
            is_fault_of_payload_likely(outcome) and self._tries.get(token, 0) >= _PAYLOAD_TRIES_MAX
        ):
            return False
        try:
            self._quarantine.put(
                f"{token}.{_NAMES.get(kind, 'unknown')}", payload, reason=str(outcome), standing="acknowledged"
            )
        except OSError as error:  # no room to put it aside: it stays in the spool
            self.counts.last_failure = f"quarantine: {error}"
            return False
        return True

    async def _insert(self, kind: int, content: bytes, *, token: str) -> StoreError | None:
        name = _NAMES.get(kind)
        if name is None:
            return StoreError(f"a frame of unknown kind {kind}", code=0)
        if self._uncertain and not await self._store.answers():
            return StoreError("the store does not answer")
        table, form, extra = _route(name)
        settings = {**extra, **_BATCH_SETTINGS, "insert_deduplication_token": token}
        try:
            await self._store.client.insert(table, content, input_format=form, settings=settings, timeout_s=_INSERT_S)
        except StoreError as error:
            self._failed(str(error))
            # The store was there before: this payload may be what ended it.
            self._tries[token] = self._tries.get(token, 0) + 1
            self._uncertain = True
            return error
        self._uncertain = False
        return None


def _route(name: str) -> tuple[str, str, Mapping[str, str]]:
    if name == "changes":
        return CHANGES_RAW_TABLE, "JSONEachRow", {"date_time_input_format": "best_effort"}
    return SIGNALS[name].raw_table, "ProtobufSingle", insert_settings(name)


def is_of_store(error: StoreError) -> bool:
    """Tell whether the store is to blame, so that the same payload may do later."""
    if error.code is None:
        return True
    return error.code in _OF_STORE and _TOO_MANY_PARTITIONS not in str(error)


def is_fault_of_payload_likely(error: StoreError) -> bool:
    """Tell whether a payload that failed again and again, alone, may be put aside: it kills the engine or its memory."""
    return error.code in _PERHAPS_OF_PAYLOAD
