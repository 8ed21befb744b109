"""What a crew works with: its workers, their models, the way to the world, and its settings."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypedDict

from quell.agent._asking import Accounts
from quell.agent._live import Live
from quell.agent._talk import Role
from quell.config import OrchestrationSettings
from quell.domain import Entropy, Principal, SpillTable, Tool, ToolCaller
from quell.models import Model
from quell.tools import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker: what it is told to be, its model, and what its coordinator is told of it."""

    role: Role
    """Its own preamble, filter and rounds; thresholds and time limits of the orchestration are set by the crew."""
    model: Model
    description: str
    stores: tuple[str, ...] = ()
    """Names of the stores that it may search, for the coordinator."""
    skills: str = ""
    """Catalogue of its skills, told after its preamble."""
    spill: SpillTable | None = None
    """From which size on its results are put aside; None: as the deployment does."""


class Options(TypedDict, total=False):
    """What a crew may be given beyond what it needs."""

    live: Live
    accounts: Callable[[str], Accounts]
    parallel_max: int
    default_worker: str
    memory_dir: str
    session: str
    entropy: Entropy
    pause: Callable[[float], Awaitable[None]]
    chance: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Everything that does not change while a crew works."""

    coordinator: Role
    model: Model
    workers: Mapping[str, WorkerSpec]
    toolbox: Toolbox
    settings: OrchestrationSettings
    monotonic: Callable[[], float]
    live: Live = field(default_factory=Live)
    accounts: Callable[[str], Accounts] = lambda _place: Accounts()
    parallel_max: int = 4
    default_worker: str = ""
    memory_dir: str = ""
    session: str = ""
    entropy: Entropy = os.urandom
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random

    def tools_of(self, role: Role) -> tuple[Tool, ...]:
        """Return the tools that a role is offered."""
        return tuple(tool for tool in self.toolbox.catalog() if _fits(tool.name, role.tools))

    def narrowed(self, caller: ToolCaller, role: Role) -> ToolCaller:
        """Return a caller that may use a role's tools and no others, and none that it could not use before."""
        principal = caller.principal
        names = tuple(tool.name for tool in self.tools_of(role) if _fits(tool.name, principal.agent_tools))
        narrow: Principal = replace(principal, agent_tools=names)
        return replace(caller, principal=narrow)

    def call_s(self, left_s: float) -> float:
        """Return how long one call of the coordinator, or one task, may take."""
        own_s = self.settings.timeouts.per_call_timeout_secs
        return min(left_s, own_s) if own_s else left_s


def _fits(name: str, globs: tuple[str, ...] | None) -> bool:
    return globs is None or any(fnmatchcase(name, glob) for glob in globs)
