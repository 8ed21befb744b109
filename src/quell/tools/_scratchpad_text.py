"""Lines of a text of any size, in place; and cuts that say that they are cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quell.tools._scratchpad_json import Pages

TOKEN_BYTES = 4
_CHUNK_BYTES = 1 << 20
_TABLE_LINES = 10
_TABLE_LINE_MAX_BYTES = 4_000
_TABLE_COLUMNS_MAX = 40


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1, and where its bytes are, the line break left out."""

    number: int
    start: int
    end: int


def tokens_of(size_bytes: int) -> int:
    """Estimate tokens: four bytes each."""
    return -(-size_bytes // TOKEN_BYTES)


def line_count(pages: Pages) -> int:
    """Count lines; a last one without a line break is one too."""
    breaks = sum(pages[at : at + _CHUNK_BYTES].count(b"\n") for at in range(0, len(pages), _CHUNK_BYTES))
    return breaks + (len(pages) > 0 and pages[-1:] != b"\n")


def lines_from(pages: Pages, number: int) -> Iterator[Line]:
    """Yield lines from that number on."""
    at, current = _start_of(pages, number)
    while at < len(pages):
        end = pages.find(b"\n", at)
        end = len(pages) if end < 0 else end
        yield Line(current, at, end)
        at, current = end + 1, current + 1


def _start_of(pages: Pages, number: int) -> tuple[int, int]:
    """Find a line by its number, a chunk at a time; return its start and its number, or the end."""
    current = 1
    for at in range(0, len(pages), _CHUNK_BYTES):
        chunk = pages[at : at + _CHUNK_BYTES]
        breaks = chunk.count(b"\n")
        if current + breaks < number:
            current += breaks
            continue
        inside = 0
        while current < number:
            inside = chunk.find(b"\n", inside) + 1
            current += 1
        return at + inside, current
    return len(pages), current


def whole_until(pages: Pages, at: int, *, end: int) -> int:
    """Move a cut back so that it does not divide a character."""
    cut = min(end, len(pages))
    for _ in range(3):
        if cut <= at or cut >= len(pages) or pages[cut] & 0xC0 != 0x80:
            break
        cut -= 1
    return cut if cut > at else min(end, len(pages))


def clipped(pages: Pages, start: int, end: int, *, bytes_max: int) -> str:
    """Read a stretch of text; what does not fit is counted at its end, with where to read on."""
    if end - start <= bytes_max:
        return pages[start:end].decode("utf-8", "replace").rstrip("\r")
    cut = whole_until(pages, start, end=start + bytes_max)
    return f"{pages[start:cut].decode('utf-8', 'replace')}…[{end - cut:,} more bytes: read with offset={cut}]"


def clip(text: str, *, bytes_max: int) -> str:
    """Shorten a text; what does not fit is counted at its end."""
    content = text.encode("utf-8", "replace")
    if len(content) <= bytes_max:
        return text
    cut = whole_until(content, 0, end=bytes_max)
    return f"{content[:cut].decode('utf-8', 'replace')}…[{len(content) - cut:,} more bytes]"


def table_of(pages: Pages) -> str:
    """Describe a table by its first lines: separator and columns; empty when it is none."""
    lines: list[str] = []
    for line in lines_from(pages, 1):
        if len(lines) == _TABLE_LINES or line.end - line.start > _TABLE_LINE_MAX_BYTES:
            break
        lines.append(clipped(pages, line.start, line.end, bytes_max=_TABLE_LINE_MAX_BYTES))
    rows = [line for line in lines if line.strip()]
    for separator, word in (("\t", "tab"), (",", "comma"), ("|", "bar"), (";", "semicolon")):
        widths = {row.count(separator) for row in rows}
        if len(rows) > 1 and len(widths) == 1 and min(widths) > 0:
            names = [name.strip().strip('"') for name in rows[0].split(separator)]
            shown = ", ".join(clip(name, bytes_max=60) for name in names[:_TABLE_COLUMNS_MAX])
            return f"table: {len(names)} columns separated by {word}; first row: {shown}"
    return ""
