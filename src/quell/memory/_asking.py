"""From what somebody asks to a full-text query: words only, so that no question is a mistake of syntax."""

from __future__ import annotations

import re

_QUESTION_CHARS_MAX = 10_000
_WORDS_MAX = 32
_WORD_CHARS_MAX = 64
_WORD = re.compile(r"[^\W_]+")
_EMPTY_WORDS = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "our",
        "that",
        "the",
        "this",
        "to",
        "was",
        "we",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "you",
    }
)
"""Words that stand in every document: where others are there, they only cost time."""


def match_of(question: str) -> str:
    """Return a query that any of the words answers and more of them answer better; empty when there is no word."""
    words = [word[:_WORD_CHARS_MAX].lower() for word in _WORD.findall(question[:_QUESTION_CHARS_MAX])]
    distinct = list(dict.fromkeys(words))
    telling = [word for word in distinct if word not in _EMPTY_WORDS] or distinct
    # Quoted, a word is a word, whatever it says.
    return " OR ".join(f'"{word}"' for word in telling[:_WORDS_MAX])
