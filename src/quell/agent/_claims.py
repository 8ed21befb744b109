"""Evidence discipline: what an answer claims about the system is held against what the run really saw.

A claim is a sentence that holds a number, a quantity or a name out of a result. It has to cite a result of this run that
ended well, and each of its numbers has to stand in a result that it cites, or in the question. Code decides; what it
does not find is marked in the text, never silently kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from quell.agent._talk import Exhibit

UNVERIFIED = "[unverified]"
_ID = r"(?:[a-z]\d{1,4})?e\d{1,4}"
"""An exhibit of the only agent of a run, such as `e3`, or of a task, such as `t2e3`."""
_CITATION = re.compile(rf"\[({_ID}(?:\s*,\s*{_ID})*)\]")
_SPACED_CITATION = re.compile(r"(?<![ \t])([ \t]*+)" + _CITATION.pattern)
_ONE = re.compile(_ID)
_SENTENCE = re.compile(r"[^.!?\n]++(?:[.](?=\S)[^.!?\n]*+)*+[.!?]*+(?:\s*+\[[a-z]?\d*+e[\da-z,\s]++\])*+|\n++")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,_']*(?:\.\d+)?")
_WORD = re.compile(r"(?<!\w)[A-Za-z]\w*+(?:[-./]\w++)*+|`[^`\n]{2,80}`")
"""Begins at words only and never goes back: a long text without a space takes no longer than another."""
_COMPOUND = re.compile(r"`|[-_./]\w")
_LIST_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*#>]+)\s*")
_NAMES_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An answer after it was held against the evidence."""

    text: str
    cited: tuple[str, ...]
    unverified: int
    confidence: Literal["high", "medium", "low", "none"]


class Holder:
    """Holds an answer against the evidence while it streams: a sentence at a time, as soon as it is whole."""

    def __init__(self, exhibits: Sequence[Exhibit], *, question: str) -> None:
        """Hold against what the run saw, and the numbers of the question, which bear nothing and are not claimed."""
        self._known = {exhibit.id: exhibit for exhibit in exhibits}
        self._names = _names_of(exhibits)
        self._given = _numbers_of(question)
        self._rest = ""
        self._cited: dict[str, None] = {}
        self._unverified = 0
        self._said: list[str] = []
        self._is_marked = False
        """Whether the sentence before was marked: a mark that already stands after it is not said twice."""

    def feed(self, piece: str) -> str:
        """Return what of the answer can be said by now."""
        self._rest += piece
        end = _settled(self._rest)
        whole, self._rest = self._rest[:end], self._rest[end:]
        return self._judged(whole)

    def end(self) -> str:
        """Return what is left."""
        whole, self._rest = self._rest, ""
        return self._judged(whole)

    def held(self, *, failed: int) -> Held:
        """Return the whole, and how far it is to be trusted; `failed` calls keep it from being high."""
        return Held(
            text="".join(self._said),
            cited=tuple(self._cited),
            unverified=self._unverified,
            confidence=_confidence(len(self._cited), unverified=self._unverified, failed=failed),
        )

    def _judged(self, text: str) -> str:
        pieces: list[str] = []
        at = 0
        for match in _SENTENCE.finditer(text):
            pieces += (text[at : match.start()], self._sentence(match.group()))
            at = match.end()
        said = "".join(pieces) + text[at:]
        self._said.append(said)
        return said

    def _sentence(self, sentence: str) -> str:
        if sentence.strip() == UNVERIFIED and self._is_marked:
            return ""
        ids = _ONE.findall(" ".join(_CITATION.findall(sentence)))
        good = [each for each in ids if _bears(self._known.get(each))]
        clean = _SPACED_CITATION.sub(lambda found: _kept(found, self._known), sentence)
        self._cited |= dict.fromkeys(good)
        self._is_marked = False
        if _is_claim(sentence, self._names) and not _is_borne(
            sentence, [self._known[each] for each in good], self._given
        ):
            self._unverified += 1
            self._is_marked = True
            bare = clean.rstrip()
            clean = f"{bare} {UNVERIFIED}{clean[len(bare) :]}"
        return clean


def hold(text: str, exhibits: Sequence[Exhibit], *, question: str, failed: int) -> Held:
    """Mark what is claimed without evidence, take away citations of nothing, and cap the confidence."""
    holder = Holder(exhibits, question=question)
    holder.feed(text)
    holder.end()
    return holder.held(failed=failed)


def _settled(text: str) -> int:
    """Return up to where sentences are whole, whatever comes after: a citation may still follow the last one."""
    matches = list(_SENTENCE.finditer(text))
    while matches:
        last = matches.pop()
        if last.group().strip() and not last.group().lstrip().startswith("["):
            return last.start()
    return 0


def _bears(exhibit: Exhibit | None) -> bool:
    return exhibit is not None and exhibit.is_citable


def _kept(found: re.Match[str], known: dict[str, Exhibit]) -> str:
    """Return a citation with what bears something; one of nothing goes with the space before it."""
    good = [each for each in _ONE.findall(found.group(2)) if _bears(known.get(each))]
    return f"{found.group(1)}[{', '.join(good)}]" if good else ""


def _is_claim(sentence: str, names: frozenset[str]) -> bool:
    plain = _LIST_MARK.sub("", _CITATION.sub("", sentence))
    if plain.rstrip().endswith("?"):
        return False
    if _NUMBER.search(plain):
        return True
    return any(found.strip("`") in names for found in _compounds(plain))


def _is_borne(sentence: str, exhibits: Sequence[Exhibit], given: frozenset[str]) -> bool:
    if not exhibits:
        return False
    plain = _LIST_MARK.sub("", _CITATION.sub("", sentence))
    seen = frozenset[str]().union(*(_numbers_of(exhibit.text) for exhibit in exhibits))
    return all(_is_near(number, seen) or number in given for number in _numbers_of(plain))


def _numbers_of(text: str) -> frozenset[str]:
    return frozenset(re.sub(r"[,_']", "", found).rstrip(".") for found in _NUMBER.findall(text))


def _is_near(number: str, seen: frozenset[str]) -> bool:
    """Tell whether a number stands in the evidence, or is one that stands there rounded or as percent."""
    if number in seen:
        return True
    value, places = float(number), len(number.partition(".")[2])
    for each in seen:
        other = float(each)
        if round(other, places) == value or round(other * 100, places) == value:
            return True
    return False


def _names_of(exhibits: Sequence[Exhibit]) -> frozenset[str]:
    """Return the compound names that results hold: services, pods, tables; plain words are nobody's evidence."""
    found: dict[str, None] = {}
    for exhibit in exhibits:
        for name in _compounds(exhibit.text):
            found[name.strip("`")] = None
            if len(found) >= _NAMES_MAX:
                return frozenset(found)
    return frozenset(found)


def _compounds(text: str) -> Iterator[str]:
    return (found for found in _WORD.findall(text) if _COMPOUND.search(found))


def _confidence(cited: int, *, unverified: int, failed: int) -> Literal["high", "medium", "low", "none"]:
    """Cap by code: nothing cited is no evidence, a gap or an unverified claim is never high."""
    if not cited:
        return "none"
    if unverified:
        return "low"
    return "medium" if failed else "high"
