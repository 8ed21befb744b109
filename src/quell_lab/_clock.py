"""The one place of the lab that reads a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def system_clock() -> datetime:
    """Return the time of the host, aware, in UTC."""
    return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME), tz=UTC)


def epoch_s() -> float:
    """Return the time of the host in seconds since 1970."""
    return time.clock_gettime(time.CLOCK_REALTIME)
