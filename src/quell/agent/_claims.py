"""Evidence discipline: what an answer claims about the system is held against what the run really saw.

A claim is a sentence, a row of a table or a quoted block that holds a number, a quantity or a name out of a result. It has
to cite a result of this run that ended well, and each of its numbers has to stand in a result that it cites, to be worked
out from such, or to stand in the question. Code decides; what it does not find is marked in the text, never silently kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from quell.agent._figures import are_borne, figures_in, ground_of, numbers_of, ratios_in_words
from quell.agent._talk import Exhibit

UNVERIFIED = "[unverified]"
_ID = r"(?:[a-z]\d{1,4})?e\d{1,4}"
"""An exhibit of the only agent of a run, such as `e3`, or of a task, such as `t2e3`."""
_CITATION = re.compile(rf"\[({_ID}(?:\s*,\s*{_ID})*)\]")
_SPACED_CITATION = re.compile(r"(?<![ \t])([ \t]*+)" + _CITATION.pattern)
_ONE = re.compile(_ID)
_SENTENCE = re.compile(
    r"(?:`[^`\n]*`|[^.!?\n]|[.!?](?![\"')*_]*(?:\s|\Z)))++(?:[.!?]++[\"')*_]*+)?+"
    r"(?:\s*+\[(?:[a-z]?\d*+e[\da-z,\s]++|unverified)\])*+|[.!?]++|\n++"
)
"""Up to a mark that ends it, with citations and marks of ours that follow: one inside a word, an address or code does not."""
_WORD = re.compile(r"(?<![A-Za-z0-9])\d*+[A-Za-z]\w*+(?:[-./]\w++)*+|`[^`\n]{2,80}`")
"""Begins at words only and never goes back, as do all patterns here: a long text without a space takes no longer than another."""
_BLANKS = re.compile(r"[ \t]*+")
_COMPOUND = re.compile(r"`|[-_./]\w")
_ITEM = re.compile(r"\s*(?:\d{1,2}[.)]|[-*+])\s")
_LIST_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*#>]+)\s*")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://\S++")
_CODE = re.compile(r"`[a-z][\w./-]*+(\s[^`\n]*+)`")
_OPTION = re.compile(r"\s--?\w")
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^\n`]*+\n")
_QUOTING = frozenset({"", "text", "txt", "log", "logs", "json", "csv", "output", "plaintext"})
"""Languages of blocks that show what somebody saw; others are something to do."""
_RULER = re.compile(r"[\s|:-]++")
_UNKNOWING = re.compile(
    r"^(?:i|we)\s+(?:do not|don't|did not|didn't|could not|couldn't|cannot|can't|can not|was not able|am not able|have no|"
    r"found no|saw no)\b|^(?:it is|this is|the \w+ is) (?:unknown|unclear|not known)\b|^(?:unknown|there is no evidence)\b",
    re.IGNORECASE,
)
_TURNING = re.compile(r"\b(?:but|however|though|although|yet|instead|because)\b|;|\u2014| - ", re.IGNORECASE)
"""What comes after it may be a claim, whatever the sentence began with."""
_NAMES_MAX = 2_000

Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An answer after it was held against the evidence."""

    text: str
    cited: tuple[str, ...]
    unverified: int
    confidence: Confidence
    invented: int = 0
    """Citations of results that there are not, which were taken away."""


_LOOK_CHARS = 2_000
"""So much is looked through at each piece."""


