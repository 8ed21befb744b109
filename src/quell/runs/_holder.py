"""Who holds the write lock of a SQLite file, as the kernel tells it.

The file itself is not touched: a process that opens and closes it once more loses all its own locks on it (POSIX).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_WRITE_LOCK_BYTE = 120
"""Where the -shm file is locked by the one writer (SQLite, WAL-mode file format, section 2.3)."""
_FIELDS = 8
_STATES = {"T": ", stopped", "t": ", stopped by a debugger", "D": ", waiting for the disk"}


def holder_of(file: Path) -> int:
    """Return the process that holds the write lock; 0 when none does, or nobody can tell."""
    with suppress(OSError, ValueError):
        inode = file.with_name(f"{file.name}-shm").stat().st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            # One that waits for a lock has an arrow before its kind.
            if len(fields) != _FIELDS or fields[1] != "POSIX" or fields[3] != "WRITE":
                continue
            _, _, _, _, pid, place, first, last = fields
            is_there = int(place.rpartition(":")[2]) == inode
            if is_there and int(first) <= _WRITE_LOCK_BYTE and (last == "EOF" or int(last) >= _WRITE_LOCK_BYTE):
                return max(0, int(pid))
    return 0


def named(pid: int) -> tuple[str, str]:
    """Return what to call a process that holds the lock, and what to do about it."""
    if pid in {0, os.getpid()}:
        return "another process" if pid == 0 else "this process itself", "find the process that has the file open"
    state = ""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    do = f"let it go on (kill -CONT {pid}), or end it" if state in {"T", "t"} else f"see what it does, or end it: {pid}"
    return f"process {pid}{_STATES.get(state, '')}", f"{do}; nothing that it had not committed is kept"
