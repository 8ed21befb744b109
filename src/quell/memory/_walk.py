"""Go through a directory of documents: what is text and lies in it, bounded, with every file that is left out named."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from quell.domain import BoundExceededError, UsageError
from quell.memory._pieces import SUFFIXES

FILE_MAX_BYTES = 4 * 1024 * 1024
FILES_MAX = 20_000

StepKind: TypeAlias = Literal["added", "changed", "same", "removed", "skipped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became of one file."""

    path: str
    """Below the directory that is read."""
    kind: StepKind
    reason: str = ""
    """Why it was left out, or could not be read."""
    pieces: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file as it was read."""

    path: str
    text: str
    digest: str
    modified_ms: int
    size_bytes: int

    @property
    def suffix(self) -> str:
        """Return what tells its kind."""
        return Path(self.path).suffix.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files below a directory, by their paths below it."""

    files: tuple[str, ...]
    left_out: tuple[Step, ...]
    unread: tuple[str, ...]
    """Directories that could not be listed: what lies there may still be there."""


def listed(root: Path) -> Listing:
    """List the documents below a directory, in the order of their paths. Links to directories are not followed.

    Raises:
        UsageError: it is no directory, or may not be read.
        BoundExceededError: there are too many.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no directory", hint="name the directory that holds your documents")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"{root} may not be read", hint="check its owner and its rights")
    files: list[str] = []
    left_out: list[Step] = []
    unread: list[str] = []

    def miss(error: OSError) -> None:
        where = Path(os.fsdecode(error.filename)).relative_to(root).as_posix()
        unread.append(where)
        left_out.append(Step(path=where, kind="failed", reason=error.strerror or "cannot be listed"))

    for folder, folders, names in os.walk(root, onerror=miss):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = (Path(folder) / name).relative_to(root).as_posix()
            if not _is_written(path):
                left_out.append(Step(path=_written(path), kind="skipped", reason="its name is not UTF-8"))
            elif Path(name).suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                left_out.append(Step(path=path, kind="skipped", reason="not a kind of text that is read"))
            if len(files) > FILES_MAX:
                raise BoundExceededError("documents of one directory", limit=FILES_MAX, hint="ingest parts of it")
    return Listing(files=tuple(sorted(files)), left_out=tuple(left_out), unread=tuple(unread))


def read(root: Path, path: str) -> Document | Step:
    """Return a document, or why it is left out. A link is judged by what it leads to."""
    try:
        real = (root / path).resolve(strict=True)
        if not real.is_relative_to(root):
            return Step(path=path, kind="skipped", reason="it leads out of the directory")
        content, told = _bytes(real)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Step(path=path, kind="failed", reason=reason)
    if len(content) > FILE_MAX_BYTES:
        return Step(path=path, kind="skipped", reason=f"larger than {FILE_MAX_BYTES // 1024 // 1024} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Step(path=path, kind="skipped", reason="it is not UTF-8")
    if "\0" in text:
        return Step(path=path, kind="skipped", reason="it is not text")
    return Document(
        path=path,
        text=text,
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        modified_ms=told.st_mtime_ns // 1_000_000,
        size_bytes=len(content),
    )


def _bytes(real: Path) -> tuple[bytes, os.stat_result]:
    """Read a regular file up to one byte more than may be; nothing that would make us wait is opened for long."""
    opened = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        told = os.fstat(opened)
        if not stat.S_ISREG(told.st_mode):
            raise OSError(0, "it is no file")
        return b"".join(_pieces(opened, bytes_max=FILE_MAX_BYTES + 1)), told
    finally:
        os.close(opened)


def _pieces(opened: int, *, bytes_max: int) -> Iterator[bytes]:
    left = bytes_max
    while left > 0 and (piece := os.read(opened, min(left, 1024 * 1024))):
        left -= len(piece)
        yield piece


def _is_written(path: str) -> bool:
    with suppress(UnicodeEncodeError):
        path.encode()
        return True
    return False


def _written(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
