"""The embedded engine inside the owner process: sessions on a bounded pool of threads, one statement at a time each."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import chdb.session

T = TypeVar("T")


class _Result(Protocol):
    def bytes(self) -> bytes | None: ...
    def storage_rows_read(self) -> int: ...
    def storage_bytes_read(self) -> int: ...
    def rows_written(self) -> int: ...
    def bytes_written(self) -> int: ...


class _Session(Protocol):
    """What we use of the engine's own session, which has no annotations."""

    def query(self, sql: str, fmt: str = ..., *, params: dict[str, str] | None = ...) -> _Result: ...
    def close(self) -> object: ...


_new_session: Callable[[str], _Session] = chdb.session.Session

_INSERT = re.compile(
    r"^\s*INSERT\s+INTO\s+(?:TABLE\s+)?(?P<target>[\w.`\"]+)\s*(?P<columns>\([^)]*\))?\s*(?P<settings>SETTINGS\s.*?)?\s*FORMAT\s+(?P<format>\w+)[ \t]*\n?",
    re.IGNORECASE | re.DOTALL,
)
_HEAD_BYTES = 65536
_DATABASE = "default"
_CODE = re.compile(r"Code: (\d+)")
_READERS = 3
_WRITERS = 1
_PENDING_MAX = 128
_HANGS_S = 150.0
TOO_MANY_QUERIES = 202
UNKNOWN_FAILURE = 1002
NOT_ENOUGH_SPACE = 243
SCHEMA_CACHE = "__cache__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine may use."""

    memory_max_mb: int
    threads_max: int
    query_timeout_s: float
    retention_hours: float
    rollup_retention_days: float
    disk_max_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One request as it arrived."""

    text: bytes
    """The query; for an insert the rows may follow its FORMAT clause."""
    rows: bytes = b""
    """Rows of an insert that came apart from the query."""
    settings: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    database: str = ""
    """Where unqualified names are looked up; empty means the default one."""
    output_format: str = "TabSeparated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a statement gave."""

    body: bytes
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int
    elapsed_ns: int


class EngineError(Exception):
    """The engine refused or failed a statement."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def drop_schemas() -> None:
    """Delete the engine's copies of format schemas, which lie in its working directory."""
    shutil.rmtree(SCHEMA_CACHE, ignore_errors=True)


def engine_error(error: Exception) -> EngineError:
    """Turn what the engine raised into its number and its words."""
    text = str(error)
    found = _CODE.search(text)
    return EngineError(int(found.group(1)) if found else UNKNOWN_FAILURE, text)


