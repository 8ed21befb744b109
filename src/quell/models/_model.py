"""What every model is here: a stream of typed events, and what is gathered from one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from quell.domain import (
    CallPiece,
    CallWanted,
    Ended,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelReply,
    ModelRequest,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.models._tokens import TokenCounter

Hear: TypeAlias = Callable[[ModelEvent], None]
"""Hears what a model says; it must not block."""


class Model(Protocol):
    """A model behind whatever provider: asked once, it streams one answer."""

    @property
    def provider(self) -> str:
        """Return who runs it, as the price table names it."""

    @property
    def name(self) -> str:
        """Return its name at the provider."""

    @property
    def window(self) -> int | None:
        """Return how many tokens request and answer may have together; None when nobody said."""

    @property
    def counter(self) -> TokenCounter:
        """Return what counts its tokens before it was asked."""

    def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask, and yield what comes until one `Ended` and perhaps its usage; nothing is tried twice.

        Raises:
            ModelError: it did not answer, or not to the end; `said` tells whether a part had come.
            OverloadError: too much is being asked at once; nothing was sent.
        """

    async def close(self) -> None:
        """Close what it holds open."""


@runtime_checkable
class Teller(Protocol):
    """A model that need not wake anybody for each piece: what comes is handed on in the moment in which it comes."""

    def tell(self, request: ModelRequest, *, deadline_s: float, hear: Hear) -> Awaitable[None]:
        """Ask, hand everything that `stream` would yield to `hear`, and return at the end. Raises as `stream` does."""


def tell(model: Model, request: ModelRequest, *, deadline_s: float, hear: Hear) -> Awaitable[None]:
    """Ask a model and hand what comes to `hear`, at once where the model can. Raises as `Model.stream` does."""
    if isinstance(model, Teller):
        return model.tell(request, deadline_s=deadline_s, hear=hear)
    return _told(model, request, deadline_s=deadline_s, hear=hear)


async def _told(model: Model, request: ModelRequest, *, deadline_s: float, hear: Hear) -> None:
    async with aclosing(model.stream(request, deadline_s=deadline_s)) as events:
        async for event in events:
            hear(event)


@dataclass(slots=True)
class Gathering:
    """A reply in the making: what has streamed so far."""

    text: bytearray = field(default_factory=bytearray)
    """In UTF-8: pieces alone would take five times their text."""
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    """By index: id, name, and pieces of the arguments."""
    written: set[int] = field(default_factory=set)
    """Calls among them that were read out of text."""
    usage: UsageTold | None = None
    ended: Ended | None = None

    def take(self, event: ModelEvent) -> None:
        """Add one event."""
        match event:
            case TextPiece():
                self.text += event.text.encode("utf-8", "surrogatepass")
            case CallPiece():
                call = self.calls.setdefault(event.index, ["", ""])
                call[0] = call[0] or event.id
                call[1] = call[1] or event.name
                call.append(event.arguments)
                if event.form == "text":
                    self.written.add(event.index)
            case ReasoningPiece():
                self.reasoning.append(event.text)
            case UsageTold():
                self.usage = event
            case Ended():
                self.ended = event

    def fill(self, model: Model, request: ModelRequest, *, deadline_s: float, also: Hear) -> Awaitable[None]:
        """Ask a model, and take all that comes, each thing after `also` was told. Raises as `Model.stream` does."""
        text = self.text

        def hear(event: ModelEvent) -> None:
            nonlocal text
            also(event)
            if type(event) is TextPiece:
                text += event.text.encode("utf-8", "surrogatepass")  # as nearly all are
            else:
                self.take(event)

        return tell(model, request, deadline_s=deadline_s, hear=hear)

    def reply(self, *, request: ModelRequest, counter: TokenCounter) -> ModelReply:
        """Return the whole; tokens that nobody told are estimated. Raises ModelError when it has no end."""
        text, reasoning = self.text.decode("utf-8", "surrogatepass"), "".join(self.reasoning)
        if self.ended is None:
            raise ModelError("the answer ended in its middle", fault=ModelFault.BROKEN_STREAM, said=bool(text))
        calls = tuple(
            CallWanted(
                id=call[0],
                name=call[1],
                arguments="".join(call[2:]) or "{}",
                form="text" if index in self.written else "call",
            )
            for index, call in sorted(self.calls.items())
        )
        reason: Literal["stop", "length", "calls", "filtered"] = self.ended.reason
        if calls and reason == "stop":
            # Some providers say `stop` where they wanted tools called.
            reason = "calls"
        if self.usage is not None:
            counter.learn(request, told=self.usage.usage.input_tokens)
        usage = (
            self.usage.usage if self.usage is not None else self._estimated(request, text, reasoning, calls, counter)
        )
        return ModelReply(
            text=text,
            calls=calls,
            reason=reason,
            usage=usage,
            is_usage_told=self.usage is not None,
            reasoning=reasoning,
            model=self.ended.model,
        )

    def _estimated(
        self,
        request: ModelRequest,
        text: str,
        reasoning: str,
        calls: tuple[CallWanted, ...],
        counter: TokenCounter,
    ) -> TokenUsage:
        said = counter.count_text(text) + counter.count_text(reasoning)
        said += sum(counter.count_text(call.name + call.arguments) for call in calls)
        return TokenUsage(input_tokens=counter.count(request), output_tokens=said)


async def ask(model: Model, request: ModelRequest, *, deadline_s: float) -> ModelReply:
    """Ask a model and return its whole answer. Raises as `Model.stream` does."""
    gathering = Gathering()
    await tell(model, request, deadline_s=deadline_s, hear=gathering.take)
    return gathering.reply(request=request, counter=model.counter)
