"""The agents of a deployment, for every protocol: what is asked becomes a durable run, and whoever wants to hears it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from quell import telemetry
from quell.agent import AgentAnswer
from quell.app._agent_book import Session
from quell.app._agent_follow import Follower, Straight, followed
from quell.app._agent_links import AgentLinks
from quell.app._agent_minds import Mind, default_agent, parted
from quell.app._agent_room import KIND, AgentRoom, Wanted
from quell.config import AgentSettings, McpServerSettings, load_agents
from quell.domain import (
    Asker,
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
    ServerState,
    Tool,
    UsageError,
    WorldError,
    asker_of,
)
from quell.runs import Done, Next, RunContext, WaitUntil
from quell.tools import LocalHand

if TYPE_CHECKING:
    from quell.app._warden import Warden

Stamp: TypeAlias = tuple[tuple[str, int, int], ...]
"""Name, time and size of each agent file."""
_SUBJECT_CHARS = 200
_NAMED_MAX = 10
_TICKET_BYTES = 16
_SESSION = re.compile(r"[\x21-\x7e]{1,200}")


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
        own: Mapping[str, McpServerSettings],
        servers: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Take the agents as they are configured; `servers` tells for each how its MCP servers are called among all.

        `own` are the servers of the deployment itself, which no agent file takes away.
        """
        links = AgentLinks(warden, own=own, names=servers or {})
        self._room = AgentRoom(tuple(agents) or (default_agent(),), warden=warden, clock=clock, env=env, links=links)
        self._runs = warden.runs
        self._warden = warden
        self._entropy = entropy
        self._env = env
        self._default = warden.settings.default_agent
        self._stamp: Stamp | None = None
        self._runs.register(KIND, self._work, way="direct")

    # -- who there is -------------------------------------------------------------------------------------------------

    def agents(self) -> tuple[AgentSettings, ...]:
        """Return every agent, hidden ones too."""
        return self._room.agents

    def find(self, name: str) -> AgentSettings:
        """Return an agent by its id; of an empty one the default.

        Raises RefusedError (`unknown`) when there is none, and UsageError when several could be meant.
        """
        wanted = name or self._default
        if not wanted:
            if len(self._room.agents) == 1:
                return self._room.agents[0]
            raise UsageError("you must provide a model parameter", hint=f"one of: {self._names()}")
        for agent in self._room.agents:
            if agent.id == wanted:
                return agent
        if len(self._room.agents) == 1 and not self._default:
            # AURA takes any name where there is one agent: clients send their provider's.
            return self._room.agents[0]
        raise RefusedError(f"there is no agent {wanted[:100]!r}", hint=f"there are: {self._names()}", code="unknown")

    def _names(self) -> str:
        return ", ".join([agent.id for agent in self._room.agents if not agent.agent.hidden][:_NAMED_MAX])

    def headers_of(self, run: str) -> Mapping[str, str]:
        """Return the headers of the request that began a run, as long as it goes on here."""
        return self._room.headers_of(run)

    async def asker(self, run: str, call: str) -> Asker:
        """Return who in a run wanted a call; of what is no run of an agent, the run alone."""
        try:
            wanted = await self.wanted(run)
        except UsageError:
            return Asker(run=run)
        plan = (await self.agent_of(wanted)).orchestration
        return asker_of(
            await self._asked_as(run, call),
            run=run,
            session=wanted.ask.session,
            workers=plan.worker,
            mind="crew" if plan.enabled else "agent",
        )

    async def _asked_as(self, run: str, call: str) -> Mapping[str, object]:
        """Return what was told of a call when it was wanted; nothing when it was not."""
        after = 0
        while batch := await self._runs.events(run=run, after=after):
            after = batch[-1].seq
            for event in batch:
                if event.name == "agent.call_asked" and (body := json.loads(event.body)).get("call") == call:
                    return dict(body)
        return {}

    def busy(self) -> frozenset[str]:
        """Return the MCP servers that the runs which go on here call, by their names among all."""
        return self._room.busy()

    def hands(self) -> list[tuple[Tool, LocalHand]]:
        """Return the tools that come with agents."""
        return self._room.hands()

    def servers_of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the MCP servers of an agent by their names in its file, and what each is called among all."""
        return self._room.servers_of(agent)

    async def servers(self, agent: AgentSettings) -> tuple[ServerState, ...]:
        """Return how the MCP servers of an agent are, under the names of its file; it asks those that were not there."""
        return await self._room.servers(agent)

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
        _check(ask, agent)
        ticket = self._entropy(_TICKET_BYTES).hex()
        try:
            mind = await self._room.mind(agent, ticket=ticket)
            if headers:
                self._room.hold(ticket, headers)
            wanted = Wanted(ask=ask, by=by, agent=agent.id, version=mind.version, ticket=ticket)
            # As a list: any of them may hold what would stand between them.
            place = msgspec.json.encode([KIND, by.tenant, by.user, key]).decode() if key else None
            run = await self._runs.start(KIND, subject=_subject(ask), arguments=msgspec.to_builtins(wanted), key=place)
            if key:
                await self._same(run, wanted)
        except BaseException:
            self._room.forget(ticket)
            raise
        self._room.begun(run.id, ticket)
        await self._kept(run.id, wanted, write=self._runs.write_beside)
        return run

    def follow(self, run: str, *, after: str = "", straight: Straight | None = None) -> AsyncGenerator[Heard, None]:
        """Yield what happened in a run and what is being said, in order, until it has ended.

        `after` is the id of what somebody heard last; what `straight` can take in the moment in which it is said is not
        yielded. Raises UsageError for an id that is none.
        """
        return followed(self._runs, self._room.live, run, after=after, straight=straight)

    @staticmethod
    def check_place(after: str) -> None:
        """Raise UsageError for what is not the id of something that was heard."""
        Follower.after("", after)

    async def answer(self, run: str, *, timeout_s: float) -> AgentAnswer | None:
        """Wait for the answer of a run; None when it has not ended by then.

        Raises WorldError when it failed, and RefusedError (`gone`) when it was cancelled.
        """
        ended = await self._runs.wait(run, timeout_s=timeout_s)
        if not ended.status.is_final:
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
        with suppress(QuellError):
            self._room.ended(run, await self.wanted(run))
        await self._room.settle()

    async def sessions(self, *, by: Principal, sessions_max: int = 50) -> Sequence[Session]:
        """Return somebody's conversations, that of the newest question first."""
        book = await self._room.book()
        return await asyncio.to_thread(book.sessions, by=by, sessions_max=sessions_max)

    async def conversation(self, session: str, *, by: Principal) -> tuple[Message, ...]:
        """Return what was said in somebody's conversation, up to its newest answer; empty when there was none.

        Raises UsageError for what cannot be the id of one.
        """
        _check_session(session)
        book = await self._room.book()
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

        Runs that go on keep the version that they began with, with its MCP servers and budgets.
        """
        await self._room.look()
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
            await self.take(found.agents)
        except ConfigError as error:
            told = "; ".join(f"{each.source}: {each.path}: {each.reason}" for each in error.problems[:_NAMED_MAX])
            telemetry.event("agents.not_reloaded", error=f"{error}: {told}" if told else str(error))

    async def take(self, agents: Sequence[AgentSettings]) -> None:
        """Answer with these agents from now on; runs that go on keep theirs.

        Raises ConfigError with every mistake of their MCP servers: then everything stays as it was. One that cannot be
        reached is told of and left, as at a start.
        """
        for agent in agents:
            self._warden.redactor.hold_all(f"agents.{agent.id}", agent)
        new = await self._room.take(agents)
        telemetry.event(
            "agents.reloaded",
            agents=[agent.id for agent in self._room.agents],
            servers=new,
            after_restart=self._room.untaken(agents),
        )
        await self._room.settle()
        await self._room.see(new)

    async def wanted(self, run: str) -> Wanted:
        """Return what a run was asked, and by whom. Raises UsageError when it is no run of an agent."""
        found = await self._runs.arguments(run)
        try:
            return msgspec.convert(found, type=Wanted)
        except msgspec.ValidationError:
            raise UsageError(f"{run[:100]!r} is no run of an agent", hint="`quell run list` tells what it is") from None

    async def agent_of(self, wanted: Wanted) -> AgentSettings:
        """Return the agent that a run began with, also when no file has it any more."""
        return await self._room.settings_of(wanted)

    async def close(self) -> None:
        """Close the models and the stores."""
        await self._room.close()

    # -- the work -----------------------------------------------------------------------------------------------------

    async def _work(self, context: RunContext) -> Next:
        """Go on with a run until it is answered, or waits for people."""
        wanted = msgspec.convert(context.arguments, type=Wanted)
        try:
            ended = await self._answered(context, wanted)
        except Exception:
            self._room.ended(context.run.id, wanted)
            await self._room.settle()
            raise
        finally:
            # Whoever broke off in the middle of a turn said something that no journal will have.
            self._room.live.settle(context.run.id)
        if isinstance(ended, WaitUntil):
            return ended
        await self._kept(context.run.id, wanted, write=self._runs.write)
        self._room.ended(context.run.id, wanted)
        await self._room.settle()
        return Done(result=msgspec.to_builtins(ended))

    async def _answered(self, context: RunContext, wanted: Wanted) -> AgentAnswer | WaitUntil:
        mind = await self._room.mind_of(wanted)
        agent, caller = await self._room.answering(context, wanted, mind)
        ask = wanted.ask
        with telemetry.genai.conversing(session=ask.session, user=ask.user, metadata=ask.metadata):
            if mind.opened_as not in ("", mind.version):
                told = {"agent": mind.id, "version": mind.version, "now": mind.opened_as}
                await context.emit("agent.version_differs", key=f"differs.{mind.opened_as}", **told)
            if not context.state:
                # In the flush that asking the model waits for: it comes first, as what is written goes out in its order.
                began = asyncio.create_task(context.emit_beside("agent.began", key="began", **_began(wanted, mind)))
                await asyncio.sleep(0)
                try:
                    return await agent.begin(context, parted(ask.messages)[0], caller=caller)
                finally:
                    await began
            return await agent.go_on(context, context.state, caller=caller)

    async def _kept(self, run: str, wanted: Wanted, *, write: Callable[..., Awaitable[object]]) -> None:
        """Note whose conversation a run belongs to: when it begins, and once it is answered, should that have failed."""
        ask = wanted.ask
        if not ask.session:
            return
        with suppress(QuellError):  # a journal that blinks costs no run and no answer
            book = await self._room.book()
            await write(book.keep_run, ask.session, run=run, by=wanted.by, agent=wanted.agent, subject=_subject(ask))

    def _clean(self, ask: ChatAsk) -> ChatAsk:
        """Take secrets of ours out of what is asked, before anything of it is kept or sent."""
        clean = self._warden.redactor.text
        messages = [
            replace(
                each,
                text=clean(each.text),
                calls=tuple(replace(call, arguments=clean(call.arguments)) for call in each.calls),
            )
            for each in ask.messages
        ]
        tools = [
            replace(each, description=clean(each.description), parameters=clean(each.parameters))
            for each in ask.client_tools
        ]
        return replace(
            ask,
            messages=tuple(messages),
            client_tools=tuple(tools),
            user=clean(ask.user),
            metadata={clean(key): clean(value) for key, value in ask.metadata.items()},
            answer_schema=clean(ask.answer_schema),
        )

    async def _same(self, run: Run, wanted: Wanted) -> None:
        """Refuse a key that stands for another question."""
        first = await self.wanted(run.id)
        if _digest(first.ask) != _digest(wanted.ask):
            raise RefusedError("this key stands for another question", hint="use each key once", code="mismatch")
        if first.ticket != wanted.ticket:
            self._room.forget(wanted.ticket)


def _stamp_of(path: Path) -> Stamp:
    """Return what tells whether files were written since."""
    found = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    stamps = []
    for each in found:
        with suppress(OSError):
            about = each.stat()
            stamps.append((str(each), about.st_mtime_ns, about.st_size))
    return tuple(stamps)


def _check_session(session: str) -> None:
    # It stands in headers, in traces and in rows: what a line or a row ends with has no place in it.
    if session and not _SESSION.fullmatch(session):
        raise UsageError(
            "the session id must be 1 to 200 visible characters of ASCII", hint="leave it out, and one is made"
        )


def _check(ask: ChatAsk, agent: AgentSettings) -> None:
    _check_session(ask.session)
    if ask.answer_schema and agent.orchestration.enabled:
        raise UsageError(
            f"{agent.id!r} has workers, and answers of workers have no schema",
            hint="leave `response_format` out, or ask an agent without workers",
        )
    asked = [message for message in ask.messages if message.role != "system"]
    if not asked:
        raise UsageError("nothing is asked", hint="send at least one message of the user")
    if asked[-1].role not in {"user", "tool"}:
        raise UsageError("the last message is not the user's", hint="end with a message of role user, or tool")


def _subject(ask: ChatAsk) -> str:
    asked: Message = [message for message in ask.messages if message.role != "system"][-1]
    return " ".join(asked.text.replace("\0", " ").split())[:_SUBJECT_CHARS] or asked.role


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
