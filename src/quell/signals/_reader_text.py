"""Make text that strangers wrote safe to show: one line, nothing hidden, nothing that acts, never longer than asked."""

from __future__ import annotations

import unicodedata

from quell.domain import is_hidden, spelled

_MARKS_MAX = 2
_CUT = "…"


def escape_line(text: str, *, chars_max: int) -> str:
    """Write control codes, invisible and reordering characters, backticks and chat markers out, and cut the rest.

    The result holds only visible characters and single spaces; escaping what was escaped changes nothing.
    """
    # Nothing past this can survive the cut, and a ten-megabyte line must not cost ten megabytes of work.
    shown = text[: chars_max * 4 + 16].strip()
    pieces: list[str] = []
    marks = 0
    for letter in shown:
        marks = marks + 1 if unicodedata.combining(letter) else 0
        if marks <= _MARKS_MAX:
            pieces.append(_visible(letter))
    line = " ".join("".join(pieces).replace("<|", "<\\|").replace("|>", "|\\>").split())
    if len(line) <= chars_max and len(shown) == len(text.strip()):
        return line
    return line[: max(0, chars_max - 1)].rstrip("\\ ") + _CUT if chars_max else ""


def quote(text: str, *, chars_max: int) -> str:
    """Fence a stranger's text as data: escaped, cut, in double quotes that it cannot close."""
    return '"' + escape_line(text, chars_max=chars_max).replace('"', "'") + '"'


def _visible(letter: str) -> str:
    return spelled(letter) if letter == "`" or is_hidden(letter) else letter
