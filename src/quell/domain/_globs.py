"""The two kinds of globs in agent files, as AURA reads them: filters of tools, and patterns of what people approve."""

from __future__ import annotations

import re
from functools import lru_cache

_MORE = frozenset("*?[]{}\\")


def is_glob(pattern: str) -> bool:
    """Tell whether a pattern may match more than the one name that it spells."""
    return not _MORE.isdisjoint(pattern)


def matches_glob(name: str, glob: str) -> bool:
    """Tell whether a name fits a filter, in which `*` stands for any text, `?` for one letter, and nothing else for more."""
    return _filter(glob).fullmatch(name) is not None


def matches_globset(name: str, pattern: str) -> bool:
    r"""Tell whether a name fits a pattern with `*`, `?`, `[..]`, `[!..]`, `{a,b}` and `\`, as Rust's globset has them.

    Raises ValueError for a pattern that is none.
    """
    return _globset(pattern).fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _filter(glob: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(letter) or re.escape(letter) for letter in glob), re.DOTALL)


@lru_cache(maxsize=1024)
def _globset(pattern: str) -> re.Pattern[str]:
    written, place = _sequence(pattern, 0, depth=0)
    assert place == len(pattern), "a sequence at depth 0 ends with the pattern"
    return re.compile(written, re.DOTALL)


def _sequence(pattern: str, place: int, *, depth: int) -> tuple[str, int]:
    """Translate up to the end, or to the `,` or `}` that ends an alternative."""
    out = []
    while place < len(pattern):
        letter = pattern[place]
        if depth and letter in ",}":
            break
        if letter == "}":
            raise ValueError(f"{pattern!r} closes a brace that it did not open")
        if letter == "{":
            part, place = _alternatives(pattern, place + 1, depth=depth + 1)
        elif letter == "[":
            part, place = _letters(pattern, place + 1)
        elif letter == "\\":
            if place + 1 == len(pattern):
                raise ValueError(f"{pattern!r} ends with a backslash that escapes nothing")
            part, place = re.escape(pattern[place + 1]), place + 2
        else:
            part, place = {"*": ".*", "?": "."}.get(letter) or re.escape(letter), place + 1
        out.append(part)
    return "".join(out), place


def _alternatives(pattern: str, place: int, *, depth: int) -> tuple[str, int]:
    if depth > 8:
        raise ValueError(f"{pattern!r} nests braces too deep")
    ways = []
    while True:
        way, place = _sequence(pattern, place, depth=depth)
        ways.append(way)
        if place == len(pattern):
            raise ValueError(f"{pattern!r} does not close a brace")
        if pattern[place] == "}":
            return f"(?:{'|'.join(ways)})", place + 1
        place += 1


def _letters(pattern: str, place: int) -> tuple[str, int]:
    """Translate a class of letters; a `]` that stands first is one of them, as in a shell."""
    is_other = pattern[place : place + 1] in {"!", "^"}
    first = place + is_other
    end = pattern.find("]", first + 1)
    if end < 0:
        raise ValueError(f"{pattern!r} does not close a bracket")
    inside, out, at = pattern[first:end], [], 0
    while at < len(inside):
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            low, high = inside[at], inside[at + 2]
            if low > high:
                raise ValueError(f"{pattern!r} has the range {low}-{high}, which is empty")
            out.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            out.append(re.escape(inside[at]))
            at += 1
    return f"[{'^' if is_other else ''}{''.join(out)}]", end + 1
