"""Writes of many runs that come at the same time share one transaction, and so one flush (group commit).

A write returns only once its transaction is flushed. What comes while one is being flushed goes into the next, so that
a write that comes alone waits for nobody, unless it says that it can. After DeWitt et al., *Implementation Techniques
for Main Memory Database Systems* (1984), section 5.2.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar, cast

from quell.domain import JournalError
from quell.runs._database import Connection, Database, Told

P = ParamSpec("P")
T = TypeVar("T")

_TOGETHER_MAX = 128
_BESIDE_S = 0.003
_SAVEPOINT = "quell_part"


class _ApartError(Exception):
    """What was put off by one of the writes failed: nobody can tell whose it is until each is done alone."""


class _Part:
    """One write that waits, and what became of it."""

    __slots__ = ("_context", "_last", "_work", "awaited", "error", "future", "told", "value")

    def __init__(
        self, work: Callable[[], object], future: asyncio.Future[object], *, awaited: Literal["now", "later"]
    ) -> None:
        self._work = work
        self._context = contextvars.copy_context()  # the place in the trace goes along
        self.future = future
        self.awaited = awaited
        self.value: object = None
        self.error: BaseException | None = None
        self.told: list[Told] = []
        self._last: list[Callable[[], None]] = []

    def do(self) -> None:
        """Do it in a transaction of its own."""
        self.value, self.error = None, None
        try:
            self.value = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            self.error = error

    def join(self, connection: Connection, database: Database) -> None:
        """Do it in a transaction with others; its error undoes what it wrote and nothing else."""
        connection.run(f"SAVEPOINT {_SAVEPOINT}")
        try:
            self.value = self._context.run(self._work)
        except Exception as error:  # noqa: BLE001 - as above
            connection.take_last()
            # Fails when the database has given the whole transaction up; then so do all.
            connection.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            self.error = database.told_apart(error)
        else:
            connection.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            self._last = connection.take_last()

    def finish(self, connection: Connection) -> None:
        """Write what it put off until the end."""
        for write in self._last:
            write()
        self.told = connection.take_told()

    def tell(self, database: Database) -> None:
        """Tell telemetry what it wrote, at its place in the trace."""
        if self.told:
            self._context.run(database.tell, self.told)


class Scribe:
    """The one writer of a process for what its runs do."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quell-scribe")
        self._lock = threading.Lock()
        self._waiting: deque[_Part] = deque()
        self._is_writing = False
        self._is_closed = False

    async def write(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a write of the journal, which opens its transaction itself; it is flushed when this returns.

        Raises what the write raises, and JournalError when the database fails.
        """
        written = self._put(partial(work, *args, **kwargs), awaited="now")
        self._begin()
        return cast("T", await written)

    async def write_beside(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a write in the flush of the next one, or alone when none comes soon: for what nothing waits for just now.

        What is written after it comes after it. Raises as `write` does.
        """
        written = self._put(partial(work, *args, **kwargs), awaited="later")
        written.get_loop().call_later(_BESIDE_S, self._begin)
        return cast("T", await written)

    def close(self) -> None:
        """Take no more; what waits is still written."""
        self._begin()
        self._is_closed = True
        self._pool.shutdown(wait=False)

    def _put(self, work: Callable[[], object], *, awaited: Literal["now", "later"]) -> asyncio.Future[object]:
        if self._is_closed:
            raise RuntimeError("a scribe that is closed writes nothing")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(_Part(work, future, awaited=awaited))
        return future

    def _begin(self) -> None:
        with self._lock:
            if self._waiting and not self._is_writing:
                self._pool.submit(self._write_all)
                self._is_writing = True

    def _write_all(self) -> None:
        while True:
            with self._lock:
                parts = [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER_MAX))]
                if not parts:
                    self._is_writing = False
                    return
            if len(parts) == 1:
                parts[0].do()
            else:
                self._write_many(parts)
            try:
                parts[0].future.get_loop().call_soon_threadsafe(_settle, parts)
            except RuntimeError:  # the loop is gone, and so is whoever waited
                continue

    def _write_many(self, parts: Sequence[_Part]) -> None:
        try:
            self._together(parts)
        except _ApartError:
            self._one_by_one(parts)
        except Exception as error:  # noqa: BLE001 - as above; nothing of it was kept
            for part in parts:
                part.error = error
        else:
            for part in parts:
                part.tell(self._database)
            self._database.tell_runs([told for part in parts for told in part.told])

    def _together(self, parts: Sequence[_Part]) -> None:
        with self._database.sharing() as connection:
            for part in parts:
                part.join(connection, self._database)
            # Put off until here, where every transaction queues, and nobody who queues waits for anything else.
            try:
                for part in parts:
                    part.finish(connection)
            except Exception as error:
                raise _ApartError from error

    def _one_by_one(self, parts: Sequence[_Part]) -> None:
        is_up = True
        for part in parts:
            if is_up:
                part.do()
                is_up = not isinstance(part.error, JournalError) or self._answers()
            else:
                part.error = JournalError(
                    f"journal {self._database.where}: it failed in the middle of a write", hint="runs try again"
                )

    def _answers(self) -> bool:
        try:
            with self._database.reading() as connection:
                connection.one("SELECT 1 AS one")
        except JournalError:
            return False
        return True


def _settle(parts: Sequence[_Part]) -> None:
    # Who waits for it now is woken first: it may be all that a model waits for.
    for part in sorted(parts, key=lambda part: part.awaited == "later"):
        if part.future.done():
            continue
        if part.error is not None:
            part.future.set_exception(part.error)
        else:
            part.future.set_result(part.value)
