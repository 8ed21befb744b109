"""The agents of a deployment, for every protocol: what is asked becomes a durable run, and whoever wants to hears it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from quell import telemetry
from quell.agent import Agent, AgentAnswer, BudgetAccounts, Live
from quell.app._agent_book import AgentBook, Session
from quell.app._agent_follow import followed
from quell.app._agent_minds import Mind, default_agent, open_mind, parted, role_of
from quell.app._agent_tools import offered
from quell.app._in_force import InForce, in_force
from quell.app._memory import DOCUMENTS, open_store, search_hand, skill_hands
from quell.config import AgentSettings, load_agents
from quell.domain import (
    CallRequest,
    ChatAsk,
    Clock,
    ConfigError,
    Entropy,
    Heard,
    Message,
    Principal,
    QuellError,
    RefusedError,
    Run,
    RunStatus,
    Spender,
    Tool,
    ToolCaller,
    UsageError,
    WorldError,
)
from quell.memory import DocumentStore, Library, Shelf, Skills
from quell.models import Limits, Model
from quell.runs import Done, Next, RunContext, WaitUntil
from quell.tools import LocalHand

if TYPE_CHECKING:
    from quell.app._authority import Authority
    from quell.app._warden import Warden

KIND = "chat"
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]
"""Name, time and size of each agent file."""
_SUBJECT_CHARS = 200
_NAMED_MAX = 10
_CALL_S = 300.0
_TICKET_BYTES = 16
_ENDED = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run was started with: everything that it needs after a crash."""

    ask: ChatAsk
    by: Principal
    agent: str
    version: str
    ticket: str
    """Names the request's headers, which stay in memory alone."""


@dataclass(slots=True)
class _Room:
    """What the desk holds of its agents."""

    minds: dict[str, Mind] = field(default_factory=dict)
    """By id, as they answer now."""
    versions: dict[str, Mind] = field(default_factory=dict)
    """By version, those of runs that go on as well."""


