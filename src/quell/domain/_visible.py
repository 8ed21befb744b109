"""What strangers wrote, made visible: no character that hides, reorders or acts stays what it is."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Letters and marks that show nothing, whatever their category says."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPACES = str.maketrans("\n\r\t", "   ")
_CUT = "…"


@lru_cache(maxsize=4096)
def is_hidden(letter: str) -> bool:
    """Say whether a character shows nothing of itself: control, format, unassigned and blank ones, and data in selectors."""
    if " " <= letter <= "~":
        return False
    # The last two selectors choose between the two looks of a symbol and stand in honest text; the others carry bytes unseen.
    is_selector = "\ufe00" <= letter <= "\ufe0d" or "\U000e0100" <= letter <= "\U000e01ef"
    return is_selector or letter in _BLANKS or unicodedata.category(letter) in _CATEGORIES


def spelled(letter: str) -> str:
    """Write a character as the escape that a programmer knows it by."""
    code = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """Spell out everything that could move a cursor, hide text, turn its direction or start a new line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(spelled(letter) if is_hidden(letter) else letter for letter in text)


def printable_json(document: str) -> str:
    """Escape the same in a JSON document, as JSON wants it: to a program it stays the same document."""
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(_in_json(letter) if letter != "\n" and is_hidden(letter) else letter for letter in document)


def _in_json(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def one_line(text: str, *, chars_max: int = 2000) -> str:
    """Return one line of bounded length, words apart by single spaces, hidden characters spelled out."""
    cut = text[: chars_max * 2]
    line = " ".join(printable(cut.translate(_SPACES)).split())
    return line if len(line) <= chars_max and len(cut) == len(text) else line[: chars_max - 1] + _CUT
