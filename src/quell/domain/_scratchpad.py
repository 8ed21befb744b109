"""The words of the scratchpad: whose a result is, how much is kept, and what reading it brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quell.domain._guard import OutcomeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PadOwner:
    """Whose a result is: nobody else can read it, or learn that it exists."""

    session: str
    tenant: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchpadLimits:
    """When results are put aside, how much of them is shown, and how long they stay. A token is four bytes."""

    inline_tokens: int = 4_000
    """Results up to this size are given whole."""
    head_tokens: int = 1_000
    """Size of the head that stands for a result that was put aside."""
    reading_tokens: int = 4_000
    """Most that one reading tool answers."""
    result_max_bytes: int = 128_000_000
    session_max_bytes: int = 512_000_000
    """The oldest results of a session make room for its new ones."""
    total_max_bytes: int = 4_000_000_000
    """The oldest results of all make room."""
    keep_s: float = 7 * 86_400.0
    """Age at which a result is removed; putting it again makes it new."""
    grep_s: float = 10.0
    """Longest that one search runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spilled:
    """A result that was put aside."""

    handle: str
    """Opaque; means something to its owner only."""
    head: str
    """What the caller reads instead: size, shape, the first of it, and how to read on."""
    form: Literal["json", "text"]
    size_bytes: int
    digest: str
    """SHA-256 of the result as it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PadReading:
    """What a reading tool brought, ready to become an outcome."""

    kind: OutcomeKind
    """`ok`, `truncated` when less than asked for fitted, `empty`, `tool_error` for a wrong question, `denied`."""
    content: str = ""
    is_json: bool = False
    detail: str = ""
    """What was left out or went wrong, and what to do about it."""
