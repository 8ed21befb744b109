"""Approvals: people decide about exactly these calls, once, in time, and never about their own.

Every function that writes takes the caller's transaction, so that an approval is used up together with what rests on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

from quell.domain import (
    Approval,
    ApprovalRequest,
    ApprovalStatus,
    ApprovalTerms,
    ApproverHabit,
    AuditEntry,
    BoundExceededError,
    Clock,
    Consumption,
    Decided,
    DriftError,
    Entropy,
    FrozenCall,
    Presented,
    Principal,
    RefusedError,
    Signer,
    UsageError,
    Vote,
    new_id,
)
from quell.governance import _approval_account as account
from quell.governance import _approval_rows as rows
from quell.governance import _break_glass, _form, _notices, _plan, _question, _signing
from quell.governance._approval_rows import approvers, stamp
from quell.governance._break_glass import BreakGlassRows, check_person, given_reason
from quell.runs import Connection, Database

if TYPE_CHECKING:
    from quell.audit import Audit

_ASK_LOCK = 0x5155454C4C44
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXPIRES_MAX_S = 86_400.0
_EDITS_MAX = 64
_REPLAY_KEPT = timedelta(days=2)
_REPLAYS = (
    "CREATE TABLE IF NOT EXISTS quell_approval_replays (signature TEXT PRIMARY KEY, at TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS quell_approval_replays_at ON quell_approval_replays (at)",
)


class Approvals:
    """The approvals of one database."""

    TABLES: tuple[str, ...] = (*rows.TABLES, *_REPLAYS, *_break_glass.TABLES, *_notices.TABLES)
    """What `Connection.make_tables` makes."""

    signer = staticmethod(_signing.signer)
    """Builds what signs votes, from a key that stands outside the database."""
    webhook: TypeAlias = _signing.Webhook  # noqa: PYI042 - called like the builders beside it
    """Builds one approver's service: its requests, and what its answers are worth."""
    show = staticmethod(_question.shown)
    """Renders the question of an approval: whole, or a link where it does not fit."""
    form_of = staticmethod(_form.form_of)
    """Reads what servers want filled in by people."""
    visible = staticmethod(_question.visible)
    """Names every character of a text that does not show itself."""
    approval_id_of = staticmethod(_signing.approval_id_of)
    """Reads the id of an approval from AURA's decision id."""
    decision_id_of = staticmethod(_signing.decision_id_of)
    """Writes the id of an approval as AURA's decision id."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        entropy: Entropy,
        signers: Sequence[Signer],
        expires_s: float = 900.0,
        open_max: int = 256,
        clean: Callable[[str], str] = str,
        audit: Audit | None = None,
    ) -> None:
        """Take what it needs; the first signer signs, and all of them verify, so that keys can be rotated.

        `clean` takes secrets out of the reasons that people give. `audit` keeps what can not be signed, because a row
        that is set back is a true row of yesterday: that an approval was used, or void.
        """
        assert signers, "a key that signs votes"
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._signers = tuple(signers)
        self._expires_s = expires_s
        self._open_max = open_max
        self._clean = clean
        self._audit = audit
        self.break_glass = BreakGlassRows(clock=clock, entropy=entropy, signers=self._signers, clean=clean)
        """Authority taken in emergencies."""
        self.notices = _notices.Notices(clock=clock)
        """Who outside was told of which request."""

    def ask(self, connection: Connection, request: ApprovalRequest, *, expires_s: float | None = None) -> Approval:
        """Write a request for decision, or return the same one that is asked or given already.

        Raises:
            RefusedError: nobody may approve it, or people rejected exactly this in this run.
            BoundExceededError: too many requests of the tenant wait for people.
            UsageError: it is no plan.
        """
        barred = request.barred if _plan.is_word_to_oneself(request) else (request.principal.user, *request.barred)
        return self._ask(connection, request, expires_s=expires_s, barred=barred, supersedes="")

    def edit(
        self, connection: Connection, identifier: str, request: ApprovalRequest, *, by: Principal, digest_seen: str
    ) -> Approval:
        """Replace a request by one with other calls; who edits it may not approve it any more than who asked.

        Raises RefusedError when the old one is settled, is another's, may not be decided by this person, is not what
        they saw, or would not change.
        """
        old = self._held(connection, identifier, tenant=by.tenant)
        self.editable(connection, old, by=by, digest_seen=digest_seen)
        asker = (request.principal.tenant, request.principal.user, request.calls[0].call.run if request.calls else "")
        if asker != (old.terms.tenant, old.terms.requester, old.terms.run):
            raise RefusedError("an edit is of the same run for the same person", hint="ask anew instead")
        if [asked.call for asked in old.terms.calls] == [asked.call for asked in request.calls]:
            raise UsageError("the edit changes nothing", hint="give other arguments, or approve it as it is")
        barred = (*old.terms.barred, by.user)
        return self._ask(connection, request, expires_s=None, barred=barred, supersedes=old.id)

    def editable(self, connection: Connection, old: Approval, *, by: Principal, digest_seen: str) -> Principal:
        """Return whose request it is that a person wants to edit. Raises RefusedError when they may not."""
        self._check_eligible(old.terms, by)
        _check_seen(old, digest_seen=digest_seen)
        if old.status not in rows.LIVE:
            raise _gone(old)
        return rows.sealed(connection, old, signers=self._signers)

    def edited(self, connection: Connection, call: FrozenCall, *, tenant: str) -> tuple[Approval, str] | None:
        """Return the approval and the arguments that people put in the place of a call's; None when nobody did.

        Raises RefusedError when their edit has ended unused: the call as it was does not come back by that.
        """
        if not (_plan.is_plain(call.run) and _plan.is_plain(call.id)):
            return None
        newest = self.find(connection, rows.find_of_call(connection, run=call.run, call=call.id) or "", tenant=tenant)
        if newest is None or not newest.terms.supersedes:
            return None
        chain, older = [newest], newest.terms.supersedes
        while older and len(chain) < _EDITS_MAX and (found := self.find(connection, older, tenant=tenant)):
            chain.append(found)
            older = found.terms.supersedes
        rows.sealed(connection, newest, signers=self._signers)
        known = {asked.call.digest for each in chain for asked in each.terms.calls if asked.call.id == call.id}
        if call.digest not in known:
            return None
        if newest.status not in {*rows.LIVE, ApprovalStatus.CONSUMED}:
            raise RefusedError(
                f"people edited this call, and the edit, approval {newest.id}, {_is(newest)}",
                hint="what was asked before the edit is void; make a new call, under a new id",
                code="gone",
            )
        position = _plan.find_position(newest.terms, call=call.id)
        assert position is not None, "it was found by its call"
        return newest, newest.terms.calls[position].call.arguments

    def answers(self, connection: Connection, call: FrozenCall, *, approval: str, tenant: str) -> str:
        """Return what those who approved a call by this approval filled into its server's form; empty when nobody did.

        Raises RefusedError when it is not of exactly this call, or they do not say the same: nothing may be sent then.
        """
        found = self.find(connection, approval, tenant=tenant)
        if found is None or all(asked.call != call for asked in found.terms.calls):
            raise RefusedError("nobody approved what the server asks about this call", hint="ask anew")
        said = {vote.answers for vote in found.votes if vote.verdict == "approve"}
        if len(said) != 1:
            raise RefusedError("those who approved it do not say the same to the server", hint="ask anew")
        return said.pop()

    def decide(
        self,
        connection: Connection,
        identifier: str,
        *,
        by: Principal,
        verdict: Literal["approve", "reject"],
        digest_seen: str,
        reason: str = "",
        answers: Mapping[str, object] | None = None,
    ) -> Decided:
        """Count one person's answer; the quorum decides, one rejection too.

        `answers` fill in the form of the tool's server, where there is one; everybody who approves gives the same.

        Raises:
            RefusedError: `unknown` here, `forbidden` to this person, not what was seen (`mismatch`), or too late (`gone`).
            UsageError: a rejection without a reason, less of the digest than identifies it, or a form not filled in.
        """
        told = self._clean(given_reason(reason, why="a rejection")) if verdict == "reject" or reason else ""
        approval = self._held(connection, identifier, tenant=by.tenant)
        self._check_eligible(approval.terms, by)
        _check_seen(approval, digest_seen=digest_seen)
        rows.sealed(connection, approval, signers=self._signers)
        if any((_plan.person(vote.voter), vote.verdict) == (_plan.person(by.user), verdict) for vote in approval.votes):
            return Decided(approval=approval, change="none", told=f"you said so already; it {_is(approval)}")
        if approval.status is not ApprovalStatus.REQUESTED:
            raise _gone(approval)
        given = self._filled(approval, answers or {}) if verdict == "approve" else ""
        self._vote(connection, approval, by=by, verdict=verdict, reason=told, answers=given)
        after = self._held(connection, identifier, tenant=by.tenant)
        if verdict == "reject":
            self._settle(connection, after, to=ApprovalStatus.REJECTED, by=by.user, reason=told)
        elif len(approvers(after.votes)) >= after.terms.quorum:
            self._settle(connection, after, to=ApprovalStatus.APPROVED, by=by.user, reason="")
        done = self._held(connection, identifier, tenant=by.tenant)
        is_settled = done.status is not ApprovalStatus.REQUESTED
        return Decided(approval=done, change="settled" if is_settled else "counted", told=f"it {_is(done)}")

    def void(self, connection: Connection, identifier: str, *, reason: str) -> bool:
        """Take back a request, or what is left of a plan; False when there was nothing left of it."""
        approval = self._void(connection, identifier, reason=reason)
        if approval is not None:
            self._keep_account(connection, approval, reason=reason)
        return approval is not None

    def _void(self, connection: Connection, identifier: str, *, reason: str) -> Approval | None:
        approval = self._load(connection, identifier, lock=self._database.for_update)
        if approval is None or approval.status not in rows.LIVE:
            return None
        self._settle(connection, approval, to=ApprovalStatus.SUPERSEDED, by="", reason=reason)
        return approval

    def valid(self, connection: Connection, presented: Presented) -> int:
        """Count the people who approved exactly what stands ready, for the facts of policy.

        0 when anything differs, and while a plan waits for more of them than this call of it would need.
        """
        try:
            approval, _ = self._standing(connection, presented, lock="")
        except RefusedError:
            return 0
        people = len(approvers(approval.votes))
        return people if len(approval.terms.calls) == 1 or people >= approval.terms.quorum else 0

    def consume(self, connection: Connection, presented: Presented) -> Consumption:
        """Use up the approval of a call, in the transaction that writes the intent of its effect.

        Time is judged here, after the row is held. Raises RefusedError when there is none of exactly this, in time and by
        enough people, and DriftError when a plan was left: nothing may run, and `voiding` voids the rest.
        """
        approval, position = self._standing(connection, presented, lock=self._database.for_update)
        terms, now = approval.terms, self._clock()
        people = approvers(approval.votes)
        if approval.status is not ApprovalStatus.APPROVED or len(people) < max(
            terms.quorum, _plan.least_quorum(terms.calls)
        ):
            raise RefusedError(f"approval {terms.id} {_is(approval)}", hint="wait for people, then call again")
        if any(vote.verdict == "reject" for vote in approval.votes):
            raise RefusedError(f"approval {terms.id} was rejected", hint="ask for a new one", code="gone")
        if self._audit is not None:
            account.check(connection, approval, position=position)
        if not rows.use_step(connection, terms.id, position=position, at=now):
            raise RefusedError(f"approval {terms.id} was already used", hint="ask for a new approval", code="gone")
        if position == len(terms.calls) - 1:
            self._settle(connection, approval, to=ApprovalStatus.CONSUMED, by=presented.principal.user, reason="")
        return Consumption(
            approval=terms.id, digest=approval.digest, position=position, of=len(terms.calls), voters=people
        )

    def step_ended(
        self, connection: Connection, used: Consumption, *, ended: Literal["done", "failed"]
    ) -> tuple[AuditEntry, ...]:
        """Write how a used call ended. The next call of a plan waits for it; a failed one voids the rest.

        Returns what the caller has to append to the audit log, after all other locks of its transaction.
        """
        if used.of == 1 or not rows.end_step(
            connection, used.approval, position=used.position, state=ended, at=self._clock()
        ):
            return ()
        why = f"call {used.position + 1} of the plan failed"
        void = self._void(connection, used.approval, reason=why) if ended == "failed" else None
        if self._audit is None or void is None:
            return ()
        return (account.void_entry(self._audit, void, reason=why),)

    @contextmanager
    def voiding(self) -> Iterator[None]:
        """Void the rest of a plan, durably, when what runs inside was refused because the plan was left."""
        try:
            yield
        except DriftError as error:
            # The transaction that found out is undone by now, and what it would have written with it.
            with self._database.writing() as connection:
                self.void(connection, error.approval, reason=str(error))
            raise

    def find(self, connection: Connection, identifier: str, *, tenant: str) -> Approval | None:
        """Return an approval of a tenant, as of now."""
        approval = self._load(connection, identifier, lock="")
        return approval if approval is not None and approval.terms.tenant == tenant else None

    def named(self, connection: Connection, beginning: str, *, tenant: str) -> str:
        """Return the one id of a tenant that begins so. Raises UsageError when there is none, or more than one."""
        found = rows.beginning_with(connection, beginning, tenant=tenant) if _plan.is_plain(beginning) else []
        if beginning in found:
            return beginning
        if len(found) == 1 and not beginning.endswith("_"):
            return found[0]
        if found:
            raise UsageError(f"{beginning!r} does not name one approval", hint="write more of it")
        raise UsageError(f"there is no approval {beginning!r}", hint="`quell approval list --all` names them")

    def listed(
        self,
        connection: Connection,
        *,
        tenant: str,
        status: ApprovalStatus | None = None,
        run: str = "",
        items_max: int = 100,
    ) -> tuple[Approval, ...]:
        """Return the approvals of a tenant, newest first, as of now."""
        at = self._clock()
        ids = rows.listed(connection, tenant=tenant, status=status, run=run, at=at, items_max=items_max)
        found = (rows.load(connection, identifier, at=at, signers=self._signers) for identifier in ids)
        return tuple(approval for approval in found if approval is not None)

    def expire(self, connection: Connection) -> int:
        """Write down what has passed its time, and forget old signatures; what is expired was so without it."""
        now = self._clock()
        connection.run("DELETE FROM quell_approval_replays WHERE at < :at", at=stamp(now - _REPLAY_KEPT))
        return rows.expire(connection, at=now)

    def forget(self, connection: Connection, *, before: datetime) -> int:
        """Remove requests that ended before that; what became of them stays in the audit log. Return how many."""
        return rows.forget(connection, before=before)

    def take_signature(self, connection: Connection, signature: str) -> None:
        """Take a webhook's signature, once, in the transaction that decides. Raises RefusedError for a repetition."""
        taken = connection.run(
            "INSERT INTO quell_approval_replays (signature, at) VALUES (:signature, :at) ON CONFLICT DO NOTHING",
            signature=hashlib.sha256(signature.encode()).hexdigest(),
            at=stamp(self._clock()),
        )
        if taken != 1:
            raise _signing.unsigned()

    def habits(self, connection: Connection, *, tenant: str, since: datetime) -> tuple[ApproverHabit, ...]:
        """Say how each person decides: how much, how often yes, and how fast."""
        votes = connection.all(
            "SELECT voter, verdict, took_ms FROM quell_approval_votes WHERE tenant = :tenant AND at >= :since"
            " ORDER BY voter",
            tenant=tenant,
            since=stamp(since),
        )
        by_voter: dict[str, list[tuple[str, int]]] = {}
        for vote in votes:
            by_voter.setdefault(vote.voter, []).append((vote.verdict, vote.took_ms))
        return tuple(
            ApproverHabit(
                approver=voter,
                decisions=len(given),
                approved=sum(verdict == "approve" for verdict, _ in given),
                median_s=median(took_ms for _, took_ms in given) / 1000,
                under_3s=sum(took_ms < 3000 for _, took_ms in given),
            )
            for voter, given in by_voter.items()
        )

    def _ask(
        self,
        connection: Connection,
        request: ApprovalRequest,
        *,
        expires_s: float | None,
        barred: tuple[str, ...],
        supersedes: str,
    ) -> Approval:
        terms = self._terms(request, expires_s=expires_s, barred=barred, supersedes=supersedes)
        sameness = _sameness(terms)
        if self._database.dialect == "postgresql":
            connection.all("SELECT pg_advisory_xact_lock(:lock)", lock=_ASK_LOCK)
        if same := self._asked_before(connection, terms, sameness=sameness):
            return same
        calls = {asked.call.id for asked in terms.calls}
        why, by = f"asked again otherwise: {terms.id}", ""
        if supersedes:
            why, by = f"edited: {terms.id}", barred[-1]
        replaced = []
        for identifier in rows.live_of_run(connection, terms.run):
            old = self._load(connection, identifier, lock=self._database.for_update)
            is_same_call = old and not calls.isdisjoint(asked.call.id for asked in old.terms.calls)
            if old and old.status in rows.LIVE and (is_same_call or old.id == supersedes):
                self._settle(connection, old, to=ApprovalStatus.SUPERSEDED, by=by, reason=why)
                replaced.append(old)
        if rows.count_open(connection, terms.tenant, at=terms.requested_at) >= self._open_max:
            raise BoundExceededError(
                f"open approval requests of tenant {terms.tenant}", limit=self._open_max, hint="answer or void some"
            )
        _plan.check_size(terms)
        rows.insert(connection, terms, sameness=sameness)
        rows.seal(connection, terms, principal=request.principal, signer=self._signers[0])
        # Last: whoever has the end of the audit log waits for no row any more.
        for old in replaced:
            self._keep_account(connection, old, reason=why)
        return self._held(connection, terms.id, tenant=terms.tenant)

    def _keep_account(self, connection: Connection, approval: Approval, *, reason: str) -> None:
        if self._audit is not None:
            self._audit.append(connection, account.void_entry(self._audit, approval, reason=reason))

    def _asked_before(self, connection: Connection, terms: ApprovalTerms, *, sameness: str) -> Approval | None:
        """Return the live request of exactly this. Raises RefusedError when people rejected the same calls in this run.

        Other words of the model make no other request: it cannot ask until somebody is tired.
        """
        query = "SELECT id FROM quell_approvals WHERE run = :run AND sameness = :sameness ORDER BY requested_at DESC, id DESC"
        for row in connection.all(query, run=terms.run, sameness=sameness):
            old = self._load(connection, row.id, lock="")
            if old is not None and old.status is ApprovalStatus.REJECTED:
                raise RefusedError(
                    f"approval {old.id} {_is(old)}", hint="do something else, or ask a person", code="gone"
                )
            if old is not None and old.status in rows.LIVE and _unmoved(old.terms) == _unmoved(terms):
                return old
        return None

    def _terms(
        self, request: ApprovalRequest, *, expires_s: float | None, barred: tuple[str, ...], supersedes: str
    ) -> ApprovalTerms:
        quorum = _plan.check_request(request)
        lasts_s = self._expires_s if expires_s is None else expires_s
        if not 0 < lasts_s <= _EXPIRES_MAX_S:
            raise UsageError(f"an approval lasts up to {_EXPIRES_MAX_S:g} seconds", hint="900 is usual")
        principal, verdict, now = request.principal, request.verdict, self._clock()
        return ApprovalTerms(
            id=new_id("apr", at=now, entropy=_signing.uuid_entropy(self._entropy(10))),
            tenant=principal.tenant,
            run=request.calls[0].call.run,
            requester=principal.user,
            barred=tuple(dict.fromkeys(barred)),
            agent=principal.agent,
            workflow=principal.workflow,
            workflow_digest=principal.workflow_digest,
            policy_digest=verdict.policy_digest,
            policies=verdict.policies,
            reason=verdict.reason,
            evidence_digest=request.evidence_digest,
            approver_roles=verdict.approver_roles,
            quorum=quorum,
            calls=request.calls,
            explanation=request.explanation.encode(errors="replace").decode(),
            supersedes=supersedes,
            requested_at=now,
            expires_at=now + timedelta(seconds=lasts_s),
            gate=request.gate,
        )

    def standing(self, connection: Connection, presented: Presented) -> Approval:
        """Return the approval of exactly what stands ready, decided or not. Raises as `consume` does."""
        return self._standing(connection, presented, lock="")[0]

    def _standing(self, connection: Connection, presented: Presented, *, lock: str) -> tuple[Approval, int]:
        """Return the approval of what stands ready, and which of its calls that is, when nothing differs."""
        run, principal = presented.call.run, presented.principal
        if not (_plan.is_plain(run) and _plan.is_plain(presented.call.id)):
            raise RefusedError("the id of a call holds what no id holds", hint="use letters, digits, `_`, `-`")
        identifier = presented.approval or rows.find_of_call(connection, run=run, call=presented.call.id)
        approval = self._load(connection, identifier, lock=lock) if identifier else None
        if approval is None or approval.terms.tenant != principal.tenant or approval.terms.run != run:
            raise self._unasked(connection, presented)
        terms = approval.terms
        position = _plan.find_position(terms, call=presented.call.id)
        if approval.status not in rows.LIVE:
            raise _gone(approval)
        rows.sealed(connection, approval, signers=self._signers)
        if position is None:
            raise _plan.refuse_drift(terms, ("the call itself",))
        if differences := _plan.drifted(terms, presented, position=position, digest=approval.digest):
            raise _plan.refuse_drift(terms, differences)
        _plan.check_turn(terms, approval.steps, position=position)
        return approval, position

    def _unasked(self, connection: Connection, presented: Presented) -> RefusedError:
        """Return the refusal of a call that nobody was asked about; in the middle of a plan it is a drift."""
        for identifier in rows.live_of_run(connection, presented.call.run):
            plan = self._load(connection, identifier, lock="")
            is_plan = plan is not None and len(plan.terms.calls) > 1 and plan.status is ApprovalStatus.APPROVED
            if plan is not None and is_plan:
                return _plan.refuse_drift(plan.terms, ("the call itself",))
        return RefusedError("nobody was asked about this call", hint="ask for approval first", code="unknown")

    def _check_eligible(self, terms: ApprovalTerms, by: Principal) -> None:
        check_person(by, what="decide about approvals", scope="approval.decide")
        if _plan.person(by.user) in {_plan.person(subject) for subject in terms.barred}:
            who = "who asked for it" if _plan.person(by.user) == _plan.person(terms.requester) else "who edited it"
            hint = "ask somebody else: `quell key new NAME --role approver` makes a key for them"
            raise RefusedError(f"{by.user} is {who} and may not decide about it", hint=hint)
        if set(by.roles).isdisjoint(terms.approver_roles):
            raise RefusedError(
                f"{by.user} has none of the roles that may decide", hint=f"roles: {', '.join(terms.approver_roles)}"
            )

    def _filled(self, approval: Approval, answers: Mapping[str, object]) -> str:
        """Return what is filled into a server's form. Raises UsageError, or RefusedError when others said otherwise."""
        told = _form.filled(approval.terms.calls, answers)
        if self._clean(told) != told:
            raise UsageError("an answer holds a secret of ours", hint="no server is told one through a form")
        others = {vote.answers for vote in approval.votes if vote.verdict == "approve"}
        if others - {told}:
            raise RefusedError(
                f"somebody filled in the form of approval {approval.id} otherwise: {', '.join(sorted(others))}",
                hint="read it again, and give the same answers, or reject it",
                code="mismatch",
            )
        return told

    def _vote(
        self,
        connection: Connection,
        approval: Approval,
        *,
        by: Principal,
        verdict: Literal["approve", "reject"],
        reason: str,
        answers: str,
    ) -> None:
        now = self._clock()
        vote = Vote(
            approval=approval.id,
            digest=approval.digest,
            verdict=verdict,
            voter=by.user,
            tenant=by.tenant,
            roles=tuple(sorted(set(by.roles) & set(approval.terms.approver_roles))),
            reason=reason,
            at=now,
            answers=answers,
        )
        took_ms = int((now - approval.terms.requested_at) / timedelta(milliseconds=1))
        signature = self._signers[0].sign(_plan.vote_bytes(vote))
        rows.insert_vote(connection, vote, signature=signature, took_ms=max(0, took_ms))

    def _held(self, connection: Connection, identifier: str, *, tenant: str) -> Approval:
        """Read an approval and hold its row; another tenant's is as unknown as none."""
        approval = self._load(connection, identifier, lock=self._database.for_update)
        if approval is None or approval.terms.tenant != tenant:
            raise RefusedError(f"there is no approval {identifier!r}", hint="quell approval list", code="unknown")
        return approval

    def _load(self, connection: Connection, identifier: str, *, lock: str) -> Approval | None:
        if not _plan.is_plain(identifier):
            return None
        # The clock is read when the row is held: whoever waited for it may have waited too long.
        if lock:
            connection.all(f"SELECT id FROM quell_approvals WHERE id = :id{lock}", id=identifier)
        return rows.load(connection, identifier, at=self._clock(), signers=self._signers)

    def _settle(self, connection: Connection, approval: Approval, *, to: ApprovalStatus, by: str, reason: str) -> None:
        rows.settle(connection, approval, to=to, at=self._clock(), by=by, reason=reason)


def _sameness(terms: ApprovalTerms) -> str:
    """Name what would happen, whoever's words and whichever ids it comes under."""
    calls = [(asked.call.tool, asked.call.pin, asked.call.arguments, asked.call.resource) for asked in terms.calls]
    return hashlib.sha256(repr(calls).encode()).hexdigest()


def _unmoved(terms: ApprovalTerms) -> ApprovalTerms:
    """Return terms without their id, their times and the model's words."""
    return replace(terms, id="", requested_at=_EPOCH, expires_at=_EPOCH, explanation="")


def _check_seen(approval: Approval, *, digest_seen: str) -> None:
    if not _plan.is_seen(approval.digest, seen=digest_seen):
        raise RefusedError(
            f"you saw something else than what approval {approval.id} asks now",
            hint=f"read it again: quell approval show {approval.id}",
            code="mismatch",
        )


def _gone(approval: Approval) -> RefusedError:
    return RefusedError(f"approval {approval.id} {_is(approval)}", hint="ask for a new one", code="gone")


def _is(approval: Approval) -> str:
    return approval.told if approval.told.startswith(("waits", "expired")) else f"is {approval.told}"
