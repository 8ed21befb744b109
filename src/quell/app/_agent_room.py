"""The agents that are open: by version, with what they are offered and on whose behalf they call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from quell import telemetry
from quell.agent import Agent, BudgetAccounts, Crew, Live, Role
from quell.app._agent_book import AgentBook
from quell.app._agent_caps import caps_of_agent
from quell.app._agent_links import AgentLinks
from quell.app._agent_minds import Mind, default_agent, open_mind, parted, role_of, worker_of
from quell.app._agent_routes import routes_of
from quell.app._agent_servers import ask_first_of, offered, people_s_of, spill_of
from quell.app._ask_people import ask_people_hand
from quell.app._file_tools import file_hands
from quell.app._first_pins import pin_first
from quell.app._held_headers import HeldHeaders
from quell.app._in_force import InForce, in_force
from quell.app._memory import DOCUMENTS, open_store, search_hand, skill_hands
from quell.app._skill_book import git_sources
from quell.config import AgentSettings, Settings, VectorStoreSettings
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
    UsageError,
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
_MISSED_MAX = 200
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
    whole: list[Mind] = field(default_factory=list)
    """Each whose models are open."""
    stores: dict[str, tuple[VectorStoreSettings, DocumentStore]] = field(default_factory=dict)
    """Those that agent files name."""
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
        links: AgentLinks,
    ) -> None:
        """Take the agents as they are configured, and which MCP servers they have."""
        self.agents = tuple(agents)
        self.live = Live()
        self.headers = HeldHeaders()
        self._tickets: dict[str, str] = {}
        """By run."""
        self._uses: dict[str, Mind] = {}
        """By ticket: with what the runs that go on here answer."""
        self._warden = warden
        self._clock = clock
        self._env = env
        self._links = links
        self._limits = Limits(time.monotonic)
        self._open = _Open()
        self._opening, self._looking = asyncio.Lock(), asyncio.Lock()
        self._book: AgentBook | None = None
        self._decided: tuple[tuple[int, str], Settings, InForce] | None = None
        self._looked_s = -_AGAIN_S

    async def book(self) -> AgentBook:
        """Return what the journal keeps for agents."""
        async with self._opening:
            if self._book is None:
                self._book = await asyncio.to_thread(AgentBook, self._warden.runs.database, clock=self._clock)
            return self._book

    async def close(self) -> None:
        """Close the models and the stores."""
        for _, store in self._open.stores.values():
            await store.close()
        await _close(self._open.whole)

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
                    self._open.stores[each.name] = each, stores[each.name]
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
        async with self._looking:
            await self._look_at(names, max_age_s=max_age_s)

    async def _look_at(self, names: Sequence[str] | None, *, max_age_s: float | None = None) -> None:
        authority = await self._warden.open()
        self._looked_s = time.monotonic()
        there = dict(self._links.there)
        found = await pin_first(authority, names=names, timeout_s=_LOOK_S, max_age_s=max_age_s)
        # Of one that is another by now this look tells nothing.
        same = {name: state for name, state in found.items() if self._links.there.get(name) == there.get(name)}
        self._open.servers.update(same)

    async def see(self, names: Iterable[str]) -> None:
        """Look at those of these servers that nobody has looked at; the first time at all there are."""
        wanted = list(names)
        if all(name in self._open.servers for name in wanted):
            return
        async with self._looking:
            if unseen := [name for name in wanted if name not in self._open.servers]:
                await self._look_at(unseen if self._open.servers else None)

    async def look(self) -> None:
        """Look again at the servers that were down, and for runs that ended elsewhere; have long texts counted at once."""
        await self._miss()
        for mind in self._open.whole:
            await asyncio.to_thread(mind.model.counter.prepare)
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
        states = self._open.servers
        return tuple(replace(states[taken], name=name) for name, taken in names.items() if taken in states)

    def _is_up(self, name: str) -> bool:
        state = self._open.servers.get(name)
        return state is not None and state.is_up

    def servers_of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the MCP servers of an agent: those of its file, or of the deployment when it names none."""
        return self._links.of(agent)

    # -- themselves ---------------------------------------------------------------------------------------------------

    async def take(self, agents: Sequence[AgentSettings]) -> list[str]:
        """Answer with these agents from now on; return the MCP servers that are new, or others than before.

        Raises ConfigError with every mistake of the servers: then everything stays as it was.
        """
        async with self._opening:
            # Who did not change stays the one that is open.
            taken = tuple(next((old for old in self.agents if old == new), new) for new in agents)
            there = dict(self._links.there)
            await self._relink(taken or (default_agent(),))
            return sorted(name for name, server in self._links.there.items() if there.get(name) != server)

    def untaken(self, agents: Sequence[AgentSettings]) -> list[str]:
        """Return what of these agents is there after a restart only."""
        wanted = {each.name: each for agent in agents for each in agent.vector_stores}
        known = {name: settings for name, (settings, _) in self._open.stores.items()}
        routes, now = self._warden.routes, routes_of(self._warden.settings, agents)
        return [
            *(f"vector_stores.{name}" for name in sorted(wanted) if known.get(name) != wanted[name]),
            *(f"{agent.id}: hitl.route" for agent in agents if routes.get(agent.id) != now.get(agent.id)),
        ]

    async def _relink(self, agents: tuple[AgentSettings, ...]) -> None:
        there = dict(self._links.there)
        await self._links.take(agents, used=self.busy())
        self.agents = agents
        now = self._links.there
        self._open.servers = {name: it for name, it in self._open.servers.items() if there.get(name) == now.get(name)}
        self._open.minds = {
            mind.id: mind
            for mind in self._open.minds.values()
            if any(mind.settings is agent for agent in agents) and mind.servers == self.servers_of(mind.settings)
        }

    async def settle(self) -> None:
        """Close the models of versions that no run uses and that are not the present ones, and servers that only they had."""
        if all(self._open.minds.get(mind.id) is mind for mind in self._open.whole):
            return
        try:
            await self._settle()
        except Exception as error:  # noqa: BLE001 - what fails to close must not fail the run that ended
            telemetry.event("app.part_failed", part="agents", error=f"while closing: {type(error).__name__}: {error}")

    async def _settle(self) -> None:
        async with self._opening:
            live = [*self._open.minds.values(), *self._uses.values()]
            gone = [mind for mind in self._open.whole if not any(mind is each for each in live)]
            if not gone:
                return
            self._open.whole = [mind for mind in self._open.whole if not any(mind is each for each in gone)]
            self._open.versions = {
                name: mind
                for name, mind in self._open.versions.items()
                if any(mind is each for each in self._open.whole)
            }
            await self._relink(self.agents)
        await _close(gone)

    def busy(self) -> frozenset[str]:
        """Return the MCP servers that the runs which go on here call."""
        return frozenset(name for mind in list(self._uses.values()) for name in mind.servers.values())

    async def mind(self, agent: AgentSettings, *, ticket: str) -> Mind:
        """Return an agent as it answers now, held open for a run. Raises ConfigError when it cannot be opened."""
        authority = await self._warden.open()
        await self.see(self.servers_of(agent).values())
        async with self._opening:
            # Its file may have been taken anew meanwhile.
            agent = next((each for each in self.agents if each.id == agent.id), agent)
            now = self._in_force(authority)
            known = self._open.minds.get(agent.id)
            pins = await _skill_pins(agent, authority)
            if known is not None and known.settings is agent and (known.in_force, known.pins) == (now, pins):
                self._uses[ticket] = known
                return known
            mind = await self._opened(agent, now, authority, servers=self.servers_of(agent), pins=pins)
            self._open.minds[agent.id] = self._open.versions[mind.version] = self._uses[ticket] = mind
            self._open.whole.append(mind)
        book = await self.book()
        await asyncio.to_thread(book.keep_version, mind.version, agent)
        return mind

    async def mind_of(self, wanted: Wanted) -> Mind:
        """Return the agent in the version that a run began with. Raises ConfigError when nobody can open it any more."""
        known = self._uses.get(wanted.ticket) or self._open.versions.get(wanted.version)
        if known is not None:
            self._uses[wanted.ticket] = known
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
        async with self._opening:
            servers = await self._links.join(kept)
        await self.see(servers.values())
        async with self._opening:
            if wanted.version not in self._open.versions:
                mind = await self._opened(kept, self._in_force(authority), authority, servers=servers)
                # Its file is what it was; skills on disk, tools, policy and prices are those of today, and the run says so.
                mind = replace(mind, version=wanted.version, opened_as=mind.version)
                self._open.versions[wanted.version] = mind
                self._open.whole.append(mind)
            self._uses[wanted.ticket] = self._open.versions[wanted.version]
            return self._uses[wanted.ticket]

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
        """Return what decides now; worked out anew only when pins, policies or settings changed."""
        turn, settings = (authority.registry.turn, authority.guard.policy.digest), authority.settings
        if self._decided is None or self._decided[0] != turn or self._decided[1] is not settings:
            self._decided = turn, settings, in_force(authority)
        return self._decided[2]

    async def _opened(
        self,
        agent: AgentSettings,
        now: InForce,
        authority: Authority,
        *,
        servers: Mapping[str, str],
        pins: tuple[str, ...] = (),
    ) -> Mind:
        return await asyncio.to_thread(
            open_mind,
            agent,
            in_force=now,
            servers=servers,
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
        """Keep the headers of a request."""
        self.headers.hold(ticket, headers)

    def headers_of(self, run: str) -> Mapping[str, str]:
        """Return the headers of the request that began a run, as long as it goes on here."""
        return self.headers.of(self._tickets.get(run, ""))

    def ended(self, run: str, wanted: Wanted) -> None:
        """Forget the headers of a request, and that its run uses its version; `settle` then closes what nobody uses."""
        self.forget(wanted.ticket)
        self._tickets.pop(run, None)

    def forget(self, ticket: str) -> None:
        """Forget a request of which no run came."""
        self.headers.forget(ticket)
        self._uses.pop(ticket, None)

    def begun(self, run: str, ticket: str) -> None:
        """Note which run came of a request, unless it has ended already."""
        if ticket in self._uses:
            self._tickets[run] = ticket

    async def _miss(self) -> None:
        """Forget runs that went on elsewhere and ended there: those of earlier versions, and the oldest of too many."""
        present = list(self._open.minds.values())
        used = [(run, ticket, self._uses.get(ticket)) for run, ticket in self._tickets.items()]
        old = [each for each in used if each[2] is not None and not any(each[2] is mind for mind in present)]
        for run, ticket, _ in (*old[:_MISSED_MAX], *(used[:_MISSED_MAX] if len(used) > _HELD_MAX else ())):
            try:
                has_ended = (await self._warden.runs.get(run)).status.is_final
            except UsageError:
                has_ended = True  # long ago
            if has_ended:
                self.forget(ticket)
                self._tickets.pop(run, None)
        await self.settle()

    def _accounts(self, authority: Authority, run: str, mind: Mind, *, place: str = "") -> BudgetAccounts:
        spender = Spender(run=run, agent=mind.id, feature=KIND)
        # Those of its version: a file that is written anew changes nothing for runs that go on.
        budgets, caps, runs = authority.guard.budgets, caps_of_agent(mind.settings), self._warden.runs
        budgets = budgets.also(caps) if caps else budgets
        return BudgetAccounts(budgets, runs.database, spender=spender, place=place, write=runs.write)

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
            headers=self.headers.of(wanted.ticket),
            feature=KIND,
            ask_first=ask_first_of(mind.settings),
            people_s=people_s_of(mind.settings),
            spill=spill_of(mind.settings, mind.servers),
        )

    def directory_of(self, agent: AgentSettings) -> Path | None:
        """Return where the runs of an agent keep their files; None when they keep none."""
        return Path(os.path.abspath(agent.runs_dir)) if agent.runs_dir else None  # noqa: PTH100 - links stay as written


async def _close(minds: Sequence[Mind]) -> None:
    for model in {id(model): model for mind in minds for model in mind.models}.values():
        await model.close()


async def _skill_pins(agent: AgentSettings, authority: Authority) -> tuple[str, ...]:
    """Return the pins of an agent's skills; a journal is only asked for one that has any."""
    return await asyncio.to_thread(authority.skills.pins_of, agent) if git_sources(agent) else ()


def _told_change(model: Model, error: Exception) -> None:
    told = f"{error} {error.hint}".strip() if isinstance(error, QuellError) else str(error)
    telemetry.event("agent.model_left", model=f"{model.provider}/{model.name}", error=told)
