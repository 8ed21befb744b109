"""The headers of requests whose runs go on in this process: for servers that take some, in memory and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

_HELD_MAX = 10_000


class HeldHeaders:
    """By the ticket of a request; those of the oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._by_ticket: dict[str, Mapping[str, str]] = {}

    def hold(self, ticket: str, headers: Mapping[str, str]) -> None:
        """Keep the headers of a request."""
        self._by_ticket[ticket] = dict(headers)
        if len(self._by_ticket) > _HELD_MAX:
            del self._by_ticket[next(iter(self._by_ticket))]

    def of(self, ticket: str) -> Mapping[str, str]:
        """Return the headers of a request; none where it had none, or began elsewhere."""
        return self._by_ticket.get(ticket, {})

    def forget(self, ticket: str) -> None:
        """Keep them no longer."""
        self._by_ticket.pop(ticket, None)

    def __len__(self) -> int:
        """Return of how many requests there are some."""
        return len(self._by_ticket)
