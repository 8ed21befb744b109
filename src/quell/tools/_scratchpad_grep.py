"""Search in time linear in the text: the expression runs on finite automata, and whole blocks are ruled out at once.

Python's own `re` backtracks, holds the interpreter while it does, and cannot be stopped. The engine here is Rust's regex
crate, which pydantic carries: no look-around, no back-references, a bound on the size of the automaton.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from quell.tools._scratchpad_json import Pages
from quell.tools._scratchpad_text import Line, whole_until

PATTERN_MAX = 512
_BLOCK_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20
_AROUND = 150
_PER_LINE_ONLY = re.compile(r"\\[AzZnr]|\(\?[a-zA-Z-]+[:)]")
"""Ends of the text, line breaks and flags mean something else in a block of lines."""

Matches = Callable[[str], bool]


@dataclass(slots=True)
class Search:
    """What a search found, and how far it came."""

    lines: list[Line] = field(default_factory=list)
    """The first matching lines."""
    matching: int = 0
    """How many lines match, also those not kept."""
    searched_bytes: int = 0
    is_split: bool = False
    """Whether a line was so long that it was searched in pieces."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """An expression, ready to be asked about a line or a block of lines."""

    in_line: Matches
    in_block: Matches
    fault: str = ""
    """Why the text was taken literally; empty when it is an expression."""


def compiled(pattern: str) -> Pattern:
    """Compile an expression; what is none is searched for as it stands."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # noqa: PLC0415 - only a search needs it

    def matcher(expression: str) -> Matches:
        return SchemaValidator(core_schema.str_schema(pattern=expression, regex_engine="rust-regex")).isinstance_python

    try:
        in_line = matcher(pattern)
        in_block = _always if _PER_LINE_ONLY.search(pattern.removeprefix("(?i)")) else matcher(f"(?m){pattern}")
    except SchemaError as error:
        fault = str(error).strip().splitlines()[-1].removeprefix("error: ").strip()
        return Pattern(in_line=lambda text: pattern in text, in_block=_always, fault=fault)
    return Pattern(in_line=in_line, in_block=in_block)


def _always(_text: str) -> bool:
    return True


def search(pages: Pages, pattern: Pattern, *, lines_max: int, until_s: float, monotonic: Callable[[], float]) -> Search:
    """Go through all lines, block by block, until the end or until the time is up."""
    found = Search()
    number = 1
    while found.searched_bytes < len(pages) and monotonic() < until_s:
        at = found.searched_bytes
        end = _block_end(pages, at)
        block = pages[at:end]
        is_piece = block[-1:] != b"\n" and end < len(pages)
        found.is_split |= is_piece
        if pattern.in_block(block.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\r")):
            _search_lines(block, pattern, at=at, number=number, found=found, lines_max=lines_max)
        number += block.count(b"\n")
        found.searched_bytes = end
    return found


def _block_end(pages: Pages, at: int) -> int:
    end = pages.rfind(b"\n", at, at + _BLOCK_BYTES)
    if end >= 0:
        return end + 1
    end = pages.find(b"\n", at, at + _PIECE_BYTES)
    return end + 1 if end >= 0 else whole_until(pages, at, end=at + _PIECE_BYTES)


def _search_lines(block: bytes, pattern: Pattern, *, at: int, number: int, found: Search, lines_max: int) -> None:
    lines = block.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for offset, line in enumerate(lines):
        if pattern.in_line(line.decode("utf-8", "replace").removesuffix("\r")):
            found.matching += 1
            if len(found.lines) < lines_max:
                found.lines.append(Line(number + offset, at, at + len(line)))
        at += len(line) + 1


def around(text: str, pattern: Pattern) -> str:
    """Show a long line around its first match; the places left out are marked and counted."""
    if len(text) <= 2 * _AROUND:
        return text
    low, high = 0, len(text)  # the shortest beginning that matches ends where the first match does
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if pattern.in_line(text[:middle]) else (middle + 1, high)
    start, end = max(0, low - _AROUND), min(len(text), low + _AROUND)
    before = f"[{start:,} characters]…" if start else ""
    after = f"…[{len(text) - end:,} more characters]" if end < len(text) else ""
    return before + text[start:end] + after
