"""What agent files say that their runs may spend, as caps beside those of the deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from quell.config import AgentSettings, CapSettings, Settings


def capped(settings: Settings, agents: Sequence[AgentSettings]) -> Settings:
    """Return settings with a cap for each budget of an agent file: the lowest of all caps holds."""
    return replace(settings, cap=(*settings.cap, *(cap for agent in agents for cap in _caps(agent))))


def _caps(agent: AgentSettings) -> Iterator[CapSettings]:
    budget, name = agent.quell.budget, _exactly(agent.id)
    if budget.usd is not None:
        yield CapSettings(kind="usd", limit=budget.usd, per=("run",), agent=name)
    if budget.tokens is not None:
        yield CapSettings(kind="tokens", limit=float(budget.tokens), per=("run",), agent=name)


def _exactly(name: str) -> str:
    """Return a glob that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
