"""How many questions are taken, whatever protocol brings them: how often of each person, and how many at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from quell.domain import OverloadError, Principal
from quell.server._listening import Closing

_KEPT_MAX = 10_000


class Rates:
    """Counts the questions of each person (a token bucket: it fills by itself), and who is answered."""

    def __init__(self, *, per_minute: int, closing: Closing) -> None:
        """`per_minute` 0 counts no questions; `closing` counts all who are answered."""
        self.closing = closing
        self._per_minute = per_minute
        self._left: dict[tuple[str, str], tuple[float, float]] = {}
        """Person -> questions left, and when that was."""

    def take(self, by: Principal) -> None:
        """Count one question. Raises OverloadError when there were too many."""
        if not self._per_minute:
            return
        now_s, key = asyncio.get_running_loop().time(), (by.tenant, by.user)
        left, at_s = self._left.pop(key, (float(self._per_minute), now_s))
        left = min(float(self._per_minute), left + (now_s - at_s) * self._per_minute / 60)
        if left < 1:
            self._left[key] = (left, now_s)
            said = f"you may ask {self._per_minute} questions a minute"
            wait_s = math.ceil((1 - left) * 60 / self._per_minute)
            raise OverloadError(said, retry_after_s=wait_s, hint=f"try again in {wait_s} s")
        self._left[key] = (left - 1, now_s)
        if len(self._left) > _KEPT_MAX:
            # The one that asked longest ago has the fullest bucket: forgetting it gives the least.
            del self._left[next(iter(self._left))]

    @contextmanager
    def answering(self, by: Principal) -> Iterator[None]:
        """Count a question, and its asker while they wait for the answer. Raises OverloadError when there are too many."""
        with self.closing.place():
            self.take(by)
            yield
