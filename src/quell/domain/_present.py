"""Time and randomness as values that are handed in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""Returns the present, aware and in UTC."""

Entropy: TypeAlias = Callable[[int], bytes]
"""Returns that many random bytes; `os.urandom` in production."""
