"""The last steps before a program that is not trusted: limits, no keyrings, Landlock; then the program takes our place.

It runs as a program of its own, inside the sandbox, on the standard library alone: nothing of Quell may be imported
here. What it is told and cannot do ends it before the program begins. Landlock: docs.kernel.org/userspace-api/landlock.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_EXECUTE, _WRITE, _READ, _READ_DIR, _REFER, _TRUNCATE, _IOCTL = (1 << bit for bit in (0, 1, 2, 3, 13, 14, 15))
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Rights on files by version; since the fifth there are sixteen."""
_BITS_NOW = 16
_NET_SINCE, _SCOPE_SINCE = 4, 6
_TCP = 0b11
_SCOPES = 0b11
_CANNOT, _NOT_FOUND = 126, 127
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_KEY_CALLS = {
    0xC000003E: (248, 249, 250),
    0x40000003: (286, 287, 288),
    0xC00000B7: (217, 218, 219),
    0x40000028: (309, 310, 311),
}
"""add_key, request_key and keyctl by architecture, as the kernel names them (AUDIT_ARCH): x86 and ARM, of 64 and 32 bits."""
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_AT_NUMBER, _AT_ARCHITECTURE = 0, 4
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001
_NOT_X32 = 0xBFFFFFFF
"""The bit that a third way into x86 sets in its numbers."""


def landlock_version() -> int:
    """Return the version of the kernel's interface; 0 when it has none."""
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(0, int(version))


def confine(*, read_only: Iterable[str], read_write: Iterable[str], network: str) -> None:
    """Take every right on files from this process but these, and TCP unless the network is the host's.

    Raises OSError when the kernel does not do it.
    """
    version = landlock_version()
    rights = (1 << _BITS.get(version, _BITS_NOW)) - 1
    handled_net = _TCP if version >= _NET_SINCE and network == "none" else 0
    attributes = struct.pack("=QQQ", rights, handled_net, _SCOPES if version >= _SCOPE_SINCE else 0)
    libc = _libc()
    rules = _checked(
        libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)),
        "a set of rules",
    )
    for paths, wanted in ((read_only, _EXECUTE | _READ | _READ_DIR), (read_write, rights)):
        for path in paths:
            _allow(rules, path, rights=wanted & rights)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _checked(libc.syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)), "the restriction")
    os.close(rules)


def close_keyrings() -> None:
    """Refuse this process, and what it starts, every call that reads or writes keys. Raises OSError when it cannot be.

    Keys of the kernel (keyrings(7)) hold Kerberos tickets, keys of disks and passwords. A session's keyring is handed
    down to every child and no namespace divides it; a user's is found by its number from inside of a namespace.
    """
    steps: list[bytes] = []
    for architecture, numbers in _KEY_CALLS.items():
        steps += [_step(_LOAD, _AT_ARCHITECTURE), _step(_EQUAL, architecture, otherwise=len(numbers) + 4)]
        steps += [_step(_LOAD, _AT_NUMBER), _step(_AND, _NOT_X32)]
        steps += [_step(_EQUAL, number, then=len(numbers) - at) for at, number in enumerate(numbers)]
        steps += [_step(_RETURN, _ALLOW), _step(_RETURN, _REFUSE)]
    steps.append(_step(_RETURN, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = _libc()
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _checked(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0), "a filter of calls")


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """Write one step of a filter (struct sock_filter): what to do, and how many steps to leave out."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _allow(rules: int, path: str, *, rights: int) -> None:
    """Allow rights beneath a path; one that is not there needs no rule."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, place)
        added = _libc().syscall(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
        _checked(added, f"a rule for {path}")
    finally:
        os.close(place)


def _checked(told: int, what: str) -> int:
    if told < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel refuses {what}: {os.strerror(number)}")
    return told


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _limit(limits: Mapping[str, int]) -> None:
    """Set limits, never above those that hold already."""
    for name, most in limits.items():
        which = getattr(resource, name)
        _, hard = resource.getrlimit(which)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (bound, bound))


def _only(names: Iterable[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _begin(spec: Mapping[str, Any]) -> None:
    """Close what leaked in, enter the group with limits, and die when our parent does."""
    # Names of numbers, not paths.
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)  # noqa: PTH208
    if spec["cgroup"]:
        (Path(spec["cgroup"]) / "cgroup.procs").write_text("0")
    with suppress(PermissionError):  # our starter made it a leader already
        os.setsid()
    _checked(_libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "to die with its parent")


def _build(spec: Mapping[str, Any], command: list[str]) -> NoReturn:
    """Become bubblewrap: with the variables in a file of memory, as others can read its arguments."""
    _begin(spec)
    words = ["--clearenv"]
    for name, value in _only(spec["environment"]).items():
        words += ["--setenv", name, value]
    place = os.memfd_create("arguments", 0)
    os.write(place, b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(place, 0, os.SEEK_SET)
    os.execve(command[0], [command[0], "--args", str(place), *command[1:]], {})  # noqa: S606 - no shell, on purpose


def _enter(spec: Mapping[str, Any], command: list[str]) -> NoReturn:
    """Become the program, with the rights that are left to it."""
    if spec["begins"]:
        _begin(spec)
        os.chdir(spec["working_directory"])
    environment = _only(spec["environment"])
    _limit(spec["limits"])
    close_keyrings()
    if spec["landlock"]:
        confine(read_only=spec["read_only"], read_write=spec["read_write"], network=spec["network"])
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell, on purpose
    except (FileNotFoundError, PermissionError) as error:
        sys.stderr.write(
            f"sandbox: {command[0]} cannot be started in the sandbox ({error.strerror}); mount its files\n"
        )
        raise SystemExit(_NOT_FOUND) from None


def main(arguments: list[str]) -> None:
    """Do as the specification says: build the sandbox around us, or enter the one that we are in."""
    stage, spec, separator, *command = arguments
    assert separator == "--", "a stage, a specification, two dashes, a command"
    try:
        {"build": _build, "enter": _enter}[stage](json.loads(spec), command)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"sandbox: not started, because it cannot be confined: {error}\n")
        raise SystemExit(_CANNOT) from None


if __name__ == "__main__":
    main(sys.argv[1:])
