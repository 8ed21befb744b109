"""From what an agent's file says to what answers: its model, its role, its skills and documents, and its version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from quell.agent import Role, WorkerSpec
from quell.app._agent_servers import spill_of
from quell.app._in_force import InForce
from quell.config import AgentSettings, AgentTable, LlmSettings, ScratchpadSettings, Secret, SkillSettings
from quell.domain import ChatAsk, Clock, Message
from quell.memory import Skills
from quell.models import ChainModel, Limits, Model, open_model

DEFAULT_NAME = "quell"
_SKILL_TOKENS_MAX = 1_500
_VERSION_DIGITS = 16
_MARGIN_MAX = 0.95
_PREAMBLE = (
    "You help engineers who run a production system. Find out what is true with your tools before you say it, be short, "
    "and say what you do not know."
)


def default_agent() -> AgentSettings:
    """Return the agent that is there when nobody configured one: it needs no model and no key."""
    return AgentSettings(
        agent=AgentTable(
            name=DEFAULT_NAME,
            description="Answers questions about the live system, with evidence and without a language model.",
            system_prompt=_PREAMBLE,
            turn_depth=8,
            llm=LlmSettings(provider="builtin", model="builtin"),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hired:
    """What a worker has of its own."""

    model: Model
    skills: Skills


@dataclass(frozen=True, slots=True, kw_only=True)
class Mind:
    """One version of one agent, ready to answer."""

    settings: AgentSettings
    version: str
    """Digest of all that makes its answers what they are."""
    model: Model
    small: Model
    """For workers, where the file names one; else the same."""
    skills: Skills
    servers: Mapping[str, str]
    """Name of an MCP server in its file -> its name among all."""
    in_force: InForce
    """Tools, policy and settings that the version was made under."""
    pins: tuple[str, ...] = ()
    """Of its skills from repositories."""
    workers: Mapping[str, Hired] = field(default_factory=dict)
    """By name, what a worker has of its own."""

    @property
    def id(self) -> str:
        """Return the id by which clients choose it."""
        return self.settings.id

    @property
    def models(self) -> tuple[Model, ...]:
        """Return every model that it holds open."""
        own = (hired.model for hired in self.workers.values())
        return (self.model, self.small, *own)

    def skills_of(self, name: str) -> Skills:
        """Return the skills of the agent, or of one of its workers."""
        hired = self.workers.get(name)
        return self.skills if hired is None else hired.skills


def open_mind(
    settings: AgentSettings,
    *,
    in_force: InForce,
    servers: Mapping[str, str],
    clock: Clock,
    env: Mapping[str, str],
    limits: Limits,
    on_change: Callable[[Model, Exception], None],
    price_of: Callable[[str, str], object],
    skills_of: Callable[[SkillSettings], Skills],
    pins: tuple[str, ...] = (),
) -> Mind:
    """Open what an agent needs; nothing is asked yet. Raises ConfigError when a part of it cannot be."""
    skills = skills_of(settings.agent.skills)

    def opened(llm: LlmSettings) -> Model:
        return open_model(llm, clock=clock, env=env, limits=limits)

    table = settings.quell
    models = [opened(settings.agent.llm), *map(opened, table.fallback)]
    model = models[0] if len(models) == 1 else ChainModel(models, on_change=on_change)
    small = opened(table.small) if table.small is not None else model
    workers = {
        name: Hired(
            model=opened(worker.llm) if worker.llm is not None else small,
            skills=skills if worker.skills is None else skills_of(worker.skills),
        )
        for name, worker in settings.orchestration.worker.items()
    }
    # What is charged is a part of what they do: other prices end runs elsewhere.
    own = (hired.model for hired in workers.values())
    prices = [str(price_of(each.provider, each.name)) for each in (*models, small, *own)]
    digests = [skills.digest, *(hired.skills.digest for hired in workers.values())]
    return Mind(
        settings=settings,
        version=version_of_agent(settings, skills=digests, prices=prices, in_force=in_force),
        model=model,
        small=small,
        skills=skills,
        servers=servers,
        in_force=in_force,
        pins=pins,
        workers=workers,
    )


def version_of_agent(
    settings: AgentSettings, *, skills: Sequence[str], prices: Sequence[str], in_force: InForce
) -> str:
    """Name all that makes an agent's answers what they are: its file, its skills, and tools, policy and prices in force.

    Of a secret only counts whether it is set.
    """
    text = json.dumps([asdict(settings), skills, prices, asdict(in_force)], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:_VERSION_DIGITS]


def role_of(mind: Mind, ask: ChatAsk, *, tools: Sequence[str], instructions: str = "") -> Role:
    """Return what the agent is told to be for one question, with what the question says about it."""
    agent, table = mind.settings.agent, mind.settings.quell
    catalogue = mind.skills.catalogue(tokens_max=_SKILL_TOKENS_MAX, count=mind.model.counter.count_text)
    preamble = "\n\n".join(part for part in (agent.system_prompt, catalogue, instructions) if part)
    bonus = agent.scratchpad.turn_depth_bonus if agent.scratchpad.enabled else 0
    role = Role(
        name=mind.id,
        preamble=preamble,
        tools=tuple(tools),
        turns_max=agent.turn_depth + bonus,
        calls_max=table.budget.calls,
        minutes_max=table.budget.minutes,
        nudge_last=agent.nudge_last_turn,
        nudge_remaining=agent.nudge_turns_remaining,
        evidence=table.evidence,
        window_margin=_margin(agent.scratchpad),
        client_tools=ask.client_tools if agent.enable_client_tools else (),
        schemas=_schemas(mind),
    )
    return replace(
        role,
        output_max_tokens=ask.output_max_tokens,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=ask.seed,
        stop=ask.stop,
        effort=ask.effort,
        choice=ask.choice,
        answer_schema=ask.answer_schema,
    )


def worker_of(mind: Mind, name: str, *, tools: Sequence[str]) -> WorkerSpec:
    """Return a worker as its file says, and what its coordinator is told of it."""
    agent, table, hired = mind.settings.agent, mind.settings.quell, mind.workers[name]
    worker = mind.settings.orchestration.worker[name]
    pad = agent.scratchpad if worker.scratchpad is None else worker.scratchpad
    depth = agent.turn_depth if worker.turn_depth is None else worker.turn_depth
    role = Role(
        name=name,
        preamble=worker.preamble,
        tools=tuple(tools),
        turns_max=depth + (pad.turn_depth_bonus if pad.enabled else 0),
        calls_max=table.budget.calls,
        minutes_max=table.budget.minutes,
        nudge_last=agent.nudge_last_turn,
        nudge_remaining=agent.nudge_turns_remaining,
        evidence=table.evidence,
        window_margin=_margin(pad),
        schemas=_schemas(mind),
    )
    return WorkerSpec(
        role=role,
        model=hired.model,
        description=worker.description,
        stores=worker.vector_stores,
        skills=hired.skills.catalogue(tokens_max=_SKILL_TOKENS_MAX, count=hired.model.counter.count_text),
        spill=spill_of(mind.settings, mind.servers, worker=worker),
    )


def _margin(pad: ScratchpadSettings) -> float:
    """Return the share of the window that stays free, as AURA bounds it; without a scratchpad the usual one."""
    return (
        min(max(pad.context_safety_margin, 0.0), _MARGIN_MAX)
        if pad.enabled
        else ScratchpadSettings().context_safety_margin
    )


def _schemas(mind: Mind) -> Literal["as_they_are", "strict"]:
    return "strict" if mind.settings.mcp.sanitize_schemas else "as_they_are"


def parted(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """Return a conversation without its system messages, and these as one text."""
    told = "\n\n".join(message.text for message in messages if message.role == "system" and message.text)
    return tuple(message for message in messages if message.role != "system"), told


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return bool(value.reveal())
    return str(value)
