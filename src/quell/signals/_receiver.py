"""The receiver: OTLP in, acknowledged when it is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from quell.domain import BoundExceededError, ObservedChange, RefusedError, UsageError
from quell.signals._otlp import flatten, from_json, from_protobuf, response_to
from quell.signals._otlp_probe import Look, SignalName, look, resources_of
from quell.signals._receiver_flush import KINDS, Flusher
from quell.signals._receiver_quarantine import Quarantine
from quell.signals._spool import Spool
from quell.signals._store import Store

_THREAD_BYTES = 256 * 1024
_INFLATE_BYTES = 4096
_DETAIL_CHARS = 200
_PIECES_MAX = 500
"""A body that cannot be read whole is looked at in so many parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The answer to one export request."""

    accepted: int
    """Log records, spans or data points that are on disk now."""
    rejected: int
    """Those that are not; their payload is in quarantine. At least one per piece that could not be read."""
    message: str
    response_body: bytes
    """The export response, in the content type of the request."""
    content_type: Literal["application/x-protobuf", "application/json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverStatus:
    """How the receiver is."""

    accepted: int
    rejected: int
    quarantined: int
    """Payloads and pieces put aside since the start, at the door or later by the store."""
    spool_bytes: int
    batches: int
    failures: int
    last_failure: str
    lag_s: float
    """Time from the first payload of the last batch until it could be asked for."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    payload: bytes
    accepted: int
    refused: tuple[tuple[bytes, str], ...] = ()


class Receiver:
    """Takes telemetry and changes for one store."""

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        state_dir: Path,
        clock: Callable[[], datetime],
        entropy: Callable[[int], bytes],
        body_max_bytes: int,
    ) -> None:
        self._store = store
        self._spool = spool
        self._clock = clock
        self._entropy = entropy
        self._body_max_bytes = body_max_bytes
        self._quarantine = Quarantine(state_dir / "quarantine")
        self._flusher = Flusher(store, spool, self._quarantine)
        self._accepted = 0
        self._rejected = 0

    @classmethod
    async def open(
        cls,
        store: Store,
        *,
        state_dir: Path,
        clock: Callable[[], datetime],
        entropy: Callable[[int], bytes],
        body_max_bytes: int = 16 << 20,
        spool_max_bytes: int = 512 << 20,
    ) -> Receiver:
        """Open the spool under the state directory, take up what an earlier process left there, and begin to flush."""
        spool = await asyncio.to_thread(
            lambda: Spool.open(state_dir / "spool", entropy=entropy, bytes_max=spool_max_bytes)
        )
        return cls(store, spool, state_dir=state_dir, clock=clock, entropy=entropy, body_max_bytes=body_max_bytes)

    async def receive(
        self, signal: SignalName, body: bytes, *, content_type: str, content_encoding: str = ""
    ) -> Receipt:
        """Take one export request; what it accepts is synced to disk when this returns.

        Raises UsageError when nothing of the body can be read, BoundExceededError when it is too large,
        OverloadError when there is no room, RefusedError when the store takes no telemetry from us.
        """
        self._admit()
        form = _form_of(content_type)
        plain = await self._decoded(body, content_encoding)
        large = len(plain) > _THREAD_BYTES or form == "application/json"
        prepared = await asyncio.to_thread(_prepare, signal, plain, form) if large else _prepare(signal, plain, form)
        if prepared.payload:
            await self._spool.append(kind=KINDS[signal], payload=prepared.payload)
            self._flusher.noted()
        message = self._put_aside(signal, prepared)
        if prepared.refused and not prepared.payload:
            raise UsageError(
                f"nothing of the request could be read: {prepared.refused[0][1]}",
                hint=f"send OTLP of {signal} as protobuf or JSON; the body is in quarantine",
            )
        rejected = len(prepared.refused)
        self._accepted += prepared.accepted
        self._rejected += rejected
        return Receipt(
            accepted=prepared.accepted,
            rejected=rejected,
            message=message,
            response_body=response_to(signal, rejected=rejected, message=message, as_json=form == "application/json"),
            content_type=form,
        )

    async def record_change(self, change: ObservedChange) -> None:
        """Take one change that somebody reports; it is on disk when this returns. The same change twice counts once."""
        self._admit()
        row = {
            "at": change.at.isoformat(),
            "change": change.change.value,
            "service": change.service,
            "subject": change.subject,
            "before": change.before,
            "after": change.after,
            "detail": "".join(letter if letter.isprintable() else " " for letter in change.detail[:_DETAIL_CHARS]),
            "source": "api",
        }
        await self._spool.append(kind=KINDS["changes"], payload=msgspec.json.encode(row) + b"\n")
        self._flusher.noted()

    def status(self) -> ReceiverStatus:
        """Tell what was taken, put aside and is still waiting."""
        counts = self._flusher.counts
        return ReceiverStatus(
            accepted=self._accepted,
            rejected=self._rejected,
            quarantined=self._quarantine.count,
            spool_bytes=self._spool.bytes_waiting,
            batches=counts.batches,
            failures=counts.failures,
            last_failure=counts.last_failure,
            lag_s=counts.lag_s,
        )

    async def close(self) -> None:
        """Move what is spooled into the store if that goes quickly; the rest stays on disk for the next time."""
        await self._flusher.close()
        await self._spool.close()

    def _admit(self) -> None:
        if not self._store.receives:
            raise RefusedError(
                "this store takes no telemetry from Quell: its tables were made by somebody else",
                hint='set store.create_tables = "always", or send telemetry through a collector',
            )

    def _put_aside(self, signal: SignalName, prepared: _Prepared) -> str:
        stamp = f"{self._clock():%Y%m%dT%H%M%S}-{self._entropy(4).hex()}"
        for number, (piece, reason) in enumerate(prepared.refused):
            with contextlib.suppress(OSError):  # the sender hears of it either way
                self._quarantine.put(f"{stamp}-{number}.{signal}", piece, reason=reason)
        if not prepared.refused:
            return ""
        return (
            f"{len(prepared.refused)} part(s) could not be read and are in quarantine: {prepared.refused[0][1][:200]}"
        )

    async def _decoded(self, body: bytes, encoding: str) -> bytes:
        if len(body) > self._body_max_bytes:
            raise BoundExceededError(
                "the request body", limit=self._body_max_bytes, hint="send smaller batches, or raise server.body_max_mb"
            )
        if encoding.strip().lower() in {"", "identity"}:
            return body
        if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
            raise UsageError(f"content encoding {encoding!r} is not supported", hint="send gzip or none")
        if len(body) > _THREAD_BYTES // 8:
            return await asyncio.to_thread(self._inflated, body)
        return self._inflated(body)

    def _inflated(self, body: bytes) -> bytes:
        """Undo the compression of one member or of several laid end to end, which are one body."""
        pieces: list[bytes] = []
        room, at = self._body_max_bytes, 0
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            while at < len(body):
                if decoder.eof:
                    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
                piece = decoder.decompress(body[at : at + _INFLATE_BYTES], room + 1)
                at = min(at + _INFLATE_BYTES, len(body)) - len(decoder.unconsumed_tail) - len(decoder.unused_data)
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise BoundExceededError(
                        "the request body after decompression",
                        limit=self._body_max_bytes,
                        hint="send smaller batches, or raise server.body_max_mb",
                    )
        except zlib.error as error:
            raise UsageError(
                f"the body is not compressed as its header says: {error}", hint="check Content-Encoding"
            ) from error
        if not decoder.eof:
            raise UsageError("the compressed body ends too early", hint="send it again")
        return b"".join(pieces)


