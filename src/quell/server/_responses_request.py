"""Read a request to /v1/responses: OpenAI's newer way to ask, with items in the place of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quell.domain import CallWanted, ChatAsk, Message
from quell.server._chat_messages import choice_of, paired, required, text_of, tools_of
from quell.server._chat_request import (
    EFFORTS,
    METADATA_MAX,
    SESSION_KEY,
    TEXT_MAX,
    ChatWish,
    leaving_of,
    schema_in,
)
from quell.server._wish import Wish

_ITEMS_MAX = 4_000
_PARTS = ("input_text", "output_text", "text", "summary_text")
_OURS = frozenset({"reasoning", "mcp_call", "mcp_list_tools", "mcp_approval_request"})
"""Items of earlier answers that tell what was done; a model needs no word of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWish:
    """What a request wants."""

    chat: ChatWish
    previous: str = ""
    """Id of the answer that this one goes on from."""
    is_background: bool = False
    """Whether only the run is begun, and asked for later."""
    echo: Mapping[str, object]
    """What the answer says of the request."""


def read_response(body: bytes) -> ResponseWish:
    """Read a request. Raises ChatError with every mistake of it."""
    wish = Wish.of(body)
    instructions = wish.text("instructions")
    messages = _input_of(wish)
    if instructions:
        messages = (Message(role="system", text=instructions), *messages)
    tools = tools_of(wish, form="flat")
    choice = choice_of(wish, {tool.name for tool in tools}, form="flat")
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
        output_max_tokens=wish.whole("max_output_tokens", low=1),
        temperature=wish.number("temperature", low=0, high=2),
        top_p=wish.number("top_p", low=0, high=1),
        effort=_effort_of(wish),
        on_disconnect=leaving_of(wish, metadata),
    )
    is_streamed, is_background = wish.flag("stream") or False, wish.flag("background") or False
    if is_streamed and is_background:
        wish.wrong("background", "cannot be streamed as well: begin it, and ask for it later", "unsupported_value")
    previous = wish.text("previous_response_id", length_max=TEXT_MAX)
    _unchanged(wish, has_tools=bool(tools))
    wish.rest()
    wish.finish()
    chat = ChatWish(ask=ask, is_streamed=is_streamed or is_background)
    echo = _echo_of(ask, instructions=instructions, previous=previous, is_background=is_background)
    return ResponseWish(chat=chat, previous=previous, is_background=is_background, echo=echo)


def _echo_of(ask: ChatAsk, *, instructions: str, previous: str, is_background: bool) -> dict[str, object]:
    return {
        "background": is_background,
        "instructions": instructions or None,
        "max_output_tokens": ask.output_max_tokens,
        "metadata": ask.metadata,
        "parallel_tool_calls": True,
        "previous_response_id": previous or None,
        "reasoning": {"effort": ask.effort or None, "summary": None},
        "store": True,
        "temperature": ask.temperature,
        "text": {"format": {"type": "json_schema" if ask.answer_schema else "text"}},
        "tool_choice": ask.choice,
        "tools": [{"type": "function", "name": tool.name} for tool in ask.client_tools],
        "top_p": ask.top_p,
        "truncation": "disabled",
        "user": ask.user or None,
    }


def goes_on(wish: ResponseWish, earlier: Sequence[Message], *, session: str) -> ResponseWish:
    """Return a request with what was said before it; system messages of earlier requests do not carry over."""
    ask = wish.chat.ask
    said = [message for message in earlier if message.role != "system"]
    system = [message for message in ask.messages if message.role == "system"]
    asked = [message for message in ask.messages if message.role != "system"]
    messages = (*system, *paired_with(said, asked))
    ask = replace(ask, messages=messages, session=ask.session or session)
    return replace(wish, chat=replace(wish.chat, ask=ask))


