"""Rows of approvals: requests, their calls and their votes, read and written inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import msgspec

from quell import telemetry
from quell.domain import (
    APPROVAL_NEXT,
    Approval,
    ApprovalStatus,
    ApprovalTerms,
    Principal,
    RefusedError,
    Signer,
    StepState,
    Vote,
    step_to,
)
from quell.governance._plan import digest_of, person, read, seal_bytes, vote_bytes, written
from quell.runs import Connection

TABLES: tuple[str, ...] = (
    (
        "CREATE TABLE IF NOT EXISTS quell_approvals (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, run TEXT NOT NULL,"
        " sameness TEXT NOT NULL, status TEXT NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL,"
        " requested_at TEXT NOT NULL, expires_at TEXT NOT NULL, settled_at TEXT, settled_by TEXT NOT NULL,"
        " settled_reason TEXT NOT NULL)"
    ),
    "CREATE INDEX IF NOT EXISTS quell_approvals_run ON quell_approvals (run, status)",
    "CREATE INDEX IF NOT EXISTS quell_approvals_open ON quell_approvals (tenant, status, requested_at)",
    (
        "CREATE TABLE IF NOT EXISTS quell_approval_calls (approval TEXT NOT NULL, position INTEGER NOT NULL,"
        " run TEXT NOT NULL, call TEXT NOT NULL, state TEXT NOT NULL, at TEXT, PRIMARY KEY (approval, position))"
    ),
    "CREATE INDEX IF NOT EXISTS quell_approval_calls_call ON quell_approval_calls (run, call)",
    (
        "CREATE TABLE IF NOT EXISTS quell_approval_votes (approval TEXT NOT NULL, person TEXT NOT NULL,"
        " verdict TEXT NOT NULL, tenant TEXT NOT NULL, voter TEXT NOT NULL, body TEXT NOT NULL, signature TEXT NOT NULL,"
        " at TEXT NOT NULL, took_ms BIGINT NOT NULL, PRIMARY KEY (approval, person, verdict))"
    ),
    "CREATE INDEX IF NOT EXISTS quell_approval_votes_at ON quell_approval_votes (tenant, at)",
    (
        "CREATE TABLE IF NOT EXISTS quell_approval_seals (approval TEXT PRIMARY KEY, principal TEXT NOT NULL,"
        " signature TEXT NOT NULL)"
    ),
)
_ENDED_SQL = "(settled_at IS NOT NULL AND settled_at < :before AND status <> 'approved' OR expires_at < :before)"

LIVE = (ApprovalStatus.REQUESTED, ApprovalStatus.APPROVED)
_STATUSES = frozenset(status.value for status in ApprovalStatus)
_LIVE_SQL = "('requested', 'approved')"


def stamp(at: datetime) -> str:
    """Write a time so that texts sort as times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def insert(connection: Connection, terms: ApprovalTerms, *, sameness: str) -> None:
    """Write a new request with its calls."""
    body = written(terms)
    connection.run(
        "INSERT INTO quell_approvals (id, tenant, run, sameness, status, digest, body, requested_at, expires_at,"
        " settled_at, settled_by, settled_reason) VALUES (:id, :tenant, :run, :sameness, :status, :digest, :body,"
        " :requested_at, :expires_at, NULL, '', '')",
        id=terms.id,
        tenant=terms.tenant,
        run=terms.run,
        sameness=sameness,
        status=ApprovalStatus.REQUESTED.value,
        digest=digest_of(body),
        body=body,
        requested_at=stamp(terms.requested_at),
        expires_at=stamp(terms.expires_at),
    )
    for position, asked in enumerate(terms.calls):
        connection.run(
            "INSERT INTO quell_approval_calls (approval, position, run, call, state, at)"
            " VALUES (:approval, :position, :run, :call, 'pending', NULL)",
            approval=terms.id,
            position=position,
            run=terms.run,
            call=asked.call.id,
        )


def seal(connection: Connection, terms: ApprovalTerms, *, principal: Principal, signer: Signer) -> None:
    """Sign a new request with whose it is, so that nobody lets people answer another one than was asked."""
    told = msgspec.json.encode(principal, order="sorted").decode()
    connection.run(
        "INSERT INTO quell_approval_seals (approval, principal, signature) VALUES (:approval, :principal, :signature)",
        approval=terms.id,
        principal=told,
        signature=signer.sign(seal_bytes(digest_of(written(terms)), principal=told)),
    )


