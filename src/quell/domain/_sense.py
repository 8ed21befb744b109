"""What a sense of our own brings: short sentences by our code, and what stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

SenseState: TypeAlias = Literal[
    "wrong", "healthy", "unclear", "cause_found", "inconclusive", "running", "told", "nothing", "unknown_service"
]
"""What a sense found, in one word; `unclear` where too little could be read to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensed:
    """What one look at the system brought."""

    state: SenseState
    lines: tuple[str, ...]
    """Sentences made by our code, the most important first; a stranger's words in them stand in quotes. Never empty."""
    more: tuple[str, ...] = ()
    """Further sentences for who wants to know more, such as the evidence."""
    steps: tuple[str, ...] = ()
    """What can be done, in order."""
    gaps: tuple[str, ...] = ()
    """What could not be learned, in words."""
    incidents: tuple[str, ...] = ()
    """Ids of the incidents that the sentences are about, in their order."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Kind (`service`, `database`, `queue`, `external`) -> names that telemetry knows, where they help to ask again."""
