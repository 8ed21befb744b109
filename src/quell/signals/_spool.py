"""The spool: payloads on disk, in fsynced segments, between their acknowledgement and their way into the store.

A segment is a file of frames. One writer thread appends and syncs for everybody who waits (group commit); a sealed
segment is read whole, written to the store under a token made of its name, and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quell.domain import OverloadError

Entropy = Callable[[int], bytes]

SEGMENT_BYTES = 8 << 20
"""A segment is sealed at this size."""
_FRAME = struct.Struct("<4sBII")  # magic, kind, length, checksum of the payload
_MAGIC = b"QSP1"
_SLOTS_MAX = 64
_LEFT_TO_STORE_BYTES = 32 << 20
_RESYNC_TRIES_MAX = 1000
_FULL_RETRY_S = 30.0
_BUSY_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One acknowledged payload."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A sealed segment as read from disk."""

    path: Path
    frames: tuple[Frame, ...]
    tail: bytes
    """Bytes after the last whole frame: a write that was cut, never acknowledged."""
    damaged: tuple[bytes, ...] = ()
    """Bytes before a whole frame that are none: the disk did not keep what it was given."""

    @property
    def name(self) -> str:
        """Unique for ever; the tokens of its inserts are made of it."""
        return self.path.stem


@dataclass(slots=True)
class _Waiting:
    frame: bytes
    done: asyncio.Future[None]


