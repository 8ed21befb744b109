"""Words and numbers for people: units with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

_BARS = "▁▂▃▄▅▆▇█"


def clock_of(at: datetime) -> str:
    """Write a time of day."""
    return f"{at.astimezone(UTC):%H:%M:%S}"


def moment_of(at: datetime) -> str:
    """Write a date and a time."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def offset_of(at: datetime, anchor: datetime) -> str:
    """Write a time as the distance from the anchor, such as `+1m05s`."""
    seconds = round((at - anchor).total_seconds())
    return ("-" if seconds < 0 else "+") + span_of(abs(seconds))


def span_of(seconds: float) -> str:
    """Write a length of time."""
    if seconds < 10 and seconds != round(seconds):
        return f"{seconds:.2g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{left:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def amount_of(value: float, unit: str) -> str:
    """Write a number of a curve with its unit, three digits."""
    if unit == "share":
        return f"{value * 100:.3g} %"
    if unit == "ms":
        return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    suffix = {"per_s": "/s", "s": " s"}.get(unit, "")
    if abs(value) >= 1000:
        return f"{value:,.0f}{suffix}"
    return f"{value:.3g}{suffix}"


def spark_of(values: Sequence[float], *, width: int) -> str:
    """Draw values as a line of bars, from zero or their least value to their greatest."""
    if not values:
        return ""
    per = max(1, -(-len(values) // width))
    groups = [max(values[i : i + per]) for i in range(0, len(values), per)]
    low, high = min(0.0, *groups), max(groups)
    if high <= low:
        return _BARS[0] * len(groups)
    return "".join(_BARS[min(7, int((value - low) / (high - low) * 7.999))] for value in groups)


def plural(number: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
