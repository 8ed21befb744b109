"""Reading files for agents: `read_file` and `list_dir`, within directories that an agent's file allows and nowhere else.

A path is judged by where it really leads, and opened from the allowed directory down without following a link: what is
swapped between the two looks is refused and not followed. Our own state, keys and what looks like a secret is never
read, wherever it lies.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from quell.domain import CallRequest, OutcomeKind, RefusedError, ResourceRule, Tool, ToolOutcome, own_read
from quell.tools import LocalHand

READ_MAX_BYTES = 1_048_576
"""What lies behind it in a file is not read, as in AURA."""
_SHOWN_MAX_BYTES = 24_000
"""One call brings so much; the next begins at a later line."""
_ENTRIES_MAX = 500
_TIMEOUT_S = 10.0
_SECRET_NAMES = (
    ".env",
    ".env.*",
    "*.env",
    "*.key",
    "*.pem",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.tfstate*",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".pgpass",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    ".htpasswd",
    "credentials",
    "credentials.*",
    "kubeconfig*",
    ".ssh",
    ".aws",
    ".azure",
    ".gnupg",
    ".kube",
    ".docker",
    ".config",
    "shadow",
)
_NEVER = (Path("/proc"), Path("/sys"), Path("/dev"))


def file_hands(allowed: Callable[[CallRequest], Sequence[str]], *, state_dir: Path) -> list[tuple[Tool, LocalHand]]:
    """Return `read_file` and `list_dir`; `allowed` tells which directories the agent of a call may read, none for most."""
    kept = state_dir.absolute().resolve()

    def read(request: CallRequest, given: Mapping[str, object]) -> ToolOutcome:
        start = given.get("start", 1)
        with _Opened(str(given["path"]), allowed(request), kept=kept, want=stat.S_ISREG) as found:
            return _shown(request, found.descriptor, start=start if isinstance(start, int) else 1)

    def listing(request: CallRequest, given: Mapping[str, object]) -> ToolOutcome:
        with _Opened(str(given["path"]), allowed(request), kept=kept, want=stat.S_ISDIR) as found:
            return _listed(request, found, kept=kept)

    path = {"type": "string", "minLength": 1, "maxLength": 4_096}
    start = {"type": "integer", "minimum": 1}
    return [
        _hand(
            "read_file", "Read a text file; `start` is the first line.", {"path": path, "start": start}, read, ("path",)
        ),
        _hand(
            "list_dir",
            "List a directory: names, kinds, sizes. `.` is the first that may be read.",
            {"path": path},
            listing,
            ("path",),
        ),
    ]


class _Opened:
    """A file or directory that an agent may read, open; raises RefusedError when it may not."""

    def __init__(self, path: str, allowed: Sequence[str], *, kept: Path, want: Callable[[int], bool]) -> None:
        self.descriptor = -1
        self._path, self._allowed, self._kept, self._want = path, allowed, kept, want
        self.place = Path("/")

    def __enter__(self) -> Self:
        if not self._allowed:
            raise RefusedError("this agent reads no files", hint="[tools].filesystem and [quell].files turn it on")
        roots = [Path(root).absolute().resolve() for root in self._allowed]
        asked = Path(self._path)
        candidates = [asked] if asked.is_absolute() else [root / asked for root in roots]
        for candidate in candidates:
            real = _real(candidate)
            root = next((root for root in roots if real is not None and real.is_relative_to(root)), None)
            if real is None or root is None or not real.exists():
                continue
            _refuse_secret(real, root, kept=self._kept)
            self.place = real
            self.descriptor = _open_below(root, real.relative_to(root).parts)
            if not self._want(os.fstat(self.descriptor).st_mode):
                os.close(self.descriptor)
                raise RefusedError(f"{self._path!a} is of another kind", hint="read_file reads files, list_dir lists")
            return self
        # What is not there and what may not be read is told alike: nobody learns what lies outside.
        where = ", ".join(map(str, roots))
        raise RefusedError(f"there is no {self._path!a} that may be read", hint=f"allowed are: {where}")

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _real(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _refuse_secret(real: Path, root: Path, *, kept: Path) -> None:
    # The names below the allowed directory: where that itself lies, its operator decided.
    parts = real.relative_to(root).parts or (real.name,)
    is_ours = real.is_relative_to(kept) or any(real.is_relative_to(place) for place in _NEVER)
    if is_ours or any(is_secret_name(part) for part in parts):
        raise RefusedError(f"{real.name!a} is never read: it may hold secrets", hint="ask a person for what you need")


def is_secret_name(name: str) -> bool:
    """Tell whether a name is that of something which mostly holds secrets."""
    return any(fnmatchcase(name.lower(), glob) for glob in _SECRET_NAMES)


def _open_below(root: Path, parts: Sequence[str]) -> int:
    """Open what lies below a directory, part by part, following no link: all of them were resolved before."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except OSError as error:
        os.close(descriptor)
        why = "it changed meanwhile" if error.errno in {errno.ELOOP, errno.ENOENT} else str(error.strerror)
        raise RefusedError(f"{parts[-1]!a} cannot be read: {why}", hint="try again, or read something else") from None
    return descriptor


