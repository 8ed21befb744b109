"""Whom the events of a stream are about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quell.config import AgentSettings

_OF_COORDINATOR = re.compile(r"c\d+")
"""What a coordinator's own conversations are called, where those of workers have the names of their tasks."""


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
        if _OF_COORDINATOR.fullmatch(str(body.get("task") or "")):
            return ""
        named = str(body.get("worker") or body.get("agent") or "")
        return named if named in self.agent.orchestration.worker or body.get("task") else ""

    def session_tail(self) -> dict[str, object]:
        """Return what every event says of its conversation."""
        told: dict[str, object] = {"session_id": self.session}
        return told | ({"trace_id": self.trace} if self.trace else {})
