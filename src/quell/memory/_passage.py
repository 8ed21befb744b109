"""What every store of documents gives: passages, each with where it came from, to who may see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
"""Turns texts into vectors, one for each, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Who asks: documents of other tenants, and of roles that they have not, do not exist for them."""

    tenant: str = "local"
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document that answers a question."""

    text: str
    score: float
    """Larger is better; comparable only within one answer of one store."""
    source: str
    """Where the document is."""
    heading: str = ""
    """Headings above it, outermost first."""
    line: int = 0
    """Line of the document at which it begins; zero where the store does not know."""
    snippet: str = ""
    """The part of it that fits the question best; empty: the store does not tell."""
    version: str = ""
    """Digest of the whole document as it was when it was read."""
    modified_at: datetime | None = None
    also_in: int = 0
    """How many other documents that the audience may see hold the same."""
    more: Mapping[str, str] = field(default_factory=dict)
    """What else the store knows of it."""


class DocumentStore(Protocol):
    """Something that can be searched for passages."""

    @property
    def name(self) -> str:
        """Return its name; the tool is `vector_search_NAME`."""
        ...

    async def search(self, question: str, *, audience: Audience, passages_max: int) -> tuple[Passage, ...]:
        """Return the passages that fit a question best. Raises QuellError when the store cannot be asked."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
