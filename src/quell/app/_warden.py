"""Authority in a process: opened when first needed, kept in order while it is there, closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from quell.audit import Redactor
from quell.config import Settings
from quell.domain import (
    Approval,
    ApprovalStatus,
    AuditKind,
    Caller,
    Clock,
    Decided,
    Effect,
    Entropy,
    IdentityPlan,
    Inventory,
    Principal,
    QuellError,
    Refusal,
    Tool,
)
from quell.runs import Runs

if TYPE_CHECKING:
    # What decides and acts is loaded when it is first needed: a command that lists runs needs none of it.
    from quell.app._agent_routes import AgentRoute
    from quell.app._authority import Authority
    from quell.app._herald import AskerOf, Herald
    from quell.app._in_force import InForce
    from quell.app._votes import Way
    from quell.governance import Identities
    from quell.tools import LocalHand

_BUSY = timedelta(minutes=10)
"""How long a worker may still be busy with an effect whose run has ended."""


_ASKERS = 4


class Warden:
    """Who decides, who is believed and who asks, of one process on one journal."""

    def __init__(
        self,
        runs: Runs,
        settings: Settings,
        *,
        clock: Clock,
        entropy: Entropy,
        env: Mapping[str, str],
        redactor: Redactor | None = None,
    ) -> None:
        """Take what it needs; `redactor` is that of the process, None makes one."""
        self.runs = runs
        self.settings = settings
        self._clock = clock
        self._entropy = entropy
        self._env = env
        self.redactor = redactor or Redactor.of(settings, environment=env)
        """What takes secrets out of everything that this process says."""
        self._opening = asyncio.Lock()
        self._knowing = asyncio.Lock()
        self._identities: Identities | None = None
        # Threads of their own: strangers who make us wait for an identity provider keep nobody else from the journal.
        self._askers = ThreadPoolExecutor(_ASKERS, thread_name_prefix="identity")
        self._herald: Herald | None = None
        self._in_force: InForce | None = None
        self.authority: Authority | None = None
        self.builtin: Callable[[], Iterable[tuple[Tool, LocalHand]]] = tuple
        """Gives our own tools, those that see with organs which are opened after this one."""
        self.inventory: Inventory | None = None
        """Tells people what is known of what a call touches, once somebody is there who knows."""
        self.routes: Mapping[str, AgentRoute] = {}
        """Services of their own that agents' files name for approvals, by id of the agent; set before the herald is asked for."""
        self.headers_of: Callable[[str], Mapping[str, str]] = _no_headers
        """Gives the headers of whoever started a run, while this process knows them."""
        self.asker: AskerOf | None = None
        """Tells who in a run asks, where agents are."""
        self.busy: Callable[[], frozenset[str]] = frozenset
        """Tells which MCP servers the runs that go on call; set before the authority is opened."""
        self.url = ""
        """Where this process answers, once it does."""

    @property
    def plan(self) -> IdentityPlan:
        """Which ways of showing an identity are accepted."""
        from quell.app._identity import plan_of  # noqa: PLC0415 - as above

        return plan_of(self.settings.identity)

    async def open(self) -> Authority:
        """Open the authority once, what is in force on record. Raises ConfigError with every mistake, or JournalError."""
        async with self._opening:
            if self.authority is None:
                from quell.app._authority import open_authority  # noqa: PLC0415 - as above

                authority = await open_authority(
                    self.runs,
                    self.settings,
                    clock=self._clock,
                    entropy=self._entropy,
                    env=self._env,
                    builtin=self.builtin(),
                    redactor=self.redactor,
                    inventory=self.inventory,
                )
                try:
                    await asyncio.to_thread(self._note_in_force, authority)
                except BaseException:
                    await authority.close()
                    raise
                authority.toolset.busy = self.busy
                self.authority = authority
            return self.authority

    async def serve(self, settings: Settings) -> None:
        """Reach the MCP servers of these settings from now on. Raises ConfigError, and then everything stays as it was."""
        authority = await self.open()
        authority.serve(settings)
        self.settings = settings
        with suppress(QuellError):  # a journal that blinks: the next call takes them
            await authority.toolbox.renew()

    async def identities(self) -> Identities:
        """Return who tells callers apart. Raises ConfigError with every mistake, or JournalError."""
        async with self._knowing:
            if self._identities is None:
                from quell.app._identity import open_identities  # noqa: PLC0415 - as above

                self._identities = await asyncio.to_thread(
                    open_identities,
                    self.runs.database,
                    self.settings.identity,
                    state_dir=self.settings.state_dir,
                    clock=self._clock,
                    entropy=self._entropy,
                )
            return self._identities

    async def identify(self, caller: Caller) -> Principal | Refusal:
        """Return who calls, or why nobody was believed: for the audit, never for the caller."""
        identities = await self.identities()
        # Keys are looked up in the database, and those of an issuer perhaps on the network: both block.
        found = await asyncio.get_running_loop().run_in_executor(self._askers, identities.identify, caller)
        if isinstance(found, Principal):
            # Only what proved somebody: who is nobody could else have us take any word out of everything.
            self.redactor.hold_shown(caller.headers)
        return found

    async def herald(self) -> Herald:
        """Return who tells people outside. Raises ConfigError with every mistake of its settings, or JournalError."""
        authority = await self.open()
        if self._herald is None:
            from quell.app._herald import Herald  # noqa: PLC0415 - as above

            self._herald = Herald(
                authority,
                clock=self._clock,
                entropy=self._entropy,
                link_of=self._link_of,
                routes=self.routes,
                headers_of=self.headers_of,
                asker=self.asker,
            )
        return self._herald

    async def vote(
        self,
        identifier: str,
        *,
        by: Principal,
        verdict: Literal["approve", "reject"],
        digest_seen: str,
        reason: str,
        way: Way,
        signature: str = "",
        answers: Mapping[str, object] | None = None,
    ) -> Decided:
        """Count an answer to a request and keep the account of it, together. Raises as `Approvals.decide` does."""
        from quell.app._votes import vote  # noqa: PLC0415 - as above

        decided = await asyncio.to_thread(
            vote,
            await self.open(),
            identifier,
            by=by,
            verdict=verdict,
            digest_seen=digest_seen,
            reason=reason,
            way=way,
            signature=signature,
            answers=answers,
        )
        if decided.change != "none":
            with suppress(QuellError):
                # Who waits looks by itself too, only later.
                await self.runs.wake(decided.approval.terms.run)
        return decided

    async def shown(self, approval: Approval) -> Approval:
        """Return an approval as it may be shown: without the secrets that are held here."""
        from quell.app._votes import masked  # noqa: PLC0415 - as above

        return masked(approval, self.redactor)

    async def waiting(self, run: str, *, items_max: int = 50) -> Sequence[Approval]:
        """Return what a run asks people and nobody decided yet, as it may be shown."""
        authority = await self.open()

        def read() -> list[Approval]:
            with self.runs.database.reading() as connection:
                return [
                    approval
                    for tenant in self.settings.identity.tenants
                    for approval in authority.guard.approvals.listed(
                        connection, tenant=tenant, status=ApprovalStatus.REQUESTED, run=run, items_max=items_max
                    )
                ]

        return [await self.shown(each) for each in await asyncio.to_thread(read)]

    async def look(self) -> None:
        """Tell people outside what waits for them."""
        await (await self.herald()).look()

    async def tend(self) -> None:
        """Record what is in force anew, and end what has passed its time: requests, reservations, abandoned effects."""
        authority = await self.open()
        await asyncio.to_thread(self._note_in_force, authority)
        await asyncio.to_thread(self._tend, authority)

    async def sign(self) -> None:
        """Sign the audit log and anchor it. Raises WorldError when an anchor could not be written."""
        authority = await self.open()
        await asyncio.to_thread(authority.guard.audit.anchor)

    async def sweep(self) -> None:
        """Remove bodies, results and rows that are kept no longer."""
        from quell.app._retention import forget_old  # noqa: PLC0415 - as above

        authority = await self.open()
        before = self._clock() - timedelta(days=self.settings.journal.retention_days)
        await asyncio.to_thread(forget_old, authority, before=before)
        kept_for = timedelta(days=self.settings.governance.body_retention_days)
        await authority.scratchpad.sweep()
        await asyncio.to_thread(authority.guard.audit.sweep, kept_for=kept_for)

    async def keep_flushing(self) -> None:
        """Write waiting audit records, soon, until cancelled."""
        authority = await self.open()
        await authority.guard.audit.keep_flushing()

    async def close(self) -> None:
        """Close what was opened."""
        self._askers.shutdown(wait=False, cancel_futures=True)
        if self._herald is not None:
            await self._herald.close()
        if self.authority is not None:
            await self.authority.close()

    def _note_in_force(self, authority: Authority) -> None:
        from quell.app._in_force import record_in_force  # noqa: PLC0415 - as above

        self._in_force = record_in_force(authority, known=self._in_force)

    def _tend(self, authority: Authority) -> None:
        guard, database = authority.guard, self.runs.database
        with database.writing(durability="written") as connection:
            guard.approvals.expire(connection)
        with database.writing(durability="written") as connection:
            expired = guard.budgets.expire(connection)
            if expired:
                told = {"expired": [each.key for each in expired], "charged": "as reserved"}
                guard.audit.append(connection, guard.audit.entry(AuditKind.BUDGET, run="", principal="", body=told))
        with database.writing() as connection:
            closed = guard.ledger.close_abandoned(connection, before=self._clock() - _BUSY)
            entries = [
                guard.audit.entry(AuditKind.OUTCOME, run=each.call.run, principal=each.user, body=_told_of(each))
                for each in closed
            ]
            if entries:
                guard.audit.append(connection, *entries)

    def _link_of(self, approval: str) -> str:
        base = (self.settings.approvals.link_url or self.url).rstrip("/")
        return f"{base}/api/v1/approvals/{approval}"


def _no_headers(_run: str) -> Mapping[str, str]:
    return {}


def _told_of(effect: Effect) -> dict[str, object]:
    return {
        "call": effect.call.id,
        "tool": effect.call.tool,
        "digest": effect.call.digest,
        "effect": effect.key,
        "state": effect.state.value,
        "reason": effect.reason,
        "detail": effect.detail,
        "attempts": effect.attempts,
    }
