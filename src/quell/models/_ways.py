"""Other ways to one answer: text that holds calls, calls forced into a schema, and a next model when one fails."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from quell.domain import (
    CallPiece,
    CallWanted,
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelRequest,
    OverloadError,
    QuellError,
    TextPiece,
)
from quell.models._model import Hear, Model, tell
from quell.models._text_calls import calls_in
from quell.models._tokens import TokenCounter

_ANSWER = "answer"


class Wrapped:
    """A model in front of another."""

    def __init__(self, inner: Model) -> None:
        self._inner = inner

    @property
    def provider(self) -> str:
        """Return who runs the model."""
        return self._inner.provider

    @property
    def name(self) -> str:
        """Return its name at the provider."""
        return self._inner.name

    @property
    def window(self) -> int | None:
        """Return how many tokens request and answer may have together."""
        return self._inner.window

    @property
    def counter(self) -> TokenCounter:
        """Return what counts its tokens."""
        return self._inner.counter

    @property
    def inner(self) -> Model:
        """Return the model behind it."""
        return self._inner

    async def close(self) -> None:
        """Close the model."""
        await self._inner.close()


class TextCallModel(Wrapped):
    """A model whose tool calls may stand in its text; what it says streams on as it is."""

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask, and add the calls that were found in the text before its end. Raises as `Model.stream` does."""
        said: list[str] = []
        has_calls = False
        async with aclosing(self._inner.stream(request, deadline_s=deadline_s)) as events:
            async for event in events:
                match event:
                    case TextPiece():
                        said.append(event.text)
                    case CallPiece():
                        has_calls = True
                    case Ended() if not has_calls:
                        calls = calls_in("".join(said), request)
                        for piece in _pieces(calls):
                            yield piece
                        if calls:
                            event = replace(event, reason="calls")  # noqa: PLW2901 - the same end, for its true reason
                    case _:
                        pass
                yield event


