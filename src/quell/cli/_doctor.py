"""`quell doctor`."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._check import Check
from quell.cli._events import last_event
from quell.cli._exit import ExitCode
from quell.cli._output import painted, put_document, put_text
from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App, Office, Toolset
    from quell.config import Settings
    from quell.signals import Reader

_CHECK_S = 30.0
_FREE_BAD_MB, _FREE_WARN_MB = 100, 1024
_WAITING_WARN_MB = 64
_CLOCK_SLACK_S = 60.0
_PACKAGES = ("click", "dbos", "sqlalchemy", "msgspec", "httpx2", "starlette", "uvicorn", "opentelemetry-sdk", "chdb")


@click.command("doctor", cls=QuellCommand)
@click.pass_obj
def doctor_command(session: Session) -> int:
    """Check everything Quell needs, and say what to do. Exit 1 when something is bad."""
    checks = [_versions(), _config(session)]
    settings = session.known_settings
    if settings is not None:
        checks += [_state_dir(settings), _disk(settings), _engine(settings), _intake(settings), *_models(session)]
        if checks[2].status != "bad":
            checks += [*_living(session), *_authority(session)]
    is_ok = all(check.status != "bad" for check in checks)
    if session.is_json:
        put_document("doctor", is_ok=is_ok, checks=checks)
        return ExitCode.DONE if is_ok else ExitCode.BAD
    colours = {"ok": "green", "warn": "yellow", "bad": "red"}
    for check in checks:
        # Not click's own echo: it would take the colour out again when stdout is no terminal.
        sys.stdout.write(painted(f"{check.status:5}", colours[check.status], session))
        put_text(f"{check.name:12} {check.detail}" + (f"\n     hint: {check.hint}" if check.hint else ""))
    return ExitCode.DONE if is_ok else ExitCode.BAD


def _versions() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    from quell import __version__

    told = []
    for name in _PACKAGES:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"{name} not installed")
    return Check(
        name="versions",
        status="ok",
        detail=f"quell {__version__}, Python {platform.python_version()}, {', '.join(told)}",
    )


def _config(session: Session) -> Check:
    from quell.config import version_of
    from quell.domain import ConfigError

    try:
        loaded = session.loaded()
    except ConfigError as error:
        return Check(name="config", status="bad", detail=str(error), hint="`quell config check` lists every mistake")
    files = ", ".join(map(str, loaded.files)) or "no file: every key has its default"
    return Check(name="config", status="ok", detail=f"version {version_of(loaded.settings)}; {files}")


def _state_dir(settings: Settings) -> Check:
    path = settings.state_dir
    probe = path / f".doctor-{os.getpid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        hint = "give --state-dir a directory that this user may write to"
        return Check(name="state dir", status="bad", detail=f"{path}: {error.strerror}", hint=hint)
    finally:
        _remove(probe)
    if path.stat().st_mode & 0o022:
        return Check(
            name="state dir", status="warn", detail=f"{path} can be written by others", hint=f"chmod 700 {path}"
        )
    return Check(name="state dir", status="ok", detail=f"{path.resolve()} can be written")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _disk(settings: Settings) -> Check:
    at = settings.state_dir
    while not at.is_dir():
        at = at.resolve().parent
    free_mb = shutil.disk_usage(at).free // 1_048_576
    detail = f"{free_mb} MiB free; the store may take {settings.store.disk_max_mb} MiB"
    if free_mb < _FREE_BAD_MB:
        return Check(name="disk", status="bad", detail=detail, hint="free some space: nothing can be kept soon")
    if free_mb < max(_FREE_WARN_MB, settings.store.disk_max_mb if not settings.store.url else 0):
        return Check(name="disk", status="warn", detail=detail, hint="free some space or lower store.disk_max_mb")
    return Check(name="disk", status="ok", detail=detail)


def _engine(settings: Settings) -> Check:
    from importlib.util import find_spec

    if settings.store.url:
        return Check(name="engine", status="ok", detail="an existing ClickHouse is used")
    if find_spec("chdb") is None:
        hint = "pip install 'quell[embedded]', or set store.url to an existing ClickHouse"
        return Check(name="engine", status="bad", detail="the embedded engine (chdb) is not installed", hint=hint)
    return Check(name="engine", status="ok", detail="the embedded engine (chdb) is installed")


def _models(session: Session) -> list[Check]:
    """Look at the models that agents name; none is asked anything that costs money."""
    from quell.cli._doctor_models import model_checks
    from quell.cli._loop import run_until_done

    checks: list[Check] = []

    async def use() -> int:
        checks.extend(await model_checks(session.loaded().agents, env=session.env))
        return ExitCode.DONE

    run_until_done(use)
    return checks


def _living(session: Session) -> list[Check]:
    """Open the app as a command does and look at everything that must answer."""
    from quell.domain import QuellError

    checks: list[Check] = []

    async def use(app: App) -> int:
        checks.append(Check(name="journal", status="ok", detail=await _journal(app)))
        checks.append(await _bounded("clock", partial(_clock, app)))
        checks.append(await _bounded("port", partial(_port, app)))
        checks.append(await _bounded("store", partial(_store, app)))
        sources = [reader for reader in app.readers if reader.name != "store"]
        checks.extend([await _bounded(f"source {each.name}", partial(_source, each)) for each in sources])
        return ExitCode.DONE

    try:
        session.with_app(use)
    except QuellError as error:
        checks.append(Check(name="journal", status="bad", detail=str(error), hint=error.hint))
    return checks


def _authority(session: Session) -> list[Check]:
    """Look at what decides: keys, anchor, secrets, policies, sandboxes, pins."""
    from quell.domain import QuellError

    checks: list[Check] = []

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.cli._doctor_authority import authority_checks

        checks.extend(await authority_checks(office, toolset))
        return ExitCode.DONE

    try:
        session.with_toolset(use)
    except QuellError as error:
        checks.append(Check(name="authority", status="bad", detail=str(error), hint=error.hint))
    return checks


async def _bounded(name: str, look: Callable[[], Awaitable[Check]]) -> Check:
    """Look, but not for ever; what a look raises is its result."""
    from quell.domain import QuellError

    try:
        async with asyncio.timeout(_CHECK_S):
            return await look()
    except TimeoutError:
        return Check(
            name=name, status="bad", detail=f"no answer within {_CHECK_S:g} s", hint="is the machine overloaded?"
        )
    except QuellError as error:
        return Check(name=name, status="bad", detail=str(error), hint=error.hint)
    except OSError as error:
        return Check(name=name, status="bad", detail=str(error), hint="")


async def _journal(app: App) -> str:
    runs = await app.runs.list(limit=1)
    kind = "PostgreSQL" if app.settings.journal.url else "SQLite"
    return f"{kind} answers; {f'newest run {runs[0].id}' if runs else 'no run yet'}"


async def _clock(app: App) -> Check:
    """Compare the clock with what was written down last: time must not have gone back since."""
    now = app.clock()
    last = await last_event(app)
    newest = await app.runs.events(after=last - 1, limit=1) if last else []
    if newest and (newest[0].at - now).total_seconds() > _CLOCK_SLACK_S:
        ahead_s = (newest[0].at - now).total_seconds()
        hint = "synchronise the clock (NTP); until then ages and windows are wrong"
        detail = f"the clock went back: the newest event is {ahead_s:.0f} s in the future"
        return Check(name="clock", status="bad", detail=detail, hint=hint)
    return Check(name="clock", status="ok", detail=f"{now:%Y-%m-%d %H:%M:%SZ}; nothing in the journal is younger")


async def _port(app: App) -> Check:
    host, port = app.settings.server.host, app.settings.server.port
    server = _server(app.settings.state_dir)
    if server:
        return Check(name="port", status="ok", detail=f"a server of this state directory runs at {server}")
    try:
        listening = await asyncio.start_server(lambda _reader, _writer: None, host, port)
    except OSError as error:
        hint = "stop what listens there, or set server.port (0 takes a free one)"
        return Check(name="port", status="bad", detail=f"{host}:{port}: {error.strerror}", hint=hint)
    listening.close()
    await listening.wait_closed()
    return Check(name="port", status="ok", detail=f"{host}:{port} is free" if port else "any free port will do")


def _server(state_dir: Path) -> str:
    """Return the URL of a live server of this state directory: one that was killed leaves its file, but not its lock."""
    try:
        told = json.loads((state_dir / "serve.json").read_text(encoding="utf-8"))
        return str(told["url"]) if _is_locked(state_dir / "serve.lock") else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _intake(settings: Settings) -> Check:
    """Tell what was received and is not in the store: set aside, or waiting."""
    aside = _sizes(settings.state_dir / "quarantine", but=".reason.txt")
    waiting_mb = sum(_sizes(settings.state_dir / "spool")) / 1_048_576
    detail = f"{waiting_mb:.1f} MiB wait for the store, {len(aside)} payloads were set aside"
    if aside:
        hint = f"{settings.state_dir / 'quarantine'} holds them, each with its reason; delete what you have seen"
        return Check(name="intake", status="warn", detail=detail, hint=hint)
    if waiting_mb > _WAITING_WARN_MB:
        hint = "a server that runs puts it into the store; if it grows, see logs/quell.log"
        return Check(name="intake", status="warn", detail=detail, hint=hint)
    return Check(name="intake", status="ok", detail=detail)


def _sizes(directory: Path, *, but: str = "") -> list[int]:
    """Return the sizes of the files below a directory; files may vanish meanwhile."""
    sizes: list[int] = []
    for at, _, names in os.walk(directory):
        for name in names:
            if but and name.endswith(but):
                continue
            try:
                sizes.append((Path(at) / name).stat().st_size)
            except OSError:
                continue
    return sizes


async def _store(app: App) -> Check:
    from quell.domain import StoreError

    try:
        store = await app.open_store()
        status = await store.status()
    except StoreError as error:
        if not (url := app.settings.store.url):
            raise
        hint = "check store.url and its user, and that it can be reached from here"
        return Check(name="store", status="bad", detail=f"{url}: {error}", hint=hint)
    size = f"{status.rows} rows, {status.disk_bytes // 1_048_576} MiB on disk, {status.memory_bytes // 1_048_576} MiB of memory"
    detail = f"{status.kind} {status.version} is {status.state}; {size}"
    if status.state != "ready":
        return Check(name="store", status="bad", detail=f"{detail}; {status.failure}", hint="see logs/quell.log")
    problems = [problem for reader in app.readers if reader.name == "store" for problem in await reader.check()]
    if problems:
        return Check(name="store", status="bad", detail="; ".join(problems), hint="")
    return Check(name="store", status="ok", detail=detail)


async def _source(reader: Reader) -> Check:
    problems = await reader.check()
    name = f"source {reader.name}"
    if problems:
        hint = "check its url, and that it can be reached from here"
        return Check(name=name, status="bad", detail="; ".join(problems), hint=hint)
    return Check(name=name, status="ok", detail="answers")
