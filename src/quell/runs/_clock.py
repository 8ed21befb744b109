"""Time and randomness as values that are handed in, and the one place that reads the real clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""Returns the present, aware and in UTC."""

Entropy: TypeAlias = Callable[[int], bytes]
"""Returns that many random bytes; `os.urandom` in production."""


def system_clock() -> datetime:
    """Read the machine's clock."""
    return datetime.now(UTC)  # noqa: TID251 - the one place that may


def to_text(at: datetime) -> str:
    """Write a time so that texts sort as times do."""
    assert at.tzinfo is not None, "an aware time"
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def from_text(text: str) -> datetime:
    """Read a time that `to_text` wrote."""
    return datetime.fromisoformat(text)


def later(at: datetime, *, seconds: float) -> datetime:
    """Return the time that many seconds after `at`."""
    return at + timedelta(seconds=seconds)
