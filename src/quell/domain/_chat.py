"""The words of a conversation with an agent, whatever protocol brings it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from quell.domain._model import Message, ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk:
    """A question to an agent; None leaves a choice to the agent's own settings."""

    messages: tuple[Message, ...]
    """The conversation so far; the last message is what is asked, or results of the client's own tools."""
    agent: str = ""
    """Id of the agent; empty: the default one."""
    session: str = ""
    """Conversation that the question belongs to; empty: one of its own."""
    user: str = ""
    """Whom the client says that it asks for; told in traces, believed nowhere."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    client_tools: tuple[ToolSpec, ...] = ()
    """Tools that the client carries out itself."""
    choice: str = "auto"
    """`auto`, `required`, `none`, or the name of the one tool to call."""
    answer_schema: str = ""
    """JSON Schema that the answer has to fulfil; empty: any text."""
    output_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    effort: str = ""
    on_disconnect: Literal["", "continue", "cancel"] = ""
    """What becomes of the run when its client leaves; empty: as the agent's settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One thing that happened in a run that somebody follows."""

    id: str
    """Where to go on after it: following the run after this id repeats nothing and leaves nothing out."""
    name: str
    """A name of the catalogue (`agent.…`, `run.…`), or one of those that are not kept: `text`, `reasoning`, `void`.

    `text` and `reasoning` have `agent`, `turn`, `task` and `text`; `void` says that the text of that turn so far was of
    a try that broke off, and does not count; `agent.progress` tells how far a call is.
    """
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTask:
    """A task and the run where it stands."""

    number: int
    """Of its newest run; grows."""
    task: str
    run: str
    context: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHook:
    """Somebody who wants to be told of a task."""

    task: str
    id: str
    settings: str
    """JSON, as it was asked for."""
    told: str
    """State that they were told last."""
    tries: int
