"""Whom the events of a stream are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quell.config import AgentSettings
from quell.domain import Asker, asker_of, worker_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A run, its conversation and its agent."""

    run: str
    session: str
    agent: AgentSettings
    trace: str = ""
    """Id of the trace; empty when nothing is traced."""
    pads: frozenset[str] = frozenset()
    """Tools that read what was put aside."""

    def tail(self, body: Mapping[str, object]) -> dict[str, object]:
        """Return what every event says of its agent."""
        worker = self.worker(body)
        main = "coordinator" if self.agent.orchestration.enabled else "main"
        told: dict[str, object] = {"agent_id": worker or main}
        if worker:
            told["parent_agent_id"] = main
        else:
            told["agent_name"] = self.agent.agent.name
        return told | self.session_tail()

    def worker(self, body: Mapping[str, object]) -> str:
        """Return the name of the worker that an event is about; empty for the agent itself."""
        return worker_of(body, workers=self.agent.orchestration.worker)

    def asker(self, body: Mapping[str, object]) -> Asker:
        """Return who asks, by an event of the call that is asked about."""
        plan = self.agent.orchestration
        mind: Literal["agent", "crew"] = "crew" if plan.enabled else "agent"
        return asker_of(body, run=self.run, session=self.session, workers=plan.worker, mind=mind)

    def session_tail(self) -> dict[str, object]:
        """Return what every event says of its conversation."""
        told: dict[str, object] = {"session_id": self.session}
        return told | ({"trace_id": self.trace} if self.trace else {})