def quoted(value: str) -> str:
    """Write a setting's value as SQL; a number stays a number."""
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Engine:
    """Sole holder of the embedded database of one directory."""

    def __init__(self, directory: Path, *, limits: Limits) -> None:
        memory = limits.memory_max_mb << 20
        startup = {
            "max_server_memory_usage": memory,
            "max_thread_pool_size": 96,
            "max_thread_pool_free_size": 8,
            "mark_cache_size": 32 << 20,
            "index_mark_cache_size": 16 << 20,
            "uncompressed_cache_size": 8 << 20,
            "primary_index_cache_size": 32 << 20,
            "query_condition_cache_size": 8 << 20,
            "background_schedule_pool_size": 2,
            "background_schedule_pool_initial_size": 2,
            "jemalloc_enable_background_threads": 1,
        }
        self._address = f"{directory}?" + "&".join(f"{name}={value}" for name, value in startup.items())
        self._standing = {
            "max_execution_time": f"{limits.query_timeout_s:g}",
            "max_memory_usage": str(memory * 3 // 4),
            "max_threads": str(limits.threads_max),
            "max_result_bytes": str(256 << 20),
            "result_overflow_mode": "throw",
            "log_queries": "0",
            # Rows that look alike are no repetition unless the writer says so with a token.
            "deduplicate_insert": "disable",
            "insert_deduplicate": "0",
            # A part that the disk cuts short while it is written is reported as stored (seen with chdb 4.4): stop before.
            "min_free_disk_bytes_to_perform_insert": str(8 << 20),
            # Skip indexes are built when parts merge: a part of the last minute is small enough to read.
            "materialize_skip_indexes_on_insert": "0",
            "materialize_statistics_on_insert": "0",
        }
        self._local = threading.local()
        self._sessions: list[_Session] = []
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._pending = 0
        self._reading: dict[int, float] = {}
        self._first = self._open()  # keeps the database open however the threads come and go

    def _open(self) -> _Session:
        session = _new_session(self._address)
        session.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in self._standing.items()))
        with self._lock:
            self._sessions.append(session)
        return session

    def _session(self) -> _Session:
        session: _Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._open()
        return session

    def _retire(self) -> None:
        """Drop this thread's session after something left it in doubt."""
        session: _Session | None = getattr(self._local, "session", None)
        self._local.session = None
        self._local.database = _DATABASE
        if session is not None:
            with self._lock:
                self._sessions.remove(session)
            session.close()

    def submit(self, statement: Statement) -> Future[Outcome]:
        """Run a statement on the pool of its kind. Raises EngineError 202 when too many wait."""
        writes = is_insert(statement.text)
        return self._submit(lambda: self._run(statement) if writes else self._read(statement), writes=writes)

    def _read(self, statement: Statement) -> Outcome:
        thread = threading.get_ident()
        self._reading[thread] = time.monotonic()
        try:
            return self._run(statement)
        finally:
            del self._reading[thread]

    def busy(self) -> bool:
        """Tell whether every reader has a statement in hand, none for so long that it must hang."""
        begun = list(self._reading.values())
        return len(begun) >= _READERS and time.monotonic() - min(begun) < _HANGS_S

    def _submit(self, work: Callable[[], T], *, writes: bool) -> Future[T]:
        with self._lock:
            if self._pending >= _PENDING_MAX:
                raise EngineError(
                    TOO_MANY_QUERIES,
                    f"Code: {TOO_MANY_QUERIES}. DB::Exception: more than {_PENDING_MAX} statements wait",
                )
            self._pending += 1
        pool = self._writers if writes else self._readers
        future = pool.submit(work)
        future.add_done_callback(lambda _: self._finished())
        return future

    def _finished(self) -> None:
        with self._lock:
            self._pending -= 1

    def run(self, text: str) -> bytes:
        """Run one statement on the calling thread; for start-up and upkeep."""
        return self._run(Statement(text=text.encode(), settings={"max_execution_time": "120"})).body

    def _run(self, statement: Statement) -> Outcome:
        session = self._session()
        settings = statement.settings
        started = time.perf_counter_ns()
        try:
            self._use(session, statement.database or _DATABASE)
            if settings:
                session.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))
            return self._ask(session, statement, started)
        except Exception as error:
            failed = engine_error(error)
            if SCHEMA_CACHE in str(failed):
                self._forget_schemas(session)
                failed = EngineError(NOT_ENOUGH_SPACE, str(failed))  # no fault of the rows, whatever its number says
            raise failed from error
        finally:
            if settings:
                self._restore(session, settings)

    @staticmethod
    def _forget_schemas(session: _Session) -> None:
        """Make the engine write its copies of format schemas anew: one that a full disk cut short would fail for ever."""
        drop_schemas()
        with contextlib.suppress(Exception):
            session.query("SYSTEM DROP FORMAT SCHEMA CACHE FOR Protobuf")

    def _use(self, session: _Session, database: str) -> None:
        if getattr(self._local, "database", _DATABASE) != database:
            session.query(f"USE `{database.replace('`', '')}`")
            self._local.database = database

    def _restore(self, session: _Session, settings: Mapping[str, str]) -> None:
        back = (
            f"{name} = {quoted(self._standing[name]) if name in self._standing else 'DEFAULT'}" for name in settings
        )
        try:
            session.query("SET " + ", ".join(back))
        except Exception:  # noqa: BLE001 - whatever it is, a fresh session is the remedy
            self._retire()

    def _ask(self, session: _Session, statement: Statement, started: int) -> Outcome:
        insert = _INSERT.match(statement.text[:_HEAD_BYTES].decode("utf-8", "replace"))
        if insert is not None:
            return self._insert(session, insert, statement, started)
        text = (statement.text + statement.rows).decode("utf-8", "replace")
        result = session.query(text, statement.output_format, params=dict(statement.params) or None)
        return Outcome(
            body=bytes(result.bytes() or b""),
            read_rows=result.storage_rows_read(),
            read_bytes=result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            elapsed_ns=time.perf_counter_ns() - started,
        )

    def _insert(self, session: _Session, insert: re.Match[str], statement: Statement, started: int) -> Outcome:
        # The engine's own streaming insert reports success when the table refuses the rows (seen with chdb 4.4: too
        # many partitions); the rows go through a file in memory, where every failure is an error.
        target, columns, settings, form = insert.group("target", "columns", "settings", "format")
        # The head was decoded with replacement only beyond the clause, so its length in bytes is that of its text.
        inline = statement.text[len(insert.group(0).encode()) :]
        descriptor = os.memfd_create("rows", os.MFD_CLOEXEC)
        try:
            for piece in (inline, statement.rows):
                _write_whole(descriptor, piece)
            source = f"FROM INFILE '/proc/self/fd/{descriptor}' COMPRESSION 'none'"
            result = session.query(f"INSERT INTO {target} {columns or ''} {source} {settings or ''} FORMAT {form}")
        finally:
            os.close(descriptor)
        return Outcome(
            body=b"",
            read_rows=0,
            read_bytes=0,
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            elapsed_ns=time.perf_counter_ns() - started,
        )

    def close(self) -> None:
        """Finish what runs, refuse what waits, join the threads, close every session."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)
        for session in self._sessions:
            session.close()
        self._sessions.clear()


def _write_whole(descriptor: int, rows: bytes) -> None:
    left = memoryview(rows)
    while left:
        left = left[os.write(descriptor, left) :]


def is_insert(text: bytes) -> bool:
    """Tell whether a statement writes rows."""
    return text.lstrip()[:6].upper() == b"INSERT"