def paired_with(said: Sequence[Message], asked: Sequence[Message]) -> tuple[Message, ...]:
    """Join two parts of a conversation; results in the second may belong to calls of the first."""
    wish = Wish({})
    messages = paired(wish, [*said, *asked])
    wish.finish()
    return messages


def _input_of(wish: Wish) -> tuple[Message, ...]:
    given = wish.take("input")
    if given is None:
        wish.wrong("input", "is required", "missing_required_parameter")
        return ()
    if isinstance(given, str):
        return (Message(role="user", text=given),)
    messages: list[Message] = []
    for item in wish.objects("input", items_max=_ITEMS_MAX):
        message = _item(item)
        last = messages[-1] if messages else None
        if message is not None and message.calls and last is not None and last.role == "assistant":
            messages[-1] = replace(last, calls=(*last.calls, *message.calls))
        elif message is not None:
            messages.append(message)
    if not messages and not wish.mistakes:
        wish.wrong("input", "asks nothing")
    if messages and messages[-1].role not in {"user", "tool"} and not wish.mistakes:
        wish.wrong("input", "the last item must be a message of the user, or the output of a function")
    # What results belong to is known once the earlier answer is: it may be in there.
    return tuple(messages)


def _item(item: Wish) -> Message | None:
    kind = item.text("type") or "message"
    item.passed("id", "status")
    match kind:
        case "message":
            return _message(item)
        case "function_call":
            item.passed("parsed_arguments")
            call = CallWanted(
                id=required(item, "call_id"), name=required(item, "name"), arguments=item.text("arguments")
            )
            item.rest()
            return Message(role="assistant", calls=(call,))
        case "function_call_output":
            text = text_of(item, "output", kinds=_PARTS)
            call_id = required(item, "call_id")
            item.rest()
            return Message(role="tool", text=text, call=call_id)
    if kind not in _OURS:
        item.wrong("type", f"items of the type {kind[:40]!r} are not taken", "unsupported_value")
    return None


def _message(item: Wish) -> Message | None:
    role = item.text("role", choices=("system", "developer", "user", "assistant"))
    text = text_of(item, "content", kinds=_PARTS)
    item.passed("phase")
    item.rest()
    if not role:
        item.wrong("role", "is required", "missing_required_parameter")
        return None
    if role == "user":
        return Message(role="user", text=text)
    return Message(role="assistant", text=text) if role == "assistant" else Message(role="system", text=text)


def _schema_of(wish: Wish) -> str:
    text = wish.below("text")
    if text is None:
        return ""
    text.only("verbosity", "medium", why="the agent's own prompt says how much it writes")
    form = text.below("format")
    text.rest()
    if form is None:
        return ""
    kind = form.text("type", choices=("text", "json_object", "json_schema"))
    if kind == "json_schema":
        return schema_in(form)
    form.rest()
    return '{"type":"object"}' if kind == "json_object" else ""


def _effort_of(wish: Wish) -> str:
    reasoning = wish.below("reasoning")
    if reasoning is None:
        return ""
    effort = reasoning.text("effort", choices=EFFORTS)
    reasoning.only("summary", "auto", why="what a model thinks is not summed up")
    reasoning.passed("generate_summary")
    reasoning.rest()
    return effort


def _unchanged(wish: Wish, *, has_tools: bool) -> None:
    """Take what is accepted only where it asks for what is done anyway."""
    wish.only("truncation", "disabled", why="a conversation that is too long is fitted by the agent")
    wish.only("include", [], ["reasoning.encrypted_content"], why="answers have nothing of it")
    wish.only("service_tier", "auto", "default", why="there is one tier")
    wish.only("top_logprobs", 0, why="probabilities are not told")
    if wish.flag("parallel_tool_calls") is False and has_tools:
        wish.wrong("parallel_tool_calls", "cannot be switched off for a client's tools", "unsupported_value")
    wish.flag("store")
    wish.passed("prompt_cache_key", "prompt_cache_retention", "stream_options")