def sealed(connection: Connection, approval: Approval, *, signers: Sequence[Signer]) -> Principal:
    """Return whose request it is. Raises RefusedError when it is not what was asked, as far as our keys can tell."""
    query = "SELECT principal, signature FROM quell_approval_seals WHERE approval = :approval"
    row = connection.first(query, approval=approval.id)
    message = b"" if row is None else seal_bytes(approval.digest, principal=row.principal)
    if row is None or not any(signer.verify(message, signature=row.signature) for signer in signers):
        raise RefusedError(
            f"approval {approval.id} does not carry the seal of what was asked: it was changed, or its key is gone",
            hint="ask for a new one, and see `quell audit verify`",
            code="mismatch",
        )
    return msgspec.json.decode(row.principal, type=Principal)


def forget(connection: Connection, *, before: datetime) -> int:
    """Remove the requests that ended before a moment, with all that hangs on them; return how many."""
    at = stamp(before)
    ended = f"SELECT id FROM quell_approvals WHERE {_ENDED_SQL}"
    for table in ("calls", "votes", "seals", "notices"):
        connection.run(f"DELETE FROM quell_approval_{table} WHERE approval IN ({ended})", before=at)
    return connection.run(f"DELETE FROM quell_approvals WHERE {_ENDED_SQL}", before=at)


def insert_vote(connection: Connection, vote: Vote, *, signature: str, took_ms: int) -> None:
    """Write a signed vote."""
    connection.run(
        "INSERT INTO quell_approval_votes (approval, person, verdict, tenant, voter, body, signature, at, took_ms)"
        " VALUES (:approval, :person, :verdict, :tenant, :voter, :body, :signature, :at, :took_ms)"
        # What is there already and did not count: signed by a key that is no more, or by nobody.
        " ON CONFLICT (approval, person, verdict) DO UPDATE SET tenant = excluded.tenant, voter = excluded.voter,"
        " body = excluded.body, signature = excluded.signature, at = excluded.at, took_ms = excluded.took_ms",
        approval=vote.approval,
        person=person(vote.voter),
        verdict=vote.verdict,
        tenant=vote.tenant,
        voter=vote.voter,
        body=msgspec.json.encode(vote, order="sorted").decode(),
        signature=signature,
        at=stamp(vote.at),
        took_ms=took_ms,
    )


def settle(
    connection: Connection, approval: Approval, *, to: ApprovalStatus, at: datetime, by: str, reason: str
) -> None:
    """Move a request along its life-cycle table; the caller holds its row. Raises RefusedError when it may not go."""
    status = step_to(APPROVAL_NEXT, approval.status, to)
    moved = connection.run(
        "UPDATE quell_approvals SET status = :status, settled_at = :at, settled_by = :by, settled_reason = :reason"
        " WHERE id = :id AND status = :was",
        status=status.value,
        at=stamp(at),
        by=by,
        reason=reason,
        id=approval.id,
        was=approval.status.value,
    )
    if moved != 1:
        raise RefusedError(f"approval {approval.id} was settled meanwhile", hint="read it again", code="gone")
    telemetry.count("approvals.settled", status=status.value)
    if approval.status is ApprovalStatus.REQUESTED:
        telemetry.measure(
            "approvals.wait", (at - approval.terms.requested_at).total_seconds(), {"status": status.value}
        )


def use_step(connection: Connection, approval: str, *, position: int, at: datetime) -> bool:
    """Take one call of an approval; True for the one who got it."""
    return (
        connection.run(
            "UPDATE quell_approval_calls SET state = 'used', at = :at"
            " WHERE approval = :approval AND position = :position AND state = 'pending'",
            approval=approval,
            position=position,
            at=stamp(at),
        )
        == 1
    )


def end_step(connection: Connection, approval: str, *, position: int, state: StepState, at: datetime) -> bool:
    """Write how a used call ended; True for the one who did."""
    return (
        connection.run(
            "UPDATE quell_approval_calls SET state = :state, at = :at"
            " WHERE approval = :approval AND position = :position AND state = 'used'",
            approval=approval,
            position=position,
            state=state,
            at=stamp(at),
        )
        == 1
    )


