"""Understand what a person asks: words, lengths of time, names, and what was talked about before."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quell.models._builtin_grammar import ASKING, FILLING, KINDS, ORDINALS, POINTING, SYMPTOMS, Intent, matched

_ASKS_MAX = 2
_QUESTION_MAX_CHARS = 300
_TEXT_MAX_CHARS = 4_000
_MINUTES_MAX = 1_440
_WORD = re.compile(r"inc_[0-9a-z]+|#\d{1,3}|[^\W_]+(?:[-_./:]+[^\W_]+)*")
_INCIDENT = re.compile(r"\binc_[0-9a-z]{6,40}\b")
_QUOTED = re.compile(r'"[^"\n]*"')
_CLAUSE = re.compile(
    r"[?!;\n]+|\.(?=\s|$)|,?\s+(?:and|but|also)\s+(?=(?:what|why|is|are|how|show|list|who|which|any|did|has)\b)|,\s*(?=(?:what|why|how)\b)"
)
_SHORT = (
    (re.compile(r"\b(what|why|who|how|where|that|there|it|when)'s\b"), r"\1 is"),
    (re.compile(r"\b(what|why|who|how)'re\b"), r"\1 are"),
    (re.compile(r"\bcan't\b|\bcannot\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\b(\w+)n't\b"), r"\1 not"),
    (re.compile(r"\broll(ed)? back\b"), "rollback"),
    (re.compile(r"\bwhats\b"), "what is"),
)
_UNIT_MINUTES = {"s": 1 / 60, "m": 1.0, "h": 60.0, "d": 1_440.0}
_AMOUNTS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10, "twelve": 12, "few": 3,
    "fifteen": 15, "twenty": 20, "thirty": 30, "sixty": 60, "couple": 2, "half": 0.5,
}  # fmt: skip
_SPAN = re.compile(
    r"\b(?:(?:in|over|for|within|during|since|the|last|past|previous|about|around)\s+)*"
    rf"(?:(\d+(?:\.\d+)?|{'|'.join(_AMOUNTS)})\s*(?:an?\s+|of\s+)*)?"
    r"(seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|[smhd])\b(?:\s+ago)?"
)
_SPAN_CUE = re.compile(r"\b(in|over|for|within|during|since|last|past|previous|ago)\b")
_DAY = re.compile(r"\b(today|yesterday|tonight|overnight)\b")
_UNDER_WAY = frozenset({"open", "current", "currently", "active", "ongoing", "unresolved", "now", "any", "are"})
_NAMING_MAX_WORDS = 4
_CLOSE, _NEAR, _MARGIN = 0.78, 0.6, 0.08
_CHOICES_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One thing that a person wants to know."""

    intent: Intent
    question: str
    """In their words."""
    topic: str = ""
    """What it is about, as they call it; empty: all of the system."""
    incident: str = ""
    """Id, number or service by which they name an incident."""
    minutes: int | None = None
    """How far back, in minutes."""
    only_open: bool = False
    """Whether only incidents that are not over are meant."""
    detail: Literal["short", "more"] = "short"
    remark: str = ""
    """What was understood otherwise than it was said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One thing that was said in a conversation."""

    role: Literal["user", "assistant"]
    text: str


def understood(turns: Sequence[Turn]) -> tuple[Ask, ...]:
    """Return what the last turn asks, in the light of those before it; at most two things, never none."""
    before: Ask | None = None
    said = ""
    asks: tuple[Ask, ...] = ()
    for turn in turns:
        if turn.role == "assistant":
            said = turn.text
            continue
        asks = _asks(turn.text, before, said)
        before = next((ask for ask in reversed(asks) if ask.intent not in _SOCIAL), before)
    return asks or (Ask(intent=Intent.ABLE, question=""),)


_SOCIAL = frozenset({Intent.GREET, Intent.THANK, Intent.ABLE, Intent.OTHER})


def _asks(text: str, before: Ask | None, said: str) -> tuple[Ask, ...]:
    found: list[Ask] = []
    for clause in _CLAUSE.split(text[:_TEXT_MAX_CHARS]):
        if clause.strip():
            ask = _one(clause.strip(), found[-1] if found else before, said)
            if all((ask.intent, ask.topic, ask.incident) != (each.intent, each.topic, each.incident) for each in found):
                found.append(ask)
    real = [ask for ask in found if ask.intent not in _SOCIAL]
    kept = real or found[-1:]
    if len(kept) > _ASKS_MAX:
        return (*kept[: _ASKS_MAX - 1], replace(kept[_ASKS_MAX - 1], remark="I took the first two questions only"))
    return tuple(kept)


