"""Files of orchestrated runs, in AURA's layout: written whole or not at all, named by us, and never through a link.

`{memory_dir}/{session}/{run}/` with `manifest.json`, `iteration-N/` and `artifacts/`; `latest` points to the newest run of a
session. Runs without a session lie in `{memory_dir}` itself; those of a caller other than the local owner below
`@tenant/@user`: a session is named by its client, and what lies in it belongs to whoever asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from quell import telemetry
from quell.domain import LocalOwner, Principal, RefusedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}", re.ASCII)
_SESSION = re.compile(r"(?!run_)[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MAX_BYTES = 8 << 20
_TOLD = ("timestamp", "goal", "status", "outcome", "response_summary")
_TOLD_MAX_CHARS, _PATHS_MAX = 500, 50
_ARTIFACTS, MANIFEST = "artifacts", "manifest.json"
_DIRECTORIES_MAX = 1_000
_ABANDONED = timedelta(days=7)
"""A run without a manifest may still be under way, but not for ever."""
_OWNER = LocalOwner()


class RunFiles:
    """The files of one run, and those of earlier runs of its session as far as they may be read."""

    def __init__(self, root: Path, *, by: Principal, session: str, run: str) -> None:
        """Name the places; nothing is made before something is kept."""
        is_owner = (by.tenant, by.user) == (_OWNER.tenant, _OWNER.user)
        above = () if is_owner else (f"@{_named(by.tenant, _SESSION)}", f"@{_named(by.user, _SESSION)}")
        self._root = root
        self._above = (*above, _named(session, _SESSION)) if session else above
        self._is_of_session = bool(session)
        self.run = _named(run, _RUN)

    async def keep(self, name: str, text: str) -> bool:
        """Write a file of this run, such as `iteration-1/plan.json`; False: it could not be written, which ends no run."""
        try:
            await asyncio.to_thread(self._write, tuple(name.split("/")), text)
        except OSError as error:
            telemetry.event("agent.file_lost", run=self.run, file=name, error=str(error))
            return False
        return True

    async def keep_artifact(self, name: str, text: str) -> str:
        """Write an artifact; return its name, or nothing when it could not be written."""
        clean = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-200:]
        return clean if await self.keep(f"{_ARTIFACTS}/{clean}", text) else ""

    async def read_artifact(self, name: str, *, run: str = "") -> str:
        """Return an artifact of this run, or of an earlier one of its session.

        Raises RefusedError for a name that is none, a run of another session, or a file that is not there.
        """
        return await asyncio.to_thread(self._read_artifact, name, run)

    async def prior(self, *, runs_max: int) -> list[Mapping[str, object]]:
        """Return what the manifests of the newest earlier runs of the session tell, the newest first."""
        return await asyncio.to_thread(self._prior, runs_max)

    async def begin(self, *, runs_max: int, now: datetime) -> None:
        """Make the run the latest of its session, and remove its oldest runs that have ended."""
        await asyncio.to_thread(self._begin, runs_max, now)

    # -- in a thread --------------------------------------------------------------------------------------------------

    def _write(self, parts: Sequence[str], text: str) -> None:
        assert parts, "a file has a name"
        assert all(_NAME.fullmatch(part) for part in parts), parts
        *directories, name = parts
        with self._opened((*self._above, self.run, *directories), makes=True) as place:
            part = f".{name[:100]}.part"
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=place)
            file = os.open(
                part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place
            )
            with open(file, "w", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - by descriptor
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, name, src_dir_fd=place, dst_dir_fd=place)

    def _read_artifact(self, name: str, run: str) -> str:
        if not _NAME.fullmatch(name):
            raise RefusedError(
                f"{name[:80]!r} is no name of an artifact", hint="use a name as it was listed, without a path"
            )
        if run and not _RUN.fullmatch(run):
            raise RefusedError(f"{run[:80]!r} is no id of a run", hint="use list_prior_runs")
        if run and run != self.run and not self._is_of_session:
            raise RefusedError("this run belongs to no session: there are no earlier runs", hint="leave run_id out")
        try:
            with self._opened((*self._above, run or self.run, _ARTIFACTS)) as place:
                return _text(name, place)
        except OSError:
            raise RefusedError(
                f"this session has no artifact {name} of {run or 'this run'}",
                hint="use list_prior_runs, or names as listed",
            ) from None

    def _prior(self, runs_max: int) -> list[Mapping[str, object]]:
        if not self._is_of_session or runs_max < 1:
            return []
        found: list[Mapping[str, object]] = []
        with suppress(OSError), self._opened(self._above) as place:
            for run in sorted(_runs_in(place), reverse=True):
                manifest = None if run == self.run else _manifest(run, place)
                if manifest is not None:
                    found.append(manifest)
                if len(found) >= runs_max:
                    break
        return found

    def _begin(self, runs_max: int, now: datetime) -> None:
        try:
            with self._opened((*self._above, self.run), makes=True):
                pass
            with self._opened(self._above) as place:
                if self._is_of_session:
                    self._point(place)
                self._prune(place, runs_max, now)
        except OSError as error:
            telemetry.event("agent.file_lost", run=self.run, file="latest", error=str(error))

    def _point(self, place: int) -> None:
        """Point `latest` to this run, unless it points to a later one: a run that waited long goes on beside newer ones."""
        with suppress(OSError):
            if os.readlink("latest", dir_fd=place) >= self.run:
                return
        with suppress(FileNotFoundError):
            os.unlink(".latest.part", dir_fd=place)
        os.symlink(self.run, ".latest.part", dir_fd=place)
        os.replace(".latest.part", "latest", src_dir_fd=place, dst_dir_fd=place)

    def _prune(self, place: int, runs_max: int, now: datetime) -> None:
        """Remove what is beyond the newest; a run that may be under way stays."""
        before = (now - _ABANDONED).timestamp()
        ended: list[str] = []
        for run in _runs_in(place):
            if run == self.run:
                continue
            with suppress(OSError):
                began = os.stat(run, dir_fd=place, follow_symlinks=False).st_mtime
                if _has_manifest(run, place) or (run.startswith("run_") and began < before):
                    ended.append(run)
        for run in sorted(ended, reverse=True)[max(runs_max - 1, 0) :]:
            shutil.rmtree(run, dir_fd=place, ignore_errors=True)

    @contextmanager
    def _opened(self, parts: Sequence[str], *, makes: bool = False) -> Iterator[int]:
        """Open a directory below the root step by step, so that no part of the way is a link."""
        if makes:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if makes:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=place)
                inner = os.open(part, _DIRECTORY, dir_fd=place)
                os.close(place)
                place = inner
            yield place
        finally:
            os.close(place)


def _named(text: str, pattern: re.Pattern[str]) -> str:
    """Return a name for a directory; what is none becomes a digest, so that no client names a place."""
    if pattern.fullmatch(text):
        return text
    return f"x-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:40]}"


def _runs_in(place: int) -> list[str]:
    names: list[str] = []
    with os.scandir(place) as entries:
        for entry in entries:
            if _RUN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                names.append(entry.name)
            if len(names) >= _DIRECTORIES_MAX:
                break
    return names


def _has_manifest(run: str, place: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(f"{run}/{MANIFEST}", dir_fd=place, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _manifest(run: str, place: int) -> Mapping[str, object] | None:
    try:
        inner = os.open(run, _DIRECTORY, dir_fd=place)
        try:
            found = json.loads(_text(MANIFEST, inner))
        finally:
            os.close(inner)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    told: dict[str, object] = {name: str(found[name])[:_TOLD_MAX_CHARS] for name in _TOLD if found.get(name)}
    paths = found.get("artifact_paths")
    if isinstance(paths, list):
        told["artifact_paths"] = [str(path)[:_TOLD_MAX_CHARS] for path in paths[:_PATHS_MAX]]
    return {**told, "run_id": run}


def _text(name: str, place: int) -> str:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    with open(file, "rb") as stream:  # noqa: PTH123 - by descriptor
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError("no file")
        return stream.read(_FILE_MAX_BYTES).decode("utf-8", "replace")
