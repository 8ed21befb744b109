"""Count tokens from above without a tokenizer.

The bound holds for the byte-pair vocabularies o200k and cl100k, whose merges never leave two neighbouring single
letters apart when the pair itself is a token. Other vocabularies differ by some ten per cent.
"""

from __future__ import annotations

import re
from itertools import pairwise

from quell.signals._tokens_words import ONE_TOKEN_WORDS, UNJOINED_PAIRS

_PIECE = re.compile(r"( ?)([a-z]+)|([0-9]+)|(.)", re.DOTALL | re.ASCII)
_DIGITS_PER_TOKEN = 3


def count_tokens(text: str) -> int:
    """Return an upper bound of the number of tokens of a text.

    The bounds of parts add up to at least the bound of the whole, so that lines can be counted one by one.
    """
    most = 0
    for piece in _PIECE.finditer(text):
        space, word, digits, other = piece.group(1), piece.group(2), piece.group(3), piece.group(4)
        if word is not None and _is_one_token(text, piece.start(2), piece.end(2)):
            most += 1
        elif word is not None:
            most += _worst_split(space + word)
        elif digits is not None:
            # A run after digits of another script may be cut one place off, hence the extra one.
            most += -(-len(digits) // _DIGITS_PER_TOKEN) + _is_shifted(text, piece.start())
        else:
            most += len(other.encode("utf-8", "surrogatepass"))
    return most


def _worst_split(letters: str) -> int:
    """Return the most tokens that letters can fall into: a lone letter never follows a lone one that it could join."""
    alone, paired, most_before = 1, 0, 0
    for before, letter in pairwise(letters):
        most = max(alone, paired)
        # Either the letter stands alone, or it ends a token of two letters or more.
        alone, paired = (paired if _is_joined(before, letter) else most) + 1, max(most_before + 1, paired)
        most_before = most
    return max(alone, paired)


def _is_joined(before: str, letter: str) -> bool:
    return before == " " or (before + letter) not in UNJOINED_PAIRS


def _is_one_token(text: str, start: int, end: int) -> bool:
    if text[start:end] not in ONE_TOKEN_WORDS:
        return False
    around = (text[start - 1] if start else " ") + (text[end] if end < len(text) else " ")
    # An apostrophe or a letter of another script may belong to the same piece of the tokenizer.
    return around.isascii() and not around[0].isalpha() and not around[1].isalpha() and around[1] != "'"


def _is_shifted(text: str, start: int) -> bool:
    return start > 0 and not text[start - 1].isascii()
