"""When a read is tried again: seldom, after a random pause, and never more than a tenth on top."""

from __future__ import annotations

from quell.domain import Entropy, ResilienceLimits
from quell.tools._breaker import Ring

_FRACTION_BYTES = 7


def fraction_of(entropy: Entropy) -> float:
    """Draw a number from 0 up to 1."""
    return int.from_bytes(entropy(_FRACTION_BYTES), "big") / (1 << 8 * _FRACTION_BYTES)


def backoff_s(attempt: int, *, limits: ResilienceLimits, entropy: Entropy) -> float:
    """Draw the pause after the attempt of that number: exponential, full jitter (Brooker, AWS, 2015)."""
    ceiling_s = min(limits.backoff_max_s, limits.backoff_first_s * float(1 << (attempt - 1)))
    return ceiling_s * fraction_of(entropy)


class RetryBudget:
    """Tokens for retries of one dependency: first tries bring a share of one, and all of it ages with the window.

    Within any window there are no more retries than that share of the first tries plus the few that are always allowed
    (the retry budget of Finagle and of Google's SRE book, chapter 21).
    """

    def __init__(self, *, limits: ResilienceLimits) -> None:
        self._limits = limits
        self._sent = Ring(window_s=limits.window_s)

    def tried(self, *, at_s: float) -> None:
        """Count a first try."""
        self._sent.add(at_s=at_s, first=1)

    def left(self, *, at_s: float) -> int:
        """Count the retries that are allowed now."""
        firsts, retries = self._sent.totals(at_s=at_s)
        return max(0, int(firsts * self._limits.retry_share + 1e-9) + self._limits.retries_min - retries)

    def take(self, *, at_s: float) -> bool:
        """Take a retry; False when there is none left."""
        if self.left(at_s=at_s) < 1:
            return False
        self._sent.add(at_s=at_s, second=1)
        return True
