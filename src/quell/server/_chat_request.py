"""Read a request to /v1/chat/completions: every parameter is honoured, refused by name, or documented to mean nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from quell.config import AgentSettings
from quell.domain import ChatAsk, ToolSpec, matches_glob
from quell.server._chat_messages import choice_of, messages_of, tools_of
from quell.server._openai_errors import ChatError
from quell.server._wish import Wish

_STOPS_MAX = 16
METADATA_MAX = 64
TEXT_MAX = 512
SESSION_KEY = "chat_session_id"
_LEAVING_KEY = "on_disconnect"
_SESSION = re.compile(r"[\x21-\x7e]{1,200}")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_OFF = (False,)
_ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWish:
    """What a request wants; whatever depends on the agent is not decided yet."""

    ask: ChatAsk
    """With system messages and tools as they came."""
    is_streamed: bool = False
    usage: Literal["last chunk", "own chunk"] = "last chunk"
    """`own chunk`: the client asked for it in the way of OpenAI's protocol."""
    choice_was_given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A question as its agent takes it, and what of the request it does not take."""

    ask: ChatAsk
    warnings: tuple[str, ...] = ()


def read_chat(body: bytes) -> ChatWish:
    """Read a request. Raises ChatError with every mistake of it."""
    wish = Wish.of(body)
    messages = messages_of(wish)
    tools = tools_of(wish, form="nested")
    choice = choice_of(wish, {tool.name for tool in tools}, form="nested")
    is_streamed = wish.flag("stream") or False
    usage = _usage_of(wish)
    metadata = wish.table("metadata", items_max=METADATA_MAX, value_max=TEXT_MAX)
    ask = ChatAsk(
        messages=messages,
        agent=wish.text("model", length_max=TEXT_MAX),
        session=metadata.get(SESSION_KEY, ""),
        user=wish.text("user", length_max=TEXT_MAX) or wish.text("safety_identifier", length_max=TEXT_MAX),
        metadata=metadata,
        client_tools=tools,
        choice=choice or "auto",
        answer_schema=_schema_of(wish),
        output_max_tokens=_most_tokens(wish),
        temperature=wish.number("temperature", low=0, high=2),
        top_p=wish.number("top_p", low=0, high=1),
        seed=wish.whole("seed", low=-(2**63), high=2**63 - 1),
        stop=wish.texts("stop", items_max=_STOPS_MAX),
        effort=wish.text("reasoning_effort", choices=EFFORTS),
        on_disconnect=leaving_of(wish, metadata),
    )
    _unchanged(wish, has_tools=bool(tools))
    wish.rest()
    wish.finish()
    return ChatWish(ask=ask, is_streamed=is_streamed, usage=usage, choice_was_given=bool(choice))


def _usage_of(wish: Wish) -> Literal["last chunk", "own chunk"]:
    options = wish.below("stream_options")
    if options is None:
        return "last chunk"
    is_wanted = options.flag("include_usage")
    options.passed("include_obfuscation")
    options.rest()
    return "own chunk" if is_wanted else "last chunk"


def _schema_of(wish: Wish) -> str:
    """Read `response_format`; empty for free text."""
    form = wish.below("response_format")
    if form is None:
        return ""
    kind = form.text("type", choices=("text", "json_object", "json_schema"))
    if kind != "json_schema":
        form.rest()
        return _ANY_OBJECT if kind == "json_object" else ""
    inner = form.below("json_schema")
    form.rest()
    if inner is None:
        form.wrong("json_schema", "is required", "missing_required_parameter")
        return ""
    return schema_in(inner)


def schema_in(wish: Wish) -> str:
    """Read the schema that an answer has to fulfil."""
    schema = wish.below("schema")
    wish.passed("name", "description")
    wish.flag("strict")
    wish.rest()
    if schema is None:
        wish.wrong("schema", "is required", "missing_required_parameter")
        return ""
    return schema.written()


def _most_tokens(wish: Wish) -> int | None:
    newer = wish.whole("max_completion_tokens", low=1)
    older = wish.whole("max_tokens", low=1)
    if newer is not None and older is not None and newer != older:
        wish.wrong("max_tokens", "says something else than max_completion_tokens")
    return newer if newer is not None else older


def leaving_of(wish: Wish, metadata: Mapping[str, str]) -> Literal["", "continue", "cancel"]:
    """Read what becomes of the run when its client leaves."""
    found = metadata.get(_LEAVING_KEY, "")
    if found not in {"", "continue", "cancel"}:
        wish.wrong(f"metadata.{_LEAVING_KEY}", "must be continue or cancel")
        return ""
    return cast('Literal["", "continue", "cancel"]', found)


def _unchanged(wish: Wish, *, has_tools: bool) -> None:
    """Take what is accepted only where it asks for what is done anyway."""
    wish.only("n", 1, why="there is one answer")
    for name in ("presence_penalty", "frequency_penalty"):
        wish.only(name, 0, 0.0, why="no penalty can be set")
    wish.only("logprobs", *_OFF, why="probabilities are not told")
    wish.only("top_logprobs", 0, why="probabilities are not told")
    wish.only("logit_bias", {}, why="tokens cannot be favoured")
    wish.only("modalities", ["text"], why="answers are text")
    wish.only("service_tier", "auto", "default", why="there is one tier")
    wish.only("verbosity", "medium", why="the agent's own prompt says how much it writes")
    if wish.flag("parallel_tool_calls") is False and has_tools:
        wish.wrong("parallel_tool_calls", "cannot be switched off for a client's tools", "unsupported_value")
    # Every run is journalled, and nothing of it is used to train anything: both values are kept to.
    wish.flag("store")
    # A hint to a provider's cache; caching is decided per model.
    wish.passed("prompt_cache_key", "prompt_cache_retention")


def fitted(wish: ChatWish, agent: AgentSettings, *, session: str) -> Fitted:
    """Say what an agent takes of a request. Raises ChatError when a tool must be called that it does not take."""
    ask = wish.ask
    taken, warnings = _tools_taken(ask, agent)
    names = {tool.name for tool in taken}
    # Without tools of the client's a choice speaks of none: `required` cannot be kept to.
    if ask.choice not in {"auto", "none"} and not (names if ask.choice == "required" else ask.choice in names):
        said = "tool_choice: the tool that must be called is not taken by this agent"
        raise ChatError(400, said, reason="unsupported_value", param="tool_choice", hint="; ".join(warnings))
    choice = ask.choice if taken or ask.choice == "none" else "auto"
    fit = replace(ask, agent=agent.id, client_tools=taken, choice=choice, session=session)
    return Fitted(ask=fit, warnings=warnings)


def _tools_taken(ask: ChatAsk, agent: AgentSettings) -> tuple[tuple[ToolSpec, ...], tuple[str, ...]]:
    if not ask.client_tools:
        return (), ()
    if agent.orchestration.enabled:
        return (), ("tools ignored: an agent with workers takes no tools of clients",)
    if not agent.agent.enable_client_tools:
        return (), ("tools ignored: agent.enable_client_tools is off",)
    globs = agent.agent.client_tool_filter
    taken = tuple(
        tool for tool in ask.client_tools if not globs or any(matches_glob(tool.name, each) for each in globs)
    )
    left = [tool.name for tool in ask.client_tools if tool not in taken]
    return taken, ((f"tools ignored by agent.client_tool_filter: {', '.join(left)}",) if left else ())


def unknown_model(name: str) -> ChatError:
    """Say that there is no such agent, or none for this caller."""
    said = f"The model `{name[:200]}` does not exist or you do not have access to it."
    return ChatError(404, said, reason="model_not_found", param="model")


def session_of(asked: str, headers: Mapping[str, str], *, fresh: bytes) -> str:
    """Return the id of the conversation: of the metadata, of our header, of Open WebUI's, or one made of fresh bytes."""
    for found in (asked, headers.get("x-chat-session-id", ""), headers.get("x-openwebui-chat-id", "")):
        if not found:
            continue
        if not _SESSION.fullmatch(found):
            said = "the session id must be 1 to 200 visible characters of ASCII"
            raise ChatError(400, said, reason="invalid_value", param=f"metadata.{SESSION_KEY}")
        return found
    return "cs_" + uuid_of(fresh)


def uuid_of(fresh: bytes) -> str:
    """Write 16 random bytes as a UUID (version 4)."""
    raw = bytearray(fresh[:16])
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
