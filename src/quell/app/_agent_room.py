"""The agents that are open: by version, with what they are offered and on whose behalf they call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from quell import telemetry
from quell.agent import Agent, BudgetAccounts, Crew, Live, Role
from quell.app._agent_book import AgentBook
from quell.app._agent_minds import Mind, default_agent, open_mind, parted, role_of, worker_of
from quell.app._agent_servers import ask_first_of, offered, people_s_of, spill_of
from quell.app._ask_people import ask_people_hand
from quell.app._file_tools import file_hands
from quell.app._first_pins import pin_first
from quell.app._in_force import InForce, in_force
from quell.app._memory import DOCUMENTS, open_store, search_hand, skill_hands
from quell.app._skill_book import git_sources
from quell.config import AgentSettings
from quell.domain import (
    CallRequest,
    ChatAsk,
    Clock,
    ConfigError,
    Principal,
    QuellError,
    ServerState,
    Spender,
    Tool,
    ToolCaller,
)
from quell.memory import DocumentStore, Library, Shelf, Skills
from quell.models import Limits, Model
from quell.runs import RunContext
from quell.tools import LocalHand

if TYPE_CHECKING:
    from quell.app._authority import Authority
    from quell.app._warden import Warden

KIND = "chat"
_CALL_S = 300.0
_LOOK_S = 10.0
_AGAIN_S = 30.0
_FRESH_S = 30.0
_HELD_MAX = 10_000
"""Requests whose headers are kept: of runs that go on elsewhere nobody here learns that they ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run was started with: everything that it needs after a crash."""

    ask: ChatAsk
    by: Principal
    agent: str
    version: str
    ticket: str
    """Names the request's headers, which stay in memory alone."""


Answering: TypeAlias = Agent | Crew
"""What goes on with a run."""


@dataclass(slots=True)
class _Open:
    """What is open."""

    minds: dict[str, Mind] = field(default_factory=dict)
    """By id, as they answer now."""
    versions: dict[str, Mind] = field(default_factory=dict)
    """By version, those of runs that go on as well."""
    stores: list[DocumentStore] = field(default_factory=list)
    servers: dict[str, ServerState] = field(default_factory=dict)
    """By name in the settings, as they were found last."""


