"""Kinds of values on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Length(click.ParamType[float]):
    """A length of time, read into seconds."""

    name = "duration"

    def __init__(self, *, most_days: int) -> None:
        self._most_days = most_days

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read `90s`, `30m`, `2h` or `1d`."""
        if isinstance(value, float):
            return value
        found = _LENGTH.fullmatch(str(value).strip())
        seconds = float(found.group(1)) * _SECONDS[found.group(2)] if found else 0.0
        if not 0 < seconds <= self._most_days * _SECONDS["d"]:
            told = f"{value!r} is not a length of time; write 90s, 30m, 2h or 1d (at most {self._most_days}d)"
            self.fail(told, param, ctx)
        return seconds


LENGTH = _Length(most_days=7)
LONG_LENGTH = _Length(most_days=366)


class _Moment(click.ParamType[str]):
    """A point in time, or how far it is from now."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that it is `now`, `+2h` or a time with its zone; `moment_of` reads it."""
        try:
            moment_of(str(value), now=datetime.fromtimestamp(0, tz=UTC))
        except ValueError:
            self.fail(f"{value!r} is no time; write now, +2h or 2026-12-24T18:00:00Z, with its zone", param, ctx)
        return str(value)


MOMENT = _Moment()


def moment_of(text: str, *, now: datetime) -> datetime:
    """Read a point in time. Raises ValueError for what is none, or has no time zone."""
    if text == "now":
        return now
    if text.startswith("+"):
        if (found := _LENGTH.fullmatch(text[1:])) is None:
            raise ValueError(text)
        return now + timedelta(seconds=float(found.group(1)) * _SECONDS[found.group(2)])
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at.astimezone(UTC)


def away(at: datetime, *, now: datetime) -> str:
    """Say how far a time is from now: `in 12 min`, `3 h ago`."""
    seconds = (at - now).total_seconds()
    size = abs(seconds)
    unit = next((unit for unit in _UNITS if size < unit[0]), _UNITS[-1])
    told = f"{size / unit[1]:.0f} {unit[2]}"
    return f"in {told}" if seconds > 0 else f"{told} ago"


_UNITS = ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h"), (float("inf"), 86400, "d"))


def clock_time(at: datetime) -> str:
    """Write a time for a column: UTC, to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def length_text(seconds: float) -> str:
    """Write a length of time in its natural unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def took_text(start: datetime, end: datetime) -> str:
    """Write how long it is from one time to another."""
    return length_text((end - start).total_seconds())
