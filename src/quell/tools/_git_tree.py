"""The files of a commit as git lists them: what may be written of them, and how they are written without a checkout."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quell.domain import RefusedError, printable

_FILE_MAX_BYTES = 8 * 1024 * 1024
_TOTAL_MAX_BYTES = 64 * 1024 * 1024
_FILES_MAX = 5_000
_NAME_MAX_BYTES = 255
_PATH_MAX_BYTES = 1_024
_DEPTH_MAX = 32
_LINK_MAX_BYTES = 4_096
_PLAIN, _PROGRAM, _LINK, _SUBMODULE = "100644", "100755", "120000", "160000"


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFile:
    """One entry of a tree."""

    path: str
    mode: str
    object: str
    size_bytes: int
    """-1: git does not say."""


def listed(told: bytes) -> list[GitFile]:
    """Read what `git ls-tree -r -z -l` says. Raises RefusedError for a name that is no text."""
    return [_file(line) for line in told.split(b"\0") if line]


def chosen_of(files: Sequence[GitFile], *, path: str, chosen: str, leaf: str) -> dict[str, GitFile]:
    """Return what is taken of the files below a path, by the paths that it will have.

    A directory that holds a file `chosen` is taken whole, as `leaf`; of another one, those directories in it that do.
    """
    prefix = f"{path}/" if path else ""
    below = {file.path.removeprefix(prefix): file for file in files if file.path.startswith(prefix)}
    if chosen in below:
        return {f"{leaf}/{name}": file for name, file in below.items()}
    homes = {name.partition("/")[0] for name in below if name.partition("/")[2] == chosen}
    return {name: file for name, file in below.items() if "/" in name and name.partition("/")[0] in homes}


def judge(files: Mapping[str, GitFile]) -> None:
    """Look whether all of it may be written. Raises RefusedError with the first thing that may not."""
    if len(files) > _FILES_MAX:
        raise RefusedError(f"it has {len(files)} files, and {_FILES_MAX} are allowed", hint="name a `path` below it")
    if (total := sum(max(file.size_bytes, 0) for file in files.values())) > _TOTAL_MAX_BYTES:
        raise RefusedError(f"it has {total} bytes, and {_TOTAL_MAX_BYTES} are allowed", hint="name a `path` below it")
    spelled: dict[str, str] = {}
    for path, file in files.items():
        reason = _wrong(path, file)
        # On a disk that does not tell cases apart, one would be written over the other.
        if spelled.setdefault(path.casefold(), path) != path:
            reason = f"differs from {spelled[path.casefold()]!a} by its case alone"
        if reason:
            raise RefusedError(f"{printable(path)!r} {reason}", hint="take it out of the repository")


def write(files: Mapping[str, GitFile], read: Callable[[str], bytes], *, to: Path) -> None:
    """Write files below a new directory. Links come last: nothing is ever written through one. Raises RefusedError."""
    to.mkdir()
    for path, file in files.items():
        if file.mode != _LINK:
            place = to / path
            place.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(place, flags, 0o600), "wb") as opened:
                opened.write(read(file.object))
    for path, file in files.items():
        if file.mode == _LINK:
            target = os.fsdecode(read(file.object))
            if not target or len(target) > _LINK_MAX_BYTES or "\0" in target:
                raise RefusedError(f"{printable(path)!r} is a link to nothing", hint="take it out of the repository")
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).symlink_to(target)


def lock(root: Path) -> None:
    """Make everything below a directory read-only; nothing of it was ever meant to be run."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        Path(folder).chmod(0o555)


def remove(root: Path) -> None:
    """Remove a directory, read-only ones in it too."""
    for folder, folders, _ in os.walk(root):
        for name in folders:
            if not (Path(folder) / name).is_symlink():
                (Path(folder) / name).chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def _file(line: bytes) -> GitFile:
    facts, _, raw = line.partition(b"\t")
    mode, _, name, size = facts.decode("ascii").split()
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise RefusedError(f"{raw!a} is no name: it is not UTF-8", hint="take it out of the repository") from None
    return GitFile(path=path, mode=mode, object=name, size_bytes=int(size) if size.isdigit() else -1)


def _wrong(path: str, file: GitFile) -> str:
    parts = path.split("/")
    is_long = len(path.encode()) > _PATH_MAX_BYTES or len(parts) > _DEPTH_MAX
    is_long = is_long or any(len(part.encode()) > _NAME_MAX_BYTES for part in parts)
    leads_out = any(part in {"", ".", ".."} or part.lower() in {".git", "git~1"} for part in parts)
    is_unseen = "\\" in path or printable(path) != path
    found = {
        "is a submodule: what it holds is not in this commit": file.mode == _SUBMODULE,
        f"has the mode {file.mode}": file.mode not in {_PLAIN, _PROGRAM, _LINK, _SUBMODULE},
        "is a name that leads elsewhere": leads_out,
        "is a name with characters that nobody sees": is_unseen,
        "is a name that is too long": is_long,
        f"has {file.size_bytes} bytes, and {_FILE_MAX_BYTES} are allowed": not 0 <= file.size_bytes <= _FILE_MAX_BYTES,
    }
    # Of a submodule git knows no size, which is the lesser reason.
    return next((reason for reason, is_so in found.items() if is_so), "")