def _shown(request: CallRequest, descriptor: int, *, start: int) -> ToolOutcome:
    """Bring the text from a line on, as much as one call brings."""
    size = os.fstat(descriptor).st_size
    raw = b""
    while len(raw) < READ_MAX_BYTES and (piece := os.read(descriptor, READ_MAX_BYTES - len(raw))):
        raw += piece
    if b"\0" in raw[:8_192]:
        return _ended(request, OutcomeKind.TOOL_ERROR, detail=f"it is no text: {size:,} bytes that no model reads")
    lines = raw.decode("utf-8", "replace").splitlines(keepends=True)
    shown: list[str] = []
    left = _SHOWN_MAX_BYTES
    for line in lines[start - 1 :]:
        left -= len(line.encode("utf-8", "replace"))
        if left < 0 and shown:
            break
        shown.append(line if left >= 0 else line[:_SHOWN_MAX_BYTES])
    last = start - 1 + len(shown)
    text = "".join(shown)
    is_all = last >= len(lines) and size <= READ_MAX_BYTES
    if is_all and left >= 0:
        return _ended(request, OutcomeKind.OK if text else OutcomeKind.EMPTY, content=text)
    rest = f"go on with start={last + 1}" if last < len(lines) else f"only the first {READ_MAX_BYTES:,} bytes are read"
    told = f"lines {start} to {last} of {len(lines):,}, file of {size:,} bytes; {rest}"
    return _ended(request, OutcomeKind.TRUNCATED, content=text, detail=told)


def _listed(request: CallRequest, found: _Opened, *, kept: Path) -> ToolOutcome:
    entries: list[dict[str, object]] = []
    names = sorted(os.listdir(found.descriptor))  # noqa: PTH208 - of what is open, not of what has that name now
    for name in names[:_ENTRIES_MAX]:
        if is_secret_name(name) or found.place / name == kept:
            continue
        with suppress(OSError):
            seen = os.stat(name, dir_fd=found.descriptor, follow_symlinks=False)
            kind = "dir" if stat.S_ISDIR(seen.st_mode) else "link" if stat.S_ISLNK(seen.st_mode) else "file"
            size = {"size": seen.st_size} if kind == "file" else {}
            entries.append({"name": name.encode("utf-8", "replace").decode(), "kind": kind, **size})
    content = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    if len(names) > _ENTRIES_MAX:
        told = f"the first {_ENTRIES_MAX} of {len(names):,} names; list a directory below"
        return _ended(request, OutcomeKind.TRUNCATED, content=content, detail=told, is_json=True)
    return _ended(request, OutcomeKind.OK if entries else OutcomeKind.EMPTY, content=content, is_json=True)


def _ended(
    request: CallRequest, kind: OutcomeKind, *, content: str = "", detail: str = "", is_json: bool = False
) -> ToolOutcome:
    size = len(content.encode("utf-8", "replace"))
    call, tool = request.call.id, request.call.tool
    return ToolOutcome(
        call=call, tool=tool, kind=kind, content=content, detail=detail, is_json=is_json, size_bytes=size
    )


def _hand(
    name: str,
    description: str,
    properties: Mapping[str, object],
    work: Callable[[CallRequest, Mapping[str, object]], ToolOutcome],
    required: Sequence[str],
) -> tuple[Tool, LocalHand]:
    shape = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}

    async def use(request: CallRequest, _key: str) -> ToolOutcome:
        try:
            return await asyncio.to_thread(work, request, json.loads(request.call.arguments))
        except RefusedError as refusal:
            return _ended(request, OutcomeKind.DENIED, detail=f"{refusal}; {refusal.hint}")

    resource = ResourceRule(kind="File", name="/path")
    tool = own_read(name, description=description, takes=shape, resource=resource, timeout_s=_TIMEOUT_S)
    return tool, LocalHand(name, use)
