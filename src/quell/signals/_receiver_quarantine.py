"""Payloads that cannot be read or stored, kept for people to look at, with the reason beside them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal, TypeAlias

Standing: TypeAlias = Literal["refused", "acknowledged"]

_BYTES_MAX: dict[Standing, int] = {"refused": 256 << 20, "acknowledged": 2 << 30}
_FILES_MAX: dict[Standing, int] = {"refused": 2000, "acknowledged": 20_000}


class Quarantine:
    """A directory of payloads, bounded in size and number; beyond the bound only the count goes on.

    What was refused at the door may fill a small part of it, so that no sender of nonsense takes the place of what was
    acknowledged and could not be stored.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bytes = 0
        self._files = 0
        self.count = 0
        """Payloads put here or, beyond the bound, dropped, since this process began."""
        if directory.exists():
            sizes = [path.stat().st_size for path in directory.iterdir()]
            self._bytes, self._files = sum(sizes), len(sizes)

    def put(self, name: str, payload: bytes, *, reason: str, standing: Standing = "refused") -> Path:
        """Keep a payload and why it is here; one that was acknowledged is synced. The same name again replaces it.

        Raises OSError when the disk does not take it.
        """
        path = self._directory / name
        replaced = path.stat().st_size if path.exists() else -1
        if self._bytes + len(payload) <= _BYTES_MAX[standing] and self._files <= _FILES_MAX[standing]:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = path.with_name(f"{name}.part")
            try:
                _write(fresh, payload, standing)
                _write(path.with_name(f"{name}.reason.txt"), reason.encode() + b"\n", standing)
                fresh.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    fresh.unlink(missing_ok=True)
                raise
            self._bytes += len(payload) - max(replaced, 0)
            self._files += 2 if replaced < 0 else 0
        self.count += 0 if replaced >= 0 else 1
        return path


def _write(path: Path, content: bytes, standing: Standing) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if standing == "acknowledged":
            os.fsync(file.fileno())
