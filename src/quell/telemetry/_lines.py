"""One event, one line: for a terminal, for plain logs, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

from quell.domain import printable, printable_json
from quell.telemetry._catalogue import Level

Style: TypeAlias = Literal["plain", "colour", "json"]
Cell: TypeAlias = str | int | float | bool | list[str] | None

ORDER: Mapping[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_COLOUR: Mapping[Level, str] = {"debug": "2", "info": "36", "warning": "33", "error": "31;1"}
_BARE = re.compile(r"[^\s\"=\\]+")


def line_of(at: datetime, level: Level, name: str, *, run: str, body: Mapping[str, Cell], style: Style) -> str:
    """Write one event as one line without its newline."""
    if style == "json":
        return _json_line(at, level, name, run=run, body=body)
    tail = tail_of({"run": run, **body} if run else body)
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
    if style == "plain":
        return f"{stamp} {level} {name} {tail}".rstrip()
    return f"\x1b[2m{stamp[11:-1]}\x1b[0m \x1b[{_COLOUR[level]}m{level:7} {name}\x1b[0m {tail}".rstrip()


def tail_of(body: Mapping[str, Cell]) -> str:
    """Write the values of an event as `key=value key="two words"`."""
    return " ".join(f"{key}={_plain(value)}" for key, value in body.items() if value is not None and value != "")


def _json_line(at: datetime, level: Level, name: str, *, run: str, body: Mapping[str, Cell]) -> str:
    head = {"at": at.isoformat(), "level": level, "event": name} | ({"run": run} if run else {})
    # Keys of the head win: a body cannot forge the name or the time of its event.
    document = head | {key: value for key, value in body.items() if key not in head}
    # JSON escapes C0 itself; what is left (C1, direction marks) is escaped as JSON wants it.
    return printable_json(json.dumps(document, ensure_ascii=False, default=str))


def _plain(value: Cell) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    text = printable(", ".join(value) if isinstance(value, list) else str(value))
    return text if _BARE.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
