"""An anchor in a file: signed checkpoints appended to a path that lies elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from quell.domain import WorldError


class FileAnchor:
    """Checkpoints in a file, one JSON line each: on another disk, a share, or one that may only be appended to."""

    def __init__(self, path: Path) -> None:
        self.name = f"file {path}"
        self._path = path

    def publish(self, note: str) -> None:
        """Append a note and have it on the disk."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "rb+") as file:
                # A line that a crash cut short is ended first, so that it spoils no other.
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - 1, 0))
                torn = end > 0 and file.read(1) != b"\n"
                file.write((b"\n" if torn else b"") + json.dumps({"note": note}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WorldError(f"cannot write the anchor {self._path}: {error.strerror}", hint=_HINT) from error

    def published(self) -> Sequence[str]:
        """Return every whole note."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise WorldError(f"cannot read the anchor {self._path}: {error.strerror}", hint=_HINT) from error
        return [note for line in lines if (note := _note_of(line))]


_HINT = "check that the place is there and may be used"


def _note_of(line: bytes) -> str:
    try:
        read = json.loads(line)
    except ValueError:
        return ""
    note = read.get("note") if isinstance(read, dict) else None
    return note if isinstance(note, str) else ""
