"""Contradictions between workers, found by code: two results that say nearly the same sentence with another value.

Two sentences of two tasks contradict one another when they name the same thing, share most of their words, and differ in
their numbers or in a negation. It is a pointer for the coordinator, who reads both; it proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SENTENCE = re.compile(r"[^.!?\n]+(?:\.(?=\S)[^.!?\n]*)*")
_CITATION = re.compile(r"\[[^\]\n]{1,80}\]")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_][\w./-]*")
_NEGATIONS = frozenset({"not", "no", "never", "none", "without", "cannot", "isn", "wasn", "doesn", "didn", "aren"})
_EMPTY = frozenset(
    {"the", "a", "an", "of", "is", "are", "was", "were", "has", "have", "had", "at", "in", "on", "it", "to"}
)
_ALIKE = 0.6
_WORDS_MIN = 2
_SENTENCES_MAX, _ALL_MAX = 60, 600
_FOUND_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    task: str
    text: str
    words: frozenset[str]
    numbers: frozenset[str]
    is_negated: bool


def contradictions(results: Mapping[str, str]) -> list[str]:
    """Return pairs of sentences of different tasks that cannot both be true, as far as words tell."""
    said = [each for task, text in results.items() for each in _sentences(task, text)][:_ALL_MAX]
    found: list[str] = []
    for place, one in enumerate(said):
        for other in said[place + 1 :]:
            if one.task != other.task and _contradict(one, other):
                found.append(f"{one.task}: “{one.text}” and {other.task}: “{other.text}”")
                if len(found) >= _FOUND_MAX:
                    return found
    return found


def _sentences(task: str, text: str) -> Iterator[_Said]:
    for number, match in enumerate(_SENTENCE.finditer(text)):
        if number >= _SENTENCES_MAX:
            return
        plain = " ".join(_CITATION.sub("", match.group()).split())
        words = {word.lower().strip(".-/") for word in _WORD.findall(plain)}
        if len(words - _EMPTY - _NEGATIONS) >= _WORDS_MIN:
            yield _Said(
                task=task,
                text=plain[:200],
                words=frozenset(words - _EMPTY - _NEGATIONS),
                numbers=frozenset(_NUMBER.findall(plain)),
                is_negated=not words.isdisjoint(_NEGATIONS),
            )


def _contradict(one: _Said, other: _Said) -> bool:
    if len(one.words & other.words) < _ALIKE * len(one.words | other.words):
        return False
    if one.is_negated != other.is_negated:
        return one.numbers == other.numbers
    return bool(one.numbers and other.numbers) and one.numbers.isdisjoint(other.numbers)
