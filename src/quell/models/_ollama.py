"""Models behind Ollama's own API: lines of JSON, options that its other protocol does not carry, calls without ids."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from quell.domain import (
    CallPiece,
    Clock,
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelRequest,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
    ToolSpec,
    UsageTold,
)
from quell.models._exchange import Exchange, Patience
from quell.models._faults import fault_in_stream
from quell.models._proxy import Proxy
from quell.models._tokens import TokenCounter
from quell.models._wire import Wire

_LINE_MAX_BYTES = 8 * 1024 * 1024
_TOP_KEYS = frozenset({"think", "keep_alive", "format", "options", "logprobs", "top_logprobs"})
"""Keys of a request beside its options."""
_LEVELS: Mapping[str, object] = MappingProxyType(
    {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
)
_REASONS: Mapping[str, Literal["stop", "length"]] = MappingProxyType({"stop": "stop", "length": "length"})


class _Function(msgspec.Struct):
    name: str = ""
    arguments: object = None


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Said(msgspec.Struct):
    content: str = ""
    thinking: str = ""
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct):
    model: str = ""
    message: _Said | None = None
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: object = None


class _Tag(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Tag]


_DECODER = msgspec.json.Decoder(_Line)
_ENCODER = msgspec.json.Encoder()


class OllamaModel:
    """One model of an Ollama server, by its own protocol."""

    provider = "ollama"

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        clock: Clock,
        headers: Mapping[str, str] = MappingProxyType({}),
        window: int | None = None,
        patience: Patience | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        via: Proxy | None = None,
    ) -> None:
        """Reach a model. Raises ConfigError for an address that is none."""
        self._exchange = Exchange(base_url, headers=headers, clock=clock, patience=patience, tls=tls, via=via)
        self.name = name
        self.window = window
        self.counter = TokenCounter.for_model(name)

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask, and yield what comes. Raises as `Model.stream` does."""
        body = _ENCODER.encode(chat_body(request, name=self.name, window=self.window))
        asked = self._exchange.asked("/api/chat", body, accept="application/x-ndjson", deadline_s=deadline_s)
        with await asked as wire:
            reader = _Reader()
            async for line in _lines(wire):
                for event in reader.take(line):
                    yield event
            if not reader.is_done:
                told = "the answer ended in its middle"
                raise ModelError(told, fault=ModelFault.BROKEN_STREAM, said=reader.has_said)

    async def offered(self, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """Return the names of the models that the server has. Raises ModelError."""
        body = await self._exchange.fetched("/api/tags", timeout_s=timeout_s)
        try:
            return tuple(sorted({each.name for each in msgspec.json.decode(body, type=_Tags).models}))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelError(f"the list of models is none: {error}", fault=ModelFault.BAD_ANSWER) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._exchange.close()


class _Reader:
    """Reads lines as they come."""

    def __init__(self) -> None:
        self._calls = 0
        self.has_said = False
        self.is_done = False

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return what one line says. Raises ModelError for one that is none, and for an error that it tells."""
        try:
            line = _DECODER.decode(data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelError(
                f"a line of the answer cannot be read: {error}", fault=ModelFault.BAD_ANSWER, said=self.has_said
            ) from error
        if line.error is not None:
            raise fault_in_stream(line.error, said=self.has_said)
        events: list[ModelEvent] = []
        if line.message is not None:
            self._read(line.message, events)
        if line.done:
            self._end(line, events)
        return events

    def _read(self, said: _Said, events: list[ModelEvent]) -> None:
        if said.thinking:
            events.append(ReasoningPiece(text=said.thinking))
        if said.content:
            self.has_said = True
            events.append(TextPiece(text=said.content))
        for call in said.tool_calls or ():
            self.has_said = True
            found = call.function.arguments
            text = found if isinstance(found, str) else _ENCODER.encode({} if found is None else found).decode()
            identifier = call.id or f"call_{self._calls}"
            events.append(CallPiece(index=self._calls, id=identifier, name=call.function.name, arguments=text))
            self._calls += 1

    def _end(self, line: _Line, events: list[ModelEvent]) -> None:
        self.is_done = True
        reason = _REASONS.get(line.done_reason, "stop")
        if self._calls and reason == "stop":
            events.append(Ended(reason="calls", model=line.model))
        else:
            events.append(Ended(reason=reason, model=line.model))
        if line.eval_count is not None:
            # A prompt that was in the server's cache as a whole is told as absent.
            usage = TokenUsage(
                input_tokens=max(line.prompt_eval_count or 0, 0), output_tokens=max(line.eval_count or 0, 0)
            )
            events.append(UsageTold(usage=usage))


def chat_body(request: ModelRequest, *, name: str, window: int | None = None) -> dict[str, object]:
    """Return the body of a request as Ollama takes it.

    It has no way to force a call: one tool that is to be called is the only one offered, and `required` is a wish.
    It cuts a prompt in silence at a window of its own choice, so that a window that is known is asked for.
    """
    body: dict[str, object] = {
        "model": name,
        "messages": [_message(each) for each in request.messages],
        "stream": True,
    }
    tools = [tool for tool in request.tools if request.choice in {"auto", "required", tool.name}]
    if tools:
        body["tools"] = [_tool(each) for each in tools]
    if request.answer_schema:
        body["format"] = msgspec.Raw(request.answer_schema.encode())
    if request.effort:
        level = _LEVELS.get(request.effort, True)
        # Levels are known to one family of models; the others think or do not.
        body["think"] = level if "gpt-oss" in name or level is False else True
    said: dict[str, object] = {
        "num_ctx": window,
        "num_predict": request.output_max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
    }
    options = {key: value for key, value in said.items() if value is not None}
    options |= {key: value for key, value in request.extra.items() if key not in _TOP_KEYS}
    body |= {key: value for key, value in request.extra.items() if key in _TOP_KEYS - {"options"}}
    more = request.extra.get("options")
    if isinstance(more, Mapping):
        options |= more
    if options:
        body["options"] = options
    return body


def _message(message: Message) -> dict[str, object]:
    if message.role == "tool":
        return {"role": "tool", "tool_name": message.tool, "content": message.text}
    said: dict[str, object] = {"role": message.role, "content": message.text}
    if message.calls:
        said["tool_calls"] = [
            {"function": {"name": call.name, "arguments": _object(call.arguments)}} for call in message.calls
        ]
    return said


def _object(arguments: str) -> dict[str, object]:
    """Return arguments as the object that Ollama wants them to be, whatever the model wrote."""
    try:
        found = json.loads(arguments)
    except ValueError:
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}


def _tool(tool: ToolSpec) -> dict[str, object]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": msgspec.Raw(tool.parameters.encode()),
    }
    return {"type": "function", "function": function}


async def _lines(wire: Wire) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in wire.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > _LINE_MAX_BYTES:
            raise ModelError("a line of the answer has no end", fault=ModelFault.BAD_ANSWER, said=True)
    if rest.strip():
        yield rest
