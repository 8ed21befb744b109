"""What a proof is and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Scale = Literal["ci", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out of trying to break a promise."""

    cases: int
    violations: int
    is_exhaustive: bool
    """Whether the cases are all there are of the space that the note names; a sample otherwise."""
    note: str
    """What a case is, and what else was counted: one line."""
    failures: tuple[str, ...] = ()
    """The first violations, each with what reproduces it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise and the way to try it."""

    name: str
    """As on the command line: `python -m proofs NAME`."""
    promise: str
    """One sentence that a user could hold us to."""
    try_it: Callable[[Scale, int], Result]
    """Takes the scale and a seed; the same seed gives the same cases."""
