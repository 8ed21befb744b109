"""JSON files that a process watches: flags, settings, conditions of the machine it runs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Document = dict[str, object]


class WatchedFile:
    """Holds the newest readable content of one JSON file."""

    def __init__(self, path: str, *, on_change: Callable[[Document, Document], None]) -> None:
        self.content: Document = {}
        self._path = Path(path)
        self._on_change = on_change
        self._stamp: tuple[int, int] | None = None
        self.refresh(announce=False)

    def refresh(self, *, announce: bool = True) -> None:
        """Read the file again if it was touched."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            content: Document = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return
        before, self.content, self._stamp = self.content, content, stamp
        if announce:
            self._on_change(before, content)


def write_document(path: Path, content: Document) -> None:
    """Replace a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1, sort_keys=True))
    fresh.replace(path)
