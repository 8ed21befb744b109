"""What SIGINT and SIGTERM do to a command."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: like Ctrl-C, but from a supervisor."""


def listen_to_signals(*, is_over: bool = False) -> None:
    """Let SIGINT and SIGTERM interrupt what is being done; ignore them once it is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_over else signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_over else _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TerminatedError
