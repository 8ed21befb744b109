"""An approval runs exactly what was shown, once, in time, by other people: every bound field is tried, and every person."""

from __future__ import annotations

import hashlib
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from proofs._proof import Promise, Result, Scale
from quell.config import Secret
from quell.domain import (
    Approval,
    ApprovalRequest,
    ApprovalTerms,
    AskedCall,
    FrozenCall,
    Presented,
    Principal,
    QuellError,
    Resource,
    ToolClass,
    Verdict,
)
from quell.governance import Approvals
from quell.runs import Connection, Database
from quell.runs._database import open_database

KEY = b"the key of votes in this proof only"
CONSUMERS = 50
RUN = Principal(user="ana", tenant="acme", roles=("operator",), agent="bot", workflow="heal", workflow_digest="w1")
PEOPLE = tuple(Principal(user=name, tenant="acme", roles=("approver",)) for name in ("bo", "cy", "di"))
CALL = FrozenCall(
    run="run_1",
    id="call_1",
    tool="scale",
    pin="sha256:aa",
    arguments='{"replicas":6}',
    resource=Resource(kind="Service", name="payments", environment="prod", units=6, host="api.example"),
    digest="dd",
)
ASKED = AskedCall(
    call=CALL, tool_class=ToolClass.IRREVERSIBLE, diff="+6", revert_plan='[{"tool":"scale"}]', facts=(("tier", "1"),)
)
ASK = Verdict(
    decision="ask", policies=("ask",), reason="it acts", approver_roles=("approver",), quorum=2, policy_digest="p1"
)
REQUEST = ApprovalRequest(principal=RUN, calls=(ASKED,), verdict=ASK, evidence_digest="e1", explanation="it is slow")
READY = Presented(
    principal=RUN, call=CALL, policy_digest="p1", evidence_digest="e1", diff=ASKED.diff, revert_plan=ASKED.revert_plan
)

Find = Callable[[Presented], object]
Put = Callable[[Presented, object], Presented]


class _UndoneError(Exception):
    """Ends a transaction so that nothing of it stays."""


