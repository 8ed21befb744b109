"""What people need to use their authority: organs of the guard on one journal, without tools, servers or policies."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from quell.app._key_file import key_of
from quell.app._run_trace import trace_of
from quell.audit import Audit, Redactor
from quell.config import CapSettings, GovernanceSettings, Secret, Settings
from quell.domain import (
    AuditAnchor,
    AuditKind,
    BoundExceededError,
    BudgetKind,
    BudgetScope,
    Caller,
    Cap,
    Clock,
    EffectState,
    Entropy,
    IdentityPlan,
    LocalOwner,
    Principal,
    RefusedError,
    RunTrace,
    Signer,
    Switch,
    UsageError,
    WorldError,
)
from quell.governance import Approvals, Autonomy, Budgets, Identities, Switches
from quell.runs import Connection, Ledger, Runs

if TYPE_CHECKING:
    from quell.app._skill_book import SkillBook

_MICRO = 1_000_000
_MINUTE_MS = 60_000
_CAP_KINDS: Mapping[str, tuple[BudgetKind, int]] = {
    "usd": (BudgetKind.MONEY, _MICRO),
    "tokens": (BudgetKind.TOKENS, 1),
    "calls": (BudgetKind.CALLS, 1),
    "steps": (BudgetKind.STEPS, 1),
    "minutes": (BudgetKind.WALL, _MINUTE_MS),
    "bytes": (BudgetKind.BYTES, 1),
    "units": (BudgetKind.BLAST, 1),
}
_RUN, _DAY, _TENANT = BudgetScope.RUN, BudgetScope.DAY, BudgetScope.TENANT


def login_name() -> str:
    """Return the account of this machine that runs the process: told beside a person's name, and no variable sets it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


