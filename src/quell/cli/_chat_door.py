"""The way to an agent, the same whether it answers in this process or behind a URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from quell.cli._init_senses import PROVIDERS, key_variable
from quell.cli._person import person_in
from quell.cli._session import Session
from quell.domain import ChatAsk, Heard, Message, RunStatus, UsageError

if TYPE_CHECKING:
    from quell.app import App
    from quell.config import AgentSettings
    from quell.domain import Approval, Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An agent as people choose it."""

    id: str
    description: str = ""
    model: str = ""
    takes_client_tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question to people, whole, as they have to see it before they answer."""

    id: str
    status: str
    digest: str
    ends: str
    what: str
    """One line of it."""
    text: str
    """All of it; empty in a listing."""


class ChatDoor(Protocol):
    """What `ask` and `chat` need of whoever runs the agents."""

    where: str
    """For people: `this process`, or the server's address."""

    async def cards(self) -> Sequence[Card]:
        """Return the agents that there are."""
        ...

    async def begin(self, ask: ChatAsk) -> str:
        """Begin to answer, and return the run's id."""
        ...

    def hear(self, run: str, *, after: str = "") -> AsyncGenerator[Heard, None]:
        """Yield what happens in a run until it has ended."""
        ...

    async def cancel(self, run: str) -> None:
        """Stop a run for good."""
        ...

    async def approvals(self) -> Sequence[Asked]:
        """Return what waits for people."""
        ...

    async def approval(self, beginning: str) -> Asked:
        """Return one question whole."""
        ...

    async def decide(self, asked: Asked, *, verdict: Literal["approve", "reject"], reason: str) -> str:
        """Answer exactly what was shown, and return what came of it."""
        ...

    async def edit(self, asked: Asked, *, arguments: str) -> str:
        """Ask others about other arguments instead, and return what came of it."""
        ...

    async def use_model(self, wanted: str) -> None:
        """Have every agent answer with this model from now on."""
        ...

    async def history(self, session: str) -> tuple[Message, ...]:
        """Return what was said in a conversation that others began; empty when nobody knows it."""
        ...


class Embedded:
    """The agents of this process."""

    where = "this process"

    def __init__(self, app: App, session: Session) -> None:
        self._app = app
        self._session = session
        self._by: Principal | None = None

    async def cards(self) -> Sequence[Card]:
        """Return the agents that there are, hidden ones left out."""
        return [card_of(agent) for agent in self._app.agents.agents() if not agent.agent.hidden]

    async def begin(self, ask: ChatAsk) -> str:
        """Begin to answer in this process."""
        by = await self.person()
        await self._app.launch(way="direct")
        return (await self._app.agents.start(ask, by=by)).id

    async def attend(self, run: str) -> str:
        """Go on with a run that was begun before, and return its whole id. Raises UsageError when there is none."""
        found = await self._app.runs.get(run)
        await self._app.launch(way="direct")
        if found.status is RunStatus.WAITING:
            # Whoever decided by the command line woke nobody: it would look by itself, but later.
            await self._app.runs.wake(found.id)
        return found.id

    def hear(self, run: str, *, after: str = "") -> AsyncGenerator[Heard, None]:
        """Yield what happens in a run."""
        return self._app.agents.follow(run, after=after)

    async def cancel(self, run: str) -> None:
        """Cancel a run, wherever it is carried out."""
        await self._app.agents.cancel(run)

    async def person(self) -> Principal:
        """Return who asks: whoever the API key proves, else the owner of the state directory. Raises RefusedError."""
        if self._by is None:
            self._by = await person_in(self._app, self._session)
        return self._by

    async def approvals(self) -> Sequence[Asked]:
        """Return what waits for people."""
        from quell.domain import ApprovalStatus

        authority, by = await self._app.open_authority(), await self.person()
        with self._app.runs.database.reading() as connection:
            found = authority.guard.approvals.listed(
                connection, tenant=by.tenant, status=ApprovalStatus.REQUESTED, run="", items_max=50
            )
        return [self._asked(each, text="") for each in found]

    async def approval(self, beginning: str) -> Asked:
        """Return one question whole. Raises UsageError when there is no such one."""
        authority, by = await self._app.open_authority(), await self.person()
        approvals = authority.guard.approvals
        with self._app.runs.database.reading() as connection:
            named = approvals.named(connection, beginning, tenant=by.tenant)
            found = approvals.find(connection, named, tenant=by.tenant)
        assert found is not None, "what was named is there"
        return self._asked(found, text=authority.redactor.text(approvals.show(found, form="text")))

    async def decide(self, asked: Asked, *, verdict: Literal["approve", "reject"], reason: str) -> str:
        """Answer exactly what was shown. Raises RefusedError."""
        decided = await self._app.warden.vote(
            asked.id, by=await self.person(), verdict=verdict, digest_seen=asked.digest, reason=reason, way="cli"
        )
        return decided.told

    async def edit(self, asked: Asked, *, arguments: str) -> str:
        """Ask others about other arguments instead. Raises RefusedError or UsageError."""
        authority = await self._app.open_authority()
        edited = await authority.toolbox.edit(
            asked.id, arguments=arguments, by=await self.person(), digest_seen=asked.digest, way="cli"
        )
        return f"{edited.id} is asked instead; neither you nor who asked may approve it"

    async def use_model(self, wanted: str) -> None:
        """Have every agent answer with this model from now on; what goes on keeps its own. Raises UsageError."""
        desk = self._app.agents
        await desk.take(with_model(desk.agents(), wanted, self._session))

    async def history(self, session: str) -> tuple[Message, ...]:
        """Return what was said in a conversation of this person, by whatever protocol."""
        return await self._app.agents.conversation(session, by=await self.person())

    @staticmethod
    def _asked(approval: Approval, *, text: str) -> Asked:
        calls = ", ".join(
            f"{each.call.tool} on {each.call.resource.name or 'the server'}" for each in approval.terms.calls
        )
        return Asked(
            id=approval.id,
            status=approval.status.value,
            digest=approval.digest,
            ends=f"{approval.terms.expires_at:%Y-%m-%d %H:%M:%SZ}",
            what=calls,
            text=text,
        )


