"""Read the messages of a conversation as a client of OpenAI's protocol sends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from quell.domain import CallWanted, Message, ToolSpec
from quell.server._wish import Wish

Form: TypeAlias = Literal["nested", "flat"]
"""Where a function stands: below `function`, as in chat completions, or in the object itself, as in responses."""
_MESSAGES_MAX = 4_000
_PARTS_MAX = 1_000
_CALLS_MAX = 256
_TOOLS_MAX = 512
_ECHOED = (
    "name",
    "refusal",
    "annotations",
    "audio",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "id",
    "provider_specific_fields",
)
"""What clients send back as they got it, from here or from elsewhere, and what has no meaning in a question."""
_ECHOED_OF_CALLS = ("index", "parsed_arguments", "provider_specific_fields", "extra_content")
"""The same in calls and their functions: OpenAI's SDK, LiteLLM and openai-agents keep what they parsed, and marks of providers."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def messages_of(wish: Wish) -> tuple[Message, ...]:
    """Read `messages`; system messages keep their role, and the caller of this says what becomes of them."""
    if wish.take("messages") is None:
        wish.wrong("messages", "is required", "missing_required_parameter")
        return ()
    found = [_message(each) for each in wish.objects("messages", items_max=_MESSAGES_MAX)]
    messages = paired(wish, [each for each in found if each is not None])
    if not found and not wish.mistakes:
        wish.wrong("messages", "must have one message at least")
    elif messages and messages[-1].role not in {"user", "tool"} and not wish.mistakes:
        wish.wrong("messages", "the last message must be of the role user, or tool with a result of a client's tool")
    return messages


def tools_of(wish: Wish, *, form: Form) -> tuple[ToolSpec, ...]:
    """Read `tools`: functions that the client carries out."""
    found: list[ToolSpec] = []
    for tool in wish.objects("tools", items_max=_TOOLS_MAX):
        kind = tool.text("type")
        if kind != "function":
            tool.wrong("type", f"is {kind[:40]!r}: only tools of the type function are taken", "unsupported_value")
            continue
        function = _function_of(tool, form)
        if function is None:
            continue
        spec = _spec_of(function)
        function.rest()
        tool.rest()
        if spec is not None:
            found.append(spec)
    names = [spec.name for spec in found]
    if len(set(names)) != len(names):
        wish.wrong("tools", "has two tools of one name")
    return tuple(found)


def choice_of(wish: Wish, names: set[str], *, form: Form) -> str:
    """Read `tool_choice`: which of these tools is to be called; empty when it says nothing."""
    found = wish.take("tool_choice")
    if found is None or isinstance(found, str):
        if found not in {None, "auto", "none", "required"}:
            wish.wrong("tool_choice", "must be auto, none, required, or name a function")
        return found or ""
    below = wish.below("tool_choice")
    if below is None:
        return ""
    below.only("type", "function", why="only a function can be chosen")
    function = _function_of(below, form)
    if function is None:
        return ""
    name = function.text("name")
    function.rest()
    below.rest()
    if name not in names:
        function.wrong("name", "is none of the tools of this request")
    return name


def _function_of(wish: Wish, form: Form) -> Wish | None:
    function = wish if form == "flat" else wish.below("function")
    if function is None:
        wish.wrong("function", "is required", "missing_required_parameter")
    return function


def _spec_of(function: Wish) -> ToolSpec | None:
    """Read the name, the description and the parameters of a function."""
    name = function.text("name", length_max=64)
    description = function.text("description")
    parameters = function.below("parameters")
    function.flag("strict")
    if not name:
        function.wrong("name", "is required", "missing_required_parameter")
        return None
    schema = '{"type":"object","properties":{}}' if parameters is None else parameters.written()
    return ToolSpec(name=name, description=description, parameters=schema)


def text_of(wish: Wish, name: str, *, kinds: Sequence[str] = ("text",)) -> str:
    """Read content: text, nothing, or a list of parts whose texts are joined."""
    found = wish.take(name)
    if found is None or isinstance(found, str):
        return found or ""
    if not isinstance(found, list):
        wish.wrong(name, "must be text or a list of parts", "wrong type")
        return ""
    return "\n".join(_part(part, kinds) for part in wish.objects(name, items_max=_PARTS_MAX))


def _part(part: Wish, kinds: Sequence[str]) -> str:
    kind = part.text("type")
    if kind in kinds:
        part.passed("annotations", "logprobs", "cache_control")
        text = part.text("text")
        part.rest()
        return text
    if kind == "refusal":
        return part.text("refusal")
    part.wrong("type", f"parts of the type {kind[:40]!r} are not taken: the agents read text", "unsupported_value")
    return ""


def _message(wish: Wish) -> Message | None:
    role = wish.text("role")
    if role not in _ROLES:
        wish.wrong("role", f"is {role[:40]!r}, and must be one of {', '.join(_ROLES)}")
        return None
    wish.passed(*(name for name in _ECHOED if name != "name" or role != "function"))
    text = text_of(wish, "content")
    match role:
        case "assistant":
            message = Message(role="assistant", text=text, calls=_calls(wish))
        case "tool":
            message = Message(role="tool", text=text, call=required(wish, "tool_call_id"))
        case "function":
            message = Message(role="tool", text=text, call="", tool=required(wish, "name"))
        case "user":
            message = Message(role="user", text=text)
        case _:
            message = Message(role="system", text=text)
    wish.rest()
    return message


def required(wish: Wish, name: str) -> str:
    """Return a text that must be there."""
    found = wish.text(name)
    if not found:
        wish.wrong(name, "is required", "missing_required_parameter")
    return found


def _calls(wish: Wish) -> tuple[CallWanted, ...]:
    found: list[CallWanted] = []
    for call in wish.objects("tool_calls", items_max=_CALLS_MAX):
        identifier = required(call, "id")
        call.only("type", "function", why="only calls of functions are taken")
        call.passed(*_ECHOED_OF_CALLS)
        function = call.below("function")
        call.rest()
        if function is None:
            call.wrong("function", "is required", "missing_required_parameter")
            continue
        found.append(_call_of(function, id=identifier))
    legacy = wish.below("function_call")
    if legacy is not None:
        found.append(_call_of(legacy, id=""))
    return tuple(found)


def _call_of(function: Wish, *, id: str) -> CallWanted:  # noqa: A002 - the protocol's word
    function.passed(*_ECHOED_OF_CALLS)
    wanted = CallWanted(id=id, name=required(function, "name"), arguments=function.text("arguments"))
    function.rest()
    return wanted


def paired(wish: Wish, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with every result named after its call, and without calls that nobody answered.

    Clients send back the calls that this server carried out itself, whose results they were never told: a model would
    refuse a call without a result. A result without a call is a mistake.
    """
    asked: dict[str, str] = {}
    told: list[Message] = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            calls = tuple(each if each.id else replace(each, id=f"function_{number}") for each in message.calls)
            asked |= {each.id: each.name for each in calls}
            message = replace(message, calls=calls)  # noqa: PLW2901 - the same message with ids
        elif message.role == "tool":
            call = message.call or next((key for key in reversed(asked) if asked[key] == message.tool), "")
            if call not in asked:
                wish.wrong(f"messages[{number}]", "is a result of a call that no message before it asks for")
                continue
            message = replace(message, call=call, tool=asked[call])  # noqa: PLW2901 - as above
        told.append(message)
    answered = {message.call for message in told if message.role == "tool"}
    kept = (replace(each, calls=tuple(call for call in each.calls if call.id in answered)) for each in told)
    return tuple(each for each in kept if each.role != "assistant" or each.text or each.calls)
