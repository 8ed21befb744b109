"""Large bodies beside the log: files named by their digest, with a retention of their own."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from quell.audit._checkpoint import flush_directory, write_flushed
from quell.domain import Clock, Entropy, WorldError

PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UNFINISHED = ".new-"


class ChangedBlobError(ValueError):
    """What lies under a digest is not what was put there."""


class Blobs:
    """A directory of files that are named by what they hold."""

    def __init__(self, directory: Path, *, clock: Clock, entropy: Entropy) -> None:
        self._directory = directory
        self._clock = clock
        self._entropy = entropy

    def put(self, content: bytes) -> str:
        """Keep content, on the disk when this returns, and return its digest.

        Raises:
            WorldError: it cannot be written.
        """
        digest = PREFIX + hashlib.sha256(content).hexdigest()
        path = self._path(digest)
        try:
            if not (path.exists() and path.stat().st_size == len(content)):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                own = path.with_name(_UNFINISHED + self._entropy(8).hex())
                write_flushed(own, content, mode=0o600)
                own.replace(path)
                flush_directory(path.parent)
                flush_directory(self._directory)
            # Its age counts from the last record that names it.
            now_s = self._clock().timestamp()
            os.utime(path, (now_s, now_s))
        except OSError as error:
            raise WorldError(
                f"cannot keep a body in {self._directory}: {error.strerror}", hint="free space, or check the rights"
            ) from error
        return digest

    def find(self, digest: str) -> bytes | None:
        """Return the content; None when it is no longer kept.

        Raises:
            ChangedBlobError: the content is not that of the digest.
        """
        if not _DIGEST.fullmatch(digest):
            return None
        try:
            content = self._path(digest).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise WorldError(f"cannot read the body {digest}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != digest.removeprefix(PREFIX):
            raise ChangedBlobError(f"the body {digest} was changed")
        return content

    def sweep(self, *, kept_for: timedelta) -> int:
        """Remove what no record has named for that long, and what a crash left half-written; return how many."""
        before = self._clock() - kept_for
        removed = 0
        for path in self._directory.glob("??/*"):
            with suppress(FileNotFoundError):
                written = datetime.fromtimestamp(path.stat().st_mtime, tz=before.tzinfo)
                bound = max(before, self._clock() - timedelta(hours=1)) if path.name.startswith(_UNFINISHED) else before
                if written < bound:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix(PREFIX)
        return self._directory / name[:2] / name[2:]
