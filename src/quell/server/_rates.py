"""How often somebody may ask: a bucket that fills by itself, for each person."""

from __future__ import annotations

import math

from quell.domain import Principal
from quell.server._openai_errors import ChatError

_KEPT_MAX = 10_000


class Rates:
    """Counts the questions of each person (a token bucket)."""

    def __init__(self, *, per_minute: int) -> None:
        """`per_minute` 0 counts nothing."""
        self._per_minute = per_minute
        self._left: dict[tuple[str, str], tuple[float, float]] = {}
        """Person -> questions left, and when that was."""

    def take(self, by: Principal, *, now_s: float) -> None:
        """Count one question. Raises ChatError 429 when there were too many."""
        if not self._per_minute:
            return
        key = (by.tenant, by.user)
        left, at_s = self._left.pop(key, (float(self._per_minute), now_s))
        left = min(float(self._per_minute), left + (now_s - at_s) * self._per_minute / 60)
        if left < 1:
            self._left[key] = (left, now_s)
            said = f"you may ask {self._per_minute} questions a minute"
            wait_s = math.ceil((1 - left) * 60 / self._per_minute)
            raise ChatError(429, said, reason="rate_limit_exceeded", retry_after_s=wait_s)
        self._left[key] = (left - 1, now_s)
        if len(self._left) > _KEPT_MAX:
            # The one that asked longest ago has the fullest bucket: forgetting it gives the least.
            del self._left[next(iter(self._left))]