class AgentDesk:
    """Takes questions to agents, and tells what comes of them."""

    def __init__(
        self,
        agents: Sequence[AgentSettings],
        *,
        warden: Warden,
        clock: Clock,
        entropy: Entropy,
        env: Mapping[str, str],
        servers: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Take the agents as they are configured; `servers` tells for each how its MCP servers are called among all."""
        self._agents = tuple(agents) or (default_agent(),)
        self._runs = warden.runs
        self._warden = warden
        self._clock = clock
        self._entropy = entropy
        self._env = env
        self._default = warden.settings.default_agent
        self._servers = servers or {}
        self._live = Live()
        self._limits = Limits(time.monotonic)
        self._room = _Room()
        self._headers: dict[str, Mapping[str, str]] = {}
        self._opening = asyncio.Lock()
        self._stores: list[DocumentStore] = []
        self._book: AgentBook | None = None
        self._stamp: Stamp | None = None
        self._decided: tuple[tuple[int, str], InForce] | None = None
        self._runs.register(KIND, self._work)

    # -- who there is -------------------------------------------------------------------------------------------------

    def agents(self) -> tuple[AgentSettings, ...]:
        """Return every agent, hidden ones too."""
        return self._agents

    def find(self, name: str) -> AgentSettings:
        """Return an agent by its id; of an empty one the default.

        Raises RefusedError (`unknown`) when there is none, and UsageError when several could be meant.
        """
        wanted = name or self._default
        if not wanted:
            if len(self._agents) == 1:
                return self._agents[0]
            raise UsageError("you must provide a model parameter", hint=f"one of: {self._names()}")
        for agent in self._agents:
            if agent.id == wanted:
                return agent
        if len(self._agents) == 1 and not self._default:
            # AURA takes any name where there is one agent: clients send their provider's.
            return self._agents[0]
        raise RefusedError(f"there is no agent {wanted[:100]!r}", hint=f"there are: {self._names()}", code="unknown")

    def _names(self) -> str:
        return ", ".join([agent.id for agent in self._agents if not agent.agent.hidden][:_NAMED_MAX])

    def hands(self) -> list[tuple[Tool, LocalHand]]:
        """Return the tools that come with agents: their skills, and the documents of the operator and of their stores."""
        library = Library(self._warden.settings.state_dir, clock=self._clock)
        stores: dict[str, DocumentStore] = {DOCUMENTS: Shelf(library, name=DOCUMENTS)}
        for agent in self._agents:
            for each in agent.vector_stores:
                if each.name not in stores:
                    stores[each.name] = open_store(each, library=library, clock=self._clock, env=self._env)
                    self._stores.append(stores[each.name])
        prefixes = {each.name: each.context_prefix for agent in self._agents for each in agent.vector_stores}
        searching = [
            search_hand(store, clock=self._clock, context_prefix=prefixes.get(name, ""))
            for name, store in stores.items()
        ]
        return [*skill_hands(self._skills_of), *searching]

    def _skills_of(self, request: CallRequest) -> Skills:
        mind = self._room.versions.get(request.caller.principal.workflow_digest)
        return mind.skills if mind is not None else Skills.load(())

    # -- questions ----------------------------------------------------------------------------------------------------

    async def start(
        self, ask: ChatAsk, *, by: Principal, headers: Mapping[str, str] | None = None, key: str = ""
    ) -> Run:
        """Begin to answer: the run goes on whatever becomes of who asked.

        `headers` are those of the request, kept in memory for servers that are told to pass some on. `key` makes the
        same question again the same run.

        Raises:
            RefusedError: there is no such agent (`unknown`), or the key stands for another question (`mismatch`).
            UsageError: nothing is asked, or several agents could be meant.
            ConfigError, JournalError: the agent, or what it rests on, cannot be opened.
        """
        agent = self.find(ask.agent)
        ask = self._clean(ask)
        _check(ask)
        mind = await self._mind(agent)
        ticket = self._entropy(_TICKET_BYTES).hex()
        if headers:
            self._headers[ticket] = dict(headers)
        wanted = Wanted(ask=ask, by=by, agent=agent.id, version=mind.version, ticket=ticket)
        place = f"chat:{by.tenant}:{by.user}:{key}" if key else None
        try:
            run = await self._runs.start(KIND, subject=_subject(ask), arguments=msgspec.to_builtins(wanted), key=place)
        except BaseException:
            self._headers.pop(ticket, None)
            raise
        if key:
            await self._same(run, wanted)
        if ask.session:
            book = await self._opened_book()
            await asyncio.to_thread(
                book.keep_run, ask.session, run=run.id, by=by, agent=agent.id, subject=_subject(ask)
            )
        return run

    def follow(self, run: str, *, after: str = "") -> AsyncGenerator[Heard, None]:
        """Yield what happened in a run and what is being said, in order, until it has ended.

        `after` is the id of what somebody heard last. Raises UsageError for an id that is none.
        """
        return followed(self._runs, self._live, run, after=after)

    async def answer(self, run: str, *, timeout_s: float) -> AgentAnswer | None:
        """Wait for the answer of a run; None when it has not ended by then.

        Raises WorldError when it failed, and RefusedError (`gone`) when it was cancelled.
        """
        ended = await self._runs.wait(run, timeout_s=timeout_s)
        if ended.status not in _ENDED:
            return None
        if ended.status is RunStatus.FAILED:
            raise WorldError(f"the run {ended.id} failed: {ended.error}", hint=f"quell run trace {ended.id}")
        if ended.status is RunStatus.CANCELLED:
            raise RefusedError(f"the run {ended.id} was cancelled", hint="ask again", code="gone")
        return msgspec.json.decode(ended.result, type=AgentAnswer)

    async def cancel(self, run: str) -> None:
        """Stop a run, wherever it is; calls in flight are cancelled. One that has ended stays as it is."""
        try:
            await self._runs.cancel(run)
        except RefusedError:
            return

    async def sessions(self, *, by: Principal, sessions_max: int = 50) -> Sequence[Session]:
        """Return somebody's conversations, that of the newest question first."""
        book = await self._opened_book()
        return await asyncio.to_thread(book.sessions, by=by, sessions_max=sessions_max)

    async def conversation(self, session: str, *, by: Principal) -> tuple[Message, ...]:
        """Return what was said in somebody's conversation, up to its newest answer; empty when there was none."""
        book = await self._opened_book()
        for run in await asyncio.to_thread(book.runs_of, session, by=by):
            try:
                answer = await self.answer(run, timeout_s=0)
                wanted = await self.wanted(run)
            except QuellError:
                continue
            if answer is not None:
                return (*wanted.ask.messages, Message(role="assistant", text=answer.text))
        return ()

    async def look(self) -> None:
        """Take the agent files as they are written now, when they changed; mistakes leave everything as it was.

        Runs that go on keep the version that they began with. MCP servers that are new are there after a restart.
        """
        path = self._warden.settings.agents
        if not path:
            return
        stamp = await asyncio.to_thread(_stamp_of, Path(path))
        if self._stamp in (None, stamp):
            self._stamp = stamp
            return
        self._stamp = stamp
        try:
            found = await asyncio.to_thread(load_agents, Path(path), env=self._env)
        except ConfigError as error:
            told = "; ".join(f"{each.source}: {each.path}: {each.reason}" for each in error.problems[:_NAMED_MAX])
            telemetry.event("agents.not_reloaded", error=f"{error}: {told}" if told else str(error))
            return
        self.take(found.agents)

    def take(self, agents: Sequence[AgentSettings]) -> None:
        """Answer with these agents from now on; runs that go on keep theirs."""
        for agent in agents:
            self._warden.redactor.hold_all(f"agents.{agent.id}", agent)
        known = {name for names in self._servers.values() for name in names}
        new = sorted({name for agent in agents for name in agent.mcp.servers} - known)
        self._agents = tuple(agents) or (default_agent(),)
        telemetry.event("agents.reloaded", agents=[agent.id for agent in self._agents], servers_after_restart=new)

    async def wanted(self, run: str) -> Wanted:
        """Return what a run was asked, and by whom. Raises UsageError when it is no run of an agent."""
        found = await self._runs.arguments(run)
        return msgspec.convert(found, type=Wanted)

    async def close(self) -> None:
        """Close the models and the stores."""
        for store in self._stores:
            await store.close()
        models = {id(model): model for mind in self._room.versions.values() for model in (mind.model, mind.small)}
        for model in models.values():
            await model.close()

    # -- the work -----------------------------------------------------------------------------------------------------

    async def _work(self, context: RunContext) -> Next:
        """Go on with a run until it is answered, or waits for people."""
        wanted = msgspec.convert(context.arguments, type=Wanted)
        mind = await self._mind_of(wanted)
        authority = await self._warden.open()
        tools = offered(authority.toolbox.catalog(), mind.settings, servers=mind.servers)
        ask = wanted.ask
        messages, told = parted(ask.messages)
        instructions = told if mind.settings.quell.system_messages == "append" else ""
        agent = Agent(
            role_of(mind, ask, tools=tools, instructions=instructions),
            model=mind.model,
            toolbox=authority.toolbox,
            live=self._live,
            accounts=self._accounts(authority, context.run.id, mind),
            monotonic=time.monotonic,
        )
        caller = self._caller(context, wanted, mind, tools=tools)
        with telemetry.genai.conversing(session=ask.session, user=ask.user, metadata=ask.metadata):
            if not context.state:
                await context.emit("agent.began", key="began", **_began(wanted, mind))
                ended = await agent.begin(context, messages, caller=caller)
            else:
                ended = await agent.go_on(context, context.state, caller=caller)
        if isinstance(ended, WaitUntil):
            return ended
        self._headers.pop(wanted.ticket, None)
        return Done(result=msgspec.to_builtins(ended))

    def _caller(self, context: RunContext, wanted: Wanted, mind: Mind, *, tools: Sequence[Tool]) -> ToolCaller:
        names = tuple(tool.name for tool in tools)
        principal = replace(
            wanted.by,
            agent=mind.id,
            agent_tools=names,
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
            headers=self._headers.get(wanted.ticket, {}),
            feature=KIND,
        )

    def _accounts(self, authority: Authority, run: str, mind: Mind) -> BudgetAccounts:
        spender = Spender(run=run, agent=mind.id, feature=KIND)
        return BudgetAccounts(authority.guard.budgets, self._runs.database, spender=spender)

    async def _mind_of(self, wanted: Wanted) -> Mind:
        """Return the agent in the version that the run began with."""
        known = self._room.versions.get(wanted.version)
        if known is not None:
            return known
        now = next((agent for agent in self._agents if agent.id == wanted.agent), None)
        book = await self._opened_book()
        kept = await asyncio.to_thread(book.version, wanted.version, now=now)
        if kept is None:
            raise ConfigError(
                f"nobody knows the version {wanted.version} of the agent {wanted.agent!r}",
                hint="its run began in another journal, or long ago: cancel it and ask again",
            )
        authority = await self._warden.open()
        mind = await self._opened(kept, self._in_force_now(authority))
        self._room.versions[wanted.version] = replace(mind, version=wanted.version)
        return self._room.versions[wanted.version]

    async def _opened_book(self) -> AgentBook:
        async with self._opening:
            if self._book is None:
                self._book = await asyncio.to_thread(AgentBook, self._runs.database, clock=self._clock)
            return self._book

    def _servers_of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the MCP servers of an agent: those of its file, or of the deployment when it names none."""
        everyone = {name: name for name in self._warden.settings.mcp.servers}
        return self._servers.get(agent.id, {}) if agent.mcp.servers else everyone

    async def _mind(self, agent: AgentSettings) -> Mind:
        authority = await self._warden.open()
        async with self._opening:
            now = self._in_force_now(authority)
            known = self._room.minds.get(agent.id)
            if known is not None and known.settings is agent and known.in_force == now:
                return known
            mind = await self._opened(agent, now)
            self._room.minds[agent.id] = self._room.versions[mind.version] = mind
        book = await self._opened_book()
        await asyncio.to_thread(book.keep_version, mind.version, agent)
        return mind

    def _in_force_now(self, authority: Authority) -> InForce:
        """Return what decides now; worked out anew only when pins or policies changed."""
        turn = (authority.registry.turn, authority.guard.policy.digest)
        if self._decided is None or self._decided[0] != turn:
            self._decided = turn, in_force(authority)
        return self._decided[1]

    async def _opened(self, agent: AgentSettings, now: InForce) -> Mind:
        return await asyncio.to_thread(
            open_mind,
            agent,
            in_force=now,
            servers=self._servers_of(agent),
            clock=self._clock,
            env=self._env,
            limits=self._limits,
            on_change=_told_change,
        )

    def _clean(self, ask: ChatAsk) -> ChatAsk:
        """Take secrets of ours out of what is asked, before anything of it is kept or sent."""
        clean = self._warden.redactor.text
        return replace(ask, messages=tuple(replace(each, text=clean(each.text)) for each in ask.messages))

    async def _same(self, run: Run, wanted: Wanted) -> None:
        """Refuse a key that stands for another question."""
        first = await self.wanted(run.id)
        if _digest(first.ask) != _digest(wanted.ask):
            raise RefusedError("this key stands for another question", hint="use each key once", code="mismatch")
        if first.ticket != wanted.ticket:
            self._headers.pop(wanted.ticket, None)


def _stamp_of(path: Path) -> Stamp:
    """Return what tells whether files were written since."""
    found = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    stamps = []
    for each in found:
        with suppress(OSError):
            about = each.stat()
            stamps.append((str(each), about.st_mtime_ns, about.st_size))
    return tuple(stamps)


def _check(ask: ChatAsk) -> None:
    asked = [message for message in ask.messages if message.role != "system"]
    if not asked:
        raise UsageError("nothing is asked", hint="send at least one message of the user")
    if asked[-1].role not in {"user", "tool"}:
        raise UsageError("the last message is not the user's", hint="end with a message of role user, or tool")


def _subject(ask: ChatAsk) -> str:
    asked: Message = [message for message in ask.messages if message.role != "system"][-1]
    return " ".join(asked.text.split())[:_SUBJECT_CHARS] or asked.role


def _digest(ask: ChatAsk) -> str:
    return hashlib.sha256(msgspec.json.encode(ask, order="sorted")).hexdigest()


def _began(wanted: Wanted, mind: Mind) -> dict[str, object]:
    return {
        "agent": mind.id,
        "model": f"{mind.model.provider}/{mind.model.name}",
        "window": mind.model.window,
        "session": wanted.ask.session,
        "version": mind.version,
    }


def _told_change(model: Model, error: Exception) -> None:
    told = f"{error} {error.hint}".strip() if isinstance(error, QuellError) else str(error)
    telemetry.event("agent.model_left", model=f"{model.provider}/{model.name}", error=told)
