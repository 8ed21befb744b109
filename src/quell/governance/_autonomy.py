"""How far an agent may go by itself: levels that are earned by verified outcomes, kept beside the records they follow from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec

from quell.audit import Audit
from quell.domain import (
    AuditKind,
    AuditRecord,
    AutonomyRecord,
    AutonomyScope,
    AutonomyStep,
    AutonomyView,
    Clock,
    JournalError,
    Level,
    Principal,
    RefusedError,
    ReviewVerdict,
    Standing,
    Trial,
    TrialOutcome,
    UsageError,
    is_person,
    may_do,
)
from quell.governance import _ladder
from quell.governance._plan import person
from quell.runs import Connection, Database

TABLES = (
    """CREATE TABLE IF NOT EXISTS quell_autonomy (
        tenant TEXT NOT NULL, workflow_digest TEXT NOT NULL, action_class TEXT NOT NULL, environment TEXT NOT NULL,
        level INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (tenant, workflow_digest, action_class, environment))""",
    """CREATE TABLE IF NOT EXISTS quell_autonomy_record (
        tenant TEXT NOT NULL, workflow_digest TEXT NOT NULL, action_class TEXT NOT NULL, environment TEXT NOT NULL,
        seq INTEGER NOT NULL, ref TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (tenant, workflow_digest, action_class, environment, seq))""",
    """CREATE INDEX IF NOT EXISTS quell_autonomy_record_ref
        ON quell_autonomy_record (tenant, workflow_digest, action_class, environment, ref)""",
)

_HERE = "tenant = :tenant AND workflow_digest = :digest AND action_class = :action_class AND environment = :environment"
_CONFIRMERS = frozenset({"approver", "admin"})
_REVIEWERS = frozenset({"operator", "approver", "admin"})
_REASON_MAX_CHARS = 500
"""Of a reason in the audit log: it stays with its record there, and is no text that is deleted after a time."""
_NO_AGENT = "the level follows from verified outcomes and from people's words, never from an agent's"
_VERDICTS: dict[ReviewVerdict, tuple[TrialOutcome, bool]] = {
    "agree": (TrialOutcome.VERIFIED_OK, False),
    "disagree": (TrialOutcome.HUMAN_DISAGREED, False),
    "violation": (TrialOutcome.VIOLATION, False),
    "severe": (TrialOutcome.FAILED, True),
}


class Autonomy:
    """Levels per workflow version, class of actions and environment; every verb runs in the caller's transaction.

    What a verb adds stands in the audit log too, in the same transaction: the head of the log is its last lock.
    """

    TABLES = TABLES

    def __init__(
        self, database: Database, *, clock: Clock, audit: Audit | None = None, clean: Callable[[str], str] = str
    ) -> None:
        """Take what it needs.

        Without `audit` nobody keeps the account, as where the statistics alone are tried; `clean` takes secrets out of
        the reasons that people give.
        """
        self._clock = clock
        self._audit = audit
        self._clean = clean
        self._for_update = database.for_update

    def level(self, connection: Connection, scope: AutonomyScope) -> Level:
        """Return the level that holds now: one row by its key."""
        row = connection.first(f"SELECT level FROM quell_autonomy WHERE {_HERE}", **_keys(scope))
        return Level(row.level) if row else Standing().level

    def record(
        self, connection: Connection, scope: AutonomyScope, trial: Trial, *, agreed_by: Principal | None = None
    ) -> AutonomyStep:
        """Add a verified outcome, and demote at once when a rule says so; the same trial again changes nothing.

        Raises:
            RefusedError: another outcome of the same `ref` is there, or it was not a person who agreed.
            UsageError: the trial names nothing that it is the outcome of.
        """
        if not trial.ref:
            raise UsageError("a trial names what it is the outcome of", hint="give the key of the effect as ref")
        if agreed_by is not None:
            self._check(agreed_by, scope, roles=_REVIEWERS, verb="autonomy.review")
        standing = self._held(connection, scope)
        record = AutonomyRecord(
            seq=standing.seq + 1,
            kind="trial",
            at=self._clock(),
            ref=trial.ref,
            outcome=trial.outcome,
            source=trial.source,
            is_severe=trial.is_severe,
            by=agreed_by.user if agreed_by else "",
        )
        history = self._history(connection, scope, ref=trial.ref)
        if history:
            first = history[0]
            if replace(record, seq=first.seq, at=first.at) == first:
                return AutonomyStep(record=first, before=standing, after=standing)
            raise RefusedError(
                f"{trial.ref} has an outcome already: {first.outcome}", hint="say what is new about it with a review"
            )
        return self._add(connection, scope, standing, record, history)

    def review(
        self, connection: Connection, scope: AutonomyScope, *, ref: str, verdict: ReviewVerdict, by: Principal | None
    ) -> AutonomyStep:
        """Say of an outcome that a person agrees with it, or that it was worse than it looked.

        Code may say by itself (`by=None`) that it broke a policy or caused an incident of the highest severity.

        Raises:
            UsageError: there is no such outcome.
            RefusedError: it was no person, or the outcome would look better than it does.
        """
        if by is not None:
            self._check(by, scope, roles=_REVIEWERS, verb="autonomy.review")
        elif verdict in {"agree", "disagree"}:
            raise RefusedError(f"only a person can {verdict} with an outcome", hint=_NO_AGENT)
        standing = self._held(connection, scope)
        history = self._history(connection, scope, ref=ref)
        if not history:
            raise UsageError(f"there is no outcome of {ref!r} here", hint="check the scope and the ref")
        outcome, is_severe = _VERDICTS[verdict]
        record = AutonomyRecord(
            seq=standing.seq + 1,
            kind="review",
            at=self._clock(),
            ref=ref,
            outcome=outcome,
            source=history[0].source,
            is_severe=is_severe,
            by=by.user if by else "",
        )
        if not _ladder.is_next(record, history=history):
            raise RefusedError(
                f"{ref} stands as {history[-1].outcome}, and a review only confirms or lowers an outcome",
                hint="nothing has to be done",
            )
        return self._add(connection, scope, standing, record, history)

    def promote(
        self,
        connection: Connection,
        scope: AutonomyScope,
        *,
        to: Level,
        by: Principal,
        owners: tuple[str, ...],
        reason: str,
    ) -> AutonomyStep:
        """Confirm a promotion; it holds as soon as enough people have, one of them no owner of the agent.

        Raises:
            RefusedError: it was no person or not one who may, or the evidence does not prove it.
        """
        self._check(by, scope, roles=_CONFIRMERS, verb="autonomy.promote")
        standing = self._held(connection, scope)
        if against := _ladder.blockers(standing, to=to):
            raise RefusedError(f"level {int(to)} is not earned: {'; '.join(against)}", hint="let it go on working")
        record = AutonomyRecord(
            seq=standing.seq + 1,
            kind="confirmation",
            at=self._clock(),
            by=by.user,
            is_approver=True,
            is_owner=person(by.user) in set(map(person, owners)),
            to=to,
            reason=self._clean(_worded(reason)),
        )
        return self._add(connection, scope, standing, record)

    def demote(
        self, connection: Connection, scope: AutonomyScope, *, to: Level, by: Principal, reason: str
    ) -> AutonomyStep:
        """Lower the level at once, by a person's word. Raises RefusedError when it would not be lower."""
        self._check(by, scope, roles=_REVIEWERS, verb="autonomy.demote")
        standing = self._held(connection, scope)
        if to >= standing.level:
            raise RefusedError(f"level {int(to)} is not below level {int(standing.level)}", hint="choose a lower one")
        record = AutonomyRecord(
            seq=standing.seq + 1,
            kind="demotion",
            at=self._clock(),
            by=by.user,
            to=to,
            reason=self._clean(_worded(reason)),
        )
        return self._add(connection, scope, standing, record)

    def show(self, connection: Connection, scope: AutonomyScope) -> AutonomyView:
        """Return the level, the evidence, and what is still needed for the next one."""
        row = connection.first(f"SELECT body FROM quell_autonomy WHERE {_HERE}", **_keys(scope))
        return _ladder.view(scope, _standing(row.body) if row else Standing())

    def scopes(self, connection: Connection, *, tenant: str) -> tuple[AutonomyScope, ...]:
        """Return every scope of a tenant that has records."""
        rows = connection.all(
            "SELECT tenant, workflow_digest, action_class, environment FROM quell_autonomy WHERE tenant = :tenant"
            " ORDER BY workflow_digest, action_class, environment",
            tenant=tenant,
        )
        return tuple(msgspec.convert(vars(row), AutonomyScope) for row in rows)

    def records(self, connection: Connection, scope: AutonomyScope) -> tuple[AutonomyRecord, ...]:
        """Return every record of a scope, oldest first."""
        rows = connection.all(f"SELECT body FROM quell_autonomy_record WHERE {_HERE} ORDER BY seq", **_keys(scope))
        return tuple(msgspec.json.decode(row.body, type=AutonomyRecord) for row in rows)

    @staticmethod
    def recompute(records: Iterable[AutonomyRecord]) -> Standing:
        """Return what records add up to, wherever they were kept. Raises JournalError when one is missing."""
        return _ladder.recompute(records)

    @staticmethod
    def audited(records: Iterable[AuditRecord]) -> dict[AutonomyScope, tuple[AutonomyRecord, ...]]:
        """Return the records of every scope that the audit log holds, oldest first, to be computed again.

        Raises JournalError for one that cannot be read.
        """
        found: dict[AutonomyScope, tuple[AutonomyRecord, ...]] = {}
        for record in records:
            if record.kind != AuditKind.AUTONOMY:
                continue
            try:
                told = json.loads(record.body)
                if not (isinstance(told, dict) and "autonomy_record" in told):
                    continue
                scope = msgspec.convert(told["scope"], AutonomyScope)
                kept = msgspec.convert(told["autonomy_record"], AutonomyRecord)
            except (ValueError, KeyError) as error:
                raise JournalError(
                    f"audit record {record.number} cannot be read: {error}", hint="`quell audit verify`"
                ) from error
            found[scope] = (*found.get(scope, ()), kept)
        return found

    def _held(self, connection: Connection, scope: AutonomyScope) -> Standing:
        """Return the standing, its row locked until the transaction ends."""
        if not scope.workflow_digest or not scope.environment or not scope.tenant:
            raise UsageError("a scope of autonomy is whole", hint="name tenant, workflow digest and environment")
        fresh = Standing()
        connection.run(
            "INSERT INTO quell_autonomy (tenant, workflow_digest, action_class, environment, level, body)"
            " VALUES (:tenant, :digest, :action_class, :environment, :level, :body) ON CONFLICT DO NOTHING",
            **_keys(scope),
            level=int(fresh.level),
            body=_text(fresh),
        )
        row = connection.one(f"SELECT body FROM quell_autonomy WHERE {_HERE}{self._for_update}", **_keys(scope))
        return _standing(row.body)

    def _history(self, connection: Connection, scope: AutonomyScope, *, ref: str) -> list[AutonomyRecord]:
        rows = connection.all(
            f"SELECT body FROM quell_autonomy_record WHERE {_HERE} AND ref = :ref ORDER BY seq", **_keys(scope), ref=ref
        )
        return [msgspec.json.decode(row.body, type=AutonomyRecord) for row in rows]

    def _add(
        self,
        connection: Connection,
        scope: AutonomyScope,
        before: Standing,
        record: AutonomyRecord,
        history: Iterable[AutonomyRecord] = (),
    ) -> AutonomyStep:
        after = _ladder.follow(before, record, history=tuple(history))
        connection.run(
            "INSERT INTO quell_autonomy_record (tenant, workflow_digest, action_class, environment, seq, ref, body)"
            " VALUES (:tenant, :digest, :action_class, :environment, :seq, :ref, :body)",
            **_keys(scope),
            seq=record.seq,
            ref=record.ref,
            body=_text(record),
        )
        connection.run(
            f"UPDATE quell_autonomy SET level = :level, body = :body WHERE {_HERE}",
            **_keys(scope),
            level=int(after.level),
            body=_text(after),
        )
        if self._audit is not None:
            told = _account(scope, record, after=after)
            self._audit.append(
                connection, self._audit.entry(AuditKind.AUTONOMY, run="", principal=record.by, body=told)
            )
        return AutonomyStep(record=record, before=before, after=after)

    def _check(self, by: Principal, scope: AutonomyScope, *, roles: frozenset[str], verb: str) -> None:
        if not is_person(by):
            raise RefusedError(f"an agent may not use {verb}", hint=_NO_AGENT)
        if by.tenant != scope.tenant:
            raise RefusedError("this level belongs to another tenant", hint="use an identity of that tenant")
        if not roles & set(by.roles) or not may_do(by, verb):
            raise RefusedError(f"{verb} needs one of the roles {', '.join(sorted(roles))}", hint="ask somebody who may")


def _account(scope: AutonomyScope, record: AutonomyRecord, *, after: Standing) -> Mapping[str, object]:
    """Write a record so that whoever holds the audit log computes the same level from it."""
    kept = replace(record, reason=record.reason[:_REASON_MAX_CHARS])
    return {
        "scope": msgspec.to_builtins(scope),
        "autonomy_record": msgspec.to_builtins(kept),
        "level": int(after.level),
    }


def _keys(scope: AutonomyScope) -> dict[str, str]:
    return {
        "tenant": scope.tenant,
        "digest": scope.workflow_digest,
        "action_class": scope.action_class.value,
        "environment": scope.environment,
    }


def _worded(reason: str) -> str:
    if not reason.strip():
        raise RefusedError("a reason is needed", hint="say in one sentence why")
    return reason.strip()


def _text(value: Standing | AutonomyRecord) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _standing(body: str) -> Standing:
    return msgspec.json.decode(body, type=Standing)