@dataclass(slots=True, kw_only=True)
class Office:
    """Who may decide, and where the account of it lies, on one journal."""

    runs: Runs
    settings: Settings
    clock: Clock
    entropy: Entropy
    env: Mapping[str, str] = field(repr=False)
    redactor: Redactor
    audit: Audit
    signer: Signer
    """Signs votes."""
    approvals: Approvals
    switches: Switches
    ledger: Ledger
    budgets: Budgets
    autonomy: Autonomy

    @classmethod
    async def open(
        cls,
        runs: Runs,
        settings: Settings,
        *,
        clock: Clock,
        entropy: Entropy,
        env: Mapping[str, str],
        redactor: Redactor | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Build what people decide with; tables and keys are made where they are missing.

        `redactor` is that of the process, so that what it learns of later is held everywhere; None makes one.

        Raises:
            ConfigError: keys cannot be used.
            JournalError: the journal cannot be used.
        """
        database, directory = runs.database, settings.state_dir / "audit"
        redactor = redactor or Redactor.of(settings, environment=env)
        ledger = Ledger(database, clock=clock, clean=redactor.text)
        audit = Audit(
            database,
            directory=directory,
            clock=clock,
            entropy=entropy,
            redactor=redactor,
            anchors=anchors_of(settings.governance),
            monotonic=monotonic,
        )
        signer = Approvals.signer(key_of(directory / "votes.key", entropy=entropy, use="votes are signed with it"))
        in_flight, clean = _in_flight_of(ledger), redactor.text
        switches = Switches(
            database, clock=clock, monotonic=monotonic, entropy=entropy, in_flight=in_flight, clean=clean
        )
        await asyncio.to_thread(_make_tables, runs, audit)
        return cls(
            runs=runs,
            settings=settings,
            clock=clock,
            entropy=entropy,
            env=env,
            redactor=redactor,
            audit=audit,
            signer=signer,
            approvals=Approvals(
                database,
                clock=clock,
                entropy=entropy,
                signers=[signer],
                expires_s=settings.governance.approval_minutes * 60,
                clean=redactor.text,
                audit=audit,
            ),
            switches=switches,
            ledger=ledger,
            budgets=_budgets_of(settings, clock=clock),
            autonomy=Autonomy(database, clock=clock, audit=audit, clean=redactor.text),
        )

    def person(self, *, api_key: Secret, tenant: str = "") -> Principal:
        """Return who acts at this machine: whoever the key proves, or without one the owner of this state directory.

        Raises:
            RefusedError: the key proves nobody; why is on record and not told.
            UsageError: that tenant is not served here.
        """
        served = self.settings.identity.tenants or (LocalOwner().tenant,)
        if tenant and tenant not in served:
            raise UsageError(f"tenant {tenant!r} is not served here", hint=f"identity.tenants: {', '.join(served)}")
        if api_key:
            return self._proven(api_key, tenant=tenant)
        owner = LocalOwner(tenant=tenant or served[0], roles=self.settings.identity.owner_roles)
        return Principal(user=owner.user, tenant=owner.tenant, roles=owner.roles)

    def _proven(self, api_key: Secret, *, tenant: str) -> Principal:
        shown = (("Authorization", f"Bearer {api_key.reveal()}"),)
        found = self.identities().identify(Caller(peer="", headers=shown, is_loopback=True, tenant=tenant))
        if isinstance(found, Principal):
            return found
        nobody = Principal(user="nobody", tenant=tenant or LocalOwner().tenant)
        about = found.credential or found.way
        self.refused(nobody, verb="identity.prove", about=about, error=RefusedError(found.reason))
        raise RefusedError(
            "the API key proves nobody here",
            hint="`quell key list` tells which keys hold, and identity.api_keys whether keys are believed",
            code="unauthenticated",
        )

    def identities(self) -> Identities:
        """Return the keys of this journal and what they prove. Raises ConfigError when they cannot be used."""
        wanted = self.settings.identity
        return Identities(
            self.runs.database,
            IdentityPlan(api_keys="accepted" if wanted.api_keys else "refused", tenants=wanted.tenants),
            clock=self.clock,
            entropy=self.entropy,
            pepper=pepper_of(self.settings, entropy=self.entropy),
            fetch=_nobody_answers,
        )

    async def trace(self, run_id: str) -> RunTrace:
        """Return a run as a tree. Raises UsageError when there is no such run."""
        return await trace_of(self.runs, run_id, price_of=self.budgets.price_of)

    def skill_book(self) -> SkillBook:
        """Return which skills of repositories were accepted on this journal."""
        # Who decides waits for no skills to load where none are looked at.
        from quell.app._skill_book import SkillBook  # noqa: PLC0415

        return SkillBook(
            self.runs.database,
            state_dir=self.settings.state_dir,
            signer=self.signer,
            audit=self.audit,
            clock=self.clock,
            env=self.env,
        )

    @contextmanager
    def changing(self, by: Principal, *, verb: str, about: str) -> Iterator[Connection]:
        """Give the transaction in which a person changes something; what is refused there is on record too."""
        try:
            with self.runs.database.writing() as connection:
                yield connection
        except (RefusedError, UsageError, BoundExceededError) as error:
            self.refused(by, verb=verb, about=about, error=error)
            raise

    def refused(self, by: Principal, *, verb: str, about: str, error: Exception) -> None:
        """Keep the account of something that a person wanted and may not have."""
        told, why = self.redactor.text(about), self.redactor.text(str(error))
        body = {"verb": verb, "about": told[:200], "reason": why[:2000], "tenant": by.tenant}
        self.audit.note(self.audit.entry(AuditKind.REFUSAL, run="", principal=by.user, body=body))

    def record(
        self,
        connection: Connection,
        kind: AuditKind,
        *,
        by: Principal,
        verb: str,
        body: Mapping[str, object],
        run: str = "",
        way: Literal["here", "api"] = "here",
    ) -> int:
        """Keep the account of what a person did, in the transaction that does it; return the number of the record.

        `way`: at this machine, where the account of the process says more of them, or from elsewhere.
        """
        where = {"login": login_name()} if way == "here" else {"way": way}
        told = {"verb": verb, "tenant": by.tenant, "roles": list(by.roles), **body, **where}
        (record,) = self.audit.append(connection, self.audit.entry(kind, run=run, principal=by.user, body=told))
        return record.number

    async def close(self) -> None:
        """Write what still waits to be recorded, and sign it."""
        await asyncio.to_thread(self.audit.finish)


def pepper_of(settings: Settings, *, entropy: Entropy) -> Secret:
    """Return the secret that seals API keys, from a file outside of the database, made when it is missing."""
    path = settings.state_dir / "audit" / "api-keys.key"
    return Secret(key_of(path, entropy=entropy, use="API keys are sealed with it").hex())


def anchors_of(settings: GovernanceSettings) -> Sequence[AuditAnchor]:
    """Return the places elsewhere that keep checkpoints of the audit log."""
    anchors: list[AuditAnchor] = []
    if settings.anchor_file:
        anchors.append(Audit.file_anchor(Path(settings.anchor_file)))
    if settings.anchor_git:
        # Who decides waits for no tools to load where no git is wanted.
        from quell.tools import Git  # noqa: PLC0415

        anchors.append(
            Git.Anchor(Path(settings.anchor_git), remote=settings.anchor_git_remote, branch=settings.anchor_git_branch)
        )
    return anchors


def caps_of(settings: Settings) -> Sequence[Cap]:
    """Return the caps that the settings state."""
    budgets = settings.budgets
    return (
        Cap(kind=BudgetKind.MONEY, limit=int(budgets.run_usd * _MICRO), per=(_RUN,)),
        Cap(kind=BudgetKind.TOKENS, limit=budgets.run_tokens, per=(_RUN,)),
        Cap(kind=BudgetKind.CALLS, limit=budgets.run_calls, per=(_RUN,)),
        Cap(kind=BudgetKind.WALL, limit=int(budgets.run_minutes * _MINUTE_MS), per=(_RUN,)),
        Cap(kind=BudgetKind.BYTES, limit=budgets.run_bytes, per=(_RUN,)),
        Cap(kind=BudgetKind.BLAST, limit=budgets.run_units, per=(_RUN,)),
        Cap(kind=BudgetKind.MONEY, limit=int(budgets.day_usd * _MICRO), per=(_TENANT, _DAY)),
        Cap(kind=BudgetKind.CALLS, limit=budgets.day_calls, per=(_TENANT, _DAY)),
        *(cap_of(each) for each in settings.cap),
    )


def cap_of(wanted: CapSettings) -> Cap:
    """Return a cap as it is kept."""
    kind, unit = _CAP_KINDS[wanted.kind]
    globs = (
        (BudgetScope.AGENT, wanted.agent),
        (BudgetScope.FEATURE, wanted.feature),
        (BudgetScope.TENANT, wanted.tenant),
    )
    return Cap(
        kind=kind,
        limit=int(wanted.limit * unit),
        per=tuple(BudgetScope(scope) for scope in wanted.per),
        only=tuple((scope, glob) for scope, glob in globs if glob != "*"),
    )


def _budgets_of(settings: Settings, *, clock: Clock) -> Budgets:
    dearest: Literal["dearest"] | None = "dearest" if settings.budgets.unknown_price == "charge" else None
    return Budgets(caps_of(settings), clock=clock, pessimistic=dearest)


def _nobody_answers(_address: str) -> bytes:
    raise WorldError("tokens are not believed at the command line", hint="show an API key")


def _in_flight_of(ledger: Ledger) -> Callable[[Connection, Switch], Iterable[str]]:
    """Return what names the effects that a stop came too late for; an agent's name is not in the ledger: all count."""

    def in_flight(connection: Connection, switch: Switch) -> Iterable[str]:
        return [
            effect.key
            for effect in ledger.entries(connection, state=EffectState.STARTED, rows_max=10_000)
            if fnmatchcase(effect.tenant, switch.tenant)
            and fnmatchcase(effect.resource.environment, switch.environment)
            and fnmatchcase(effect.call.tool, switch.tool)
        ]

    return in_flight


def _make_tables(runs: Runs, audit: Audit) -> None:
    with runs.database.writing() as connection:
        for tables in (
            Approvals.TABLES,
            Switches.TABLES,
            Budgets.tables,
            Autonomy.TABLES,
            Ledger.TABLES,
            Identities.TABLES,
        ):
            connection.make_tables(tables)
    audit.prepare()
