"""Kinds of values on the command line."""

from __future__ import annotations

import re
from datetime import datetime

import click

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LENGTH_MAX_S = 7 * 86400


class _Length(click.ParamType[float]):
    """A length of time, read into seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read `90s`, `30m`, `2h` or `1d`."""
        if isinstance(value, float):
            return value
        found = _LENGTH.fullmatch(str(value).strip())
        seconds = float(found.group(1)) * _SECONDS[found.group(2)] if found else 0.0
        if not 0 < seconds <= _LENGTH_MAX_S:
            self.fail(f"{value!r} is not a length of time; write 90s, 30m, 2h or 1d (at most 7d)", param, ctx)
        return seconds


LENGTH = _Length()


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
