"""A pytest plugin: canary secrets for the whole suite, and a look through everything that each test wrote or said.

Planted are secrets that Quell holds (in the environment of every test and of every process that it starts, and in the
settings of the rooms), and in what tools answer those again, and one that nobody told us of. Looked through after each
test are its files, a database among them as bytes, its captured output, what programs told it, and what the rooms'
clients and services were sent. Whatever is found fails the test.

All canaries begin alike and end alike, so that few needles find every one of them in every encoding, and a part of one
too: what the page of a database or a cut tears has still one of its ends.
"""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

_HEAD, _TAIL = "kQ7xVw" + sha256(b"head").hexdigest()[:6], sha256(b"tail").hexdigest()[:6] + "mZ4tRj"
# With what encodings change in the middle of each.
IN_ENVIRONMENT = f'{_HEAD}/e+n=v ü"{_TAIL}'
IN_SETTINGS = f"{_HEAD}-s'e<t&%\\{_TAIL}"
TOLD = "ghp_" + sha256(b"told").hexdigest()[:36]
"""Held by nobody: rules know it by how it looks, as it stands."""
ENVIRONMENT: Mapping[str, str] = {
    "CANARY_PAGER_TOKEN": IN_ENVIRONMENT,
    "CANARY_SHOP_URL": f"https://shop:{_HEAD}-u.r_l~{_TAIL}@shop.internal/",
}
RESULT = f"with {base64.b64encode(f'u:{IN_ENVIRONMENT}'.encode()).decode()} or {IN_SETTINGS} or {TOLD} signed in"
"""What a tool says that tells everything."""
MEANT: Mapping[str, str] = {
    "quell.toml": "settings, as a person wrote them",
    "planted-leak": "left on purpose by the test of this plugin",
}
"""Names of files and directories that hold a canary on purpose, and why."""
UNSEARCHED: Mapping[str, str] = {
    "pgdata": "a PostgreSQL is asked for its rows",
    "store": "telemetry of services, compressed; nothing is planted in it, and what Quell tells of itself is sent",
}
"""Directories that are not looked through, and why."""
_FIGURES = ("tests", "files", "texts", "bytes", "hits")


