"""Children that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "LAB_PARENT"


def die_with_parent(*, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent ends, and leave at once when that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    expected = os.environ.get(PARENT_VARIABLE)
    if expected is not None and os.getppid() != int(expected):
        sys.exit(1)


def parent_environment() -> dict[str, str]:
    """Return the environment for a child of this process."""
    return {**os.environ, PARENT_VARIABLE: str(os.getpid())}


def tied(command: list[str], *, signal_name: str = "SIGKILL", user: str = "") -> list[str]:
    """Wrap a command that is not ours so that it ends with its parent; as root it may run as another user."""
    return [sys.executable, "-S", __file__, signal_name, user, *command]


def _main(arguments: list[str]) -> None:
    signal_name, user, *command = arguments
    if user:
        import pwd  # only where a change of user was asked for

        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # After the change of user: changing credentials clears the death signal.
    die_with_parent(signal_number=signal.Signals[signal_name].value)
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    _main(sys.argv[1:])
