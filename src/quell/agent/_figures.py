"""Numbers of an answer, worked out again: as they stand in a result, rounded, in another unit, or reckoned from figures that belong together.

Only what belongs together is reckoned with: numbers of one line, of one object under keys of one kind, or of one column.
Any two numbers of a long result would bear out nearly everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from typing import Literal, TypeGuard

_DIGITS = r"-?(?:\d{1,3}(?:[,_']\d{3})+(?![\d])|\d+)(?:\.\d+)?"
_NUMBER = re.compile(rf"(?<![\w.])({_DIGITS})")
_CLAIMED = re.compile(
    rf"(?P<hedge>(?:\b(?:about|around|roughly|approximately|nearly|almost|some|over|more than|circa)\s+|[~≈]\s*))?"
    rf"(?<![\w.])(?P<number>{_DIGITS})\s*(?P<unit>%|percent\b|times\b|fold\b|-fold\b|[x\u00d7](?![\w])|[A-Za-zµμ]+\b)?"
)
_MORE = re.compile(
    r"\s*(?:slower|faster|higher|lower|more|less|fewer|larger|smaller|longer|shorter|worse|better|increase|decrease|rise|"
    r"drop|growth|above|below|up|down)\b",
    re.IGNORECASE,
)
_WORDS: Mapping[str, float] = {
    "twice": 2, "double": 2, "doubled": 2, "tripled": 3, "half": 0.5, "halved": 0.5, "two": 2, "three": 3, "four": 4,
    "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
_IN_WORDS = re.compile(
    r"\b(twice|doubled?|tripled|half|halved|(?:two|three|four|five|six|seven|eight|nine|ten)(?= times| ?-?fold))\b",
    re.IGNORECASE,
)
_TIME_S: Mapping[str, float] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "second": 1, "seconds": 1, "secs": 1,
    "min": 60, "mins": 60, "minute": 60, "minutes": 60, "h": 3600, "hour": 3600, "hours": 3600, "day": 86400,
    "days": 86400, "milliseconds": 1e-3,
}  # fmt: skip
_SIZE_B: Mapping[str, tuple[float, ...]] = {
    "b": (1,), "bytes": (1,), "kb": (1e3, 2**10), "kib": (2**10,), "mb": (1e6, 2**20), "mib": (2**20,),
    "gb": (1e9, 2**30), "gib": (2**30,), "tb": (1e12, 2**40), "tib": (2**40,),
}  # fmt: skip
_PAIRED = (
    {"before", "after"}, {"from", "to"}, {"old", "new"}, {"min", "max"}, {"used", "total"}, {"used", "limit"},
    {"free", "total"}, {"current", "previous"}, {"start", "end"}, {"desired", "ready"}, {"desired", "actual"},
)  # fmt: skip
"""Keys that tell two ends of one thing."""
_FROM, _DIGIT = re.compile(r"\bfrom\b", re.IGNORECASE), re.compile(r"\d")
_TO = re.compile(r"\bto\b\s*+[^\d\s]{0,3}\d", re.IGNORECASE)
_UNITS = frozenset([*_TIME_S, *_SIZE_B, "percent", "pct", "ratio", "share", "rate"])
_KEY = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_PAIRS_MAX = 12
_GROUPS_MAX = 400
_DEPTH_MAX = 12
_EPSILON = 1e-9
_CLOSE_SHARE = 0.1

Kind = Literal["plain", "percent", "change", "ratio"]
"""`change`: percent by which something is more or less than something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number that an answer claims."""

    text: str
    """Its digits, as results would have them."""
    value: float
    places: int
    kind: Kind = "plain"
    unit: str = ""
    is_hedged: bool = False

    @property
    def half(self) -> float:
        """Half a unit of its last digit: so far may rounding go."""
        return 0.5 * 10.0**-self.places + _EPSILON

    def is_like(self, other: float) -> bool:
        """Tell whether a value that stands in a result, rounded as this one is, is this one."""
        if abs(other - self.value) <= self.half:
            return True
        return self.is_hedged and bool(other) and float(f"{other:.2g}") == self.value

    def is_worked_out(self, other: float) -> bool:
        """Tell whether a value that was reckoned is this one: small numbers leave rounding less room."""
        if self.kind in {"percent", "change"}:
            return self.is_like(other)
        return abs(other - self.value) <= min(self.half, _CLOSE_SHARE * abs(self.value)) or (
            self.is_hedged and bool(other) and float(f"{other:.2g}") == self.value
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """Numbers that belong together, and what may be reckoned of them."""

    values: tuple[float, ...]
    is_alike: bool
    """Whether they are of one kind, so that they may be added and compared; of others one may be a share of another."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The numbers of one result."""

    seen: frozenset[float]
    groups: tuple[_Group, ...]


