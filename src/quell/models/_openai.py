"""Models behind the Chat Completions API of OpenAI and of everything that speaks it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
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
from quell.models._exchange import Answering, Exchange, Hear, Patience, whole
from quell.models._faults import fault_in_stream
from quell.models._proxy import Proxy
from quell.models._sse import EventSplitter
from quell.models._tokens import TokenCounter
from quell.models._wire import Pool, Wire

_REASONS: Mapping[str, Literal["stop", "length", "calls", "filtered"]] = MappingProxyType(
    {
        "stop": "stop",
        "end_turn": "stop",
        "eos": "stop",
        "length": "length",
        "max_tokens": "length",
        "tool_calls": "calls",
        "function_call": "calls",
        "content_filter": "filtered",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How one provider that speaks this protocol is reached, and what is its own about it."""

    provider: str
    base_url: str
    headers: Mapping[str, str]
    """What every request carries; the key is one of them."""
    output_cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How it calls the most tokens of an answer."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """What goes into the body of every request, unless the request says otherwise."""
    cache: Literal["untold", "key", "marks"] = "untold"
    """How it is told what stays the same: by a `prompt_cache_key`, or by marks in the messages as Anthropic has them."""


class _CallFunction(msgspec.Struct):
    name: str | None = None
    arguments: object = None


class _CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _CallFunction | None = None


class _Delta(msgspec.Struct):
    content: object = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: object = None


_BEGINNING_CHARS = 1_024
_CACHE_KEY_DIGITS = 32
_DECODER = msgspec.json.Decoder(_Chunk)
_ENCODER = msgspec.json.Encoder()


class OpenAIModel:
    """One model at one endpoint, on connections of its own pool or of one that is shared."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        clock: Clock,
        window: int | None = None,
        patience: Patience | None = None,
        pool: Pool | None = None,
        counter: TokenCounter | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        hear: Hear | None = None,
        via: Proxy | None = None,
    ) -> None:
        """Reach a model. Raises ConfigError for an address that is none."""
        self._endpoint = endpoint
        self._exchange = Exchange(
            endpoint.base_url,
            headers=endpoint.headers,
            clock=clock,
            patience=patience,
            pool=pool,
            tls=tls,
            hear=hear,
            via=via,
        )
        self.name = name
        self.window = window
        self.counter = counter or TokenCounter.for_model(name)

    @property
    def provider(self) -> str:
        """Return who runs it, as the price table names it."""
        return self._endpoint.provider

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask, and yield what comes. Raises as `Model.stream` does."""
        with await self._asked(request, deadline_s=deadline_s) as wire:
            reader = _Reader()
            if "json" in wire.head.headers.get("content-type", ""):
                for event in reader.take(await whole(wire)):
                    yield event
                return
            async for event in _events(wire, reader):
                yield event

    async def tell(self, request: ModelRequest, *, deadline_s: float, hear: Callable[[ModelEvent], None]) -> None:
        """Ask, and hand on what comes in the moment in which it comes. Raises as `Model.stream` does."""
        with await self._asked(request, deadline_s=deadline_s) as wire:
            reader, splitter = _Reader(), EventSplitter()

            def take(piece: bytes) -> None:
                for data in splitter.feed(piece):
                    for event in reader.take(data):
                        hear(event)

            if "json" in wire.head.headers.get("content-type", ""):
                for event in reader.take(await whole(wire)):
                    hear(event)
                return
            await wire.give(take)
            take(EventSplitter.END)
            if not reader.is_done:
                reader.finish()

    def _asked(self, request: ModelRequest, *, deadline_s: float) -> Coroutine[None, None, Answering]:
        body = _ENCODER.encode(body_of(request, name=self.name, endpoint=self._endpoint))
        return self._exchange.asked("/chat/completions", body, accept="text/event-stream", deadline_s=deadline_s)

    async def offered(self, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """Return the names of the models that the endpoint offers. Raises ModelError."""
        body = await self._exchange.fetched("/models", timeout_s=timeout_s)
        try:
            return tuple(sorted({each.id for each in msgspec.json.decode(body, type=_Offered).data}))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelError(f"the list of models is none: {error}", fault=ModelFault.BAD_ANSWER) from error

    async def close(self) -> None:
        """Close its connections, if they are its own."""
        await self._exchange.close()


class _Model(msgspec.Struct):
    id: str


class _Offered(msgspec.Struct):
    data: list[_Model]


class _Reader:
    """Reads chunks as they come, and knows which call and which end they belong to."""

    __slots__ = ("_ids", "_model", "_places", "_reason", "has_said", "is_done")

    def __init__(self) -> None:
        self._ids: list[str] = []
        """Id of each call so far, in the order that they began."""
        self._places: dict[int, int] = {}
        """Which of them a server's own index means."""
        self._model = ""
        self._reason: str | None = None
        self.has_said = False
        self.is_done = False

    def take(self, data: bytes) -> list[ModelEvent]:
        """Return what one chunk says. Raises ModelError for one that is none, and for an error that it tells."""
        if data == b"[DONE]":
            return self.finish()
        try:
            chunk = _DECODER.decode(data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelError(
                f"a piece of the answer cannot be read: {error}", fault=ModelFault.BAD_ANSWER, said=self.has_said
            ) from error
        if chunk.error is not None:
            raise fault_in_stream(chunk.error, said=self.has_said)
        if chunk.model:
            self._model = chunk.model
        events: list[ModelEvent] = []
        for choice in chunk.choices or ():
            if choice.index:
                continue
            delta = choice.delta or choice.message
            if delta is not None:
                self._read(delta, events)
            if choice.finish_reason:
                self._reason = choice.finish_reason
                is_whole = choice.message is not None
                self.is_done = self.is_done or is_whole
                events.append(self._ended())
        if chunk.usage is not None and chunk.usage.prompt_tokens is not None:
            events.append(_told(chunk.usage))
        return events

    def finish(self) -> list[ModelEvent]:
        """Note the end. Raises ModelError when no reason for it was given."""
        if self._reason is None:
            raise ModelError("the answer ended in its middle", fault=ModelFault.BROKEN_STREAM, said=self.has_said)
        self.is_done = True
        return []

    def _ended(self) -> Ended:
        assert self._reason is not None, "an end has its reason"
        return Ended(reason=_REASONS.get(self._reason, "stop"), model=self._model)

    def _read(self, delta: _Delta, events: list[ModelEvent]) -> None:
        if delta.content:
            self.has_said = True
            events.append(TextPiece(text=_text_of(delta.content)))
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            events.append(ReasoningPiece(text=thought))
        if delta.refusal:
            self.has_said = True
            events.append(TextPiece(text=delta.refusal))
        for call in delta.tool_calls or ():
            self.has_said = True
            events.append(self._call(call))

    def _call(self, call: _CallDelta) -> CallPiece:
        function = call.function or _CallFunction()
        index = self._place_of(call, begins=bool(function.name))
        found = function.arguments
        text = found if isinstance(found, str) else "" if found is None else msgspec.json.encode(found).decode()
        return CallPiece(index=index, id=self._ids[index], name=function.name or "", arguments=text)

    def _place_of(self, call: _CallDelta, *, begins: bool) -> int:
        """Say which call a piece belongs to.

        Servers differ: some give an id with every piece, some a new id each time, some the index 0 to every call, some
        no index. A piece with a name begins a call unless its id, or without one its index, is known.
        """
        if call.id and call.id in self._ids:
            return self._ids.index(call.id)
        known = self._places.get(call.index) if call.index is not None else None
        if not self._ids or (begins and (call.id or known is None)):
            self._ids.append(call.id or f"call_{len(self._ids)}")
            if call.index is not None:
                self._places[call.index] = len(self._ids) - 1
            return len(self._ids) - 1
        return known if known is not None else len(self._ids) - 1


def _told(usage: _Usage) -> UsageTold:
    told = usage.prompt_tokens_details or _InputDetails()
    cached = usage.prompt_cache_hit_tokens if told.cached_tokens is None else told.cached_tokens
    thought = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None
    total = max(usage.prompt_tokens or 0, 0)
    read = min(max(cached or 0, 0), total)
    return UsageTold(
        usage=TokenUsage(
            input_tokens=total,
            output_tokens=max(usage.completion_tokens or 0, 0),
            cached_tokens=read,
            written_tokens=min(max(told.cache_write_tokens or 0, 0), total - read),
            reasoning_tokens=max(thought or 0, 0),
        ),
    )


def _text_of(content: object) -> str:
    """Return the text of content that is a string or, as some send it, a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


async def _events(wire: Wire, reader: _Reader) -> AsyncGenerator[ModelEvent, None]:
    splitter = EventSplitter()
    async for piece in wire.pieces():
        for data in splitter.feed(piece):
            for event in reader.take(data):
                yield event
    for data in splitter.end():
        for event in reader.take(data):
            yield event
    if not reader.is_done:
        reader.finish()


def body_of(request: ModelRequest, *, name: str, endpoint: Endpoint) -> dict[str, object]:
    """Return the body of a request as this endpoint takes it."""
    body: dict[str, object] = {
        "model": name,
        "messages": [_message(each) for each in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **endpoint.extra,
    }
    if request.tools:
        body["tools"] = [_tool(each) for each in request.tools]
        plain = request.choice in {"auto", "required", "none"}
        if request.choice != "auto":
            body["tool_choice"] = (
                request.choice if plain else {"type": "function", "function": {"name": request.choice}}
            )
    if request.answer_schema:
        schema = {"name": "answer", "schema": msgspec.Raw(request.answer_schema.encode()), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    said = {
        endpoint.output_cap: request.output_max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "reasoning_effort": request.effort or None,
    }
    body |= {key: value for key, value in said.items() if value is not None}
    if endpoint.cache == "key":
        body["prompt_cache_key"] = _cache_key(request)
    elif endpoint.cache == "marks":
        body["messages"] = _marked(request.messages)
    return body | dict(request.extra)


def _cache_key(request: ModelRequest) -> str:
    """Name a conversation by what it begins with, which its later turns repeat: they are led to the same cache."""
    first = next((each.text for each in request.messages if each.role == "user"), "")
    told = next((each.text for each in request.messages if each.role == "system"), "")
    names = [tool.name for tool in request.tools]
    return sha256(_ENCODER.encode([told[:_BEGINNING_CHARS], names, first])).hexdigest()[:_CACHE_KEY_DIGITS]


def _marked(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return messages with the end of what stays marked: the instructions, with the tools before them, and the last words.

    Results of tools are left as they are: there a list of parts is not taken everywhere.
    """
    system = next((at for at, each in enumerate(messages) if each.role == "system" and each.text), None)
    last = next(
        (at for at in reversed(range(len(messages))) if messages[at].role != "tool" and messages[at].text), None
    )
    told = [_message(each) for each in messages]
    for at in {system, last} - {None}:
        assert at is not None, "only places are left"
        text = {"type": "text", "text": messages[at].text, "cache_control": {"type": "ephemeral"}}
        told[at] |= {"content": [text]}
    return told


def _message(message: Message) -> dict[str, object]:
    match message.role:
        case "tool":
            return {"role": "tool", "tool_call_id": message.call, "content": message.text}
        case "assistant" if message.calls:
            calls = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
            # An empty text beside calls is refused by some providers; null is not.
            return {"role": "assistant", "content": message.text or None, "tool_calls": calls}
        case _:
            return {"role": message.role, "content": message.text}


def _tool(tool: ToolSpec) -> dict[str, object]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": msgspec.Raw(tool.parameters.encode()),
    }
    return {"type": "function", "function": function}