class Spool:
    """The spool of one process: a numbered directory under one root, held by a lock."""

    def __init__(self, directory: Path, *, lock: int, entropy: Entropy, bytes_max: int) -> None:
        self._directory = directory
        self._lock = lock
        self._entropy = entropy
        self._bytes_max = bytes_max
        self._waiting: list[_Waiting] = []
        self._committing = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._file = -1
        self._path = directory
        self._size = 0
        self._sealed = {path: path.stat().st_size for path in sorted(directory.glob("*.seg"))}
        self._sealed_bytes = sum(self._sealed.values())
        self._next = 1 + max((int(path.stem.split("-")[0]) for path in self._sealed), default=0)

    @classmethod
    def open(cls, root: Path, *, entropy: Entropy, bytes_max: int) -> Spool:
        """Take the first free slot under `root`, and adopt the segments of slots whose process is gone."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        own, own_lock = _take_slot(root)
        for other in sorted(root.glob("slot-*")):
            if other == own or (lock := _try_lock(other)) < 0:
                continue
            for path in sorted(other.glob("*.seg")):
                path.rename(own / path.name)
            os.close(lock)
        _sync_directory(own)
        return cls(own, lock=own_lock, entropy=entropy, bytes_max=bytes_max)

    @property
    def bytes_waiting(self) -> int:
        """Bytes on disk that are not yet in the store."""
        return self._sealed_bytes + self._size

    @property
    def open_bytes(self) -> int:
        """Bytes in the segment that is being written."""
        return self._size

    async def append(self, *, kind: int, payload: bytes) -> None:
        """Put a payload on disk; returns when it is synced. Raises OverloadError when there is no room."""
        frame = _FRAME.pack(_MAGIC, kind, len(payload), zlib.crc32(payload)) + payload
        waiting_bytes = sum(len(waiting.frame) for waiting in self._waiting)
        if self.bytes_waiting + waiting_bytes + len(frame) > self._bytes_max:
            raise OverloadError(
                "the spool is full: the telemetry store does not keep up",
                retry_after_s=_BUSY_RETRY_S,
                hint="see `quell doctor`; the store may be down or its disk full",
            )
        waiting = _Waiting(frame, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._committing:
            self._committing = True
            asyncio.get_running_loop().create_task(self._commit()).add_done_callback(_surface)
        await waiting.done

    async def _commit(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                failure = await self._in_writer(partial(self._write, [waiting.frame for waiting in batch]))
                for waiting in batch:
                    if waiting.done.cancelled():
                        continue
                    if failure is None:
                        waiting.done.set_result(None)
                    else:
                        waiting.done.set_exception(
                            OverloadError(
                                f"the spool cannot be written: {failure.strerror}",
                                retry_after_s=_FULL_RETRY_S,
                                hint="free disk space in the state directory",
                            )
                        )
        finally:
            self._committing = False

    async def _in_writer(self, work: Callable[[], OSError | None]) -> OSError | None:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _write(self, frames: list[bytes]) -> OSError | None:
        """Append and sync. On failure the segment is cut back to what was synced, and sealed."""
        content = memoryview(b"".join(frames))
        try:
            self._leave_room(len(content))
            if self._file < 0:
                self._begin()
            while content:
                content = content[os.write(self._file, content) :]
            os.fdatasync(self._file)
        except OSError as error:
            self._abandon()
            return error
        self._size += sum(map(len, frames))
        return None

    def _leave_room(self, size_bytes: int) -> None:
        """Leave the last of the disk to the store, which must take what waits here. Raises OSError when there is no more."""
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize - size_bytes < _LEFT_TO_STORE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _begin(self) -> None:
        self._path = self._directory / f"{self._next:010d}-{self._entropy(8).hex()}.seg"
        self._next += 1
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _sync_directory(self._directory)

    def _abandon(self) -> None:
        if self._file < 0:
            return
        with contextlib.suppress(OSError):  # the frames' checksums still tell what is whole
            os.ftruncate(self._file, self._size)
        self._seal()

    def _seal(self) -> OSError | None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if self._size:
                self._sealed[self._path] = self._size
                self._sealed_bytes += self._size
            else:
                self._path.unlink(missing_ok=True)
            self._size = 0
        return None

    async def seal(self) -> None:
        """End the current segment, so that it can go into the store."""
        await self._in_writer(self._seal)

    def first_sealed(self) -> Segment | None:
        """Read the oldest sealed segment; None when there is none. Raises OSError when it cannot be read."""
        path = next(iter(self._sealed), None)
        if path is None:
            return None
        frames, damaged, tail = frames_of(path.read_bytes())
        return Segment(path=path, frames=tuple(frames), damaged=tuple(damaged), tail=tail)

    def remove(self, segment: Segment) -> None:
        """Forget a segment whose payloads are all in the store or in quarantine."""
        assert self._sealed, "nothing is sealed"
        assert next(iter(self._sealed)) == segment.path, "segments leave in order"
        segment.path.unlink(missing_ok=True)
        self._sealed_bytes -= self._sealed.pop(segment.path)

    def set_aside(self) -> None:
        """Let those behind the oldest segment go on when it cannot be read: it keeps its bytes under another ending."""
        path = next(iter(self._sealed))
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_suffix(".unreadable"))
        self._sealed_bytes -= self._sealed.pop(path)

    async def close(self) -> None:
        """Seal and let go of the slot; what is left is taken up by whoever opens the spool next."""
        await self.seal()
        self._writer.shutdown(wait=True)
        os.close(self._lock)


def frames_of(content: bytes) -> tuple[list[Frame], list[bytes], bytes]:
    """Read whole frames; give what lies between them and is none, and what follows the last one."""
    frames: list[Frame] = []
    damaged: list[bytes] = []
    whole_until = at = tries = 0
    while at >= 0 and tries < _RESYNC_TRIES_MAX:
        frame = _frame_at(content, at)
        if frame is None:
            tries += 1
            at = content.find(_MAGIC, at + 1)
            continue
        if at > whole_until:
            damaged.append(content[whole_until:at])
        frames.append(frame)
        whole_until = at = at + _FRAME.size + len(frame.payload)
    return frames, damaged, content[whole_until:]


def _frame_at(content: bytes, at: int) -> Frame | None:
    if at + _FRAME.size > len(content):
        return None
    magic, kind, length, checksum = _FRAME.unpack_from(content, at)
    payload = content[at + _FRAME.size : at + _FRAME.size + length]
    if magic != _MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return Frame(kind=kind, payload=payload)


def _take_slot(root: Path) -> tuple[Path, int]:
    for number in range(_SLOTS_MAX):
        directory = root / f"slot-{number}"
        directory.mkdir(mode=0o700, exist_ok=True)
        if (lock := _try_lock(directory)) >= 0:
            return directory, lock
    raise OverloadError(f"{_SLOTS_MAX} processes already spool telemetry here", retry_after_s=_BUSY_RETRY_S)


def _try_lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _surface(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()