class Holder:
    """Holds an answer against the evidence while it streams: a sentence, a row or a block at a time, once it is whole."""

    def __init__(self, exhibits: Sequence[Exhibit], *, question: str) -> None:
        """Hold against what the run saw, and the numbers of the question, which bear nothing and are not claimed."""
        self._known = {exhibit.id: exhibit for exhibit in exhibits}
        self._names = frozenset[str]().union(*(_names_in(exhibit.text) for exhibit in exhibits))
        self._given = numbers_of(question)
        self._asked = _names_in(question)
        self._rest = ""
        self._look_at_chars = 0
        self._cited: dict[str, None] = {}
        self._unverified = self._invented = 0
        self._said: list[str] = []
        self._lead: tuple[str, ...] = ()
        """What the line before cites: a list, a table or a block below it rests on that."""
        self._is_opening = self._in_item = False
        self._begins_line = True
        self._is_marked = self._is_dropped = False
        """Whether what came last is marked: a mark that already stands below it goes, and its line with it."""

    def feed(self, piece: str) -> str:
        """Return what of the answer can be said by now."""
        self._rest += piece
        if len(self._rest) < self._look_at_chars:
            return ""
        said = self._judged(is_end=False)
        rest_chars = len(self._rest)
        # What is long and not whole is looked through again once it has grown by a part of itself: looking through all
        # of it at each piece would stop everything else that this process does.
        self._look_at_chars = rest_chars + rest_chars // 8 if rest_chars > _LOOK_CHARS else 0
        return said

    def end(self) -> str:
        """Return what is left."""
        return self._judged(is_end=True)

    def held(self, *, failed: int) -> Held:
        """Return the whole, and how far it is to be trusted; `failed` calls keep it from being high."""
        shown = [self._known[each] for each in self._cited]
        doubts = failed + sum(exhibit.gaps + bool(exhibit.warning) for exhibit in shown)
        return Held(
            text="".join(self._said),
            cited=tuple(self._cited),
            unverified=self._unverified,
            confidence=_confidence(len(self._cited), unverified=self._unverified, doubts=doubts),
            invented=self._invented,
        )

    def _judged(self, *, is_end: bool) -> str:
        said: list[str] = []
        while (unit := _next_unit(self._rest, begins_line=self._begins_line, is_end=is_end)) is not None:
            kind, text = unit
            self._rest, self._begins_line = self._rest[len(text) :], text.endswith("\n")
            said.append(
                self._block(text) if kind == "block" else self._row(text) if kind == "row" else self._prose(text)
            )
        whole = "".join(said)
        self._said.append(whole)
        return whole

    # -- units --------------------------------------------------------------------------------------------------------

    def _prose(self, text: str) -> str:
        pieces: list[str] = []
        at = 0
        for match in _SENTENCE.finditer(text):
            pieces += (text[at : match.start()], self._sentence(match.group()))
            at = match.end()
        return "".join(pieces) + text[at:]

    def _sentence(self, sentence: str) -> str:
        if not sentence.strip():
            self._in_item &= "\n" not in sentence
            sentence, self._is_dropped = sentence[self._is_dropped :], False
            return sentence
        if sentence.strip() == UNVERIFIED and self._is_marked:
            self._is_dropped = True
            return ""
        self._is_marked = self._is_dropped = False
        is_item = _ITEM.match(sentence) is not None
        self._in_item |= is_item
        good = self._good(sentence)
        clean = _SPACED_CITATION.sub(self._kept, sentence)
        rests = good or (self._lead if self._in_item and self._is_opening else ())
        is_borne = not self._is_claim(sentence) or self._is_borne(sentence, rests)
        if not self._in_item:
            self._lead = good
            self._is_opening = _CITATION.sub("", sentence).rstrip().endswith(":")
        self._cite(good or (rests if self._is_claim(sentence) and is_borne else ()))
        return clean if is_borne else self._marked(clean)

    def _row(self, row: str) -> str:
        """Mark a row of a table in its last cell, so that it stays a row."""
        if _RULER.fullmatch(row):
            return row
        good = self._good(row)
        clean = _SPACED_CITATION.sub(self._kept, row)
        if not self._is_claim(row):
            return clean
        if self._is_borne(row, good or self._lead):
            self._cite(good or self._lead)
            return clean
        self._cite(good)
        self._unverified += 1
        if UNVERIFIED in clean:
            return clean
        bare = clean.rstrip()
        cells, end = (bare[:-1].rstrip(), " |") if bare.endswith("|") and len(bare) > 1 else (bare, "")
        return f"{cells} {UNVERIFIED}{end}{clean[len(bare) :]}"

    def _block(self, block: str) -> str:
        """Leave a block of code as it is; one that quotes what nobody saw is marked once, below it."""
        opening = _FENCE.match(block)
        assert opening is not None, "a block begins with a fence"
        inner = block[opening.end() :].rstrip().removesuffix(opening[1])
        if opening[2].lower() not in _QUOTING or not self._is_claim(inner, is_quote=True):
            return block
        rests = self._lead or tuple(each for each, exhibit in self._known.items() if exhibit.is_citable)
        if self._is_borne(inner, rests):
            return block
        self._unverified += 1
        self._is_marked = True
        return f"{block.rstrip()}\n{UNVERIFIED}{block[len(block.rstrip()) :]}"

    def _marked(self, clean: str) -> str:
        self._unverified += 1
        self._is_marked = True
        if UNVERIFIED in clean:
            return clean
        bare = clean.rstrip()
        return f"{bare} {UNVERIFIED}{clean[len(bare) :]}"

    # -- citations ----------------------------------------------------------------------------------------------------

    def _good(self, text: str) -> tuple[str, ...]:
        return tuple(each for each in _ONE.findall(" ".join(_CITATION.findall(text))) if _bears(self._known.get(each)))

    def _cite(self, ids: Sequence[str]) -> None:
        self._cited |= dict.fromkeys(ids)

    def _kept(self, found: re.Match[str]) -> str:
        """Return a citation with what bears something; one of nothing goes with the space before it."""
        ids = _ONE.findall(found.group(2))
        self._invented += sum(each not in self._known for each in ids)
        good = [each for each in ids if _bears(self._known.get(each))]
        return f"{found.group(1)}[{', '.join(good)}]" if good else ""

    # -- claims -------------------------------------------------------------------------------------------------------

    def _is_claim(self, text: str, *, is_quote: bool = False) -> bool:
        plain = _plain(text)
        if not is_quote:
            bare = plain.strip().strip("*_")
            if bare.endswith("?") or (_UNKNOWING.match(bare) and not _TURNING.search(bare)):
                return False
        return bool(figures_in(plain)) or any(found.strip("`") in self._names for found in _compounds(plain))

    def _is_borne(self, text: str, ids: Sequence[str]) -> bool:
        if not ids:
            return False
        plain = _plain(text)
        named = {found.strip("`") for found in _compounds(plain)} & self._names - self._asked
        if not named <= frozenset[str]().union(*(_names_in(self._known[each].text) for each in ids)):
            return False
        figures = [figure for figure in figures_in(plain) if figure.value not in self._given]
        return are_borne(figures, ratios_in_words(plain), [ground_of(self._known[each].text) for each in ids])


