"""One event of the journal as one line, for people and for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from quell.cli._output import painted, put_record
from quell.cli._session import Session
from quell.domain import Event, printable
from quell.telemetry import EVENTS

if TYPE_CHECKING:
    from quell.app import App

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan", "debug": "dim"}


def body_of(event: Event) -> dict[str, object]:
    """Read the body of an event."""
    body = json.loads(event.body or "{}")
    return body if isinstance(body, dict) else {"body": body}


def put_event(event: Event, session: Session) -> None:
    """Write one event to stdout: one line, or one JSON document with --json."""
    body = body_of(event)
    if session.is_json:
        put_record("event", seq=event.seq, at=event.at, run=event.run, name=event.name, body=body)
        return
    spec = EVENTS.get(event.name)
    name = painted(f"{event.name:18}", _COLOURS[spec.level if spec else "info"], session)
    tail = " ".join(f"{key}={_cell(value)}" for key, value in body.items() if value not in (None, "", []))
    # Line by line: the name may carry colour, so only what others wrote is made printable.
    line = f"{event.at:%H:%M:%S} {printable(event.run)} {name} {printable(tail)}".rstrip()
    _put_line(line)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'"{text}"' if not text or any(c.isspace() for c in text) else text


def _put_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def last_event(app: App, *, run: str | None = None) -> int:
    """Return the sequence number of the newest event, of one run or of all; 0 when there is none."""
    return await app.runs.last_seq(run=run)
