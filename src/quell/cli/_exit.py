"""Every exit code there is, in one place."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command tells the program that called it."""

    DONE = 0
    BAD = 1
    USAGE = 2
    UNREACHABLE = 3
    DENIED = 4
    WAITING = 5
    LIMIT = 6
    BUG = 7
    DEADLINE = 124
    INTERRUPTED = 130


class DeadlineError(Exception):
    """A command waited as long as it was told to."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


MEANINGS: dict[ExitCode, str] = {
    ExitCode.DONE: "done; for `investigate`: a cause was found, or nothing is wrong",
    ExitCode.BAD: "what was asked about is bad: a check failed, an investigation is inconclusive",
    ExitCode.USAGE: "the command line or the configuration has a mistake",
    ExitCode.UNREACHABLE: "something cannot be reached or used: a source, the store, the disk, a port, the state directory",
    ExitCode.DENIED: "not permitted, or not possible from where it stands",
    ExitCode.WAITING: "waits for a person",
    ExitCode.LIMIT: "a limit or a budget was reached",
    ExitCode.BUG: "a bug of ours; the message holds the id of a report in the log file",
    ExitCode.DEADLINE: "the deadline passed before there was a result",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; `serve` that ends because of SIGTERM is done (0)",
}
