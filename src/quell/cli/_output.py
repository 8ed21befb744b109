"""stdout is for data, stderr for everything else; words stand beside every colour."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from quell.cli._session import Session
    from quell.config import Settings

_GAP = "  "
_WIDTH_DEFAULT, _WIDTH_MIN, _WIDTH_MAX = 100, 60, 140
_COLOURS: Mapping[str, str] = {"red": "31;1", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}


def put_document(kind: str, *, is_ok: bool = True, **fields: object) -> None:
    """Write one JSON document to stdout."""
    from quell.domain import printable_json

    document = {"kind": kind, "ok": is_ok} | plain(fields)
    sys.stdout.write(printable_json(json.dumps(document, ensure_ascii=False, indent=2)) + "\n")


def put_record(kind: str, **fields: object) -> None:
    """Write one line of a stream of JSON documents to stdout, at once."""
    from quell.domain import printable_json

    document = {"kind": kind, "ok": True} | plain(fields)
    sys.stdout.write(printable_json(json.dumps(document, ensure_ascii=False, separators=(",", ":"))) + "\n")
    sys.stdout.flush()


def plain(fields: Mapping[str, object]) -> dict[str, object]:
    """Turn domain objects into what JSON knows."""
    import msgspec

    made = msgspec.to_builtins(dict(fields))
    assert isinstance(made, dict)
    return made


def put_text(text: str) -> None:
    """Write text to stdout; control characters other than line ends become visible."""
    from quell.domain import printable

    sys.stdout.write("\n".join(printable(line) for line in text.rstrip("\n").split("\n")) + "\n")


def put_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write aligned columns to stdout; on a terminal the last one is cut at its width, elsewhere nothing is."""
    from quell.domain import printable

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    width = shutil.get_terminal_size((_WIDTH_DEFAULT, 24)).columns if sys.stdout.isatty() else None
    for row in [list(headings), *cells]:
        line = _GAP.join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        sys.stdout.write((line[: width - 1] + "…" if width is not None and len(line) > width else line) + "\n")


def text_width() -> int:
    """Return the columns that prose on stdout should have."""
    if not sys.stdout.isatty():
        return _WIDTH_DEFAULT
    return max(_WIDTH_MIN, min(_WIDTH_MAX, shutil.get_terminal_size((_WIDTH_DEFAULT, 24)).columns))


def note(text: str) -> None:
    """Write a remark for people to stderr."""
    from quell.domain import printable

    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def note_lines(text: str) -> None:
    """Write what has several lines to stderr, as it is."""
    for line in text.splitlines():
        note(line)


def note_cut(shown: str, *, more: str) -> None:
    """Say that a listing was cut, and how to get the rest."""
    note(f"showing {shown}; there are more: {more}")


def note_none(what: str, settings: Settings) -> None:
    """Say where there is none: an empty listing of the wrong directory looks like a quiet night."""
    if settings.journal.url:
        note(f"no {what} in the journal of journal.url")
    else:
        note(f"no {what} in {settings.state_dir.resolve()}; --state-dir names another state directory")


def painted(text: str, colour: str, session: Session, *, stream: Literal["stdout", "stderr"] = "stdout") -> str:
    """Colour a word if its stream is a terminal that wants colour."""
    if not wants_colour(session, stream=stream):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def wants_colour(session: Session, *, stream: Literal["stdout", "stderr"]) -> bool:
    """Decide by NO_COLOR, FORCE_COLOR (`--color` sets them) and whether the stream is a terminal."""
    if session.env.get("NO_COLOR"):
        return False
    if session.env.get("FORCE_COLOR"):
        return True
    target = sys.stdout if stream == "stdout" else sys.stderr
    return target.isatty() and session.env.get("TERM") != "dumb"