def hold(text: str, exhibits: Sequence[Exhibit], *, question: str, failed: int) -> Held:
    """Mark what is claimed without evidence, take away citations of nothing, and cap the confidence."""
    holder = Holder(exhibits, question=question)
    holder.feed(text)
    holder.end()
    return holder.held(failed=failed)


def _next_unit(text: str, *, begins_line: bool, is_end: bool) -> tuple[Literal["prose", "row", "block"], str] | None:
    """Return the next part that is whole whatever comes after it; None: more has to come, or nothing is left."""
    if not text:
        return None
    if begins_line and _may_be_special(text):
        return _special(text, is_end=is_end)
    at = 0
    while (line := text.find("\n", at)) >= 0 and not _may_be_special(text, line + 1):
        at = line + 1
    if line >= 0:
        return "prose", text[: line + 1]
    if is_end:
        return "prose", text
    # A citation may still follow the last sentence, and code that is open may close after it.
    end = at if text.count("`", at) % 2 else len(text)
    settled = _settled(text[:end]) if end == len(text) else end
    return ("prose", text[:settled]) if settled else None


def _special(text: str, *, is_end: bool) -> tuple[Literal["prose", "row", "block"], str] | None:
    """Return a whole block, or a whole row of a table."""
    line = text.find("\n")
    if (fence := _FENCE.match(text)) is not None:
        close = re.compile(rf"^[ \t]*{re.escape(fence[1])}[ \t]*(?:\n|\Z)", re.MULTILINE).search(text, fence.end())
        if close is not None and (is_end or text[close.start() : close.end()].endswith("\n")):
            return "block", text[: close.end()]
        return ("block", text) if is_end else None
    if text.lstrip(" \t").startswith("|") and (line >= 0 or is_end):
        return "row", text[: line + 1] if line >= 0 else text
    if line >= 0 or is_end:
        return "prose", text[: line + 1] if line >= 0 else text
    return None


def _may_be_special(text: str, at: int = 0) -> bool:
    """Tell whether the line that begins there begins a block or a row, or may turn out to."""
    blanks = _BLANKS.match(text, at)
    bare = text[blanks.end() : blanks.end() + 3] if blanks else ""
    return bare[:1] == "|" or bare in {"```", "~~~", "`", "``", "~", "~~"}


def _settled(text: str) -> int:
    """Return up to where sentences are whole: a citation may still follow the last one."""
    matches = list(_SENTENCE.finditer(text))
    while matches:
        last = matches.pop()
        if last.group().strip() and not last.group().lstrip().startswith("["):
            return last.start()
    return 0


def _bears(exhibit: Exhibit | None) -> bool:
    return exhibit is not None and exhibit.is_citable


def _plain(text: str) -> str:
    """Return what is claimed, without what only looks like a number: citations, list marks, addresses, commands."""
    unmarked = _LIST_MARK.sub("", _CITATION.sub("", text.replace(UNVERIFIED, "")))
    return _CODE.sub(_as_claimed, _ADDRESS.sub("", unmarked))


def _as_claimed(code: re.Match[str]) -> str:
    """Leave code with an option out: it is something to do, and tells nothing of the system."""
    return "" if _OPTION.search(code.group(1)) else code.group()


@lru_cache(maxsize=256)
def _names_in(text: str) -> frozenset[str]:
    """Return the compound names that a text holds: services, pods, tables; plain words are nobody's evidence."""
    found: dict[str, None] = {}
    for name in _compounds(text):
        found[name.strip("`")] = None
        if len(found) >= _NAMES_MAX:
            break
    return frozenset(found)


def _compounds(text: str) -> Iterator[str]:
    return (found.group() for found in _WORD.finditer(text) if _COMPOUND.search(found.group()))


def _confidence(cited: int, *, unverified: int, doubts: int) -> Confidence:
    """Cap by code: nothing cited is no evidence; a claim that is not borne, a gap, an odd or a failed result is never high."""
    if not cited:
        return "none"
    if unverified:
        return "low"
    return "medium" if doubts else "high"
