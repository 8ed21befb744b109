"""Queries with spans, time limits and errors the shop understands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import psycopg
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from quell_lab.kit._errors import UnavailableError
from quell_lab.kit._pool import AbandonedQueryError, Connection, Pool

QUERY_TIMEOUT_S = 3.0

Row = dict[str, object]


class Database:
    """The shop's PostgreSQL as one service sees it."""

    def __init__(
        self,
        pool: Pool,
        *,
        tracer: Tracer,
        address: tuple[str, int],
        keeps_connection: Callable[[], bool],
    ) -> None:
        self.pool = pool
        self._tracer = tracer
        self._keeps_connection = keeps_connection
        self._attributes: dict[str, str | int] = {
            "db.system.name": "postgresql",
            "db.namespace": "shop",
            "peer.service": "postgres",
            "server.address": address[0],
            "server.port": address[1],
        }

    async def rows(self, summary: str, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return its rows."""
        with self._tracer.start_as_current_span(
            summary,
            kind=SpanKind.CLIENT,
            attributes={**self._attributes, "db.query.summary": summary},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return await self._run(sql, parameters)
            except UnavailableError as error:
                span.set_attribute("error.type", error.kind)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                span.record_exception(error)
                raise

    async def _run(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        try:
            async with self.pool.connection(keeps=self._keeps_connection) as connection:
                return await self._fetch(connection, sql, parameters)
        except AbandonedQueryError as error:
            raise UnavailableError(
                f"the database did not answer within {QUERY_TIMEOUT_S:g} s", kind="timeout"
            ) from error
        except psycopg.errors.LockNotAvailable as error:
            raise UnavailableError("canceling statement due to lock timeout", kind="lock_timeout") from error
        except psycopg.errors.QueryCanceled as error:
            raise UnavailableError("canceling statement due to statement timeout", kind="statement_timeout") from error
        except psycopg.OperationalError as error:
            message = (str(error).strip().splitlines() or ["connection lost"])[0]
            raise UnavailableError(f"database connection failed: {message}", kind="connection_reset") from error

    async def _fetch(self, connection: Connection, sql: str, parameters: Sequence[object]) -> list[Row]:
        async def query() -> list[Row]:
            cursor = await connection.execute(sql, parameters)
            return await cursor.fetchall() if cursor.description else []

        task = asyncio.create_task(query())
        done, _ = await asyncio.wait({task}, timeout=QUERY_TIMEOUT_S)
        if not done:
            self.pool.abandon(connection, task)
            raise AbandonedQueryError
        return task.result()
