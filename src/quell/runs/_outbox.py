"""Appends to the event log inside the transaction that makes it true, and tells telemetry once that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import msgspec

from quell import telemetry
from quell.runs._clock import to_text
from quell.runs._context import JsonObject
from quell.runs._database import Connection, Database, Durability

_EVENT_LOCK = 0x5155454C4C02


@contextmanager
def telling(database: Database, *, durability: Durability = "flushed") -> Iterator[Connection]:
    """Give one write transaction, and tell telemetry of its events once they are kept."""
    with database.writing(durability=durability) as connection:
        yield connection
    for run, name, body in connection.told:
        if name in telemetry.EVENTS:
            # `name` is taken by the event itself.
            fields = {("step" if key == "name" else key): _field(value) for key, value in body.items()}
            telemetry.event(name, run=run, **fields)


def append_event(
    connection: Connection, *, is_postgres: bool, at: datetime, run: str, key: str, name: str, body: JsonObject
) -> None:
    """Append an event unless its key is there; the last write of a transaction, as it queues for its number."""
    if is_postgres:
        # Numbers must become visible in their order, or a reader that resumes would miss a late one.
        connection.all("SELECT pg_advisory_xact_lock(:lock)", lock=_EVENT_LOCK)
    added = connection.run(
        "INSERT INTO quell_events (run, key, name, at, body) VALUES (:run, :key, :name, :at, :body)"
        " ON CONFLICT (run, key) DO NOTHING",
        run=run,
        key=key,
        name=name,
        at=to_text(at),
        body=json_of(body),
    )
    if added == 1:
        connection.told.append((run, name, dict(body)))


def json_of(value: JsonObject) -> str:
    """Write a JSON object."""
    return msgspec.json.encode(value).decode()


def storable(text: str) -> str:
    """Return a text that every database takes: no NUL, no half of a character; a refused end would be tried for ever."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


def _field(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
