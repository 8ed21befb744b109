"""Tell an error to people and to programs: what happened, why, what to do, and which exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from click import ClickException
from click.exceptions import Abort, NoArgsIsHelpError, NoSuchCommand, NoSuchOption, UsageError

from quell.cli._exit import DeadlineError, ExitCode
from quell.cli._session import Session
from quell.domain import ConfigError, Problem, QuellError, new_id, printable, printable_json
from quell.telemetry import event, open_telemetry

_CAUSES_MAX = 3


@dataclass(frozen=True, kw_only=True)
class _Told:
    kind: str
    message: str
    hint: str
    exit: ExitCode
    causes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    report: str = ""


def tell_failure(error: BaseException, session: Session) -> int:
    """Write the message to stderr, the traceback to the log file, and return the exit code."""
    if isinstance(error, Abort):
        tell_interrupted(session)
        return ExitCode.INTERRUPTED
    clean = _clean_of(session)
    told = _cleaned(_told(error), clean)
    try:
        if told.exit is ExitCode.BUG:
            told = _reported(told, session)
        _log(error, told, session, clean=clean)
    except Exception as failure:  # noqa: BLE001 - a report that cannot be kept must not hide the error it is about
        told = replace(told, hint=f"`--debug` shows where; it could not be logged: {clean(str(failure))}")
    if session.is_debug:
        sys.stderr.write(clean("".join(traceback.format_exception(error))))
    if session.is_json:
        sys.stderr.write(_document(told))
        return told.exit
    if isinstance(error, NoArgsIsHelpError):
        sys.stderr.write(f"{clean(error.message)}\n\n")
    lines = [f"error: {told.message}"]
    for problem in told.problems:
        lines.append(f"  {problem.path + ' ' if problem.path else ''}({problem.source}): {problem.reason}")
        lines += [f"    hint: {problem.hint}"] if problem.hint else []
    lines += [f"cause: {cause}" for cause in told.causes]
    lines += [f"hint: {told.hint}"] if told.hint else []
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")
    return told.exit


def _clean_of(session: Session) -> Callable[[str], str]:
    """Return what takes secrets out of what an error says: a library may quote whatever it was given."""
    from quell.audit import Redactor

    return Redactor.of(session.known_settings, environment=session.env).text


def _cleaned(told: _Told, clean: Callable[[str], str]) -> _Told:
    problems = tuple(replace(each, reason=clean(each.reason), hint=clean(each.hint)) for each in told.problems)
    causes = tuple(map(clean, told.causes))
    return replace(told, message=clean(told.message), hint=clean(told.hint), causes=causes, problems=problems)


def tell_interrupted(session: Session) -> None:
    """Say that the command was interrupted, and what became of its work."""
    message = "interrupted"
    try:
        if session.is_json:
            told = _Told(kind="Interrupted", message=message, hint=session.note, exit=ExitCode.INTERRUPTED)
            sys.stderr.write(_document(told))
        else:
            sys.stderr.write(f"error: {message}\n" + (f"hint: {printable(session.note)}\n" if session.note else ""))
        sys.stderr.flush()
    except OSError:
        return


def _document(told: _Told) -> str:
    return printable_json(json.dumps({"ok": False, "error": _as_json(told)}, ensure_ascii=False)) + "\n"


def _told(error: BaseException) -> _Told:
    if isinstance(error, ClickException):
        return _told_of_click(error)
    if isinstance(error, QuellError):
        known = {code.value for code in ExitCode}
        code = ExitCode(error.exit_code) if error.exit_code in known else ExitCode.BUG
        problems = error.problems if isinstance(error, ConfigError) else ()
        kind = type(error).__name__
        causes = _causes(error)
        return _Told(kind=kind, message=str(error), hint=error.hint, exit=code, causes=causes, problems=problems)
    if isinstance(error, DeadlineError):
        return _Told(kind="DeadlineError", message=str(error), hint=error.hint, exit=ExitCode.DEADLINE)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _Told(
            kind="OSError",
            message=f"{where}{error.strerror}",
            hint="check the path, its permissions and the free space",
            exit=ExitCode.UNREACHABLE,
        )
    return _Told(
        kind="Bug",
        message=f"a bug of ours: {type(error).__name__}: {error}",
        hint="",
        exit=ExitCode.BUG,
        causes=_causes(error),
    )


def _told_of_click(error: ClickException) -> _Told:
    message, hint = error.format_message(), ""
    if isinstance(error, NoArgsIsHelpError):
        message = "missing command"
    elif isinstance(error, NoSuchCommand | NoSuchOption):
        message, hint = error.message, _did_you_mean(error.possibilities)
    if not hint and isinstance(error, UsageError) and error.ctx is not None:
        hint = f"`{error.ctx.command_path} --help` shows how it is used"
    message = message[:1].lower() + message[1:].rstrip(".")
    return _Told(kind="UsageError", message=message, hint=hint, exit=ExitCode.USAGE)


def _did_you_mean(names: list[str] | None) -> str:
    return f"did you mean {' or '.join(f'`{name}`' for name in names[:3])}?" if names else ""


def _causes(error: BaseException) -> tuple[str, ...]:
    told: list[str] = []
    at: BaseException | None = error.__cause__
    while at is not None and len(told) < _CAUSES_MAX:
        told.append(f"{type(at).__name__}: {at}")
        at = at.__cause__
    return tuple(told)


def _as_json(told: _Told) -> dict[str, object]:
    document: dict[str, object] = {
        "kind": told.kind,
        "message": told.message,
        "hint": told.hint,
        "exit": int(told.exit),
    }
    if told.causes:
        document["causes"] = list(told.causes)
    if told.problems:
        document["problems"] = [
            {"path": p.path, "source": p.source, "reason": p.reason, "hint": p.hint} for p in told.problems
        ]
    if told.report:
        document["report"] = told.report
    return document


def _reported(told: _Told, session: Session) -> _Told:
    """Give a bug the id under which the log file knows it."""
    from quell.runs import system_clock

    report = new_id("bug", at=system_clock(), entropy=os.urandom(10))
    settings = session.known_settings
    where = f"the traceback is in {settings.state_dir / 'logs' / 'quell.log'}" if settings else "`--debug` shows where"
    return replace(told, report=report, hint=f"report {report}; {where}")


def _log(error: BaseException, told: _Told, session: Session, *, clean: Callable[[str], str]) -> None:
    """Put the traceback into the log file of the state directory, if there is one."""
    settings = session.known_settings
    if settings is None or not (settings.state_dir.is_dir() or told.exit is ExitCode.BUG):
        return
    from quell import __version__
    from quell.runs import system_clock

    stack = "".join(traceback.format_exception(error))
    quietly = replace(settings, telemetry=replace(settings.telemetry, enabled=False))
    opened = open_telemetry(
        quietly,
        role="command",
        service_version=__version__,
        instance="cli",
        clock=system_clock,
        env={},
        console="off",
        clean=clean,
    )
    try:
        if told.exit is ExitCode.BUG:
            event("cli.crashed", command=session.command, report=told.report, error=told.message, traceback=stack)
        else:
            event("cli.failed", command=session.command, exit=int(told.exit), error=told.message, traceback=stack)
    finally:
        opened.close_now()
