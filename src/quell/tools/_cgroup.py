"""Groups of processes with limits (cgroup v2), where the machine's keeper has delegated a place to us."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_NEEDED = {"memory", "pids"}
_END_WAIT_S = 2.0
_LOOK_S = 0.01


def find_delegated(*, mount: Path = _MOUNT, own: Path = _OWN) -> Path | None:
    """Return the group under which we may make groups with limits: our own, or the one that ours stands in."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = mount / line.removeprefix("0::").strip().lstrip("/")
    for place in (group, group.parent):
        if place.is_relative_to(mount) and os.access(place, os.W_OK) and _has_controllers(place):
            return place
    return None


def make_group(parent: Path, name: str, *, memory_max_bytes: int, processes_max: int) -> Path:
    """Make a group with limits. Raises OSError when the machine does not let us."""
    group = parent / name
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(memory_max_bytes))
        with suppress(FileNotFoundError):  # a machine without swap has no limit for it
            (group / "memory.swap.max").write_text("0")
        (group / "memory.oom.group").write_text("1")
        (group / "pids.max").write_text(str(processes_max))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        raise
    return group


def remove_group(group: Path) -> None:
    """Kill whatever is left in a group and remove it; leave it where it will not go."""
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline_s = time.monotonic() + _END_WAIT_S
    while time.monotonic() < deadline_s:
        with suppress(OSError):
            group.rmdir()
        if not group.exists():
            return
        time.sleep(_LOOK_S)


def _has_controllers(place: Path) -> bool:
    """Whether groups made here get the limits; they are switched on where we can, which is where no process is."""
    wanted = place / "cgroup.subtree_control"
    try:
        if not set(wanted.read_text().split()) >= _NEEDED:
            wanted.write_text(" ".join(f"+{name}" for name in sorted(_NEEDED)))
        return set(wanted.read_text().split()) >= _NEEDED
    except OSError:
        return False
