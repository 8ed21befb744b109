"""Appends to the event log inside the transaction that makes it true."""

from __future__ import annotations

from datetime import datetime

import msgspec

from quell.runs._clock import to_text
from quell.runs._context import JsonObject
from quell.runs._database import Connection

_EVENT_LOCK = 0x5155454C4C02


def append_event(
    connection: Connection, *, is_postgres: bool, at: datetime, run: str, key: str, name: str, body: JsonObject
) -> None:
    """Append an event unless its key is there; written last in the transaction, as it queues for its number."""
    written = json_of(body)  # here, so that what cannot be written fails before the queue

    def write() -> None:
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
            body=written,
        )
        if added == 1:
            connection.told.append((run, name, dict(body)))

    connection.at_end(write)


def json_of(value: JsonObject) -> str:
    """Write a JSON object."""
    return msgspec.json.encode(value).decode()


def storable(text: str) -> str:
    """Return a text that every database takes: no NUL, no half of a character; a refused end would be tried for ever."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")
