"""What a crew keeps of its run between two segments: the question, the plan, what came of each task, and the rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from quell.agent._plan import Plan, Task
from quell.agent._talk import NOTHING, Exhibit, Talk
from quell.domain import Message, OutcomeKind, TokenUsage

Confidence = Literal["high", "medium", "low", "none"]


class Category(StrEnum):
    """Why a task failed; AURA's words."""

    TIMEOUT = "agent_timeout"
    OVERFLOW = "context_overflow"
    DEPTH = "depth_exhausted"
    LOOP = "loop_detected"
    OVERLOADED = "provider_overloaded"
    AUTH = "provider_auth_error"
    NOT_FOUND = "provider_not_found"
    DEPENDENCY = "dependency_failed"
    SOFT = "soft_failure"
    """It said something and never submitted it; what it said is kept."""
    ERROR = "agent_error"

    @property
    def is_provider(self) -> bool:
        """Whether the provider is at fault, and the plan is not."""
        return self in {Category.OVERLOADED, Category.AUTH, Category.NOT_FOUND}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One tool call of a task, as run files and gaps tell of it."""

    call: str
    tool: str
    arguments: str
    reason: str
    """Why the worker called it, in its own words."""
    kind: OutcomeKind
    detail: str
    digest: str
    size_bytes: int
    elapsed_ms: float
    artifact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnd:
    """What came of a task."""

    is_done: bool
    summary: str = ""
    result: str = ""
    """What it found; of a failed one, what it had said so far."""
    confidence: Confidence = "none"
    unverified: int = 0
    category: Category | None = None
    error: str = ""
    attempts: int = 1
    elapsed_ms: float = 0.0
    turns: int = 0
    calls: int = 0
    failed: int = 0
    usage: TokenUsage = NOTHING
    is_usage_told: bool = True
    exhibits: tuple[Exhibit, ...] = ()
    traces: tuple[Trace, ...] = ()
    artifact: str = ""
    """File of the whole result, where it was long."""
    draft: str = ""
    """What it said at first without submitting it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Going:
    """A task under way."""

    talk: Talk
    attempt: int = 1
    elapsed_s: float = 0.0
    traces: tuple[Trace, ...] = ()
    draft: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time of a round went."""

    planning_ms: float = 0.0
    execution_ms: float = 0.0
    task_compute_ms: float = 0.0
    tool_ms: float = 0.0


@dataclass(slots=True, kw_only=True)
class Board:
    """Everything that the next segment of the run needs."""

    messages: tuple[Message, ...]
    """The conversation that the person sees."""
    began_at: str
    fence: str = ""
    """Key of the fences around results, in all conversations of the run."""
    exhibits: tuple[Exhibit, ...] = ()
    """What the client brought of its own tools, and what the coordinator looked up."""
    phase: Literal["routing", "working"] = "routing"
    iteration: int = 1
    plan: Plan | None = None
    """The plan of this round; of the round before while the coordinator looks at what came of it."""
    past: tuple[Plan, ...] = ()
    """Plans of the rounds before."""
    ends: dict[int, TaskEnd] = field(default_factory=dict)
    going: dict[int, Going] = field(default_factory=dict)
    """Tasks that wait for people."""
    talk: Talk | None = None
    """The coordinator's conversation of this round, once begun."""
    attempt: int = 1
    """Which time it is asked to route in this round."""
    turns: int = 0
    calls: int = 0
    failed: int = 0
    usage: TokenUsage = NOTHING
    is_usage_told: bool = True
    """Of the coordinator; those of the tasks are in their ends."""
    spent_s: float = 0.0
    """Seconds of work so far; waits for people do not count."""
    timing: Timing = field(default_factory=Timing)
    timings: tuple[Timing, ...] = ()

    def tasks(self) -> Iterator[Task]:
        """Yield all tasks of the run, in the order in which they were planned."""
        for plan in (*self.past, *((self.plan,) if self.plan else ())):
            yield from plan.tasks

    @property
    def chair(self) -> str:
        """Return what the coordinator's present conversation is called by: `c1` routes, `c2` looks at the first round."""
        return f"c{self.iteration + (self.plan is not None)}"

    @property
    def next_number(self) -> int:
        """Return the number of the next task."""
        return max((task.number for task in self.tasks()), default=0) + 1

    @property
    def evidence(self) -> tuple[Exhibit, ...]:
        """Return all that the run has seen."""
        return (*self.exhibits, *(exhibit for number in sorted(self.ends) for exhibit in self.ends[number].exhibits))

    @property
    def question(self) -> str:
        """Return what people said."""
        return "\n".join(message.text for message in self.messages if message.role == "user")

    @property
    def asked(self) -> str:
        """Return what is asked."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")


def state_of_board(board: Board) -> Mapping[str, object]:
    """Return it as a run keeps it."""
    state: Mapping[str, object] = msgspec.to_builtins({"crew": board}, str_keys=True)
    return state


def board_of(state: Mapping[str, object]) -> Board:
    """Return it as it was kept."""
    return msgspec.convert(state["crew"], type=Board, strict=False)
