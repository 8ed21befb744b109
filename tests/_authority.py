"""A small real database for tests of human authority, and requests to put into it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quell.config import Secret
from quell.domain import (
    Approval,
    ApprovalRequest,
    AskedCall,
    Clock,
    FrozenCall,
    Presented,
    Principal,
    Resource,
    ToolClass,
    Verdict,
)
from quell.governance import Approvals, Switches
from quell.runs import Database
from quell.runs._database import open_database

KEY = b"a key of votes that is long enough"
RUN = Principal(user="ana", tenant="acme", roles=("operator",), agent="sre-bot", workflow="heal", workflow_digest="w1")
ANA = Principal(user="ana", tenant="acme", roles=("operator", "approver"))
BO = Principal(user="bo", tenant="acme", roles=("approver",))
CY = Principal(user="cy", tenant="acme", roles=("approver",))
DEE = Principal(user="dee", tenant="acme", roles=("viewer",))
EVE = Principal(user="eve", tenant="other", roles=("approver", "admin"))
ADA = Principal(user="ada", tenant="acme", roles=("admin",))
ASK = Verdict(
    decision="ask",
    policies=("effects-ask",),
    reason="effects need a person",
    approver_roles=("approver", "admin"),
    quorum=1,
    policy_digest="p1",
)


@contextmanager
def database(
    directory: Path, *, url: str = "", tables: Sequence[str] = (*Approvals.TABLES, *Switches.TABLES)
) -> Iterator[Database]:
    """Open a database with the tables of human authority in it."""
    opened = open_database(Secret(url), state_dir=directory)
    try:
        with opened.writing(durability="written") as connection:
            connection.make_tables(tables)
        yield opened
    finally:
        opened.close()


def frozen(
    number: int = 1, *, run: str = "run_1", tool: str = "scale", arguments: str = '{"replicas":6}'
) -> FrozenCall:
    """Return a call that no longer changes."""
    resource = Resource(kind="Service", name="payments", environment="prod", units=6, host="")
    return FrozenCall(
        run=run,
        id=f"call_{number}",
        tool=tool,
        pin="sha256:pin",
        arguments=arguments,
        resource=resource,
        digest=f"d{number}",
    )


def asked(
    number: int = 1, *, tool_class: ToolClass = ToolClass.REVERSIBLE, call: FrozenCall | None = None
) -> AskedCall:
    """Return a call to ask people about."""
    return AskedCall(
        call=call or frozen(number),
        tool_class=tool_class,
        diff="-replicas: 4\n+replicas: 6",
        revert_plan='[{"tool":"scale","arguments":{"replicas":4}}]',
        facts=(("tier", "1"), ("owner", "team-pay")),
    )


def request(
    *calls: AskedCall, verdict: Verdict = ASK, principal: Principal = RUN, explanation: str = ""
) -> ApprovalRequest:
    """Return a request for one call, or for a plan."""
    return ApprovalRequest(
        principal=principal,
        calls=calls or (asked(),),
        verdict=verdict,
        evidence_digest="e1",
        explanation=explanation,
    )


def presented(one: AskedCall | None = None, *, approval: str = "", principal: Principal = RUN) -> Presented:
    """Return what stands ready, exactly as it was asked."""
    one = one or asked()
    return Presented(
        principal=principal,
        call=one.call,
        policy_digest="p1",
        evidence_digest="e1",
        diff=one.diff,
        revert_plan=one.revert_plan,
        approval=approval,
    )


@dataclass
class Desk:
    """Approvals over one database, with a transaction for each verb."""

    database: Database
    clock: Clock
    approvals: Approvals

    def ask(self, *calls: AskedCall, expires_s: float | None = None, **more: object) -> Approval:
        with self.database.writing(durability="written") as connection:
            return self.approvals.ask(connection, request(*calls, **more), expires_s=expires_s)  # type: ignore[arg-type]

    def say(
        self, approval: Approval, by: Principal, *, verdict: str = "approve", seen: str | None = None, reason: str = ""
    ) -> str:
        with self.database.writing(durability="written") as connection:
            return self.approvals.decide(
                connection,
                approval.id,
                by=by,
                verdict=verdict,  # type: ignore[arg-type]
                digest_seen=approval.digest if seen is None else seen,
                reason=reason,
            ).change

    def use(self, one: Presented) -> int:
        with self.approvals.voiding(), self.database.writing(durability="written") as connection:
            return self.approvals.consume(connection, one).position

    def use_well(self, one: Presented) -> int:
        with self.approvals.voiding(), self.database.writing(durability="written") as connection:
            used = self.approvals.consume(connection, one)
            self.approvals.step_ended(connection, used, ended="done")
            return used.position

    def valid(self, one: Presented) -> int:
        with self.database.reading() as connection:
            return self.approvals.valid(connection, one)

    def get(self, approval: Approval) -> Approval:
        with self.database.reading() as connection:
            found = self.approvals.find(connection, approval.id, tenant=approval.terms.tenant)
        assert found is not None
        return found


@contextmanager
def desk(directory: Path, *, clock: Clock, url: str = "", kind: type[Approvals] = Approvals) -> Iterator[Desk]:
    """Open approvals over a new database."""
    with database(directory, url=url) as opened:
        approvals = kind(opened, clock=clock, entropy=os.urandom, signers=(Approvals.signer(KEY),))
        yield Desk(database=opened, clock=clock, approvals=approvals)


def other(call: FrozenCall, **changes: str) -> FrozenCall:
    """Return the call with another field."""
    return replace(call, **changes)  # type: ignore[arg-type]
