"""The guard and the hand, built from the settings and joined to one journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from quell.app._office import Office
from quell.app._skill_book import SkillBook
from quell.app._toolset import Toolset, policy_sources
from quell.audit import Audit, Redactor
from quell.config import Settings
from quell.domain import AuditKind, Clock, ConfigError, Entropy, Inventory, PolicySource, QuellError, Tool
from quell.governance import Guard, PolicySet
from quell.runs import Runs
from quell.tools import LocalHand, Pins, Registry, Resilience, Scratchpad, Servers, Toolbox

if TYPE_CHECKING:
    from quell.app._tool_desk import ToolDesk

_TOLD_MAX = 20


@dataclass(slots=True, kw_only=True)
class Authority:
    """Who decides, what acts, and where the account of it lies: the organs of one process on one journal."""

    runs: Runs
    settings: Settings
    office: Office
    """What people decide with."""
    guard: Guard
    registry: Registry
    toolset: Toolset
    redactor: Redactor
    toolbox: Toolbox
    skills: SkillBook
    """Which skills of repositories were accepted."""
    texts: list[PolicySource]
    """The policies as they were read; a change of pins judges them anew for the tools that there are then."""

    @property
    def pins(self) -> Pins:
        """Return the definitions that people accepted."""
        return self.toolset.pins

    @property
    def servers(self) -> Servers:
        """Return the connections to servers of tools."""
        return self.toolset.servers

    @property
    def scratchpad(self) -> Scratchpad:
        """Return where large results are kept."""
        return self.toolset.scratchpad

    def desk(self) -> ToolDesk:
        """Return what people see of the tools."""
        # What acts waits for nothing that only people look at.
        from quell.app._tool_desk import ToolDesk  # noqa: PLC0415

        return ToolDesk(self.office, self.toolset, renew=self.toolbox.renew)

    async def reload(self) -> None:
        """Take the policies as they are written now, whole or not at all; pins are taken at the next call anyway.

        Raises ConfigError with every mistake of the policies: then everything stays as it was.
        """
        audit, tools = self.guard.audit, self.registry.tools
        policy, self.texts[:] = await asyncio.to_thread(_policies_on_record, self.settings, tools, audit)
        self.guard.policy = policy

    def serve(self, settings: Settings) -> None:
        """Reach the MCP servers of these settings from now on; the next call finds those of their tools that are pinned.

        Raises ConfigError with every mistake of the servers: then everything stays as it was.
        """
        self.toolset.serve(settings)
        self.settings = settings

    async def close(self) -> None:
        """Let go of servers, programs and files, and write what still waits to be recorded, signed."""
        await self.toolset.close()
        await asyncio.to_thread(self.guard.audit.finish)


async def open_authority(
    runs: Runs,
    settings: Settings,
    *,
    clock: Clock,
    entropy: Entropy,
    env: Mapping[str, str],
    builtin: Iterable[tuple[Tool, LocalHand]] = (),
    redactor: Redactor | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    inventory: Inventory | None = None,
) -> Authority:
    """Build everything that decides and acts; tables and keys are made where they are missing.

    `redactor` is that of the process; None makes one.

    Raises:
        ConfigError: policies, keys or servers cannot be used.
        JournalError: the journal cannot be used.
    """
    office = await Office.open(
        runs, settings, clock=clock, entropy=entropy, env=env, redactor=redactor, monotonic=monotonic
    )
    toolset = await Toolset.open(office, builtin=builtin)
    registry = toolset.registry
    try:
        policy, sources = await asyncio.to_thread(_policies_on_record, settings, registry.tools, office.audit)
    except BaseException:
        await toolset.close()
        raise
    guard = _guard_of(office, policy)
    toolbox = _toolbox(
        office, toolset, guard, sources=sources, clock=clock, entropy=entropy, monotonic=monotonic, inventory=inventory
    )
    return Authority(
        runs=runs,
        settings=settings,
        office=office,
        guard=guard,
        registry=registry,
        toolset=toolset,
        redactor=office.redactor,
        toolbox=toolbox,
        skills=await asyncio.to_thread(office.skill_book),
        texts=sources,
    )


def _policies_on_record(
    settings: Settings, tools: Sequence[Tool], audit: Audit
) -> tuple[PolicySet, list[PolicySource]]:
    """Load the policies as they are written now; that they were refused is on record.

    Raises ConfigError with every mistake.
    """
    try:
        sources = policy_sources(settings)
        return PolicySet.load(sources, tools=tools), sources
    except ConfigError as error:
        told = [str(problem)[:500] for problem in error.problems[:_TOLD_MAX]]
        body = {"verb": "policy.load", "reason": str(error)[:2000], "problems": told}
        # A journal that is away does not turn the mistake into another one.
        with suppress(QuellError):
            audit.note(audit.entry(AuditKind.REFUSAL, run="", principal="", body=body))
            audit.flush()
        raise


def _guard_of(office: Office, policy: PolicySet) -> Guard:
    return Guard(
        office.runs.database,
        policy=policy,
        approvals=office.approvals,
        switches=office.switches,
        budgets=office.budgets,
        audit=office.audit,
        ledger=office.ledger,
        autonomy=office.autonomy,
        clock=office.clock,
        entropy=office.entropy,
        services=lambda: office.settings.governance.services,
    )


def _toolbox(
    office: Office,
    toolset: Toolset,
    guard: Guard,
    *,
    sources: Sequence[PolicySource],
    clock: Clock,
    entropy: Entropy,
    monotonic: Callable[[], float],
    inventory: Inventory | None,
) -> Toolbox:
    def judge(tools: tuple[Tool, ...]) -> None:
        # The texts stay those that this process began with: who pins a tool has not looked at edits of a policy.
        guard.policy = PolicySet.load(sources, tools=tools)

    return Toolbox(
        registry=toolset.registry,
        renew=partial(toolset.take, judge),
        database=office.runs.database,
        clock=clock,
        guard=guard,
        ledger=office.ledger,
        resilience=Resilience(entropy=entropy, monotonic=monotonic),
        scratchpad=toolset.scratchpad,
        redactor=office.redactor,
        monotonic=monotonic,
        environment=office.settings.governance.environment,
        inventory=inventory,
    )