def needles() -> Mapping[bytes, str]:
    """Return what betrays a canary, and in which encoding."""
    found = {TOLD.encode(): "plain"}
    for raw in (_HEAD.encode(), _TAIL.encode()):
        found |= {raw: "plain", raw.hex().encode(): "hex", raw.hex().upper().encode(): "hex"}
        found |= {"".join(form % byte for byte in raw).encode(): "url" for form in ("%%%02x", "%%%02X")}
        found |= {"".join(form % byte for byte in raw).encode(): "JSON" for form in ("\\u%04x", "\\u%04X")}
        for first in range(3):
            # Whole groups of three bytes inside of it: no neighbour changes them.
            inside = raw[first : first + (len(raw) - first) // 3 * 3]
            found |= {base64.b64encode(inside): "base64", base64.urlsafe_b64encode(inside): "base64"}
    return found


class Search:
    """What was looked through, and what was found."""

    def __init__(self) -> None:
        self._needles = tuple(needles().items())
        self._looked: set[Path] = set()
        self.is_on = False
        self.figures = dict.fromkeys(_FIGURES, 0)
        self.found: list[str] = []
        """Since it was last asked for."""

    def text(self, place: str, said: str | bytes | None) -> None:
        """Look through what was said or sent."""
        if said:
            self.figures["texts"] += 1
            self._look(place, said.encode("utf-8", "surrogateescape") if isinstance(said, str) else said)

    def files(self, root: Path) -> None:
        """Look through every file below a directory, and its name; each directory once."""
        for at, directories, names in os.walk(root):
            here = Path(at)
            if here in self._looked:
                directories.clear()
                continue
            self._looked.add(here)
            directories[:] = [name for name in directories if name not in UNSEARCHED and name not in MEANT]
            for name in names:
                if name not in MEANT:
                    self._file(here / name, place=str((here / name).relative_to(root)))

    def rows(self, database: str, ask: Callable[[str], list[str]]) -> None:
        """Look through every table of a PostgreSQL; `ask` gives the first column of a query."""
        for table in ask("SELECT relid::regclass::text FROM pg_stat_user_tables"):
            (rows,) = ask(f"SELECT string_agg(t::text, ' ') FROM {table} t")
            self.text(f"table {table} of {database}", rows)

    def taken(self) -> list[str]:
        """Return what was found since it was last asked for, and count it."""
        found, self.found = self.found, []
        self.figures["hits"] += len(found)
        return found

    def _file(self, path: Path, *, place: str) -> None:
        try:
            content = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
        except OSError:
            return  # Gone meanwhile, or not ours to read: some tests take rights away.
        self.figures["files"] += 1
        self._look(f"file {place}", content)
        self._look("the name of a file", os.fsencode(place))

    def _look(self, place: str, content: bytes) -> None:
        self.figures["bytes"] += len(content)
        told = dict.fromkeys(form for needle, form in self._needles if needle in content)
        # Never the canary itself: this is printed.
        where = "a file whose name holds one" if any(each in os.fsencode(place) for each, _ in self._needles) else place
        self.found += [f"{form} in {where}" for form in told]


SEARCH = Search()


class Plugin:
    """Plants when the session begins, looks after each test, tells at the end."""

    def __init__(self) -> None:
        self._undo = pytest.MonkeyPatch()
        self._outside: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Plant, and listen to what tests read of programs and of themselves."""
        SEARCH.is_on = True
        for name, value in ENVIRONMENT.items():
            self._undo.setenv(name, value)
        communicate, readouterr = subprocess.Popen.communicate, pytest.CaptureFixture.readouterr
        cleanup = tempfile.TemporaryDirectory.cleanup

        def heard(process: subprocess.Popen[Any], *args: Any, **more: Any) -> tuple[Any, Any]:
            said = communicate(process, *args, **more)
            for stream, text in zip(("stdout", "stderr"), said, strict=True):
                SEARCH.text(f"{stream} of a program", text)
            return said

        def read(capture: pytest.CaptureFixture[Any]) -> Any:
            said = readouterr(capture)
            for stream, text in zip(("stdout", "stderr"), said, strict=True):
                SEARCH.text(stream, text)
            return said

        def removed(directory: tempfile.TemporaryDirectory[Any]) -> None:
            SEARCH.files(Path(directory.name))
            cleanup(directory)

        self._undo.setattr(subprocess.Popen, "communicate", heard)
        self._undo.setattr(pytest.CaptureFixture, "readouterr", read)
        self._undo.setattr(tempfile.TemporaryDirectory, "cleanup", removed)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look through what a test left."""
        done = yield
        arguments = getattr(item, "funcargs", None) or {}
        if isinstance(left := arguments.get("tmp_path"), Path):
            SEARCH.files(left)
        for _, stream, text in item._report_sections:
            # Log records as pytest itself takes them are what libraries said, not what Quell made of it.
            if stream != "log":
                SEARCH.text(stream, text)
        SEARCH.figures["tests"] += 1
        if found := SEARCH.taken():
            pytest.fail(f"a canary leaked: {'; '.join(found)}", pytrace=False)
        return done

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Look through what belongs to no single test, and give the figures to whoever started this worker."""
        factory = getattr(session.config, "_tmp_path_factory", None)
        base = getattr(factory, "_basetemp", None)
        if isinstance(base, Path):
            SEARCH.files(base)
        self._outside += SEARCH.taken()
        self._undo.undo()
        if (worker := getattr(session.config, "workeroutput", None)) is not None:
            worker["canaries"] = {"figures": SEARCH.figures, "outside": self._outside}
        if self._outside:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add the figures of a worker."""
        told = getattr(node, "workeroutput", {}).get("canaries")
        if told:
            self._outside += told["outside"]
            for name in _FIGURES:
                SEARCH.figures[name] += told["figures"][name]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell how much was looked through, and what was found outside of tests."""
        figures = SEARCH.figures
        terminalreporter.write_line(
            f"canaries: {figures['tests']} tests, {figures['files']} files, {figures['texts']} texts and"
            f" {figures['bytes'] / 1e6:.1f} MB looked through: {figures['hits']} hits"
        )
        for found in self._outside:
            terminalreporter.write_line(f"canaries: LEAKED outside of any test: {found}")


def pytest_configure(config: pytest.Config) -> None:
    """Begin, once."""
    if not config.pluginmanager.has_plugin("canaries"):
        config.pluginmanager.register(Plugin(), "canaries")
