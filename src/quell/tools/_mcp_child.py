"""Stand between Quell and one server program: run it, and leave nothing of it behind. Run by path; imports no Quell.

It stays as the parent of the program and shares nothing with it but standard error. When the program ends, when Quell
ends it, and when Quell is killed and can no longer end anything, every descendant of the program dies.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS_MAX = 100
"""A family that forks faster than it is killed is not chased for ever."""


def main(arguments: list[str]) -> int:
    """Run `arguments[1:]` as a child of the process whose id is `arguments[0]`."""
    quell, program = int(arguments[0]), arguments[1:]
    signal.signal(signal.SIGTERM, _end_family)
    _die_with(quell)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            os.execvp(program[0], program)  # noqa: S606 - the operator's own command, without a shell
        except OSError as error:
            os.write(2, f"cannot start {program[0]}: {error.strerror}\n".encode())
            os._exit(127)
    _let_go_of_pipes()
    code = 0
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            break
    os.write(2, f"the server ended with {f'exit code {code}' if code >= 0 else f'signal {-code}'}\n".encode())
    _kill_family()
    return max(code, 0)


def _die_with(quell: int) -> None:
    """Ask the kernel for SIGTERM when Quell dies, and to be given the orphans of the program (Linux, prctl(2))."""
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - only Linux needs it

    with suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != quell:  # it died before the kernel was asked
        _end_family(signal.SIGTERM, None)


def _let_go_of_pipes() -> None:
    """Hold neither end of the pipes, so that Quell and the program see each other go."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _end_family(_number: int, _frame: object) -> None:
    _kill_family()
    os._exit(0)


def _kill_family() -> None:
    """Kill every descendant: what left the group or its parent has come to us as the reaper."""
    for _ in range(_ROUNDS_MAX):
        children = _children()
        if not children:
            return
        for pid in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