def _one(clause: str, before: Ask | None, said: str) -> Ask:
    plain = clause.lower().replace("\u2019", "'")
    for pattern, long in _SHORT:
        plain = pattern.sub(long, plain)
    plain, minutes, remark = _span(plain)
    words = [word.strip("-_./:") for word in _WORD.findall(plain)]
    row = matched(words)
    named = _named(words, row.taken if row else frozenset())
    intent = row.intent if row else None
    if _says_trouble(words, intent):
        intent = Intent.WHY
    ask = Ask(
        intent=intent or Intent.OTHER,
        question=" ".join(clause.split())[:_QUESTION_MAX_CHARS],
        topic=named,
        minutes=minutes,
        remark=remark,
    )
    if intent is None:
        return _followed(ask, words, before)
    return _joined(ask, words, before, said)


def _says_trouble(words: Sequence[str], intent: Intent | None) -> bool:
    """Whether a statement tells of trouble, without a question that another row answers."""
    if intent not in {None, Intent.STATUS, Intent.OTHER}:
        return False
    begins = next((word for word in words if word not in {"and", "but", "so", "well", "hi", "hey", "hello"}), "")
    is_asked = begins in ASKING | {"any", "anything", "what", "how", "still", "status"}
    return not is_asked and bool(SYMPTOMS & set(words)) and intent is not Intent.OTHER


def _followed(ask: Ask, words: Sequence[str], before: Ask | None) -> Ask:
    """Take words that ask nothing by themselves as more of what was asked before, or as a name to look at."""
    names = [word for word in words if word not in FILLING]
    if before is not None and (ask.minutes is not None or 0 < len(names) <= 3):
        return replace(
            before,
            question=_asked_of(before, ask.topic),
            topic=ask.topic or before.topic,
            # Of an incident: that of the name, or the same one.
            incident=(ask.topic or before.incident) if before.incident else "",
            minutes=ask.minutes or before.minutes,
            detail="short",
            remark=ask.remark,
        )
    if ask.topic and len(words) <= _NAMING_MAX_WORDS:
        return replace(ask, intent=Intent.STATUS)
    return replace(ask, intent=Intent.OTHER)


def _asked_of(before: Ask, topic: str) -> str:
    """Return an earlier question as it reads for something else."""
    if not topic:
        return before.question
    plain = before.question.lower()
    return plain.replace(before.topic, topic) if before.topic and before.topic in plain else f"{topic}: {plain}"


def _joined(ask: Ask, words: Sequence[str], before: Ask | None, said: str) -> Ask:
    """Fill in what a question leaves to what was talked about before."""
    # Only what our own sentences name: what stands in quotes is somebody else's.
    known = _INCIDENT.findall(_QUOTED.sub("", said))
    points = bool(POINTING & set(words))
    match ask.intent:
        case Intent.LIST:
            ask = replace(ask, only_open=bool(_UNDER_WAY & set(words)))
        case Intent.SHOW:
            ask = replace(ask, incident=_reference(words, known), topic="")
        case Intent.MORE:
            ask = _more(ask, before, known)
        case Intent.FIX | Intent.ACT:
            ask = replace(ask, incident=_spelt(words) or ask.topic or next(iter(known), ""))
        case Intent.WHY if not ask.topic and known and (points or _is_bare(words)) and not SYMPTOMS & set(words):
            ask = replace(ask, intent=Intent.SHOW, incident=known[0], detail="more")
        case Intent.WHY | Intent.STATUS | Intent.CHANGED | Intent.BRIEF if not ask.topic and before is not None:
            is_about = points or (ask.intent is Intent.WHY and _is_bare(words))
            ask = replace(ask, topic=before.topic if is_about else "")
    return ask


def _is_bare(words: Sequence[str]) -> bool:
    return len(words) <= 2


def _more(ask: Ask, before: Ask | None, known: Sequence[str]) -> Ask:
    if known and (before is None or before.intent is not Intent.LIST):
        return replace(ask, intent=Intent.SHOW, incident=known[0], detail="more")
    if before is not None:
        return replace(before, detail="more")
    return replace(ask, intent=Intent.BRIEF)


