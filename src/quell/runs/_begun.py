"""What a process knows of a run that it holds, or could."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quell.domain import Run
from quell.runs._context import JsonObject, KeptStep


class SupersededError(Exception):
    """This process does not hold the run any more: it was cancelled, taken over, or the lease is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A segment that this process holds."""

    run: Run
    arguments: str
    """JSON: read into objects it would take five times as much, for as long as the run does."""
    place: Mapping[str, str]
    """Where in a trace it was started, as headers; empty: nowhere."""
    state: JsonObject
    segment: int
    dispatch: int
    round: int
    """How often it was resumed."""
    token: str
    kept: Mapping[str, KeptStep]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Under what a process takes hold of runs: its slot, the token of its lease, and how often it tries a run."""

    slot: str
    token: str
    attempts_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A run that should be on its way: somebody must execute this dispatch of it."""

    run: str
    kind: str
    dispatch: int
    has_begun: bool = False
    """Whether somebody executed it before."""
