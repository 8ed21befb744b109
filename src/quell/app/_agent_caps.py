"""What an agent's file says that its runs may spend, as caps beside those of the deployment."""

from __future__ import annotations

from collections.abc import Iterator

from quell.app._office import cap_of
from quell.config import AgentSettings, CapSettings
from quell.domain import Cap


def caps_of_agent(agent: AgentSettings) -> tuple[Cap, ...]:
    """Return a cap for each budget of an agent's file; they hold beside the others, so the lowest of all does."""
    return tuple(cap_of(each) for each in _caps(agent))


def _caps(agent: AgentSettings) -> Iterator[CapSettings]:
    budget, name = agent.quell.budget, _exactly(agent.id)
    if budget.usd is not None:
        yield CapSettings(kind="usd", limit=budget.usd, per=("run",), agent=name)
    if budget.tokens is not None:
        yield CapSettings(kind="tokens", limit=float(budget.tokens), per=("run",), agent=name)


def _exactly(name: str) -> str:
    """Return a glob that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
