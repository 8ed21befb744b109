"""A nursery of workers that are there to be killed: it imports everything once and forks one process per life."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
from pathlib import Path
from typing import Literal

from quell.config import Secret
from quell.domain import (
    Effect,
    EffectState,
    Ending,
    Fence,
    FrozenCall,
    Happened,
    Intent,
    NotHappened,
    Recovery,
    RefusedError,
    Resource,
    Unclear,
)
from quell.runs import Connection, Database, Ledger, _ledger, system_clock
from quell.runs._database import open_database
from quell.runs._effect import key_of

CALLS = 8
TIMEOUT_S = 2.0
QUIET_S = 1.5
SUPERSEDED = 3


def recovery_of(call: int) -> Recovery:
    """Return the class of a call: all four in turn."""
    return list(Recovery)[call % len(Recovery)]


def intent_of(run: str, call: int) -> Intent:
    """Return one of the effects of a run."""
    frozen = FrozenCall(
        run=run,
        id=f"call-{call}",
        tool="scale",
        pin="sha256:1",
        arguments=json.dumps({"replicas": call}),
        resource=Resource(kind="Service", name=f"s{call}", environment="prod", units=1, host=""),
        digest=f"digest-{call}",
    )
    return Intent(
        call=frozen, recovery=recovery_of(call), user="ann", timeout_s=TIMEOUT_S, quiet_s=QUIET_S, attempts_max=50
    )


class Peer:
    """The client of the other side."""

    def __init__(self, port: int, recovery: Recovery) -> None:
        self._port, self._recovery = port, recovery

    def ask(self, method: str, key: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, f"/{self._recovery}/{key}")
            return connection.getresponse().status
        finally:
            connection.close()

    async def send(self, key: str, attempt: int) -> Ending:
        status = await asyncio.to_thread(self.ask, "POST", key)
        return Happened(result=f"attempt {attempt}") if status == http.HTTPStatus.OK else Unclear(detail=str(status))

    async def look(self, key: str) -> Ending:
        status = await asyncio.to_thread(self.ask, "GET", key)
        return Happened(result="seen") if status == http.HTTPStatus.OK else NotHappened(detail="nothing there")


def take_over(database: Database, run: str, *, token: str) -> Fence:
    """Hold a run as the executor does: a new dispatch under another token."""
    with database.writing() as connection:
        connection.run(
            "UPDATE quell_runs SET dispatch = dispatch + 1, token = :token WHERE id = :run", run=run, token=token
        )
        row = connection.one("SELECT dispatch FROM quell_runs WHERE id = :run", run=run)
    return Fence(run=run, dispatch=row.dispatch, token=token)


def joint(connection: Connection, effect: Effect) -> None:
    """Stand for what governance writes in the same transactions: one row each, which must be there once per moment."""
    connection.run(
        "INSERT INTO proof_audit (moment) VALUES (:moment)", moment=f"{effect.key}.{effect.state}.{effect.attempts}"
    )


async def live(plan: dict[str, str], *, database: Database, port: int) -> int:
    """Do all effects of the run, or be superseded."""
    if plan["recovery"] == "careless":
        _ledger.next_move = _careless  # type: ignore[attr-defined]  # this process is a mutant and dies soon
    fence = take_over(database, plan["run"], token=plan["token"])
    ledger = Ledger(database, clock=system_clock)
    for call in range(CALLS):
        intent, peer = intent_of(plan["run"], call), Peer(port, recovery_of(call))

        async def look(peer: Peer = peer, key: str = _key(intent)) -> Ending:
            return await peer.look(key)

        try:
            await ledger.perform(
                intent,
                send=peer.send,
                probe=look if intent.recovery is Recovery.PROBEABLE else None,
                fence=fence,
                on_intent=joint,
                on_start=joint,
                on_end=joint,
            )
        except RefusedError:
            return SUPERSEDED
    return 0


def _careless(effect: Effect, **_: object) -> Literal["send", "stop"]:
    """Send everything again that is not settled, as a retry loop would: what the proof must catch."""
    return "send" if effect.state in (EffectState.INTENT, EffectState.STARTED) else "stop"


def _key(intent: Intent) -> str:
    return key_of(intent.call)


def main() -> None:
    """Answer lines on standard input: a plan gives the pid of a new life, a pid waits for its end and gives its code."""
    url, directory, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if url:
        import psycopg  # noqa: F401, PLC0415 - imported once for every life
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            _, status = os.waitpid(asked, 0)
            told = os.waitstatus_to_exitcode(status)
        else:
            told = os.fork()
            if told == 0:
                code = 1
                try:
                    database = open_database(Secret(url), state_dir=directory)
                    code = asyncio.run(live(asked, database=database, port=port))
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