def find_of_call(connection: Connection, *, run: str, call: str, digest: str = "") -> str | None:
    """Return the approval of a call: the newest live one, else the newest that nothing replaced, else the newest.

    A model may use one id for several calls: with a digest only those of exactly this call count.
    """
    row = connection.first(
        "SELECT a.id FROM quell_approval_calls c JOIN quell_approvals a ON a.id = c.approval"
        " WHERE c.run = :run AND c.call = :call AND a.body LIKE :wanted"
        f" ORDER BY CASE WHEN a.status IN {_LIVE_SQL} THEN 0 WHEN a.status = 'superseded' THEN 2 ELSE 1 END, a.requested_at DESC, a.id DESC LIMIT 1",
        run=run,
        call=call,
        wanted=f"%{digest}%",
    )
    return None if row is None else row.id


def live_of_run(connection: Connection, run: str) -> list[str]:
    """Return the approvals of a run that are asked or given, oldest first."""
    query = f"SELECT id FROM quell_approvals WHERE run = :run AND status IN {_LIVE_SQL} ORDER BY requested_at, id"
    return [row.id for row in connection.all(query, run=run)]


def count_open(connection: Connection, tenant: str, *, at: datetime) -> int:
    """Count the requests of a tenant that wait for people."""
    row = connection.one(
        "SELECT COUNT(*) AS number FROM quell_approvals"
        " WHERE tenant = :tenant AND status = 'requested' AND expires_at > :at",
        tenant=tenant,
        at=stamp(at),
    )
    return int(row.number)


def load(
    connection: Connection, identifier: str, *, at: datetime, signers: Sequence[Signer], lock: str = ""
) -> Approval | None:
    """Read one approval as of a moment, with the votes whose signatures hold; `lock` is the SQL that keeps its row.

    Raises RefusedError when the stored request is not what its digest says.
    """
    row = connection.first(f"SELECT * FROM quell_approvals WHERE id = :id{lock}", id=identifier)
    if row is None:
        return None
    steps = connection.all(
        "SELECT state FROM quell_approval_calls WHERE approval = :approval ORDER BY position", approval=row.id
    )
    terms = _sound_terms(row.id, row.body, digest=row.digest, calls=len(steps), status=row.status)
    status = ApprovalStatus(row.status)
    if status in LIVE and terms.expires_at <= at:
        status = step_to(APPROVAL_NEXT, status, ApprovalStatus.EXPIRED)
    votes = _votes(connection, terms, digest=row.digest, signers=signers)
    settled_at = datetime.fromisoformat(row.settled_at) if row.settled_at else None
    return Approval(
        terms=terms,
        digest=row.digest,
        status=status,
        votes=votes,
        steps=tuple(cast("StepState", step.state) for step in steps),
        settled_at=settled_at,
        told=_told(terms, status, votes=votes, at=settled_at, by=row.settled_by, reason=row.settled_reason),
    )


def listed(
    connection: Connection, *, tenant: str, status: ApprovalStatus | None, run: str, at: datetime, items_max: int
) -> list[str]:
    """Return the ids of approvals, newest first; the status is as of the moment, whatever the row still says."""
    wanted = "" if status is None else " AND " + _status_sql(status)
    values: dict[str, str | int] = {} if status is None else {"status": status.value}
    if status in LIVE or status is ApprovalStatus.EXPIRED:
        values["at"] = stamp(at)
    if run:
        values["run"] = run
    rows = connection.all(
        f"SELECT id FROM quell_approvals WHERE tenant = :tenant{' AND run = :run' if run else ''}{wanted}"
        " ORDER BY requested_at DESC, id DESC LIMIT :items_max",
        tenant=tenant,
        items_max=items_max,
        **values,
    )
    return [row.id for row in rows]


def beginning_with(connection: Connection, text: str, *, tenant: str) -> list[str]:
    """Return up to two ids that begin with a text."""
    rows = connection.all(
        "SELECT id FROM quell_approvals WHERE tenant = :tenant AND substr(id, 1, :size) = :text ORDER BY id LIMIT 2",
        tenant=tenant,
        size=len(text),
        text=text,
    )
    return [row.id for row in rows]


