"""Who outside was told of which request: claimed before it is sent, so that several servers tell it once."""

from __future__ import annotations

from datetime import timedelta

from quell.domain import Clock
from quell.governance._approval_rows import stamp
from quell.runs import Connection

TABLES: tuple[str, ...] = (
    (
        "CREATE TABLE IF NOT EXISTS quell_approval_notices (approval TEXT NOT NULL, channel TEXT NOT NULL,"
        " state TEXT NOT NULL, claimed_at TEXT NOT NULL, attempts INTEGER NOT NULL, PRIMARY KEY (approval, channel))"
    ),
)
ATTEMPTS_MAX = 3


class Notices:
    """The notices of one database. A server that dies while it sends loses its claim, and another sends it again."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    def is_due(self, connection: Connection, approval: str, *, channel: str, lease_s: float) -> bool:
        """Tell whether a request has yet to be told over a channel, and nobody is about to."""
        row = connection.first(
            "SELECT state, claimed_at, attempts FROM quell_approval_notices"
            " WHERE approval = :approval AND channel = :channel",
            approval=approval,
            channel=channel,
        )
        return row is None or (
            row.state == "open" and row.claimed_at < self._stale(lease_s) and row.attempts < ATTEMPTS_MAX
        )

    def claim(self, connection: Connection, approval: str, *, channel: str, lease_s: float) -> bool:
        """Take it on to tell a request over a channel; False when somebody else did, or it was tried often enough."""
        return (
            connection.run(
                "INSERT INTO quell_approval_notices (approval, channel, state, claimed_at, attempts)"
                " VALUES (:approval, :channel, 'open', :now, 1) ON CONFLICT (approval, channel) DO UPDATE"
                " SET claimed_at = :now, attempts = quell_approval_notices.attempts + 1"
                " WHERE quell_approval_notices.state = 'open' AND quell_approval_notices.claimed_at < :stale"
                " AND quell_approval_notices.attempts < :attempts_max",
                approval=approval,
                channel=channel,
                now=stamp(self._clock()),
                stale=self._stale(lease_s),
                attempts_max=ATTEMPTS_MAX,
            )
            == 1
        )

    def settle(self, connection: Connection, approval: str, *, channel: str) -> None:
        """Write down that it was told, and is not told again."""
        connection.run(
            "UPDATE quell_approval_notices SET state = 'told' WHERE approval = :approval AND channel = :channel",
            approval=approval,
            channel=channel,
        )

    def _stale(self, lease_s: float) -> str:
        return stamp(self._clock() - timedelta(seconds=lease_s))
