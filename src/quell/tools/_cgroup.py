"""Groups of processes with limits (cgroup v2), where the machine's keeper has delegated a place to us."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")
_OWN = Path("/proc/self/cgroup")
_WANTED = frozenset({"memory", "pids"})
_NAMED = re.compile(r"quell-(\d{1,18})-\d+", re.ASCII)
_NAMES_TRIED = 100
_END_WAIT_S = 2.0
_LOOK_S = 0.01


def find_delegated(*, mounts: Path = _MOUNTS, own: Path = _OWN) -> Path | None:
    """Return the group under which we may make groups with limits: our own, or the one that ours stands in.

    It may hold to one of the limits only: a machine may have `memory` in the hierarchies of old (cgroup v1).
    """
    try:
        tables = (line.split() for line in mounts.read_text().splitlines())
        mount = Path(next(words[1] for words in tables if words[2] == "cgroup2"))
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = mount / line.removeprefix("0::").strip().lstrip("/")
    for place in (group, group.parent):
        if place.is_relative_to(mount) and os.access(place, os.W_OK) and _switched_on(place):
            return place
    return None


def limits_of(place: Path) -> frozenset[str]:
    """Say what groups made here are held to: `memory`, `pids`, both or nothing."""
    try:
        return _WANTED & set((place / "cgroup.subtree_control").read_text().split())
    except OSError:
        return frozenset()


def make_group(parent: Path, *, memory_max_bytes: int, processes_max: int) -> Path:
    """Make a group with what limits there are. Raises OSError when the machine does not let us."""
    limits = limits_of(parent)
    if not limits:
        raise FileNotFoundError(f"{parent} holds groups to no limit")
    group = _make(parent)
    try:
        if "memory" in limits:
            (group / "memory.max").write_text(str(memory_max_bytes))
            with suppress(FileNotFoundError):  # a machine without swap has no limit for it
                (group / "memory.swap.max").write_text("0")
            (group / "memory.oom.group").write_text("1")
        if "pids" in limits:
            (group / "pids.max").write_text(str(processes_max))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        raise
    return group


def sweep(parent: Path) -> None:
    """Remove the groups of processes that ended without a word; one that still holds a program stays."""
    with suppress(OSError):
        for group in parent.iterdir():
            named = _NAMED.fullmatch(group.name)
            if named and not Path("/proc", named[1]).exists():
                with suppress(OSError):
                    group.rmdir()


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


def _make(parent: Path) -> Path:
    """Make a group of a name that is free: processes of several containers may have our number and this place."""
    for number in range(_NAMES_TRIED):
        group = parent / f"quell-{os.getpid()}-{number}"
        with suppress(FileExistsError):
            group.mkdir()
            return group
    raise FileExistsError(f"{_NAMES_TRIED} groups of this process are in {parent}")


def _switched_on(place: Path) -> bool:
    """Switch on what limits there are for groups made here, which works where no process is; tell whether any is."""
    for name in sorted(_WANTED - limits_of(place)):
        with suppress(OSError):
            (place / "cgroup.subtree_control").write_text(f"+{name}")
    return bool(limits_of(place))
