"""How many tokens a request has before anybody was asked: counted where a tokenizer is installed, estimated elsewhere.

The estimate counts pieces as byte-pair tokenizers cut them (short words, up to three digits, single signs), and learns
from what the provider reports how far its own vocabulary is from that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from hashlib import blake2b

from quell.domain import ModelRequest

_PIECE = re.compile(r" ?[A-Za-z]{1,7}|[0-9]{1,3}|\s+|[^A-Za-z0-9\s]")
_MESSAGE_TOKENS = 4
"""What the frame of one message costs, as OpenAI documents it for its chat format."""
_TOOL_TOKENS = 8
_REPLY_TOKENS = 3
_EXACT_FROM_CHARS = 16_000
"""Some 4,000 tokens, half of the smallest window that a model with a known vocabulary has."""
_LEARN_MIN_TOKENS = 200
"""A short request tells more about frames than about words."""
_LEARN_WEIGHT = 0.3
_FACTOR_MIN, _FACTOR_MAX = 0.4, 3.0
_REMEMBERED_MAX = 4096
_SHORT_CHARS = 512
_O200K = ("gpt-4o", "gpt-4.1", "gpt-5", "o1", "o3", "o4", "chatgpt", "gpt-oss")
_CL100K = ("gpt-4", "gpt-3.5")


class TokenCounter:
    """Counts for one model; exact where it can be, and corrected by what its provider reports everywhere."""

    def __init__(self, *, vocabulary: str = "") -> None:
        """Count with the tokenizer of a vocabulary from the first long text on, or without one by the estimate."""
        self._vocabulary = vocabulary
        self._count: Callable[[str], int] | None = None
        self._factor = 1.0

    @classmethod
    def for_model(cls, name: str) -> TokenCounter:
        """Return the counter of a model by its name: with a tokenizer when it is installed and made for it."""
        return cls(vocabulary=_vocabulary_of(name))

    @property
    def is_exact(self) -> bool:
        """Whether a tokenizer of the model itself counts."""
        return self._count is not None

    def prepare(self) -> None:
        """Load the tokenizer, if there is one: a third of a second that a server does not take in a question's middle."""
        if self._vocabulary:
            _tokenizer_of(self._vocabulary)

    @property
    def factor(self) -> float:
        """Return by how much the provider's reports differed from the count so far."""
        return self._factor

    def count_text(self, text: str) -> int:
        """Return the tokens of a text."""
        if not text:
            return 0
        return max(1, round(self._of(len(text))(text) * self._factor))

    def count(self, request: ModelRequest) -> int:
        """Return the tokens of a request as it would be sent."""
        return max(1, round(self._raw(request) * self._factor))

    def learn(self, request: ModelRequest, *, told: int) -> None:
        """Correct what comes next by what the provider reported of a request; a report that cannot be true is left."""
        counted = self._raw(request)
        if counted < _LEARN_MIN_TOKENS or told <= 0:
            return
        seen = told / counted
        if _FACTOR_MIN <= seen <= _FACTOR_MAX:
            self._factor += _LEARN_WEIGHT * (seen - self._factor)

    def _raw(self, request: ModelRequest) -> int:
        texts = [request.answer_schema or "", *(message.text for message in request.messages)]
        size_chars = sum(map(len, texts)) + sum(len(call.arguments) for each in request.messages for call in each.calls)
        of = self._of(size_chars + sum(len(tool.description) + len(tool.parameters) for tool in request.tools))
        tokens = _REPLY_TOKENS + (of(request.answer_schema) if request.answer_schema else 0)
        for message in request.messages:
            tokens += _MESSAGE_TOKENS + (of(message.text) if message.text else 0)
            tokens += sum(_TOOL_TOKENS + of(call.name) + of(call.arguments) for call in message.calls)
        for tool in request.tools:
            tokens += _TOOL_TOKENS + of(tool.name) + of(tool.description) + of(tool.parameters)
        return tokens

    def _of(self, size_chars: int) -> Callable[[str], int]:
        """Return what counts so much text: no window and no budget is so near that a short one had to be exact."""
        if self._count is None and self._vocabulary and size_chars >= _EXACT_FROM_CHARS:
            self._count, self._factor = _tokenizer_of(self._vocabulary), 1.0
            if self._count is None:
                self._vocabulary = ""
        return self._count or estimated


def _remembering(count: Callable[[str], int]) -> Callable[[str], int]:
    """Count a text only once: histories grow by their end. Of a long text its digest is remembered, not the text."""
    of_short = lru_cache(maxsize=_REMEMBERED_MAX)(count)
    of_long: dict[bytes, int] = {}

    @wraps(count)
    def counted(text: str) -> int:
        if len(text) <= _SHORT_CHARS:
            return of_short(text)
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found = of_long.get(digest)
        if found is None:
            if len(of_long) >= _REMEMBERED_MAX:
                of_long.clear()
            found = of_long[digest] = count(text)
        return found

    return counted


@_remembering
def estimated(text: str) -> int:
    """Estimate the tokens of a text."""
    count = 0
    for piece in _PIECE.finditer(text):
        found = piece.group()
        if found.isspace():
            count += 1 if len(found) > 1 or found != " " else 0
        else:
            count += 1 if found.isascii() else max(1, len(found.encode("utf-8", "surrogatepass")) // 2)
    return max(1, count)


def _vocabulary_of(name: str) -> str:
    """Return the vocabulary of a model; empty when nobody knows it."""
    plain = name.rsplit("/", 1)[-1].lower()
    known = (("o200k_base", _O200K), ("cl100k_base", _CL100K))
    return next((each for each, names in known if plain.startswith(names)), "")


@lru_cache(maxsize=4)
def _tokenizer_of(vocabulary: str) -> Callable[[str], int] | None:
    """Find an installed tokenizer whose vocabulary lies in its own package: nothing is fetched."""
    try:
        import bpe_openai  # noqa: PLC0415 - an extra, and its vocabularies take a moment to load
    except ImportError:
        return None
    encode: Callable[[str], list[int]] = bpe_openai.get_encoding(vocabulary).encode_ordinary

    def count(text: str) -> int:
        return len(encode(text))

    return _remembering(count)
