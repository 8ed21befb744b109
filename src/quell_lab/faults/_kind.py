"""The shape of a fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from quell_lab.host import Supervisor

T = TypeVar("T")
Undo = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was really done, and how to take it back."""

    kind: str
    subject: str
    detail: str
    undo: Undo


Deed = Callable[[Supervisor, int], Awaitable[Done]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry of the catalogue."""

    name: str
    category: str
    """Empty for a healthy disturbance."""
    title: str
    deed: Deed


def pick(options: Sequence[T], seed: int) -> T:
    """Choose by seed, so that consecutive seeds choose differently."""
    return options[seed % len(options)]
