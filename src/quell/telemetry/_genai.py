"""Spans and metrics of agents, in two vocabularies: OpenTelemetry's `gen_ai.*` and OpenInference.

What was said (messages, arguments, results) goes into a span only where content is recorded, cut and without secrets.
Nothing here is called per token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, Protocol

from quell.domain import (
    Message,
    ModelError,
    ModelReply,
    ModelRequest,
    OverloadError,
    Parked,
    Tool,
    ToolCall,
    ToolOutcome,
)
from quell.telemetry._active import (
    NOTHING,
    Attribute,
    Span,
    content,
    count,
    inject,
    is_listening,
    is_recording,
    measure,
    span,
)
from quell.telemetry._catalogue import Scalar

MESSAGES_MAX = 32
"""Of a request, the newest: a long conversation is told once, not in every span of it."""
_TOOLS_MAX = 32
_PROVIDERS: Mapping[str, str] = {
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "azure": "azure.ai.openai",
    "mistral": "mistral_ai",
}
"""Names of the semantic conventions, where ours differ."""
_OPENINFERENCE_PROVIDERS: Mapping[str, str] = {"bedrock": "aws", "gemini": "google"}
_FINISH: Mapping[str, str] = {"calls": "tool_calls", "filtered": "content_filter"}
_whose: ContextVar[Mapping[str, Scalar]] = ContextVar("quell_telemetry_whose", default=MappingProxyType({}))
"""Attributes of every span of a conversation."""
_NOWHERE = nullcontext()


def conversing(
    *, agent: str = "", session: str = "", user: str = "", metadata: Mapping[str, str] | None = None
) -> AbstractContextManager[None]:
    """Put onto every span of this block whose conversation it is; what is empty stays as it was outside."""
    if not is_listening():
        return _NOWHERE
    return _conversing(agent=agent, session=session, user=user, metadata=metadata or {})


@contextmanager
def _conversing(*, agent: str, session: str, user: str, metadata: Mapping[str, str]) -> Iterator[None]:
    told: dict[str, Scalar] = dict(_whose.get())
    if agent:
        told["gen_ai.agent.name"] = agent
    if session:
        told |= {"gen_ai.conversation.id": session, "session.id": session}
    if user:
        told["user.id"] = user
    if metadata:
        told["metadata"] = json.dumps(dict(metadata), sort_keys=True)
    token = _whose.set(told)
    try:
        yield
    finally:
        _whose.reset(token)


# -- agents -----------------------------------------------------------------------------------------------------------


class Invoked:
    """An agent at work on one question, for one segment of its run."""

    def __init__(self, opened: Span, agent: str) -> None:
        self._span = opened
        self._agent: dict[str, Scalar] = {"gen_ai.agent.name": agent}

    def began(self) -> None:
        """Count a question that is new."""
        count("agent.requests", 1, **self._agent)

    def waits(self) -> None:
        """Tell that the agent stopped to wait for people."""
        self._span.put("quell.stop", "waiting")
        count("agent.waits", 1, **self._agent)

    def ended(self, *, stop: str, is_partial: bool, fault: str, turns: int, elapsed_s: float, answer: str) -> None:
        """Tell how it ended: `fault` is the kind of trouble, empty when there was none."""
        labels = {**self._agent, "stop": stop}
        self._span.put("quell.stop", stop)
        self._span.put("quell.turns", turns)
        count("agent.answers", 1, **labels)
        measure("agent.duration", elapsed_s, labels)
        measure("agent.turns", turns, self._agent)
        if fault or is_partial:
            self._span.put("error.type", fault or stop)
            count("agent.errors", 1, **{**self._agent, "error.type": fault or stop})
        _put_value(self._span, "output", answer)


def invoke_agent(agent: str, *, run: str, session: str, question: Sequence[Message]) -> AbstractContextManager[Invoked]:
    """Time the work of an agent as a span; everything below belongs to this agent."""
    if not is_listening():
        return nullcontext(Invoked(NOTHING, agent))
    return _invoked(agent, run=run, session=session, question=question)


@contextmanager
def _invoked(agent: str, *, run: str, session: str, question: Sequence[Message]) -> Iterator[Invoked]:
    labels: dict[str, Scalar] = {"gen_ai.agent.name": agent}
    with conversing(agent=agent, session="" if "session.id" in _whose.get() else session):
        attributes: dict[str, Attribute] = {
            "gen_ai.operation.name": "invoke_agent",
            "openinference.span.kind": "AGENT",
            "agent.name": agent,
            "quell.run": run,
            **_whose.get(),
        }
        count("agent.running", 1, **labels)
        try:
            with span(f"invoke_agent {agent}", attributes) as opened:
                asked = [message.text for message in question if message.role == "user"] if is_recording() else []
                _put_value(opened, "input", asked[-1] if asked else "")
                yield Invoked(opened, agent)
        except Exception as error:
            count("agent.errors", 1, **{**labels, "error.type": type(error).__name__})
            raise
        finally:
            count("agent.running", -1, **labels)


# -- models -----------------------------------------------------------------------------------------------------------


class Asking(Protocol):
    """One try of a model call."""

    def first(self) -> None:
        """Tell that something came."""

    def replied(self, reply: ModelReply) -> None:
        """Tell what came."""


class _Unheard:
    def first(self) -> None:
        """Nobody listens."""

    def replied(self, reply: ModelReply) -> None:
        """Nobody listens."""


_UNHEARD: AbstractContextManager[Asking] = nullcontext(_Unheard())


class _Asking:
    def __init__(self, opened: Span, labels: Mapping[str, Scalar], *, began_s: float) -> None:
        self._span = opened
        self._labels = labels
        self._began_s = began_s

    def first(self) -> None:
        """Tell that something came."""
        waited_s = time.perf_counter() - self._began_s
        self._span.put("gen_ai.response.time_to_first_chunk", waited_s)
        measure("gen_ai.client.operation.time_to_first_chunk", waited_s, self._labels)

    def replied(self, reply: ModelReply) -> None:
        """Tell what came."""
        for key, value in _reply_attributes(reply, model=str(self._labels["gen_ai.request.model"])).items():
            self._span.put(key, value)
        usage = reply.usage
        measure("gen_ai.client.token.usage", usage.input_tokens, {**self._labels, "gen_ai.token.type": "input"})
        measure("gen_ai.client.token.usage", usage.output_tokens, {**self._labels, "gen_ai.token.type": "output"})
        if usage.cached_tokens:
            count("model.cached_tokens", usage.cached_tokens, **self._labels)
        if is_recording():
            said = Message(role="assistant", text=reply.text, calls=reply.calls)
            _put_messages(self._span, "output", [said], finish=_FINISH.get(reply.reason, reply.reason))
            _put_value(self._span, "output", reply.text)


def chat(request: ModelRequest, *, provider: str, model: str, attempt: int) -> AbstractContextManager[Asking]:
    """Time one try of a model call as a span."""
    if not is_listening():
        return _UNHEARD
    return _chatting(request, provider=provider, model=model, attempt=attempt)


@contextmanager
def _chatting(request: ModelRequest, *, provider: str, model: str, attempt: int) -> Iterator[Asking]:
    labels: dict[str, Scalar] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        "gen_ai.request.model": model,
    }
    if agent := _whose.get().get("gen_ai.agent.name"):
        labels["gen_ai.agent.name"] = agent
    if attempt > 1:
        count("model.retries", 1, **labels)
    began_s, failed = time.perf_counter(), dict[str, Scalar]()
    try:
        with span(f"chat {model}", _request_attributes(request, labels, provider, attempt), kind="client") as opened:
            if is_recording():
                _put_request(opened, request)
            try:
                yield _Asking(opened, labels, began_s=began_s)
            except BaseException as error:
                failed = {"error.type": _fault_of(error)}
                opened.put("error.type", failed["error.type"])
                raise
    finally:
        if failed:
            count("model.errors", 1, **labels, **failed)
        measure("gen_ai.client.operation.duration", time.perf_counter() - began_s, {**labels, **failed})


def spent(micro_usd: int, *, agent: str, model: str, basis: Literal["reported", "reserved"]) -> None:
    """Count the money of a model call; `reserved` is what it was at most, where nobody knows its usage."""
    if micro_usd:
        labels: dict[str, Scalar] = {"gen_ai.agent.name": agent, "gen_ai.request.model": model, "basis": basis}
        count("model.cost", micro_usd, **labels)


def _fault_of(error: BaseException) -> str:
    if isinstance(error, ModelError):
        return error.fault.value
    return "overload" if isinstance(error, OverloadError) else type(error).__name__


def _request_attributes(
    request: ModelRequest, labels: Mapping[str, Scalar], provider: str, attempt: int
) -> dict[str, Attribute]:
    chosen: dict[str, object] = {
        "max_tokens": request.output_max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "reasoning_effort": request.effort or None,
        "tool_choice": request.choice if request.tools else None,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    attributes: dict[str, Attribute] = {
        **_whose.get(),
        **labels,
        "gen_ai.request.stream": True,
        "gen_ai.output.type": "json" if request.answer_schema else "text",
        "openinference.span.kind": "LLM",
        "llm.model_name": labels["gen_ai.request.model"],
        "llm.provider": _OPENINFERENCE_PROVIDERS.get(provider, provider),
        "llm.system": _OPENINFERENCE_PROVIDERS.get(provider, provider),
        "llm.invocation_parameters": json.dumps(given),
        "quell.attempt": attempt,
    }
    for key in ("max_tokens", "temperature", "top_p", "seed"):
        value = given.get(key)
        if isinstance(value, int | float):
            attributes[f"gen_ai.request.{key}"] = value
    if request.stop:
        attributes["gen_ai.request.stop_sequences"] = list(request.stop)
    return attributes


def _reply_attributes(reply: ModelReply, *, model: str) -> dict[str, Attribute]:
    usage, answered = reply.usage, reply.model or model
    attributes: dict[str, Attribute] = {
        "gen_ai.response.model": answered,
        "gen_ai.response.finish_reasons": [_FINISH.get(reply.reason, reply.reason)],
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "quell.usage.is_estimate": not reply.is_usage_told,
        "llm.model_name": answered,
        "llm.token_count.prompt": usage.input_tokens,
        "llm.token_count.completion": usage.output_tokens,
        "llm.token_count.total": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_tokens:
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        attributes["llm.token_count.prompt_details.cache_read"] = usage.cached_tokens
    if usage.written_tokens:
        attributes["gen_ai.usage.cache_creation.input_tokens"] = usage.written_tokens
        attributes["llm.token_count.prompt_details.cache_write"] = usage.written_tokens
    if usage.reasoning_tokens:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        attributes["llm.token_count.completion_details.reasoning"] = usage.reasoning_tokens
    return attributes


# -- tools ------------------------------------------------------------------------------------------------------------


def count_call(tool: str, ended: ToolOutcome | Parked) -> None:
    """Count a tool call that ended, or that waits for people."""
    labels: dict[str, Scalar] = {"tool": tool, **_agent()}
    if isinstance(ended, Parked):
        count("tool.parked", 1, **labels)
        return
    labels["outcome"] = ended.kind.value
    count("tool.calls", 1, **labels)
    measure("tool.duration", ended.elapsed_ms / 1000, labels)


class Used:
    """A tool call under way."""

    def __init__(self, opened: Span) -> None:
        self._span = opened

    def ended(self, outcome: ToolOutcome | Parked) -> None:
        """Tell how it ended, or that it waits for people."""
        if isinstance(outcome, Parked):
            self._span.put("quell.outcome", "parked")
            self._span.put("quell.approval", outcome.approval)
            return
        self._span.put("quell.outcome", outcome.kind.value)
        self._span.put("quell.attempts", outcome.attempts)
        self._span.put("quell.result_bytes", outcome.size_bytes)
        for name, identifier in outcome.evidence.items():
            self._span.put(f"quell.{name}" if name in _IDS else f"quell.evidence.{name}", identifier)
        if not outcome.kind.is_answer:
            self._span.put("error.type", outcome.kind.value)
        if is_recording():
            _put_value(self._span, "output", outcome.content or outcome.detail)
            self._span.put_content("gen_ai.tool.call.result", content(outcome.content or outcome.detail))


_IDS = frozenset({"approval", "effect"})


@contextmanager
def execute_tool(tool: Tool, wanted: ToolCall, *, run: str) -> Iterator[Used]:
    """Time one tool call as a span: the wait for its turn, the verdict and every attempt are in it."""
    attributes: dict[str, Attribute] = {
        **_whose.get(),
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.name,
        "gen_ai.tool.type": "extension" if tool.server else "function",
        "gen_ai.tool.call.id": wanted.id,
        "openinference.span.kind": "TOOL",
        "tool.name": tool.name,
        "tool.id": wanted.id,
        "quell.run": run,
        "quell.tool.class": tool.tool_class.value,
    }
    if tool.server:
        attributes["quell.server"] = tool.server
    with span(f"execute_tool {tool.name}", attributes) as opened:
        if is_recording():
            _put_value(opened, "input", wanted.arguments, mime_type="application/json")
            opened.put_content("gen_ai.tool.call.arguments", content(wanted.arguments))
            opened.put_content("tool.description", content(tool.description))
        yield Used(opened)


def turned_away(outcome: ToolOutcome, *, run: str, known_as: str) -> None:
    """Tell of a call that did not come so far as to be one; `known_as` is empty for a tool that a model made up."""
    attributes: dict[str, Attribute] = {
        **_whose.get(),
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": outcome.tool,
        "gen_ai.tool.call.id": outcome.call,
        "openinference.span.kind": "TOOL",
        "tool.name": outcome.tool,
        "quell.run": run,
        "quell.outcome": outcome.kind.value,
        "error.type": outcome.kind.value,
    }
    name = known_as or "unknown"
    with span(f"execute_tool {name}", attributes):
        # Only names of ours become attributes of metrics: a model can write any number of others.
        count_call(name, outcome)


@contextmanager
def call_server(server: str, tool: str, *, transport: str, protocol: str) -> Iterator[Mapping[str, str]]:
    """Time one request to a tool server, and yield the place in the trace that goes along with it.

    It belongs into the headers and into `_meta` of the request (MCP, SEP-414).
    """
    attributes: dict[str, Attribute] = {
        **_whose.get(),
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": protocol,
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool,
        "network.transport": "pipe" if transport == "stdio" else "tcp",
        "openinference.span.kind": "CHAIN",
        "quell.server": server,
    }
    place: dict[str, str] = {}
    with span(f"tools/call {tool}", attributes, kind="client"):
        inject(place)
        yield place


def _agent() -> dict[str, Scalar]:
    name = _whose.get().get("gen_ai.agent.name")
    return {"gen_ai.agent.name": name} if name else {}


# -- what was said ----------------------------------------------------------------------------------------------------


def _put_value(opened: Span, side: str, text: str, *, mime_type: str = "text/plain") -> None:
    if text and is_recording():
        opened.put_content(f"{side}.value", content(text))
        opened.put(f"{side}.mime_type", mime_type)


def _put_request(opened: Span, request: ModelRequest) -> None:
    told = request.messages[-MESSAGES_MAX:]
    _put_messages(opened, "input", told, finish="")
    _put_value(opened, "input", told[-1].text if told else "")
    for number, tool in enumerate(request.tools[:_TOOLS_MAX]):
        schema = {"type": "function", "function": {"name": tool.name, "description": content(tool.description)}}
        opened.put_content(f"llm.tools.{number}.tool.json_schema", json.dumps(schema))


def _put_messages(opened: Span, side: str, messages: Sequence[Message], *, finish: str) -> None:
    """Write messages down in both vocabularies: as one JSON, and flat."""
    written = []
    for number, message in enumerate(messages):
        parts: list[dict[str, object]] = []
        at = f"llm.{side}_messages.{number}.message"
        opened.put(f"{at}.role", message.role)
        text = content(message.text)
        if message.role == "tool":
            parts.append({"type": "tool_call_response", "id": message.call, "response": text})
            opened.put(f"{at}.tool_call_id", message.call)
            opened.put(f"{at}.name", message.tool)
        elif message.text:
            parts.append({"type": "text", "content": text})
        if text:
            opened.put_content(f"{at}.content", text)
        for index, call in enumerate(message.calls):
            arguments = content(call.arguments)
            parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments})
            opened.put(f"{at}.tool_calls.{index}.tool_call.id", call.id)
            opened.put(f"{at}.tool_calls.{index}.tool_call.function.name", call.name)
            opened.put_content(f"{at}.tool_calls.{index}.tool_call.function.arguments", arguments)
        one: dict[str, object] = {"role": message.role, "parts": parts}
        written.append({**one, "finish_reason": finish} if finish else one)
    opened.put_content(f"gen_ai.{side}.messages", json.dumps(written, ensure_ascii=False))