def card_of(agent: AgentSettings) -> Card:
    """Return an agent as people choose it."""
    llm = agent.agent.llm
    return Card(
        id=agent.id,
        description=agent.agent.description,
        model="builtin" if llm.provider == "builtin" else f"{llm.provider}/{llm.model}",
        takes_client_tools=agent.agent.enable_client_tools,
    )


def with_model(agents: Sequence[AgentSettings], wanted: str, session: Session) -> tuple[AgentSettings, ...]:
    """Return the agents with another model. Raises UsageError for what names none."""
    from quell.config import AgentSettings, AgentTable, LlmSettings, Secret

    provider, _, name = wanted.partition("/")
    if provider not in PROVIDERS or (not name and provider != "builtin"):
        raise UsageError(
            f"{wanted!r} is no model", hint=f"write PROVIDER/NAME or builtin; PROVIDER: {', '.join(PROVIDERS)}"
        )
    variable = key_variable(provider, session.env)
    region = session.env.get("AWS_REGION", "") or session.env.get("AWS_DEFAULT_REGION", "")
    fresh = LlmSettings(
        provider=provider,  # type: ignore[arg-type]  # one of them, as checked
        model=name or "builtin",
        api_key=Secret(session.env.get(variable, "")),
        region=region if provider == "bedrock" else "",
    )
    if not agents:
        table = AgentTable(name="quell", system_prompt=_PROMPT, turn_depth=8, llm=fresh)
        agents = (AgentSettings(agent=table),)
    changed: list[AgentSettings] = []
    for agent in agents:
        same = agent.agent.llm.provider == provider and provider != "builtin"
        llm = replace(agent.agent.llm, model=name) if same else fresh
        if variable and not llm.api_key:
            raise UsageError(f"there is no key of {provider}", hint=f"export {variable}=..., or `quell init`")
        # The fallbacks of the file are those of its own model: who names one wants that one's answer.
        changed.append(replace(agent, agent=replace(agent.agent, llm=llm), quell=replace(agent.quell, fallback=())))
    return tuple(changed)


_PROMPT = (
    "You help engineers who run a production system. Find out what is true with your tools before you say it, be short, "
    "cite the evidence of what you claim, and say what you do not know."
)
