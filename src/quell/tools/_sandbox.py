"""Sandboxes for programs that are not trusted: bubblewrap around them, Landlock within, limits on both.

A sandbox only says how to start a program; whoever starts it needs to know nothing of it. What the machine cannot do is
refused or told, as the policy says; it is never left out quietly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from quell.domain import ConfigError, Problem, RefusedError, SandboxCapabilities, SandboxedCommand, SandboxPolicy
from quell.tools import _landlock
from quell.tools._cgroup import find_delegated, limits_of, make_group, remove_group, sweep

_WALLS = (
    "--unshare-all",
    "--unshare-user",
    "--disable-userns",
    "--cap-drop",
    "ALL",
    "--die-with-parent",
    "--new-session",
)
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/ssl/certs", "/etc/nsswitch.conf")
_NETWORK_SETTINGS = ("/etc/resolv.conf", "/etc/hosts")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NOT_OURS = ("/proc", "/sys", "/dev")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PROBE_S = 10.0
_NET_SINCE, _SCOPE_SINCE = 4, 6
_HINT = "install bubblewrap and allow user namespaces, or let the policy say best_effort and read what is missing"


class Sandbox:
    """One policy, and the way to start programs under it."""

    def __init__(
        self,
        policy: SandboxPolicy,
        *,
        protected: Sequence[str] = (),
        machine: SandboxCapabilities | None = None,
        interpreter: str = "",
    ) -> None:
        self._policy = policy
        self._interpreter = os.path.realpath(interpreter or sys.executable)
        problems = tuple(_problems(policy, protected=protected))
        if problems:
            raise ConfigError("this sandbox cannot be built", problems=problems)
        self._machine = machine or self.capabilities()
        if policy.need == "required" and not self._machine.bubblewrap:
            raise RefusedError(f"no sandbox on this machine: {self._machine.problem}", hint=_HINT)

    @staticmethod
    def capabilities() -> SandboxCapabilities:
        """Return what this machine can do; bubblewrap is tried once, by running it."""
        return _capabilities()

    def wrap(self, command: Sequence[str], *, environment: Mapping[str, str]) -> SandboxedCommand:
        """Return how to start a command in this sandbox. Of the environment only what the policy names arrives."""
        assert command, "a program to start"
        policy, machine = self._policy, self._machine
        group = _group(machine, policy)
        if machine.bubblewrap:
            argv = self._around(command, group=group)
        else:
            argv = self._stage("enter", self._within(group=group), command)
        layers = (
            *(["bubblewrap"] if machine.bubblewrap else []),
            *([f"landlock {machine.landlock}"] if machine.landlock else []),
            *(["cgroup"] if group else []),
            "rlimits",
        )
        return SandboxedCommand(
            argv=argv,
            environment={name: environment[name] for name in policy.environment if name in environment},
            layers=layers,
            missing=tuple(_missing(machine, policy, limits=limits_of(Path(machine.cgroup)) if group else frozenset())),
            cgroup=group,
        )

    @staticmethod
    def release(command: SandboxedCommand) -> None:
        """Kill what is left of a command, where a group holds it, and remove the group."""
        if command.cgroup:
            remove_group(Path(command.cgroup))

    def _around(self, command: Sequence[str], *, group: str) -> tuple[str, ...]:
        """Build with bubblewrap, then enter."""
        policy = self._policy
        inner = self._stage("enter", self._within(group=""), command)
        walls = [self._machine.bubblewrap, *_WALLS, *(["--share-net"] if policy.network == "host" else [])]
        # Where we are root, the kernel's settings in /proc would be ours to write: they are the whole machine's.
        walls += ["--hostname", "sandbox", "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
        for path in ("/tmp", "/dev/shm"):  # noqa: S108 - its own, in memory, which no limit of a process counts
            walls += ["--size", str(policy.temporary_max_bytes), "--tmpfs", path]
        walls += ["--remount-ro", "/dev"]
        for path in _SYSTEM:
            place = Path(path)
            if place.is_symlink():
                walls += ["--symlink", str(place.readlink()), path]
            else:
                walls += ["--ro-bind-try", path, path]
        for path in self._settings():
            walls += ["--ro-bind-try", path, path]
        for flag, paths in (("--ro-bind", policy.read_only), ("--bind", policy.read_write)):
            for path in paths:
                real = os.path.realpath(path)
                for seen_at in dict.fromkeys((path, real)):
                    walls += [flag, real, seen_at]
        for path in self._own_files():
            walls += ["--ro-bind", path, path]
        walls += ["--remount-ro", "/", "--chdir", policy.working_directory, "--", *inner]
        return self._stage("build", {"cgroup": group, "environment": policy.environment}, walls)

    def _within(self, *, group: str) -> dict[str, object]:
        """Say what is left to the program once it is entered."""
        policy, is_alone = self._policy, not self._machine.bubblewrap
        read_write = [os.path.realpath(path) for path in policy.read_write]
        # Without walls there is no /tmp of its own, and the devices are the machine's.
        read_write += list(_DEVICES) if is_alone else ["/tmp", "/dev"]  # noqa: S108 - its own, in memory
        read_only = [*_SYSTEM, *self._settings(), *self._own_files(), *map(os.path.realpath, policy.read_only)]
        return {
            "begins": is_alone,
            "cgroup": group,
            "working_directory": policy.working_directory,
            "environment": policy.environment,
            "limits": self._limits(is_alone=is_alone),
            "landlock": self._machine.landlock,
            "read_only": read_only if is_alone else [*read_only, "/proc"],
            "read_write": read_write,
            "network": policy.network,
        }

    def _limits(self, *, is_alone: bool) -> dict[str, int]:
        policy = self._policy
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_DATA": policy.memory_max_bytes,
            "RLIMIT_NOFILE": policy.files_max,
            "RLIMIT_FSIZE": policy.file_max_bytes,
        }
        if not is_alone:
            # In a user namespace of its own only its own processes count; outside it would be all of the user's.
            limits["RLIMIT_NPROC"] = policy.processes_max
        if policy.cpu_s is not None:
            limits["RLIMIT_CPU"] = policy.cpu_s
        return limits

    def _settings(self) -> tuple[str, ...]:
        return (*_SETTINGS, *_NETWORK_SETTINGS) if self._policy.network == "host" else _SETTINGS

    def _own_files(self) -> list[str]:
        """Return what the last step before the program needs: an interpreter and its standard library."""
        own = [self._interpreter, os.path.realpath(_landlock.__file__)]
        if self._interpreter == os.path.realpath(sys.executable):
            library = Path(sysconfig.get_config_var("LIBDIR") or "/") / (sysconfig.get_config_var("INSTSONAME") or "")
            own += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
            own += [str(library)] if library.is_file() else []
        return [path for path in dict.fromkeys(own) if not any(Path(path).is_relative_to(place) for place in _SYSTEM)]

    def _stage(self, name: str, spec: Mapping[str, object], command: Sequence[str]) -> tuple[str, ...]:
        shim = (self._interpreter, "-I", "-S", "-B", os.path.realpath(_landlock.__file__))
        return (*shim, name, json.dumps(spec), "--", *command)


def _group(machine: SandboxCapabilities, policy: SandboxPolicy) -> str:
    """Make a group for one program; empty when there is no place for groups, or it cannot be made any more."""
    if not machine.cgroup:
        return ""
    place = Path(machine.cgroup)
    sweep(place)
    try:
        return str(make_group(place, memory_max_bytes=policy.memory_max_bytes, processes_max=policy.processes_max))
    except OSError:
        return ""


def _missing(machine: SandboxCapabilities, policy: SandboxPolicy, *, limits: frozenset[str]) -> Iterator[str]:
    """Say what the policy wants and nothing holds."""
    if not machine.bubblewrap:
        yield f"bubblewrap does not work here ({machine.problem}): it sees the users and sockets of this machine"
        yield "what it starts may outlive it"
        if not machine.landlock:
            yield "the kernel has no Landlock either: it reads and changes every file that we can"
        elif policy.network == "none":
            tcp = "" if machine.landlock >= _NET_SINCE else "TCP, "
            yield f"the network is not closed for {tcp}UDP and sockets that are files"
        if 0 < machine.landlock < _SCOPE_SINCE:
            yield "it may send signals to our other processes"
    elif not machine.landlock:
        yield "the kernel has no Landlock: bubblewrap is the only wall"
    if policy.network == "host" and machine.bubblewrap and machine.landlock < _SCOPE_SINCE:
        yield "with the host's network it reaches the host's abstract sockets, which may obey whoever comes"
    if "memory" not in limits:
        yield "no cgroup with memory is delegated to us: it is limited for each process, shared and all together is not"
    if "pids" not in limits and (machine.is_root or not machine.bubblewrap):
        yield "no cgroup with pids is delegated to us: the number of its processes is not limited"


def _problems(policy: SandboxPolicy, *, protected: Sequence[str]) -> Iterator[Problem]:
    """Find every variable and path that cannot or must not be given to a program."""
    for name in policy.environment:
        # The loader obeys its own variables before any wall stands.
        if not _VARIABLE.fullmatch(name) or name.startswith("LD_"):
            reason = f"{name!r} is no variable that a program may get"
            yield Problem(path="sandbox.environment", reason=reason, hint="leave it out", source="policy")
    guarded = [Path(os.path.realpath(path)) for path in protected]
    for key in ("read_only", "read_write"):
        for path in getattr(policy, key):
            real = Path(os.path.realpath(path))
            reason = ""
            if not Path(path).is_absolute() or ".." in Path(path).parts:
                reason = "is no absolute path"
            elif not real.exists():
                reason = "is not there"
            elif real == Path("/") or any(real.is_relative_to(place) for place in _NOT_OURS):
                reason = "is never opened to a program"
            elif any(real.is_relative_to(place) or place.is_relative_to(real) for place in guarded):
                reason = "holds what Quell keeps for itself"
            if reason:
                yield Problem(path=f"sandbox.{key}", reason=f"{path} {reason}", hint="name another", source="policy")


@lru_cache(maxsize=1)
def _capabilities() -> SandboxCapabilities:
    path, problem = _bubblewrap()
    group = find_delegated()
    return SandboxCapabilities(
        bubblewrap=path,
        problem=problem,
        landlock=_landlock.landlock_version(),
        cgroup=str(group or ""),
        is_root=os.geteuid() == 0,
    )


def _bubblewrap() -> tuple[str, str]:
    """Return its path, or why it does not work: it may be there and user namespaces may not."""
    path = shutil.which("bwrap")
    if path is None:
        return "", "the program bwrap is not installed"
    command = [path, *_WALLS, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "/bin/true"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False, env={})
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"bwrap does not run: {error}"
    if told.returncode != 0:
        return "", f"bwrap fails: {' '.join(told.stderr.split())[:200]}"
    return path, ""
