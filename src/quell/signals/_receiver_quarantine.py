"""Payloads that cannot be read or stored, kept for people to look at, with the reason beside them."""

from __future__ import annotations

from pathlib import Path

_BYTES_MAX = 256 << 20
_FILES_MAX = 2000


class Quarantine:
    """A directory of refused payloads, bounded in size and number; beyond the bound only the count goes on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bytes = 0
        self._files = 0
        self.count = 0
        """Payloads put here or, beyond the bound, dropped, since this process began."""
        if directory.exists():
            sizes = [path.stat().st_size for path in directory.iterdir()]
            self._bytes, self._files = sum(sizes), len(sizes)

    def put(self, name: str, payload: bytes, *, reason: str) -> Path:
        """Keep a payload and why it is here. The same name again replaces it, so a retry leaves no second copy.

        Raises OSError when the disk does not take it.
        """
        path = self._directory / name
        if self._bytes + len(payload) <= _BYTES_MAX and self._files <= _FILES_MAX:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(payload)
            path.with_name(name + ".reason.txt").write_text(reason + "\n")
            self._bytes += len(payload)
            self._files += 2
        self.count += 1
        return path
