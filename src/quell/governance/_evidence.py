"""What a number of trials proves, however often one looks: tests by betting, with mixtures of betas.

For a claim `p >= c` the bet is on every share above `c` alike. What the bet has won, relative to `c` itself, is

    E = integral from c to 1 of p^s (1-p)^f dp / (1-c)  /  (c^s (1-c)^f)

after s successes and f failures. As long as the true share is at most c, E is a nonnegative supermartingale that begins
at 1, and by Ville's inequality it ever reaches 1/alpha with a chance of at most alpha: it may be looked at after every
trial (Ramdas, Grunwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, 2023). The floor is
the same bet on the other side.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log1p

from quell.domain import Tally

ALPHA = 0.05
_BAR = log(1 / ALPHA)
_TRIALS_MAX = 1_000_000
_TERMS_MAX = 10_000
_TINY = 1e-300


def proves(tally: Tally, *, claim: float) -> bool:
    """Tell whether the trials prove that the share of successes is above the claim."""
    return log_evidence_above(tally.successes, tally.failures, claim=claim) >= _BAR


def refutes(tally: Tally, *, floor: float) -> bool:
    """Tell whether the trials prove that the share of successes is below the floor."""
    return log_evidence_below(tally.successes, tally.failures, floor=floor) >= _BAR


def trials_needed(tally: Tally, *, claim: float) -> int:
    """Count the successes in a row that would still be needed to prove the claim."""

    def is_enough(more: int) -> bool:
        return proves(Tally(successes=tally.successes + more, failures=tally.failures), claim=claim)

    if is_enough(0):
        return 0
    # Every success multiplies what the bet holds by more than one, so there is one point where it is enough.
    high = 1
    while not is_enough(high):
        high *= 2
        assert high < _TRIALS_MAX, "a claim below one can be proved"
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def log_evidence_above(successes: int, failures: int, *, claim: float) -> float:
    """Return the logarithm of what the bet on more than `claim` has won."""
    assert 0 < claim < 1, "a claim is a share"
    shape = (successes + 1, failures + 1)
    held = _log_beta(*shape) + _log_incomplete_beta(shape[1], shape[0], at=1 - claim)
    return held - log1p(-claim) - successes * log(claim) - failures * log1p(-claim)


@lru_cache(maxsize=4096)
def log_evidence_below(successes: int, failures: int, *, floor: float) -> float:
    """Return the logarithm of what the bet on less than `floor` has won."""
    return log_evidence_above(failures, successes, claim=1 - floor)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _log_incomplete_beta(a: float, b: float, *, at: float) -> float:
    """Return the logarithm of the regularised incomplete beta function.

    Continued fraction by Lentz's way (DLMF 8.17.22), taken on the side where it converges fast.
    """
    if at > (a + 1) / (a + b + 2):
        return log1p(-min(exp(_log_incomplete_beta(b, a, at=1 - at)), 1 - 1e-16))
    front = a * log(at) + b * log1p(-at) - _log_beta(a, b) - log(a)
    return front + log(_continued_fraction(a, b, at))


def _continued_fraction(a: float, b: float, x: float) -> float:
    c = 1.0
    d = 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS_MAX):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= d * c
        if abs(d * c - 1) < 1e-14:
            return value
    raise AssertionError(f"the continued fraction of ({a}, {b}) at {x} does not converge")


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
