"""Names of tools for models: plain, stable, and no two that look alike."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

NAME_MAX = 64
_CLEAN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]+")
_LOOKS = str.maketrans({"-": "_", "0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "2": "z"})

Original = tuple[str, str]
"""Server and name on the wire."""


def model_names(originals: Iterable[Original], *, taken: frozenset[str] = frozenset()) -> dict[Original, str]:
    """Name tools for models: letters, digits, `_` and `-`, at most 64 of them, each different to the eye.

    A name that is clean, and whose look nobody else has, stays as it is. Tools of several servers that look alike, or
    that look like one of `taken` (the built-ins), are all qualified as `server__tool`; what was changed, or still looks
    like another, carries a digest of its original. The order of the tools plays no part.
    """
    whole = sorted(set(originals))
    plain = {original: _sanitised(original[1]) for original in whole}
    looks = Counter(_look(name) for name in plain.values())
    reserved = {_look(name) for name in taken}
    names = {}
    for original, name in plain.items():
        is_unique = looks[_look(name)] == 1 and _look(name) not in reserved
        names[original] = _named(original, beside="nobody" if is_unique else "others")
    return _told_apart(names, reserved)


def other_names(original: Original, *, stands_for: str) -> frozenset[str]:
    """Return the names that a tool has where no other looks like it, and where one does.

    `stands_for` is the name that its server was given where another has that: then also what it would have under it.
    """
    servers = (original[0], stands_for) if stands_for else (original[0],)
    return frozenset(
        _named((server, original[1]), beside=beside) for server in servers for beside in ("nobody", "others")
    )


def _named(original: Original, *, beside: str) -> str:
    server, wire = original
    name = _sanitised(wire)
    # Only we write `__`: otherwise one server could offer a tool that looks qualified by another.
    qualified = name if beside == "nobody" and "__" not in name else f"{server}__{name}"
    is_changed = name != wire or len(qualified) > NAME_MAX
    return _marked(qualified, original, digits=8) if is_changed else qualified


def _sanitised(wire: str) -> str:
    """Return the plain letters of a name. Compatibility forms are folded first (NFKC, UAX 15)."""
    name = _FOREIGN.sub("_", unicodedata.normalize("NFKC", wire)).strip("_")
    return name if _CLEAN.fullmatch(name) else f"tool_{name}".rstrip("_")


def _look(name: str) -> str:
    """Return what a hurried eye sees, after the skeletons of UTS 39."""
    return name.lower().translate(_LOOKS).replace("rn", "m").replace("vv", "w")


def _marked(name: str, original: Original, *, digits: int) -> str:
    """Make a name that is cut or changed tell which original it stands for."""
    mark = hashlib.sha256("\0".join(original).encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    return f"{name[: NAME_MAX - 1 - digits]}_{mark}"


def _told_apart(names: dict[Original, str], reserved: set[str]) -> dict[Original, str]:
    """Mark those that still look alike, with digests as long as it takes."""
    for digits in (8, 16, 32):
        looks = Counter(_look(name) for name in names.values())
        names = {
            original: _marked(name, original, digits=digits)
            if looks[_look(name)] > 1 or _look(name) in reserved
            else name
            for original, name in names.items()
        }
    return names