def _reference(words: Sequence[str], known: Sequence[str]) -> str:
    """Return the incident that is meant; a number counts in the last answer when it listed incidents."""
    spelt = _spelt(words)
    if spelt.startswith("inc_"):
        return spelt
    number = int(spelt) if spelt else 0
    if not number:
        return known[0] if known else "1"
    return known[number - 1] if len(known) > 1 and number <= len(known) else str(number)


def _spelt(words: Sequence[str]) -> str:
    for word in words:
        if word.startswith("inc_"):
            return word
    for word in words:
        if word.removeprefix("#").isdecimal() and len(word) <= 4:
            return word.removeprefix("#")
    return next((ORDINALS[word] for word in words if word in ORDINALS), "")


def _named(words: Sequence[str], taken: frozenset[int]) -> str:
    """Return the first words in a row that may name something of the system."""
    run: list[str] = []
    for place, word in enumerate(words):
        is_name = (
            place not in taken and word not in FILLING and word not in SYMPTOMS and not word.startswith(("inc_", "#"))
        )
        if is_name and (not word.isdecimal() or run):
            run.append(word)
        elif run:
            break
    return " ".join(run[:4])


def _span(text: str) -> tuple[str, int | None, str]:
    """Read how far back a question looks, and take it out of the text."""
    if day := _DAY.search(text):
        told = f"I took “{day[1]}” to mean the last day"
        return text[: day.start()] + " " + text[day.end() :], _MINUTES_MAX, told
    for found in _SPAN.finditer(text):
        amount, unit = found[1], found[2]
        is_bare = amount is None and (len(unit) == 1 or unit.endswith("s"))
        # `500s` alone are errors, `5 minutes` alone are a length of time.
        if is_bare or not (_SPAN_CUE.search(found[0]) or (len(unit) > 1 and (amount or "").isdecimal())):
            continue
        number = _AMOUNTS.get(amount or "a")
        minutes = (float(amount or 1) if number is None else number) * _UNIT_MINUTES[unit[0]]
        rest = text[: found.start()] + " " + text[found.end() :]
        if minutes > _MINUTES_MAX:
            return rest, _MINUTES_MAX, "I can look back one day at most"
        return rest, max(1, round(minutes)), ""
    return text, None, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a name that nobody has may mean."""

    name: str = ""
    """The one that was taken; empty: none can be told."""
    others: tuple[str, ...] = ()
    """Those that it may be; empty: it is like none."""


def choose(topic: str, names: Mapping[str, Sequence[str]]) -> Choice:
    """Match words against the names that telemetry knows: by kind, by a part of the name, by likeness of the letters."""
    words = topic.split()
    for word in words:
        if (kind := KINDS.get(word)) and names.get(kind):
            of_kind = tuple(names[kind])
            return Choice(name=of_kind[0]) if len(of_kind) == 1 else Choice(others=of_kind[:_CHOICES_MAX])
    scored = sorted(((_likeness(words, name), name) for each in names.values() for name in each), key=_by_score)
    if not scored or scored[0][0] < _NEAR:
        return Choice()
    best, runner_up = scored[0], scored[1][0] if len(scored) > 1 else 0.0
    if best[0] >= _CLOSE and best[0] - runner_up >= _MARGIN:
        return Choice(name=best[1])
    others = tuple(name for score, name in scored if score >= _NEAR and best[0] - score < 2 * _MARGIN)
    return Choice(others=others[:_CHOICES_MAX]) if len(others) > 1 or best[0] < _CLOSE else Choice(name=best[1])


def _by_score(scored: tuple[float, str]) -> tuple[float, str]:
    return -scored[0], scored[1]


def _likeness(words: Sequence[str], name: str) -> float:
    """Return how alike a name is to one of the words or all of them together, 0..1."""
    parts = re.findall(r"[^\W_]+", name.lower())
    whole = "".join(parts)
    best = 0.0
    for word in (*words, "".join(words)):
        letters = "".join(re.findall(r"[^\W_]+", word))
        if not letters:
            continue
        alike = difflib.SequenceMatcher(None, letters, whole).ratio()
        of_part = max((difflib.SequenceMatcher(None, letters, part).ratio() for part in parts), default=0.0)
        is_part = len(letters) >= 3 and (letters in parts or whole.startswith(letters) or letters.startswith(whole))
        best = max(best, alike, 0.9 if is_part else 0.0, 0.95 * of_part if len(letters) >= 5 else 0.0)
    return best
