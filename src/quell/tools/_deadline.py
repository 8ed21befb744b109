"""How much time is left, and under which call: a scope that every task started inside it inherits.

A scope that has ended binds nobody: a task that outlives the call which started it is not nested in it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Scope:
    """A stretch of work with an end in time."""

    until_s: float
    """Monotonic time by which it must have ended; never later than that of the scope around it."""
    dependency: str
    """Dependency that a call holds a place of; empty for a mere deadline."""
    is_attempt: bool
    """Whether a call stands around it, so that what happens inside is not retried a second time."""
    parent: Scope | None
    is_over: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one call inside this one that uses its place."""


_CURRENT: ContextVar[Scope | None] = ContextVar("quell_scope", default=None)


def current() -> Scope | None:
    """Return the innermost scope that has not ended; None outside of all."""
    scope = _CURRENT.get()
    while scope is not None and scope.is_over:
        scope = scope.parent
    return scope


def holder_of(dependency: str) -> Scope | None:
    """Find the nearest call around this place in the program that holds a place at the dependency."""
    scope = current()
    while scope is not None and (scope.is_over or scope.dependency != dependency):
        scope = scope.parent
    return scope


@contextmanager
def scope_until(until_s: float, *, dependency: str = "") -> Iterator[Scope]:
    """Enter a scope; with a dependency it is a call, without one only a deadline."""
    parent = current()
    scope = Scope(
        until_s=min(until_s, parent.until_s) if parent else until_s,
        dependency=dependency,
        is_attempt=bool(dependency) or (parent is not None and parent.is_attempt),
        parent=parent,
    )
    token = _CURRENT.set(scope)
    try:
        yield scope
    finally:
        scope.is_over = True
        _CURRENT.reset(token)
