"""The log file of a state directory, or where the operator wants it: capped in size, shared by processes, never in the way."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from threading import Lock

_KEPT = 3


class LogFile:
    """Appends whole lines; at `bytes_max` the file becomes `.1`, then `.2`, then `.3`, then it is gone."""

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._descriptor: int | None = None
        self._lock = Lock()
        self.lost = 0
        """Lines that could not be written: directory missing or read-only, disk full."""

    def write(self, line: str) -> None:
        """Append one line. A line that cannot be written is counted, never raised."""
        payload = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            try:
                descriptor = self._open()
                if os.write(descriptor, payload) != len(payload):
                    self.lost += 1
                if os.fstat(descriptor).st_size >= self._bytes_max:
                    self._rotate(descriptor)
            except OSError:
                self.lost += 1
                self._forget()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._forget()

    def _open(self) -> int:
        """Return a descriptor of the file that is at the path now: another process may have rotated it."""
        if self._descriptor is not None and _is_same(self._descriptor, self._path):
            return self._descriptor
        self._forget()
        for directory in (self._path.parent.parent, self._path.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not blocking: an operator may name a pipe that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o600)
        return self._descriptor

    def _rotate(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if not _is_same(descriptor, self._path):
                return
            for number in range(_KEPT, 0, -1):
                older = self._path if number == 1 else self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
        finally:
            self._forget()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
