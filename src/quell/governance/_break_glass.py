"""Authority taken in an emergency: by a person with the role, for half an hour, with a reason, reviewed by another.

It lifts what policies say that it lifts, and nothing else: what is done under it is decided, signed and audited as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from quell.domain import (
    BreakGlass,
    Clock,
    Entropy,
    Principal,
    RefusedError,
    Signer,
    UsageError,
    is_person,
    may_do,
    new_id,
)
from quell.governance._approval_rows import stamp
from quell.governance._plan import person
from quell.runs import Connection

TABLES: tuple[str, ...] = (
    (
        "CREATE TABLE IF NOT EXISTS quell_break_glass (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, user_name TEXT NOT NULL,"
        " run TEXT NOT NULL, reason TEXT NOT NULL, opened_at TEXT NOT NULL, expires_at TEXT NOT NULL,"
        " review_due_at TEXT NOT NULL, reviewed_at TEXT, reviewed_by TEXT NOT NULL, review TEXT NOT NULL)"
    ),
    "CREATE INDEX IF NOT EXISTS quell_break_glass_user ON quell_break_glass (tenant, user_name, expires_at)",
    ("CREATE TABLE IF NOT EXISTS quell_break_glass_seals (break_glass TEXT PRIMARY KEY, signature TEXT NOT NULL)"),
)
_SEAL_DOMAIN = b"quell break-glass seal v1\n"
OPEN_ROLE = "break-glass"
REVIEW_ROLES = frozenset({"admin", "auditor"})
LASTS = timedelta(minutes=30)
REVIEW_WITHIN = timedelta(hours=24)
REASON_MAX_CHARS = 2_000


def given_reason(reason: str, *, why: str) -> str:
    """Return a reason without the blanks around it. Raises UsageError when there is none, or far too much."""
    told = reason.replace("\x00", "\ufffd").encode(errors="replace").decode().strip()
    if not told:
        raise UsageError(f"{why} needs a reason", hint="say why in one sentence; it is kept")
    if len(told) > REASON_MAX_CHARS:
        raise UsageError(f"the reason is longer than {REASON_MAX_CHARS} characters", hint="link to the rest")
    return told


def check_person(by: Principal, *, what: str, scope: str) -> None:
    """Check that a person acts, no agent for them, with a credential for this. Raises RefusedError."""
    if not by.user or not is_person(by):
        raise RefusedError(f"only a person may {what}, not an agent", hint="do it yourself, under your own login")
    if not may_do(by, scope):
        raise RefusedError(f"this credential may not {what}", hint=f"give it the scope verb:{scope}")


class BreakGlassRows:
    """Emergencies of one database."""

    def __init__(
        self, *, clock: Clock, entropy: Entropy, signers: Sequence[Signer], clean: Callable[[str], str] = str
    ) -> None:
        """Take what it needs; `clean` takes secrets out of the reasons that people give.

        The first signer seals what is opened: who writes the database gives nobody authority by a row.
        """
        self._clock = clock
        self._signers = tuple(signers)
        self._entropy = entropy
        self._clean = clean

    def open(self, connection: Connection, *, by: Principal, reason: str, run: str = "") -> BreakGlass:
        """Take emergency authority for half an hour, for one run or for what the person does directly.

        Raises:
            RefusedError: no person, or without the role.
            UsageError: no reason.
        """
        check_person(by, what="break the glass", scope="break-glass.open")
        if OPEN_ROLE not in by.roles:
            raise RefusedError(f"{by.user} has not the role {OPEN_ROLE}", hint="ask somebody who has it")
        now = self._clock()
        opened = BreakGlass(
            id=new_id("brk", at=now, entropy=self._entropy(10)),
            tenant=by.tenant,
            user=by.user,
            run=run,
            reason=self._clean(given_reason(reason, why="breaking the glass")),
            opened_at=now,
            expires_at=now + LASTS,
            review_due_at=now + REVIEW_WITHIN,
            reviewed_at=None,
            reviewed_by="",
            review="",
        )
        connection.run(
            "INSERT INTO quell_break_glass (id, tenant, user_name, run, reason, opened_at, expires_at, review_due_at,"
            " reviewed_at, reviewed_by, review) VALUES (:id, :tenant, :user_name, :run, :reason, :opened_at,"
            " :expires_at, :review_due_at, NULL, '', '')",
            id=opened.id,
            tenant=opened.tenant,
            user_name=opened.user,
            run=run,
            reason=opened.reason,
            opened_at=stamp(now),
            expires_at=stamp(opened.expires_at),
            review_due_at=stamp(opened.review_due_at),
        )
        connection.run(
            "INSERT INTO quell_break_glass_seals (break_glass, signature) VALUES (:break_glass, :signature)",
            break_glass=opened.id,
            signature=self._signers[0].sign(_seal_bytes(opened)),
        )
        return opened

    @staticmethod
    def told(opened: BreakGlass) -> dict[str, object]:
        """Return what the event of an opening says; without the reason, as one stream of events serves every tenant."""
        return {
            "emergency": opened.id,
            "by": opened.user,
            "tenant": opened.tenant,
            "expires_at": opened.expires_at.isoformat(),
            "review_due_at": opened.review_due_at.isoformat(),
        }

    def covers(self, connection: Connection, principal: Principal, *, run: str) -> str:
        """Return the id of the emergency that covers a principal in a run now; empty when none does.

        An agent is covered only in the run that the person named.
        """
        is_direct = not (principal.agent or principal.workflow) and principal.agent_tools is None
        directly = " OR run = ''" if is_direct else ""
        rows = connection.all(
            "SELECT * FROM quell_break_glass WHERE tenant = :tenant AND user_name = :user_name"
            f" AND opened_at <= :now AND expires_at > :now AND ((run = :run AND run <> ''){directly})"
            " ORDER BY id DESC LIMIT 100",
            tenant=principal.tenant,
            user_name=principal.user,
            now=stamp(self._clock()),
            run=run,
        )
        found = (_read(row.__dict__) for row in rows)
        return next((each.id for each in found if self._is_sealed(connection, each)), "")

    def review(self, connection: Connection, identifier: str, *, by: Principal, review: str) -> BreakGlass:
        """Write down what another person makes of an emergency. Raises RefusedError when it may not be this one."""
        check_person(by, what="review an emergency", scope="break-glass.review")
        found = self._find(connection, identifier, tenant=by.tenant)
        if REVIEW_ROLES.isdisjoint(by.roles):
            raise RefusedError(f"{by.user} may not review", hint=f"roles that may: {', '.join(sorted(REVIEW_ROLES))}")
        if person(found.user) == person(by.user):
            raise RefusedError("nobody reviews their own emergency", hint="ask another reviewer")
        told = self._clean(given_reason(review, why="a review"))
        done = connection.run(
            "UPDATE quell_break_glass SET reviewed_at = :at, reviewed_by = :by, review = :review"
            " WHERE id = :id AND reviewed_at IS NULL",
            at=stamp(self._clock()),
            by=by.user,
            review=told,
            id=identifier,
        )
        if done != 1:
            raise RefusedError(
                f"{identifier} was reviewed by {found.reviewed_by or 'another'} already", hint="read it", code="gone"
            )
        return self._find(connection, identifier, tenant=by.tenant)

    def unreviewed(self, connection: Connection, *, tenant: str) -> tuple[BreakGlass, ...]:
        """Return the emergencies that nobody has reviewed, the longest waiting first."""
        rows = connection.all(
            "SELECT * FROM quell_break_glass WHERE tenant = :tenant AND reviewed_at IS NULL ORDER BY review_due_at, id",
            tenant=tenant,
        )
        return tuple(_read(row.__dict__) for row in rows)

    def overdue(self, connection: Connection, *, tenant: str) -> tuple[BreakGlass, ...]:
        """Return the emergencies that nobody has reviewed in time, the longest waiting first."""
        now = self._clock()
        return tuple(each for each in self.unreviewed(connection, tenant=tenant) if each.review_due_at <= now)

    def listed(self, connection: Connection, *, tenant: str, rows_max: int) -> tuple[BreakGlass, ...]:
        """Return emergencies, reviewed or not, the newest first."""
        rows = connection.all(
            "SELECT * FROM quell_break_glass WHERE tenant = :tenant ORDER BY opened_at DESC, id DESC LIMIT :most",
            tenant=tenant,
            most=rows_max,
        )
        return tuple(_read(row.__dict__) for row in rows)

    def check_reviewed(self, connection: Connection, *, tenant: str) -> None:
        """Raise RefusedError while an emergency of the tenant waits for its review past its time."""
        if late := self.overdue(connection, tenant=tenant):
            names = ", ".join(each.id for each in late[:3]) + (" and more" if len(late) > 3 else "")
            raise RefusedError(
                f"{len(late)} break-glass past the time of review: {names}",
                hint="first another person with the role admin or auditor reviews: quell break-glass review ID",
            )

    def _is_sealed(self, connection: Connection, opened: BreakGlass) -> bool:
        query = "SELECT signature FROM quell_break_glass_seals WHERE break_glass = :id"
        row = connection.first(query, id=opened.id)
        message = _seal_bytes(opened)
        return row is not None and any(signer.verify(message, signature=row.signature) for signer in self._signers)

    def _find(self, connection: Connection, identifier: str, *, tenant: str) -> BreakGlass:
        row = connection.first(
            "SELECT * FROM quell_break_glass WHERE id = :id AND tenant = :tenant", id=identifier, tenant=tenant
        )
        if row is None:
            raise RefusedError(f"there is no emergency {identifier!r}", hint="list those unreviewed", code="unknown")
        return _read(row.__dict__)


def _seal_bytes(opened: BreakGlass) -> bytes:
    """Return the bytes of an emergency that are signed: all that was true when it was opened."""
    bare = replace(opened, reviewed_at=None, reviewed_by="", review="")
    return _SEAL_DOMAIN + msgspec.json.encode(bare, order="sorted")


def _read(row: dict[str, str | None]) -> BreakGlass:
    reviewed_at = row["reviewed_at"]
    return BreakGlass(
        id=str(row["id"]),
        tenant=str(row["tenant"]),
        user=str(row["user_name"]),
        run=str(row["run"]),
        reason=str(row["reason"]),
        opened_at=datetime.fromisoformat(str(row["opened_at"])),
        expires_at=datetime.fromisoformat(str(row["expires_at"])),
        review_due_at=datetime.fromisoformat(str(row["review_due_at"])),
        reviewed_at=datetime.fromisoformat(reviewed_at) if reviewed_at else None,
        reviewed_by=str(row["reviewed_by"]),
        review=str(row["review"]),
    )
