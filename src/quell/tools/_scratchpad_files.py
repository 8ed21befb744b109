"""Files of the scratchpad: one directory per owner, one file per result, and no way out of the root.

Everything below the root is opened relative to an open directory and without following links, and what was opened is
judged by itself: a plain file of ours with one name. No word of a caller ever becomes a part of a path: owners become
digests, and handles are matched letter by letter.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from quell.domain import Entropy, OverloadError, PadOwner, RefusedError

Form: TypeAlias = Literal["json", "text"]

_HANDLE = re.compile(r"pad_[0-9a-f]{32}", re.ASCII)
_DIRECTORY = re.compile(r"own_[0-9a-f]{40}", re.ASCII)
_FILE = re.compile(r"[0-9a-f]{32}\.(?:json|text)", re.ASCII)
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a planted pipe must not block us
_FULL_RETRY_S = 30.0
_LEFTOVER_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One result on disk, by its names below the root."""

    directory: str
    file: str
    size_bytes: int
    at_s: float
    """When it was put, in seconds since 1970."""


def handle_of(digest: str) -> str:
    """Make the handle of the result with that digest."""
    return f"pad_{digest[:32]}"


def is_handle(text: str) -> bool:
    """Tell whether a text has the form of a handle, whole and in plain letters."""
    return _HANDLE.fullmatch(text) is not None


class Files:
    """The directory of all results; open for as long as it lives, so that renaming it away changes nothing."""

    def __init__(self, root: Path, *, entropy: Entropy) -> None:
        self._entropy = entropy
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        try:
            self._root = os.open(root, _OPEN_DIRECTORY)
        except OSError as error:
            raise _not_ours(f"`{root}` is a link or no directory") from error
        try:
            _judge_directory(self._root, name=str(root))
        except RefusedError:
            os.close(self._root)
            raise

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._root)

    def write(self, owner: PadOwner, content: bytes, *, digest: str, form: Form, at_s: float) -> None:
        """Keep a result: synced before it has its name. Raises OverloadError when the disk takes no more."""
        name = f"{digest[:32]}.{form}"
        part = f".{self._entropy(8).hex()}.part"
        with self._directory(owner, make=True) as directory:
            try:
                _write_whole(part, content, directory=directory, at_s=at_s)
                os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
            except OSError as error:
                with suppress(OSError):
                    os.unlink(part, dir_fd=directory)
                raise OverloadError(
                    f"the scratchpad cannot be written: {error.strerror}",
                    retry_after_s=_FULL_RETRY_S,
                    hint="free disk space in the state directory",
                ) from error

    @contextmanager
    def reading(self, owner: PadOwner, handle: str) -> Iterator[tuple[int, Form]]:
        """Open a result of this owner. Raises FileNotFoundError, RefusedError when what lies there is not ours."""
        if not is_handle(handle):
            raise FileNotFoundError(handle)
        with self._directory(owner, make=False) as directory:
            descriptor, form = self._open(directory, handle.removeprefix("pad_"))
            try:
                _judge_file(descriptor)
                yield descriptor, form
            finally:
                os.close(descriptor)

    def of_owner(self, owner: PadOwner) -> list[Kept]:
        """List what an owner has, newest first."""
        return sorted(self._in(_directory_name(owner)), key=lambda kept: (-kept.at_s, kept.file))

    def all(self) -> list[Kept]:
        """List everything, oldest first."""
        names = sorted(name for name in _names(self._root) if _DIRECTORY.fullmatch(name))
        return sorted((kept for name in names for kept in self._in(name)), key=lambda kept: (kept.at_s, kept.file))

    def remove(self, kept: Kept) -> None:
        """Remove one result; readings under way keep theirs."""
        with suppress(FileNotFoundError), self._open_directory(kept.directory) as directory:
            os.unlink(kept.file, dir_fd=directory)

    def tidy(self, *, now_s: float) -> None:
        """Remove what writers that died left behind, and directories that are empty."""
        for name in _names(self._root):
            if not _DIRECTORY.fullmatch(name):
                continue
            with suppress(OSError, RefusedError), self._open_directory(name) as directory:
                for file in _names(directory):
                    if _LEFTOVER.fullmatch(file) and now_s - _mtime_s(file, directory) > _LEFTOVER_S:
                        os.unlink(file, dir_fd=directory)
            with suppress(OSError):  # most are not empty; a new one may be about to be written to
                if now_s - _mtime_s(name, self._root) > _LEFTOVER_S:
                    os.rmdir(name, dir_fd=self._root)

    def _in(self, name: str) -> list[Kept]:
        found = []
        with suppress(FileNotFoundError, RefusedError), self._open_directory(name) as directory:
            for file in _names(directory):
                if _FILE.fullmatch(file):
                    with suppress(FileNotFoundError):
                        at = os.stat(file, dir_fd=directory, follow_symlinks=False)
                        found.append(Kept(directory=name, file=file, size_bytes=at.st_size, at_s=at.st_mtime))
        return found

    def _open(self, directory: int, stem: str) -> tuple[int, Form]:
        forms: tuple[Form, ...] = ("json", "text")
        for form in forms:
            try:
                return os.open(f"{stem}.{form}", _OPEN_FILE, dir_fd=directory), form
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _not_ours("the place of this result holds something else") from error
        raise FileNotFoundError(stem)

    @contextmanager
    def _directory(self, owner: PadOwner, *, make: bool) -> Iterator[int]:
        name = _directory_name(owner)
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, mode=0o700, dir_fd=self._root)
                os.fsync(self._root)
        with self._open_directory(name) as directory:
            yield directory

    @contextmanager
    def _open_directory(self, name: str) -> Iterator[int]:
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=self._root)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _not_ours("the place of this session's results holds something else") from error
        try:
            _judge_directory(descriptor, name=name)
            yield descriptor
        finally:
            os.close(descriptor)


def _names(directory: int) -> list[str]:
    return os.listdir(directory)


def _directory_name(owner: PadOwner) -> str:
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    named = f"{len(owner.tenant)}:{owner.tenant}{len(owner.user)}:{owner.user}{owner.session}"
    words = named.encode("utf-8", "surrogatepass")
    return f"own_{hashlib.sha256(words).hexdigest()[:40]}"


def _write_whole(name: str, content: bytes, *, directory: int, at_s: float) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.utime(descriptor, (at_s, at_s))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _judge_directory(descriptor: int, *, name: str) -> None:
    at = os.fstat(descriptor)
    if at.st_uid != os.geteuid():
        raise _not_ours(f"`{name}` belongs to another user")
    if stat.S_IMODE(at.st_mode) & 0o077:
        raise _not_ours(f"`{name}` is open to other users")


def _judge_file(descriptor: int) -> None:
    at = os.fstat(descriptor)
    if not stat.S_ISREG(at.st_mode) or at.st_nlink > 1 or at.st_uid != os.geteuid():
        raise _not_ours("the place of this result holds something else")


def _mtime_s(file: str, directory: int) -> float:
    return os.stat(file, dir_fd=directory, follow_symlinks=False).st_mtime


def _not_ours(reason: str) -> RefusedError:
    return RefusedError(
        f"the scratchpad was not entered: {reason}",
        hint="somebody put it there: look at it, then remove it; it belongs to the user of Quell, mode 0700",
    )
