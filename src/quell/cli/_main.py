"""The outermost frame of a command: from arguments to an exit code, whatever happens in between."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from quell.cli._exit import ExitCode
from quell.cli._signals import listen_to_signals

if TYPE_CHECKING:
    from quell.cli._session import Session

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_NEW_MAX = 50_000
"""New objects before the collector looks: what a command loads stays, and would be looked through again and again."""
_COLUMNS_DEFAULT, _COLUMNS_MIN, _COLUMNS_MAX = 80, 50, 100


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the interpreter with its exit code."""
    code: int = ExitCode.INTERRUPTED
    try:
        # The handler first: everything after it may be interrupted and still ends with an exit code of ours.
        listen_to_signals()
        gc.set_threshold(_NEW_MAX)
        _fill_streams()
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        pass
    # The result stands; a late signal while the interpreter cleans up must not turn it into a crash.
    listen_to_signals(is_over=True)
    sys.exit(code)


def _fill_streams() -> None:
    """Put nothing in the place of a standard stream that was closed: the next file opened would become stdout."""
    if sys.stdin is not None and sys.stdout is not None and sys.stderr is not None:
        return
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(nowhere, True)  # noqa: FBT003 - the standard library's own signature
    os.close(nowhere)
    sys.stdin = sys.stdin or open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end
    sys.stdout = sys.stdout or open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as above
    sys.stderr = sys.stderr or open(_STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as above


def _run(arguments: list[str]) -> int:
    from quell.cli._session import Session

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    session = Session(env=dict(os.environ), is_json=_wants_json(arguments))
    try:
        code = _invoke(arguments, session)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as in `quell watch | head`: nobody wants to hear about it.
        _silence(_STDOUT)
        return ExitCode.DONE
    except KeyboardInterrupt:
        return _interrupted(session)
    except BaseException as error:  # noqa: BLE001 - the frame that turns every error into a message and an exit code
        return _failed(error, session)
    return code


def _invoke(arguments: list[str], session: Session) -> int:
    from quell.cli._root import ReaderGoneError, root

    try:
        code = root.main(
            args=arguments, prog_name="quell", standalone_mode=False, obj=session, terminal_width=_columns(session.env)
        )
    except ReaderGoneError:
        raise BrokenPipeError from None
    except SystemExit as left:
        # Commands of other packages may leave like this; their code is theirs.
        return left.code if isinstance(left.code, int) else ExitCode.DONE if left.code is None else ExitCode.BAD
    return int(code) if code is not None else ExitCode.DONE


def _columns(env: Mapping[str, str]) -> int:
    """Return the width of help texts. Asked here, because click would load shutil and three compressors for it."""
    given = env.get("COLUMNS", "")
    try:
        columns = int(given) if given.isdigit() else os.get_terminal_size(_STDOUT).columns
    except OSError:
        columns = _COLUMNS_DEFAULT
    return max(_COLUMNS_MIN, min(_COLUMNS_MAX, columns) - 2)


def _interrupted(session: Session) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _silence(_STDOUT)
    from quell.cli._failure import tell_interrupted

    tell_interrupted(session)
    return ExitCode.INTERRUPTED


def _failed(error: BaseException, session: Session) -> int:
    from quell.cli._failure import tell_failure

    try:
        code = tell_failure(error, session)
        sys.stderr.flush()
    except BrokenPipeError:
        _silence(_STDERR)
        return ExitCode.BUG
    try:
        sys.stdout.flush()
    except OSError:
        # What could not be written is known already; the interpreter shall not complain a second time.
        _silence(_STDOUT)
    return code


def _silence(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether errors are wanted as JSON, even those of a command line that cannot be parsed."""
    upto = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:upto]
