"""How systems say that a process ended: because somebody asked for it, or for want of memory."""

from __future__ import annotations

import re
from typing import Final

ENDED_AS_ASKED: Final = r"(?i)\b(stopped|completed|sigterm|replaced|drain(ed|ing)?|shutdown|scaled)\b"
"""Words of an end that somebody asked for, as an RE2 expression: stores match it too."""
_STARVED: Final = re.compile(
    r"(?<![a-z])oom(?![a-z])|(?<![a-z])oom.?kill|out.of.memory|outofmemory|memory.limit", re.IGNORECASE
)
_ASKED: Final = re.compile(ENDED_AS_ASKED)


def is_asked_for(told: str) -> bool:
    """Tell whether a reason of an end says that somebody asked for it."""
    return _ASKED.search(told) is not None and not is_starved(told)


def is_starved(told: str) -> bool:
    """Tell whether a reason of an end says that memory was wanting."""
    return _STARVED.search(told) is not None