def expire(connection: Connection, *, at: datetime) -> int:
    """Write down what has passed its time, and tell telemetry how many wait for people now."""
    may = [status.value for status, then in APPROVAL_NEXT.items() if ApprovalStatus.EXPIRED in then]
    marks = ", ".join(f"'{status}'" for status in may)
    expired = connection.run(
        f"UPDATE quell_approvals SET status = 'expired', settled_at = expires_at"
        f" WHERE status IN ({marks}) AND expires_at <= :at",
        at=stamp(at),
    )
    if expired:
        telemetry.count("approvals.settled", expired, status=ApprovalStatus.EXPIRED.value)
    row = connection.one("SELECT COUNT(*) AS number FROM quell_approvals WHERE status = 'requested'")
    telemetry.measure("approvals.waiting", int(row.number))
    return expired


def _status_sql(status: ApprovalStatus) -> str:
    if status is ApprovalStatus.EXPIRED:
        return f"(status = :status OR (status IN {_LIVE_SQL} AND expires_at <= :at))"
    return "status = :status" + (" AND expires_at > :at" if status in LIVE else "")


def _sound_terms(identifier: str, body: str, *, digest: str, calls: int, status: str) -> ApprovalTerms:
    """Read terms that nobody has changed since they were written. Raises RefusedError otherwise."""
    try:
        terms = read(body) if digest_of(body) == digest else None
    except msgspec.MsgspecError:
        terms = None
    if terms is None or terms.id != identifier or len(terms.calls) != calls or status not in _STATUSES:
        raise RefusedError(
            f"approval {identifier} was changed in the database", hint="see `quell audit verify`", code="mismatch"
        )
    return terms


def _votes(connection: Connection, terms: ApprovalTerms, *, digest: str, signers: Sequence[Signer]) -> tuple[Vote, ...]:
    rows = connection.all(
        "SELECT body, signature FROM quell_approval_votes WHERE approval = :approval ORDER BY at, person",
        approval=terms.id,
    )
    found = [(_vote(row.body), row.signature) for row in rows]
    return tuple(
        vote
        for vote, signature in found
        if vote is not None
        and _is_sound(vote, terms, digest=digest)
        and any(signer.verify(vote_bytes(vote), signature=signature) for signer in signers)
    )


def _vote(body: str) -> Vote | None:
    try:
        return msgspec.json.decode(body, type=Vote)
    except msgspec.MsgspecError:
        return None


def _is_sound(vote: Vote, terms: ApprovalTerms, *, digest: str) -> bool:
    """Judge a vote again when it is read: a row that somebody put there is no vote."""
    return (
        vote.approval == terms.id
        and vote.digest == digest
        and vote.tenant == terms.tenant
        and person(vote.voter) not in {person(subject) for subject in terms.barred}
        and not set(vote.roles).isdisjoint(terms.approver_roles)
        and terms.requested_at <= vote.at < terms.expires_at
    )


def approvers(votes: Sequence[Vote]) -> tuple[str, ...]:
    """Return the people who said yes, each once, oldest first."""
    return tuple({person(vote.voter): vote.voter for vote in votes if vote.verdict == "approve"}.values())


def _told(
    terms: ApprovalTerms, status: ApprovalStatus, *, votes: Sequence[Vote], at: datetime | None, by: str, reason: str
) -> str:
    when = f" at {at:%Y-%m-%d %H:%M:%S} UTC" if at else ""
    yes = " and ".join(approvers(votes))
    if status is ApprovalStatus.REQUESTED:
        missing = terms.quorum - len(approvers(votes))
        return f"waits for {missing} of {terms.quorum} approvals until {terms.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if status is ApprovalStatus.APPROVED:
        return f"approved by {yes}{when}, valid until {terms.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if status is ApprovalStatus.REJECTED:
        return f"rejected by {by}{when}: {reason}"
    if status is ApprovalStatus.EXPIRED:
        return f"expired at {terms.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if status is ApprovalStatus.SUPERSEDED:
        return f"void{when}: {reason}"
    return f"approved by {yes} and used{when}"