def _form_of(content_type: str) -> Literal["application/x-protobuf", "application/json"]:
    media = content_type.partition(";")[0].strip().lower()
    if media in {"application/x-protobuf", "application/protobuf"}:
        return "application/x-protobuf"
    if media == "application/json":
        return "application/json"
    raise UsageError(
        f"content type {content_type!r} is not OTLP/HTTP", hint="send application/x-protobuf or application/json"
    )


def _prepare(signal: SignalName, plain: bytes, form: str) -> _Prepared:
    """Make of a body the payload that the engine can read, how many records that is, and what had to be left out."""
    if form == "application/json":
        try:
            request = from_json(signal, plain)
        except ValueError as error:
            return _Prepared(b"", 0, ((plain, str(error)),))
        count = flatten(request)
        return _Prepared(request.SerializeToString(), count)
    whole = _readable(signal, plain)
    if not isinstance(whole, str):
        return whole
    pieces, rest = resources_of(plain, pieces_max=_PIECES_MAX)
    refused = (
        [(rest, "the framing of the message ends here, or its many parts are too many to look at each")] if rest else []
    )
    good: list[_Prepared] = []
    for piece in pieces:
        outcome = _readable(signal, piece)
        if isinstance(outcome, str):
            refused.append((piece, outcome))
        else:
            good.append(outcome)
    return _Prepared(b"".join(part.payload for part in good), sum(part.accepted for part in good), tuple(refused))


def _readable(signal: SignalName, payload: bytes) -> _Prepared | str:
    """Take a payload as it is when the engine can read all of it, rewritten when not; or say why neither goes."""
    seen: Look | None = look(signal, payload)
    if seen is not None and seen.flat:
        return _Prepared(payload, seen.records)
    try:
        request = from_protobuf(signal, payload)
    except ValueError as error:
        return str(error)
    count = flatten(request)
    return _Prepared(request.SerializeToString(), count)
