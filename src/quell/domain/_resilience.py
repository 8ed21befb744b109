"""The words of resilience: how much a dependency may be asked, and how it fares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Priority: TypeAlias = Literal["critical", "normal", "background"]
"""Who is let in first and shed last: a revert is critical, a person's question normal, upkeep background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceLimits:
    """How one dependency is treated while it is well and while it is not."""

    attempts_max: int = 3
    """Tries of one read, the first included."""
    backoff_first_s: float = 0.1
    """Upper end of the first pause; it doubles, and the pause is drawn from zero to it."""
    backoff_max_s: float = 5.0
    retry_share: float = 0.1
    """Retries per first try within the window."""
    retries_min: int = 3
    """Retries allowed within the window however few the first tries are."""
    window_s: float = 10.0
    """How far back answers count."""
    calls_min: int = 10
    """Answers within the window before they say anything."""
    open_share: float = 0.8
    """Share of failures at which nothing is sent any more."""
    open_first_s: float = 2.0
    """Longest pause before the first probe; it doubles with every probe that fails."""
    open_max_s: float = 10.0
    probes_needed: int = 3
    """Probes in a row that have to succeed before all calls are let through again."""
    throttle_factor: float = 2.0
    """K of adaptive throttling: calls sent for each one that was accepted."""
    shed_max: float = 0.8
    """Share of calls that throttling sheds at most, so that a recovery is seen."""
    concurrent_max: int = 16
    queue_max: int = 64
    """Calls that may wait for one of the concurrent places."""

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing. Raises ValueError."""
        if not 1 <= self.attempts_max <= 3:
            raise ValueError("attempts_max is 1 to 3: more tries hurt a failing dependency and help nobody")
        if min(self.window_s, self.open_first_s, self.backoff_first_s) <= 0 or self.open_max_s < self.open_first_s:
            raise ValueError("times are above zero, and open_max_s is not below open_first_s")
        if not (0 <= self.retry_share <= 1 and 0 < self.open_share <= 1 and 0 <= self.shed_max < 1):
            raise ValueError("shares are between 0 and 1, and shed_max is below 1")
        if (
            min(self.concurrent_max, self.probes_needed, self.calls_min) < 1
            or min(self.queue_max, self.retries_min) < 0
        ):
            raise ValueError("counts are above zero; queue_max and retries_min may be zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyHealth:
    """How a dependency fares right now, as its callers here see it."""

    dependency: str
    breaker: Literal["closed", "open", "half_open"]
    in_flight: int
    waiting: int
    shed_share: float
    """Share of calls that throttling would shed now."""
    retries_left: int
    """Whole retries that the budget still allows now."""
