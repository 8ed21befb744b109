"""A run as a tree: who worked, turn by turn and call by call, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from quell.domain._incident import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNode:
    """One thing that was done, or one mark between two of them."""

    kind: Literal["run", "task", "turn", "call", "step", "mark"]
    name: str
    at: datetime
    took_s: float | None
    """None: nobody saw it end."""
    outcome: str
    tries: int
    detail: str
    model: str
    input_tokens: int
    output_tokens: int
    micro_usd: int | None
    """None: nothing was paid for, or nobody knows the price."""
    children: tuple[TraceNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTotals:
    """What the whole of a run took."""

    turns: int
    calls: int
    failed_calls: int
    input_tokens: int
    output_tokens: int
    micro_usd: int | None
    """None: nobody knows the price of anything."""
    unpriced_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTrace:
    """A run, what was done in it, and what that took."""

    run: Run
    tree: TraceNode
    totals: TraceTotals
