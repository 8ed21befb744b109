"""A small pool of PostgreSQL connections with the figures that OpenTelemetry asks for."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg.rows import dict_row

from quell_lab.kit._errors import UnavailableError

Connection = psycopg.AsyncConnection[dict[str, object]]

ACQUIRE_TIMEOUT_S = 1.5
CONNECT_TIMEOUT_S = 1.5


class AbandonedQueryError(Exception):
    """A query did not come back in time; its connection has been abandoned."""


class Pool:
    """Lends at most `size` connections; who waits too long gets an error."""

    def __init__(self, conninfo: str, *, size: int, observe_wait: Callable[[float], None]) -> None:
        self.size = size
        self.used = 0
        self.waiting = 0
        self._conninfo = conninfo
        self._observe_wait = observe_wait
        self._idle: deque[Connection] = deque()
        self._free = asyncio.Semaphore(size)
        self._kept: list[Connection] = []
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> int:
        return len(self._idle)

    @asynccontextmanager
    async def connection(self, *, keeps: Callable[[], bool] = bool) -> AsyncIterator[Connection]:
        """Lend a connection; it is not given back when `keeps` says so at the end, which a repair may have changed."""
        await self._wait_turn()
        connection: Connection | None = None
        try:
            connection = await self._open()
            yield connection
        except AbandonedQueryError:
            self._release()
            raise
        except BaseException:
            if connection is not None:
                await self._discard(connection)
            self._release()
            raise
        if keeps():
            self._kept.append(connection)
            return
        if not connection.closed:
            self._idle.append(connection)
        self._release()

    async def recover(self) -> None:
        """Give back what was kept."""
        kept, self._kept = self._kept, []
        for connection in kept:
            self._idle.append(connection)
            self._release()

    def abandon(self, connection: Connection, query: asyncio.Task[list[dict[str, object]]]) -> None:
        """Let go of a query that does not come back, without waiting for the server to agree."""

        async def reap() -> None:
            query.cancel()
            await asyncio.gather(query, return_exceptions=True)
            await self._discard(connection)

        task = asyncio.create_task(reap())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def close(self) -> None:
        """Close every connection that is not lent."""
        while self._idle:
            await self._discard(self._idle.pop())

    def _release(self) -> None:
        self.used -= 1
        self._free.release()

    async def _wait_turn(self) -> None:
        began_s = time.perf_counter()
        self.waiting += 1
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                await self._free.acquire()
        except TimeoutError as error:
            message = f"no database connection became free within {ACQUIRE_TIMEOUT_S:g} s, pool size {self.size}"
            raise UnavailableError(message, kind="pool_timeout") from error
        finally:
            self.waiting -= 1
            self._observe_wait(time.perf_counter() - began_s)
        self.used += 1

    async def _open(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, row_factory=dict_row)
        except TimeoutError as error:
            raise UnavailableError("connecting to the database timed out", kind="timeout") from error
        except (psycopg.OperationalError, OSError) as error:
            raise UnavailableError(f"cannot connect to the database: {_line(error)}", kind=_kind(error)) from error

    async def _discard(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(0.5):
                await connection.close()
        except (TimeoutError, psycopg.Error, OSError):
            connection.pgconn.finish()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _kind(error: BaseException) -> str:
    text = str(error)
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in text:
        return "too_many_open_files"
    if "refused" in text:
        return "connection_refused"
    return "connection_reset"