def figures_in(text: str) -> tuple[Figure, ...]:
    """Return the numbers that a sentence claims; its citations and marks are out of it by now."""
    return tuple(_figure(found) for found in _CLAIMED.finditer(text))


def ratios_in_words(text: str) -> tuple[Figure, ...]:
    """Return what a sentence says without digits of how far something went from one figure to another."""
    if not _tells_change(text):
        return ()
    return tuple(
        Figure(text=word.lower(), value=_WORDS[word.lower()], places=1, kind="ratio", is_hedged=True)
        for word in _IN_WORDS.findall(text)
    )


def _tells_change(text: str) -> bool:
    """Tell whether both ends of a change are told in one sentence; elsewhere `three times` counts events."""
    for part in text.split("."):
        begins = _FROM.search(part)
        first = begins and _DIGIT.search(part, begins.end())
        if first and _TO.search(part, first.end()):
            return True
    return False


def numbers_of(text: str) -> frozenset[float]:
    """Return the numbers that stand in a text."""
    return frozenset(_value(found) for found in _NUMBER.findall(text))


@lru_cache(maxsize=256)
def ground_of(text: str) -> Ground:
    """Read the numbers of a result, and which of them belong together."""
    groups: list[_Group] = []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    lengths: list[float] = []
    if isinstance(found, dict | list):
        groups += _groups_of(found, lengths, depth=0)
    else:
        groups += _lines(text)
    return Ground(seen=numbers_of(text) | frozenset(lengths), groups=tuple(groups[:_GROUPS_MAX]))


def are_borne(figures: Sequence[Figure], words: Sequence[Figure], grounds: Sequence[Ground]) -> bool:
    """Tell whether each figure stands in the results, or can be reckoned from what does."""
    seen = frozenset[float]().union(*(ground.seen for ground in grounds))
    standing = [figure for figure in figures if _stands(figure, seen)]
    beside = _Group(tuple(dict.fromkeys(figure.value for figure in standing)), is_alike=True)
    groups = [beside, *(group for ground in grounds for group in ground.groups)]
    rest = [figure for figure in figures if figure not in standing]
    if not all(_is_reckoned(figure, groups) for figure in rest):
        return False
    # What words say of a ratio can be worked out only where both its ends are told.
    ends = len(beside.values) >= 2
    return not ends or all(_is_reckoned(word, [beside]) for word in words)


def _figure(found: re.Match[str]) -> Figure:
    digits, unit = found["number"], (found["unit"] or "").lower()
    plain = re.sub(r"[,_']", "", digits)
    kind: Kind = "plain"
    if unit in {"%", "percent"}:
        kind = "change" if _MORE.match(found.string, found.end()) else "percent"
    elif unit in {"times", "fold", "-fold", "x", "\u00d7"}:
        kind = "ratio"
    return Figure(
        text=plain,
        value=float(plain),
        places=len(plain.partition(".")[2]),
        kind=kind,
        unit=unit,
        is_hedged=bool(found["hedge"]),
    )


def _value(digits: str) -> float:
    return float(re.sub(r"[,_']", "", digits))


