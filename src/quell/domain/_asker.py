"""Where in a run something comes from: the agent itself, a coordinator, or one of its workers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

_OF_COORDINATOR = re.compile(r"c\d+")
"""What a coordinator's own conversations are called, where those of workers have the names of their tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who in a run wants people to decide."""

    run: str
    session: str = ""
    """Conversation of the run; empty when it has none."""
    part: Literal["single", "coordinator", "worker"] = "single"
    worker: str = ""
    task: str = ""

    def scope(self) -> Mapping[str, object]:
        """Say it as AURA's wire does; the run stands for a conversation that there is none of."""
        session = {"session_id": self.session or self.run}
        if self.part == "worker":
            return {"kind": "worker", "run_id": self.run, "task_id": self.task or 0, "worker": self.worker, **session}
        return (
            {"kind": "coordinator", "run_id": self.run} if self.part == "coordinator" else {"kind": "single", **session}
        )


def worker_of(body: Mapping[str, object], *, workers: Collection[str]) -> str:
    """Return the name of the worker that an event of a run is about; empty for the agent itself."""
    if _OF_COORDINATOR.fullmatch(str(body.get("task") or "")):
        return ""
    named = str(body.get("worker") or body.get("agent") or "")
    return named if named in workers or body.get("task") else ""


def asker_of(
    body: Mapping[str, object], *, run: str, session: str, workers: Collection[str], mind: Literal["agent", "crew"]
) -> Asker:
    """Return who asks, by an event of the call that is asked about."""
    if worker := worker_of(body, workers=workers):
        return Asker(run=run, session=session, part="worker", worker=worker, task=str(body.get("task") or ""))
    return Asker(run=run, session=session, part="coordinator" if mind == "crew" else "single")
