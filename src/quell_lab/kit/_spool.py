"""The journal that a service keeps on its own small volume."""

from __future__ import annotations

import os
import resource
from pathlib import Path


class Spool:
    """Appends records to a file on a volume of limited size; the kernel enforces the limit."""

    def __init__(self, directory: str, *, limit_kb: int) -> None:
        self.limit = limit_kb * 1024
        self._path = Path(directory) / "journal.log"
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def limit_files(self) -> None:
        """Let no file of this process grow beyond the volume; writes past it fail with EFBIG."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))

    def append(self, record: str) -> None:
        """Write one record and give the descriptor back."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, record.encode() + b"\n")
        finally:
            os.close(descriptor)

    def grow(self, size: int) -> None:
        """Write a block of payload dumps; a full volume takes what fits."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            return
        try:
            os.write(descriptor, b"." * size)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def used(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def rotate(self) -> None:
        """Start over when a quarter of the volume is used."""
        if self.used() > self.limit // 4:
            os.truncate(self._path, 0)