class AgentRoom:
    """Opens agents when they are first asked, and keeps each version that a run goes on with."""

    def __init__(
        self,
        agents: Sequence[AgentSettings],
        *,
        warden: Warden,
        clock: Clock,
        env: Mapping[str, str],
        servers: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Take the agents as they are configured; `servers` tells for each how its MCP servers are called among all."""
        self.agents = tuple(agents)
        self.live = Live()
        self.headers: dict[str, Mapping[str, str]] = {}
        """By ticket: headers of requests whose runs go on here."""
        self._tickets: dict[str, str] = {}
        """By run."""
        self._warden = warden
        self._clock = clock
        self._env = env
        self._servers = servers
        self._limits = Limits(time.monotonic)
        self._open = _Open()
        self._opening, self._looking = asyncio.Lock(), asyncio.Lock()
        self._book: AgentBook | None = None
        self._decided: tuple[tuple[int, str], InForce] | None = None
        self._looked_s = -_AGAIN_S

    async def book(self) -> AgentBook:
        """Return what the journal keeps for agents."""
        async with self._opening:
            if self._book is None:
                self._book = await asyncio.to_thread(AgentBook, self._warden.runs.database, clock=self._clock)
            return self._book

    async def close(self) -> None:
        """Close the models and the stores."""
        for store in self._open.stores:
            await store.close()
        models = {id(model): model for mind in self._open.versions.values() for model in mind.models}
        for model in models.values():
            await model.close()

    # -- their tools --------------------------------------------------------------------------------------------------

    def hands(self) -> list[tuple[Tool, LocalHand]]:
        """Return the tools that come with agents: skills, documents, files, and asking people."""
        state_dir = self._warden.settings.state_dir
        library = Library(state_dir, clock=self._clock)
        stores: dict[str, DocumentStore] = {DOCUMENTS: Shelf(library, name=DOCUMENTS)}
        prefixes: dict[str, str] = {}
        for agent in self.agents:
            for each in agent.vector_stores:
                if each.name not in stores:
                    stores[each.name] = open_store(each, library=library, clock=self._clock, env=self._env)
                    self._open.stores.append(stores[each.name])
                    prefixes[each.name] = each.context_prefix
        searching = [
            search_hand(store, clock=self._clock, context_prefix=prefixes.get(name, ""))
            for name, store in stores.items()
        ]
        reading = file_hands(self._files_of, state_dir=state_dir)
        return [*skill_hands(self._skills_of), *searching, *reading, ask_people_hand()]

    def _mind_of_call(self, request: CallRequest) -> Mind | None:
        return self._open.versions.get(request.caller.principal.workflow_digest)

    def _skills_of(self, request: CallRequest) -> Skills:
        mind = self._mind_of_call(request)
        return mind.skills_of(request.caller.worker) if mind is not None else Skills.load(())

    def _files_of(self, request: CallRequest) -> Sequence[str]:
        mind = self._mind_of_call(request)
        return mind.settings.quell.files if mind is not None and mind.settings.tools.filesystem else ()

    async def look_at_servers(self, *, names: Sequence[str] | None = None, max_age_s: float | None = None) -> None:
        """Ask the MCP servers what they offer, and take what may be taken; those that are down are told and left."""
        authority = await self._warden.open()
        async with self._looking:
            self._looked_s = time.monotonic()
            found = await pin_first(authority, names=names, timeout_s=_LOOK_S, max_age_s=max_age_s)
            self._open.servers.update(found)

    async def look(self) -> None:
        """Look again at the servers that were down."""
        if not self._warden.settings.mcp.servers or time.monotonic() - self._looked_s < _AGAIN_S:
            return
        down = [name for name in self._warden.settings.mcp.servers if not self._is_up(name)]
        if down:
            await self.look_at_servers(names=down)

    async def servers(self, agent: AgentSettings) -> tuple[ServerState, ...]:
        """Return how the MCP servers of an agent are, under the names of its file."""
        names = self.servers_of(agent)
        if stale := [name for name in names.values() if not self._is_up(name)]:
            await self.look_at_servers(names=stale, max_age_s=_FRESH_S)
        return tuple(replace(self._open.servers[taken], name=name) for name, taken in names.items())

    def _is_up(self, name: str) -> bool:
        state = self._open.servers.get(name)
        return state is not None and state.is_up

    def servers_of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the MCP servers of an agent: those of its file, or of the deployment when it names none."""
        if not self._servers:
            # No agent file: what the settings have is the deployment's own.
            return {name: name for name in self._warden.settings.mcp.servers}
        return self._servers.get(agent.id, {})

    # -- themselves ---------------------------------------------------------------------------------------------------

    async def mind(self, agent: AgentSettings) -> Mind:
        """Return an agent as it answers now. Raises ConfigError when it cannot be opened."""
        authority = await self._warden.open()
        if not self._open.servers and self.servers_of(agent):
            await self.look_at_servers()
        async with self._opening:
            now = self._in_force(authority)
            known = self._open.minds.get(agent.id)
            pins = await _skill_pins(agent, authority)
            if known is not None and known.settings is agent and (known.in_force, known.pins) == (now, pins):
                return known
            mind = await self._opened(agent, now, authority, pins=pins)
            self._open.minds[agent.id] = self._open.versions[mind.version] = mind
        book = await self.book()
        await asyncio.to_thread(book.keep_version, mind.version, agent)
        return mind

    async def mind_of(self, wanted: Wanted) -> Mind:
        """Return the agent in the version that a run began with. Raises ConfigError when nobody can open it any more."""
        known = self._open.versions.get(wanted.version)
        if known is not None:
            return known
        now = next((agent for agent in self.agents if agent.id == wanted.agent), None)
        book = await self.book()
        kept = await asyncio.to_thread(book.version, wanted.version, now=now)
        if kept is None:
            raise ConfigError(
                f"nobody knows the version {wanted.version} of the agent {wanted.agent!r}",
                hint="its run began in another journal, or long ago: cancel it and ask again",
            )
        authority = await self._warden.open()
        if not self._open.servers and self.servers_of(kept):
            await self.look_at_servers()
        mind = await self._opened(kept, self._in_force(authority), authority)
        # Its file is what it was; skills on disk, tools, policy and prices are those of today, and the run says so.
        self._open.versions[wanted.version] = replace(mind, version=wanted.version, opened_as=mind.version)
        return self._open.versions[wanted.version]

    async def settings_of(self, wanted: Wanted) -> AgentSettings:
        """Return what the agent of a run was; of one that cannot be opened any more, what there is under its name."""
        known = self._open.versions.get(wanted.version)
        if known is not None:
            return known.settings
        now = next((agent for agent in self.agents if agent.id == wanted.agent), None)
        book = await self.book()
        kept = None
        with suppress(ConfigError):
            kept = await asyncio.to_thread(book.version, wanted.version, now=now)
        plain = default_agent()
        return kept or now or replace(plain, agent=replace(plain.agent, name=wanted.agent))

    def _in_force(self, authority: Authority) -> InForce:
        """Return what decides now; worked out anew only when pins or policies changed."""
        turn = (authority.registry.turn, authority.guard.policy.digest)
        if self._decided is None or self._decided[0] != turn:
            self._decided = turn, in_force(authority)
        return self._decided[1]

    async def _opened(
        self, agent: AgentSettings, now: InForce, authority: Authority, *, pins: tuple[str, ...] = ()
    ) -> Mind:
        return await asyncio.to_thread(
            open_mind,
            agent,
            in_force=now,
            servers=self.servers_of(agent),
            clock=self._clock,
            env=self._env,
            limits=self._limits,
            on_change=_told_change,
            price_of=authority.guard.budgets.find_price,
            skills_of=authority.skills.load,
            pins=pins,
        )

    # -- for one run --------------------------------------------------------------------------------------------------

    async def answering(self, context: RunContext, wanted: Wanted, mind: Mind) -> tuple[Answering, ToolCaller]:
        """Return what goes on with a run, and on whose behalf it calls tools."""
        authority = await self._warden.open()
        self._tickets[context.run.id] = wanted.ticket
        catalog = authority.toolbox.catalog()
        _, told = parted(wanted.ask.messages)
        instructions = told if mind.settings.quell.system_messages == "append" else ""
        names = offered(catalog, mind.settings, mind.servers, set_aside="something")
        role = role_of(mind, wanted.ask, tools=names, instructions=instructions)
        if mind.settings.orchestration.enabled:
            crew, hands = self._crew(context, wanted, mind, role=role, authority=authority)
            return crew, self._caller(context, wanted, mind, tools=tuple(dict.fromkeys((*names, *hands))))
        agent = Agent(
            role,
            model=mind.model,
            toolbox=authority.toolbox,
            live=self.live,
            accounts=self._accounts(authority, context.run.id, mind),
            monotonic=time.monotonic,
        )
        return agent, self._caller(context, wanted, mind, tools=names)

    def _crew(
        self, context: RunContext, wanted: Wanted, mind: Mind, *, role: Role, authority: Authority
    ) -> tuple[Crew, tuple[str, ...]]:
        """Return a coordinator with its workers, and the names of all tools that any of them may be offered."""
        settings, catalog, run = mind.settings, authority.toolbox.catalog(), context.run.id
        tools = {
            name: offered(catalog, settings, mind.servers, worker=worker, set_aside="something")
            for name, worker in settings.orchestration.worker.items()
        }
        wish = settings.quell.default_worker.casefold()
        crew = Crew(
            role,
            model=mind.model,
            workers={name: worker_of(mind, name, tools=names) for name, names in tools.items()},
            toolbox=authority.toolbox,
            settings=settings.orchestration,
            monotonic=time.monotonic,
            live=self.live,
            accounts=lambda place: self._accounts(authority, run, mind, place=place),
            parallel_max=settings.quell.parallel_max,
            default_worker=next((name for name in tools if name.casefold() == wish), ""),
            memory_dir=str(self.directory_of(settings) or ""),
            session=wanted.ask.session,
        )
        return crew, tuple(name for names in tools.values() for name in names)

    def hold(self, ticket: str, headers: Mapping[str, str]) -> None:
        """Keep the headers of a request; those of the oldest are forgotten when there are too many."""
        self.headers[ticket] = dict(headers)
        if len(self.headers) > _HELD_MAX:
            del self.headers[next(iter(self.headers))]

    def headers_of(self, run: str) -> Mapping[str, str]:
        """Return the headers of the request that began a run, as long as it goes on here."""
        return self.headers.get(self._tickets.get(run, ""), {})

    def ended(self, run: str, wanted: Wanted) -> None:
        """Forget the headers of a request."""
        self.headers.pop(wanted.ticket, None)
        self._tickets.pop(run, None)

    def _accounts(self, authority: Authority, run: str, mind: Mind, *, place: str = "") -> BudgetAccounts:
        spender = Spender(run=run, agent=mind.id, feature=KIND)
        runs = self._warden.runs
        return BudgetAccounts(authority.guard.budgets, runs.database, spender=spender, place=place, write=runs.write)

    def _caller(self, context: RunContext, wanted: Wanted, mind: Mind, *, tools: Sequence[str]) -> ToolCaller:
        principal = replace(
            wanted.by,
            agent=mind.id,
            agent_tools=tuple(tools),
            workflow=KIND,
            workflow_digest=mind.version,
            workflow_tools=mind.settings.quell.workflow_tools or ("*",),
        )
        return ToolCaller(
            principal=principal,
            run=context.run.id,
            fence=context.fence,
            session=wanted.ask.session,
            deadline_s=_CALL_S,
            headers=self.headers.get(wanted.ticket, {}),
            feature=KIND,
            ask_first=ask_first_of(mind.settings),
            people_s=people_s_of(mind.settings),
            spill=spill_of(mind.settings, mind.servers),
        )

    def directory_of(self, agent: AgentSettings) -> Path | None:
        """Return where the runs of an agent keep their files; None when they keep none."""
        return Path(os.path.abspath(agent.runs_dir)) if agent.runs_dir else None  # noqa: PTH100 - links stay as written


async def _skill_pins(agent: AgentSettings, authority: Authority) -> tuple[str, ...]:
    """Return the pins of an agent's skills; a journal is only asked for one that has any."""
    return await asyncio.to_thread(authority.skills.pins_of, agent) if git_sources(agent) else ()


def _told_change(model: Model, error: Exception) -> None:
    told = f"{error} {error.hint}".strip() if isinstance(error, QuellError) else str(error)
    telemetry.event("agent.model_left", model=f"{model.provider}/{model.name}", error=told)