class FakeTime:
    """A clock that is set."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


class Bench:
    """Approvals over one database, and a count of what broke."""

    def __init__(self, database: Database, *, kind: type[Approvals], rng: random.Random) -> None:
        self.database = database
        self.clock = FakeTime()
        self.approvals = kind(
            database, clock=self.clock, entropy=rng.randbytes, signers=(Approvals.signer(KEY),), open_max=100_000
        )
        self.cases = 0
        self.failures: list[str] = []

    def ask(self, request: ApprovalRequest = REQUEST) -> Approval:
        with self.database.writing(durability="written") as connection:
            return self.approvals.ask(connection, request)

    def vote(self, approval: Approval, by: Principal, *, seen: str = "") -> None:
        with self.database.writing(durability="written") as connection:
            self.approvals.decide(
                connection, approval.id, by=by, verdict="approve", digest_seen=seen or approval.digest
            )

    def approved(self, request: ApprovalRequest = REQUEST) -> Approval:
        approval = self.ask(request)
        for by in PEOPLE[:2]:
            self.vote(approval, by)
        return approval

    def runs(self, ready: Presented, *, tampered: Callable[[Connection], object] | None = None) -> bool:
        """Tell whether a call would run, and undo it; facts of policy must not see an approval either."""
        did_run = False
        with suppress(_UndoneError), self.database.writing(durability="written") as connection:
            if tampered:
                tampered(connection)
            with suppress(QuellError):
                self.approvals.consume(connection, ready)
                did_run = True
            raise _UndoneError
        return did_run

    def expect(
        self, *, runs: bool, ready: Presented, told: str, tampered: Callable[[Connection], object] | None = None
    ) -> None:
        self.cases += 1
        if self.runs(ready, tampered=tampered) is not runs:
            self.failures.append(f"{told}: {'did not run' if runs else 'ran'}")


@contextmanager
def bench(*, kind: type[Approvals], seed: int, url: str = "") -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="quell-proof-") as directory:
        database = open_database(Secret(url), state_dir=Path(directory))
        try:
            with database.writing(durability="written") as connection:
                connection.make_tables(Approvals.TABLES)
            yield Bench(database, kind=kind, rng=random.Random(seed))
        finally:
            database.close()


def bound() -> dict[str, tuple[Find, Put]]:
    """Return every field of what stands ready that an approval is bound to: how to read it, and how to change it."""
    found: dict[str, tuple[Find, Put]] = {}
    for name in ("policy_digest", "evidence_digest", "diff", "revert_plan"):
        found[name] = (lambda r, n=name: getattr(r, n), lambda r, v, n=name: replace(r, **{n: v}))  # type: ignore[misc]
    for name in ("user", "tenant", "agent", "workflow", "workflow_digest"):
        found[f"principal.{name}"] = (
            lambda r, n=name: getattr(r.principal, n),  # type: ignore[misc]
            lambda r, v, n=name: replace(r, principal=replace(r.principal, **{n: v})),  # type: ignore[misc]
        )
    for field in fields(FrozenCall):
        if field.name != "resource":
            found[f"call.{field.name}"] = (
                lambda r, n=field.name: getattr(r.call, n),  # type: ignore[misc]
                lambda r, v, n=field.name: replace(r, call=replace(r.call, **{n: v})),  # type: ignore[misc]
            )
    for field in fields(Resource):
        found[f"resource.{field.name}"] = (
            lambda r, n=field.name: getattr(r.call.resource, n),  # type: ignore[misc]
            lambda r, v, n=field.name: replace(  # type: ignore[misc]
                r, call=replace(r.call, resource=replace(r.call.resource, **{n: v}))
            ),
        )
    return found


def mutations(value: object) -> list[object]:
    """Return other values, at least six, among them those that look the same to a person."""
    if isinstance(value, bool | datetime | tuple):
        raise TypeError(type(value).__name__)
    if isinstance(value, int):
        return [value + 1, value - 1, 0, -value, value * 10, value + 2**32]
    text = str(value)
    return [
        other
        for other in dict.fromkeys(
            [
                "",
                text + " ",
                text.upper(),
                text[:-1],
                text + text,
                text + "\u200b",
                text[:-1] + chr(ord(text[-1]) ^ 1),
                "x" + text,
            ]
        )
        if other != text
    ]


def field_cases(at: Bench) -> None:
    """Try every bound field of what stands ready, alone."""
    approval = at.approved()
    at.expect(runs=True, ready=READY, told="exactly what was approved")
    for name, (find, put) in bound().items():
        others = mutations(find(READY))
        assert len(others) >= 6, name
        for value in others:
            changed = put(READY, value)
            at.expect(runs=False, ready=changed, told=f"{name} = {value!r}")
            at.expect(runs=False, ready=replace(changed, approval=approval.id), told=f"{name} = {value!r} by id")
    at.expect(runs=True, ready=READY, told="exactly what was approved, in the end")


def _other_terms(terms: ApprovalTerms) -> Iterator[tuple[str, ApprovalTerms]]:
    """Change every field of the stored terms in six ways or more."""
    texts = [field.name for field in fields(terms) if isinstance(getattr(terms, field.name), str)]
    for name in texts:
        for value in mutations(getattr(terms, name) or "apr_00"):
            if value != getattr(terms, name):
                yield f"stored {name} = {value!r}", replace(terms, **{name: value})  # type: ignore[arg-type]
    for value in mutations(terms.quorum):
        yield f"stored quorum = {value}", replace(terms, quorum=int(str(value)))
    for name in ("barred", "policies", "approver_roles"):
        for value in ((), ("x",), ("bo",), ("bo", "cy"), ("approver", "operator"), ("operator",)):
            yield f"stored {name} = {value}", replace(terms, **{name: value})  # type: ignore[arg-type]
    for name in ("requested_at", "expires_at"):
        for moved_s in (-3600.0, -1.0, -1e-6, 1e-6, 1.0, 3600.0):
            moved = getattr(terms, name) + timedelta(seconds=moved_s)
            yield f"stored {name} moved by {moved_s} s", replace(terms, **{name: moved})
    for changed in (
        replace(ASKED, tool_class=ToolClass.REVERSIBLE),
        replace(ASKED, facts=()),
        replace(ASKED, diff=""),
        replace(ASKED, revert_plan=""),
        replace(ASKED, call=replace(CALL, arguments='{"replicas":60}')),
        replace(ASKED, call=replace(CALL, id="call_2")),
    ):
        yield "stored call", replace(terms, calls=(changed,))
    yield "stored calls twice", replace(terms, calls=(ASKED, replace(ASKED, call=replace(CALL, id="call_2"))))


def stored_cases(at: Bench) -> None:
    """Let somebody who may write the database, and has no key of votes, change what was approved under the votes."""
    approval = at.approved()
    for told, terms in _other_terms(approval.terms):
        body = msgspec.json.encode(terms, order="sorted").decode()
        digest = hashlib.sha256(b"quell approval v1\n" + body.encode()).hexdigest()

        def tamper(connection: Connection, body: str = body, digest: str = digest) -> None:
            connection.run("UPDATE quell_approvals SET body = :body, digest = :digest", body=body, digest=digest)

        for ready in (READY, _ready_for(terms)):
            at.expect(runs=False, ready=ready, told=told, tampered=tamper)
    for sql in (
        "UPDATE quell_approval_votes SET body = replace(body, 'cy', 'bo')",
        "UPDATE quell_approval_votes SET signature = '' WHERE person = 'cy'",
        "UPDATE quell_approval_votes SET signature = upper(signature)",
        "UPDATE quell_approval_votes SET body = replace(body, 'approver', 'admin')",
        "DELETE FROM quell_approval_votes WHERE person = 'bo'",
        "UPDATE quell_approval_votes SET body = (SELECT MIN(body) FROM quell_approval_votes)",
    ):
        at.expect(runs=False, ready=READY, told=sql, tampered=lambda connection, sql=sql: connection.run(sql))  # type: ignore[misc]


def rejected_cases(at: Bench) -> None:
    """Let two approve and a third reject in time, and somebody set the row back to approved."""
    asked = replace(REQUEST, verdict=replace(ASK, quorum=3))
    approval = at.approved(asked)
    with at.database.writing(durability="written") as connection:
        at.approvals.decide(
            connection, approval.id, by=PEOPLE[2], verdict="reject", digest_seen=approval.digest, reason="no"
        )
    for sql in (
        "UPDATE quell_approvals SET status = 'rejected'",
        "UPDATE quell_approvals SET status = 'requested'",
        "UPDATE quell_approvals SET status = 'approved'",
        "UPDATE quell_approvals SET status = 'APPROVED'",
    ):
        at.expect(runs=False, ready=READY, told=f"rejected, then {sql}", tampered=lambda c, sql=sql: c.run(sql))  # type: ignore[misc]


def _ready_for(terms: ApprovalTerms) -> Presented:
    """Return what would have to stand ready for the changed terms."""
    asked = terms.calls[0]
    return Presented(
        principal=replace(
            RUN,
            user=terms.requester,
            tenant=terms.tenant,
            agent=terms.agent,
            workflow=terms.workflow,
            workflow_digest=terms.workflow_digest,
        ),
        call=replace(asked.call, run=terms.run),
        policy_digest=terms.policy_digest,
        evidence_digest=terms.evidence_digest,
        diff=asked.diff,
        revert_plan=asked.revert_plan,
    )


def people_cases(at: Bench) -> None:
    """Try every quorum that is none: one person twice, who asked, other tenants, other roles, agents."""
    bo, cy = PEOPLE[:2]
    wrong = {
        "the same person twice": bo,
        "the same person in capitals": replace(bo, user="BO"),
        "the same person with blanks": replace(bo, user=" bo"),
        "the same person in wide letters": replace(bo, user="\uff42\uff4f"),
        "who asked": replace(cy, user="ana"),
        "who asked, in capitals": replace(cy, user="ANA"),
        "another tenant": replace(cy, tenant="other"),
        "no tenant": replace(cy, tenant=""),
        "no role": replace(cy, roles=()),
        "another role": replace(cy, roles=("operator",)),
        "a role in capitals": replace(cy, roles=("APPROVER",)),
        "an agent": replace(cy, agent="bot"),
        "an agent with tools": replace(cy, agent_tools=("*",)),
        "a workflow": replace(cy, workflow="heal"),
        "a narrow credential": replace(cy, scopes=("tool:read",)),
        "nobody": replace(cy, user=""),
    }
    for number, (told, second) in enumerate(wrong.items()):
        call = replace(CALL, run=f"run_p{number}")
        approval = at.ask(replace(REQUEST, calls=(replace(ASKED, call=call),)))
        ready = replace(READY, call=call)
        at.vote(approval, bo)
        at.expect(runs=False, ready=ready, told="one of two")
        with suppress(QuellError):
            at.vote(approval, second)
        at.expect(runs=False, ready=ready, told=told)
        with suppress(QuellError):
            at.vote(approval, cy, seen="0" * 64)
        at.expect(runs=False, ready=ready, told=f"{told}, and another who saw something else")
        with suppress(QuellError):
            at.vote(approval, cy)
        at.expect(runs=True, ready=ready, told=f"{told}, and another who may")


def time_cases(at: Bench) -> None:
    """Try the last moment, the first too late, and a second use."""
    approval = at.approved(replace(REQUEST, calls=(replace(ASKED, call=replace(CALL, run="run_t")),)))
    ready = replace(READY, call=replace(CALL, run="run_t"))
    began, ends = at.clock.at, approval.terms.expires_at
    for late_us in (-1, 0, 1, 1_000_000, 86_400_000_000):
        at.clock.at = ends + timedelta(microseconds=late_us)
        at.expect(runs=late_us < 0, ready=ready, told=f"{late_us} microseconds after its end")
    at.clock.at = began
    with suppress(QuellError), at.database.writing(durability="written") as connection:
        at.approvals.consume(connection, ready)
    at.expect(runs=False, ready=ready, told="a second time")
    late = at.ask(replace(REQUEST, calls=(replace(ASKED, call=replace(CALL, run="run_u")),)))
    at.clock.at = late.terms.expires_at
    for by in PEOPLE:
        with suppress(QuellError):
            at.vote(late, by)
    at.clock.at = began
    at.expect(runs=False, ready=replace(READY, call=replace(CALL, run="run_u")), told="approved too late")


def race(at: Bench, *, number: int, consumers: int = CONSUMERS) -> None:
    """Let many consumers try to use one approval at once; one effect must come of it."""
    call = replace(CALL, run=f"run_r{number}")
    at.approved(replace(REQUEST, calls=(replace(ASKED, call=call),)))
    effects: list[int] = []
    gate = threading.Barrier(consumers)

    def consume(worker: int) -> None:
        gate.wait()
        with suppress(QuellError):
            with at.database.writing(durability="written") as connection:
                at.approvals.consume(connection, replace(READY, call=call))
            effects.append(worker)

    threads = [threading.Thread(target=consume, args=(worker,)) for worker in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at.cases += 1
    if len(effects) != 1:
        at.failures.append(f"{len(effects)} of {consumers} racing consumers had an effect on {at.database.dialect}")


@contextmanager
def a_postgres() -> Iterator[str]:
    """Give the URL of a new database, or nothing where no PostgreSQL can be had."""
    try:
        from tests._postgres import fresh_database, running_postgres  # noqa: PLC0415 - needs an optional package
    except ImportError:
        yield ""
        return
    try:
        server = running_postgres()
        url = server.__enter__()
    except ImportError:
        yield ""
        return
    with nullcontext():
        try:
            with fresh_database(url) as database:
                yield database
        finally:
            server.__exit__(None, None, None)


def sequential(*, kind: type[Approvals], seed: int) -> tuple[int, list[str]]:
    """Try everything that one thread can try."""
    cases, failures = 0, []
    for attempt in (field_cases, stored_cases, rejected_cases, people_cases, time_cases):
        with bench(kind=kind, seed=seed) as at:
            attempt(at)
            cases += at.cases
            failures += at.failures
    return cases, failures


def approval_binding(scale: Scale, seed: int, *, kind: type[Approvals] = Approvals) -> Result:
    """Try to run what was not approved; count what ran."""
    cases, failures = sequential(kind=kind, seed=seed)
    rounds = 20 if scale == "full" else 1
    with a_postgres() as url:
        for where in ("", url) if url else ("",):
            with bench(kind=kind, seed=seed, url=where) as at:
                for number in range(rounds):
                    race(at, number=number)
                cases += at.cases
                failures += at.failures
    places = "SQLite and PostgreSQL" if url else "SQLite; no PostgreSQL here"
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=True,
        note=f"{len(bound())} bound fields and every stored one, each in 6 ways or more; {rounds} races of {CONSUMERS} on {places}",
        failures=tuple(failures[:5]),
    )


PROMISES = (
    Promise(
        name="approval-binding",
        promise="An approval runs exactly what was shown, once, in time, approved by other people.",
        try_it=approval_binding,
    ),
)
