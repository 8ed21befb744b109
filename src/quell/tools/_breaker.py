"""What the latest answers of a dependency say: send all, send fewer, or send nothing but probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quell.domain import ResilienceLimits

_SLOTS = 10
_STREAK = 5
_PROBE_AGAIN_S = 1.0


class Ring:
    """Two counts over a sliding window, kept in ten slots."""

    def __init__(self, *, window_s: float) -> None:
        self._slot_s = window_s / _SLOTS
        self._first = [0] * _SLOTS
        self._second = [0] * _SLOTS
        self._slot = 0

    def add(self, *, at_s: float, first: int = 0, second: int = 0) -> None:
        """Count what happened at a time."""
        self._turn(at_s)
        self._first[self._slot % _SLOTS] += first
        self._second[self._slot % _SLOTS] += second

    def totals(self, *, at_s: float) -> tuple[int, int]:
        """Sum both counts over the window that ends at a time."""
        self._turn(at_s)
        return sum(self._first), sum(self._second)

    def clear(self) -> None:
        """Forget everything."""
        self._first = [0] * _SLOTS
        self._second = [0] * _SLOTS

    def _turn(self, at_s: float) -> None:
        slot = int(at_s / self._slot_s)
        if slot <= self._slot:
            return  # the same slot; a clock that steps back changes nothing
        for old in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            self._first[old % _SLOTS] = self._second[old % _SLOTS] = 0
        self._slot = slot


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to send one call; its answer counts for the state in which it was given."""

    generation: int


class Breaker:
    """Closed lets all through, open nothing, half-open a probe at a time.

    Probes that succeed close it and forget the failures of before: a breaker that remembered them would open again at
    the next answer and keep shedding long after the dependency has recovered.
    """

    def __init__(self, *, limits: ResilienceLimits) -> None:
        self._limits = limits
        self._answers = Ring(window_s=limits.window_s)
        self.state: Literal["closed", "open", "half_open"] = "closed"
        self._generation = 0
        self._open_until_s = 0.0
        self._open_s = limits.open_first_s
        self._is_probing = False
        self._probes_well = 0

    def retry_after_s(self, *, at_s: float) -> float:
        """Say how long nothing will be let through; zero when a call would be now."""
        if self.state == "open" and at_s < self._open_until_s:
            return self._open_until_s - at_s
        return _PROBE_AGAIN_S if self.state == "half_open" and self._is_probing else 0.0

    def admit(self, *, at_s: float) -> Ticket:
        """Let one call through, as a probe when half-open. Only when `retry_after_s` is zero."""
        assert self.retry_after_s(at_s=at_s) == 0, "ask retry_after_s first"
        if self.state == "open":
            self._become("half_open")
            self._probes_well = 0
        self._is_probing = self.state == "half_open"
        return Ticket(self._generation)

    def settle(
        self, ticket: Ticket, *, ending: Literal["well", "failed", "unknown"], at_s: float, jitter: float
    ) -> None:
        """Learn how a call that was let through ended; `jitter` from 0 to 1 shortens the pause that may follow."""
        if ticket.generation != self._generation:
            return  # it was sent before the state changed, and says nothing about now
        if self.state == "half_open":
            self._is_probing = False
            self._settle_probe(ending, at_s=at_s, jitter=jitter)
        elif ending != "unknown":
            self._answers.add(at_s=at_s, first=1, second=int(ending == "failed"))
            answered, failed = self._answers.totals(at_s=at_s)
            if (
                ending == "failed"
                and answered >= self._limits.calls_min
                and failed >= self._limits.open_share * answered
            ):
                self._open(at_s=at_s, jitter=jitter)

    def _settle_probe(self, ending: Literal["well", "failed", "unknown"], *, at_s: float, jitter: float) -> None:
        if ending == "failed":
            self._open_s = min(self._limits.open_max_s, 2 * self._open_s)
            self._open(at_s=at_s, jitter=jitter)
        elif ending == "well":
            self._probes_well += 1
            if self._probes_well >= self._limits.probes_needed:
                self._open_s = self._limits.open_first_s
                self._become("closed")
                self._answers.clear()

    def _open(self, *, at_s: float, jitter: float) -> None:
        # Several processes that saw the same failure do not all probe at the same moment.
        self._open_until_s = at_s + self._open_s * (1 - jitter / 2)
        self._become("open")

    def _become(self, state: Literal["closed", "open", "half_open"]) -> None:
        self.state = state
        self._generation += 1
        self._is_probing = False


class Throttle:
    """Sheds here what the dependency would refuse: max(0, (requests - K * accepts) / (requests + 1)).

    Adaptive throttling of Google's SRE book, chapter 21, with three changes: a call counts when it ends, so that slow
    is not failed; a few calls say nothing; and a row of successes while it sheds forgets the bad past.
    """

    def __init__(self, *, limits: ResilienceLimits) -> None:
        self._limits = limits
        self._calls = Ring(window_s=limits.window_s)
        self._streak = 0

    def shed_share(self, *, at_s: float) -> float:
        """Say which share of calls should not be sent now."""
        requests, accepts = self._calls.totals(at_s=at_s)
        if requests < self._limits.calls_min:
            return 0.0
        excess = (requests - self._limits.throttle_factor * accepts) / (requests + 1)
        return min(self._limits.shed_max, max(0.0, excess))

    def shed(self, *, at_s: float) -> None:
        """Count a call that was not sent."""
        self._calls.add(at_s=at_s, first=1)

    def answered(self, *, is_accepted: bool, at_s: float) -> None:
        """Count a call that was sent and has ended."""
        self._calls.add(at_s=at_s, first=1, second=int(is_accepted))
        self._streak = self._streak + 1 if is_accepted else 0
        if self._streak >= _STREAK:
            self._streak = 0
            if self.shed_share(at_s=at_s) > 0:
                self.forget()

    def forget(self) -> None:
        """Forget all calls."""
        self._calls.clear()
