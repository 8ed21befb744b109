"""The words of sandboxes: what a program may touch, what this machine can hold it to, and what came of a small one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """What a program may touch. What is not named here it does not see."""

    read_only: tuple[str, ...] = ()
    """Paths it may read and execute, beside the system's own programs and libraries."""
    read_write: tuple[str, ...] = ()
    """Directories it may change."""
    environment: tuple[str, ...] = ("PATH", "LANG", "LC_ALL", "TZ")
    """Names of variables that it gets, when they are handed in."""
    network: Literal["none", "host"] = "none"
    working_directory: str = "/"
    need: Literal["required", "best_effort"] = "required"
    """What to do when this machine cannot build it: refuse, or run with what there is and say so."""
    memory_max_bytes: int = 1 << 30
    """Of all its processes together where a cgroup is delegated, of each otherwise."""
    processes_max: int = 128
    """Threads count too."""
    files_max: int = 1024
    file_max_bytes: int = 1 << 30
    temporary_max_bytes: int = 64 << 20
    cpu_s: int | None = None
    """Seconds of CPU of each process; None: as many as it likes, as a server that runs for days needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxCapabilities:
    """What this machine can do about programs that are not trusted."""

    bubblewrap: str
    """Path of the program; empty when it is missing or cannot work here."""
    problem: str
    """Why bubblewrap cannot; empty when it can."""
    landlock: int
    """Version of the kernel's interface; 0: it has none."""
    cgroup: str
    """Directory under which groups with limits can be made; empty when none is delegated to us."""
    is_root: bool
    """Whether we run as root, which limits on the number of processes do not bind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxedCommand:
    """How to start a program so that it stands in its sandbox from its first instruction on.

    It dies with the thread that starts it: start it from one that lives as long as the program shall.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    """Start it with exactly these; whatever else a starter adds does not arrive."""
    layers: tuple[str, ...]
    """What holds it, such as `bubblewrap` and `landlock 7`."""
    missing: tuple[str, ...]
    """What the policy wants and nothing holds, each a sentence for a person: to be said loudly."""
    cgroup: str = ""
    """Group that was made for it; to be given back when it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeResult:
    """What a small program came to."""

    result: str
    """Canonical JSON of its `result`."""
    printed: str
