"""The words of the scratchpad: whose a result is, how much is kept, and what reading it brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quell.domain._globs import matches_glob
from quell.domain._guard import OutcomeKind, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class PadOwner:
    """Whose a result is: nobody else can read it, or learn that it exists."""

    session: str
    tenant: str = "local"
    user: str = ""
    """Clients name their sessions as they like: the same name of somebody else is another session. Empty: of a run."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillRule:
    """From which size on results of some tools of one server are put aside."""

    server: str
    glob: str
    """Of the tools' original names."""
    min_tokens: int
    """A result of so many tokens or more is put aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillTable:
    """When results of an agent's calls are put aside, and how much one reading tool gives back."""

    rules: tuple[SpillRule, ...] = ()
    reading_tokens: int = 10_000

    def min_tokens_of(self, tool: Tool) -> int | None:
        """Return from which size on: of the rules that fit the longest, of two as long the smaller; None: no rule fits."""
        fitting = [
            (-len(rule.glob), rule.min_tokens)
            for rule in self.rules
            if rule.server == tool.server and matches_glob(tool.original, rule.glob)
        ]
        return min(fitting)[1] if fitting else None
