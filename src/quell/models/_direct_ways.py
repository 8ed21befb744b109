"""The ways to providers that pydantic-ai speaks to: clients of their SDKs, our words turned into its words and back.

Only `_direct` imports this, when such a model is asked for the first time: it loads the provider's SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, cast

import httpx2
from pydantic_ai import messages as said
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models import Model as Carrier
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from quell.config import LlmSettings
from quell.domain import (
    CallPiece,
    CallWanted,
    Ended,
    Message,
    ModelError,
    ModelEvent,
    ModelFault,
    ModelRequest,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.models._direct_kept import Kept
from quell.models._exchange import Hear, Patience
from quell.models._proxy import Proxy, proxy_for

_CONNECTIONS_MAX = 256
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REASONS: Mapping[str, Literal["stop", "length", "calls", "filtered"]] = {
    "stop": "stop",
    "length": "length",
    "tool_call": "calls",
    "content_filter": "filtered",
}
_MERGED: ContextVar[Mapping[str, object] | None] = ContextVar("quell_merged_body", default=None)
"""What goes into the body of the request that this task sends, where an SDK has no place for it."""


@dataclass(slots=True, kw_only=True)
class Way:
    """A model as pydantic-ai carries it, and what is its provider's own."""

    carrier: Carrier[Any]
    shut: Callable[[], Awaitable[None]]
    place: Callable[[Mapping[str, object]], dict[str, object]]
    """Say in the provider's settings what is merged into its body."""
    is_merged: bool = False
    """Whether it is merged on the way out instead."""
    is_cached: bool = True
    """Whether the part of a prompt that stays the same is marked for the provider's cache."""

    @asynccontextmanager
    async def asked(self, request: ModelRequest, *, kept: Kept) -> AsyncIterator[Answer]:
        """Send a request, and give the answer as it comes."""
        wanted = settings_of(request) | {"cache": self.is_cached} | (self.place(request.extra) if request.extra else {})
        taken = {key: value for key, value in wanted.items() if key not in self.carrier.unsupported_settings}
        stream = model_request_stream(
            self.carrier,
            list(messages_of(request.messages, kept=kept)),
            model_settings=cast("ModelSettings", taken),
            model_request_parameters=parameters_of(request),
            instrument=False,
        )
        token = _MERGED.set(request.extra if self.is_merged and request.extra else None)
        try:
            response = await stream.__aenter__()
        finally:
            _MERGED.reset(token)
        try:
            yield Answer(response=response, kept=kept)
        finally:
            await stream.__aexit__(None, None, None)

    async def close(self) -> None:
        """Close its connections."""
        await self.shut()


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer in the making."""

    response: StreamedResponse
    kept: Kept
    _events: AsyncIterator[said.ModelResponseStreamEvent] | None = None
    _calls: list[CallWanted] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)

    async def next(self) -> list[ModelEvent] | None:
        """Return what came next; None when it is complete."""
        if self._events is None:
            self._events = aiter(self.response)
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            return None
        return list(self._read(event))

    def end(self) -> list[ModelEvent]:
        """Return how it ended. Raises ModelError when it ended in its middle."""
        whole = self.response.get()
        reason = whole.finish_reason
        has_reason = reason or (whole.provider_details or {}).get("finish_reason")
        if whole.state != "complete" or reason == "error" or not has_reason:
            raise ModelError("the answer ended in its middle", fault=ModelFault.BROKEN_STREAM, said=True)
        if any(isinstance(part, said.ThinkingPart) or getattr(part, "provider_details", None) for part in whole.parts):
            self.kept.keep(whole, text="".join(self._text), calls=tuple(self._calls))
        usual: Literal["calls", "stop"] = "calls" if self._calls else "stop"
        ended = Ended(reason=_REASONS.get(reason or "", usual), model=whole.model_name or "")
        usage = whole.usage
        if not usage.input_tokens and not usage.output_tokens:
            return [ended]
        told = TokenUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cache_read_tokens,
            written_tokens=usage.cache_write_tokens,
            reasoning_tokens=usage.output_reasoning_tokens,
        )
        return [ended, UsageTold(usage=told)]

    def _read(self, event: said.ModelResponseStreamEvent) -> Iterator[ModelEvent]:
        match event:
            case said.PartStartEvent(part=said.TextPart(content=text)) if text:
                yield self._say(text)
            case said.PartStartEvent(part=said.ThinkingPart(content=text)) if text:
                yield ReasoningPiece(text=text)
            case said.PartDeltaEvent(delta=said.TextPartDelta(content_delta=text)) if text:
                yield self._say(text)
            case said.PartDeltaEvent(delta=said.ThinkingPartDelta(content_delta=str(text))) if text:
                yield ReasoningPiece(text=text)
            case said.PartEndEvent(part=said.ToolCallPart() as call):
                # A call is told when it is whole: some providers send its arguments as an object, again and again.
                wanted = CallWanted(id=call.tool_call_id, name=call.tool_name, arguments=call.args_as_json_str())
                self._calls.append(wanted)
                index = len(self._calls) - 1
                yield CallPiece(index=index, id=wanted.id, name=wanted.name, arguments=wanted.arguments)
            case _:
                pass

    def _say(self, text: str) -> TextPiece:
        self._text.append(text)
        return TextPiece(text=text)


def way_of(settings: LlmSettings, *, env: Mapping[str, str], patience: Patience, hear: Hear | None) -> Way:
    """Open the way to a model. Raises what the SDKs raise for settings that they cannot use."""
    if settings.provider == "bedrock":
        way = _bedrock(settings, env=env, patience=patience)
    elif settings.provider == "gemini":
        way = _gemini(settings, env=env, patience=patience, hear=hear)
    else:
        way = _anthropic(settings, env=env, patience=patience, hear=hear)
    way.is_cached = settings.prompt_cache != "off"
    return way


def _anthropic(settings: LlmSettings, *, env: Mapping[str, str], patience: Patience, hear: Hear | None) -> Way:
    from anthropic import AsyncAnthropic  # noqa: PLC0415 - an extra
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415 - an extra
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415 - an extra

    url = settings.base_url or "https://api.anthropic.com"
    client = _client(patience, hear=hear, via=proxy_for(url, env=env, wish=settings.proxy.reveal()))
    sdk = AsyncAnthropic(
        api_key=settings.api_key.reveal(),
        base_url=url.rstrip("/").removesuffix("/v1"),
        max_retries=0,
        http_client=client,
    )
    carrier = AnthropicModel(settings.model, provider=AnthropicProvider(anthropic_client=sdk))
    return Way(carrier=carrier, shut=client.aclose, place=lambda extra: {"extra_body": dict(extra)})


def _gemini(settings: LlmSettings, *, env: Mapping[str, str], patience: Patience, hear: Hear | None) -> Way:
    from pydantic_ai.models.google import GoogleModel  # noqa: PLC0415 - an extra
    from pydantic_ai.providers.google import GoogleProvider  # noqa: PLC0415 - an extra

    url = settings.base_url or "https://generativelanguage.googleapis.com"
    client = _client(patience, hear=hear, via=proxy_for(url, env=env, wish=settings.proxy.reveal()))
    provider = GoogleProvider(
        api_key=settings.api_key.reveal(), http_client=client, base_url=settings.base_url.rstrip("/") or None
    )
    carrier = GoogleModel(settings.model, provider=provider)
    return Way(carrier=carrier, shut=client.aclose, place=lambda _extra: {}, is_merged=True)


def _bedrock(settings: LlmSettings, *, env: Mapping[str, str], patience: Patience) -> Way:
    from pydantic_ai.models.bedrock import BedrockConverseModel  # noqa: PLC0415 - an extra
    from pydantic_ai.providers.bedrock import BedrockProvider  # noqa: PLC0415 - an extra

    wait_s = max(patience.first_s, patience.quiet_s)
    sdk = bedrock_client("bedrock-runtime", settings, env=env, connect_s=patience.connect_s, read_s=wait_s)
    carrier = BedrockConverseModel(settings.model, provider=BedrockProvider(bedrock_client=sdk))

    async def shut() -> None:
        sdk.close()

    return Way(
        carrier=carrier, shut=shut, place=lambda extra: {"bedrock_additional_model_requests_fields": dict(extra)}
    )


def bedrock_client(
    service: str, settings: LlmSettings, *, env: Mapping[str, str], connect_s: float, read_s: float
) -> Any:
    """Return AWS's client of a service, as the settings and the environment authorise it; it tries nothing twice."""
    import boto3  # noqa: PLC0415 - an extra
    from botocore.config import Config  # noqa: PLC0415 - an extra

    keys = {
        "aws_access_key_id": env.get("AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": env.get("AWS_SECRET_ACCESS_KEY"),
        "aws_session_token": env.get("AWS_SESSION_TOKEN"),
    }
    # Keys of the environment come first, as in AWS's own order, unless a profile is named; then files, then the machine.
    found = {"profile_name": settings.profile} if settings.profile else keys if keys["aws_access_key_id"] else {}
    session = boto3.Session(region_name=settings.region, **found)
    url = settings.base_url or f"https://{service}.{settings.region}.amazonaws.com"
    via = proxy_for(url, env=env, wish=settings.proxy.reveal())
    return session.client(
        service,
        endpoint_url=settings.base_url or None,
        config=Config(
            # An empty table keeps the SDK from asking the environment by rules of its own.
            proxies={} if via is None else {"http": via.proven_url, "https": via.proven_url},
            connect_timeout=connect_s,
            read_timeout=read_s,
            retries={"total_max_attempts": 1},
            max_pool_connections=_CONNECTIONS_MAX,
        ),
    )


class _Merging(httpx2.AsyncHTTPTransport):
    """Sends requests with more in their bodies where an SDK has no place for it."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        more = _MERGED.get()
        if more:
            body = json.dumps(merged(json.loads(await request.aread()), more)).encode()
            headers = [pair for pair in request.headers.multi_items() if pair[0].lower() != "content-length"]
            request = httpx2.Request(
                request.method, request.url, headers=headers, content=body, extensions=request.extensions
            )
        return await super().handle_async_request(request)


def merged(body: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """Return a body with more in it; tables are joined, and of two values the later one stays."""
    found = dict(body)
    for key, value in more.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return found


def _client(patience: Patience, *, hear: Hear | None, via: Proxy | None) -> httpx2.AsyncClient:
    wait_s = max(patience.first_s, patience.quiet_s)
    proxy = None if via is None else httpx2.Proxy(via.url, auth=(via.user, via.password) if via.user else None)

    async def heard(response: httpx2.Response) -> None:
        if hear is not None:
            hear(response.headers)

    return httpx2.AsyncClient(
        # With a transport of its own it does not ask the environment for proxies: the rules are the same everywhere.
        transport=_Merging(limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX), proxy=proxy),
        timeout=httpx2.Timeout(wait_s, connect=patience.connect_s),
        event_hooks={"response": [heard]},
    )


def settings_of(request: ModelRequest) -> dict[str, object]:
    """Return how a request is to be answered."""
    said_so: dict[str, object] = {
        "max_tokens": request.output_max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop_sequences": list(request.stop) or None,
    }
    if request.effort:
        said_so["thinking"] = False if request.effort == "none" else request.effort
    if request.tools and request.choice != "auto":
        said_so["tool_choice"] = request.choice if request.choice in {"required", "none"} else [request.choice]
    return {key: value for key, value in said_so.items() if value is not None}


def parameters_of(request: ModelRequest) -> ModelRequestParameters:
    """Return the tools of a request, and the schema of its answer."""
    tools = [
        ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=json.loads(tool.parameters))
        for tool in request.tools
    ]
    if not request.answer_schema:
        return ModelRequestParameters(function_tools=tools)
    wanted = OutputObjectDefinition(json_schema=json.loads(request.answer_schema), name="answer", strict=True)
    return ModelRequestParameters(
        function_tools=tools, output_mode="native", output_object=wanted, allow_text_output=True
    )


def messages_of(messages: tuple[Message, ...], *, kept: Kept) -> Iterator[said.ModelMessage]:
    """Yield a conversation in the words of pydantic-ai, with the answers as their provider gave them where they are kept."""
    asked: list[said.ModelRequestPart] = []
    theirs: dict[str, str] = {}
    for message in messages:
        if message.role == "assistant":
            if asked:
                yield said.ModelRequest(parts=asked)
            asked = []
            answer = kept.find(text=message.text, calls=message.calls) or _answered(message)
            calls = [part for part in answer.parts if isinstance(part, said.ToolCallPart)]
            theirs |= {wanted.id: call.tool_call_id for wanted, call in zip(message.calls, calls, strict=True)}
            yield answer
        elif message.role == "tool":
            identifier = theirs.get(message.call, _plain_id(message.call))
            asked.append(said.ToolReturnPart(tool_name=message.tool, content=message.text, tool_call_id=identifier))
        elif message.role == "system":
            asked.append(said.SystemPromptPart(content=message.text))
        else:
            asked.append(said.UserPromptPart(content=message.text))
    if asked:
        yield said.ModelRequest(parts=asked)


def _answered(message: Message) -> said.ModelResponse:
    parts: list[said.ModelResponsePart] = [said.TextPart(content=message.text)] if message.text else []
    parts += [
        said.ToolCallPart(tool_name=call.name, args=_arguments(call.arguments), tool_call_id=_plain_id(call.id))
        for call in message.calls
    ]
    return said.ModelResponse(parts=parts)


def _arguments(text: str) -> str | dict[str, object]:
    """Return arguments as an object where they are one: what is no JSON would be refused on its way back."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    return found if isinstance(found, dict) else {"arguments": found}


def _plain_id(identifier: str) -> str:
    """Return an id that every provider takes: some allow letters, digits, dashes and 64 of them."""
    if _ID.fullmatch(identifier):
        return identifier
    return f"call_{sha256(identifier.encode()).hexdigest()[:24]}"
