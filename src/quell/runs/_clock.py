"""The one place that reads the real clock, and times as texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


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
