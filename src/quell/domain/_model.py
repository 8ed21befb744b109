"""The words of models: what is asked of one, what streams back, and what the whole of it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from quell.domain._budget import TokenUsage

ASK_PERSON: Final = "ask_person"
"""The call by which a model asks the person: it ends the turn, and no hand carries it out."""


class ModelFault(StrEnum):
    """How a call of a model failed, as far as it can be told from outside."""

    UNREACHABLE = "unreachable"
    """No connection, or it was lost before anything came."""
    TIMEOUT = "timeout"
    """No first word, or none for too long, or not the last one in time."""
    OVERLOADED = "overloaded"
    """The provider is too busy or broken for now (HTTP 500, 502, 503, 504, 529)."""
    RATE_LIMITED = "rate_limited"
    """Too much was asked in too short a time (HTTP 429)."""
    QUOTA = "quota"
    """The account has nothing left; waiting does not help."""
    AUTH = "auth"
    NOT_FOUND = "not_found"
    """There is no such model for this account."""
    OVERFLOW = "context_overflow"
    """The request is larger than the window of the model."""
    INVALID = "invalid"
    """The provider does not take the request as it is (HTTP 400, 413, 422)."""
    FILTERED = "filtered"
    """The provider refuses to answer this."""
    BROKEN_STREAM = "broken_stream"
    """The answer ended in its middle."""
    BAD_ANSWER = "bad_answer"
    """What came is not what the protocol allows."""

    @property
    def is_passing(self) -> bool:
        """Whether the same request may well succeed later."""
        return self in _PASSING


_PASSING = frozenset(
    {
        ModelFault.UNREACHABLE,
        ModelFault.TIMEOUT,
        ModelFault.OVERLOADED,
        ModelFault.RATE_LIMITED,
        ModelFault.BROKEN_STREAM,
        ModelFault.BAD_ANSWER,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWanted:
    """A tool call as a model wants it; nothing of it is believed yet."""

    id: str
    name: str
    arguments: str
    """JSON, if the model wrote JSON."""
    form: Literal["call", "text"] = "call"
    """`text`: it was read out of what the model wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    calls: tuple[CallWanted, ...] = ()
    """What an assistant wanted done."""
    call: str = ""
    """Id of the call that a tool answers."""
    tool: str = ""
    """Name of the tool that answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool as a model is told of it."""

    name: str
    description: str
    parameters: str
    """JSON Schema of the arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What is asked of a model; None leaves a choice to the provider."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: str = "auto"
    """`auto`, `required`, `none`, or the name of the one tool to call."""
    answer_schema: str = ""
    """JSON Schema that the text of the answer has to fulfil; empty: any text."""
    output_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    effort: str = ""
    """How long a reasoning model may think: `minimal`, `low`, `medium`, `high`, `xhigh`."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Merged into the body as it goes out; wins over all above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """Some more of the answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPiece:
    """Some more of what the model thinks aloud."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """Some more of a tool call; the first piece of a call has its id and name."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    form: Literal["call", "text"] = "call"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTold:
    """What the call cost in tokens, by the provider's word; the last word counts."""

    usage: TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The answer is complete; nothing follows but perhaps its usage."""

    reason: Literal["stop", "length", "calls", "filtered"]
    model: str = ""
    """What answered, by its own word."""


ModelEvent: TypeAlias = TextPiece | ReasoningPiece | CallPiece | UsageTold | Ended
"""What streams back from a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """A whole answer."""

    text: str
    calls: tuple[CallWanted, ...]
    reason: Literal["stop", "length", "calls", "filtered"]
    usage: TokenUsage
    is_usage_told: bool
    """Whether the provider told the usage; otherwise it is an estimate."""
    reasoning: str = ""
    model: str = ""