def _stands(figure: Figure, seen: Iterable[float]) -> bool:
    """Tell whether a number stands in the results: as it is, rounded, as percent of one, or in another unit."""
    if any(figure.is_like(other) for other in seen):
        return True
    factors: list[float] = []
    if figure.kind in {"percent", "change"}:
        factors.append(100.0)
    if figure.unit in _TIME_S:
        factors += [other / _TIME_S[figure.unit] for other in set(_TIME_S.values())]
    for own in _SIZE_B.get(figure.unit, ()):
        factors += [other / own for each in _SIZE_B.values() for other in each if _may_meet(other, own)]
    return any(figure.is_worked_out(other * factor) for other in seen for factor in factors)


def _may_meet(one: float, other: float) -> bool:
    """Tell whether two units of size are both of tens, or both of twos; bytes are of either."""
    return 1 in (one, other) or (one % 10 == 0) == (other % 10 == 0)


def _is_reckoned(figure: Figure, groups: Iterable[_Group]) -> bool:
    return any(figure.is_worked_out(value) for group in groups for value in _reckoned(figure.kind, group))


def _reckoned(kind: Kind, group: _Group) -> Iterator[float]:
    """Yield what can be reckoned from numbers that belong together, of the kind that is claimed."""
    if kind == "plain" and group.is_alike:
        yield sum(group.values)
    if len(group.values) > _PAIRS_MAX:
        return
    for one, other in permutations(group.values, 2):
        if not group.is_alike:
            if kind == "percent" and 0 <= one <= other and other:
                yield 100 * one / other
        elif kind == "plain":
            yield from (one + other, one - other)
        elif other:
            yield from _compared(kind, one, other)


def _compared(kind: Kind, one: float, other: float) -> Iterator[float]:
    if kind == "ratio":
        yield one / other
        return
    if kind == "percent":
        yield 100 * one / other
    yield abs(100 * (one - other) / other)


def _lines(text: str) -> Iterator[_Group]:
    for line in text.splitlines():
        values = tuple(dict.fromkeys(_value(found) for found in _NUMBER.findall(line)))
        if len(values) > 1:
            yield _Group(values, is_alike=True)


def _groups_of(found: object, lengths: list[float], *, depth: int) -> Iterator[_Group]:
    """Walk through a document: objects, columns of lists, and lines of texts hold what belongs together."""
    if depth > _DEPTH_MAX:
        return
    if isinstance(found, str):
        yield from _lines(found)
    elif isinstance(found, dict):
        yield from _of_object(found)
        for each in found.values():
            yield from _groups_of(each, lengths, depth=depth + 1)
    elif isinstance(found, list):
        lengths.append(float(len(found)))
        yield from _columns(found)
        for each in found:
            yield from _groups_of(each, lengths, depth=depth + 1)


def _of_object(found: Mapping[str, object]) -> Iterator[_Group]:
    numbers = {str(key): float(value) for key, value in found.items() if _is_number(value)}
    words = {key: frozenset(word.lower() for word in _KEY.findall(key)) for key in list(numbers)[:_PAIRS_MAX]}
    for one, other in combinations(words, 2):
        if words[one] & _UNITS == words[other] & _UNITS:
            yield _Group(
                (numbers[one], numbers[other]), is_alike=_are_alike(words[one] - _UNITS, words[other] - _UNITS)
            )


def _are_alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Tell whether keys name one thing twice, such as `p95` and `p95_before`, or `used` and `total`."""
    return bool(one & other) or any(pair & one and pair & other for pair in _PAIRED)


def _columns(found: Sequence[object]) -> Iterator[_Group]:
    plain = tuple(float(each) for each in found if _is_number(each))
    if len(plain) > 1:
        yield _Group(plain, is_alike=True)
    columns: dict[str, list[float]] = {}
    for each in found:
        if isinstance(each, dict):
            for key, value in each.items():
                if _is_number(value):
                    columns.setdefault(str(key), []).append(float(value))
    yield from (_Group(tuple(values), is_alike=True) for values in columns.values() if len(values) > 1)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