class SchemaCallModel(Wrapped):
    """A model that is made to write either a call of an offered tool or its answer, in a JSON schema.

    For models too weak for the protocol of tool calls, behind servers that hold their output to a schema.
    """

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask within the schema. Raises as `Model.stream` does, and ModelError when the schema was not held."""
        written = self.written(request)
        said: list[str] = []
        ended: Ended | None = None
        async with aclosing(self._inner.stream(written, deadline_s=deadline_s)) as events:
            async for event in events:
                match event:
                    case TextPiece() if written is not request:
                        said.append(event.text)
                    case Ended() if written is not request:
                        ended = event
                    case _:
                        yield event
        if written is request:
            return
        if ended is None:
            raise ModelError("the answer ended in its middle", fault=ModelFault.BROKEN_STREAM, said=bool(said))
        for event in _read("".join(said), request, ended):
            yield event

    def written(self, request: ModelRequest) -> ModelRequest:
        """Return a request as the model gets it: the same one where no tool may be called."""
        return _constrained(request) if request.tools and request.choice != "none" else request


class ChainModel(Wrapped):
    """Models in order: the next is asked when one fails in a way that another may not share."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        on_change: Callable[[Model, ModelError | OverloadError], None] = lambda _model, _error: None,
    ) -> None:
        """Ask the first; `on_change` hears which model is left and why."""
        assert models, "a chain has a model"
        super().__init__(models[0])
        self._models = tuple(models)
        self._on_change = on_change

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask one after the other until one speaks; once it has, it is not left. Raises what the last one raised."""
        for number, model in enumerate(self._models):
            has_said = False
            try:
                async with aclosing(model.stream(request, deadline_s=deadline_s)) as events:
                    async for event in events:
                        has_said = True
                        yield event
            except (ModelError, OverloadError) as error:
                if self._ends(error, number, has_said=has_said):
                    raise
                self._on_change(model, error)
            else:
                return

    async def tell(self, request: ModelRequest, *, deadline_s: float, hear: Hear) -> None:
        """Ask one after the other as `stream` does, and hand on what comes. Raises what the last one raised."""
        has_said = False

        def heard(event: ModelEvent) -> None:
            nonlocal has_said
            has_said = True
            hear(event)

        for number, model in enumerate(self._models):
            try:
                await tell(model, request, deadline_s=deadline_s, hear=heard)
            except (ModelError, OverloadError) as error:
                if self._ends(error, number, has_said=has_said):
                    raise
                self._on_change(model, error)
            else:
                return

    def _ends(self, error: ModelError | OverloadError, number: int, *, has_said: bool) -> bool:
        """Tell whether nobody else is asked after this."""
        is_shared = isinstance(error, ModelError) and error.fault in _SHARED
        if isinstance(error, ModelError):
            error.place = number
        return has_said or number + 1 == len(self._models) or is_shared

    def after(self, error: ModelError) -> ChainModel:
        """Return what is left to ask when one broke off in the middle: those behind it, or all when it was the last."""
        behind = self._models[error.place + 1 :]
        if not error.said or not behind:
            return self
        self._on_change(self._models[error.place], error)
        return ChainModel(behind, on_change=self._on_change)

    @property
    def models(self) -> tuple[Model, ...]:
        """Return all of them, in the order in which they are asked."""
        return self._models

    async def close(self) -> None:
        """Close all of them; the first error is told when all were asked."""
        failed: list[QuellError] = []
        for model in self._models:
            try:
                await model.close()
            except QuellError as error:
                failed.append(error)
        if failed:
            raise failed[0]


_SHARED = frozenset({ModelFault.INVALID, ModelFault.FILTERED})
"""Faults of the request, which every model would find."""


def _pieces(calls: Sequence[CallWanted]) -> list[CallPiece]:
    """Stream calls that were read out of what the model wrote."""
    return [
        CallPiece(index=index, id=call.id, name=call.name, arguments=call.arguments, form="text")
        for index, call in enumerate(calls)
    ]


def _constrained(request: ModelRequest) -> ModelRequest:
    """Put the tools into a schema with one branch for each, and tell the model of them in words."""
    branches: list[dict[str, object]] = [_branch(tool.name, json.loads(tool.parameters)) for tool in request.tools]
    if request.choice not in {"auto", "required"}:
        branches = [each for each in branches if _names(each) == request.choice] or branches
    elif request.choice == "auto":
        text: dict[str, object] = {"type": "string"}
        answer = {"type": "object", "properties": {"text": text}, "required": ["text"], "additionalProperties": False}
        branches.append(_branch(_ANSWER, answer))
    told = "\n".join(f"- {tool.name}: {tool.description} Arguments: {tool.parameters}" for tool in request.tools)
    rules = (
        'Answer with one JSON object {"tool": NAME, "arguments": {...}}. '
        f'To answer in words use {{"tool": "{_ANSWER}", "arguments": {{"text": "..."}}}}. The tools are:\n{told}'
    )
    first, *rest = request.messages
    if first.role == "system":
        messages = (replace(first, text=f"{first.text}\n\n{rules}"), *rest)
    else:
        messages = (Message(role="system", text=rules), *request.messages)
    return replace(
        request,
        messages=tuple(_plain(each) for each in messages),
        tools=(),
        choice="auto",
        answer_schema=json.dumps({"anyOf": branches}),
    )


def _branch(name: str, arguments: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {"tool": {"type": "string", "enum": [name]}, "arguments": arguments},
        "required": ["tool", "arguments"],
        "additionalProperties": False,
    }


def _names(branch: dict[str, object]) -> str:
    properties = branch["properties"]
    assert isinstance(properties, dict)
    return str(properties["tool"]["enum"][0])


def _plain(message: Message) -> Message:
    """Write calls and their answers as the schema has them: such a model knows no other form."""
    if message.role == "tool":
        return Message(role="user", text=f"Result of {message.tool or 'the tool'}:\n{message.text}")
    if not message.calls:
        return message
    wanted = [{"tool": call.name, "arguments": _loaded(call.arguments)} for call in message.calls]
    return Message(role="assistant", text="\n".join(json.dumps(each) for each in wanted))


def _loaded(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _read(text: str, request: ModelRequest, ended: Ended) -> list[ModelEvent]:
    """Turn what was written in the schema into an answer or a call. Raises ModelError for what is neither."""
    try:
        found = json.loads(text)
        name, arguments = found["tool"], found["arguments"]
    except (ValueError, KeyError, TypeError):
        if ended.reason == "length":
            return [TextPiece(text=text), ended]
        raise ModelError("the model did not keep to the schema", fault=ModelFault.BAD_ANSWER, said=True) from None
    if name == _ANSWER and isinstance(arguments, dict) and all(tool.name != _ANSWER for tool in request.tools):
        return [TextPiece(text=str(arguments.get("text", ""))), replace(ended, reason="stop")]
    turn = sum(message.role == "assistant" for message in request.messages)
    call = CallWanted(id=f"schema_{turn}", name=str(name), arguments=json.dumps(arguments))
    return [*_pieces([call]), replace(ended, reason="calls")]
