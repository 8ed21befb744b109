"""Questions of tool servers to people: kept until people approved, then answered with their yes.

A server that asks before it goes on gets no answer from a model. The call is asked about again, under an id of its own,
with the server's words shown as what they are; approving it is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from quell.domain import Ask, CallRequest, Clock, NeedsPeople, Reply
from quell.runs import Connection

_ROUND = re.compile(r"(?P<base>.+)~(?P<round>[1-9])")
_ROUNDS_MAX = 5


class NeedsPeopleError(Exception):
    """A server asks people before it goes on; nothing was done."""

    def __init__(self, needs: NeedsPeople) -> None:
        super().__init__("the server asks people before it goes on")
        self.needs = needs


class ServerAsks:
    """The open questions of one journal."""

    TABLES: tuple[str, ...] = (
        (
            "CREATE TABLE IF NOT EXISTS quell_server_asks (run TEXT NOT NULL, call TEXT NOT NULL, needs TEXT NOT NULL,"
            " at TEXT NOT NULL, PRIMARY KEY (run, call))"
        ),
    )

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    def keep(self, connection: Connection, request: CallRequest, needs: NeedsPeople) -> None:
        """Keep what a server asked about a call."""
        connection.run(
            "INSERT INTO quell_server_asks (run, call, needs, at) VALUES (:run, :call, :needs, :at)"
            " ON CONFLICT (run, call) DO UPDATE SET needs = excluded.needs, at = excluded.at",
            run=request.call.run,
            call=request.call.id,
            needs=msgspec.json.encode(needs).decode(),
            at=self._clock().isoformat(),
        )

    @staticmethod
    def retain(connection: Connection, *, before: datetime) -> int:
        """Delete questions from before then whose runs are gone; return how many."""
        return connection.run(
            "DELETE FROM quell_server_asks WHERE at < :before"
            " AND NOT EXISTS (SELECT 1 FROM quell_runs WHERE quell_runs.id = quell_server_asks.run)",
            before=before.isoformat(),
        )

    @staticmethod
    def find(connection: Connection, *, run: str, call: str) -> NeedsPeople | None:
        """Return what a server asked about a call, if it did."""
        where = "SELECT needs FROM quell_server_asks WHERE run = :run AND call = :call"
        row = connection.first(where, run=run, call=call)
        return None if row is None else msgspec.json.decode(row.needs, type=NeedsPeople)


def next_round(call: str) -> str | None:
    """Return the id under which a call is asked about again; None when it was asked about often enough."""
    found = _ROUND.fullmatch(call)
    base, number = (found["base"], int(found["round"])) if found else (call, 0)
    return f"{base}~{number + 1}" if number < _ROUNDS_MAX else None


def base_of(call: str) -> str:
    """Return the id of the call that a round goes on with."""
    found = _ROUND.fullmatch(call)
    return found["base"] if found else call


def is_round(call: str) -> bool:
    """Tell whether a call may be the continuation of one."""
    return _ROUND.fullmatch(call) is not None


def replies_of(asks: Sequence[Ask], *, answers: str = "") -> Mapping[str, Reply] | None:
    """Return the answers that an approval stands for, each question's own fields to it; None where they are none.

    A yes alone answers fields of yes or no, and a page that was to be visited.
    """
    said = json.loads(answers) if answers else {}
    replies = {}
    for ask in asks:
        schema = json.loads(ask.schema) if ask.schema else {}
        fields = schema.get("properties") or {}
        wanted = schema.get("required") or []
        yes = {name: True for name in wanted if (fields.get(name) or {}).get("type") == "boolean"}
        content = yes | {name: value for name, value in said.items() if name in fields}
        if not set(wanted) <= set(content):
            return None
        replies[ask.key] = Reply(action="accept", content=json.dumps(content))
    return replies
